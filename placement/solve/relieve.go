package solve

import (
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// Relieve hosts: move VEEs away that overload them or that a rule does not allow there, and
// whatever is in the way of those, and nothing else. It does what Repair and Schedule do, but
// looks only at what has to move, with the counters and the index that the Placer has.
//
// Only running VEEs move; states of VEEs and hosts stay as they are. Hosts that drain are
// emptied. In the plan VEEs come
// from where the model has them running, and the Placer counts them where they go: the
// model's hosts are to be set as the plan is carried out. After an error the Placer is as it
// was.
func (p *Placer) Relieve(hosts []int32, o Options) (model.Plan, error) {
	p.grow()
	r := &repair{board: p.b, options: o, random: rand.New(rand.NewPCG(o.Seed, 1)), index: p.index, rooted: p.rooted,
		on: make([]bool, len(p.b.m.Hosts)), failed: map[int32]int32{}, was: map[int32]int32{}, kept: true}
	for h := range r.on {
		r.on[h] = !r.m.Hosts[h].Off
	}
	if err := r.relieve(hosts); err != nil {
		r.undo()
		return model.Plan{}, err
	}
	plan, err := r.reach(r.moved())
	if err != nil {
		r.undo()
		return model.Plan{}, err
	}
	return plan, nil
}

func (r *repair) relieve(hosts []int32) error {
	for _, h := range hosts {
		r.open[h] = r.open[h] && r.on[h] && !r.m.Hosts[h].Draining
		r.index.update(h)
		for _, v := range slices.Clone(r.guests[h]) {
			r.evict(v)
		}
		r.unload(h)
	}
	if err := r.house(); err != nil {
		return err
	}
	for _, h := range hosts {
		if err := r.holds(h); err != nil {
			return err
		}
		for _, v := range slices.Clone(r.guests[h]) { // looking moves them about
			if err := r.lawful(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// undo puts back what has been taken away.
func (r *repair) undo() {
	for v, h := range r.was {
		r.move(v, h)
	}
}

// move v to h, whatever speaks against it.
func (r *repair) move(v, h int32) {
	if a := r.at[v]; a != model.None {
		r.leave(v)
		r.index.update(a)
	}
	r.put(v, h)
}

// change of a VEE's host.
type change struct{ vee, from, to int32 }

// moved VEEs, in their order.
func (r *repair) moved() (all []change) {
	for v, from := range r.was {
		if to := r.at[v]; to != from {
			all = append(all, change{v, from, to})
		}
	}
	slices.SortFunc(all, func(a, b change) int { return int(a.vee - b.vee) })
	return all
}

// reach plans how to get to where the board is by changes, from where it was before them.
func (r *repair) reach(changes []change) (model.Plan, error) {
	target := Target{At: slices.Clone(r.at), On: r.on, State: make([]model.State, len(r.at))}
	for v := range target.State {
		target.State[v] = r.m.VEEs[v].State
	}
	if slices.ContainsFunc(changes, func(x change) bool { return !slices.Equal(r.demand(x.vee), r.m.Demand(x.vee)) }) {
		return Schedule(r.m, target) // some are to have more than now, which the board does not count
	}
	for _, x := range changes {
		r.move(x.vee, x.from)
	}
	s := emptySchedule(r.board, target)
	now := sync.OnceValue(func() *model.Snapshot { return model.Begin(r.m) })
	known := map[int32]bool{}
	s.binds = func(i int32) bool {
		b, ok := known[i]
		if !ok {
			b = binding(r.m, r.m.Rules[r.source[i]].Constraint, now)
			known[i] = b
		}
		return b
	}
	s.inOrder = slices.ContainsFunc(s.general, s.binds)
	for _, x := range changes {
		s.plan(x.vee, &r.m.VEEs[x.vee])
	}
	s.prepare(false)
	plan, err := s.run()
	for _, x := range changes {
		r.index.update(x.from)
		r.index.update(x.to)
	}
	return plan, err
}
