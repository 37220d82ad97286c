package veem

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// VEEs that may be restarted elsewhere are under lease: which host may run one is decided by
// package ownership, of which this file is the control plane's shell. The site's log is no
// second record beside the ledger: it is read out of the rows of VEEs and hosts (siteLog),
// and its commits are changes of these (commit). One more row, of kind "ownership", has the
// leader's number and the witness sets.

// lease of a VEE.
type lease struct {
	// Sealing: a give-away at Next is open. Next is never used for two of them.
	Sealing bool      `json:"sealing,omitempty"`
	Next    vee.Epoch `json:"next,omitzero"`
	// Given is when it was last given away, until it runs; nil: it runs, or never was.
	Given *time.Time `json:"given,omitempty"`
}

func (l *lease) same(o *lease) bool {
	return l == o || l != nil && o != nil && l.Sealing == o.Sealing && l.Next == o.Next && (l.Given == nil) == (o.Given == nil)
}

// running is l once the VEE runs again.
func (l *lease) running() *lease {
	if l == nil || l.Given == nil {
		return l
	}
	n := *l
	n.Given = nil
	return &n
}

// logRecord is the one row of kind "ownership".
type logRecord struct {
	Leader     uint64                 `json:"leader"` // grows with each start of a manager
	Generation uint64                 `json:"generation"`
	Restored   bool                   `json:"restored,omitempty"`
	Witnesses  []ownership.WitnessSet `json:"witnesses"`
}

const logKey = "log"

// wantsLease: its policy is to be restarted elsewhere, and nothing that it must not lose is
// on its host alone.
func (r *record) wantsLease() bool {
	return r.Descriptor.Restart == vee.RestartElse && !slices.ContainsFunc(r.Descriptor.Disks, func(d vee.Disk) bool { return d.Persistent })
}

// owners is the leader of the site's log of ownership. Its memory is a leader's own: a
// manager that has just started counts anew.
type owners struct {
	p   ownership.Protocol
	now func() time.Duration

	mu      sync.Mutex
	leads   bool
	control ownership.Control
}

func newOwners(t ownership.Timings, now func() time.Duration) *owners {
	return &owners{p: ownership.Protocol{Timings: t}, now: now}
}

// step of the leader; nil actions before it leads.
func (o *owners) step(e ownership.Event) (actions []ownership.Action) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.leads {
		o.control, actions = o.control.Step(o.p, o.now(), e)
	}
	return actions
}

// ask the leader's memory.
func (o *owners) ask(f func(c ownership.Control, now time.Duration)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f(o.control, o.now())
}

// renewal that waits for its answer.
type renewal struct {
	read ownership.ReadLog
	over []vee.ID
}

func (r renewal) asks() bool { return r.read.For != nil }

// arrive takes what a host says of its VEEs under lease. VEEs that are no more are left out.
func (o *owners) arrive(r ownership.Renew, l *ledger) (out renewal) {
	l.read(func(s *state) {
		r.Holds = slices.DeleteFunc(slices.Clone(r.Holds), func(h ownership.Holding) bool {
			v := s.vees.rows[string(h.VEE)]
			switch {
			case v != nil && v.leased():
				return false
			case v != nil && v.State == vee.Destroyed, v == nil && h.Epoch.Generation == l.gen,
				v != nil && v.Lease == nil && !v.at(r.Host): // it has left cold
				out.over = append(out.over, h.VEE)
			}
			return true
		})
	})
	for _, a := range o.step(r) {
		if read, ok := a.(ownership.ReadLog); ok {
			out.read = read
		}
	}
	return out
}

// leased: it is in the log of ownership.
func (r *record) leased() bool { return r.Lease != nil && r.Assigned && r.State != vee.Destroyed }

// owned is r as the log has it.
func (r *record) owned() ownership.Record {
	if !r.leased() {
		return ownership.Record{}
	}
	return ownership.Record{VEE: r.ID, Epoch: r.Epoch, Host: r.Host, Taken: r.Epoch, Sealing: r.Lease.Sealing, Next: r.Lease.Next}
}

func (h *hostRecord) member() ownership.Member {
	return ownership.Member{Host: h.Name, Witnesses: h.Witnesses, Awaited: h.Awaited, Fenced: h.Fenced, Upkeep: h.Upkeep, Heeded: h.Heeded}
}

// siteLog is the log as it is in the store.
func (m *Manager) siteLog() (l ownership.Log) {
	m.ledger.read(func(s *state) {
		l = ownership.Log{Site: m.cfg.Site}
		if row := s.logs.rows[logKey]; row != nil {
			l.Generation, l.Leader, l.Restored, l.Witnesses = row.Generation, row.Leader, row.Restored, row.Witnesses
		}
		for _, h := range s.hosts.rows {
			if isPartner(h.Name) {
				continue // it vouches for what it has by its own log
			}
			l.Members = append(l.Members, h.member())
		}
		for _, r := range s.vees.rows {
			if r.leased() {
				l.Records = append(l.Records, r.owned())
			}
		}
	})
	return l
}

// inCharge returns after a linearisable read which shows that no other manager has taken
// this one's place.
func (m *Manager) inCharge(ctx context.Context) error {
	for {
		var known uint64
		before := func(s *state) { known = s.logs.versions[logKey] }
		m.ledger.read(before)
		v, err := m.cfg.Store.Version(ctx, kindLog, logKey)
		if err != nil {
			return err
		}
		if v == known {
			return nil
		}
		m.ledger.read(before)
		if v > known { // a write of our own may be on its way into memory
			if err := m.ledger.do(ctx, func(*tx) error { return nil }); err != nil {
				return err
			}
			m.ledger.read(before)
			if v > known {
				return fault.New(fault.Unavailable, "another control plane has taken over this site's record of truth")
			}
		}
	}
}

// vouch for a host, after the read: commit what it tells that the log does not know, and say
// what the log says.
func (m *Manager) vouch(ctx context.Context, ask renewal) (*vhi.LeaseReply, error) {
	for {
		log := m.siteLog()
		actions := m.owners.step(ownership.ReadDone{Of: ask.read, Log: log})
		if len(actions) != 1 {
			return nil, fault.New(fault.Unavailable, "this control plane leads no more")
		}
		switch a := actions[0].(type) {
		case ownership.Commit:
			// Whether it took place or not, what to do next is in the log.
			if err := m.commit(ctx, a); err != nil && !fault.Has(err, fault.Conflict) {
				return nil, err
			}
		case ownership.Send:
			answer := a.Message.(ownership.Answer)
			r := ask.read.For.(ownership.Renew)
			answer.Verdicts = slices.DeleteFunc(answer.Verdicts, func(v ownership.Verdict) bool { return !v.Concerns(r) })
			return &vhi.LeaseReply{Answer: answer, Addresses: m.addresses(answer.Witnesses.Members), Over: ask.over}, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, fault.New(fault.Timeout, "vouch for a host: %w", err)
		}
		if host := ask.read.For.(ownership.Renew).Host; !m.hasHost(host) {
			return nil, errNoHost(host) // removed meanwhile
		}
	}
}

func (m *Manager) hasHost(name string) bool { _, ok := m.ledger.host(name); return ok }

// addresses of hosts.
func (m *Manager) addresses(names []string) map[string]string {
	at := map[string]string{}
	m.ledger.read(func(s *state) {
		for _, n := range names {
			if h := s.hosts.rows[n]; h != nil && h.Address != "" {
				at[n] = h.Address
			}
		}
	})
	return at
}

// commit a transaction of the log. Errors: Conflict when its premises have changed.
func (m *Manager) commit(ctx context.Context, c ownership.Commit) error {
	return m.ledger.do(ctx, func(t *tx) error {
		stale := fault.New(fault.Conflict, "the log of ownership is not as it was")
		row := t.logs.get(logKey)
		if row == nil || row.Leader != c.Leader || row.Generation != c.Generation {
			return stale
		}
		n := *row
		if c.NewM != nil {
			h := t.hosts.get(c.NewM.Host)
			switch {
			case h == nil && c.OldM == nil && c.NewM.Awaited:
				// After a restore, one that others know: it joined after the backup.
				h = &hostRecord{Name: c.NewM.Host, State: vmi.HostOn, Joined: t.now}
			case h == nil || c.OldM == nil || h.member() != *c.OldM:
				return stale
			}
			next := *h
			next.Witnesses, next.Awaited, next.Fenced = c.NewM.Witnesses, c.NewM.Awaited, c.NewM.Fenced
			next.Upkeep, next.Heeded = c.NewM.Upkeep, c.NewM.Heeded
			put(t, &t.hosts, h.Name, &next)
			n.Witnesses = inUse(n.Witnesses, t)
		} else {
			r, ok := t.vee(c.New.VEE)
			if !ok || r.owned() != c.Old {
				return stale
			}
			m.obeyLog(t, &r, c.New)
			t.putVEE(r)
		}
		// Written even where it is as before: a manager that another has followed fails here.
		put(t, &t.logs, logKey, &n)
		return nil
	})
}

// inUse leaves out the witness sets that no host counts by any more.
func inUse(sets []ownership.WitnessSet, t *tx) []ownership.WitnessSet {
	for len(sets) > 1 {
		for _, h := range t.hosts.all() {
			if h.Witnesses < sets[1].Config {
				return sets
			}
		}
		sets = sets[1:]
	}
	return sets
}

// obeyLog applies a new state of the log to a VEE's record: it goes on at another host after a
// migration, is found where it was, or is given away.
func (m *Manager) obeyLog(t *tx, r *record, n ownership.Record) {
	l := *r.Lease
	given := n.Host != r.Host && n.Epoch == l.Next
	if n.Host != r.Host || n.Epoch != r.Epoch {
		switch {
		case given:
			if r.moving() {
				r.endMove(vmi.MigrationFailed, nil, t.now)
			}
			l.Given = &t.now
			r.Host, r.Epoch, r.HostRestarts = n.Host, n.Epoch, 0
			r.State, r.Phase, r.Error = vee.Defined, vee.PhaseProlog, ""
			r.GuestReady, r.GuestSeen, r.GuestFailure = false, false, ""
		case r.moving() && n.Host == r.Move.To:
			p := m.hosts.view(n.Host, r.ID).report
			if p == nil || p.Epoch != n.Epoch {
				p = &vhi.Report{Epoch: n.Epoch}
			}
			r.arrive(p, t.now)
		case m.cameByHosts(r, n):
			r.follow(m.hosts.view(n.Host, r.ID).report, t.now)
			r.Host, r.Epoch = n.Host, n.Epoch // as the log has it
		default:
			r.Host, r.Epoch = n.Host, n.Epoch
		}
		r.Seq++
		r.Settled = false
	}
	if l.Sealing && !n.Sealing && r.Epoch.Generation < m.gen {
		// Found where it was, after a restore: its host goes on under an epoch of the new
		// generation, which nobody else was or will be given.
		r.Epoch = n.Next
		r.Seq++
	}
	l.Sealing, l.Next = n.Sealing, n.Next
	r.Lease = &l
}
