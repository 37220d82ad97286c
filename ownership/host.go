package ownership

import (
	"slices"

	"github.com/reservoir-cloud/reservoir/vee"
)

// HoldState is what a host has to do with a VEE.
type HoldState string

// States. Free: nothing, and everything up to the epoch is refused. Held: it is ours.
// Given: stopped and given to another host, no word back yet. Offered: a partner site has
// given it to us, our own log has not said yes yet.
const (
	Free    HoldState = "free"
	Held    HoldState = "held"
	Given   HoldState = "given"
	Offered HoldState = "offered"
)

// Hold is what a host remembers of a VEE.
type Hold struct {
	VEE   vee.ID    `json:"vee"`
	Epoch vee.Epoch `json:"epoch"` // the newest obeyed: older ones are refused for ever
	State HoldState `json:"state"`
	Taken vee.Epoch `json:"taken"`        // the newest under which it was Held or Offered
	To    string    `json:"to,omitempty"` // whom it was Given to
	// Foreign: To is at a partner site. Door is that of the ticket, given or offered.
	Foreign bool   `json:"foreign,omitempty"`
	Door    uint64 `json:"door,omitempty"`
}

// WitnessSet is who speaks for the site when its control plane is silent.
type WitnessSet struct {
	Config  uint64   `json:"config"` // grows with each change
	Members []string `json:"members"`
}

// leases reports whether guests are under lease: with fewer than three witnesses nobody
// is given away without a fence, and so nobody is killed. A host that has not been told a
// set yet behaves as if there were one, and may run nothing.
func (w WitnessSet) leases() bool { return w.Config == 0 || len(w.Members) >= 3 }

// majority reports whether n members are one.
func (w WitnessSet) majority(p Protocol, n int) bool {
	if !p.keeps(ruleMajority) {
		return n >= len(w.Members)/2
	}
	return n > len(w.Members)/2
}

// Disk is what a host keeps through crashes of its agent and of the machine.
type Disk struct {
	Generation uint64     `json:"generation"` // newest seen of the site's log; older is refused
	Witnesses  WitnessSet `json:"witnesses"`
	// Upkeep counts the changes between maintenance and not: while it is odd the host's guard
	// is unarmed, and nothing of the host's is given away.
	Upkeep  uint64   `json:"upkeep,omitempty"`
	Members []string `json:"members,omitempty"`
	Holds   []Hold   `json:"holds,omitempty"`
}

// Armed reports whether guests are under lease here.
func (d Disk) Armed() bool { return d.Witnesses.leases() && d.Upkeep%2 == 0 }

// Guest is a guest's process. Running: its vCPUs may run.
type Guest struct {
	VEE     vee.ID
	Running bool
}

// Guard is the killer process's memory. It survives the agent and not the machine.
type Guard struct {
	Boot     uint64 // of the machine
	Armed    bool   // false: no lease is needed here (too few witnesses)
	Deadline Time
	Guests   []Guest
}

// Expired reports whether the guard kills, or has killed, what it guards.
func (g Guard) Expired(now Time) bool { return g.Armed && now >= g.Deadline }

// Tick kills the guests whose deadline has passed. It is all that the guard decides.
func (g Guard) Tick(now Time) Guard {
	if g.Expired(now) {
		g.Guests = nil
	}
	return g
}

// Host is one machine: its agent, its guard, and its part as a witness. Machines without
// guests are hosts that nothing is assigned to.
type Host struct {
	ID    string
	Disk  Disk
	Guard Guard

	// What follows is lost with the agent.
	echo   Nonce
	heard  Time     // last answer that was not silent, or the agent's start
	asked  Time     // of the question that is open
	words  []string // witnesses that answered it
	export []Verdict
	seals  []Hold // only without ruleSealDurable
}

// Events of a host beside messages.
type (
	// RenewDue and AskDue are timers: RenewDue fires every Timings.Renew, AskDue with it
	// while answers are missing.
	RenewDue struct{}
	AskDue   struct{}
	// Give starts or repeats the handover of a VEE that runs here to another host.
	Give struct {
		VEE     vee.ID
		To      string
		Foreign bool
	}
	// GuestGone: a guest's process ended by itself or by the guard.
	GuestGone struct{ VEE vee.ID }
	// AgentStarted and Booted come first after a start of the agent or of the machine; a new
	// host begins with Booted.
	AgentStarted struct{}
	Booted       struct{}
)

// Step of a host at now on its own clock. The state is changed as if every action had
// succeeded. Slices of the old state are not written to.
func (h Host) Step(p Protocol, now Time, e Event) (Host, []Action) {
	h.Guard = h.Guard.Tick(now)
	s := hostStep{Host: h, p: p, now: now}
	switch e := e.(type) {
	case RenewDue:
		s.send("", s.renew())
	case AskDue:
		s.ask()
	case Answer:
		s.answer(e)
	case Ask:
		if now-s.heard >= p.LostAfter {
			s.send(e.Host, Lost{Witness: s.ID, Host: e.Host, Boot: e.Boot, Asked: e.Sent})
		}
	case Lost:
		s.lost(e)
	case Give:
		s.give(e)
	case Ticket:
		s.ticket(e)
	case Void:
		s.void(e)
	case GuestGone:
		s.Guard.Guests = without(s.Guard.Guests, e.VEE)
	case AgentStarted:
		s.Host = Host{ID: h.ID, Disk: h.Disk, Guard: h.Guard, heard: now}
	case Booted:
		s.Host = Host{ID: h.ID, Disk: h.Disk, heard: now,
			Guard: Guard{Boot: h.Guard.Boot + 1, Armed: h.Disk.Armed(), Deadline: now}}
	}
	return s.Host, s.actions
}

// hostStep is a Host on its way from one state to the next.
type hostStep struct {
	Host
	p       Protocol
	now     Time
	actions []Action
}

func (s *hostStep) do(a Action)               { s.actions = append(s.actions, a) }
func (s *hostStep) send(to string, m Message) { s.do(Send{To: to, Message: m}) }

// Hold of a VEE; the zero epoch and Free for one it has never heard of.
func (h Host) Hold(id vee.ID) Hold {
	for _, k := range h.seals {
		if k.VEE == id {
			return k
		}
	}
	for _, k := range h.Disk.Holds {
		if k.VEE == id {
			return k
		}
	}
	return Hold{VEE: id, State: Free}
}

// Running reports whether the VEE's vCPUs run here.
func (h Host) Running(id vee.ID) bool {
	return slices.Contains(h.Guard.Guests, Guest{VEE: id, Running: true})
}

func (s *hostStep) keep(k Hold) {
	if k.State == Held || k.State == Offered {
		k.Taken = k.Epoch
	}
	holds := make([]Hold, 0, len(s.Disk.Holds)+1)
	for _, o := range s.Disk.Holds {
		if o.VEE != k.VEE {
			holds = append(holds, o)
		}
	}
	s.Disk.Holds = append(holds, k)
	s.seals = nil
	s.do(Persist{s.Disk})
}

// free lets go of a VEE and refuses all that is older than epoch from now on. The process
// ends before the promise is made.
func (s *hostStep) free(k Hold, epoch vee.Epoch, seal bool) {
	if slices.ContainsFunc(s.Guard.Guests, func(g Guest) bool { return g.VEE == k.VEE }) {
		s.do(Stop{VEE: k.VEE, Kill: true})
		s.Guard.Guests = without(s.Guard.Guests, k.VEE)
	}
	k = Hold{VEE: k.VEE, Epoch: epoch, State: Free, Taken: k.Taken}
	if seal && !s.p.keeps(ruleSealDurable) {
		s.seals = []Hold{k}
		return
	}
	s.keep(k)
}

// run a guest whose right to run has been established.
func (s *hostStep) run(k Hold) {
	s.Guard.Guests = append(without(s.Guard.Guests, k.VEE), Guest{VEE: k.VEE, Running: true})
	s.do(Run{VEE: k.VEE, Epoch: k.Epoch})
}

func (s *hostStep) renew() Renew {
	r := Renew{Host: s.ID, Boot: s.Guard.Boot, Sent: s.now, Echo: s.echo,
		Witnesses: s.Disk.Witnesses.Config, Upkeep: s.Disk.Upkeep, Members: s.Disk.Members}
	for _, k := range s.Disk.Holds {
		k = s.Hold(k.VEE)
		r.Holds = append(r.Holds, Holding{VEE: k.VEE, Epoch: k.Epoch, State: k.State, To: k.To, Running: s.Running(k.VEE), Door: k.Door})
	}
	for _, k := range s.seals {
		if len(s.Disk.Holds) == 0 {
			r.Holds = append(r.Holds, Holding{VEE: k.VEE, Epoch: k.Epoch, State: k.State})
		}
	}
	return r
}

// answer of the control plane. Seals and losses go to disk before the lease is extended, so
// that no host lives on without them.
func (s *hostStep) answer(a Answer) {
	if a.Boot != s.Guard.Boot || a.Generation < s.Disk.Generation && s.p.keeps(ruleOldGeneration) {
		return
	}
	if a.Generation > s.Disk.Generation {
		s.Disk.Generation = a.Generation
		s.do(Persist{s.Disk})
	}
	s.echo = a.Nonce
	if !a.Nonce.Silent && (a.Vouch || s.p.keeps(ruleHeard)) {
		s.heard = s.now
	}
	if !a.Vouch {
		return
	}
	if a.Witnesses.Config > s.Disk.Witnesses.Config || a.Upkeep > s.Disk.Upkeep {
		if a.Witnesses.Config > s.Disk.Witnesses.Config {
			s.Disk.Witnesses = a.Witnesses
			s.words = nil
		}
		s.Disk.Upkeep = max(s.Disk.Upkeep, a.Upkeep)
		s.Guard.Armed = s.Disk.Armed()
		s.do(Persist{s.Disk})
	}
	for _, v := range a.Verdicts {
		k := s.Hold(v.VEE)
		switch {
		case v.Word == Seal && !s.Running(v.VEE) && k.Epoch.Compare(v.Epoch) < 0:
			s.free(k, v.Epoch, true)
		case v.Word == Not && (k.Epoch.Compare(v.Epoch) < 0 || k.Epoch == v.Epoch && k.State != Free):
			s.free(k, v.Epoch, false)
		}
	}
	if until := a.Sent + s.p.Lease; until > s.Guard.Deadline {
		s.Guard.Deadline = until
		s.do(Extend{until})
	}
	s.export = nil
	for _, v := range a.Verdicts {
		if v.Word == Own || v.Word == Export {
			s.own(v)
		}
	}
}

// own carries out the log's word that a VEE is ours. However late the word comes, it is
// harmless: a host that was passed over meanwhile has either expired, or sealed and refuses.
func (s *hostStep) own(v Verdict) {
	k := s.Hold(v.VEE)
	newer := v.Epoch.Compare(k.Epoch)
	switch {
	case newer < 0 && s.p.keeps(ruleOldEpoch),
		newer == 0 && k.State == Given:
		return
	case newer != 0 || k.State != Held:
		s.keep(Hold{VEE: v.VEE, Epoch: v.Epoch, State: Held, Taken: k.Taken})
		k = s.Hold(v.VEE)
	}
	if v.Word == Export {
		s.export = append(s.export, v)
	}
	if !s.Guard.Expired(s.now) && !s.Running(v.VEE) {
		s.run(k)
	}
}

func (s *hostStep) ask() {
	s.asked, s.words = s.now, nil
	for _, w := range s.Disk.Witnesses.Members {
		s.send(w, Ask{Host: s.ID, Boot: s.Guard.Boot, Sent: s.now})
	}
}

// lost counts a witness's word towards a majority, which extends the deadline from the time
// of the question. An expired lease stays expired: whoever counted on it may have acted.
func (s *hostStep) lost(w Lost) {
	if w.Boot != s.Guard.Boot || w.Asked != s.asked || s.now-w.Asked > s.p.WordGood ||
		slices.Contains(s.words, w.Witness) || !slices.Contains(s.Disk.Witnesses.Members, w.Witness) ||
		s.Guard.Expired(s.now) && s.p.keeps(ruleNoRevival) {
		return
	}
	s.words = append(slices.Clone(s.words), w.Witness)
	slices.Sort(s.words)
	if until := w.Asked + s.p.Lease; s.Disk.Witnesses.majority(s.p, len(s.words)) && until > s.Guard.Deadline {
		s.Guard.Deadline = until
		s.do(Extend{until})
	}
}

// give stops the guest, writes the gift down and sends the ticket, in this order; called
// again it repeats the ticket.
func (s *hostStep) give(g Give) {
	k := s.Hold(g.VEE)
	if k.State == Given && k.To == g.To && !s.p.keeps(ruleVoid) {
		s.takeBack(k)
		return
	}
	if k.State == Given && k.To == g.To {
		s.send(k.To, Ticket{VEE: k.VEE, From: s.ID, To: k.To, Epoch: k.Epoch, Foreign: k.Foreign, Door: k.Door})
		return
	}
	if k.State != Held || !s.Running(g.VEE) {
		return
	}
	allowed := slices.IndexFunc(s.export, func(v Verdict) bool { return v.VEE == g.VEE && v.Epoch == k.Epoch })
	if g.Foreign && allowed < 0 && s.p.keeps(ruleCustodyFirst) {
		return
	}
	switch k.Door = 0; {
	case g.Foreign && allowed >= 0:
		k.Door = s.export[allowed].Door
	case g.Foreign: // without ruleCustodyFirst: a guess
		k.Door = s.Disk.Generation
	}
	s.do(Stop{VEE: k.VEE})
	s.Guard.Guests = append(without(s.Guard.Guests, k.VEE), Guest{VEE: k.VEE})
	k.Epoch.Hop++
	k.State, k.To, k.Foreign = Given, g.To, g.Foreign
	s.keep(k)
	s.send(k.To, Ticket{VEE: k.VEE, From: s.ID, To: k.To, Epoch: k.Epoch, Foreign: k.Foreign, Door: k.Door})
}

// ticket is taken when nothing newer is known and the guard has not expired; a foreign one
// waits for the word of our own log. What is not taken is made void, on disk, before we say
// so; and never what was taken once, for it may have gone on from here.
func (s *hostStep) ticket(t Ticket) {
	k := s.Hold(t.VEE)
	stale := t.Epoch.Compare(k.Epoch) <= 0
	usable := !stale && !s.Guard.Expired(s.now)
	if !s.p.keeps(ruleGuardAtCont) && !s.Running(t.VEE) && k.Taken.Compare(t.Epoch) < 0 {
		usable = true
	}
	switch {
	case t.Epoch.Compare(k.Taken) <= 0 && s.p.keeps(ruleTaken):
		return
	case s.Running(t.VEE):
		return
	case usable && t.Foreign && s.p.keeps(ruleOffered):
		s.keep(Hold{VEE: t.VEE, Epoch: t.Epoch, State: Offered, Door: t.Door})
	case usable:
		s.keep(Hold{VEE: t.VEE, Epoch: t.Epoch, State: Held})
		s.run(s.Hold(t.VEE))
	case t.Foreign: // only a log can refuse another site's gift
		return
	default:
		if !stale {
			s.free(k, t.Epoch, false)
		}
		s.send(t.From, Void{VEE: t.VEE, To: t.From, Epoch: t.Epoch})
	}
}

// void gives the VEE back to its source, one hop further on so that the void ticket's epoch
// stays refused.
func (s *hostStep) void(v Void) {
	k := s.Hold(v.VEE)
	if k.State != Given || k.Foreign || k.Epoch != v.Epoch {
		return
	}
	s.takeBack(k)
}

func (s *hostStep) takeBack(k Hold) {
	k.Epoch.Hop++
	s.keep(Hold{VEE: k.VEE, Epoch: k.Epoch, State: Held})
	if !s.Guard.Expired(s.now) && slices.Contains(s.Guard.Guests, Guest{VEE: k.VEE}) {
		s.run(s.Hold(k.VEE))
	}
}

// without the guest of one VEE, as a new slice.
func without(gs []Guest, id vee.ID) []Guest {
	var out []Guest
	for _, g := range gs {
		if g.VEE != id {
			out = append(out, g)
		}
	}
	return out
}
