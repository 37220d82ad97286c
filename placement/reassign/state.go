package reassign

// state is a placement with everything that the search counts in it. The constraints of
// services hold in it between moves; hosts may be overdrawn, at a price (price.go). A move is
// first weighed, then made (move.go).
//
// A balance is counted as one more resource, of which a host has spare what is free of B less
// Target times what is free of A, and which a VEE needs accordingly (less than nothing,
// perhaps). So the load and balance cost of a host is one sum over width entries, each a
// weight times what is used beyond the spare.
type state struct {
	*Problem
	services
	moves
	prices

	at     []int32
	guests [][]int32 // by host
	slot   []int32   // of each VEE among its host's guests
	cost   int64

	width  int      // resources and balances: the length of the rows below
	weight []int64  // by resource or balance
	needs  []int64  // VEE rows: what it uses, wherever it is
	stays  []int64  // VEE rows: what it takes at its first host, where it holds what is transient in any case
	spare  []int64  // host rows: left below the safety capacity
	room   []int64  // host rows: left of the capacity
	load   []burden // of each host

	// relief[v] is by how much the host of v is relieved without v, as counted when the host
	// had last changed at reliefAt[v]; clock counts the changes of all hosts.
	relief   []burden
	reliefAt []int64
	changed  []int64 // of each host
	clock    int64
}

func newState(p *Problem, at []int32, cost int64) *state {
	n := p.Resources + len(p.Balances)
	s := &state{Problem: p, services: newServices(p), moves: newMoves(p), prices: newPrices(p),
		at: append([]int32(nil), p.Initial...), guests: make([][]int32, p.Hosts), slot: make([]int32, p.VEEs), cost: cost,
		width: n, weight: append([]int64(nil), p.LoadWeight...), needs: make([]int64, p.VEEs*n), stays: make([]int64, p.VEEs*n),
		spare: make([]int64, p.Hosts*n), room: make([]int64, p.Hosts*n), load: make([]burden, p.Hosts),
		relief: make([]burden, p.VEEs), reliefAt: make([]int64, p.VEEs), changed: make([]int64, p.Hosts)}
	for _, b := range p.Balances {
		s.weight = append(s.weight, b.Weight)
	}
	for h := range p.Hosts {
		capacity := p.Capacity[h*p.Resources : (h+1)*p.Resources]
		copy(s.room[h*n:], capacity)
		copy(s.spare[h*n:], p.Safety[h*p.Resources:(h+1)*p.Resources])
		for i, b := range p.Balances {
			s.spare[h*n+p.Resources+i] = capacity[b.B] - b.Target*capacity[b.A]
		}
	}
	for v := range p.VEEs {
		demand, home := p.Demand[v*p.Resources:(v+1)*p.Resources], int(p.Initial[v])
		copy(s.needs[v*n:], demand)
		for i, b := range p.Balances {
			s.needs[v*n+p.Resources+i] = demand[b.B] - b.Target*demand[b.A]
		}
		for r, d := range demand {
			if p.Transient[r] {
				s.room[home*n+r] -= d
			} else {
				s.stays[v*n+r] = d
			}
		}
		s.enter(v, home)
	}
	for v, h := range at {
		if h != p.Initial[v] {
			s.leave(v)
		}
	}
	for v, h := range at {
		if h != p.Initial[v] {
			s.enter(v, int(h))
		}
	}
	for h := range s.load {
		s.recount(h)
	}
	return s
}

// needsOf v, wherever it is.
func (s *state) needsOf(v int) []int64 { return s.needs[v*s.width : (v+1)*s.width] }

// takes is what v takes of the room of host h.
func (s *state) takes(v, h int) []int64 {
	if int(s.Initial[v]) == h {
		return s.stays[v*s.width : (v+1)*s.width]
	}
	return s.needs[v*s.width : (v+1)*s.width]
}

// leave takes v from where it is, in every count but the costs, until it enters a host.
func (s *state) leave(v int) {
	a, n := int(s.at[v]), s.width
	takes := s.takes(v, a)
	for r, d := range s.needsOf(v) {
		s.spare[a*n+r] += d
		s.room[a*n+r] += takes[r]
	}
	g := s.guests[a]
	last := g[len(g)-1]
	g[s.slot[v]], s.slot[last] = last, s.slot[v]
	s.guests[a] = g[:len(g)-1]
	if a == int(s.Initial[v]) {
		s.count(s.Service[v], 1)
	}
	s.touch(a)
	s.services.leave(s.Service[v], a)
}

func (s *state) enter(v, b int) {
	n := s.width
	takes := s.takes(v, b)
	for r, d := range s.needsOf(v) {
		s.spare[b*n+r] -= d
		s.room[b*n+r] -= takes[r]
	}
	s.slot[v] = int32(len(s.guests[b]))
	s.guests[b] = append(s.guests[b], int32(v))
	s.at[v] = int32(b)
	if b == int(s.Initial[v]) {
		s.count(s.Service[v], -1)
	}
	s.touch(b)
	s.services.enter(s.Service[v], b, int32(v))
}

// touch makes what is remembered of host h old.
func (s *state) touch(h int) {
	s.clock++
	s.changed[h] = s.clock
}

// recount the burden of host h as it is.
func (s *state) recount(h int) {
	s.overdrawn -= s.load[h].price
	s.load[h] = s.alone(h)
	s.overdrawn += s.load[h].price
	s.touch(h)
}
