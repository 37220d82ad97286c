package solve

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// ErrNotProven is the error of Exact when it was stopped before it had seen every placement;
// the target is then the best so far.
var ErrNotProven = errors.New("stopped before the placement was proven best")

// Exact finds a placement with the least Score by branch and bound, and so proves it: for
// small models, of some dozens of VEEs at most. Hosts are on as Repair leaves them. Rules of
// the kind Near are not for it: whether they hold shows only when all VEEs are placed.
func Exact(m *model.Model, objective Objective, o Options) (Target, error) {
	for _, r := range m.Rules {
		if _, ok := r.Constraint.(model.Near); ok && r.Hard() {
			return Target{}, fmt.Errorf("prove a placement: the rule %v is not for an exact search: use Optimise", r.Constraint)
		}
	}
	first, err := Optimise(m, objective, Options{Seed: o.Seed, Iterations: 2000})
	if err != nil {
		return Target{}, err
	}
	e := &exact{search: newSearch(m, objective, first, nil), options: o, target: first, score: objective.Score(m, first)}
	for v, h := range first.At {
		if h != model.None && !e.rooted[v] {
			e.order = append(e.order, int32(v))
			e.leave(int32(v))
		}
	}
	slices.SortStableFunc(e.order, func(v, w int32) int { return cmp.Compare(e.size(w), e.size(v)) })
	for h := range e.cost {
		e.cost[h] = objective.host(e.board, int32(h))
		e.sum += e.cost[h]
	}
	e.identical = e.twins()
	e.place(0)
	if e.stop {
		return e.target, ErrNotProven
	}
	return e.target, nil
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
		if len(e.rules) > 0 || e.objective.Migrations != 0 {
			continue
		}
		for g := range h {
			if e.open[g] && e.open[h] && slices.Equal(e.m.Capacity(int32(g)), e.m.Capacity(int32(h))) && e.m.Hosts[g].Price == e.m.Hosts[h].Price {
				of[h] = int32(g)
			}
		}
	}
	return of
}

// place the VEEs of order from i on in every way that may be better.
func (e *exact) place(i int) {
	const slack = 1e-9
	if e.nodes++; e.stop || e.nodes%1024 == 0 && (e.options.stopped() || e.options.Iterations > 0 && e.nodes > e.options.Iterations) {
		e.stop = true
		return
	}
	if e.sum+e.atLeast(i) >= e.score-slack {
		return
	}
	if i == len(e.order) {
		e.score = e.sum
		e.target.At = slices.Clone(e.at)
		return
	}
	v := e.order[i]
	for h := range int32(len(e.m.Hosts)) {
		if g := e.identical[h]; g != model.None && len(e.guests[h]) == 0 && len(e.guests[g]) == 0 || !e.takes(v, h) {
			continue
		}
		sum, was := e.sum, e.cost[h]
		e.enter(v, h)
		e.cost[h] = e.objective.host(e.board, h)
		e.sum += e.cost[h] - was + e.objective.move(e.m, v, h)
		e.place(i + 1)
		e.leave(v)
		e.sum, e.cost[h] = sum, was
	}
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
