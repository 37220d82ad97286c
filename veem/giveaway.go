package veem

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// maxWitnesses of a site. More make an election slower and no safer.
const maxWitnesses = 7

// startsAtOnce is how many VEEs that were given away may be on their way up on one host: a
// host that must start a hundred guests at once starts none in time.
const startsAtOnce = 4

// lead begins a term as the leader of the site's log.
func (m *Manager) lead(ctx context.Context) error {
	if err := m.recover(ctx); err != nil {
		return fmt.Errorf("put the log of ownership back: %w", err)
	}
	err := m.ledger.do(ctx, func(t *tx) error {
		n := logRecord{Witnesses: []ownership.WitnessSet{{Config: 1}}}
		if row := t.logs.get(logKey); row != nil {
			n = *row
		}
		n.Leader++
		n.Generation = max(n.Generation, m.gen)
		put(t, &t.logs, logKey, &n)
		return nil
	})
	if err != nil {
		return fmt.Errorf("lead the site's log of ownership: %w", err)
	}
	log := m.siteLog()
	m.owners.mu.Lock()
	defer m.owners.mu.Unlock()
	m.owners.control, m.owners.leads = ownership.NewControl(log, m.owners.now()), true
	return nil
}

// takeOver leads as soon as the store lets it.
func (m *Manager) takeOver(ctx context.Context) {
	for {
		err := m.lead(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		m.cfg.Log.Warn("take over the site's log of ownership", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(m.cfg.Timing.Retry):
		}
	}
}

// recover makes the log of a record that was restored from a backup (ownership.Restore):
// every host is awaited, and a give-away in the new generation is open for every VEE under
// lease. It may be cut off and done again; the row of the log is written last.
func (m *Manager) recover(ctx context.Context) error {
	for more := true; more; {
		err := m.ledger.do(ctx, func(t *tx) error {
			more = false
			row := t.logs.get(logKey)
			if row == nil || row.Generation >= m.gen {
				return nil
			}
			n := 0
			for name, h := range t.hosts.all() {
				if n < MaxOps/2 && (!h.Awaited || h.Fenced) {
					next := *h
					next.Awaited, next.Fenced = true, false
					put(t, &t.hosts, name, &next)
					n++
				}
			}
			for _, r := range t.vees.all() {
				if n < MaxOps/2 && r.leased() && (!r.Lease.Sealing || r.Lease.Next.Generation != m.gen) {
					next := *r
					next.Lease = &lease{Sealing: true, Next: vee.Epoch{Generation: m.gen, Term: max(r.Epoch.Term, r.Lease.Next.Term) + 1}}
					t.putVEE(next)
					n++
				}
			}
			if more = n > 0; more {
				return nil
			}
			last := *row
			last.Generation, last.Restored, last.Leader = m.gen, true, last.Leader+1
			put(t, &t.logs, logKey, &last)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// lookAtOwners keeps the witness set, and gives away what may be given away.
func (m *Manager) lookAtOwners(ctx context.Context) result {
	again := result{after: m.cfg.Ownership.Renew / 2, lane: leaseLane}
	if err := m.keepWitnesses(ctx); err != nil {
		return m.attempt("keep the witness set", leaseLane, err)
	}
	for _, host := range m.toFence() {
		m.queue.add(job{fenceJob, host}, fenceLane)
	}
	for _, id := range m.endangered() {
		if err := m.rescue(ctx, id); err != nil && !fault.Has(err, fault.Conflict) {
			m.cfg.Log.Warn("give a VEE away", "vee", id, "err", err)
		}
	}
	return again
}

// keepWitnesses: up to seven hosts that are there to stay. A set is changed only while a
// majority of it is current, so that it cannot be changed behind its back.
func (m *Manager) keepWitnesses(ctx context.Context) error {
	log := m.siteLog()
	if len(log.Witnesses) == 0 {
		return nil
	}
	last := log.Witnesses[len(log.Witnesses)-1]
	var next []string
	m.owners.ask(func(c ownership.Control, now ownership.Time) {
		if len(log.Witnesses) > 1 || last.Leases() && !c.MajorityCurrent(m.owners.p, now, last) {
			return
		}
		next = m.chooseWitnesses(last.Members, func(host string) bool { return c.Current(m.owners.p, now, host) })
	})
	if next == nil || slices.Equal(next, last.Members) {
		return nil
	}
	err := m.ledger.do(ctx, func(t *tx) error {
		row := t.logs.get(logKey)
		if row == nil || row.Leader != log.Leader || len(row.Witnesses) != len(log.Witnesses) {
			return fault.New(fault.Conflict, "the log of ownership is not as it was")
		}
		n := *row
		n.Witnesses = append(slices.Clone(row.Witnesses), ownership.WitnessSet{Config: last.Config + 1, Members: next})
		n.Witnesses = inUse(n.Witnesses, t)
		put(t, &t.logs, logKey, &n)
		return nil
	})
	if err == nil {
		m.record(Event{Reason: "Witnesses", Object: "site/" + m.cfg.Site, Message: "hosts that are asked whether the control plane is lost: " + orElse(strings.Join(next, ", "), "none")})
	}
	return err
}

// chooseWitnesses keeps those that are hosts still and meant to stay on, and adds hosts that
// are current. nil: as it is.
func (m *Manager) chooseWitnesses(now []string, current func(string) bool) []string {
	next := []string{}
	m.ledger.read(func(s *state) {
		for _, w := range now {
			if h := s.hosts.rows[w]; h != nil && h.State != vmi.HostOff {
				next = append(next, w)
			}
		}
		var others []*hostRecord
		for _, h := range s.hosts.rows {
			if h.State == vmi.HostOn && current(h.Name) && !slices.Contains(next, h.Name) {
				others = append(others, h)
			}
		}
		slices.SortFunc(others, func(a, b *hostRecord) int {
			if c := a.Joined.Compare(b.Joined); c != 0 {
				return c
			}
			return strings.Compare(a.Name, b.Name)
		})
		for _, h := range others {
			if len(next) < maxWitnesses {
				next = append(next, h.Name)
			}
		}
	})
	return next
}

// endangered are the VEEs that should run, and whose give-away is open or whose host is not
// current; those first that have been given away already.
func (m *Manager) endangered() (ids []vee.ID) {
	m.owners.ask(func(c ownership.Control, now ownership.Time) {
		m.ledger.read(func(s *state) {
			for _, r := range s.vees.rows {
				if !r.leased() || r.Target != vee.Active || r.State == vee.Suspended || r.State == vee.Paused {
					continue
				}
				if r.Lease.Sealing || !c.Current(m.owners.p, now, r.Host) {
					ids = append(ids, r.ID)
				}
			}
		})
	})
	slices.Sort(ids)
	return ids
}

// rescue a VEE: open its give-away, or complete it where that is open and all have spoken.
func (m *Manager) rescue(ctx context.Context, id vee.ID) error {
	r, ok := m.ledger.vee(id)
	if !ok || !r.leased() {
		return nil
	}
	target := ""
	if r.Lease.Sealing {
		var why string
		if target, why = m.refuge(ctx, r); target == "" {
			return m.explain(ctx, id, why)
		}
	}
	for _, a := range m.owners.step(ownership.Consider{VEE: id, Target: target, Log: m.siteLog()}) {
		c, ok := a.(ownership.Commit)
		if !ok {
			continue
		}
		if err := m.commit(ctx, c); err != nil {
			return err
		}
		e := Event{Warning: true, Object: "vee/" + string(id), Customer: r.Descriptor.Customer, GroupID: r.Descriptor.GroupID}
		if c.New.Sealing {
			e.Reason, e.Message = "GivingAway", fmt.Sprintf("%s: host %s has not been current for too long: it will be started elsewhere once every other host has said that it does not run it", r.Descriptor.Name, r.Host)
		} else {
			e.Reason, e.Message = "GivenAway", fmt.Sprintf("%s: from host %s to host %s, which starts it anew", r.Descriptor.Name, r.Host, target)
			m.queue.add(job{placeJob, ""}, placeLane)
		}
		m.record(e)
		return nil
	}
	return nil
}

// explain what a VEE waits for, where that is not known yet.
func (m *Manager) explain(ctx context.Context, id vee.ID, why string) error {
	r, ok := m.ledger.vee(id)
	why = "it cannot be started elsewhere: " + why
	if !ok || r.Error == why {
		return nil
	}
	return m.ledger.do(ctx, func(t *tx) error {
		if r, ok := t.vee(id); ok && r.leased() && r.Lease.Sealing {
			r.Error = why
			t.putVEE(r)
		}
		return nil
	})
}

// refuge is a host for a VEE whose own is gone, or why there is none.
func (m *Manager) refuge(ctx context.Context, r record) (host, why string) {
	err := m.ledger.do(ctx, func(t *tx) error {
		starting := map[string]int{}
		for _, o := range t.vees.all() {
			if o.leased() && o.Lease.Given != nil {
				starting[o.Host]++
			}
		}
		board := m.board(t)
		m.owners.ask(func(c ownership.Control, now ownership.Time) {
			for i := range board {
				switch h := &board[i]; {
				case h.Closed != "":
				case !c.Current(m.owners.p, now, h.Name):
					h.Closed = "it is not current"
				case !t.hosts.get(h.Name).Guarded:
					h.Closed = "it has no guard"
				case starting[h.Name] >= startsAtOnce:
					h.Closed = "it is starting others that were given to it"
				}
			}
		})
		r.Holds = false
		c := m.chooseOn(t, []record{r}, board)[0]
		host, why = c.Host, c.Why
		return nil
	})
	if err != nil {
		return "", err.Error()
	}
	return host, why
}
