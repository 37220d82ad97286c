package reassign

// move of a VEE v from host a to b. Where w is not none, w leaves b for it and goes to c: to
// a (they change places), or to a third host.
type move struct {
	v, w, a, b, c       int
	cost, price         int64  // by how much they change
	loadA, loadB, loadC burden // of the hosts after it
}

// make move m, as it was weighed.
func (s *state) make(m move) {
	s.leave(m.v)
	if m.w != none {
		s.leave(m.w)
		s.enter(m.w, m.c)
		s.load[m.c] = m.loadC
	}
	s.enter(m.v, m.b)
	s.load[m.b] = m.loadB
	if m.w == none || m.c != m.a {
		s.load[m.a] = m.loadA
	}
	s.cost += m.cost
	s.overdrawn += m.price
}

// going is what it costs more in moves that v goes from a to b, apart from the most moved
// service, and the change in the moves of its service.
func (s *state) going(v, a, b int) (cost int64, further int32) {
	home := int(s.Initial[v])
	row := s.Distance[home*s.Hosts : (home+1)*s.Hosts]
	cost = s.DistanceWeight * (row[b] - row[a])
	switch home {
	case a:
		return cost + s.MoveWeight*s.MoveCost[v], 1
	case b:
		return cost - s.MoveWeight*s.MoveCost[v], -1
	}
	return cost, 0
}

// saving is what the most moved service costs less at best when a VEE of it goes so much
// further.
func (s *state) saving(further int32) int64 { return s.ServiceWeight * int64(max(0, -further)) }
