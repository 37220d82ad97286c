package veem

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/rebalance"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Rebalancing of a site by itself; zero fields get the defaults.
type Rebalancing struct {
	// Policy by which VEEs move without being asked to; None: they only leave hosts that are
	// to be left.
	Policy rebalance.Policy
	Every  time.Duration // between two plans: 5 min
	// PerMove is what a single move must gain, Gain the part of the score that a plan must:
	// 0.01 and 0.05.
	PerMove, Gain float64
	// Link is what that of a host sends migrations in a second, and receives. Plans share it
	// out then, and each migration is held to its part. 0: nobody knows.
	Link vee.Bytes
}

func (r Rebalancing) withDefaults() Rebalancing {
	r.Every = cmp.Or(r.Every, 5*time.Minute)
	r.PerMove, r.Gain = cmp.Or(r.PerMove, .01), cmp.Or(r.Gain, .05)
	return r
}

// Causes of a plan.
const (
	causeDrain     = "drain"
	causeRebalance = "rebalance"
	causePolicy    = "policy"
	causeEvacuate  = "evacuation"
)

const (
	maxMoves    = 500 // of a plan that is applied: the next one does the rest
	maxAttempts = 5   // at what an operator asked for, while the world changes
	planTime    = 5 * time.Second
	atOnce      = 2 // migrations at a host
	mostAtOnce  = 8 // where they share a link that is known
	linkSpeed   = 100 * vee.MiB
	moveTime    = 2 * time.Second // the least that a migration is expected to take
)

// runKey is the one plan's that a site has at a time, or had last.
const runKey = "site"

// runRecord is that plan as it is stored. What became of its steps is not: the VEEs' own
// records tell (rebalance.Next), so that a manager that starts again goes on with it.
type runRecord struct {
	vmi.Reconfiguration
	// Again: the world has changed under it, and its cause wants another.
	Again bool `json:"again,omitempty"`
}

func (r *runRecord) running() bool { return r != nil && r.State == vmi.ReconfigurationRunning }

// cold: a step that is to be done moves the VEE so; any step, for none.
func (r *runRecord) cold(id vee.ID) bool {
	return r.running() && slices.ContainsFunc(r.Steps, func(s vmi.ReconfigureStep) bool { return s.Cold && (id == "" || s.VEE == id) })
}

func (r *runRecord) steps() []rebalance.Step {
	steps := make([]rebalance.Step, len(r.Steps))
	for i, s := range r.Steps {
		steps[i] = rebalance.Step{VEE: s.VEE, Name: s.Name, From: s.From, To: s.To, After: s.After,
			Start: time.Duration(s.StartMS) * time.Millisecond, End: time.Duration(s.EndMS) * time.Millisecond}
	}
	return steps
}

// reconfiguring is what the manager remembers of it between two looks, none of it needed.
type reconfiguring struct {
	busy atomic.Bool // a plan is being applied, or a host left: changes of VEEs matter to it

	mu      sync.Mutex
	planned time.Time // by policy, last
	stays   []vmi.ReconfigureRemain
}

// situation is the site as the planning sees it.
type situation struct {
	site  rebalance.Site
	run   *runRecord
	hosts []hostRecord // by name
	// holding has how many VEEs run at each host, or are on their way there.
	holding map[string]int
	pending bool // VEEs wait for a place, or are on their way
}

func (w *situation) leaving() (hosts []hostRecord) {
	for _, h := range w.hosts {
		if h.Drain != nil {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// look at the site.
func (m *Manager) look() *situation {
	w := &situation{holding: map[string]int{}}
	m.ledger.read(func(s *state) {
		if r := s.runs.rows[runKey]; r != nil {
			run := *r
			w.run = &run
		}
		for _, h := range s.hosts.rows {
			w.hosts = append(w.hosts, *h)
		}
		slices.SortFunc(w.hosts, func(a, b hostRecord) int { return strings.Compare(a.Name, b.Name) })
		capacity := m.capacities(maps.All(s.hosts.rows), maps.All(s.vees.rows))
		for _, h := range w.hosts {
			w.site.Hosts = append(w.site.Hosts, rebalance.Host{Name: h.Name, Capacity: capacity[h.Name], Drivers: h.driverNames(), Price: h.Price,
				Leave: h.Drain != nil, Closed: m.closed(&h, w.run)})
		}
		var seen = map[placement.Rule]bool{}
		for _, r := range s.vees.rows {
			w.pending = w.pending || r.moving() || r.State == vee.Initial && r.Target != vee.Destroyed
			if r.Host == "" || r.State == vee.Destroyed || s.hosts.rows[r.Host] == nil {
				continue
			}
			w.site.VEEs = append(w.site.VEEs, m.movable(s, r, w.run))
			if r.Holds {
				w.holding[r.Host]++
			}
			if r.moving() {
				w.holding[r.Move.To]++
			}
			for _, p := range r.Rules {
				if p.Scope == scopeSite {
					continue
				}
				if rule := (placement.Rule{Group: r.Scope, Kind: placement.Kind(p.Kind), Tag: p.Tag, Soft: p.Soft}); !seen[rule] {
					seen[rule] = true
					w.site.Rules = append(w.site.Rules, rule)
				}
			}
		}
	})
	slices.SortFunc(w.site.VEEs, func(a, b rebalance.VEE) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(w.site.Rules, func(a, b placement.Rule) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Tag, b.Tag), cmp.Compare(a.Kind, b.Kind))
	})
	return w
}

// closed says why a host takes no VEE that comes to it live, or "".
func (m *Manager) closed(h *hostRecord, run *runRecord) string {
	switch {
	case vhi.SiteOf(h.Name) != "" && !run.crosses():
		return "it is another site, which nobody asked for"
	case h.State == vmi.HostOff:
		return "it is off"
	case h.State != vmi.HostOn:
		return "it is draining"
	case !m.hosts.alive(h.Name):
		return "it does not answer"
	case h.Notice != nil:
		return h.Notice.Why
	case !h.can(opMigrate) && !(run.cold("") && h.can(opMigrateCold)):
		return "its hypervisor cannot receive a live migration"
	}
	return ""
}

// movable is a VEE as the planning sees it.
func (m *Manager) movable(s *state, r *record, run *runRecord) rebalance.VEE {
	v := rebalance.VEE{ID: r.ID, Name: r.Descriptor.Name, Host: r.Host, Uses: r.usage(), Driver: r.Descriptor.Hypervisor, Label: r.label(),
		Copy: r.Descriptor.Memory + m.hosts.diskUsed(r.Host, r.ID)}
	now := m.cfg.Now()
	switch move := r.Move; {
	case r.moving():
		v.To = move.To
		if s.hosts.rows[move.To] == nil {
			v.To = ""
		}
	case move == nil || move.Ended == nil:
	case move.State == vmi.MigrationDone:
		v.Resting = now.Sub(*move.Ended) < m.cfg.Timing.Rest
	default:
		v.FailedTo, v.Failed, v.FailedBegan = move.To, orElse(move.Error, string(move.State)), move.Started
		if now.Sub(*move.Ended) < m.cfg.Timing.Rest {
			v.Avoid = move.To
		}
		pause := m.cfg.Timing.Look
		if run != nil {
			pause *= time.Duration(max(1, min(run.Attempt, 20)))
		}
		if !run.running() && now.Sub(*move.Ended) < pause {
			v.Stuck = "its migration to host " + move.To + " did not succeed: " + v.Failed
		}
	}
	cold := run.cold(r.ID)
	op, what := operation(cold)
	switch {
	case r.moving():
	case vhi.SiteOf(r.Host) != "" && !run.crosses():
		v.Stuck = "it is at another site"
	case cold && r.mayMove(true) != nil:
		v.Stuck = fault.From(r.mayMove(true)).Message
	case cold:
	case r.State != vee.Active || r.Target != vee.Active || !r.Assigned:
		v.Stuck = fmt.Sprintf("it is %s: only an ACTIVE one is migrated live", r.State)
	}
	switch {
	case r.moving() || v.Stuck != "":
	case !m.hosts.alive(r.Host):
		v.Stuck = "host " + r.Host + " does not answer"
	case !s.hosts.rows[r.Host].can(op):
		v.Stuck = "the hypervisor of host " + r.Host + " cannot migrate " + what
	}
	return v
}

// diskUsed by a VEE, as its host said last.
func (h *hosts) diskUsed(name string, id vee.ID) vee.Bytes {
	if p := h.view(name, id).report; p != nil {
		return p.DiskUsed
	}
	return 0
}

// plan for a situation by a policy.
func (m *Manager) plan(w *situation, policy rebalance.Policy) (rebalance.Plan, error) {
	deadline := m.cfg.Now().Add(planTime)
	o := rebalance.Options{Policy: policy, PerMove: m.cfg.Rebalancing.PerMove, Gain: m.cfg.Rebalancing.Gain,
		Slots: atOnce, Bandwidth: linkSpeed, Least: moveTime, Stop: func() bool { return m.cfg.Now().After(deadline) }}
	if link := m.cfg.Rebalancing.Link; link > 0 {
		o.Shared, o.Bandwidth, o.Slots = true, link, mostAtOnce
	}
	p, err := rebalance.Make(w.site, o)
	if err != nil {
		return p, fault.New(fault.NoResources, "%w", err).Try("reservoir host list, reservoir vee list")
	}
	return p, nil
}

// proposal is a plan for callers. Steps beyond what one plan may have are left for the next.
func proposal(cause string, policy rebalance.Policy, p rebalance.Plan) vmi.Reconfiguration {
	r := vmi.Reconfiguration{Cause: cause, Policy: string(policy), State: vmi.ReconfigurationPlanned, Before: p.Before, After: p.After,
		Steps: []vmi.ReconfigureStep{}, Attempt: 1}
	for _, s := range p.Steps[:min(len(p.Steps), maxMoves)] {
		r.Steps = append(r.Steps, vmi.ReconfigureStep{VEE: s.VEE, Name: s.Name, From: s.From, To: s.To, After: s.After,
			StartMS: s.Start.Milliseconds(), EndMS: s.End.Milliseconds(), Bandwidth: s.Bandwidth})
	}
	for _, s := range p.Stays {
		r.Stays = append(r.Stays, vmi.ReconfigureRemain{VEE: s.VEE, Name: s.Name, Host: s.Host, Why: s.Why})
	}
	return r
}

// reconfigure does the next thing about the plan that is being applied, or, where there is
// none, sees whether one is needed.
func (m *Manager) reconfigure(ctx context.Context) result {
	w := m.look()
	leaving := w.leaving()
	m.reconfiguring.busy.Store(w.run.running() || len(leaving) > 0 || len(w.noticed()) > 0)
	if w.run.running() {
		return m.advance(ctx, w)
	}
	drained, err := m.endDrains(ctx, w)
	if err != nil {
		return m.attempt("end the draining of a host", planLane, err)
	}
	if wait := m.pause(w.run); wait > 0 {
		return result{after: wait, lane: planLane}
	}
	switch {
	case !drained:
		return m.drain(ctx, w)
	case w.run != nil && w.run.Again && w.run.Cause == causeRebalance && w.run.Attempt < maxAttempts:
		return m.again(ctx, w)
	case w.run != nil && w.run.Again && w.run.evacuates():
		return m.evacuateAgain(ctx, w)
	case len(w.noticed()) > 0:
		return m.leave(ctx, w)
	}
	return m.byPolicy(ctx, w)
}

// pause after plans that were stopped: none after the first, ever longer ones after more, so
// that what cannot be is not tried all the time.
func (m *Manager) pause(last *runRecord) time.Duration {
	if last == nil || !last.Again || last.Ended == nil {
		return 0
	}
	return last.Ended.Add(time.Duration(min(last.Attempt-1, 20)) * m.cfg.Timing.Look).Sub(m.cfg.Now())
}

// advance the plan that is being applied.
func (m *Manager) advance(ctx context.Context, w *situation) result {
	p := rebalance.Next(w.run.steps(), w.site, w.run.Started)
	again := result{after: m.cfg.Timing.Look, lane: planLane}
	switch {
	case p.Done:
		return m.attempt("end a plan", planLane, m.endRun(ctx, w.run, p.States, vmi.ReconfigurationDone, "", false))
	case w.run.late(m.cfg.Now()):
		return m.attempt("end a plan", planLane, m.endRun(ctx, w.run, p.States, vmi.ReconfigurationStopped, "its deadline has passed", false))
	case p.Stop != "":
		return m.attempt("stop a plan", planLane, m.endRun(ctx, w.run, p.States, vmi.ReconfigurationStopped, p.Stop, true))
	}
	for _, i := range p.Begin {
		if err := m.beginStep(ctx, w, w.run.Steps[i]); err != nil {
			if f := fault.From(err); f.Code == fault.Unavailable || f.Code == fault.Timeout {
				return m.attempt("begin a step of a plan", planLane, err)
			}
			return m.attempt("stop a plan", planLane, m.endRun(ctx, w.run, p.States, vmi.ReconfigurationStopped, err.Error(), true))
		}
	}
	return again
}

// beginStep of the plan, unless it has begun or the plan has ended meanwhile. Affinity is
// not asked: those that belong together arrive one after the other.
func (m *Manager) beginStep(ctx context.Context, w *situation, s vmi.ReconfigureStep) error {
	id, err := m.nonce()
	if err != nil {
		return err
	}
	pass, err := m.tickets()
	if err != nil {
		return err
	}
	if s.Cold {
		if err := m.unburdened(ctx, s.VEE); err != nil {
			return err
		}
	}
	return m.ledger.do(ctx, func(t *tx) error {
		r, ok := t.vee(s.VEE)
		if run := t.runs.get(runKey); !ok || !run.running() || run.ID != w.run.ID || r.moving() || r.Host != s.From {
			return nil // looked at again
		}
		if err := r.mayMove(s.Cold); err != nil {
			return err
		}
		board := m.board(t)
		for i := range board {
			if h := &board[i]; h.Name != s.To {
				h.Closed = "the plan has another for it"
			}
		}
		if c := m.cfg.Placer.Place(board, []placement.Request{r.request()}, apart(w.site.Rules, r.Scope))[0]; c.Host == "" {
			return fault.New(fault.NoResources, "VEE %s cannot go to host %s any more: %s", r.ID, s.To, c.Why)
		}
		if site := vhi.SiteOf(s.To); site != "" {
			if err := m.mayGo(t, r, site, nil); err != nil {
				return err
			}
		}
		in := vmi.Migrate{AutoConverge: true, Bandwidth: s.Bandwidth, Cold: s.Cold}
		if end := w.run.Deadline; end != nil {
			in.DeadlineMS = max(1, end.Sub(t.now).Milliseconds())
		}
		r.depart(t, id, pass, s.To, in)
		return nil
	})
}

// apart are the rules of a scope that keep VEEs apart.
func apart(rules []placement.Rule, scope string) (some []placement.Rule) {
	for _, r := range rules {
		if r.Group == scope && r.Kind == placement.AntiAffinity && !r.Soft {
			some = append(some, r)
		}
	}
	return some
}

// endRun notes how a plan ended, if it is still the one that runs.
func (m *Manager) endRun(ctx context.Context, run *runRecord, states []rebalance.StepState, s vmi.ReconfigurationState, note string, again bool) error {
	ended := false
	err := m.ledger.do(ctx, func(t *tx) error {
		now := t.runs.get(runKey)
		if ended = now.running() && now.ID == run.ID; !ended {
			return nil
		}
		n := *now
		n.State, n.Note, n.Again, n.Ended = s, note, again, &t.now
		n.Steps = slices.Clone(n.Steps)
		for i := range n.Steps {
			n.Steps[i].State = string(states[i])
		}
		put(t, &t.runs, runKey, &n)
		return nil
	})
	if err == nil && ended {
		e := Event{Reason: "Reconfigured", Object: "site/" + m.cfg.Site, Message: fmt.Sprintf("plan %s (%s): all of its %d moves are done", run.ID, run.Cause, len(run.Steps))}
		if s == vmi.ReconfigurationStopped {
			e.Warning, e.Reason, e.Message = true, "ReconfigurationStopped", fmt.Sprintf("plan %s (%s) was stopped: %s", run.ID, run.Cause, note)
		}
		m.record(e)
	}
	return err
}

// beginRun has a plan applied, unless another is being applied.
func (m *Manager) beginRun(ctx context.Context, r vmi.Reconfiguration) (vmi.Reconfiguration, error) {
	id, err := m.nonce()
	if err != nil {
		return r, err
	}
	r.ID, r.State = id[:8], vmi.ReconfigurationRunning
	err = m.ledger.do(ctx, func(t *tx) error {
		if old := t.runs.get(runKey); old.running() {
			return fault.New(fault.InUse, "plan %s (%s) is being applied", old.ID, old.Cause).Try("reservoir site rebalance --status, or end it: reservoir site rebalance --stop")
		}
		r.Started, r.Ended = t.now, nil
		if len(r.Steps) == 0 {
			r.State, r.Ended, r.Note = vmi.ReconfigurationDone, &t.now, "there is nothing to move"
		}
		put(t, &t.runs, runKey, &runRecord{Reconfiguration: r})
		return nil
	})
	if err == nil && len(r.Steps) > 0 {
		m.record(Event{Reason: "Reconfiguring", Object: "site/" + m.cfg.Site, Message: fmt.Sprintf("plan %s (%s): %d moves", r.ID, r.Cause, len(r.Steps))})
	}
	return r, err
}

// again plans what an operator asked for, where the world has changed under the last plan.
func (m *Manager) again(ctx context.Context, w *situation) result {
	policy := rebalance.Policy(w.run.Policy)
	p, err := m.plan(w, policy)
	if err == nil {
		next := proposal(causeRebalance, policy, p)
		next.Attempt = w.run.Attempt + 1
		_, err = m.beginRun(ctx, next)
	}
	return m.attempt("plan a rebalance again", planLane, err)
}

// byPolicy plans now and then without being asked, when nothing else is going on.
func (m *Manager) byPolicy(ctx context.Context, w *situation) result {
	c := m.cfg.Rebalancing
	if c.Policy == rebalance.None {
		return result{}
	}
	m.reconfiguring.mu.Lock()
	wait := m.reconfiguring.planned.Add(c.Every).Sub(m.cfg.Now())
	if wait <= 0 {
		m.reconfiguring.planned = m.cfg.Now()
	}
	m.reconfiguring.mu.Unlock()
	if wait > 0 {
		return result{after: wait, lane: planLane}
	}
	later := result{after: c.Every, lane: planLane}
	if w.pending {
		return later
	}
	p, err := m.plan(w, c.Policy)
	if err != nil || len(p.Steps) == 0 {
		if err != nil {
			m.cfg.Log.Info("plan by policy", "policy", c.Policy, "err", err)
		}
		return later
	}
	if _, err = m.beginRun(ctx, proposal(causePolicy, c.Policy, p)); err != nil {
		return m.attempt("start a plan by policy", planLane, err)
	}
	return later
}

// policyOf a call: its own or the site's.
func (m *Manager) policyOf(r vmi.Rebalance) (rebalance.Policy, error) {
	p := cmp.Or(rebalance.Policy(r.Policy), m.cfg.Rebalancing.Policy)
	if p == rebalance.None {
		return p, fault.New(fault.Malformed, "policy: this site has none of its own: name one").Try("reservoir site rebalance --policy balance")
	}
	if !slices.Contains(rebalance.Policies, p) {
		return p, malformed("policy", "%q: want one of %v", p, rebalance.Policies)
	}
	return p, nil
}

// PlanRebalance: vmi.Service.
func (m *Manager) PlanRebalance(ctx context.Context, r vmi.Rebalance) (vmi.Reconfiguration, error) {
	if err := overseer(ctx, false); err != nil {
		return vmi.Reconfiguration{}, err
	}
	policy, err := m.policyOf(r)
	if err != nil {
		return vmi.Reconfiguration{}, err
	}
	if err := m.ready(ctx); err != nil {
		return vmi.Reconfiguration{}, err
	}
	p, err := m.plan(m.look(), policy)
	return proposal(causeRebalance, policy, p), err
}

// Rebalance: vmi.Service.
func (m *Manager) Rebalance(ctx context.Context, r vmi.Rebalance) (vmi.Reconfiguration, error) {
	if err := overseer(ctx, true); err != nil {
		return vmi.Reconfiguration{}, err
	}
	p, err := m.PlanRebalance(ctx, r)
	if err != nil {
		return p, err
	}
	return m.beginRun(ctx, p)
}

// GetReconfiguration: vmi.Service.
func (m *Manager) GetReconfiguration(ctx context.Context) (vmi.Reconfiguration, error) {
	if err := overseer(ctx, false); err != nil {
		return vmi.Reconfiguration{}, err
	}
	w := m.look()
	m.reconfiguring.mu.Lock()
	stays := slices.Clone(m.reconfiguring.stays)
	m.reconfiguring.mu.Unlock()
	if w.run == nil && len(stays) == 0 {
		return vmi.Reconfiguration{}, fault.New(fault.NotFound, "no VEE was moved by a plan yet").Try("reservoir site rebalance --plan")
	}
	if w.run == nil {
		return vmi.Reconfiguration{Cause: causeDrain, State: vmi.ReconfigurationStopped, Steps: []vmi.ReconfigureStep{}, Stays: stays, Note: "nothing can be moved now"}, nil
	}
	r := w.run.Reconfiguration
	if len(w.leaving())+len(w.noticed()) > 0 {
		r.Stays = stays
	}
	if w.run.running() {
		r.Steps = slices.Clone(r.Steps)
		for i, s := range rebalance.Next(w.run.steps(), w.site, w.run.Started).States {
			r.Steps[i].State = string(s)
		}
	}
	return r, nil
}

// StopReconfiguration: vmi.Service. What an operator has stopped does not go on by itself,
// but for hosts that are still to be left.
func (m *Manager) StopReconfiguration(ctx context.Context) (vmi.Reconfiguration, error) {
	if err := overseer(ctx, true); err != nil {
		return vmi.Reconfiguration{}, err
	}
	w := m.look()
	if !w.run.running() {
		return vmi.Reconfiguration{}, fault.New(fault.WrongState, "no plan is being applied")
	}
	states := rebalance.Next(w.run.steps(), w.site, w.run.Started).States
	by := cmp.Or(identity.From(ctx).ID, "an operator")
	if err := m.endRun(ctx, w.run, states, vmi.ReconfigurationStopped, "by "+by, false); err != nil {
		return vmi.Reconfiguration{}, err
	}
	return m.GetReconfiguration(ctx)
}
