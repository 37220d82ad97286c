package solve

import (
	"math"
	"slices"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// ruins is what a search needs to take VEEs out of a placement and to put them back, kept
// from one time to the next.
type ruins struct {
	out   []int32     // VEEs that are taken out
	home  []int32     // where they were
	hosts []int32     // that they may go to
	costs [][]float64 // by VEE of out and host of hosts: how much more it costs there
}

// Sizes of a ruin.
const (
	mostOut  = 20 // VEEs
	anyHosts = 4  // to go to, drawn from all
	inUse    = 3  // to go to, drawn from those with VEEs
	looked   = 4  // hosts of which the worst is ruined
)

// ruin the placement around a host that is bad for the objective, around VEEs that have to do
// with each other, or anywhere, and rebuild it: put the VEEs back where it costs least, those
// first that have most to lose by waiting (Shaw, "Using constraint programming and local
// search methods to solve vehicle routing problems", CP 1998; Ropke and Pisinger, "An adaptive
// large neighborhood search heuristic for the pickup and delivery problem with time windows",
// 2006). If it costs more than bound then, or one has no place, all go back.
func (s *search) ruin(bound float64) {
	r := &s.ruins
	r.out, r.home, r.hosts = r.out[:0], r.home[:0], r.hosts[:0]
	switch s.random.IntN(3) {
	case 0:
		s.ruinHost()
	case 1:
		s.ruinRelated()
	default:
		for range 2 + s.random.IntN(4) {
			s.takeOut(s.any())
		}
	}
	if len(r.out) == 0 {
		return
	}
	before := s.tearDown()
	s.offer(&before)
	if s.rebuild() {
		after := s.tolls()
		if after.drawn-before.drawn <= bound && s.allStay() {
			s.accept(before.real-after.real, r.out...)
			return
		}
	}
	s.restore()
}

// tolls of the hosts and moves that a ruin is about, and of all wishes.
func (s *search) tolls() toll {
	sum := toll{s.wishes.discontent, s.wishes.discontent}
	for _, h := range s.ruins.hosts {
		sum.add(s.cost[h])
	}
	for _, v := range s.ruins.out {
		move := s.objective.move(s.m, v, s.at[v])
		sum.add(toll{move, move})
	}
	return sum
}

func (t *toll) add(o toll) { t.real, t.drawn = t.real+o.real, t.drawn+o.drawn }

// any VEE that may move.
func (s *search) any() int32 { return s.moves[s.random.IntN(len(s.moves))] }

// ruinHost that costs most, of some that have VEEs.
func (s *search) ruinHost() {
	worst := model.None
	for range looked {
		if h := s.at[s.any()]; worst == model.None || s.cost[h].drawn > s.cost[worst].drawn {
			worst = h
		}
	}
	s.takeOutOf(worst, mostOut)
}

// ruinRelated: a VEE, some that a rule binds it to, some of its host and of another.
func (s *search) ruinRelated() {
	v := s.any()
	s.takeOut(v)
	if of := s.of[v]; len(of) > 0 {
		mates := s.m.Rules[s.source[of[s.random.IntN(len(of))]]].Constraint.About().VEEs
		for range min(3, len(mates)) {
			s.takeOut(mates[s.random.IntN(len(mates))])
		}
	}
	s.takeOutOf(s.at[v], 4)
	s.takeOutOf(s.at[s.any()], 4)
}

// takeOutOf host h some VEEs.
func (s *search) takeOutOf(h int32, most int) {
	guests := s.guests[h]
	start := s.random.IntN(len(guests))
	for i := range min(most, len(guests)) {
		s.takeOut(guests[(start+i)%len(guests)])
	}
}

// takeOut v, soon: it is marked.
func (s *search) takeOut(v int32) {
	r := &s.ruins
	if s.at[v] == model.None || s.rooted[v] || len(r.out) >= mostOut || slices.Contains(r.out, v) {
		return
	}
	r.out, r.home = append(r.out, v), append(r.home, s.at[v])
}

// tearDown what is marked, and say what it cost there.
func (s *search) tearDown() toll {
	r := &s.ruins
	for _, h := range r.home {
		if !slices.Contains(r.hosts, h) {
			r.hosts = append(r.hosts, h)
		}
	}
	cost := s.tolls()
	for _, v := range r.out {
		s.leave(v)
	}
	for _, h := range r.hosts {
		s.settled(h)
	}
	return cost
}

// settled is h after VEEs came or went: what it costs, and what room it has.
func (s *search) settled(h int32) {
	s.cost[h] = s.toll(h)
	s.index.update(h)
}

// offer the VEEs that are out more hosts than those that they come from, and add what these
// cost.
func (s *search) offer(cost *toll) {
	r := &s.ruins
	add := func(h int32) {
		if h != model.None && s.open[h] && !slices.Contains(r.hosts, h) {
			r.hosts = append(r.hosts, h)
			cost.add(s.cost[h])
		}
	}
	if s.objective.Migrations+s.objective.Time > 0 {
		for _, v := range r.out {
			add(s.m.VEEs[v].Host) // it may have left without need
		}
	}
	for range anyHosts {
		add(int32(s.random.IntN(len(s.m.Hosts))))
	}
	for range inUse {
		add(s.at[s.any()])
	}
	add(s.index.find(r.out[s.random.IntN(len(r.out))]))
}

// rebuild: give each VEE that is out a host, the one first that loses most if it does not get
// its best one (its regret). False: one has none.
func (s *search) rebuild() bool {
	r := &s.ruins
	for len(r.costs) < len(r.out) {
		r.costs = append(r.costs, nil)
	}
	for i, v := range r.out {
		r.costs[i] = r.costs[i][:0]
		for _, h := range r.hosts {
			r.costs[i] = append(r.costs[i], s.more(v, h))
		}
	}
	for range r.out {
		i, k := s.mostRegret()
		if i < 0 {
			return false
		}
		s.enter(r.out[i], r.hosts[k])
		s.settled(r.hosts[k])
		for j, w := range r.out {
			if s.at[w] != model.None {
				continue
			}
			if len(s.of[w])+len(s.general)+len(s.wishes.rule) == 0 { // only there it is another thing now
				r.costs[j][k] = s.more(w, r.hosts[k])
				continue
			}
			for l, h := range r.hosts {
				r.costs[j][l] = s.more(w, h)
			}
		}
	}
	return true
}

// mostRegret of those that are still out, as an index into them and into the hosts; -1: one
// has no host.
func (s *search) mostRegret() (next, to int) {
	r := &s.ruins
	next, most := -1, math.Inf(-1)
	for i, v := range r.out {
		if s.at[v] != model.None {
			continue
		}
		best, first, second := -1, math.Inf(1), math.Inf(1)
		for k, c := range r.costs[i] {
			switch {
			case c < first:
				best, first, second = k, c, first
			case c < second:
				second = c
			}
		}
		if best < 0 {
			return -1, -1
		}
		regret := second - first
		if math.IsInf(second, 1) { // the only one: before all others, the largest first
			regret = math.MaxFloat64 * s.size(v) / (1 + s.size(v))
		}
		if next < 0 || regret > most {
			next, to, most = i, best, regret
		}
	}
	return next, to
}

// more is what it costs more when v comes to h; infinite: h does not take it.
func (s *search) more(v, h int32) float64 {
	if !s.takes(v, h) {
		return math.Inf(1)
	}
	before := s.cost[h].drawn + s.wishes.discontent
	s.enter(v, h)
	after := s.toll(h).drawn + s.wishes.discontent
	s.leave(v)
	return after - before + s.objective.move(s.m, v, h)
}

// allStay tells whether all that were out are allowed where they are, now that all are there.
func (s *search) allStay() bool {
	for _, v := range s.ruins.out {
		if !s.stillNear(v, model.None) {
			return false
		}
	}
	return true
}

// restore the placement as it was before the ruin.
func (s *search) restore() {
	r := &s.ruins
	for _, v := range r.out {
		if s.at[v] != model.None {
			s.leave(v)
		}
	}
	for i, v := range r.out {
		s.enter(v, r.home[i])
	}
	for _, h := range r.hosts {
		s.settled(h)
	}
}
