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
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// maxDraining bounds the list of VEEs that an access point drains: a component has no more
// replicas.
const maxDraining = 1000

// access is what the balancer was told last.
type access struct {
	mu    sync.Mutex        // held while the balancer is told, so that the newest comes last
	set   map[string]string // access point to what it is, in words
	swept bool              // nothing of an earlier process is left
}

// serves is what of a VEE decides whether it is a backend.
func serves(r *record) string {
	if r == nil || r.State != vee.Active || r.Target != vee.Active {
		return ""
	}
	return fmt.Sprintf("%s %v %v", r.Host, r.GuestReady, r.GuestSeen)
}

// backend of an access point, and the door to it if clients of this site need one.
type backend struct {
	plan.Backend
	door *Door
}

// Door is the way of this site's access points to a VEE that its clients do not reach by
// themselves: it is at a partner, or on private networks alone.
type Door struct {
	VEE  vee.ID
	Port uint16
	UDP  bool
	// Segment is the network that it is reached by, at To. Empty: it is at a partner and on no
	// private network of this site's; the VMI alone leads there.
	Segment string
	To      netip.AddrPort
}

// selects reports whether r is one of the VEEs that an access point is for.
func (p *pointRecord) selects(r *record) bool {
	d := &r.Descriptor
	return d.GroupID == p.GroupID && d.Customer == p.Customer && (p.Tag == "" || slices.Contains(d.Tags, p.Tag)) && r.State != vee.Destroyed
}

// way to a VEE for an access point: by its public network at this site, else by a network of
// its group's, wherever it is. false: there is none.
func (m *Manager) way(s *state, r *record, p *pointRecord) (b backend, ok bool) {
	b.VEE = r.ID
	to := func(n vee.NIC) bool {
		a, err := netip.ParsePrefix(n.Address)
		b.Address = netip.AddrPortFrom(a.Addr(), uint16(p.Port))
		return err == nil
	}
	nics := r.Descriptor.NICs
	if i := slices.IndexFunc(nics, func(n vee.NIC) bool { return n.Public }); i >= 0 && !r.away() {
		return b, to(nics[i])
	}
	b.door = &Door{VEE: r.ID, Port: uint16(p.Port), UDP: p.Scheme == "udp"}
	for _, n := range nics {
		if id := r.segment(n); !n.Public && s.networks.rows[id].own() && to(n) {
			b.door.Segment, b.door.To = id, b.Address
			return b, true
		}
	}
	return b, r.away() && len(nics) > 0 && to(nics[0])
}

// own: it is a network of this site's, and not deleted. n may be nil.
func (n *networkRecord) own() bool { return n != nil && n.Shared == nil && n.Deleted == nil }

// backends of an access point: the VEEs that run, are meant to, and are ready, where the
// guest says anything about that. Whether they are well is the balancer's to say.
func (m *Manager) backends(s *state, p *pointRecord) (to []backend) {
	for _, r := range s.vees.rows {
		if !p.selects(r) || serves(r) == "" || r.GuestSeen && !r.GuestReady || m.hosts.lost(r.Host) {
			continue
		}
		if b, ok := m.way(s, r, p); ok {
			b.Ready, b.Draining = r.GuestReady, slices.Contains(p.Draining, r.ID)
			to = append(to, b)
		}
	}
	slices.SortFunc(to, func(a, b backend) int { return a.Address.Compare(b.Address) })
	return to
}

// Doors are all that the site's access points may lead through now.
func (m *Manager) Doors() (all []Door) {
	m.ledger.read(func(s *state) { all = m.doors(s) })
	return all
}

func (m *Manager) doors(s *state) (all []Door) {
	for _, p := range s.points.rows {
		for _, r := range s.vees.rows {
			if !p.selects(r) {
				continue
			}
			if b, ok := m.way(s, r, p); ok && b.door != nil {
				all = append(all, *b.door)
			}
		}
	}
	return all
}

// DoorsOpened says that Config.Forward may answer otherwise than before.
func (m *Manager) DoorsOpened() {
	m.wakePoints(func(r *record) bool {
		return r.away() || !slices.ContainsFunc(r.Descriptor.NICs, func(n vee.NIC) bool { return n.Public })
	})
}

// enter gives the networks that an access point leads into their port at the proxy.
func (m *Manager) enter(ctx context.Context, p *pointRecord) error {
	var into []string
	m.ledger.read(func(s *state) {
		for _, r := range s.vees.rows {
			if !p.selects(r) {
				continue
			}
			if b, ok := m.way(s, r, p); ok && b.door != nil && b.door.Segment != "" && !s.networks.rows[b.door.Segment].Entry.IsValid() {
				into = append(into, b.door.Segment)
			}
		}
	})
	if len(into) == 0 {
		return nil
	}
	return m.ledger.do(ctx, func(t *tx) error {
		for _, id := range into {
			if n := t.networks.get(id); n.own() && !n.Entry.IsValid() {
				r := *n
				r.giveEntry(t)
				if r.Tunnel == 0 {
					r.Tunnel = tunnelVNI(t, m.cfg.Site, &r)
				}
				put(t, &t.networks, id, &r)
			}
		}
		return nil
	})
}

// forwarded are the backends as clients of this site are led to them: those that have a door by
// the way that the site opens (Config.Forward), or not at all.
func (m *Manager) forwarded(to []backend, key string) (led []plan.Backend) {
	for _, b := range to {
		if b.door != nil {
			if m.cfg.Forward == nil {
				continue
			}
			a, err := m.cfg.Forward(*b.door)
			if err != nil {
				m.cfg.Log.Warn("lead an access point to a VEE", "point", key, "vee", b.VEE, "err", err)
				continue
			}
			b.Address = a
		}
		led = append(led, b.Backend)
	}
	return led
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
	if err := m.dropLodged(ctx, key); err != nil {
		return m.attempt("access point "+key+" of a partner's", accessLane, err)
	}
	m.wakeElsewhere(key)
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
	m.ledger.read(func(s *state) { point = s.points.rows[key] })
	if point == nil {
		delete(m.access.set, key)
		return m.cfg.Balancer.Remove(key)
	}
	if err := m.enter(ctx, point); err != nil {
		return fmt.Errorf("access point %s: %w", key, err)
	}
	var ready []backend
	m.ledger.read(func(s *state) { ready = m.backends(s, point) })
	to := m.forwarded(ready, key)
	p := plan.Point{
		Key: key, Group: point.GroupID, UDP: point.Scheme == "udp", Address: point.Address, Port: uint16(point.Port),
		Algorithm: plan.Algorithm(point.Algorithm), Health: point.Health, Backends: to,
	}
	words := fmt.Sprint(p)
	if was, set := m.access.set[key]; set && was == words && point.Address != "" {
		return nil
	}
	addr, err := m.cfg.Balancer.Set(ctx, p)
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
	p.Address = addr
	m.access.set[key] = fmt.Sprint(p)
	return m.sweepPoints()
}

// sweepPoints removes what an earlier process left of access points that are no more, once
// the balancer has been told of all that there are. The caller holds m.access.mu.
func (m *Manager) sweepPoints() error {
	if m.access.swept {
		return nil
	}
	all := true
	m.ledger.read(func(s *state) {
		for key := range s.points.rows {
			_, set := m.access.set[key]
			all = all && set
		}
	})
	if !all {
		return nil
	}
	if err := m.cfg.Balancer.Sweep(); err != nil {
		return fmt.Errorf("access points that are no more: %w", err)
	}
	m.access.swept = true
	return nil
}

// BackendChanged notes for people that a backend of an access point has become well, or ill.
func (m *Manager) BackendChanged(key string, b plan.BackendState) {
	e := Event{Reason: "BackendWell", Object: "vee/" + string(b.VEE)}
	if !b.Healthy {
		e.Warning, e.Reason = true, "BackendIll"
	}
	known := false
	m.ledger.read(func(s *state) {
		if p := s.points.rows[key]; p != nil {
			known, e.Customer, e.GroupID = true, p.Customer, p.GroupID
			e.Message = fmt.Sprintf("answers at access point %s", key)
			if !b.Healthy {
				e.Message = fmt.Sprintf("gets no new connection of access point %s: it %s", key, b.Why)
			}
		}
	})
	if known {
		m.cfg.Recorder.Record(e)
	}
}

// serving is the access point with what is observed of its backends.
func serving(a vmi.AccessPoint, states []plan.BackendState) vmi.AccessPoint {
	a.Backends, a.Serving = 0, nil
	for _, b := range states {
		if b.Healthy && !b.Draining {
			a.Backends++
		}
		a.Serving = append(a.Serving, vmi.Backend{
			VEE: b.VEE, Address: b.Address.String(), Healthy: b.Healthy, Why: b.Why, Draining: b.Draining, Connections: b.Connections,
		})
	}
	return a
}

// samePoint reports whether a asks for what b is.
func samePoint(a, b vmi.AccessPoint) bool {
	return a.Partners == b.Partners && a.Name == b.Name && a.GroupID == b.GroupID && a.Customer == b.Customer && a.Tag == b.Tag && a.Port == b.Port &&
		a.Scheme == b.Scheme && a.Algorithm == b.Algorithm && a.Health == b.Health && slices.Equal(a.Draining, b.Draining)
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
	if a.Health != "" && (a.Health[0] != '/' || len(a.Health) > maxText || strings.ContainsAny(a.Health, " \r\n")) {
		return malformed("health", "%q: want a path such as \"/health\"", a.Health)
	}
	if len(a.Draining) > maxDraining {
		return malformed("draining", "%d VEEs: at most %d", len(a.Draining), maxDraining)
	}
	switch plan.Algorithm(a.Algorithm) {
	case "", plan.RoundRobin, plan.LeastConnections, plan.SourceHash:
	default:
		return malformed("algorithm", "%q: want %s, %s or %s", a.Algorithm, plan.RoundRobin, plan.LeastConnections, plan.SourceHash)
	}
	switch a.Scheme {
	case "", "tcp", "http", "https", "udp":
		return nil
	}
	return malformed("scheme", "%q: want http, https, tcp or udp", a.Scheme)
}

// PutAccessPoint: vmi.Service.
func (m *Manager) PutAccessPoint(ctx context.Context, a vmi.AccessPoint) (vmi.AccessPoint, error) {
	caller := identity.From(ctx)
	if err := checkPoint(a); err != nil {
		return a, err
	}
	if caller.Is(identity.Partner) && caller.Site != "" {
		return m.lodgePoint(ctx, caller, a)
	}
	if err := mayWrite(caller); err != nil {
		return a, err
	}
	if a.Customer == "" {
		a.Customer = caller.Customer
	}
	if !caller.Sees(a.Customer) {
		return a, fault.New(fault.Denied, "access point %s: customer %q is not %s's", a.Name, a.Customer, orElse(caller.ID, "the caller"))
	}
	return m.setPoint(ctx, a)
}

// setPoint makes an access point that was checked, or changes it.
func (m *Manager) setPoint(ctx context.Context, a vmi.AccessPoint) (vmi.AccessPoint, error) {
	key := pointKey(a.GroupID, a.Name)
	a.Backends, a.Serving, a.Elsewhere = 0, nil, nil
	err := m.ledger.do(ctx, func(t *tx) error {
		a.Address = ""
		shared := a.Partners
		if old := t.points.get(key); old != nil {
			if old.Customer != a.Customer {
				return fault.New(fault.Denied, "access point %s belongs to another customer", key)
			}
			if a.Address = old.Address; samePoint(old.AccessPoint, a) {
				return nil
			}
			shared = shared || old.Shared
		}
		put(t, &t.points, key, &pointRecord{AccessPoint: a, Shared: shared})
		rewall(t, a.GroupID)
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
		}
	})
	return serving(a, m.cfg.Balancer.Show(key)[key]), nil
}

// rewall has the walls of a group's VEEs made anew where access points come in by the proxy.
func rewall(t *tx, group string) {
	for id, n := range t.networks.all() {
		if n.GroupID == group && n.Entry.IsValid() {
			r := *n
			r.Version++
			put(t, &t.networks, id, &r)
		}
	}
}

// DeleteAccessPoint: vmi.Service. fault.NotFound when there is none.
func (m *Manager) DeleteAccessPoint(ctx context.Context, groupID, name string) error {
	caller := identity.From(ctx)
	if caller.Is(identity.Partner) && caller.Site != "" {
		groupID = foreign(caller.Site, groupID)
	} else if err := mayWrite(caller); err != nil {
		return err
	}
	key := pointKey(groupID, name)
	err := m.ledger.do(ctx, func(t *tx) error {
		p := t.points.get(key)
		switch {
		case p == nil:
			return fault.New(fault.NotFound, "group %q has no access point %q", groupID, name)
		case !caller.Is(identity.Partner) && !caller.Sees(p.Customer):
			return fault.New(fault.Denied, "access point %s belongs to another customer", key)
		}
		put(t, &t.points, key, nil)
		rewall(t, groupID)
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
	list, keys := []vmi.AccessPoint{}, []string{}
	m.ledger.read(func(s *state) {
		for _, p := range s.points.rows {
			if caller.Sees(p.Customer) && (groupID == "" || p.GroupID == groupID) {
				list, keys = append(list, p.AccessPoint), append(keys, pointKey(p.GroupID, p.Name))
			}
		}
	})
	states := m.cfg.Balancer.Show(keys...)
	for i, key := range keys {
		list[i] = serving(list[i], states[key])
		list[i].Elsewhere = m.elsewhere.of(key)
	}
	slices.SortFunc(list, func(a, b vmi.AccessPoint) int {
		return strings.Compare(pointKey(a.GroupID, a.Name), pointKey(b.GroupID, b.Name))
	})
	return list, nil
}
