// Package check replays a plan and verifies every state that it goes through: capacities,
// migration slots, the bandwidth of links that migrations share, states of hosts and VEEs, the constraints that hold at every instant,
// and in the end all of them. It shares no code with the solver, so that a mistake there
// does not excuse itself here.
package check

import (
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// Plan verifies p from the beginning that m describes to its end, and says what is wrong
// first. What m already breaks at the beginning (an overloaded host, a continuous rule) may
// stay broken until the end, but must not get worse.
//
// Migrations and starts take room where they go from their first instant, and migrations
// where they come from until their last.
func Plan(m *model.Model, p model.Plan) error {
	r := newReplay(m, p)
	if err := r.run(); err != nil {
		return err
	}
	if err := r.final(); err != nil {
		return fmt.Errorf("after the plan: %w", err)
	}
	return nil
}

// Placement verifies m as it is, without a plan.
func Placement(m *model.Model) error { return Plan(m, model.Plan{}) }

// Broken are the soft rules that do not hold after p, which must be a valid plan, as
// indices into the model's rules.
func Broken(m *model.Model, p model.Plan) (broken []int, err error) {
	r := newReplay(m, p)
	if err := r.run(); err != nil {
		return nil, err
	}
	for i, rule := range m.Rules {
		if !rule.Hard() && r.holds(rule.Constraint) != nil {
			broken = append(broken, i)
		}
	}
	return broken, nil
}

type replay struct {
	m    *model.Model
	plan model.Plan
	now  *model.Snapshot
	dims int

	use      []int64 // host × dimension
	guests   []int   // by host: VEEs that take room there
	images   []int32 // by VEE: host that has it asleep
	moving   []int   // by host: migrations from or to it
	net      *model.Network
	sent     []float64 // by direction of a link: MiB in a second that migrations may send
	wanted   []int64   // VEE × dimension: what it is allocated in the end
	busy     []bool    // by VEE: an action is running
	changing []bool    // by host: it is booting or shutting down
	ended    []bool    // by action

	always []rule // hard continuous rules that held at the beginning
	touch  map[int32]bool
}

// rule that must hold at every instant. VEEs is empty where any change may matter.
type rule struct {
	c    model.OnPlacement
	vees map[int32]bool
}

func newReplay(m *model.Model, p model.Plan) *replay {
	n := len(m.Dimensions)
	r := &replay{m: m, plan: p, now: model.Begin(m), dims: n,
		use: make([]int64, len(m.Hosts)*n), guests: make([]int, len(m.Hosts)), moving: make([]int, len(m.Hosts)),
		images: make([]int32, len(m.VEEs)), busy: make([]bool, len(m.VEEs)), changing: make([]bool, len(m.Hosts)),
		ended: make([]bool, len(p.Actions)), touch: map[int32]bool{}}
	if m.Migration.Shared {
		r.net = m.Network()
		r.sent = make([]float64, r.net.Directions())
	}
	r.wanted = slices.Clone(r.now.Allocated)
	for _, x := range m.Rules {
		if c, ok := x.Constraint.(model.Preserve); ok && x.Hard() {
			for _, v := range c.VEEs {
				i := int(v)*n + c.Dimension
				r.wanted[i] = max(r.wanted[i], c.Amount)
			}
		}
	}
	for v := range m.VEEs {
		r.images[v] = model.None
		switch at := m.VEEs[v].Host; m.VEEs[v].State {
		case model.Running:
			r.add(at, r.now.Allocated[v*n:(v+1)*n])
			r.guests[at]++
		case model.Sleeping:
			r.images[v] = at
		}
	}
	for _, x := range m.Rules {
		c, ok := x.Constraint.(model.OnPlacement)
		if !ok || !x.Hard() || !model.Continuous(c) || c.Check(m, r.now) != nil {
			continue
		}
		watched := rule{c: c, vees: map[int32]bool{}}
		if _, lonely := c.(model.Lonely); !lonely { // strangers matter to it
			for _, v := range c.About().VEEs {
				watched.vees[v] = true
			}
		}
		r.always = append(r.always, watched)
	}
	return r
}

func (r *replay) add(h int32, amounts []int64) {
	for d, a := range amounts {
		r.use[int(h)*r.dims+d] += a
	}
}

func (r *replay) sub(h int32, amounts []int64) {
	for d, a := range amounts {
		r.use[int(h)*r.dims+d] -= a
	}
}

func (r *replay) allocated(v int32) []int64 {
	return r.now.Allocated[int(v)*r.dims : (int(v)+1)*r.dims]
}

func (r *replay) want(v int32) []int64 { return r.wanted[int(v)*r.dims : (int(v)+1)*r.dims] }

// run all actions: at each instant first those end that have begun before, then others
// begin, in the plan's order; those that take no time end at once.
func (r *replay) run() error {
	begins, ends := make([]int, len(r.plan.Actions)), []int{}
	for i, a := range r.plan.Actions {
		begins[i] = i
		if err := r.sound(a); err != nil {
			return fmt.Errorf("action %d (%v): %w", i, a, err)
		}
		if a.End > a.Start {
			ends = append(ends, i)
		}
	}
	actions := r.plan.Actions
	slices.SortStableFunc(begins, func(i, j int) int { return compare(actions[i].Start, actions[j].Start) })
	slices.SortStableFunc(ends, func(i, j int) int { return compare(actions[i].End, actions[j].End) })
	for len(begins)+len(ends) > 0 {
		var at time.Duration
		switch {
		case len(begins) == 0:
			at = actions[ends[0]].End
		case len(ends) == 0:
			at = actions[begins[0]].Start
		default:
			at = min(actions[begins[0]].Start, actions[ends[0]].End)
		}
		clear(r.touch)
		for ; len(ends) > 0 && actions[ends[0]].End == at; ends = ends[1:] {
			r.end(ends[0])
		}
		for ; len(begins) > 0 && actions[begins[0]].Start == at; begins = begins[1:] {
			i := begins[0]
			if err := r.begin(i); err != nil {
				return fmt.Errorf("action %d (%v) at %v: %w", i, actions[i], at, err)
			}
			if actions[i].End == at {
				r.end(i)
			}
		}
		if err := r.instant(); err != nil {
			return fmt.Errorf("at %v: %w", at, err)
		}
	}
	return nil
}

func compare(a, b time.Duration) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// sound tells what is wrong with an action by itself.
func (r *replay) sound(a model.Action) error {
	on := func(h int32) bool { return h >= 0 && int(h) < len(r.m.Hosts) }
	if a.Kind == model.BootHost || a.Kind == model.ShutdownHost {
		if a.VEE != model.None || a.Kind == model.BootHost && !on(a.To) || a.Kind == model.ShutdownHost && !on(a.From) {
			return fmt.Errorf("an action on a host needs one, and no VEE")
		}
	} else {
		if a.VEE < 0 || int(a.VEE) >= len(r.m.VEEs) {
			return fmt.Errorf("there is no such VEE")
		}
		if from := a.Kind != model.StartVEE; from && !on(a.From) && !(a.Kind == model.KillVEE && a.From == model.None) {
			return fmt.Errorf("it comes from no host")
		}
		if to := a.Kind != model.StopVEE && a.Kind != model.KillVEE && a.Kind != model.Suspend; to && !on(a.To) {
			return fmt.Errorf("it goes to no host")
		}
	}
	if a.Start < 0 || a.End-a.Start < r.m.Duration(a) {
		return fmt.Errorf("it lasts from %v to %v, but needs %v", a.Start, a.End, r.m.Duration(a))
	}
	for _, i := range a.After {
		if i < 0 || int(i) >= len(r.plan.Actions) {
			return fmt.Errorf("it comes after action %d, which does not exist", i)
		}
	}
	return nil
}

func (r *replay) begin(i int) error {
	a := r.plan.Actions[i]
	for _, j := range a.After {
		if !r.ended[j] {
			return fmt.Errorf("action %d, after which it comes, has not ended", j)
		}
	}
	if a.VEE == model.None {
		return r.beginHost(a)
	}
	if r.busy[a.VEE] {
		return fmt.Errorf("another action on the VEE is running")
	}
	r.busy[a.VEE] = true
	r.touch[a.VEE] = true
	state, at := r.now.State[a.VEE], r.now.Places[a.VEE][0]
	from := map[model.Kind]model.State{model.StartVEE: model.Ready, model.Resume: model.Sleeping}
	need, special := from[a.Kind]
	if !special {
		need = model.Running
	}
	if state != need && a.Kind != model.KillVEE {
		return fmt.Errorf("the VEE is %v", state)
	}
	if a.Kind == model.KillVEE && state != model.Running {
		at = r.images[a.VEE]
	}
	if need == model.Running && a.From != at {
		return fmt.Errorf("the VEE is on host %d", at)
	}
	switch a.Kind {
	case model.Resume:
		if a.From != r.images[a.VEE] {
			return fmt.Errorf("the VEE sleeps on host %d", r.images[a.VEE])
		}
		fallthrough
	case model.StartVEE:
		r.now.State[a.VEE], r.now.Places[a.VEE][0] = model.Running, a.To
		copy(r.allocated(a.VEE), r.want(a.VEE))
		return r.enter(a, r.want(a.VEE))
	case model.Migrate, model.Relocate:
		if a.From == a.To {
			return fmt.Errorf("it goes to where it is")
		}
		if a.Kind == model.Relocate && !r.m.VEEs[a.VEE].Clonable {
			return fmt.Errorf("the VEE cannot be instantiated again")
		}
		r.now.Places[a.VEE][1] = a.To
		if err := r.enter(a, r.want(a.VEE)); err != nil || a.Kind == model.Relocate {
			return err
		}
		for _, h := range []int32{a.From, a.To} {
			if r.moving[h]++; r.m.Migration.Slots > 0 && r.moving[h] > r.m.Migration.Slots {
				return fmt.Errorf("%d migrations at host %d at once, %d allowed", r.moving[h], h, r.m.Migration.Slots)
			}
		}
		return r.send(a)
	case model.Allocate:
		r.sub(at, r.allocated(a.VEE))
		copy(r.allocated(a.VEE), r.want(a.VEE))
		r.add(at, r.allocated(a.VEE))
		return r.room(at, r.allocated(a.VEE))
	}
	return nil
}

// send takes a migration's bandwidth on the links that it crosses, if migrations share them.
func (r *replay) send(a model.Action) error {
	if r.net == nil {
		return nil
	}
	const rounding = 1e-6
	for _, d := range r.net.Path(a.From, a.To, nil) {
		if !(a.MiBs > 0) && r.m.VEEs[a.VEE].MemoryMiB > 0 {
			return fmt.Errorf("it has no bandwidth")
		}
		r.sent[d] += a.MiBs
		if c := r.net.Capacity(d); r.sent[d] > c*(1+rounding) {
			return fmt.Errorf("migrations send %g MiB in a second over a link of %g", r.sent[d], c)
		}
	}
	return nil
}

// enter takes room for a VEE where it goes.
func (r *replay) enter(a model.Action, amounts []int64) error {
	host := &r.m.Hosts[a.To]
	if !r.now.On[a.To] || r.changing[a.To] {
		return fmt.Errorf("host %s is not on", host.Name)
	}
	if host.Draining {
		return fmt.Errorf("host %s is draining", host.Name)
	}
	r.guests[a.To]++
	r.add(a.To, amounts)
	return r.room(a.To, amounts)
}

// room tells which of the amounts just added to a host are too much for it.
func (r *replay) room(h int32, added []int64) error {
	for d, c := range r.m.Capacity(h) {
		if u := r.use[int(h)*r.dims+d]; u > c && added[d] > 0 {
			return fmt.Errorf("host %s has %d of %s and needs %d", r.m.Hosts[h].Name, c, r.m.Dimensions[d], u)
		}
	}
	return nil
}

func (r *replay) beginHost(a model.Action) error {
	h := a.From
	if a.Kind == model.BootHost {
		h = a.To
	}
	if r.changing[h] {
		return fmt.Errorf("the host is booting or shutting down already")
	}
	r.changing[h] = true
	if a.Kind == model.BootHost {
		if r.now.On[h] {
			return fmt.Errorf("the host is on")
		}
		return nil
	}
	if !r.now.On[h] || r.guests[h] > 0 {
		return fmt.Errorf("the host is off already or has %d VEEs", r.guests[h])
	}
	for v, at := range r.images {
		if at == h {
			return fmt.Errorf("the host has VEE %d asleep", v)
		}
	}
	r.now.On[h] = false
	return nil
}

func (r *replay) end(i int) {
	a := r.plan.Actions[i]
	r.ended[i] = true
	switch a.Kind {
	case model.BootHost:
		r.now.On[a.To], r.changing[a.To] = true, false
		return
	case model.ShutdownHost:
		r.changing[a.From] = false
		return
	}
	r.busy[a.VEE] = false
	r.touch[a.VEE] = true
	switch a.Kind {
	case model.Migrate, model.Relocate:
		r.leave(a.VEE, a.From)
		copy(r.allocated(a.VEE), r.want(a.VEE))
		r.now.Places[a.VEE] = [2]int32{a.To, model.None}
		if a.Kind == model.Migrate {
			r.moving[a.From]--
			r.moving[a.To]--
			if r.net != nil {
				for _, d := range r.net.Path(a.From, a.To, nil) {
					r.sent[d] -= a.MiBs
				}
			}
		}
	case model.StopVEE, model.KillVEE, model.Suspend:
		if r.now.State[a.VEE] == model.Running {
			r.leave(a.VEE, r.now.Places[a.VEE][0])
		}
		r.now.Places[a.VEE] = [2]int32{model.None, model.None}
		r.now.State[a.VEE] = map[model.Kind]model.State{model.StopVEE: model.Ready, model.KillVEE: model.Killed, model.Suspend: model.Sleeping}[a.Kind]
		r.images[a.VEE] = model.None
		if a.Kind == model.Suspend {
			r.images[a.VEE] = a.From
		}
	case model.Resume:
		r.images[a.VEE] = model.None
	}
}

func (r *replay) leave(v, h int32) {
	r.sub(h, r.allocated(v))
	r.guests[h]--
}

// instant verifies what must hold now.
func (r *replay) instant() error {
	for _, x := range r.always {
		concerned := len(x.vees) == 0
		for v := range r.touch {
			concerned = concerned || x.vees[v]
		}
		if !concerned {
			continue
		}
		if err := x.c.Check(r.m, r.now); err != nil {
			return err
		}
	}
	return nil
}

func (r *replay) holds(c model.Constraint) error {
	switch c := c.(type) {
	case model.OnPlacement:
		return c.Check(r.m, r.now)
	case model.OnPlan:
		return c.CheckPlan(r.m, r.plan)
	}
	return fmt.Errorf("%v: nobody knows how to check it", c)
}

// final verifies what must hold in the end.
func (r *replay) final() error {
	for h := range r.m.Hosts {
		for d, c := range r.m.Capacity(int32(h)) {
			if u := r.use[h*r.dims+d]; u > c {
				return fmt.Errorf("host %s has %d of %s and needs %d", r.m.Hosts[h].Name, c, r.m.Dimensions[d], u)
			}
		}
		if r.m.Hosts[h].Draining && r.guests[h] > 0 {
			return fmt.Errorf("host %s is draining and has %d VEEs", r.m.Hosts[h].Name, r.guests[h])
		}
	}
	for _, x := range r.m.Rules {
		if !x.Hard() {
			continue
		}
		if err := r.holds(x.Constraint); err != nil {
			return err
		}
	}
	return nil
}
