package veem

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// A power fence switches a host off that does not answer, so that what it had can be started
// elsewhere whatever has become of its agent and its guard. It is the same word as a person's
// (ClaimVEE), and said only where the host is the one that is lost: a control plane that hears
// fewer than half of the hosts is more likely cut off itself, and fences nobody.

// Fencer switches hosts off.
type Fencer interface {
	// Can it switch this host off?
	Can(host string) bool
	// Fence returns nil when the host is off, and does not come back by itself.
	Fence(ctx context.Context, host string) error
}

const fenceLane = "fence"

// fenceTime is what a power fence may take.
const fenceTime = 30 * time.Second

// wantsRescue: it should run, and may be started elsewhere once its host is off.
func (r *record) wantsRescue() bool {
	return r.Assigned && !r.moving() && r.Target == vee.Active && r.State != vee.Suspended && r.State != vee.Paused && r.wantsLease()
}

// toFence are the hosts that a power fence is to switch off.
func (m *Manager) toFence() (names []string) {
	if m.cfg.Fencer == nil {
		return nil
	}
	now := m.cfg.Now()
	m.ledger.read(func(s *state) {
		hosts := map[string]bool{} // to whether it is lost
		current := 0
		for name, h := range s.hosts.rows {
			if h.State == vmi.HostOff {
				continue
			}
			lost := now.Sub(m.hosts.lastSeen(name, m.start)) >= m.cfg.Ownership.LostAfter
			if hosts[name] = lost && !h.Fenced && h.Upkeep%2 == 0 && m.cfg.Fencer.Can(name); !lost {
				current++
			}
		}
		if current == 0 || 2*current < len(hosts) {
			return
		}
		for _, r := range s.vees.rows {
			if hosts[r.Host] && r.wantsRescue() {
				names = append(names, r.Host)
				hosts[r.Host] = false // named once
			}
		}
	})
	return names
}

// lastSeen is when a host was heard last; a manager that has not heard it counts from its start.
func (h *hosts) lastSeen(name string, start time.Time) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.known[name]; v != nil && v.seen.After(start) {
		return v.seen
	}
	return start
}

// fence a host, and say so to the log of ownership.
func (m *Manager) fence(ctx context.Context, name string) result {
	again := false
	for _, n := range m.toFence() {
		again = again || n == name
	}
	if !again {
		return result{} // it is back
	}
	e := Event{Warning: true, Reason: "HostFenced", Object: "host/" + name, Message: "host " + name + " was switched off by its power fence: what it had is started elsewhere"}
	fencing, cancel := context.WithTimeout(ctx, fenceTime)
	err := m.cfg.Fencer.Fence(fencing, name)
	cancel()
	if err == nil {
		err = m.fenced(ctx, name)
	} else {
		e.Reason, e.Message = "FenceFailed", "host "+name+" does not answer, and its power fence has failed: "+err.Error()
	}
	m.record(e)
	m.queue.add(job{leaseJob, ""}, leaseLane)
	return m.attempt("fence host "+name, fenceLane, err)
}

// fenced: the host is off. VEEs that had no lease, for want of a guard, get one: there is
// nothing left that it would have to end.
func (m *Manager) fenced(ctx context.Context, name string) error {
	for more := true; more; {
		err := m.ledger.do(ctx, func(t *tx) error {
			more = false
			h := t.hosts.get(name)
			if h == nil {
				return nil
			}
			n := 0
			for _, r := range t.vees.all() {
				if r.Host != name || r.Lease != nil || !r.wantsRescue() {
					continue
				}
				if n++; n == MaxOps/2 {
					more = true
					break
				}
				next := *r
				next.Lease, next.Offered = &lease{}, false
				next.Seq++
				t.putVEE(next)
			}
			if !more {
				next := *h
				next.Fenced = true
				put(t, &t.hosts, name, &next)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
