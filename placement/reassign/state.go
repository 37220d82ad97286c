package reassign

// state is a placement with everything that the search counts in it. A move is first
// weighed, then made. It may put more on a host than there is room for, and services may lack
// places and others that they depend on: over counts all that. Two VEEs of a service are
// never on one host.
type state struct {
	*Problem
	at   []int32
	cost int64

	use, held []int64 // host × resource; held: of VEEs that have left the host
	ended     []end   // of each host
	over      int64   // by how much hosts are over their capacity, and what services lack

	overWeight []int64 // by resource
	lackWeight int64   // of a place or dependency that a service lacks
	nothing    []int64 // demand of nobody

	on       []bool    // service × host
	inPlace  []int32   // service × location: VEEs
	places   []int32   // by service: locations with a VEE
	near     []int32   // service × neighbourhood: VEEs
	needed   [][]int32 // by service: those that depend on it
	moved    []int32   // by service
	withMove []int32   // by number of moves: services with so many
	most     int32     // moves of any service
}

func newState(p *Problem, at []int32, cost int64) *state {
	s := &state{Problem: p, at: append([]int32(nil), at...), cost: cost,
		use: make([]int64, p.Hosts*p.Resources), held: make([]int64, p.Hosts*p.Resources), ended: make([]end, p.Hosts), overWeight: make([]int64, p.Resources),
		on: make([]bool, p.Services*p.Hosts), inPlace: make([]int32, p.Services*p.Locations), places: make([]int32, p.Services),
		near: make([]int32, p.Services*p.Neighbourhoods), needed: make([][]int32, p.Services),
		moved: make([]int32, p.Services), withMove: make([]int32, p.VEEs+1)}
	for d, on := range p.DependsOn {
		for _, t := range on {
			s.needed[t] = append(s.needed[t], int32(d))
		}
	}
	s.withMove[0] = int32(p.Services)
	for v := range at {
		h, from := int(at[v]), int(p.Initial[v])
		s.enter(int(p.Service[v]), h)
		for r := range p.Resources {
			d := p.Demand[v*p.Resources+r]
			s.use[h*p.Resources+r] += d
			if p.Transient[r] && from != h {
				s.held[from*p.Resources+r] += d
			}
		}
		if from != h {
			s.count(int(p.Service[v]), 1)
		}
	}
	for r, w := range p.LoadWeight {
		s.overWeight[r] = max(1, w)
	}
	s.nothing, s.lackWeight = make([]int64, p.Resources), 1
	for h := range p.Hosts {
		s.ended[h] = s.weigh(h, s.nothing, s.nothing, false, false)
		s.over += s.ended[h].over
	}
	return s
}

// demand of VEE v, by resource.
func (s *state) demand(v int) []int64 { return s.Demand[v*s.Resources : (v+1)*s.Resources] }

func (s *state) enter(service, h int) {
	s.on[service*s.Hosts+h] = true
	i := service*s.Locations + int(s.Location[h])
	if s.inPlace[i]++; s.inPlace[i] == 1 {
		s.places[service]++
	}
	s.near[service*s.Neighbourhoods+int(s.Nearby[h])]++
}

func (s *state) leave(service, h int) {
	s.on[service*s.Hosts+h] = false
	i := service*s.Locations + int(s.Location[h])
	if s.inPlace[i]--; s.inPlace[i] == 0 {
		s.places[service]--
	}
	s.near[service*s.Neighbourhoods+int(s.Nearby[h])]--
}

// count a move more (or less) of a service.
func (s *state) count(service int, by int32) {
	s.withMove[s.moved[service]]--
	s.moved[service] += by
	s.withMove[s.moved[service]]++
	if s.moved[service] > s.most {
		s.most = s.moved[service]
	}
	for s.most > 0 && s.withMove[s.most] == 0 {
		s.most--
	}
}

// weigh host h once the demand in has come and the demand out has left: its load and balance
// cost, and by how much it is over its capacity, in the units of the load cost. A VEE at its
// first host makes no difference to what is used and held there together: inHome and outHome
// tell of such.
func (s *state) weigh(h int, in, out []int64, inHome, outHome bool) (e end) {
	base, n := h*s.Resources, s.Resources
	use, held := s.use[base:base+n], s.held[base:base+n]
	safety, capacity := s.Safety[base:base+n], s.Capacity[base:base+n]
	in, out, transient, weight, overWeight := in[:n], out[:n], s.Transient[:n], s.LoadWeight[:n], s.overWeight[:n]
	for r, u := range use {
		after := u + in[r] - out[r]
		full := after + held[r]
		if transient[r] {
			if inHome {
				full -= in[r]
			}
			if outHome {
				full += out[r]
			}
		}
		e.load += weight[r] * max(0, after-safety[r])
		e.over += overWeight[r] * max(0, full-capacity[r])
	}
	for i := range s.Balances {
		b := &s.Balances[i]
		free := func(r int) int64 { return capacity[r] - use[r] - in[r] + out[r] }
		e.load += b.Weight * max(0, b.Target*free(b.A)-free(b.B))
	}
	return e
}

// related is by how much fewer (or more) places and dependencies a service lacks when a VEE
// of it goes from host a to b.
func (s *state) related(service, a, b int) (lacks int64) {
	if l, k := s.Location[a], s.Location[b]; l != k && s.SpreadMin[service] > 0 {
		places := s.places[service]
		lacks -= int64(max(0, s.SpreadMin[service]-places))
		if s.inPlace[service*s.Locations+int(l)] == 1 {
			places--
		}
		if s.inPlace[service*s.Locations+int(k)] == 0 {
			places++
		}
		lacks += int64(max(0, s.SpreadMin[service]-places))
	}
	n, m := int(s.Nearby[a]), int(s.Nearby[b])
	if n == m {
		return lacks
	}
	if s.near[service*s.Neighbourhoods+m] == 0 {
		lacks += s.alone(s.DependsOn[service], service, m) - s.crowd(s.needed[service], service, m)
	}
	if s.near[service*s.Neighbourhoods+n] == 1 {
		lacks += s.crowd(s.needed[service], service, n) - s.alone(s.DependsOn[service], service, n)
	}
	return lacks
}

// alone counts those of services, but for one, that are not in neighbourhood n.
func (s *state) alone(services []int32, but, n int) (count int64) {
	for _, d := range services {
		if int(d) != but && s.near[int(d)*s.Neighbourhoods+n] == 0 {
			count++
		}
	}
	return count
}

// crowd counts those of services, but for one, that are in neighbourhood n.
func (s *state) crowd(services []int32, but, n int) (count int64) {
	for _, d := range services {
		if int(d) != but && s.near[int(d)*s.Neighbourhoods+n] > 0 {
			count++
		}
	}
	return count
}

// going is what it costs more in moves that v goes from a to b, apart from the most moved
// service.
func (s *state) going(v, a, b int) (cost int64) {
	home := int(s.Initial[v])
	row := s.Distance[home*s.Hosts : (home+1)*s.Hosts]
	cost = s.DistanceWeight * (row[b] - row[a])
	switch home {
	case a:
		cost += s.MoveWeight * s.MoveCost[v]
	case b:
		cost -= s.MoveWeight * s.MoveCost[v]
	}
	return cost
}

// further is -1, 0 or 1: the change in the moves of v's service when it goes from a to b.
func (s *state) further(v, a, b int) int32 {
	switch int(s.Initial[v]) {
	case a:
		return 1
	case b:
		return -1
	}
	return 0
}

// mostAfter one or two services have moved more or less; service2 < 0: one only.
func (s *state) mostAfter(service1 int, by1 int32, service2 int, by2 int32) int64 {
	if s.ServiceWeight == 0 || by1 == 0 && by2 == 0 {
		return 0
	}
	s.count(service1, by1)
	most := s.most
	if service2 >= 0 {
		s.count(service2, by2)
		most = s.most
		s.count(service2, -by2)
	}
	s.count(service1, -by1)
	return s.ServiceWeight * int64(most-s.most)
}

// end of a move: what a host costs after it.
type end struct{ load, over int64 }

// move of one VEE to another host, or of two that change places (w < 0: one).
type move struct {
	v, w, from, to int
	cost, over     int64 // by how much they change
	atFrom, atTo   end
}

// weighShift of v to host b: false when another VEE of its service is there.
func (s *state) weighShift(v, b int) (m move, ok bool) {
	a, service := int(s.at[v]), int(s.Service[v])
	if a == b || s.on[service*s.Hosts+b] {
		return m, false
	}
	m = move{v: v, w: -1, from: a, to: b, over: s.lackWeight * s.related(service, a, b)}
	d, home := s.demand(v), int(s.Initial[v])
	m.atFrom, m.atTo = s.weigh(a, s.nothing, d, false, home == a), s.weigh(b, d, s.nothing, home == b, false)
	m.cost = s.going(v, a, b) + s.mostAfter(service, s.further(v, a, b), -1, 0)
	s.ends(&m)
	return m, true
}

// weighSwap of v and w.
func (s *state) weighSwap(v, w int) (m move, ok bool) {
	a, b := int(s.at[v]), int(s.at[w])
	sv, sw := int(s.Service[v]), int(s.Service[w])
	if a == b || sv == sw || s.on[sv*s.Hosts+b] || s.on[sw*s.Hosts+a] {
		return m, false
	}
	m = move{v: v, w: w, from: a, to: b, over: s.lackWeight * s.relatedBoth(sv, sw, a, b)}
	dv, dw, homeV, homeW := s.demand(v), s.demand(w), int(s.Initial[v]), int(s.Initial[w])
	m.atFrom, m.atTo = s.weigh(a, dw, dv, homeW == a, homeV == a), s.weigh(b, dv, dw, homeV == b, homeW == b)
	m.cost = s.going(v, a, b) + s.going(w, b, a) + s.mostAfter(sv, s.further(v, a, b), sw, s.further(w, b, a))
	s.ends(&m)
	return m, true
}

func (s *state) ends(m *move) {
	was, will := s.ended[m.from], s.ended[m.to]
	m.cost += m.atFrom.load - was.load + m.atTo.load - will.load
	m.over += m.atFrom.over - was.over + m.atTo.over - will.over
}

// make move m, as it was weighed.
func (s *state) make(m move) {
	s.relocate(m.v, m.to)
	if m.w >= 0 {
		s.relocate(m.w, m.from)
	}
	s.ended[m.from], s.ended[m.to] = m.atFrom, m.atTo
	s.cost += m.cost
	s.over += m.over
}

// relocate v in every count but the costs.
func (s *state) relocate(v, b int) {
	a, home, service, n := int(s.at[v]), int(s.Initial[v]), int(s.Service[v]), s.Resources
	s.leave(service, a)
	s.enter(service, b)
	for r, d := range s.demand(v) {
		s.use[a*n+r] -= d
		s.use[b*n+r] += d
		if s.Transient[r] {
			if a == home {
				s.held[a*n+r] += d
			}
			if b == home {
				s.held[b*n+r] -= d
			}
		}
	}
	if by := s.further(v, a, b); by != 0 {
		s.count(service, by)
	}
	s.at[v] = int32(b)
}

// relatedBoth is related for two services that change places.
func (s *state) relatedBoth(sv, sw, a, b int) int64 {
	lacks := s.related(sv, a, b)
	if s.Nearby[a] == s.Nearby[b] || len(s.DependsOn[sw])+len(s.needed[sw]) == 0 {
		return lacks + s.related(sw, b, a)
	}
	n, m := sv*s.Neighbourhoods+int(s.Nearby[a]), sv*s.Neighbourhoods+int(s.Nearby[b])
	s.near[n]--
	s.near[m]++
	lacks += s.related(sw, b, a)
	s.near[n]++
	s.near[m]--
	return lacks
}
