package veem

import (
	"cmp"
	"context"
	"encoding/binary"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Networks that span sites. The primary tells a partner of a network before a VEE of it runs
// there and as long as one may: who is on it, and at which site. There it is a network of its
// own, behind the primary's name and under a VNI of that site; who is there is what the site
// knows itself, everything else is behind the proxy.

// maxSharedPorts of a network that another site shares: it is one record.
const maxSharedPorts = 512

// Sharing partners are told of the networks of VEEs that they have. The vhi.Host of a partner
// is one.
type Sharing interface {
	PutNetwork(ctx context.Context, n peer.Network) error
	RemoveNetwork(ctx context.Context, id string) error
}

// isPartner reports whether a host is another site.
func isPartner(host string) bool { return strings.HasPrefix(host, plan.SitePrefix) }

// partnerOf is the site that a host is.
func partnerOf(host string) string { return strings.TrimPrefix(host, plan.SitePrefix) }

// tunnelVNI of a network between sites: drawn from its name, and anew where it meets one that
// another site has drawn.
func tunnelVNI(t *tx, site string, r *networkRecord) uint32 {
	taken := map[uint32]bool{}
	for id, o := range t.networks.all() {
		if id != r.ID {
			taken[o.tunnel()] = true
		}
	}
	for {
		r.Drawn++
		h := fnv32(site, r.ID, r.Drawn)
		if v := h % (maxVNI + 1); v != 0 && !taken[v] {
			return v
		}
	}
}

// tunnel identifier of a network; 0: it has none.
func (n *networkRecord) tunnel() uint32 {
	if n.Shared != nil {
		return n.Shared.TunnelVNI
	}
	return n.Tunnel
}

// networksShared checks that the networks of another site's VEE reach here.
func networksShared(t *tx, r record) error {
	for _, nic := range r.Descriptor.NICs {
		if nic.Public {
			continue
		}
		if n := t.networks.get(r.segment(nic)); n == nil || n.Deleted != nil || n.Shared == nil {
			return fault.New(fault.Unavailable, "VEE %s: network %q is not shared with this site yet", r.ID, nic.Network)
		}
	}
	return nil
}

// PutNetwork of a partner's: peer.Networks.
func (p Peering) PutNetwork(ctx context.Context, n peer.Network) error {
	caller := identity.From(ctx)
	if err := mayPeer(caller); err != nil {
		return err
	}
	if err := checkShared(n); err != nil {
		return err
	}
	id := foreign(caller.Site, n.ID)
	return p.m.ledger.do(ctx, func(t *tx) error {
		r := networkRecord{Created: t.now, Network: vmi.Network{ID: id, Name: n.Name, GroupID: foreign(caller.Site, n.GroupID), Customer: foreign(caller.Site, n.Customer)}}
		if old := t.networks.get(id); old != nil {
			if old.Shared == nil {
				return fault.New(fault.Conflict, "network %s is one of this site's own", id)
			}
			if old.Shared.Version >= n.Version && old.Deleted == nil {
				return nil
			}
			r = *old
			r.Deleted = nil
		}
		for other, o := range t.networks.all() {
			if other != id && o.tunnel() == n.TunnelVNI {
				return fault.New(fault.Conflict, "network %s: VNI %d of the tunnel is another network's", id, n.TunnelVNI)
			}
		}
		if r.VNI == 0 {
			v, err := freeVNI(t)
			if err != nil {
				return err
			}
			r.VNI = v
		}
		r.Subnets, r.Gateways, r.MTU, r.Shared = n.Subnets, n.Gateways, n.MTU, &n
		r.Version++
		put(t, &t.networks, id, &r)
		return nil
	})
}

func checkShared(n peer.Network) error {
	switch {
	case n.ID == "" || n.ID != networkID(n.GroupID, n.Name) || len(n.ID) > 2*maxText:
		return malformed("id", "%q: want the group and the name", n.ID)
	case !networkName.MatchString(n.Name):
		return malformed("name", "%q: want a letter, then letters, digits, and . _ -", n.Name)
	case n.TunnelVNI == 0 || n.TunnelVNI > maxVNI:
		return malformed("tunnelVNI", "%d: want 1 to %d", n.TunnelVNI, maxVNI)
	case len(n.Subnets) == 0 || len(n.Subnets) != len(n.Gateways):
		return malformed("subnets", "%d, and %d gateways: want one of each, or one of each for both families", len(n.Subnets), len(n.Gateways))
	case len(n.Ports) > maxSharedPorts:
		return fault.New(fault.TooLarge, "ports: %d: a network that spans sites has at most %d", len(n.Ports), maxSharedPorts)
	}
	for _, port := range n.Ports {
		if mac, err := net.ParseMAC(port.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return malformed("ports", "VEE %s has MAC %q", port.VEE, port.MAC)
		}
		if !vee.ValidName(port.Site) {
			return malformed("ports", "VEE %s is at site %q", port.VEE, port.Site)
		}
	}
	g := segmentOf(n)
	g.VNI = n.TunnelVNI // the site's own follows
	return g.Check()
}

// segmentOf a network as its primary tells it, without this site's part.
func segmentOf(n peer.Network) plan.Segment {
	g := plan.Segment{ID: n.ID, Version: n.Version, Domain: n.Domain, Subnets: n.Subnets, Gateways: n.Gateways, MTU: n.MTU, Ports: []plan.Port{}}
	for _, p := range n.Ports {
		x := p.Port
		x.Host, x.Underlay = border.SiteHost(p.Site), netip.Addr{}
		g.Ports = append(g.Ports, x)
	}
	return g
}

// RemoveNetwork of a partner's: peer.Networks.
func (p Peering) RemoveNetwork(ctx context.Context, id string) error {
	caller := identity.From(ctx)
	if err := mayPeer(caller); err != nil {
		return err
	}
	id = foreign(caller.Site, id)
	return p.m.ledger.do(ctx, func(t *tx) error {
		r := t.networks.get(id)
		switch {
		case r == nil || r.Shared == nil || r.Deleted != nil:
			return nil
		case users(t, id) > 0:
			return fault.New(fault.InUse, "network %s: VEEs are on it here", id)
		}
		left := *r
		left.Deleted = &t.now
		left.Version++
		put(t, &t.networks, id, &left)
		return nil
	})
}

// HeldNetworks of a partner's: peer.Networks.
func (p Peering) HeldNetworks(ctx context.Context) (map[string]uint64, error) {
	caller := identity.From(ctx)
	if err := mayPeer(caller); err != nil {
		return nil, err
	}
	held := map[string]uint64{}
	p.m.ledger.read(func(s *state) {
		for id, r := range s.networks.rows {
			if own, theirs := strings.CutPrefix(id, foreign(caller.Site, "")); theirs && r.Shared != nil && r.Deleted == nil {
				held[own] = r.Shared.Version
			}
		}
	})
	return held, nil
}

// Peering is the manager as partner sites see it beside the VMI.
type Peering struct{ m *Manager }

// Peering of m: the part of peer.Site that is about networks.
func (m *Manager) Peering() Peering { return Peering{m} }

func mayPeer(c identity.Caller) error {
	if c.Is(identity.Partner) && c.Site != "" {
		return nil
	}
	return fault.New(fault.Denied, "role %q: only partner sites do that", c.Role)
}

// sharedSegment is a network of another site's as this site's hosts need to see it: what is
// here is where this site knows it to be, everything else is behind the proxy.
func (m *Manager) sharedSegment(s *state, n *networkRecord) plan.Segment {
	g := segmentOf(*n.Shared)
	g.ID, g.Version, g.VNI = n.ID, s.segments.version[n.ID], n.VNI
	away := m.border()
	ports := g.Ports[:0]
	for _, p := range g.Ports {
		here := false
		if r := s.vees.rows[string(p.VEE)]; r != nil && r.attached() {
			p.Host, here = r.Host, true
			if h := s.hosts.rows[r.Host]; h != nil {
				p.Underlay = h.Underlay
			}
		}
		switch {
		case here:
		case p.Host == border.SiteHost(m.cfg.Site):
			continue // it has left, or never came
		default:
			p.Underlay = away
		}
		ports = append(ports, p)
	}
	g.Ports = ports
	slices.SortFunc(g.Ports, func(a, b plan.Port) int { return cmp.Or(cmp.Compare(a.VEE, b.VEE), cmp.Compare(a.NIC, b.NIC)) })
	return g
}

// border is the underlay address of this site's proxy.
func (m *Manager) border() netip.Addr {
	if m.cfg.Border == nil {
		return netip.Addr{}
	}
	return m.cfg.Border()
}

// shareable is a network of this site's own as a partner is told of it; false: it is none.
func (m *Manager) shareable(s *state, id string) (peer.Network, bool) {
	n := s.networks.rows[id]
	if n == nil || n.Shared != nil || n.Tunnel == 0 {
		return peer.Network{}, false
	}
	g, _ := m.segment(s, id)
	out := peer.Network{ID: id, Version: g.Version, GroupID: n.GroupID, Customer: n.Customer, Name: n.Name, TunnelVNI: n.Tunnel,
		Domain: g.Domain, Subnets: g.Subnets, Gateways: g.Gateways, MTU: g.MTU, Ports: []peer.Port{}}
	for _, p := range g.Ports {
		site := m.cfg.Site
		if away, is := plan.SiteOf(p); is {
			site = away
		}
		p.Host, p.Underlay = "", netip.Addr{}
		out.Ports = append(out.Ports, peer.Port{Port: p, Site: site})
	}
	return out, true
}

// Border is what the site's proxy carries: every network that spans sites, or that access
// points enter by it.
func (m *Manager) Border() (segments []border.Segment) {
	m.ledger.read(func(s *state) {
		entered := map[string]bool{}
		for _, d := range m.doors(s) {
			entered[d.Segment] = true
		}
		for id, n := range s.networks.rows {
			if n.tunnel() == 0 || n.Deleted != nil {
				continue
			}
			if g, _ := m.segment(s, id); len(plan.SitesOf(g)) > 0 || entered[id] {
				segments = append(segments, border.Segment{Segment: g, Tunnel: n.tunnel()})
			}
		}
	})
	slices.SortFunc(segments, func(a, b border.Segment) int { return cmp.Compare(a.ID, b.ID) })
	return segments
}

// shareAt tells a partner of a network, or that it has no VEE of it any more.
func (m *Manager) shareAt(ctx context.Context, to Sharing, host, id string, wanted bool) error {
	if !wanted {
		return to.RemoveNetwork(ctx, id)
	}
	if err := m.drawTunnel(ctx, id, false); err != nil {
		return err
	}
	var n peer.Network
	m.ledger.read(func(s *state) { n, wanted = m.shareable(s, id) })
	if !wanted {
		return fault.New(fault.Unsupported, "network %s is this site's own: it does not reach site %s", id, partnerOf(host))
	}
	err := to.PutNetwork(ctx, n)
	if fault.Has(err, fault.Conflict) {
		if drawn := m.drawTunnel(ctx, id, true); drawn != nil {
			return drawn
		}
	}
	return err
}

// drawTunnel gives a network an identifier between sites; again: another one.
func (m *Manager) drawTunnel(ctx context.Context, id string, again bool) error {
	done := false
	m.ledger.read(func(s *state) { n := s.networks.rows[id]; done = n == nil || n.Tunnel != 0 && !again })
	if done {
		return nil
	}
	return m.ledger.do(ctx, func(t *tx) error {
		n := t.networks.get(id)
		if n == nil || n.Tunnel != 0 && !again {
			return nil
		}
		r := *n
		r.Tunnel = tunnelVNI(t, m.cfg.Site, &r)
		r.giveEntry(t) // before access points have anybody to lead to
		put(t, &t.networks, id, &r)
		return nil
	})
}

// entryID stands for the proxy where a port has to have a VEE's identifier.
func entryID(site string) vee.ID { return vee.ID(site + ".proxyproxy") }

// giveEntry gives the proxy an address in the network, if it has none: the last that is free.
// Without a free one access points do not come in by the proxy.
func (n *networkRecord) giveEntry(t *tx) {
	if n.Entry.IsValid() {
		return
	}
	taken := map[netip.Addr]bool{n.Gateways[0]: true}
	for _, r := range t.vees.all() {
		for _, nic := range r.Descriptor.NICs {
			if a, err := netip.ParsePrefix(nic.Address); err == nil && r.State != vee.Destroyed && r.segment(nic) == n.ID {
				taken[a.Addr()] = true
			}
		}
	}
	first, a := usable(n.Subnets[0])
	for ; taken[a]; a = a.Prev() {
		if a == first {
			return
		}
	}
	n.Entry = a
}

// entry is the proxy's own port in a network of this site's.
func (m *Manager) entry(n *networkRecord) plan.Port {
	p := pool{net: n.range4(), of: n}
	return plan.Port{VEE: entryID(m.cfg.Site), MAC: p.mac(n.Entry), Addresses: []netip.Addr{n.Entry}, Host: plan.AtBorder, Underlay: m.border()}
}

// fnv32 of a name and a number (FNV-1a).
func fnv32(site, id string, n uint32) uint32 {
	h := fnv.New32a()
	h.Write([]byte(site + "\x00" + id))
	h.Write(binary.BigEndian.AppendUint32(nil, n))
	return h.Sum32()
}
