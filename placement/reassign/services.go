package reassign

// services counts where the VEEs of services are, and keeps their constraints: distinct
// hosts, enough locations, dependencies within a neighbourhood.
type services struct {
	p *Problem
	// who of a service is on a host (service × host, in rows for the services of more than
	// one VEE alone), or none.
	who []int32
	row []int32 // of each service in who, times Hosts, or none

	free    []bool    // by service: neither locations nor dependencies bind it
	inPlace []int32   // service × location: VEEs
	places  []int32   // by service: locations with a VEE
	near    []int32   // service × neighbourhood: VEEs
	needed  [][]int32 // by service: those that depend on it
}

const none = -1

func newServices(p *Problem) services {
	s := services{p: p, row: make([]int32, p.Services), free: make([]bool, p.Services), inPlace: make([]int32, p.Services*p.Locations),
		places: make([]int32, p.Services), near: make([]int32, p.Services*p.Neighbourhoods), needed: make([][]int32, p.Services)}
	for d, on := range p.DependsOn {
		for _, t := range on {
			s.needed[t] = append(s.needed[t], int32(d))
		}
	}
	size := make([]int, p.Services)
	for _, t := range p.Service {
		size[t]++
	}
	rows := int32(0)
	for t := range s.row {
		s.free[t] = p.SpreadMin[t] <= 1 && len(p.DependsOn[t])+len(s.needed[t]) == 0
		s.row[t] = none
		if size[t] > 1 {
			s.row[t] = rows * int32(p.Hosts)
			rows++
		}
	}
	s.who = make([]int32, int(rows)*p.Hosts)
	for i := range s.who {
		s.who[i] = none
	}
	return s
}

// on is the VEE of a service on host h, or none. Services of one VEE are not asked for: it
// is none.
func (s *services) on(service int32, h int) int {
	row := s.row[service]
	if row == none {
		return none
	}
	return int(s.who[int(row)+h])
}

func (s *services) leave(service int32, h int) {
	if row := s.row[service]; row != none {
		s.who[int(row)+h] = none
	}
	s.drop(service, h)
}

func (s *services) enter(service int32, h int, v int32) {
	if row := s.row[service]; row != none {
		s.who[int(row)+h] = v
	}
	s.add(service, h)
}

// drop a VEE of service at host h from the counts.
func (s *services) drop(service int32, h int) {
	i := int(service)*s.p.Locations + int(s.p.Location[h])
	if s.inPlace[i]--; s.inPlace[i] == 0 {
		s.places[service]--
	}
	s.near[int(service)*s.p.Neighbourhoods+int(s.p.Nearby[h])]--
}

// add one.
func (s *services) add(service int32, h int) {
	i := int(service)*s.p.Locations + int(s.p.Location[h])
	if s.inPlace[i]++; s.inPlace[i] == 1 {
		s.places[service]++
	}
	s.near[int(service)*s.p.Neighbourhoods+int(s.p.Nearby[h])]++
}

// lacks is by how many more (or fewer) locations and dependencies the constraints of services
// are broken when a VEE of service goes from host a to b.
func (s *services) lacks(service int32, a, b int) (more int) {
	if s.free[service] {
		return 0
	}
	p, t := s.p, int(service)
	if l, k := p.Location[a], p.Location[b]; l != k && p.SpreadMin[t] > 1 {
		was := s.places[t]
		places := was
		if s.inPlace[t*p.Locations+int(l)] == 1 {
			places--
		}
		if s.inPlace[t*p.Locations+int(k)] == 0 {
			places++
		}
		more += int(max(0, p.SpreadMin[t]-places) - max(0, p.SpreadMin[t]-was))
	}
	n, m := int(p.Nearby[a]), int(p.Nearby[b])
	if n == m {
		return more
	}
	if s.near[t*p.Neighbourhoods+m] == 0 {
		more += s.absent(p.DependsOn[t], t, m) - s.present(s.needed[t], t, m)
	}
	if s.near[t*p.Neighbourhoods+n] == 1 {
		more += s.present(s.needed[t], t, n) - s.absent(p.DependsOn[t], t, n)
	}
	return more
}

// allow tells whether all constraints hold once a VEE of service1 has gone from host a to b,
// and one of service2 from b to c, which may be a.
func (s *services) allow(service1, service2 int32, a, b, c int) bool {
	if service1 == service2 {
		return a == c || s.lacks(service1, a, c) <= 0
	}
	more := s.lacks(service1, a, b)
	if s.free[service1] || s.free[service2] || s.p.Nearby[a] == s.p.Nearby[b] {
		return more+s.lacks(service2, b, c) <= 0
	}
	s.drop(service1, a)
	s.add(service1, b)
	more += s.lacks(service2, b, c)
	s.drop(service1, b)
	s.add(service1, a)
	return more <= 0
}

// absent counts those of services, but for one, that are not in neighbourhood n.
func (s *services) absent(services []int32, but, n int) (count int) {
	for _, d := range services {
		if int(d) != but && s.near[int(d)*s.p.Neighbourhoods+n] == 0 {
			count++
		}
	}
	return count
}

// present counts those of services, but for one, that are in neighbourhood n.
func (s *services) present(services []int32, but, n int) (count int) {
	for _, d := range services {
		if int(d) != but && s.near[int(d)*s.p.Neighbourhoods+n] > 0 {
			count++
		}
	}
	return count
}
