package reassign

// replace w by v, and w goes to c: where v comes from (they change places), or to a third
// host, often its first one. False: that is no move, or it costs more than limit. (Swap and
// chain of Gavranović, Buljubašić and Demirović, "Variable neighborhood search for Google
// machine reassignment problem", 2012.)
//
// Both may be of one service: where a service needs many locations, or has a VEE on almost
// every host, its VEEs can do little else.
func (s *state) replace(v, w, c int, limit int64) (m move, ok bool) {
	a, b := int(s.at[v]), int(s.at[w])
	if a == b || b == c {
		return m, false
	}
	cost, furtherV := s.going(v, a, b)
	costW, furtherW := s.going(w, b, c)
	cost += costW
	most := limit + s.saving(furtherV) + s.saving(furtherW)
	if len(s.Balances) == 0 && cost-s.reliefOf(v).sum()-s.reliefOf(w).sum() > most {
		return m, false // what comes to the hosts can only add
	}
	sv, sw := s.Service[v], s.Service[w]
	if sv != sw && s.on(sv, b) != none {
		return m, false
	}
	if u := s.on(sw, c); u != none && u != v {
		return m, false
	}
	m = move{v: v, w: w, a: a, b: b, c: c}
	if a == c {
		m.loadC = s.instead(a, w, v)
	} else {
		relief := s.reliefOf(v)
		m.loadA, m.loadC = s.load[a].less(relief), s.with(c, w)
		cost -= relief.cost
		m.price = -relief.price
	}
	m.cost = cost + m.loadC.cost - s.load[c].cost
	m.price += m.loadC.price - s.load[c].price
	if m.cost+m.price-s.load[b].sum() > most {
		return m, false
	}
	m.loadB = s.instead(b, v, w)
	m.cost += m.loadB.cost - s.load[b].cost
	m.price += m.loadB.price - s.load[b].price
	if m.cost+m.price > most || !s.allow(sv, sw, a, b, c) {
		return m, false
	}
	m.cost += s.ServiceWeight * s.more(sv, furtherV, sw, furtherW)
	return m, m.cost+m.price <= limit
}
