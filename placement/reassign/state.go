package reassign

// state is a placement with everything that the search counts in it. A move is first
// weighed, then made (move.go). It may put more on a host than there is room for, which over
// counts; all other constraints hold.
type state struct {
	*Problem
	at     []int32
	guests [][]int32 // by host
	slot   []int32   // of each VEE among its host's guests
	cost   int64

	// Host × resource. What is free of the capacity, with and without what VEEs hold that
	// have left the host, and what is free below the safety capacity; below 0: overdrawn.
	room, free, spare []int64
	ended             []end   // of each host
	over              int64   // what hosts are overdrawn by, weighed
	strict            bool    // a move that overdraws a host is none
	overWeight        []int64 // by resource
	nothing           []int64 // demand of nobody

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
	s := &state{Problem: p, at: append([]int32(nil), p.Initial...), guests: make([][]int32, p.Hosts), slot: make([]int32, p.VEEs), cost: cost,
		room: append([]int64(nil), p.Capacity...), free: append([]int64(nil), p.Capacity...), spare: append([]int64(nil), p.Safety...),
		ended: make([]end, p.Hosts), overWeight: make([]int64, p.Resources), nothing: make([]int64, p.Resources),
		on: make([]bool, p.Services*p.Hosts), inPlace: make([]int32, p.Services*p.Locations), places: make([]int32, p.Services),
		near: make([]int32, p.Services*p.Neighbourhoods), needed: make([][]int32, p.Services),
		moved: make([]int32, p.Services), withMove: make([]int32, p.VEEs+1)}
	for d, on := range p.DependsOn {
		for _, t := range on {
			s.needed[t] = append(s.needed[t], int32(d))
		}
	}
	s.priceOver()
	// All begin at home, moved once more than they have, which arriving takes back.
	for _, service := range p.Service {
		s.moved[service]++
	}
	for _, n := range s.moved {
		s.withMove[n]++
		s.most = max(s.most, n)
	}
	for v := range p.VEEs {
		home := int(p.Initial[v])
		for r, d := range s.demand(v) {
			if p.Transient[r] {
				s.room[home*p.Resources+r] -= d
			}
		}
		s.arrive(v, home)
	}
	for v, h := range at {
		if h != s.at[v] {
			s.depart(v)
		}
	}
	for v, h := range at {
		if h != s.at[v] {
			s.arrive(v, int(h))
		}
	}
	for h := range p.Hosts {
		s.ended[h] = s.weigh(h, s.nothing, s.nothing, false, false)
		s.over += s.ended[h].over
	}
	return s
}

// priceOver weighs what is overdrawn of each resource: a share of what hosts have of it as much
// as the same share of the most plentiful, and of that a unit as much as its load.
func (s *state) priceOver() {
	mean, plenty, weight := make([]float64, s.Resources), 1., int64(1)
	for i, c := range s.Capacity {
		mean[i%s.Resources] += float64(c) / float64(s.Hosts)
	}
	for r, m := range mean {
		plenty, weight = max(plenty, m), max(weight, s.LoadWeight[r])
	}
	for r, m := range mean {
		s.overWeight[r] = max(1, int64(float64(weight)*min(plenty/max(1, m), 1e4)))
	}
}

// demand of VEE v, by resource.
func (s *state) demand(v int) []int64 { return s.Demand[v*s.Resources : (v+1)*s.Resources] }

// depart from where v is, in every count but the costs: it is nowhere until it arrives.
func (s *state) depart(v int) {
	a, home, service, n := int(s.at[v]), int(s.Initial[v]), int(s.Service[v]), s.Resources
	for r, d := range s.demand(v) {
		i := a*n + r
		s.free[i] += d
		s.spare[i] += d
		if !s.Transient[r] || a != home {
			s.room[i] += d
		}
	}
	g := s.guests[a]
	last := g[len(g)-1]
	g[s.slot[v]], s.slot[last] = last, s.slot[v]
	s.guests[a] = g[:len(g)-1]
	if a == home {
		s.count(service, 1)
	}
	s.on[service*s.Hosts+a] = false
	i := service*s.Locations + int(s.Location[a])
	if s.inPlace[i]--; s.inPlace[i] == 0 {
		s.places[service]--
	}
	s.near[service*s.Neighbourhoods+int(s.Nearby[a])]--
}

// arrive at b.
func (s *state) arrive(v, b int) {
	home, service, n := int(s.Initial[v]), int(s.Service[v]), s.Resources
	for r, d := range s.demand(v) {
		i := b*n + r
		s.free[i] -= d
		s.spare[i] -= d
		if !s.Transient[r] || b != home {
			s.room[i] -= d
		}
	}
	s.slot[v] = int32(len(s.guests[b]))
	s.guests[b] = append(s.guests[b], int32(v))
	s.at[v] = int32(b)
	if b == home {
		s.count(service, -1)
	}
	s.on[service*s.Hosts+b] = true
	i := service*s.Locations + int(s.Location[b])
	if s.inPlace[i]++; s.inPlace[i] == 1 {
		s.places[service]++
	}
	s.near[service*s.Neighbourhoods+int(s.Nearby[b])]++
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

// lacks is by how many more (or fewer) locations and dependencies the constraints of services
// are broken when a VEE of service goes from host a to b.
func (s *state) lacks(service, a, b int) (more int64) {
	if l, k := s.Location[a], s.Location[b]; l != k && s.SpreadMin[service] > 0 {
		was := s.places[service]
		places := was
		if s.inPlace[service*s.Locations+int(l)] == 1 {
			places--
		}
		if s.inPlace[service*s.Locations+int(k)] == 0 {
			places++
		}
		more += int64(max(0, s.SpreadMin[service]-places) - max(0, s.SpreadMin[service]-was))
	}
	n, m := int(s.Nearby[a]), int(s.Nearby[b])
	if n == m {
		return more
	}
	if s.near[service*s.Neighbourhoods+m] == 0 {
		more += s.absent(s.DependsOn[service], service, m) - s.present(s.needed[service], service, m)
	}
	if s.near[service*s.Neighbourhoods+n] == 1 {
		more += s.present(s.needed[service], service, n) - s.absent(s.DependsOn[service], service, n)
	}
	return more
}

// lacksBoth is lacks for two services, of which one goes from a to b, the other from b to c.
func (s *state) lacksBoth(sv, sw, a, b, c int) int64 {
	more := s.lacks(sv, a, b)
	if s.Nearby[a] == s.Nearby[b] || len(s.DependsOn[sw])+len(s.needed[sw]) == 0 {
		return more + s.lacks(sw, b, c)
	}
	n, m := sv*s.Neighbourhoods+int(s.Nearby[a]), sv*s.Neighbourhoods+int(s.Nearby[b])
	s.near[n]--
	s.near[m]++
	more += s.lacks(sw, b, c)
	s.near[n]++
	s.near[m]--
	return more
}

// absent counts those of services, but for one, that are not in neighbourhood n.
func (s *state) absent(services []int32, but, n int) (count int64) {
	for _, d := range services {
		if int(d) != but && s.near[int(d)*s.Neighbourhoods+n] == 0 {
			count++
		}
	}
	return count
}

// present counts those of services, but for one, that are in neighbourhood n.
func (s *state) present(services []int32, but, n int) (count int64) {
	for _, d := range services {
		if int(d) != but && s.near[int(d)*s.Neighbourhoods+n] > 0 {
			count++
		}
	}
	return count
}
