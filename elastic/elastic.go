// Package elastic decides how large a component of a service should be: how many replicas
// it has and how large each is. It is pure: Step takes a state, what was observed and the
// time, and gives the next state and a decision with its reasons in words. Expressions are
// compiled elsewhere and handed in as predicates; which replica leaves, and when it has
// finished its work, is decided by who removes it.
//
// One evaluator reads both kinds of rule: the elastic array, which keeps a KPI's average
// per replica near a quota (Claudia's ElasticArraySection), and a trigger with an action
// (Chapman et al., "Software architecture definition for on-demand cloud provisioning").
//
// It is level-triggered. There is no state "scaling": whether a change is in flight is seen
// by comparing the size that is wanted with what there is, and when that takes longer than
// Policy.Patience the rules go on with what there is. A step may be lost, repeated or come
// late, and a clock may be set back: at worst a window fills or a cool-down runs once more.
//
// Safe by default: where rules disagree, up wins over down; what is not known (a window
// that is not full, a measurement that is too old, a condition that fails) changes nothing.
package elastic

import (
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// DefaultPatience of a Policy.
const DefaultPatience = 10 * time.Minute

// longestSleep between two steps.
const longestSleep = time.Minute

// Policy of one component.
type Policy struct {
	Component string
	Min, Max  int // replicas

	// Cool-downs: after any change of size, the next one up (or of the replicas' own size)
	// comes no sooner than Up, the next one down no sooner than Down. Bounds that are broken
	// are restored at once.
	Up, Down time.Duration

	Arrays    []Array
	Rules     []Rule // whose action is on this component
	Schedules []Schedule

	Patience time.Duration // with a change in flight; 0: DefaultPatience
}

// Array is the rule of an elastic array. With r the KPI's average over the window divided by
// the replicas: one is added when r is above Quota·(1+Tolerance/100), one is removed when r
// is below Quota·(1−Tolerance/100) and would not be above the former without it.
type Array struct {
	KPI       string
	Window    time.Duration
	Every     time.Duration // it is looked at
	Quota     float64
	Tolerance float64 // %
}

// Rule is a trigger and an action: every so often, when the condition holds, do it.
type Rule struct {
	Name      string
	Every     time.Duration
	Condition string   // as written, for people
	KPIs      []string // that it reads
	Holds     func(Values) (bool, error)
	Do        Action
}

// Values that a condition is about.
type Values struct {
	KPIs  map[string]float64 // the newest measurement of each of Rule.KPIs
	Sizes map[string]int     // NAME.instances.size of each component: replicas that serve
}

// Action of a rule. By and the sizes are of ScaleUp and ScaleDown, and of Resize.
type Action struct {
	Kind   Kind
	By     int       // replicas; 0: one
	VCPUs  int       // 0: as before
	Memory vee.Bytes // 0: as before
}

// Kind of a decision.
type Kind string

// Kinds of decisions.
const (
	Hold      Kind = "hold"
	ScaleUp   Kind = "scaleUp"
	ScaleDown Kind = "scaleDown"
	Resize    Kind = "resize"
)

// Size of a component.
type Size struct {
	Replicas int
	VCPUs    int       // of each replica; 0: not said
	Memory   vee.Bytes // of each replica; 0: not said
}

// Sample is a measurement of a KPI.
type Sample struct {
	KPI   string    `json:"kpi"`
	At    time.Time `json:"at"`
	Value float64   `json:"value"`
}

// Replica that there is.
type Replica struct {
	Ready   bool // serves
	Leaving bool // is on its way out
	VCPUs   int
	Memory  vee.Bytes
}

// Observation of a component.
type Observation struct {
	Wanted   Size           // as it is recorded now
	Replicas []Replica      // all that there are, also those on their way out; not those that an update is replacing
	Sizes    map[string]int // replicas of other components that serve
	Samples  []Sample       // that came since the last step: in any order, also again
}

// State between steps; the zero value is that of a new component. It may be kept as JSON.
// One that is lost costs a full window, unless a step is given what was measured before
// (Policy.Past), and forgets a cool-down.
type State struct {
	Samples   map[string][]Sample  `json:"samples,omitempty"`  // by KPI, in the order of time
	From      time.Time            `json:"from,omitzero"`      // measurements after it count
	Changed   time.Time            `json:"changed,omitzero"`   // last change of the wanted size
	Unsettled time.Time            `json:"unsettled,omitzero"` // since then what there is differs from what is wanted, or did until
	Settled   time.Time            `json:"settled,omitzero"`   // then; both are zero when a window could fill since
	Looked    map[string]time.Time `json:"looked,omitempty"`   // at each rule
}

// Decision of a step.
type Decision struct {
	Kind    Kind
	Rule    string    // that decided
	Size    Size      // that is wanted from now on
	Why     string    // for people: numbers, window, threshold, or why not
	Ignored int       // measurements that were not numbers, lay in the future or came too late
	Wake    time.Time // step again no later
}

// Step decides. It changes nothing of s and o.
func Step(p Policy, s State, o Observation, now time.Time) (State, Decision) {
	e := &evaluation{policy: p, state: s.copied(now), seen: o, now: now}
	d := Decision{Kind: Hold, Size: o.Wanted, Ignored: e.take(o.Samples)}
	e.countReplicas()
	if !e.bounds(&d) && !e.inFlight(&d) {
		e.rules(&d)
	}
	if d.Kind != Hold {
		e.state.Changed, e.state.Unsettled, e.state.Settled, e.state.From = now, now, time.Time{}, now
	}
	d.Wake = e.wake()
	return e.state, d
}

// Due are the KPIs that Step would look at now, if it had their measurements: those of rules
// whose time has come, and none while a change is in flight.
func Due(p Policy, s State, o Observation, now time.Time) (kpis []string) {
	e := &evaluation{policy: p, state: s.copied(now), seen: o, now: now}
	e.countReplicas()
	var d Decision
	if e.inFlight(&d) {
		return nil
	}
	add := func(kpi string) {
		if !slices.Contains(kpis, kpi) {
			kpis = append(kpis, kpi)
		}
	}
	for _, a := range p.Arrays {
		if e.due(a.String(), a.Every) {
			add(a.KPI)
		}
	}
	for _, r := range p.Rules {
		if e.due(r.Name, r.Every) {
			for _, k := range r.KPIs {
				add(k)
			}
		}
	}
	return kpis
}

// copied state in which nothing happened after now, so that a clock that was set back ends
// no rule's work.
func (s State) copied(now time.Time) State {
	past := func(t time.Time) time.Time {
		if t.After(now) {
			return now
		}
		return t
	}
	all := func(m map[string]time.Time) map[string]time.Time {
		out := make(map[string]time.Time, len(m))
		for k, t := range m {
			out[k] = past(t)
		}
		return out
	}
	out := State{From: past(s.From), Changed: past(s.Changed), Unsettled: past(s.Unsettled), Settled: past(s.Settled),
		Looked: all(s.Looked), Samples: make(map[string][]Sample, len(s.Samples))}
	for kpi, list := range s.Samples {
		out.Samples[kpi] = slices.DeleteFunc(slices.Clone(list), func(x Sample) bool { return x.At.After(now) })
	}
	return out
}

// evaluation is one step's.
type evaluation struct {
	policy Policy
	state  State
	seen   Observation
	now    time.Time

	stay    []Replica // not on their way out
	ready   int       // of these
	leaving int
}

func (e *evaluation) countReplicas() {
	for _, r := range e.seen.Replicas {
		if r.Leaving {
			e.leaving++
			continue
		}
		e.stay = append(e.stay, r)
		if r.Ready {
			e.ready++
		}
	}
}

// bounds are restored whatever else goes on.
func (e *evaluation) bounds(d *Decision) bool {
	low, high, whose := e.policy.Bounds(e.now)
	have := d.Size.Replicas
	switch {
	case have < low:
		d.Kind, d.Size.Replicas = ScaleUp, low
		d.Why = fmt.Sprintf("from %d to %d: %s wants at least %d", have, low, whose, low)
	case have > high:
		d.Kind, d.Size.Replicas = ScaleDown, high
		d.Why = fmt.Sprintf("from %d to %d: %s allows at most %d", have, high, whose, high)
	default:
		return false
	}
	d.Rule = whose
	return true
}

// inFlight reports whether a change is, and sees to it that measurements until its end do
// not count. A replica that is lost and comes back again and again, so that no window ever
// fills, does not hold up the rules for longer than one that never comes.
func (e *evaluation) inFlight(d *Decision) bool {
	s := &e.state
	said := e.difference()
	patient := s.Unsettled.IsZero() || e.now.Sub(s.Unsettled) < e.policy.patience()
	if said == "" {
		switch {
		case s.Unsettled.IsZero():
		case s.Settled.IsZero():
			if s.Settled = e.now; patient {
				s.From = e.now
			}
		case e.now.Sub(s.Settled) >= e.policy.longest():
			s.Unsettled, s.Settled = time.Time{}, time.Time{}
		}
		return false
	}
	s.Settled = time.Time{}
	if s.Unsettled.IsZero() {
		s.Unsettled = e.now
	}
	if !patient {
		return false
	}
	s.From = e.now
	d.Why = fmt.Sprintf("stays at %d: a change is in flight for %s (%s), measurements do not count until it is done", d.Size.Replicas, brief(e.now.Sub(s.Unsettled)), said)
	return true
}

// difference between what is wanted and what there is, in words; empty: none.
func (e *evaluation) difference() string {
	w := e.seen.Wanted
	if e.leaving > 0 {
		return fmt.Sprintf("%d on the way out", e.leaving)
	}
	if e.ready != w.Replicas || len(e.stay) != w.Replicas {
		return fmt.Sprintf("%d of %d ready", e.ready, w.Replicas)
	}
	other := 0
	for _, r := range e.stay {
		if w.VCPUs > 0 && r.VCPUs != w.VCPUs || w.Memory > 0 && r.Memory != w.Memory {
			other++
		}
	}
	if other > 0 {
		return fmt.Sprintf("%d of %d not resized yet", other, w.Replicas)
	}
	return ""
}

// wake is when something can change without a new observation.
func (e *evaluation) wake() time.Time {
	at := e.now.Add(longestSleep)
	sooner := func(t time.Time) {
		if t.After(e.now) && t.Before(at) {
			at = t
		}
	}
	for _, a := range e.policy.Arrays {
		sooner(e.state.Looked[a.String()].Add(a.Every))
	}
	for _, r := range e.policy.Rules {
		sooner(e.state.Looked[r.Name].Add(r.Every))
	}
	if !e.state.Unsettled.IsZero() {
		sooner(e.state.Unsettled.Add(e.policy.patience()))
	}
	return at
}
