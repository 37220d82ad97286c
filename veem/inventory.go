package veem

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Hosts are the site's own affair: service providers do not see them.
func overseer(ctx context.Context, change bool) error {
	c := identity.From(ctx)
	if c.Is(identity.Operator, identity.SiteRole) || !change && c.Is(identity.Auditor) {
		return nil
	}
	return fault.New(fault.Denied, "role %q may not do that with hosts", c.Role)
}

// showHosts that match, by name.
func (m *Manager) showHosts(match func(*hostRecord) bool) []vmi.Host {
	list := []vmi.Host{}
	m.ledger.read(func(s *state) {
		at := map[string]int{}
		for _, h := range s.hosts.rows {
			if match(h) {
				list = append(list, vmi.Host{Name: h.Name, State: h.State, Address: h.Address, Version: h.Version, CPUs: h.CPUs,
					Capacity: h.Capacity, Drivers: h.Drivers, Joined: h.Joined, Price: h.Price, Leaving: h.Drain != nil, Drained: h.Drain != nil,
					HA: m.showHA(s, h)})
			}
		}
		slices.SortFunc(list, func(a, b vmi.Host) int { return strings.Compare(a.Name, b.Name) })
		for i := range list {
			at[list[i].Name] = i
		}
		for _, r := range s.vees.rows {
			if i, shown := at[r.Host]; shown && r.State != vee.Destroyed {
				list[i].Used = list[i].Used.Plus(r.usage())
				list[i].VEEs++
				list[i].Drained = list[i].Drained && !r.Holds
			}
			if r.moving() {
				if i, shown := at[r.Move.To]; shown {
					list[i].Drained = false
				}
			}
		}
	})
	m.hosts.mu.Lock()
	defer m.hosts.mu.Unlock()
	for i := range list {
		list[i].HA.Degraded = "it has no guard, and no power fence"
		if v := m.hosts.known[list[i].Name]; v != nil {
			if l := v.report.Lease; l.Guarded || l.Degraded != "" {
				list[i].HA.Degraded = l.Degraded
			}
			list[i].Alive, list[i].LastSeen, list[i].DiskFree = v.alive, v.seen, v.report.DiskFree
			if list[i].HA.PowerFence {
				list[i].HA.Degraded = ""
			}
			if v.alive {
				list[i].Peering = v.report.Peering
			}
		}
	}
	return list
}

// ListHosts: vmi.Service.
func (m *Manager) ListHosts(ctx context.Context) ([]vmi.Host, error) {
	if err := overseer(ctx, false); err != nil {
		return nil, err
	}
	return m.showHosts(func(*hostRecord) bool { return true }), nil
}

// GetHost: vmi.Service.
func (m *Manager) GetHost(ctx context.Context, name string) (vmi.Host, error) {
	if err := overseer(ctx, false); err != nil {
		return vmi.Host{}, err
	}
	list := m.showHosts(func(h *hostRecord) bool { return h.Name == name })
	if len(list) == 0 {
		return vmi.Host{}, errNoHost(name)
	}
	return list[0], nil
}

// SetHostState: vmi.Service.
func (m *Manager) SetHostState(ctx context.Context, name string, s vmi.HostState) (vmi.Host, error) {
	if err := overseer(ctx, true); err != nil {
		return vmi.Host{}, err
	}
	if s != vmi.HostOn && s != vmi.HostDraining {
		return vmi.Host{}, malformed("state", "%q: want %s or %s", s, vmi.HostOn, vmi.HostDraining)
	}
	changed := false
	err := m.ledger.do(ctx, func(t *tx) error {
		h := t.hosts.get(name)
		if h == nil {
			return errNoHost(name)
		}
		if changed = h.State != s || h.Drain != nil; changed {
			n := *h
			n.State, n.Drain = s, nil
			put(t, &t.hosts, name, &n)
		}
		return nil
	})
	if err != nil {
		return vmi.Host{}, err
	}
	if changed {
		m.record(Event{Reason: "HostState", Object: "host/" + name, Message: fmt.Sprintf("host %s is %s now", name, s)})
	}
	return m.GetHost(ctx, name)
}

// RemoveHost: vmi.Service. A host that is lost and will not come back is removed with the
// VEEs that were to be destroyed there: whoever removes it says that they are gone. Should
// it come back, it is not let in, and after a new join it is told to remove them.
func (m *Manager) RemoveHost(ctx context.Context, name string) error {
	if err := overseer(ctx, true); err != nil {
		return err
	}
	for more := true; more; {
		err := m.ledger.do(ctx, func(t *tx) error {
			var err error
			more, err = m.removeHost(t, name)
			return err
		})
		if err != nil {
			return fmt.Errorf("remove host %s: %w", name, err)
		}
	}
	m.record(Event{Reason: "HostRemoved", Object: "host/" + name, Message: "host " + name + " is no part of the site any more"})
	return nil
}

// removeHost takes one write's worth of steps towards it.
func (m *Manager) removeHost(t *tx, name string) (more bool, err error) {
	if t.hosts.get(name) == nil {
		return false, errNoHost(name)
	}
	var doomed []record
	stay := 0
	gone := !m.hosts.alive(name)
	for _, r := range t.vees.all() {
		switch {
		case !r.at(name) || r.State == vee.Destroyed:
		case gone && r.Target == vee.Destroyed:
			doomed = append(doomed, *r)
		default:
			stay++
		}
	}
	if stay > 0 {
		e := fault.New(fault.InUse, "%d VEEs have their place on it", stay)
		return false, e.Try("destroy them first: reservoir vee list --host %s", name)
	}
	for i, r := range doomed {
		if i == MaxOps/2 {
			return true, nil
		}
		r.finish()
		t.putVEE(r)
	}
	put(t, &t.hosts, name, nil)
	return false, nil
}
