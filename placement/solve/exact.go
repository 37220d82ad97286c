package solve

import (
	"cmp"
	"errors"
	"math"
	"slices"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// ErrNotProven is the error of Exact when it was stopped before it had seen every placement;
// the target is then the best so far.
var ErrNotProven = errors.New("stopped before the placement was proven best")

// Exact finds a placement with the least Score by branch and bound, and so proves it: for
// small models, of some dozens of VEEs at most. Hosts are on as Repair leaves them. Where
// Repair finds no place, its error stands if there is none indeed.
func Exact(m *model.Model, objective Objective, o Options) (Target, error) {
	if err := objective.validate(); err != nil {
		return Target{}, err
	}
	off := objective.SwitchOff
	objective.SwitchOff = false // once it is known which hosts are left
	first, err := Optimise(m, objective, Options{Seed: o.Seed, Iterations: 2000})
	score := math.Inf(1)
	if err == nil {
		score = objective.Score(m, first)
	} else {
		r, unsound := newRepair(m, o, early)
		if unsound != nil {
			return Target{}, err
		}
		first = r.target()
	}
	e := &exact{search: newSearch(m, objective, first, nil, temper{}, early), options: o, target: first, score: score}
	for v, h := range first.At {
		if e.state[v] != model.Running || e.rooted[v] {
			continue
		}
		e.order = append(e.order, int32(v))
		if h != model.None {
			e.leave(int32(v))
		}
	}
	slices.SortStableFunc(e.order, func(v, w int32) int { return cmp.Compare(e.size(w), e.size(v)) })
	for h := range e.cost {
		e.cost[h].real = objective.host(e.board, int32(h))
		e.sum += e.cost[h].real
	}
	e.identical = e.twins()
	e.place(0)
	if off {
		e.target.On = switchedOff(m, e.target)
	}
	switch {
	case math.IsInf(e.score, 1) && !e.stop:
		return Target{}, err
	case math.IsInf(e.score, 1):
		return Target{}, errors.Join(ErrNotProven, err)
	case e.stop:
		return e.target, ErrNotProven
	}
	return e.target, nil
}

// early rules forbid a host when a VEE is placed. The others, of the kind Near, show whether
// they hold only when all are.
func early(_ int, c model.Constraint) bool {
	_, late := c.(model.Near)
	return !late
}

type exact struct {
	*search
	options   Options
	order     []int32
	sum       float64 // score of the VEEs placed so far: no completion has less
	target    Target
	score     float64 // of target
	nodes     int
	stop      bool
	identical []int32 // by host: an earlier one that differs in nothing, or None
}

// twins: where no rule and no migration tells hosts apart, of some empty ones that are equal
// only the first need be tried.
func (e *exact) twins() []int32 {
	of := make([]int32, len(e.m.Hosts))
	for h := range of {
		of[h] = model.None
		if len(e.m.Rules) > 0 || e.objective.Migrations+e.objective.Time != 0 {
			continue
		}
		for g := range h {
			if e.open[g] && e.open[h] && slices.Equal(e.m.Capacity(int32(g)), e.m.Capacity(int32(h))) && e.costAlike(int32(g), int32(h)) {
				of[h] = int32(g)
			}
		}
	}
	return of
}

// costAlike tells whether the objective sees no difference between two hosts.
func (e *exact) costAlike(g, h int32) bool {
	x, y := &e.m.Hosts[g], &e.m.Hosts[h]
	return e.objective.inUse(x) == e.objective.inUse(y) && e.objective.Distance*(x.Distance-y.Distance) == 0
}

// place the VEEs of order from i on in every way that may be better.
func (e *exact) place(i int) {
	const slack = 1e-9
	if e.nodes++; e.stop || e.nodes%1024 == 0 && (e.options.stopped() || e.options.Iterations > 0 && e.nodes > e.options.Iterations) {
		e.stop = true
		return
	}
	if e.sum+e.atLeast(i)+e.unheeded() >= e.score-slack {
		return
	}
	if i == len(e.order) {
		if score := e.sum + e.wishes.cost(e.m); score < e.score-slack && e.sound() {
			e.score = score
			e.target.At = slices.Clone(e.at)
		}
		return
	}
	v := e.order[i]
	for h := range int32(len(e.m.Hosts)) {
		if g := e.identical[h]; g != model.None && len(e.guests[h]) == 0 && len(e.guests[g]) == 0 || !e.takes(v, h) {
			continue
		}
		sum, was := e.sum, e.cost[h].real
		e.enter(v, h)
		e.cost[h].real = e.objective.host(e.board, h)
		e.sum += e.cost[h].real - was + e.objective.move(e.m, v, h)
		e.place(i + 1)
		e.leave(v)
		e.sum, e.cost[h].real = sum, was
	}
}

// unheeded is what the wishes cost at least that are broken already: but for those of the
// kind Near, more VEEs break more.
func (e *exact) unheeded() (cost float64) {
	last := -1
	for i, r := range e.wishes.rule {
		if k := e.wishes.source[i]; k != last && early(k, e.m.Rules[k].Constraint) && r.broken() > 0 {
			cost, last = cost+e.m.Rules[k].Weight, k
		}
	}
	return cost
}

// sound tells whether everything holds now that all VEEs are placed: what was never placed
// anew, because it must not move, and the rules of the kind Near.
func (e *exact) sound() bool {
	for h := range int32(len(e.m.Hosts)) {
		if e.overloaded(h) {
			return false
		}
	}
	now := model.Begin(e.m)
	for v, h := range e.at {
		if now.Places[v] = [2]int32{h, model.None}; h != model.None && (!e.on[h] || e.m.Hosts[h].Draining) {
			return false
		}
	}
	return e.contradiction() == nil && !slices.ContainsFunc(e.m.Rules, func(r model.Rule) bool {
		near, ok := r.Constraint.(model.Near)
		return ok && r.Hard() && near.Check(e.m, now) != nil
	})
}

// atLeast is what the VEEs of order from i on cost more at least: hosts to be opened for
// what does not fit those in use.
func (e *exact) atLeast(i int) float64 {
	if e.objective.Consolidate == 0 {
		return 0
	}
	hosts := 0.
	for d := range e.m.Dimensions {
		var need, room, largest int64
		for _, v := range e.order[i:] {
			need += e.demand(v)[d]
		}
		for h := range int32(len(e.m.Hosts)) {
			if len(e.guests[h]) > 0 {
				room += max(0, e.room(h)[d])
			} else if e.open[h] {
				largest = max(largest, e.room(h)[d])
			}
		}
		if need > room && largest > 0 {
			hosts = max(hosts, float64((need-room+largest-1)/largest))
		}
	}
	return hosts * e.objective.Consolidate
}
