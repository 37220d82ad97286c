package veem

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Access points over sites. A partner that has VEEs of an access point with Partners opens one
// of its own for those, so that users come in at either site: the primary tells it what the
// point should be, again and again, and is told its address and how its backends are. A
// partner drops the point with the last VEE of it that it has, by itself: it serves on while
// its primary is not reached.

// Opening partners have access points for VEEs of this site's. The vhi.Host of a partner is one.
type Opening interface {
	OpenAccess(ctx context.Context, a vmi.AccessPoint) (vmi.AccessPoint, error)
	CloseAccess(ctx context.Context, groupID, name string) error
}

// elsewhere is what partners told of access points, by the point's key and the site.
type elsewhere struct {
	mu sync.Mutex
	at map[string]map[string]vmi.PartnerPoint
}

func (e *elsewhere) note(key string, p vmi.PartnerPoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.at == nil {
		e.at = map[string]map[string]vmi.PartnerPoint{}
	}
	if e.at[key] == nil {
		e.at[key] = map[string]vmi.PartnerPoint{}
	}
	e.at[key][p.Site] = p
}

func (e *elsewhere) forget(key, site string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if delete(e.at[key], site); len(e.at[key]) == 0 {
		delete(e.at, key)
	}
}

// of an access point, in the order of the sites.
func (e *elsewhere) of(key string) (all []vmi.PartnerPoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.at[key] {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b vmi.PartnerPoint) int { return cmp.Compare(a.Site, b.Site) })
	return all
}

// atPartners are the partners that have VEEs of an access point.
func (p *pointRecord) atPartners(s *state) (hosts []string) {
	for _, r := range s.vees.rows {
		if p.selects(r) && r.away() && r.attached() && !slices.Contains(hosts, r.Host) {
			hosts = append(hosts, r.Host)
		}
	}
	return hosts
}

func elsewhereJob(host, key string) job { return job{partnerPointJob, host + "\x00" + key} }

// wakeElsewhere looks at what partners have of an access point.
func (m *Manager) wakeElsewhere(key string) {
	var hosts []string
	m.ledger.read(func(s *state) {
		if p := s.points.rows[key]; p != nil && (p.Partners || p.Shared) {
			hosts = p.atPartners(s)
		}
	})
	for _, p := range m.elsewhere.of(key) { // those that may have none any more
		if h := "@" + p.Site; !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	for _, h := range hosts {
		m.queue.add(elsewhereJob(h, key), controlLane(h))
	}
}

// lookElsewhere brings a partner to have the access point that it should, and notes how it is.
func (m *Manager) lookElsewhere(ctx context.Context, name string) result {
	host, key, _ := strings.Cut(name, "\x00")
	site := partnerOf(host)
	var point *pointRecord
	m.ledger.read(func(s *state) {
		if p := s.points.rows[key]; p != nil && slices.Contains(p.atPartners(s), host) {
			point = p
		}
	})
	if point == nil {
		m.elsewhere.forget(key, site)
		return result{}
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timing.Call)
	defer cancel()
	c, err := m.client(host)
	there, opens := c.(Opening)
	if err == nil && !opens {
		err = fault.New(fault.Unsupported, "site %s opens no access points", site)
	}
	if !point.Partners {
		if err == nil {
			err = there.CloseAccess(ctx, point.GroupID, point.Name)
		}
		if m.elsewhere.forget(key, site); err != nil && !fault.Has(err, fault.NotFound) {
			return m.attempt("close access point "+key+" at site "+site, controlLane(host), err)
		}
		return result{}
	}
	ask := point.AccessPoint
	ask.Address = ""
	var got vmi.AccessPoint
	if err == nil {
		got, err = there.OpenAccess(ctx, ask)
	}
	told := vmi.PartnerPoint{Site: site, Address: got.Address, Backends: got.Backends, Serving: got.Serving}
	if err != nil {
		told.Why = fault.From(err).Message
	}
	m.elsewhere.note(key, told)
	after := m.cfg.Timing.Look
	if told.Backends == 0 { // it has only begun
		after /= 8
	}
	return result{after: after, lane: controlLane(host)}
}

// lodgePoint makes an access point for a partner's VEEs that are here.
func (m *Manager) lodgePoint(ctx context.Context, caller identity.Caller, a vmi.AccessPoint) (vmi.AccessPoint, error) {
	if m.cfg.Partnership == nil {
		return a, fault.New(fault.Denied, "site %s lends nothing to site %s", m.cfg.Site, caller.Site)
	}
	if err := m.cfg.Partnership.AdmitAccess(caller.Site); err != nil {
		return a, err
	}
	own := a
	a.GroupID, a.Customer, a.Partners = foreign(caller.Site, a.GroupID), foreign(caller.Site, a.Customer), false
	here := false
	m.ledger.read(func(s *state) {
		p := pointRecord{AccessPoint: a}
		for _, r := range s.vees.rows {
			if here = p.selects(r) && r.lodges() && slices.ContainsFunc(r.Descriptor.NICs, func(n vee.NIC) bool { return n.Public }); here {
				return
			}
		}
	})
	if !here {
		return own, fault.New(fault.WrongState, "access point %s: no VEE of it that is on a public network is at site %s", own.Name, m.cfg.Site)
	}
	made, err := m.setPoint(ctx, a)
	made.GroupID, made.Customer = own.GroupID, own.Customer
	return made, err
}

// dropLodged removes an access point of a partner's of which no VEE is left here.
func (m *Manager) dropLodged(ctx context.Context, key string) error {
	left := false
	m.ledger.read(func(s *state) {
		p := s.points.rows[key]
		left = p != nil && strings.Contains(p.GroupID, "/")
		for _, r := range s.vees.rows {
			left = left && !p.selects(r)
		}
	})
	if !left {
		return nil
	}
	return m.ledger.do(ctx, func(t *tx) error {
		put(t, &t.points, key, nil)
		return nil
	})
}
