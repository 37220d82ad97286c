package reassign

// move of a VEE v from host a to b. Where w is not none, w leaves b for it and goes to c: to
// a (they change places), or to a third host, often its first one. What w held there is free
// again then, and it takes the room of v at b: where resources are transient, hosts have
// little room for strangers, and one is best replaced by another.
type move struct {
	v, w, a, b, c int
	cost, over    int64 // by how much they change
	atA, atB, atC end
}

const none = -1

// end of a move: what a host costs after it.
type end struct{ load, over int64 }

// weigh host h once the demand in has come and the demand out has left: its load and balance
// cost, and by how much it is overdrawn. A VEE at its first host makes no difference to what
// is used and held there together: inHome and outHome tell of such.
func (s *state) weigh(h int, in, out []int64, inHome, outHome bool) (e end) {
	base, n := h*s.Resources, s.Resources
	spare, weight := s.spare[base:base+n], s.LoadWeight[:n]
	in, out = in[:n], out[:n]
	for r, x := range spare {
		e.load += weight[r] * max(0, in[r]-out[r]-x)
	}
	if !s.strict {
		room, transient, overWeight := s.room[base:base+n], s.Transient[:n], s.overWeight[:n]
		for r, x := range room {
			if !transient[r] || !inHome {
				x -= in[r]
			}
			if !transient[r] || !outHome {
				x += out[r]
			}
			e.over += overWeight[r] * max(0, -x)
		}
	}
	for i := range s.Balances {
		b := &s.Balances[i]
		free := func(r int) int64 { return s.free[base+r] - in[r] + out[r] }
		e.load += b.Weight * max(0, b.Target*free(b.A)-free(b.B))
	}
	return e
}

// fits tells whether h has room for in once out has left.
func (s *state) fits(h int, in, out []int64, inHome, outHome bool) bool {
	base, n := h*s.Resources, s.Resources
	room, transient := s.room[base:base+n], s.Transient[:n]
	in, out = in[:n], out[:n]
	if !inHome && !outHome {
		for r, x := range room {
			if in[r]-out[r] > x {
				return false
			}
		}
		return true
	}
	for r, x := range room {
		if !transient[r] || !inHome {
			x -= in[r]
		}
		if !transient[r] || !outHome {
			x += out[r]
		}
		if x < 0 {
			return false
		}
	}
	return true
}

// shift v to host b; false: that is no move.
func (s *state) shift(v, b int) (m move, ok bool) {
	a, service, home := int(s.at[v]), int(s.Service[v]), int(s.Initial[v])
	if a == b || s.on[service*s.Hosts+b] {
		return m, false
	}
	d := s.demand(v)
	if s.strict && !s.fits(b, d, s.nothing, home == b, false) || s.lacks(service, a, b) > 0 {
		return m, false
	}
	m = move{v: v, w: none, a: a, b: b, atA: s.weigh(a, s.nothing, d, false, home == a), atB: s.weigh(b, d, s.nothing, home == b, false)}
	m.cost = s.going(v, a, b) + s.mostAfter(service, s.further(v, a, b), none, 0)
	s.settle(&m, a, m.atA)
	s.settle(&m, b, m.atB)
	return m, true
}

// replace w by v, and w goes to c, which may be where v comes from; false: that is no move.
func (s *state) replace(v, w, c int) (m move, ok bool) {
	a, b := int(s.at[v]), int(s.at[w])
	sv, sw, homeV, homeW := int(s.Service[v]), int(s.Service[w]), int(s.Initial[v]), int(s.Initial[w])
	if a == b || b == c || sv == sw || s.on[sv*s.Hosts+b] || s.on[sw*s.Hosts+c] {
		return m, false
	}
	dv, dw, left := s.demand(v), s.demand(w), s.nothing
	if a == c {
		left = dv
	}
	if s.strict && (!s.fits(b, dv, dw, homeV == b, homeW == b) || !s.fits(c, dw, left, homeW == c, homeV == c)) ||
		s.lacksBoth(sv, sw, a, b, c) > 0 {
		return m, false
	}
	m = move{v: v, w: w, a: a, b: b, c: c, atB: s.weigh(b, dv, dw, homeV == b, homeW == b), atC: s.weigh(c, dw, left, homeW == c, homeV == c)}
	m.cost = s.going(v, a, b) + s.going(w, b, c) + s.mostAfter(sv, s.further(v, a, b), sw, s.further(w, b, c))
	if a == c {
		m.atA = m.atC
	} else {
		m.atA = s.weigh(a, s.nothing, dv, false, homeV == a)
		s.settle(&m, a, m.atA)
	}
	s.settle(&m, b, m.atB)
	s.settle(&m, c, m.atC)
	return m, true
}

// settle what host h costs more after m.
func (s *state) settle(m *move, h int, e end) {
	m.cost += e.load - s.ended[h].load
	m.over += e.over - s.ended[h].over
}

// make move m, as it was weighed.
func (s *state) make(m move) {
	s.depart(m.v)
	if m.w != none {
		s.depart(m.w)
		s.arrive(m.w, m.c)
		s.ended[m.c] = m.atC
	}
	s.arrive(m.v, m.b)
	s.ended[m.a], s.ended[m.b] = m.atA, m.atB
	s.cost += m.cost
	s.over += m.over
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

// mostAfter is what it costs that one or two services have moved more or less; service2 may
// be none.
func (s *state) mostAfter(service1 int, by1 int32, service2 int, by2 int32) int64 {
	if s.ServiceWeight == 0 || by1 == 0 && by2 == 0 {
		return 0
	}
	s.count(service1, by1)
	most := s.most
	if service2 != none {
		s.count(service2, by2)
		most = s.most
		s.count(service2, -by2)
	}
	s.count(service1, -by1)
	return s.ServiceWeight * int64(most-s.most)
}
