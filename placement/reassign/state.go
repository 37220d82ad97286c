package reassign

// state is a feasible placement with everything that the search counts in it. A move is
// first weighed (its cost, and whether it keeps every constraint), then made.
type state struct {
	*Problem
	at   []int32
	cost int64

	use, held []int64 // host × resource; held: of VEEs that have left the host
	load      []int64 // of each host: its load and balance cost

	on       []bool  // service × host
	inPlace  []int32 // service × location: VEEs
	places   []int32 // by service: locations with a VEE
	near     []int32 // service × neighbourhood: VEEs
	needed   [][]int32
	moved    []int32 // by service
	withMove []int32 // by number of moves: services with so many
	most     int32   // moves of any service
}

func newState(p *Problem, at []int32, cost int64) *state {
	s := &state{Problem: p, at: append([]int32(nil), at...), cost: cost,
		use: make([]int64, p.Hosts*p.Resources), held: make([]int64, p.Hosts*p.Resources), load: make([]int64, p.Hosts),
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
	for h := range p.Hosts {
		s.load[h] = s.loadOf(h, nil, nil)
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

// loadOf host h with the demand in added and without that taken away (nil: nothing).
func (s *state) loadOf(h int, in, out []int64) (cost int64) {
	base := h * s.Resources
	use, safety, capacity := s.use[base:base+s.Resources], s.Safety[base:base+s.Resources], s.Capacity[base:base+s.Resources]
	change := func(r int) (d int64) {
		if in != nil {
			d = in[r]
		}
		if out != nil {
			d -= out[r]
		}
		return d
	}
	for r, u := range use {
		cost += s.LoadWeight[r] * max(0, u+change(r)-safety[r])
	}
	for i := range s.Balances {
		b := &s.Balances[i]
		cost += b.Weight * max(0, b.Target*(capacity[b.A]-use[b.A]-change(b.A))-(capacity[b.B]-use[b.B]-change(b.B)))
	}
	return cost
}

// fits tells whether host h has room for v once out (nil: nothing) has left. What left
// stays held where it was from the start.
func (s *state) fits(v, h int, out []int64, outFrom int32) bool {
	base := h * s.Resources
	use, held, capacity := s.use[base:base+s.Resources], s.held[base:base+s.Resources], s.Capacity[base:base+s.Resources]
	home, leftHome := int(s.Initial[v]) == h, int(outFrom) == h
	for r, d := range s.demand(v) {
		u := use[r] + d
		if !s.Transient[r] {
			if out != nil {
				u -= out[r]
			}
			if u > capacity[r] {
				return false
			}
			continue
		}
		u += held[r]
		if home {
			u -= d // held for it already
		}
		if out != nil && !leftHome {
			u -= out[r]
		}
		if u > capacity[r] {
			return false
		}
	}
	return true
}

// related tells whether a VEE of service may go from host a to b as far as spread and
// dependencies go.
func (s *state) related(service, a, b int) bool {
	if l, k := s.Location[a], s.Location[b]; l != k && s.SpreadMin[service] > 0 {
		places := s.places[service]
		if s.inPlace[service*s.Locations+int(l)] == 1 {
			places--
		}
		if s.inPlace[service*s.Locations+int(k)] == 0 {
			places++
		}
		if places < s.SpreadMin[service] {
			return false
		}
	}
	n, m := int(s.Nearby[a]), int(s.Nearby[b])
	if n == m {
		return true
	}
	if s.near[service*s.Neighbourhoods+m] == 0 {
		for _, d := range s.DependsOn[service] {
			if s.near[int(d)*s.Neighbourhoods+m] == 0 {
				return false
			}
		}
	}
	if s.near[service*s.Neighbourhoods+n] == 1 {
		for _, d := range s.needed[service] {
			if s.near[int(d)*s.Neighbourhoods+n] > 0 && int(d) != service {
				return false
			}
		}
	}
	return true
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

// shift of one VEE to another host.
type shift struct {
	v, to          int
	delta          int64
	loadFrom, load int64
}

// weighShift of v to host b: false when it is not allowed.
func (s *state) weighShift(v, b int) (m shift, ok bool) {
	a, service := int(s.at[v]), int(s.Service[v])
	if a == b || s.on[service*s.Hosts+b] || !s.fits(v, b, nil, -1) || !s.related(service, a, b) {
		return m, false
	}
	d := s.demand(v)
	m = shift{v: v, to: b, loadFrom: s.loadOf(a, nil, d), load: s.loadOf(b, d, nil)}
	m.delta = m.loadFrom - s.load[a] + m.load - s.load[b] + s.going(v, a, b) + s.mostAfter(service, s.further(v, a, b), -1, 0)
	return m, true
}

func (s *state) shift(m shift) {
	a := int(s.at[m.v])
	s.relocate(m.v, m.to)
	s.load[a], s.load[m.to] = m.loadFrom, m.load
	s.cost += m.delta
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

// swap of two VEEs.
type swap struct {
	v, w         int
	delta        int64
	loadV, loadW int64 // of the hosts that v and w leave
}

func (s *state) weighSwap(v, w int) (m swap, ok bool) {
	a, b := int(s.at[v]), int(s.at[w])
	sv, sw := int(s.Service[v]), int(s.Service[w])
	if a == b || sv == sw || s.on[sv*s.Hosts+b] || s.on[sw*s.Hosts+a] {
		return m, false
	}
	dv, dw := s.demand(v), s.demand(w)
	if !s.fits(v, b, dw, s.Initial[w]) || !s.fits(w, a, dv, s.Initial[v]) {
		return m, false
	}
	if !s.relatedBoth(sv, sw, a, b) {
		return m, false
	}
	m = swap{v: v, w: w, loadV: s.loadOf(a, dw, dv), loadW: s.loadOf(b, dv, dw)}
	m.delta = m.loadV - s.load[a] + m.loadW - s.load[b] + s.going(v, a, b) + s.going(w, b, a) +
		s.mostAfter(sv, s.further(v, a, b), sw, s.further(w, b, a))
	return m, true
}

// relatedBoth is related for two services that change places. The second is judged with
// the first already gone: that refuses some swaps that would be right only together.
func (s *state) relatedBoth(sv, sw, a, b int) bool {
	if !s.related(sv, a, b) {
		return false
	}
	if s.Nearby[a] == s.Nearby[b] || len(s.DependsOn[sw])+len(s.needed[sw]) == 0 {
		return s.related(sw, b, a)
	}
	n, m := sv*s.Neighbourhoods+int(s.Nearby[a]), sv*s.Neighbourhoods+int(s.Nearby[b])
	s.near[n]--
	s.near[m]++
	ok := s.related(sw, b, a)
	s.near[n]++
	s.near[m]--
	return ok
}

func (s *state) swap(m swap) {
	a, b := int(s.at[m.v]), int(s.at[m.w])
	s.relocate(m.v, b)
	s.relocate(m.w, a)
	s.load[a], s.load[b] = m.loadV, m.loadW
	s.cost += m.delta
}
