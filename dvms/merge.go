package dvms

import "slices"

// Two partitions that are blocked have too little each and stand in each other's way. The
// one whose ID comes later offers itself, locked, and the earlier one absorbs it: a total
// order, in which nobody waits for somebody that waits for it.

// meet another blocked partition.
func (s *step) meet(m Meet) {
	p := m.Partition
	able := s.Leads() && s.Part.State == Blocked && s.lead.locked == ID{} && s.Part.ID != p.ID
	switch {
	case !able && m.Back:
	case !able:
		s.refuse(Problem{Partition: p})
	case p.ID.Before(s.Part.ID):
		s.lead.asked, s.lead.wait = "", false
		s.lead.locked, s.lead.lockedFor = p.ID, s.now+s.p.Answer
		s.send(p.Leader, Offer{Partition: s.Part, To: p.ID})
	default:
		s.send(p.Leader, Meet{Partition: s.Part, Back: true})
	}
}

// offer of a later partition: it comes over as a whole, and the union is solved.
func (s *step) offer(o Offer) {
	q := o.Partition
	idle := s.Part.State == Blocked || s.Part.State == Growing
	if !s.Leads() || s.Part.ID != o.To || !idle || s.lead.locked != (ID{}) {
		s.send(q.Leader, Busy{ID: q.ID, From: s.Host})
		return
	}
	s.Part.Members = slices.Clone(s.Part.Members)
	s.lead.seen = slices.Clone(s.lead.seen)
	for _, m := range q.Members {
		if !s.Part.Has(m) {
			s.Part.Members = append(s.Part.Members, m)
			s.lead.seen = append(s.lead.seen, sign{node: m, at: s.now})
		}
	}
	s.lead.asked, s.lead.wait, s.lead.tried, s.lead.tries = "", false, nil, 0
	s.Part.State = Solving
	s.Part.Version.Count++
	s.tell(Update{Absorbed: q.ID, Offered: q.Version})
	s.do(Solve{s.Part})
}

// unlock what nobody took, and go on asking. The new version keeps a late absorption from
// taking members that have heard of it.
func (s *step) unlock() {
	s.lead.locked = ID{}
	s.write(Blocked)
	s.ask()
}
