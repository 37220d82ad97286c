package solve

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// Objective weighs what is wanted of a placement in which every hard rule holds. All zero
// wants nothing but that soft rules hold.
type Objective struct {
	// Balance of hosts: the sum over hosts and dimensions of the square of the used share,
	// which is least when all are equally full.
	Balance float64
	// Consolidate VEEs on few hosts: the number of hosts with a VEE.
	Consolidate float64
	// Cost of the hosts with a VEE, in their price per hour.
	Cost float64
	// Energy of the hosts with a VEE, in watts, without what is wanted there as heat: a data
	// furnace in winter costs nothing.
	Energy float64
	// Distance of VEEs to their users: the sum over VEEs of their hosts', in ms.
	Distance float64
	// Migrations that lead there. It is what keeps a site from churning: a move must gain
	// more than this.
	Migrations float64
	// Time that migrations take, each by itself, in seconds: what it is until all is as wanted
	// (BtrPlace's MinMTTR), but for what they wait for each other.
	Time float64
	// SwitchOff the hosts that are left without a VEE and that no rule wants on.
	SwitchOff bool
}

// validate that the weights are numbers from 0 on.
func (o Objective) validate() error {
	for name, w := range map[string]float64{"balance": o.Balance, "consolidate": o.Consolidate, "cost": o.Cost, "energy": o.Energy,
		"distance": o.Distance, "migrations": o.Migrations, "time": o.Time} {
		if math.IsNaN(w) || math.IsInf(w, 0) || w < 0 {
			return fmt.Errorf("the objective weighs %s with %v: a number from 0 on is needed", name, w)
		}
	}
	return nil
}

// Score of a target for m, with the weights of the soft rules about places that it breaks;
// the less the better.
func (o Objective) Score(m *model.Model, t Target) float64 {
	b := newBoard(m, func(int, model.Constraint) bool { return false })
	score := 0.
	for v, h := range t.At {
		if h != model.None {
			b.enter(int32(v), h)
			score += o.move(m, int32(v), h)
		}
	}
	for h := range int32(len(m.Hosts)) {
		score += o.host(b, h)
	}
	return score + b.wishes.cost(m)
}

// move is what it costs that v is on h and not where it was.
func (o Objective) move(m *model.Model, v, h int32) float64 {
	x := &m.VEEs[v]
	if x.State != model.Running || x.Host == h {
		return 0
	}
	if o.Time == 0 {
		return o.Migrations
	}
	return o.Migrations + o.Time*m.Migration.Duration(x).Seconds()
}

// inUse is what a host costs for having VEEs at all.
func (o Objective) inUse(h *model.Host) float64 {
	return o.Consolidate + o.Cost*h.Price + o.Energy*h.Watts*(1-h.Heat)
}

// host is what h costs as it is.
func (o Objective) host(b *board, h int32) (cost float64) {
	if o.Balance != 0 {
		room := b.room(h)
		for d, c := range b.m.Capacity(h) {
			if c > 0 {
				used := 1 - float64(room[d])/float64(c)
				cost += o.Balance * used * used
			}
		}
	}
	if n := len(b.guests[h]); n > 0 {
		cost += o.inUse(&b.m.Hosts[h]) + float64(n)*o.Distance*b.m.Hosts[h].Distance
	}
	return cost
}

// toll of a host: what it costs, and that with a slope where the score has none, by which the
// search is drawn: of two hosts in use the fuller one costs less, so that the other is emptied.
type toll struct{ real, drawn float64 }

func (s *search) toll(h int32) toll {
	real := s.objective.host(s.board, h)
	if s.pull == 0 || len(s.guests[h]) == 0 {
		return toll{real, real}
	}
	full := min(1, max(0, s.fullness(h)))
	return toll{real, real - s.pull*full*full}
}

// Optimise m: repair it, then search large neighbourhoods of the placement for as long as
// there is time: some VEEs are taken out and put back where that costs least (ruin), with
// single moves and swaps in between, and what costs a little more is taken too, ever less of
// it (docs/adr/0030). With Iterations instead of Stop the same input gives the same answer.
//
// Two search beside each other with different tempers, and the answer is the better of both;
// if the time is over at once, it is the repaired placement.
func Optimise(m *model.Model, objective Objective, o Options) (Target, error) {
	if err := objective.validate(); err != nil {
		return Target{}, err
	}
	first, err := Repair(m, o)
	if err != nil {
		return Target{}, err
	}
	if o.Iterations == 0 && o.Stop == nil {
		o.Iterations = 50 * (len(m.VEEs) + 100)
	}
	best, least := first, objective.Score(m, first)
	var found [2]Target
	var score [2]float64
	var running sync.WaitGroup
	for i := range found {
		s := newSearch(m, objective, first, rand.New(rand.NewPCG(o.Seed, uint64(i))), objective.tempers(m)[i], everyRule)
		running.Go(func() {
			found[i] = s.run(o)
			score[i] = objective.Score(m, found[i])
		})
	}
	running.Wait()
	for i, t := range found {
		if score[i] < least-1e-9 {
			best, least = t, score[i]
		}
	}
	if objective.SwitchOff {
		best.On = switchedOff(m, best)
	}
	return best, nil
}

// switchedOff is which hosts are on in t when those without a VEE, awake or asleep, are not.
func switchedOff(m *model.Model, t Target) []bool {
	used := make([]bool, len(m.Hosts))
	for v, h := range t.At {
		if h != model.None {
			used[h] = true
		} else if at := m.VEEs[v].Host; t.State[v] == model.Sleeping {
			used[at] = true
		}
	}
	for _, r := range m.Rules {
		if c, ok := r.Constraint.(model.Power); ok && r.Hard() && c.On {
			for _, h := range c.Hosts {
				used[h] = true
			}
		}
	}
	on := slices.Clone(t.On)
	for h := range on {
		on[h] = on[h] && used[h]
	}
	return on
}

// temper of a search.
type temper struct {
	wide  float64 // part of the iterations that are ruins, not single steps
	heat  float64 // to begin with, as a part of what a host costs on average
	slope float64 // of a toll, as a part of what it costs on average that a host is in use
}

// tempers of the two that search beside each other, as they did best (docs/adr/0030). A ruin
// takes as long as a hundred steps.
func (o Objective) tempers(m *model.Model) [2]temper {
	if slices.ContainsFunc(m.Hosts, func(h model.Host) bool { return o.inUse(&h) > 0 }) {
		return [2]temper{{wide: .1, heat: .05}, {wide: .02, heat: .01, slope: .5}}
	}
	return [2]temper{{wide: .003, heat: .01}, {heat: .01}} // no host need be emptied
}

// search for better placements.
type search struct {
	*repair
	objective Objective
	random    *rand.Rand
	moves     []int32 // VEEs that may move
	cost      []toll  // of each host
	gain      float64 // of the placement as it is, over the first
	most      float64 // the largest gain so far
	best      []int32 // the placement that had it
	changed   []int32 // VEEs that have moved since then

	pull float64 // see toll
	temper
	ruins ruins
}

func newSearch(m *model.Model, objective Objective, from Target, random *rand.Rand, temper temper, keep func(int, model.Constraint) bool) *search {
	r, err := newRepair(m, Options{}, keep)
	if err != nil {
		panic(err) // Repair has found it sound
	}
	s := &search{repair: r, objective: objective, random: random, temper: temper, best: slices.Clone(from.At), cost: make([]toll, len(m.Hosts))}
	for v := range r.at {
		if r.at[v] != model.None {
			r.leave(int32(v))
		}
	}
	for h, on := range from.On {
		if on && !r.on[h] {
			r.open[h] = !m.Hosts[h].Draining && !r.quarantined(int32(h))
		}
		r.on[h] = on
	}
	for v, h := range from.At {
		if h != model.None {
			r.enter(int32(v), h)
			if !r.rooted[v] {
				s.moves = append(s.moves, int32(v))
			}
		}
	}
	for h := range m.Hosts {
		s.pull += temper.slope * objective.inUse(&m.Hosts[h]) / float64(len(m.Hosts))
	}
	for h := range s.cost {
		s.cost[h] = s.toll(int32(h))
	}
	policy := Pack
	if objective.Balance > 0 {
		policy = Balance
	}
	s.index = newIndex(s.board, policy)
	return s
}

// run the search: simulated annealing of ruins and steps.
func (s *search) run(o Options) Target {
	if len(s.moves) > 0 && len(s.m.Hosts) > 1 {
		heat := s.warmth()
		for n := 0; o.Iterations == 0 || n < o.Iterations; n++ {
			if n%64 == 0 && o.stopped() {
				break
			}
			t := heat / (1 + float64(n)/float64(4*len(s.moves)))
			if o.Iterations > 0 {
				t = heat * (1 - float64(n)/float64(o.Iterations))
			}
			bound := -t * math.Log(1-s.random.Float64())
			if s.random.Float64() < s.wide {
				s.ruin(bound)
			} else {
				s.step(bound)
			}
		}
	}
	return Target{State: s.state, At: s.best, On: s.on}
}

// warmth to begin with.
func (s *search) warmth() float64 {
	sum := 0.
	for _, c := range s.cost {
		sum += math.Abs(c.drawn)
	}
	return s.heat * sum / float64(len(s.cost))
}

// step tries one move and takes it back if it costs more than bound.
func (s *search) step(bound float64) {
	v := s.moves[s.random.IntN(len(s.moves))]
	a, w := s.at[v], model.None
	b := int32(s.random.IntN(len(s.m.Hosts)))
	if s.random.IntN(2) == 0 {
		w = s.moves[s.random.IntN(len(s.moves))]
		b = s.at[w]
	}
	if a == b || !s.open[b] || w != model.None && !s.open[a] {
		return
	}
	before, gain := s.cost[a].drawn+s.cost[b].drawn, s.objective.move(s.m, v, a)+s.wishes.discontent
	s.leave(v)
	if w != model.None {
		gain += s.objective.move(s.m, w, b)
		s.leave(w)
	}
	undo := func() {
		s.enter(v, a)
		if w != model.None {
			s.enter(w, b)
		}
	}
	if !s.fits(v, b) || !s.allowed(v, b) {
		undo()
		return
	}
	s.enter(v, b)
	if w != model.None {
		if !s.fits(w, a) || !s.allowed(w, a) {
			s.leave(v)
			undo()
			return
		}
		s.enter(w, a)
	}
	tollA, tollB := s.toll(a), s.toll(b)
	gain -= s.objective.move(s.m, v, b) + s.wishes.discontent
	if w != model.None {
		gain -= s.objective.move(s.m, w, a)
	}
	if tollA.drawn+tollB.drawn-before-gain > bound || !s.stillNear(v, w) {
		s.leave(v)
		if w != model.None {
			s.leave(w)
		}
		undo()
		return
	}
	gain += s.cost[a].real + s.cost[b].real - tollA.real - tollB.real
	s.cost[a], s.cost[b] = tollA, tollB
	if s.wide > 0 { // else nobody asks it
		s.index.update(a)
		s.index.update(b)
	}
	if w == model.None {
		s.accept(gain, v)
	} else {
		s.accept(gain, v, w)
	}
}

// accept the placement as it is, for which VEEs have moved, and which gains so much over the
// one before.
func (s *search) accept(gain float64, moved ...int32) {
	if len(s.changed) > 2*len(s.best) { // many have moved twice
		slices.Sort(s.changed)
		s.changed = slices.Compact(s.changed)
	}
	s.changed = append(s.changed, moved...)
	if s.gain += gain; s.gain <= s.most+1e-9 {
		return
	}
	s.most = s.gain
	for _, v := range s.changed {
		s.best[v] = s.at[v]
	}
	s.changed = s.changed[:0]
}

// stillNear tells whether both are allowed where they are: with two VEEs that change
// places, the first was judged before the second had gone there.
func (s *search) stillNear(v, w int32) bool {
	for _, x := range [2]int32{v, w} {
		if x == model.None {
			continue
		}
		h := s.at[x]
		s.leave(x)
		ok := s.allowed(x, h)
		s.enter(x, h)
		if !ok {
			return false
		}
	}
	return true
}
