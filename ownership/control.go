package ownership

import (
	"slices"

	"github.com/reservoir-cloud/reservoir/vee"
)

// view is what a leader has seen of a host since it leads.
type view struct {
	host  string
	seen  bool
	fresh Time      // receipt of the last fresh renewal
	since Time      // begin of the unbroken time of being current
	holds []Holding // the newest of each VEE
}

// Control is the leader of a site's control plane. All of it is memory: a new leader begins
// with NewControl and counts anew.
type Control struct {
	Leader     uint64
	Generation uint64
	start      Time
	views      []view
}

// NewControl begins to lead what log says, at now on this machine's clock. It is called
// after Elect or Restore took place.
func NewControl(log Log, now Time) Control {
	return Control{Leader: log.Leader, Generation: log.Generation, start: now}
}

// Events of a control plane beside messages.
type (
	// ReadDone is the result of a ReadLog, or of a Commit that had one to go on with.
	ReadDone struct {
		Of  ReadLog
		Log Log
	}
	// Consider a VEE: give it away to Target if its owner is gone and that may be done
	// now. Log is a read not older than the last change that this leader made.
	Consider struct {
		VEE    vee.ID
		Target string
		Log    Log
	}
	// SendAway opens the custody of a VEE for a partner.
	SendAway struct {
		VEE  vee.ID
		Site string
		// Door is the generation of the partner's log, by its own word when it made room.
		Door uint64
		Log  Log
	}
)

// Step of a control plane. Slices of the old state are not written to.
func (c Control) Step(p Protocol, now Time, e Event) (Control, []Action) {
	switch e := e.(type) {
	case Renew:
		return c.renew(p, now, e)
	case Query:
		return c, []Action{ReadLog{For: e}}
	case Status:
		return c, []Action{ReadLog{For: e}}
	case ReadDone:
		if e.Log.Leader != c.Leader || e.Log.Generation != c.Generation {
			return c, nil // deposed
		}
		switch m := e.Of.For.(type) {
		case Renew:
			return c, c.answer(p, now, e, m)
		case Query:
			return c, c.query(p, e, m)
		case Status:
			return c, c.status(e, m)
		}
	case Consider:
		return c, c.consider(p, now, e)
	case SendAway:
		r := e.Log.Record(e.VEE)
		if r.Host == "" || r.Sealing || r.Away != "" || e.Log.recovering() {
			return c, nil
		}
		n := r
		n.Away, n.AwayEpoch, n.AwayDoor = e.Site, r.Epoch, e.Door
		n.AwayEpoch.Hop++
		return c, []Action{c.commit(r, n, ReadLog{})}
	}
	return c, nil
}

func (c Control) commit(old, n Record, of ReadLog) Commit {
	return Commit{Leader: c.Leader, Generation: c.Generation, Old: old, New: n, For: of}
}

func (c Control) view(host string) view {
	for _, v := range c.views {
		if v.host == host {
			return v
		}
	}
	return view{host: host}
}

// current: a fresh renewal within the window.
func (v view) current(p Protocol, now Time) bool { return v.seen && now-v.fresh <= p.Window }

// expired: not current for so long that no guest under lease can run there, as long as the
// witnesses were not lost either.
func (c Control) expired(p Protocol, now Time, host string) bool {
	v := c.view(host)
	last := c.start
	if !p.keeps(ruleCountAnew) {
		last = now - p.GiveAway
	}
	if v.seen {
		last = v.fresh + p.Window
	}
	return now-last >= p.GiveAway
}

// steady: in every witness set that a host may count by, a majority has been current
// without a break for Timings.Steady.
func (c Control) steady(p Protocol, now Time, sets []WitnessSet) bool {
	for _, set := range sets {
		n := 0
		for _, w := range set.Members {
			v := c.view(w)
			if v.current(p, now) && (now-v.since >= p.Steady || !p.keeps(ruleCountAnew)) {
				n++
			}
		}
		if !set.leases() || !set.majority(p, n) {
			return false
		}
	}
	return true
}

// report of a VEE; the zero one if the host has not named it.
func (v view) report(id vee.ID) Holding {
	for _, r := range v.holds {
		if r.VEE == id {
			return r
		}
	}
	return Holding{}
}

// sealed: the host's durable word that it does not hold a VEE and refuses all below e.
func (v view) sealed(id vee.ID, e vee.Epoch) bool {
	r := v.report(id)
	return r.State == Free && r.Epoch.Compare(e) >= 0
}

// renew notes what a renewal tells and asks for the read that must come before an answer.
func (c Control) renew(p Protocol, now Time, r Renew) (Control, []Action) {
	turned := r.Echo.Leader == c.Leader && r.Echo.Generation == c.Generation && now-r.Echo.Issued <= p.EchoAge
	fresh := turned && !r.Echo.Silent || !p.keeps(ruleFreshEcho)
	v := c.view(r.Host)
	if fresh {
		if !v.current(p, now) {
			v.since = now
		}
		v.seen, v.fresh = true, now
	}
	// What is on a disk stays true, or is followed by a newer epoch: late renewals count.
	for _, h := range r.Holds {
		if v.report(h.VEE).Epoch.Compare(h.Epoch) <= 0 {
			v.holds = append(slices.DeleteFunc(slices.Clone(v.holds), func(o Holding) bool { return o.VEE == h.VEE }), h)
		}
	}
	views := make([]view, 0, len(c.views)+1)
	placed := false
	for _, o := range c.views {
		if o.host == v.host {
			o, placed = v, true
		}
		views = append(views, o)
	}
	if !placed {
		views = append(views, v)
	}
	c.views = views
	return c, []Action{ReadLog{For: r, Fresh: fresh, Turned: turned}}
}

// answer brings the log up to what the host says, one commit at a time, and then says what
// the log says.
func (c Control) answer(p Protocol, now Time, e ReadDone, r Renew) []Action {
	if fold, ok := c.fold(p, e, r); ok {
		return []Action{fold}
	}
	log := e.Log
	a := Answer{Host: r.Host, Boot: r.Boot, Sent: r.Sent, Generation: c.Generation,
		Nonce: Nonce{Generation: c.Generation, Leader: c.Leader, Issued: now}}
	a.Nonce.Silent = !quorumReported(p, log) && p.keeps(ruleRecoveryQuorum)
	a.Vouch = e.Of.Fresh && !a.Nonce.Silent
	if a.Vouch {
		a.Witnesses = log.Witnesses[len(log.Witnesses)-1]
		m, _ := log.member(r.Host)
		a.Upkeep = m.Upkeep
		for _, rec := range log.Records {
			a.Verdicts = append(a.Verdicts, verdict(p, rec, r.Host))
		}
	}
	return []Action{Send{To: r.Host, Message: a}}
}

// quorumReported: a restored log vouches for nobody before a majority of its witnesses has
// turned to it; until then the log that it replaces may still be alive somewhere.
func quorumReported(p Protocol, log Log) bool {
	if !log.Restored {
		return true
	}
	for _, set := range log.Witnesses {
		n := 0
		for _, w := range set.Members {
			if m, ok := log.member(w); ok && !m.Awaited {
				n++
			}
		}
		if set.leases() && !set.majority(p, n) {
			return false
		}
	}
	return true
}

func verdict(p Protocol, rec Record, host string) Verdict {
	switch {
	case rec.Sealing && (p.keeps(ruleSealBeforeCall) || host != rec.Host):
		return Verdict{VEE: rec.VEE, Word: Seal, Epoch: rec.Next}
	case rec.Host == host && rec.Away != "":
		return Verdict{VEE: rec.VEE, Word: Export, Epoch: rec.Epoch, Door: rec.AwayDoor}
	case rec.Host == host:
		return Verdict{VEE: rec.VEE, Word: Own, Epoch: rec.Epoch}
	}
	return Verdict{VEE: rec.VEE, Word: Not, Epoch: rec.Epoch}
}

// fold is the next commit that a renewal calls for, if any: a member that is new, back, or
// has acknowledged a witness set; then each VEE that the host runs at an epoch that the log
// has not heard of (a handover), or for which a give-away is open, or that a partner gave.
func (c Control) fold(p Protocol, e ReadDone, r Renew) (Commit, bool) {
	log := e.Log
	m, known := log.member(r.Host)
	n := Member{Host: r.Host, Witnesses: max(m.Witnesses, r.Witnesses), Awaited: m.Awaited && !e.Of.Turned,
		Upkeep: max(m.Upkeep, r.Upkeep), Heeded: max(m.Heeded, r.Upkeep)}
	if n != m || !known {
		k := Commit{Leader: c.Leader, Generation: c.Generation, NewM: &n, For: e.Of}
		if known {
			k.OldM = &m
		}
		return k, true
	}
	if log.recovering() {
		for _, peer := range r.Members {
			if _, ok := log.member(peer); !ok {
				return Commit{Leader: c.Leader, Generation: c.Generation, NewM: &Member{Host: peer, Awaited: true}, For: e.Of}, true
			}
		}
	}
	for _, h := range r.Holds {
		rec := log.Record(h.VEE)
		newer := h.Epoch.Compare(rec.Epoch)
		up := rec
		switch {
		case h.State == Held && newer > 0 && (h.Running || !rec.Sealing),
			h.State == Held && newer == 0 && h.Running && rec.Host == r.Host && rec.Sealing && e.Of.Fresh && !log.recovering():
			// Until all have spoken, a guest that runs may go on and none may start.
			up.Epoch, up.Host, up.Taken, up.Sealing = h.Epoch, r.Host, h.Epoch, rec.Sealing && log.recovering()
			if newer > 0 {
				up.Away, up.AwayEpoch, up.AwayDoor = "", vee.Epoch{}, 0
			}
		case h.State == Offered && newer > 0 && !log.recovering() && (h.Door == log.Generation || !p.keeps(ruleDoor)):
			up.Epoch, up.Host, up.Taken, up.Sealing = h.Epoch, r.Host, h.Epoch, false
			up.Away, up.AwayEpoch, up.AwayDoor = "", vee.Epoch{}, 0
		default:
			continue
		}
		up.VEE = h.VEE
		return c.commit(rec, up, e.Of), true
	}
	return Commit{}, false
}

// consider opens a give-away when the owner is expired or has said that it does not hold
// the VEE, and completes it when every host is sealed or expired. What it judges by, it
// judges after the intent is in the log: from then on no host is vouched for without its
// seal, so a host that comes back in the middle cannot start what is being given away.
func (c Control) consider(p Protocol, now Time, e Consider) []Action {
	rec := e.Log.Record(e.VEE)
	if e.Log.Leader != c.Leader || e.Log.Generation != c.Generation || rec.Host == "" || rec.Away != "" && p.keeps(ruleCustodyHolds) {
		return nil
	}
	if e.Log.recovering() && p.keeps(ruleAwait) {
		return nil
	}
	if e.Log.Restored && rec.Sealing && rec.Heard < len(e.Log.Partners) && p.keeps(rulePartnerHeard) {
		site := e.Log.Partners[rec.Heard]
		return []Action{Send{To: site, Message: Query{VEE: rec.VEE, Epoch: rec.Next, From: e.Log.Site, To: site}}}
	}
	steady := c.steady(p, now, e.Log.Witnesses)
	gone := func(host string) bool {
		m, _ := e.Log.member(host)
		return m.Fenced || m.mortal() && steady && c.expired(p, now, host)
	}
	next := rec
	if !rec.Sealing && p.keeps(ruleIntentFirst) {
		owner := c.view(rec.Host).report(rec.VEE)
		lost := owner.State == Free && owner.Epoch.Compare(rec.Epoch) > 0 ||
			owner.State == Given && gone(owner.To)
		if !gone(rec.Host) && !lost {
			return nil
		}
		next.Sealing, next.Next = true, e.Log.next(rec)
		return []Action{c.commit(rec, next, ReadLog{})}
	}
	if !p.keeps(ruleIntentFirst) {
		next.Next = e.Log.next(rec)
	}
	target := c.view(e.Target)
	if !target.current(p, now) || !target.sealed(rec.VEE, next.Next) && p.keeps(ruleIntentFirst) {
		return nil
	}
	for _, m := range e.Log.Members {
		sealed := c.view(m.Host).sealed(rec.VEE, next.Next)
		if (!p.keeps(ruleSealAll) || !p.keeps(ruleIntentFirst)) && m.Host != rec.Host {
			sealed = true
		}
		if !sealed && !gone(m.Host) {
			return nil
		}
	}
	next.Epoch, next.Host, next.Taken, next.Sealing = next.Next, e.Target, next.Next, false
	return []Action{c.commit(rec, next, ReadLog{})}
}

// query of a partner: what this log has taken it says; what it has not, it refuses for ever
// before it says so. A log that is being recovered does not know and is silent.
func (c Control) query(p Protocol, e ReadDone, q Query) []Action {
	rec := e.Log.Record(q.VEE)
	if e.Log.recovering() {
		return nil
	}
	taken := rec.Taken.Compare(q.Epoch) >= 0 || rec.Host != ""
	if rec.Away == q.From && rec.Host != "" && rec.Taken.Compare(q.Epoch) < 0 {
		return nil // our own question to them comes first
	}
	if !taken && rec.Epoch.Compare(q.Epoch) < 0 && p.keeps(ruleCustodyWord) {
		n := rec
		n.VEE, n.Epoch = q.VEE, q.Epoch
		return []Action{c.commit(rec, n, e.Of)}
	}
	return []Action{Send{To: q.From, Message: Status{VEE: q.VEE, Epoch: q.Epoch, From: e.Log.Site, Taken: taken}}}
}

// status of a VEE at a partner: closes an open custody, or clears a doubt after a restore.
func (c Control) status(e ReadDone, s Status) []Action {
	rec := e.Log.Record(s.VEE)
	n := rec
	switch {
	case rec.Host != "" && rec.Away == s.From && rec.AwayEpoch == s.Epoch && s.Taken:
		n.Host, n.Epoch = "", s.Epoch
	case rec.Host != "" && rec.Away == s.From && rec.AwayEpoch == s.Epoch:
		// It is here, but the host may have moved it on meanwhile, or stopped it for the
		// ticket: who runs it says so, else it is given away.
		n.Away, n.AwayEpoch, n.AwayDoor = "", vee.Epoch{}, 0
		n.Sealing, n.Next = true, e.Log.next(rec)
	case rec.Sealing && rec.Next == s.Epoch && rec.Heard < len(e.Log.Partners) && e.Log.Partners[rec.Heard] == s.From:
		if n.Heard++; s.Taken {
			n.Host, n.Away, n.AwayEpoch, n.Sealing = "", s.From, s.Epoch, false
		}
	default:
		return nil
	}
	return []Action{c.commit(rec, n, ReadLog{})}
}
