package reassign

// moves counts how many VEEs of each service are away from their first hosts, for the cost of
// the service that has moved most.
type moves struct {
	moved    []int32 // by service
	withMove []int32 // by number of moves: services with so many
	most     int32   // moves of any service
}

// newMoves counts each VEE as away; entering its first host takes that back.
func newMoves(p *Problem) moves {
	m := moves{moved: make([]int32, p.Services), withMove: make([]int32, p.VEEs+1)}
	for _, service := range p.Service {
		m.moved[service]++
	}
	for _, n := range m.moved {
		m.withMove[n]++
		m.most = max(m.most, n)
	}
	return m
}

// count a move more (or less) of a service.
func (m *moves) count(service int32, by int32) {
	m.withMove[m.moved[service]]--
	m.moved[service] += by
	m.withMove[m.moved[service]]++
	m.most = max(m.most, m.moved[service])
	for m.most > 0 && m.withMove[m.most] == 0 {
		m.most--
	}
}

// more is by how much the most moves of any service grow when two services (or one twice)
// have moved by so many more.
func (m *moves) more(service1 int32, by1 int32, service2 int32, by2 int32) int64 {
	if by1 == 0 && by2 == 0 {
		return 0
	}
	was := m.most
	m.count(service1, by1)
	m.count(service2, by2)
	is := m.most
	m.count(service2, -by2)
	m.count(service1, -by1)
	return int64(is - was)
}
