package reassign

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// way to anneal. Temperatures fall from hot to cold, as shares of what large moves cost.
// A way that yields lets hosts be overdrawn at a price that rises from low to high, in shares
// of the load cost of as much of the most plentiful resource, so that a large VEE may go where
// others have yet to make room for it.
type way struct {
	hot, cold        float64
	yields           bool
	low, high        float64
	replaces, shifts float64 // shares of the moves; the rest are swaps
}

// strict never overdraws: with transient resources what is overdrawn is hard to mend, since
// a host has little room for strangers, but replacing one by another finds its way. yielding
// packs better where there are none.
var (
	strict   = way{hot: .5, cold: .001, replaces: .8, shifts: .1}
	yielding = way{hot: .1, cold: .0005, yields: true, low: 3, high: 3000, shifts: .5}
)

// quench is the share of a round after which only improvements are made, and nothing may stay
// overdrawn: it is forbidden.
const (
	quench    = .95
	forbidden = 1e9
)

// between two looks at the budget.
const between = 4096

// annealer is one worker.
type annealer struct {
	problem *Problem
	options Options
	random  *rand.PCG
	done    int64

	way    way // of the last round
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

// round of annealing, until a share of the time.
func (a *annealer) round(from Result, until float64, w way) {
	s := newState(a.problem, from.At, from.Cost)
	a.best, a.cost, a.way = slices.Clone(s.at), s.cost, w
	start, large := a.elapsed(), a.large(s)
	s.strict = !w.yields
	for now := start; now < until; now = a.elapsed() {
		share := (now - start) / (until - start)
		t, price := large*w.hot*math.Pow(w.cold/w.hot, share), 0.
		if w.yields {
			price = w.low * math.Pow(w.high/w.low, share)
		}
		if share >= quench {
			t, price = 0, forbidden
		}
		for range between {
			a.step(s, t, price)
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
func (a *annealer) step(s *state, t, price float64) {
	m, ok := a.propose(s)
	if !ok {
		return
	}
	if cost := float64(m.cost) + price*float64(m.over); cost > 0 && cost > -t*math.Log(a.uniform()) {
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

// propose a move.
func (a *annealer) propose(s *state) (m move, ok bool) {
	v := a.below(s.VEEs)
	switch kind := a.uniform(); {
	case kind < a.way.replaces:
		g := s.guests[a.below(s.Hosts)]
		if len(g) == 0 {
			return m, false
		}
		w, c := int(g[a.below(len(g))]), a.below(s.Hosts)
		if s.at[w] != s.Initial[w] && a.random.Uint64()&3 != 0 {
			c = int(s.Initial[w])
		}
		return s.replace(v, w, c)
	case kind < a.way.replaces+a.way.shifts:
		return s.shift(v, a.below(s.Hosts))
	default:
		w := a.peer(v)
		return s.replace(v, w, int(s.at[v]))
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

// large is what large moves cost, as things are.
func (a *annealer) large(s *state) float64 {
	var costs []float64
	for range 4_000 {
		if m, ok := s.shift(a.below(s.VEEs), a.below(s.Hosts)); ok && m.cost != 0 {
			costs = append(costs, math.Abs(float64(m.cost)))
		}
	}
	if len(costs) == 0 {
		return 1
	}
	slices.Sort(costs)
	return costs[len(costs)*9/10]
}
