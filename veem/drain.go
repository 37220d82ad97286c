package veem

import (
	"context"
	"fmt"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/rebalance"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// drain of a host as it is stored: what was asked for, and how far it is.
type drain struct {
	Suspend bool `json:"suspend,omitempty"`
	Off     bool `json:"off,omitempty"`
	// Done: nothing has run there at some time since.
	Done bool `json:"done,omitempty"`
	// Ended: its agent has been told to end, or was gone when it should have been. It is
	// told once: a machine that somebody starts again is not switched off again.
	Ended bool `json:"ended,omitempty"`
}

// DrainHost: vmi.Service.
func (m *Manager) DrainHost(ctx context.Context, name string, d vmi.Drain) (vmi.Host, error) {
	if err := overseer(ctx, true); err != nil {
		return vmi.Host{}, err
	}
	begun := false
	err := m.ledger.do(ctx, func(t *tx) error {
		h := t.hosts.get(name)
		if h == nil {
			return errNoHost(name)
		}
		want := drain{Suspend: d.Suspend || d.Off, Off: d.Off}
		if begun = h.Drain == nil || h.Drain.Suspend != want.Suspend || h.Drain.Off != want.Off; begun {
			n := *h
			n.State, n.Drain = vmi.HostDraining, &want
			put(t, &t.hosts, name, &n)
		}
		return nil
	})
	if err != nil {
		return vmi.Host{}, err
	}
	if begun {
		m.record(Event{Reason: "Draining", Object: "host/" + name, Message: "host " + name + " takes no VEE any more, and its VEEs leave it"})
	}
	return m.GetHost(ctx, name)
}

// drain plans how VEEs leave the hosts that are to be left. Those that can go nowhere are
// waited for, or suspended where that was asked for.
func (m *Manager) drain(ctx context.Context, w *situation) result {
	wait := result{after: m.cfg.Timing.Look, lane: planLane}
	p, err := m.plan(w, rebalance.None)
	if err != nil {
		m.cfg.Log.Warn("plan how VEEs leave a host", "err", err)
		return wait
	}
	next := proposal(causeDrain, rebalance.None, p)
	m.reconfiguring.mu.Lock()
	m.reconfiguring.stays = next.Stays
	m.reconfiguring.mu.Unlock()
	if w.run != nil && w.run.Cause == causeDrain && w.run.Again {
		next.Attempt = w.run.Attempt + 1
	}
	if len(next.Steps) > 0 {
		if _, err := m.beginRun(ctx, next); err != nil {
			return m.attempt("start to drain a host", planLane, err)
		}
		return wait
	}
	if err := m.suspendStays(ctx, w, next.Stays); err != nil {
		return m.attempt("suspend what can go nowhere", planLane, err)
	}
	return wait
}

// patience with a VEE whose migrations fail, before it is suspended instead: attempts.
const patience = 3

// suspendStays that run at hosts where that was asked for.
func (m *Manager) suspendStays(ctx context.Context, w *situation, stays []vmi.ReconfigureRemain) error {
	asked := map[string]bool{}
	for _, h := range w.leaving() {
		asked[h.Name] = h.Drain.Suspend
	}
	for part := range slices.Chunk(stays, chunk) {
		var put []vmi.ReconfigureRemain
		err := m.ledger.do(ctx, func(t *tx) error {
			put = nil
			for _, s := range part {
				r, ok := t.vee(s.VEE)
				if !ok || !asked[s.Host] || r.Host != s.Host || r.moving() || !r.Holds || r.State != r.Target || r.State != vee.Active && r.State != vee.Paused {
					continue
				}
				if failed := r.Move != nil && r.Move.State == vmi.MigrationFailed && w.run != nil && w.run.Again; failed && w.run.Attempt < patience {
					continue // it may get through yet
				}
				r.retarget(vee.Suspended)
				t.putVEE(r)
				put = append(put, s)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, s := range put {
			m.record(Event{Warning: true, Reason: "SuspendedForDrain", Object: "vee/" + string(s.VEE), Message: fmt.Sprintf("%s: host %s is to be left, and %s", s.Name, s.Host, s.Why)})
		}
	}
	return nil
}

// endDrains notes the hosts on which nothing runs any more, and switches off those that are
// to be. It reports whether there is nothing left to leave.
func (m *Manager) endDrains(ctx context.Context, w *situation) (all bool, err error) {
	all = true
	for _, h := range w.leaving() {
		if w.holding[h.Name] > 0 {
			all = false
			continue
		}
		if !h.Drain.Done {
			n := *h.Drain
			n.Done = true
			if err := m.drained(ctx, h.Name, n, h.State); err != nil {
				return false, err
			}
			m.record(Event{Reason: "Drained", Object: "host/" + h.Name, Message: "nothing runs on host " + h.Name + " any more"})
		}
		if h.Drain.Off && !h.Drain.Ended {
			if err := m.switchOff(ctx, h); err != nil {
				return false, err
			}
		}
	}
	if all {
		m.reconfiguring.mu.Lock()
		m.reconfiguring.stays = nil
		m.reconfiguring.mu.Unlock()
	}
	return all, nil
}

// drained keeps how far the draining of a host is, if it is still asked for.
func (m *Manager) drained(ctx context.Context, name string, d drain, s vmi.HostState) error {
	return m.ledger.do(ctx, func(t *tx) error {
		if h := t.hosts.get(name); h != nil && h.Drain != nil && h.Drain.Off == d.Off {
			n := *h
			n.State, n.Drain = s, &d
			put(t, &t.hosts, name, &n)
		}
		return nil
	})
}

// switchOff a host on which nothing runs. It is recorded as off before its agent is told,
// so that nobody takes it for lost.
func (m *Manager) switchOff(ctx context.Context, h hostRecord) error {
	d := *h.Drain
	d.Done = true
	if err := m.drained(ctx, h.Name, d, vmi.HostOff); err != nil {
		return err
	}
	if m.hosts.alive(h.Name) {
		c, err := m.client(h.Name)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, m.cfg.Timing.Call)
		defer cancel()
		if err := c.PowerOff(ctx); err != nil {
			return fault.From(err)
		}
	}
	d.Ended = true
	if err := m.drained(ctx, h.Name, d, vmi.HostOff); err != nil {
		return err
	}
	m.record(Event{Reason: "HostOff", Object: "host/" + h.Name, Message: "host " + h.Name + " is off: its agent has ended"})
	return nil
}
