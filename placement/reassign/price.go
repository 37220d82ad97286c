package reassign

// prices of what hosts are overdrawn by. A large VEE gets to where others have yet to make
// room for it only if a host may hold too much for a while. Each resource of each host has a
// price of its own, which rises as long as it is overdrawn and falls while it is not, as the
// multipliers of a Lagrangian relaxation do: so a host that all want to go to becomes dear,
// and the others stay cheap.
type prices struct {
	unit, most []float64 // by resource: the price at markup 1, and the highest that can be counted with
	markup     []float64 // host × resource
	price      []int64   // host × resource; at least 1
	overdrawn  int64     // price of all that hosts are overdrawn by; 0: the placement is feasible
}

// newPrices with every markup at 1. A unit of a resource costs what a unit of load does, times
// how much scarcer the resource is than the most plentiful.
func newPrices(p *Problem) prices {
	unit, most, total := make([]float64, p.Resources), make([]float64, p.Resources), make([]float64, p.Resources)
	for i, c := range p.Capacity {
		unit[i%p.Resources] += float64(c)
	}
	for i, d := range p.Demand {
		total[i%p.Resources] += float64(d)
	}
	plenty, weight := 1., 1.
	for r, c := range unit {
		plenty, weight = max(plenty, c), max(weight, float64(p.LoadWeight[r]))
	}
	for r, c := range unit {
		unit[r] = weight * plenty / max(1, c)
		most[r] = (1 << 60) / (float64(p.Resources) * (2*total[r] + 1))
	}
	s := prices{unit: unit, most: most, markup: make([]float64, p.Hosts*p.Resources), price: make([]int64, p.Hosts*p.Resources)}
	for i := range s.markup {
		s.set(i, 1)
	}
	return s
}

// set the markup of one resource of one host.
func (p *prices) set(i int, markup float64) {
	r := i % len(p.unit)
	p.markup[i] = markup
	p.price[i] = int64(max(1, min(markup*p.unit[r], p.most[r])))
}

// demand the same markup of all hosts.
func (s *state) demand(markup float64) {
	for i := range s.markup {
		s.set(i, markup)
	}
	for h := range s.load {
		s.recount(h)
	}
}

// adapt the markups: times rise what is overdrawn, times fall, but not below low, what is not.
func (s *state) adapt(rise, fall, low float64) {
	for h := range s.load {
		_, _, room, _ := s.rows(h)
		touched := false
		for r, x := range room {
			i := h*s.Resources + r
			m := min(s.markup[i]*rise, forbidden)
			if x >= 0 {
				m = max(s.markup[i]*fall, low)
			}
			if m != s.markup[i] {
				s.set(i, m)
				touched = true
			}
		}
		if touched {
			s.recount(h)
		}
	}
}
