package reassign

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
)

// Options of a search.
type Options struct {
	Seed uint64
	// Workers that search beside each other and join what they found between rounds; 0: one.
	Workers int
	// Iterations of each worker; with them the same input gives the same answer. 0: until
	// Elapsed says that the time is over.
	Iterations int64
	// Elapsed is the share of the caller's time that is over: 1 and more stops. It is called
	// by every worker, each some thousand iterations. Nil: Iterations alone counts.
	Elapsed func() float64
	// Improved is told of each round's best; nil: nobody wants to know.
	Improved func(at []int32, cost int64)
}

// Result of a search: the best placement found and what it costs.
type Result struct {
	At         []int32
	Cost       int64
	Iterations int64 // of all workers
}

// rounds end at these shares of the time; each anneals once and begins where the best of
// all workers in the round before it has ended. In the first, and of every second worker in
// the others, the placement is feasible all the time, so that there is something better soon,
// whatever the instance.
var rounds = []float64{1. / 30, 1. / 5, 1}

// Improve the initial placement of p, which must be feasible, by simulated annealing with
// shifts and swaps (the neighbourhoods of the challenge's entries; annealing after Portal
// et al., "A simulated annealing for the machine reassignment problem", 2016).
func Improve(p *Problem, o Options) (Result, error) {
	if err := p.Validate(); err != nil {
		return Result{}, fmt.Errorf("improve a placement: %w", err)
	}
	cost, err := p.Cost(p.Initial)
	if err != nil {
		return Result{}, fmt.Errorf("improve a placement that is not feasible: %w", err)
	}
	best := Result{At: slices.Clone(p.Initial), Cost: cost}
	if p.VEEs == 0 || p.Hosts < 2 || o.Iterations <= 0 && o.Elapsed == nil {
		return best, nil
	}
	workers := make([]*annealer, max(1, o.Workers))
	for i := range workers {
		workers[i] = newAnnealer(p, o, uint64(i))
	}
	for i, until := range rounds {
		var running sync.WaitGroup
		for k, a := range workers {
			running.Go(func() { a.round(best, until, i == 0 || k%2 == 1) })
		}
		running.Wait()
		best.Iterations = 0
		for _, a := range workers {
			best.Iterations += a.done
			if a.cost < best.Cost {
				best.Cost, best.At = a.cost, slices.Clone(a.best)
			}
		}
		if o.Improved != nil {
			o.Improved(best.At, best.Cost)
		}
	}
	return best, nil
}

// annealer is one worker.
type annealer struct {
	problem *Problem
	options Options
	random  *rand.PCG
	done    int64

	best   []int32
	cost   int64 // of best
	bySize []int // VEEs, the smallest first
	rank   []int // of each VEE in bySize
	ahead  bool  // the state is better than best: best is copied before it gets worse
}

func newAnnealer(p *Problem, o Options, i uint64) *annealer {
	a := &annealer{problem: p, options: o, random: rand.NewPCG(o.Seed, i), cost: math.MaxInt64}
	size := make([]float64, p.VEEs)
	for v := range size {
		for r := range p.Resources {
			size[v] += float64(p.Demand[v*p.Resources+r]) * float64(p.LoadWeight[r])
		}
		a.bySize = append(a.bySize, v)
	}
	slices.SortStableFunc(a.bySize, func(v, w int) int { return cmp.Compare(size[v], size[w]) })
	a.rank = make([]int, p.VEEs)
	for i, v := range a.bySize {
		a.rank[v] = i
	}
	return a
}

// below is a random number in [0, n).
func (a *annealer) below(n int) int {
	return int((a.random.Uint64() >> 32) * uint64(n) >> 32)
}

// uniform in (0, 1].
func (a *annealer) uniform() float64 { return float64(a.random.Uint64()>>11+1) / (1 << 53) }

// elapsed share of the budget.
func (a *annealer) elapsed() float64 {
	share := 0.
	if a.options.Iterations > 0 {
		share = float64(a.done) / float64(a.options.Iterations)
	}
	if a.options.Elapsed != nil {
		share = max(share, a.options.Elapsed())
	}
	return share
}

// quench is the share of a round after which only improvements are made, and nothing may stay
// over its capacity: it is forbidden.
const (
	quench    = .95
	forbidden = 1e9
)

// between two looks at the budget.
const between = 4096

func (a *annealer) round(from Result, until float64, feasible bool) {
	s := newState(a.problem, from.At, from.Cost)
	a.best, a.cost = slices.Clone(s.at), s.cost
	start, large := a.elapsed(), a.calibrate(s)
	for now := start; now < until; now = a.elapsed() {
		share := (now - start) / (until - start)
		t := large * hot * math.Pow(cold/hot, share)
		penalty := overLow * math.Pow(overHigh/overLow, min(1, share/.7))
		switch {
		case feasible:
			t, penalty = t/10, forbidden
		case share >= quench:
			t, penalty = 0, forbidden
		}
		for range between {
			a.step(s, t, penalty)
		}
		a.done += between
	}
	a.keep(s)
}

// keep the state if it is the best.
func (a *annealer) keep(s *state) {
	if a.ahead {
		copy(a.best, s.at)
		a.ahead = false
	}
}

// step proposes one move and makes it if chance at temperature t allows its cost.
func (a *annealer) step(s *state, t, penalty float64) {
	bound := -t * math.Log(a.uniform())
	v := a.below(s.VEEs)
	var m move
	var ok bool
	if a.random.Uint64()&1 == 0 {
		m, ok = s.weighShift(v, a.below(s.Hosts))
	} else {
		m, ok = s.weighSwap(v, a.peer(v))
	}
	if !ok || float64(m.cost)+penalty*float64(m.over) > bound {
		return
	}
	if m.cost > 0 || m.over > 0 {
		a.keep(s)
	}
	s.make(m)
	if s.over == 0 && s.cost < a.cost {
		a.cost, a.ahead = s.cost, true
	}
}

// peer of v to change places with: mostly one of about its size.
func (a *annealer) peer(v int) int {
	if a.random.Uint64()&3 == 0 {
		return a.below(a.problem.VEEs)
	}
	const reach = 32
	i := a.rank[v] + a.below(2*reach+1) - reach
	return a.bySize[min(max(i, 0), len(a.bySize)-1)]
}

// A round begins at the temperature hot and ends at cold, as shares of what large moves
// cost. It begins by taking what is over capacity as lightly as overLow says, in shares of
// the load cost of as much, so that a large VEE may go where others have yet to make room
// for it, and ends by forbidding it.
const (
	hot, cold         = 1, .003
	overLow, overHigh = .6, 1e5
)

// calibrate a round to the moves that the placement allows: the cost of large ones, and what
// it weighs that a service lacks a place or dependency, as much as a middling move.
func (a *annealer) calibrate(s *state) (large float64) {
	var deltas []float64
	for range 20_000 {
		if m, ok := s.weighShift(a.below(s.VEEs), a.below(s.Hosts)); ok && m.cost != 0 {
			deltas = append(deltas, math.Abs(float64(m.cost)))
		}
	}
	if len(deltas) == 0 {
		return 1
	}
	slices.Sort(deltas)
	s.lackWeight = int64(deltas[len(deltas)/2])
	return deltas[len(deltas)*9/10]
}
