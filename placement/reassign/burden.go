package reassign

// burden of a host: its load and balance cost, and the price of what is overdrawn there. Most
// of the search's time is spent here, so the four ways to count it are written out.
type burden struct{ cost, price int64 }

func (b burden) less(c burden) burden { return burden{b.cost - c.cost, b.price - c.price} }

func (b burden) sum() int64 { return b.cost + b.price }

// rows of host h: what it has, and what it costs that it has not.
func (s *state) rows(h int) (spare, weight, room, price []int64) {
	i, j, n := h*s.width, h*s.Resources, s.Resources
	return s.spare[i : i+s.width], s.weight[:s.width], s.room[i : i+n], s.price[j : j+n]
}

// alone is the burden of host h as it is.
func (s *state) alone(h int) (e burden) {
	spare, weight, room, price := s.rows(h)
	weight, price = weight[:len(spare)], price[:len(room)]
	for r, x := range spare {
		e.cost += weight[r] * max(0, -x)
	}
	for r, x := range room {
		e.price += price[r] * max(0, -x)
	}
	return e
}

// with is the burden of host h once v has come.
func (s *state) with(h, v int) (e burden) {
	spare, weight, room, price := s.rows(h)
	weight, price = weight[:len(spare)], price[:len(room)]
	in, takes := s.needsOf(v)[:len(spare)], s.takes(v, h)[:len(room)]
	for r, x := range spare {
		e.cost += weight[r] * max(0, in[r]-x)
	}
	for r, x := range room {
		e.price += price[r] * max(0, takes[r]-x)
	}
	return e
}

// without is the burden of host h once v has left.
func (s *state) without(h, v int) (e burden) {
	spare, weight, room, price := s.rows(h)
	weight, price = weight[:len(spare)], price[:len(room)]
	out, gives := s.needsOf(v)[:len(spare)], s.takes(v, h)[:len(room)]
	for r, x := range spare {
		e.cost += weight[r] * max(0, -out[r]-x)
	}
	for r, x := range room {
		e.price += price[r] * max(0, -gives[r]-x)
	}
	return e
}

// instead is the burden of host h once v has come and w has left.
func (s *state) instead(h, v, w int) (e burden) {
	spare, weight, room, price := s.rows(h)
	weight, price = weight[:len(spare)], price[:len(room)]
	in, takes := s.needsOf(v)[:len(spare)], s.takes(v, h)[:len(room)]
	out, gives := s.needsOf(w)[:len(spare)], s.takes(w, h)[:len(room)]
	for r, x := range spare {
		e.cost += weight[r] * max(0, in[r]-out[r]-x)
	}
	for r, x := range room {
		e.price += price[r] * max(0, takes[r]-gives[r]-x)
	}
	return e
}

// reliefOf v: by how much its host is relieved without it (burdened, where that upsets a
// balance).
func (s *state) reliefOf(v int) burden {
	a := s.at[v]
	if s.reliefAt[v] != s.changed[a] {
		s.reliefAt[v] = s.changed[a]
		s.relief[v] = s.load[a].less(s.without(int(a), v))
	}
	return s.relief[v]
}
