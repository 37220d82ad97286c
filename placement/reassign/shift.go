package reassign

// shift v to host b. False: that is no move, or it costs more than limit.
func (s *state) shift(v, b int, limit int64) (m move, ok bool) {
	a, service := int(s.at[v]), s.Service[v]
	if a == b {
		return m, false
	}
	cost, further := s.going(v, a, b)
	relief, most := s.reliefOf(v), limit+s.saving(further)
	if len(s.Balances) == 0 && cost-relief.sum() > most {
		return m, false // what comes to b can only add
	}
	if s.on(service, b) != none {
		return m, false
	}
	m = move{v: v, w: none, a: a, b: b, loadA: s.load[a].less(relief), loadB: s.with(b, v)}
	m.cost = cost - relief.cost + m.loadB.cost - s.load[b].cost
	m.price = m.loadB.price - s.load[b].price - relief.price
	if m.cost+m.price > most || s.lacks(service, a, b) > 0 {
		return m, false
	}
	m.cost += s.ServiceWeight * s.more(service, further, service, 0)
	return m, m.cost+m.price <= limit
}
