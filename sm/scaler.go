package sm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/elastic"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/sm/deploy"
	"github.com/reservoir-cloud/reservoir/sm/rules"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// queryPatience with the answer to one KPI's query.
const queryPatience = 5 * time.Second

// scaler lets the rules of one service decide. Like a provider it changes nothing but the
// record's goal, and it knows nothing that may not be lost: what is wanted, and when that
// changed last, is in the record. All but what explanation guards is its own goroutine's.
type scaler struct {
	m    *Manager
	key  string
	news chan struct{}
	wake time.Time // where the manager is stepped: the next turn without news

	id     string
	design *design
	states map[string]elastic.State // by component
	asked  map[string]bool          // components whose past was asked for
	failed int                      // turns, one after the other

	explanation explanation
}

// explanation of what the rules do, for people.
type explanation struct {
	mu   sync.Mutex
	id   string                // of the service
	why  map[string]explained  // by component
	kpis map[string]kpiReading // by name
}

type explained struct {
	at  time.Time
	why string
}

type kpiReading struct {
	at      time.Time
	value   *float64 // nil: nothing was measured
	problem string
}

func newScaler(m *Manager, key string) *scaler {
	return &scaler{m: m, key: key, news: make(chan struct{}, 1), states: map[string]elastic.State{}, asked: map[string]bool{},
		explanation: explanation{why: map[string]explained{}, kpis: map[string]kpiReading{}}}
}

// poke the scaler; it never waits.
func (s *scaler) poke() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// run until ctx ends. A service without rules never pokes it.
func (s *scaler) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.news:
		case <-timer.C:
		}
		if wake := s.turn(ctx); !wake.IsZero() {
			timer.Reset(max(0, wake.Sub(s.m.cfg.Now())))
		}
	}
}

// turn lets the rules look, and says when they look again without any news; the zero time:
// there are none.
func (s *scaler) turn(ctx context.Context) (wake time.Time) {
	wake, err := s.look(ctx)
	if err != nil && ctx.Err() == nil {
		s.m.cfg.Log.Warn("elasticity: will try again", "service", s.key, "error", err)
		wake = s.m.cfg.Now().Add(backoff(s.failed))
		s.failed++
		return wake
	}
	s.failed = 0
	return wake
}

func (s *scaler) look(ctx context.Context) (wake time.Time, err error) {
	rec, _, err := s.m.records.Get(ctx, s.key)
	if fault.Has(err, fault.NotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	if err := s.prepare(ctx, rec); err != nil || rec.Deleting || rec.Asleep || rec.Ceded != nil {
		return time.Time{}, err
	}
	vees, synced := s.m.group(rec.ID)
	if !synced {
		return time.Time{}, nil // the watch will say when
	}
	now := s.m.cfg.Now()
	samples := map[string][]elastic.Sample{} // of this look, by KPI
	for _, p := range s.design.elastic.Policies {
		if rec.Paused[p.Component] {
			s.explain(p.Component, now, fmt.Sprintf("stays at %d: its rules are paused", rec.Desired[p.Component]))
			delete(s.states, p.Component)
			s.asked[p.Component] = true // they begin anew when they are resumed
			continue
		}
		next, err := s.decide(ctx, rec, p, vees, samples, now)
		if err != nil {
			return time.Time{}, err
		}
		if wake.IsZero() || next.Before(wake) {
			wake = next
		}
	}
	return wake, nil
}

// prepare brings what the scaler remembers in line with the record.
func (s *scaler) prepare(ctx context.Context, rec record) error {
	if s.id != rec.ID { // the first, or another service under the same name
		s.id, s.design = rec.ID, nil
		clear(s.states)
		clear(s.asked)
	}
	if s.design != nil && s.design.number == rec.Revision {
		return nil
	}
	d, err := s.m.loadDesign(ctx, rec.ID, rec.Revision)
	if rec.Deleting && fault.Has(err, fault.Malformed) || fault.Has(err, fault.NotFound) {
		return nil // nothing to decide, or another record by now
	}
	if err != nil {
		return err
	}
	s.design = d
	s.explanation.begin(rec.ID, d.elastic)
	return nil
}

// begin anew, with what is still asked for.
func (x *explanation) begin(id string, set *rules.Set) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.id != id {
		clear(x.why)
		clear(x.kpis)
	}
	x.id = id
	asked := map[string]bool{}
	for _, k := range set.KPIs {
		asked[k.Name] = true
	}
	maps.DeleteFunc(x.kpis, func(name string, _ kpiReading) bool { return !asked[name] })
}

// decide about one component.
func (s *scaler) decide(ctx context.Context, rec record, p elastic.Policy, vees map[vee.ID]vmi.VEE, samples map[string][]elastic.Sample, now time.Time) (wake time.Time, err error) {
	state := s.states[p.Component]
	// A change by hand, or by an earlier process, has its cool-down too.
	if at := rec.Scaled[p.Component].At; at.After(state.Changed) {
		state.Changed = at
	}
	seen := s.design.observe(rec, p.Component, vees)
	if !s.asked[p.Component] {
		samples, err := s.past(ctx, rec, p, now)
		if err != nil { // asked for again at the next look; until then windows fill anew
			s.m.cfg.Log.Warn("elasticity: what was measured before", "service", s.key, "component", p.Component, "error", err)
		} else {
			s.asked[p.Component], state.From = true, rec.Changed
		}
		seen.Samples = samples
	}
	for _, kpi := range elastic.Due(p, state, seen, now) {
		if _, asked := samples[kpi]; !asked {
			samples[kpi] = s.measure(ctx, rec, kpi, now)
		}
		seen.Samples = append(seen.Samples, samples[kpi]...)
	}
	next, d := elastic.Step(p, state, seen, now)
	if d.Kind == elastic.Hold {
		s.states[p.Component] = next
		s.explain(p.Component, now, d.Why)
		return d.Wake, nil
	}
	if no := s.roomFor(ctx, rec, p.Component, &d); no != nil {
		// As if it had not been decided, but that the rule has been looked at.
		next.Changed, next.Unsettled, next.Settled, next.From = state.Changed, state.Unsettled, state.Settled, state.From
		s.states[p.Component] = next
		s.refused(rec, p.Component, now, d, no)
		return d.Wake, nil
	}
	rec, err = s.record(ctx, rec, p.Component, d, now)
	if errors.Is(err, errOvertaken) {
		return now.Add(firstPause), nil // decided upon what is no more: looked at again
	}
	if err != nil {
		return time.Time{}, err
	}
	s.states[p.Component] = next
	s.explain(p.Component, now, d.Why)
	s.m.event(rec, deploy.Event{Reason: eventOf[d.Kind], Message: p.Component + " " + d.Why})
	return d.Wake, nil
}

var eventOf = map[elastic.Kind]string{elastic.ScaleUp: "ScaledUp", elastic.ScaleDown: "ScaledDown", elastic.Resize: "Resized"}

// errOvertaken says that a service is not any more what was decided about.
var errOvertaken = errors.New("the service has changed meanwhile")

// record a decision as what is wanted, unless that was changed since.
func (s *scaler) record(ctx context.Context, was record, component string, d elastic.Decision, now time.Time) (record, error) {
	rec, _, err := s.m.records.Modify(ctx, s.key, func(r *record) error {
		if r.ID != was.ID || r.Deleting || r.Ceded != nil || r.Revision != was.Revision || r.Desired[component] != was.Desired[component] ||
			r.Sizes[component] != was.Sizes[component] || r.Paused[component] {
			return errOvertaken
		}
		r.Desired = maps.Clone(r.Desired)
		r.Desired[component] = d.Size.Replicas
		to := scaled{At: now, Kind: string(d.Kind), Rule: d.Rule, To: d.Size.Replicas, Why: d.Why}
		if d.Kind == elastic.Resize {
			to.size = size{d.Size.VCPUs, d.Size.Memory}
			sizes := map[string]size{component: to.size}
			for k, v := range r.Sizes {
				if k != component {
					sizes[k] = v
				}
			}
			r.Sizes = sizes
		}
		r.resized(component, to)
		r.newGoal(now)
		return nil
	})
	if fault.Has(err, fault.NotFound) {
		err = errOvertaken
	}
	return rec, err
}

// roomFor a decision. Where there is room for some of the replicas, those are decided.
func (s *scaler) roomFor(ctx context.Context, rec record, component string, d *elastic.Decision) error {
	was := rec.Desired[component]
	if d.Kind != elastic.ScaleUp || rec.BestEffort {
		return nil
	}
	for n := d.Size.Replicas - was; ; n-- {
		err := s.m.roomFor(ctx, rec, s.design, component, n)
		if err == nil {
			if was+n < d.Size.Replicas {
				d.Why += fmt.Sprintf(", but there is room for %d only", n)
				d.Size.Replicas = was + n
			}
			return nil
		}
		if n == 1 || !fault.Has(err, fault.NoResources) {
			return err
		}
	}
}

// refused tells of a decision that cannot be, once.
func (s *scaler) refused(rec record, component string, now time.Time, d elastic.Decision, no error) {
	why := fmt.Sprintf("stays at %d, though %s wants it %s; %s", rec.Desired[component], d.Rule, d.Why, fault.From(no).Message)
	if likeness(s.explain(component, now, why)) != likeness(why) {
		s.m.event(rec, deploy.Event{Warning: true, Reason: "NotScaled", Message: component + " " + why})
	}
}

// likeness of two reasons: they are the same but for the numbers.
func likeness(why string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r == '.' {
			return -1
		}
		return r
	}, why)
}

// explain a component's size, and return the explanation before.
func (s *scaler) explain(component string, now time.Time, why string) (before string) {
	s.explanation.mu.Lock()
	defer s.explanation.mu.Unlock()
	before = s.explanation.why[component].why
	s.explanation.why[component] = explained{now, why}
	return before
}

// observe a component as its policy sees it.
func (d *design) observe(rec record, component string, vees map[vee.ID]vmi.VEE) elastic.Observation {
	o := elastic.Observation{Wanted: d.sizeOf(rec, component), Sizes: map[string]int{}}
	for _, c := range d.manifest.Components {
		o.Sizes[c.Name] = 0
	}
	for _, l := range rec.State.Slots {
		r := elastic.Replica{Ready: deploy.Ready(vees[l.VEE]), Leaving: !l.Retiring.IsZero(), VCPUs: l.Fit.VCPUs, Memory: l.Fit.Memory}
		if r.Ready && !r.Leaving {
			o.Sizes[l.Component]++
		}
		if l.Component == component {
			o.Replicas = append(o.Replicas, r)
		}
	}
	return o
}

// sizeOf a component that is wanted.
func (d *design) sizeOf(rec record, component string) elastic.Size {
	s := elastic.Size{Replicas: rec.Desired[component], VCPUs: rec.Sizes[component].VCPUs, Memory: rec.Sizes[component].Memory}
	if c := d.manifest.Component(component); c != nil {
		s.VCPUs, s.Memory = cmp.Or(s.VCPUs, c.CPU.Count), cmp.Or(s.Memory, c.Memory.Size)
	}
	return s
}

// measure a KPI. What cannot be told is no measurement: the rules then decide nothing by it.
func (s *scaler) measure(ctx context.Context, rec record, kpi string, now time.Time) []elastic.Sample {
	r := kpiReading{at: now}
	points, err := s.m.valueOf(ctx, rec, s.design.elastic, kpi, now)
	var samples []elastic.Sample
	switch {
	case err != nil && ctx.Err() != nil:
		return nil
	case err != nil:
		r.problem = fault.From(err).Message
	default:
		for _, p := range points {
			samples = append(samples, elastic.Sample{KPI: kpi, At: p.At, Value: p.Value})
			r.at, r.value = p.At, finite(p.Value)
		}
	}
	s.explanation.mu.Lock()
	before := s.explanation.kpis[kpi].problem
	s.explanation.kpis[kpi] = r
	s.explanation.mu.Unlock()
	if r.problem != "" && r.problem != before {
		s.m.event(rec, deploy.Event{Warning: true, Reason: "KPIUnknown", Message: fmt.Sprintf("KPI %s: %s; no rule decides by it", kpi, r.problem)})
	}
	return samples
}

// valueOf a KPI at one time: at most one point.
func (m *Manager) valueOf(ctx context.Context, rec record, set *rules.Set, kpi string, at time.Time) ([]monitor.Point, error) {
	if m.cfg.Monitor == nil {
		return nil, fault.New(fault.Unavailable, "nothing is measured at site %s", m.cfg.Site)
	}
	ctx, cancel := context.WithTimeout(ctx, queryPatience)
	defer cancel()
	series, err := m.cfg.Monitor.Querier(scopeNow(rec)).Query(ctx, set.Query(kpi), at)
	if err != nil {
		return nil, err
	}
	return only(series)
}

// scopeOf a service: what was ever measured of it, and of nobody else.
func scopeOf(rec record) monitor.Scope {
	return monitor.Scope{Customer: rec.Customer, Service: rec.Name}
}

// scopeNow leaves replicas out that are gone or leave.
func scopeNow(rec record) monitor.Scope {
	ids := []string{"-"} // which is no VEE's
	for _, l := range rec.State.Slots {
		if l.VEE != "" && l.Retiring.IsZero() {
			ids = append(ids, string(l.VEE))
		}
	}
	slices.Sort(ids)
	s := scopeOf(rec)
	s.VEEs = strings.Join(ids, " ")
	return s
}

// only one series can be a KPI.
func only(series []monitor.Series) ([]monitor.Point, error) {
	switch len(series) {
	case 0:
		return nil, nil
	case 1:
		return series[0].Points, nil
	}
	return nil, fault.New(fault.Malformed, "its query gives %d series: want one number, such as that of sum(…)", len(series))
}
