package reassign

import (
	"fmt"
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

// rounds end at these shares of the time. The first are quick, so that there is something
// better soon; each anneals anew, the slower the better.
var rounds = []float64{.03, .16, 1}

// Improve the initial placement of p, which must be feasible, by simulated annealing (as
// Portal, Ritt, Borba and Buriol, "Simulated annealing for the machine reassignment problem",
// 2016) over shifts, swaps and chains of two, with what hosts are overdrawn by at a price.
func Improve(p *Problem, o Options) (Result, error) {
	if err := p.Validate(); err != nil {
		return Result{}, fmt.Errorf("improve a placement: %w", err)
	}
	cost, err := p.Cost(p.Initial)
	if err != nil {
		return Result{}, fmt.Errorf("improve a placement that is not feasible: %w", err)
	}
	best := Result{At: slices.Clone(p.Initial), Cost: cost}
	t := newTerrain(p)
	if len(t.movable) == 0 || o.Iterations <= 0 && o.Elapsed == nil {
		return best, nil
	}
	workers := make([]*annealer, max(1, o.Workers))
	for i := range workers {
		workers[i] = newAnnealer(t, o, uint64(i))
	}
	for _, until := range rounds {
		var running sync.WaitGroup
		for _, a := range workers {
			running.Go(func() { a.round(best, until) })
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
