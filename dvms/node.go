package dvms

import (
	"hash/fnv"
	"slices"
)

// Node is one host's part. The zero value with a Host is free.
type Node struct {
	Host   string
	Number uint64 // of the last partition that it began; see ID

	// Part is the partition that the node believes it is in; the zero ID: none. Pledged: it
	// has promised itself to it and waits for the leader's word.
	Part    Partition
	Pledged bool

	reserved bool
	news     Time // last word of the leader, or the promise
	rest     Time // begins no partition before

	lead lead // while it leads Part
}

// lead is what a leader keeps besides the partition.
type lead struct {
	asked string // the node that was asked to join; empty: nobody is waited for
	wait  bool   // for the second round to begin
	since Time   // it asked, or waits
	tries int
	tried []string // that said no in this round

	seen      []sign // of each other member
	beat      Time   // of the last
	confirm   bool   // Apply waits until every member is there in this version
	applying  bool   // Apply has been asked for
	locked    ID     // offered to this partition
	lockedFor Time
}

type sign struct {
	node    string
	at      Time
	version Version
}

// In tells whether the node is in a partition, or promised to one.
func (n Node) In() bool { return n.Part.ID != ID{} }

// Leads tells whether it leads one.
func (n Node) Leads() bool { return n.In() && !n.Pledged && n.Part.Leader == n.Host }

// Free tells whether it would take part in a partition.
func (n Node) Free() bool { return !n.In() && !n.reserved }

// Allows tells whether a VEE may leave or come under the plan of a partition.
func (n Node) Allows(id ID, plan Version) bool {
	return n.In() && !n.Pledged && n.Part.ID == id && n.Part.State == Applying && n.Part.Plan == plan
}

// Step of a node at now on its own clock. Slices of the old state are not written to.
func (n Node) Step(p Protocol, o Overlay, now Time, e Event) (Node, []Action) {
	s := step{Node: n, p: p, overlay: o, now: now}
	switch e := e.(type) {
	case Violated:
		s.violated(e.Reason)
	case Calm:
		s.calm()
	case Suspect:
		s.suspect(e.Node)
	case Tick:
		s.tick()
	case Reserved:
		s.reserved = e.By
	case Solved:
		s.solved(e)
	case Applied:
		if s.Leads() && s.Part.ID == e.ID && s.lead.applying {
			s.dissolve(e.Failed)
		}
	case Problem:
		s.problem(e)
	case Update:
		s.update(e)
	case Dissolve:
		s.dissolved(e)
	case Meet:
		s.meet(e)
	case Offer:
		s.offer(e)
	case Willing:
		s.willing(e)
	case Busy:
		s.busy(e)
	case Round:
		if s.Leads() && s.Part.ID == e.ID && s.Part.Version == e.Version {
			s.round()
		}
	case Here:
		s.here(e)
	case Gone:
		s.gone(e)
	case Over:
		if s.Leads() && s.Part.ID == e.ID {
			s.over()
		}
	}
	return s.Node, s.actions
}

// Deadline is when a Tick is due; false: none is.
func (n Node) Deadline(p Protocol) (Time, bool) {
	switch {
	case !n.In():
		return 0, false
	case !n.Leads():
		return n.news + n.patience(p), true
	}
	at := n.lead.beat + p.Beat
	if n.lead.asked != "" || n.lead.wait {
		at = min(at, n.lead.since+p.Answer)
	}
	if (n.lead.locked != ID{}) {
		at = min(at, n.lead.lockedFor)
	}
	return at, true
}

// patience of a member with its leader. The initiator is the first to act; the others give
// it the time to take the lead.
func (n Node) patience(p Protocol) Time {
	switch {
	case n.Pledged || n.Part.ID.Initiator == n.Host:
		return p.Silence
	default:
		return 2 * p.Silence
	}
}

// step is a Node on its way from one state to the next.
type step struct {
	Node
	p       Protocol
	overlay Overlay
	now     Time
	actions []Action
}

func (s *step) do(a Action) { s.actions = append(s.actions, a) }

func (s *step) send(to string, m Message) {
	if to != s.Host && to != "" {
		s.do(Send{To: to, Message: m})
	}
}

// free leaves whatever partition the node is in.
func (s *step) free() {
	s.Part, s.Pledged, s.lead = Partition{}, false, lead{}
}

// pause before the next try. Two neighbours that failed together do not meet again.
func (s *step) pause() {
	h := fnv.New32a()
	h.Write([]byte(s.Host))
	s.rest = s.now + s.p.Rest + s.p.Rest*Time(h.Sum32()%16)/16
}

func (s *step) violated(r Reason) {
	if !s.Free() || s.now < s.rest {
		return
	}
	s.Number++
	s.Part = Partition{ID: ID{s.Host, s.Number}, Reason: r, Version: Version{Count: 1}, Leader: s.Host,
		Members: []string{s.Host}, State: Growing}
	s.lead = lead{beat: s.now}
	s.ask()
}

func (s *step) calm() {
	switch {
	case s.Part.ID.Initiator != s.Host || s.Pledged:
	case s.Leads():
		s.over()
	default:
		s.send(s.Part.Leader, Over{ID: s.Part.ID})
	}
}

// over: nothing is left to be solved, unless it has been.
func (s *step) over() {
	if s.Part.State == Growing || s.Part.State == Blocked {
		s.dissolve(false)
	}
}

func (s *step) suspect(node string) {
	switch {
	case !s.In() || node == s.Host:
	case s.Leads() && s.Part.Has(node):
		s.drop(node)
	case s.Leads() && s.lead.asked == node:
		s.unanswered()
	case node != s.Part.Leader:
	case s.Pledged:
		s.free()
	case s.Part.ID.Initiator == s.Host:
		s.takeOver()
	}
}

func (s *step) tick() {
	switch {
	case !s.In():
	case s.Leads():
		s.leaderTick()
	case s.now-s.news < s.patience(s.p) || !s.p.keeps(ruleLeave):
	case !s.Pledged && s.Part.ID.Initiator == s.Host:
		s.takeOver()
	default:
		s.send(s.Part.Leader, Gone{ID: s.Part.ID, From: s.Host})
		s.free()
	}
}

// problem of a partition that looks for one more node.
func (s *step) problem(m Problem) {
	p := m.Partition
	switch {
	case s.Part.ID == p.ID && !s.Pledged && (s.Host == s.Part.Leader || s.Host == p.ID.Initiator):
		// Its initiator, or its leader, sees it again: it has gone round.
		if s.Leads() && p.Version == s.Part.Version {
			s.round()
		} else if !s.Leads() {
			s.send(p.Leader, Round{ID: p.ID, Version: p.Version})
		}
	case s.Part.ID == p.ID && s.Pledged, s.Free():
		s.Part, s.Pledged, s.news = p, true, s.now
		s.send(p.Leader, Willing{ID: p.ID, From: s.Host})
	case s.In() && !s.Pledged && s.Part.ID != p.ID && s.Part.State == Blocked && p.State == Blocked:
		if s.Leads() {
			s.meet(Meet{Partition: p})
		} else {
			s.send(s.Part.Leader, Meet{Partition: p})
		}
	default:
		s.refuse(m)
	}
}

// refuse to join: the problem goes on along the ring, or the leader looks elsewhere.
func (s *step) refuse(m Problem) {
	p := m.Partition
	if s.p.Stay {
		s.send(p.Leader, Busy{ID: p.ID, From: s.Host})
		return
	}
	if m.Hops++; m.Hops > s.p.Hops {
		return
	}
	var own []string
	if s.Part.ID != p.ID {
		own = s.Part.Members
	}
	if next := s.overlay.Next(s.Host, own, nil); next != "" {
		s.send(next, m)
	}
}

// update by the leader of a partition.
func (s *step) update(u Update) {
	p := u.Partition
	switch {
	case !p.Has(s.Host):
		if s.Part.ID == p.ID && p.Version.Newer(s.Part.Version) {
			s.free()
		}
		return
	case s.Part.ID == p.ID && (s.Pledged || p.Version.Newer(s.Part.Version) || !s.p.keeps(ruleVersion)):
	case s.Part.ID == p.ID && p.Version == s.Part.Version && s.Host != s.Part.Leader:
	case s.In() && !s.Pledged && s.Part.ID == u.Absorbed && s.Part.Version == u.Offered:
	case s.Part.ID == p.ID:
		return // an older version, or an echo of our own
	default:
		s.send(p.Leader, Gone{ID: p.ID, From: s.Host})
		return
	}
	led := s.Leads() && s.Part.ID == p.ID
	s.Part, s.Pledged, s.news = p, false, s.now
	switch {
	case p.Leader != s.Host:
		s.lead = lead{}
		s.send(p.Leader, Here{ID: p.ID, Version: p.Version, From: s.Host})
	case !led:
		s.begin()
	}
}

func (s *step) dissolved(d Dissolve) {
	if s.Part.ID != d.ID || !s.Pledged && d.Version.Term < s.Part.Version.Term {
		return
	}
	if d.Failed { // the problems of all members were solved together
		s.pause()
	}
	s.free()
}

// others are the members without this one.
func (s *step) others() []string {
	return slices.DeleteFunc(slices.Clone(s.Part.Members), func(m string) bool { return m == s.Host })
}
