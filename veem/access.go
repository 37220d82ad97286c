package veem

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// access is what the balancer was told last.
type access struct {
	mu  sync.Mutex        // held while the balancer is told, so that the newest comes last
	set map[string]string // access point to its backends, in words
}

// serving is what of a VEE decides whether it is a backend.
func serving(r *record) string {
	if r == nil || r.State != vee.Active || r.Target != vee.Active {
		return ""
	}
	return fmt.Sprintf("%s %v", r.Host, r.GuestReady || !r.GuestSeen)
}

// backends of an access point: the VEEs that run, are meant to, and are ready, where the
// guest says anything about that.
func (m *Manager) backends(s *state, p *pointRecord) (to []netip.AddrPort) {
	for _, r := range s.vees.rows {
		d := &r.Descriptor
		if d.GroupID != p.GroupID || d.Customer != p.Customer || p.Tag != "" && !slices.Contains(d.Tags, p.Tag) || len(d.NICs) == 0 {
			continue
		}
		if serving(r) == "" || r.GuestSeen && !r.GuestReady || !m.hosts.alive(r.Host) {
			continue
		}
		if a, err := netip.ParsePrefix(d.NICs[0].Address); err == nil {
			to = append(to, netip.AddrPortFrom(a.Addr(), uint16(p.Port)))
		}
	}
	slices.SortFunc(to, netip.AddrPort.Compare)
	return to
}

// wakePoints looks again at the access points of the groups of the VEEs that match.
func (m *Manager) wakePoints(match func(*record) bool) {
	m.ledger.read(func(s *state) {
		if len(s.points.rows) == 0 {
			return
		}
		groups := map[string]bool{}
		for _, r := range s.vees.rows {
			if match(r) {
				groups[r.Descriptor.GroupID] = true
			}
		}
		for key, p := range s.points.rows {
			if groups[p.GroupID] {
				m.queue.add(job{pointJob, key}, accessLane)
			}
		}
	})
}

func (m *Manager) lookAtPoint(ctx context.Context, key string) result {
	return m.attempt("balance access point "+key, accessLane, m.balance(ctx, key))
}

// balanceGroup brings all access points of a group up to date.
func (m *Manager) balanceGroup(ctx context.Context, group string) error {
	var keys []string
	m.ledger.read(func(s *state) {
		for key, p := range s.points.rows {
			if p.GroupID == group {
				keys = append(keys, key)
			}
		}
	})
	var errs []error
	for _, key := range keys {
		errs = append(errs, m.balance(ctx, key))
	}
	return errors.Join(errs...)
}

// balance tells the balancer what an access point should be, and notes its address.
func (m *Manager) balance(ctx context.Context, key string) error {
	m.access.mu.Lock()
	defer m.access.mu.Unlock()
	var point *pointRecord
	var to []netip.AddrPort
	m.ledger.read(func(s *state) {
		if point = s.points.rows[key]; point != nil {
			to = m.backends(s, point)
		}
	})
	if point == nil {
		m.cfg.Balancer.Remove(key)
		delete(m.access.set, key)
		return nil
	}
	words := fmt.Sprint(to)
	if was, set := m.access.set[key]; set && was == words && point.Address != "" {
		return nil
	}
	addr, err := m.cfg.Balancer.Set(ctx, key, point.Address, to)
	if err != nil {
		return fmt.Errorf("access point %s: %w", key, err)
	}
	if addr != point.Address {
		err := m.ledger.do(ctx, func(t *tx) error {
			if p := t.points.get(key); p != nil {
				n := *p
				n.Address = addr
				put(t, &t.points, key, &n)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	m.access.set[key] = words
	return nil
}

func checkPoint(a vmi.AccessPoint) error {
	switch {
	case !dnsLabel.MatchString(a.Name):
		return malformed("name", "%q: want a DNS label such as \"web\"", a.Name)
	case a.GroupID == "" || len(a.GroupID) > maxText:
		return malformed("groupID", "%q: want the group whose VEEs serve it", a.GroupID)
	case a.Port < 1 || a.Port > 65535:
		return malformed("port", "%d: want 1 to 65535", a.Port)
	case len(a.Tag) > maxText:
		return malformed("tag", "%d bytes: at most %d", len(a.Tag), maxText)
	}
	switch a.Scheme {
	case "", "tcp", "http", "https":
		return nil
	}
	return malformed("scheme", "%q: want http, https or tcp", a.Scheme)
}

// PutAccessPoint: vmi.Service.
func (m *Manager) PutAccessPoint(ctx context.Context, a vmi.AccessPoint) (vmi.AccessPoint, error) {
	caller := identity.From(ctx)
	if err := mayWrite(caller); err != nil {
		return a, err
	}
	if err := checkPoint(a); err != nil {
		return a, err
	}
	if a.Customer == "" {
		a.Customer = caller.Customer
	}
	if !caller.Sees(a.Customer) {
		return a, fault.New(fault.Denied, "access point %s: customer %q is not %s's", a.Name, a.Customer, orElse(caller.ID, "the caller"))
	}
	key := pointKey(a.GroupID, a.Name)
	a.Backends = 0
	err := m.ledger.do(ctx, func(t *tx) error {
		a.Address = ""
		if old := t.points.get(key); old != nil {
			if old.Customer != a.Customer {
				return fault.New(fault.Denied, "access point %s belongs to another customer", key)
			}
			if a.Address = old.Address; old.AccessPoint == a {
				return nil
			}
		}
		put(t, &t.points, key, &pointRecord{a})
		return nil
	})
	if err != nil {
		return a, fmt.Errorf("access point %s: %w", key, err)
	}
	if err := m.balance(ctx, key); err != nil {
		return a, err
	}
	m.ledger.read(func(s *state) {
		if p := s.points.rows[key]; p != nil {
			a = p.AccessPoint
			a.Backends = len(m.backends(s, p))
		}
	})
	return a, nil
}

// DeleteAccessPoint: vmi.Service. fault.NotFound when there is none.
func (m *Manager) DeleteAccessPoint(ctx context.Context, groupID, name string) error {
	caller := identity.From(ctx)
	if err := mayWrite(caller); err != nil {
		return err
	}
	key := pointKey(groupID, name)
	err := m.ledger.do(ctx, func(t *tx) error {
		p := t.points.get(key)
		switch {
		case p == nil:
			return fault.New(fault.NotFound, "group %q has no access point %q", groupID, name)
		case !caller.Sees(p.Customer):
			return fault.New(fault.Denied, "access point %s belongs to another customer", key)
		}
		put(t, &t.points, key, nil)
		return nil
	})
	if err != nil {
		return err
	}
	return m.balance(ctx, key)
}

// ListAccessPoints: vmi.Service.
func (m *Manager) ListAccessPoints(ctx context.Context, groupID string) ([]vmi.AccessPoint, error) {
	caller := identity.From(ctx)
	if err := mayRead(caller); err != nil {
		return nil, err
	}
	list := []vmi.AccessPoint{}
	m.ledger.read(func(s *state) {
		for _, p := range s.points.rows {
			if caller.Sees(p.Customer) && (groupID == "" || p.GroupID == groupID) {
				a := p.AccessPoint
				a.Backends = len(m.backends(s, p))
				list = append(list, a)
			}
		}
	})
	slices.SortFunc(list, func(a, b vmi.AccessPoint) int {
		return strings.Compare(pointKey(a.GroupID, a.Name), pointKey(b.GroupID, b.Name))
	})
	return list, nil
}
