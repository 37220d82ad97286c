package veem

import (
	"context"
	"fmt"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// ArmHost: vmi.Service. Maintenance is in the log before the host hears of it, and over when
// the host has said that its guard is armed again.
func (m *Manager) ArmHost(ctx context.Context, name string, armed bool) (vmi.Host, error) {
	if err := overseer(ctx, true); err != nil {
		return vmi.Host{}, err
	}
	changed := false
	err := m.ledger.do(ctx, func(t *tx) error {
		h := t.hosts.get(name)
		if h == nil {
			return errNoHost(name)
		}
		if changed = (h.Upkeep%2 == 0) != armed; changed {
			n := *h
			n.Upkeep++
			put(t, &t.hosts, name, &n)
		}
		return nil
	})
	if err != nil {
		return vmi.Host{}, err
	}
	if changed {
		what := "is in maintenance: its guests live on without a lease, and nothing of it is started elsewhere"
		if armed {
			what = "is armed: its guests end with its lease, and are started elsewhere"
		}
		m.record(Event{Reason: "HostArmed", Object: "host/" + name, Message: "host " + name + " " + what})
	}
	return m.GetHost(ctx, name)
}

// ClaimVEE: vmi.Service. The word is about the host, and so about all that it had.
func (m *Manager) ClaimVEE(ctx context.Context, id vee.ID, c vmi.Claim) (vmi.VEE, error) {
	if err := overseer(ctx, true); err != nil {
		return vmi.VEE{}, err
	}
	if !c.Fenced {
		return vmi.VEE{}, malformed("fenced", "nothing is claimed").Try("switch its host off, and then: reservoir vee claim %s --i-fenced-it", id)
	}
	host := ""
	err := m.ledger.do(ctx, func(t *tx) error {
		r, err := find(identity.From(ctx), t, id)
		if err != nil {
			return err
		}
		h := t.hosts.get(r.Host)
		switch {
		case h == nil || !r.Assigned || r.State == vee.Destroyed:
			return fault.New(fault.WrongState, "VEE %s is on no host", id)
		case r.moving():
			return fault.New(fault.WrongState, "VEE %s is on its way from host %s to host %s: both are asked", id, r.Move.From, r.Move.To).Try("reservoir vee migration show %s", r.Move.ID)
		case m.hosts.alive(h.Name) || m.isCurrent(h.Name):
			return fault.New(fault.WrongState, "host %s, where VEE %s is, answers: it is not fenced", h.Name, id).Try("reservoir vee migrate %s, or reservoir vee show %s", id, id)
		}
		host = h.Name
		n := *h
		n.Fenced = true
		put(t, &t.hosts, h.Name, &n)
		if r.Lease == nil && !slices.ContainsFunc(r.Descriptor.Disks, func(d vee.Disk) bool { return d.Persistent }) {
			r.Lease = &lease{} // a person vouches for what no guard did
			r.Seq++
			t.putVEE(r)
		}
		return nil
	})
	if err != nil {
		return vmi.VEE{}, err
	}
	m.record(Event{Warning: true, Reason: "HostFenced", Object: "host/" + host, Message: fmt.Sprintf("%s says that host %s is off: what it had is started elsewhere", orElse(identity.From(ctx).ID, "somebody"), host)})
	m.queue.add(job{leaseJob, ""}, leaseLane)
	return m.GetVEE(ctx, id)
}

func (m *Manager) isCurrent(host string) (current bool) {
	m.owners.ask(func(c ownership.Control, now ownership.Time) { current = c.Current(m.owners.p, now, host) })
	return current
}

// showHA is what the records say of a host's worth for VEEs under lease.
func (m *Manager) showHA(s *state, h *hostRecord) vmi.HostHA {
	ha := vmi.HostHA{PowerFence: m.cfg.Fencer != nil && m.cfg.Fencer.Can(h.Name), Disarmed: h.Upkeep%2 == 1, Fenced: h.Fenced}
	if row := s.logs.rows[logKey]; row != nil && len(row.Witnesses) > 0 {
		ha.Witness = slices.Contains(row.Witnesses[len(row.Witnesses)-1].Members, h.Name)
	}
	return ha
}
