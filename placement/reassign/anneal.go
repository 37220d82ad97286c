package reassign

import (
	"math"
	"math/rand/v2"
	"slices"
)

// The temperature of a round falls from hot to cold, as shares of what a large VEE costs. The
// markups of what is overdrawn begin at low. One would rise by a factor of e to the rise if
// its host were overdrawn for the whole of a round. While it is not overdrawn it falls, as
// fast at first, then ever slower, and not at all after settle: hosts come to make do with
// what they have. After quench only improvements are made, and what is still overdrawn is
// mended first.
const (
	hot, cold = .1, .0004
	low       = .1
	rise      = 120
	settle    = .75
	quench    = .96
	forbidden = 1e5
)

// A worker looks at its budget each look moves, and adapts prices once in so much of a round.
const (
	look  = 4096
	every = .001
)

// logs are equally likely values of −ln of a uniform number.
var logs = func() (l [1 << 14]float64) {
	for i := range l {
		l[i] = -math.Log((float64(i) + .5) / float64(len(l)))
	}
	return l
}()

// annealer is one worker.
type annealer struct {
	proposer
	options Options
	done    int64

	best []int32
	cost int64 // of best
}

func newAnnealer(t *terrain, o Options, i uint64) *annealer {
	return &annealer{proposer: proposer{terrain: t, random: rand.NewPCG(o.Seed, i)}, options: o}
}

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

// round of annealing, until a share of the budget is over.
func (a *annealer) round(from Result, until float64) {
	s := newState(a.problem, from.At, from.Cost)
	a.best, a.cost = slices.Clone(from.At), from.Cost
	s.demand(low)
	start, adapted, cooling := a.elapsed(), 0., true
	for now := start; now < until; now = a.elapsed() {
		share := (now - start) / (until - start)
		temperature := a.large * hot * math.Pow(cold/hot, share)
		switch passed := share - adapted; {
		case share >= quench:
			temperature = 0
			if cooling {
				s.demand(forbidden)
				cooling = false
			}
		case passed >= every:
			s.adapt(math.Exp(rise*passed), math.Exp(-rise*passed*max(0, 1-share/settle)), low)
			adapted = share
		}
		for range look {
			limit := int64(temperature * logs[a.below(len(logs))])
			if m, ok := a.propose(s, limit); ok {
				s.make(m)
			}
		}
		a.done += look
		if s.overdrawn == 0 && s.cost < a.cost {
			a.cost = s.cost
			copy(a.best, s.at)
		}
	}
}
