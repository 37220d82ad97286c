package dvms

import "slices"

// begin to lead the partition in its present state.
func (s *step) begin() {
	s.lead = lead{beat: s.now}
	for _, m := range s.others() {
		s.lead.seen = append(s.lead.seen, sign{node: m, at: s.now})
	}
	if s.Part.State == Solving {
		s.do(Solve{s.Part})
	}
}

// write a new version of the partition and tell the members.
func (s *step) write(state State) {
	s.Part.State = state
	s.Part.Version.Count++
	s.tell(Update{})
}

func (s *step) tell(u Update) {
	s.lead.beat = s.now
	u.Partition = s.Part
	for _, m := range s.others() {
		s.send(m, u)
	}
}

// ask the next node to join.
func (s *step) ask() {
	s.lead.asked, s.lead.wait = "", false
	if s.Part.Reason == Idle && len(s.Part.Members) >= s.p.Most {
		s.dissolve(true)
		return
	}
	next := s.overlay.Next(s.Host, s.Part.Members, s.lead.tried)
	if next == "" {
		s.round()
		return
	}
	s.lead.asked, s.lead.since = next, s.now
	s.send(next, Problem{Partition: s.Part})
}

// round: every node has been asked. The first time the partition is blocked, waits a little
// for others to be free or blocked as well, and asks once more; the second time it gives up.
func (s *step) round() {
	everybody := s.overlay.Next(s.Host, s.Part.Members, nil) == ""
	switch {
	case s.lead.locked != ID{}, s.lead.wait && s.Part.State == Blocked:
	case everybody, s.Part.State == Blocked:
		s.giveUp()
	default:
		s.lead.asked, s.lead.tried, s.lead.tries = "", nil, 0
		s.lead.wait, s.lead.since = true, s.now
		s.write(Blocked)
	}
}

func (s *step) giveUp() {
	if s.Part.Reason != Idle {
		s.do(Escalate{s.Part})
	}
	s.dissolve(true)
}

// dissolve the partition; the leader's word.
func (s *step) dissolve(failed bool) {
	for _, m := range s.others() {
		s.send(m, Dissolve{ID: s.Part.ID, Version: s.Part.Version, Failed: failed})
	}
	if failed {
		s.pause()
	}
	s.free()
}

// willing node: it joins, and leads from now on unless leaders stay.
func (s *step) willing(w Willing) {
	asking := s.Leads() && s.Part.ID == w.ID && (s.Part.State == Growing || s.Part.State == Blocked) && s.lead.locked == ID{}
	switch {
	case s.Leads() && s.Part.ID == w.ID && s.Part.Has(w.From):
		s.send(w.From, Update{Partition: s.Part})
		return
	case !asking:
		s.send(w.From, Gone{ID: w.ID, From: s.Host})
		return
	}
	s.Part.Members = append(slices.Clone(s.Part.Members), w.From)
	s.lead.asked, s.lead.wait, s.lead.tried, s.lead.tries = "", false, nil, 0
	if s.p.Stay {
		s.lead.seen = append(slices.Clone(s.lead.seen), sign{node: w.From, at: s.now})
		s.write(Solving)
		s.do(Solve{s.Part})
		return
	}
	s.Part.Leader = w.From
	s.write(Solving)
	s.news, s.lead = s.now, lead{}
}

// busy: somebody does not join, or does not take what was offered.
func (s *step) busy(b Busy) {
	switch {
	case !s.Leads() || s.Part.ID != b.ID:
	case s.lead.locked != ID{}:
		s.unlock()
	case s.lead.asked == b.From:
		s.lead.tried = append(slices.Clone(s.lead.tried), b.From)
		s.lead.tries = 0
		s.ask()
	}
}

// unanswered: a question was lost, or who was asked, or it is still on its way.
func (s *step) unanswered() {
	if s.p.Stay {
		s.lead.tried = append(slices.Clone(s.lead.tried), s.lead.asked)
		s.ask()
		return
	}
	if s.lead.tries++; s.lead.tries >= s.p.Tries {
		s.dissolve(true)
		return
	}
	s.ask()
}

func (s *step) solved(e Solved) {
	if !s.Leads() || s.Part.ID != e.ID || s.Part.Version != e.Version || s.Part.State != Solving {
		return
	}
	switch e.Outcome {
	case Nothing:
		s.dissolve(false)
	case Planned:
		s.Part.Plan = Version{Term: s.Part.Version.Term, Count: s.Part.Version.Count + 1}
		s.lead.confirm = true
		s.write(Applying)
		s.confirmed()
	default:
		s.write(Growing)
		s.ask()
	}
}

// confirmed: once all members have confirmed that they are there, VEEs may move.
func (s *step) confirmed() {
	if !s.lead.confirm || s.p.keeps(ruleConfirm) &&
		slices.ContainsFunc(s.lead.seen, func(x sign) bool { return x.version != s.Part.Version }) {
		return
	}
	s.lead.confirm, s.lead.applying = false, true
	s.do(Apply{s.Part})
}

func (s *step) here(h Here) {
	if !s.Leads() || s.Part.ID != h.ID {
		return
	}
	i := slices.IndexFunc(s.lead.seen, func(x sign) bool { return x.node == h.From })
	if i < 0 {
		s.send(h.From, Dissolve{ID: s.Part.ID, Version: s.Part.Version})
		return
	}
	s.lead.seen = slices.Clone(s.lead.seen)
	s.lead.seen[i] = sign{node: h.From, at: s.now, version: h.Version}
	s.confirmed()
}

// gone: a member, or what was thought one, is not.
func (s *step) gone(g Gone) {
	switch {
	case s.Part.ID != g.ID:
	case s.Leads():
		if s.Part.Has(g.From) {
			s.drop(g.From)
		}
	case s.Pledged && g.From == s.Part.Leader:
		s.free()
	}
}

// drop a member: the initiator's end is the partition's, any other's makes it smaller.
func (s *step) drop(node string) {
	if node == s.Part.ID.Initiator {
		s.dissolve(true)
		return
	}
	s.send(node, Dissolve{ID: s.Part.ID, Version: s.Part.Version})
	is := func(m string) bool { return m == node }
	s.Part.Members = slices.DeleteFunc(slices.Clone(s.Part.Members), is)
	s.lead.seen = slices.DeleteFunc(slices.Clone(s.lead.seen), func(x sign) bool { return x.node == node })
	switch s.Part.State {
	case Solving:
		s.solveAgain()
	case Applying:
		if s.lead.applying { // what moves now goes on; what the dead had is others' to restart
			s.write(Applying)
			return
		}
		s.lead.confirm = false
		s.solveAgain()
	default:
		s.write(s.Part.State)
	}
}

// solveAgain with the members that are left, if there are any beside the leader.
func (s *step) solveAgain() {
	if len(s.Part.Members) > 1 {
		s.write(Solving)
		s.do(Solve{s.Part})
		return
	}
	s.write(Growing)
	s.ask()
}

// takeOver the lead from a leader that is lost. What it was applying nobody can finish.
func (s *step) takeOver() {
	lost := s.Part.Leader
	s.Part.Leader = s.Host
	if s.p.keeps(ruleTerm) {
		s.Part.Version = Version{Term: s.Part.Version.Term + 1}
	}
	s.Part.Members = slices.DeleteFunc(slices.Clone(s.Part.Members), func(m string) bool { return m == lost })
	was := s.Part.State
	s.Part.State = Growing // begin asks for nothing by itself
	s.begin()
	s.Part.State = was
	s.send(lost, Dissolve{ID: s.Part.ID, Version: s.Part.Version, Failed: true})
	switch was {
	case Applying:
		s.dissolve(true)
	case Solving:
		s.solveAgain()
	default:
		s.write(was)
		s.ask()
	}
}

func (s *step) leaderTick() {
	for _, x := range s.lead.seen {
		if s.now-x.at >= s.p.Silence {
			s.drop(x.node)
			if !s.Leads() {
				return
			}
		}
	}
	if s.now-s.lead.beat >= s.p.Beat {
		s.tell(Update{})
	}
	switch {
	case s.lead.locked != ID{}:
		if s.now >= s.lead.lockedFor {
			s.unlock()
		}
	case s.now-s.lead.since < s.p.Answer:
	case s.lead.wait:
		s.ask()
	case s.lead.asked != "":
		s.unanswered()
	}
}
