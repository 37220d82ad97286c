package veem

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// segments is an index of the ledger: which VEEs have a NIC on which network, so that a
// change of one port costs that network alone, and the version of each segment. It changes
// with the rows and under the same lock, and is in memory only: a manager that has just
// started gives every segment a new version.
type segments struct {
	members map[string]map[vee.ID]struct{}
	version map[string]uint64
	last    uint64
}

func newSegments() segments {
	return segments{members: map[string]map[vee.ID]struct{}{}, version: map[string]uint64{}}
}

// of a network: the VEEs that are on it and not gone.
func (x *segments) of(id string) iter.Seq[vee.ID] { return maps.Keys(x.members[id]) }

// touch gives a segment a version that none had before: the time in microseconds, or one
// more than the last.
func (x *segments) touch(id string, now time.Time) {
	x.last = max(x.last+1, uint64(now.UnixMicro()))
	x.version[id] = x.last
}

// moved notes a change of a VEE's record; nil: there is none.
func (x *segments) moved(before, after *record, now time.Time) {
	if !rewired(before, after) {
		return
	}
	for id := range segmentsOf(before) {
		x.touch(id, now)
		if delete(x.members[id], before.ID); len(x.members[id]) == 0 {
			delete(x.members, id)
		}
	}
	for id := range segmentsOf(after) {
		x.touch(id, now)
		if x.members[id] == nil {
			x.members[id] = map[vee.ID]struct{}{}
		}
		x.members[id][after.ID] = struct{}{}
	}
}

// segment that one of r's NICs is in.
func (r *record) segment(nic vee.NIC) string {
	if nic.Public {
		return r.Scope + "//" + nic.Network
	}
	return networkID(r.Descriptor.GroupID, nic.Network)
}

// segmentsOf a VEE that is not gone; some may come twice.
func segmentsOf(r *record) iter.Seq[string] {
	return func(yield func(string) bool) {
		if r == nil || r.State == vee.Destroyed {
			return
		}
		for _, nic := range r.Descriptor.NICs {
			if !yield(r.segment(nic)) {
				return
			}
		}
	}
}

// attached: its ports are at its host.
func (r *record) attached() bool {
	return r.Host != "" && r.Assigned && r.State != vee.Destroyed
}

// hostsOf its ports: where they are, and where they are about to be.
func hostsOf(r *record) (hosts []string) {
	if r.attached() {
		hosts = append(hosts, r.Host)
		if r.moving() && r.Move.To != r.Host {
			hosts = append(hosts, r.Move.To)
		}
	}
	return hosts
}

// runs: it can be found by its own names.
func (r *record) runs() bool {
	return r.attached() && r.State == vee.Active && r.Target == vee.Active && r.Phase != vee.PhaseUnknown && r.Phase != vee.PhaseFailed
}

// works: it can be found by the names that it shares. A guest without an agent cannot say
// more than that it runs.
func (r *record) works() bool {
	return r.runs() && (r.GuestReady || !r.GuestSeen && r.Phase != vee.PhaseBoot)
}

// rewired reports whether a change of a VEE is one of its segments.
func rewired(a, b *record) bool {
	gone := func(r *record) bool { return r == nil || r.State == vee.Destroyed }
	if gone(a) || gone(b) {
		return gone(a) != gone(b)
	}
	return a.Host != b.Host || !slices.Equal(hostsOf(a), hostsOf(b)) || a.runs() != b.runs() || a.works() != b.works() ||
		a.Descriptor.Metrics.Port != b.Descriptor.Metrics.Port || !slices.Equal(a.Descriptor.Tags, b.Descriptor.Tags) || !slices.Equal(a.Descriptor.Firewall, b.Descriptor.Firewall)
}

// segment of a network as its hosts need to see it, with every port of it; false when there
// is no such network.
func (m *Manager) segment(s *state, id string) (plan.Segment, bool) {
	g := plan.Segment{ID: id, Version: s.segments.version[id], Ports: []plan.Port{}}
	n := s.networks.rows[id]
	if n != nil && n.Shared != nil {
		return m.sharedSegment(s, n), true
	}
	if n != nil {
		g.VNI, g.Subnets, g.Gateways, g.MTU = n.VNI, n.Subnets, n.Gateways, n.MTU
	}
	known := n != nil
	for member := range s.segments.of(id) {
		r := s.vees.rows[string(member)]
		for i, nic := range r.Descriptor.NICs {
			if r.segment(nic) != id {
				continue
			}
			if nic.Public {
				site := m.siteNetwork(nic.Network)
				g.Public, g.Subnets, g.Gateways, g.MTU, known = true, site.Subnets, site.Gateways, site.MTU, true
			}
			g.Domain = cmp.Or(g.Domain, nic.Domain)
			if r.attached() {
				g.Ports = append(g.Ports, port(s, r, i))
			}
		}
	}
	for i, p := range g.Ports {
		if isPartner(p.Host) {
			g.Ports[i].Underlay = m.border()
		}
	}
	slices.SortFunc(g.Ports, func(a, b plan.Port) int {
		return cmp.Or(cmp.Compare(a.VEE, b.VEE), cmp.Compare(a.NIC, b.NIC))
	})
	wall(s, &g)
	if n != nil && n.Entry.IsValid() {
		m.admitEntry(s, n, &g)
	}
	return g, known
}

// port of a VEE's i-th NIC, without its firewall.
func port(s *state, r *record, i int) plan.Port {
	nic := r.Descriptor.NICs[i]
	p := plan.Port{VEE: r.ID, NIC: i, MAC: nic.MAC, Addresses: []netip.Addr{}, Host: r.Host}
	for _, cidr := range []string{nic.Address, nic.Address6} {
		if a, err := netip.ParsePrefix(cidr); err == nil {
			p.Addresses = append(p.Addresses, a.Addr())
		}
	}
	if h := s.hosts.rows[r.Host]; h != nil {
		p.Underlay = h.Underlay
	}
	if nic.Public {
		p.Scraped = uint16(r.Descriptor.Metrics.Port)
	}
	if r.runs() {
		p.Names = slices.Clone(r.Descriptor.Naming.Own)
	}
	if r.works() {
		p.Names = append(p.Names, r.Descriptor.Naming.Shared...)
	}
	return p
}

// nobody has this address (RFC 6890: "this host on this network", never a source beyond it):
// what a rule names whose peers there are none of. No peers at all would mean anybody.
var nobody = netip.PrefixFrom(netip.IPv4Unspecified(), 32)

// wall gives the ports their firewall, with peers as they are now.
func wall(s *state, g *plan.Segment) {
	byTag := map[string][]netip.Prefix{}
	for _, p := range g.Ports {
		for _, tag := range s.vees.rows[string(p.VEE)].Descriptor.Tags {
			for _, a := range p.Addresses {
				byTag[tag] = append(byTag[tag], netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	for i := range g.Ports {
		r := s.vees.rows[string(g.Ports[i].VEE)]
		for _, f := range r.Descriptor.Firewall {
			rule := plan.Rule{Allow: f.Allow, Out: f.Out, Protocol: f.Protocol, First: f.First, Last: f.Last}
			switch {
			case f.PeerTag != "":
				rule.Peers = orNobody(byTag[f.PeerTag])
			case f.PeerNetwork != "":
				rule.Peers = orNobody(cameBy(g, r, g.Ports[i].NIC, f.PeerNetwork))
			case f.PeerPrefix != "":
				p, err := netip.ParsePrefix(f.PeerPrefix)
				if err == nil {
					rule.Peers = []netip.Prefix{p.Masked()}
				} else {
					rule.Peers = orNobody(nil)
				}
			}
			g.Ports[i].Firewall = append(g.Ports[i].Firewall, rule)
		}
	}
}

// admitEntry adds the proxy's own port to a segment, and lets it through the walls to where
// access points lead.
func (m *Manager) admitEntry(s *state, n *networkRecord, g *plan.Segment) {
	own := []netip.Prefix{netip.PrefixFrom(n.Entry, n.Entry.BitLen())}
	for i := range g.Ports {
		port := &g.Ports[i]
		if !slices.ContainsFunc(port.Firewall, func(r plan.Rule) bool { return !r.Out }) {
			continue // no wall
		}
		var in []plan.Rule
		for _, p := range s.points.rows {
			if p.selects(s.vees.rows[string(port.VEE)]) {
				rule := plan.Rule{Allow: true, Protocol: "tcp", First: uint16(p.Port), Peers: own}
				if p.Scheme == "udp" {
					rule.Protocol = "udp"
				}
				in = append(in, rule)
			}
		}
		slices.SortFunc(in, func(a, b plan.Rule) int {
			return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Protocol, b.Protocol))
		})
		port.Firewall = append(in, port.Firewall...)
	}
	g.Ports = append(g.Ports, m.entry(n))
}

func orNobody(peers []netip.Prefix) []netip.Prefix {
	if len(peers) == 0 {
		return []netip.Prefix{nobody}
	}
	return peers
}

// cameBy are the addresses that a rule about a network speaks of at one NIC: those of the
// NIC's own network, if that is the one. By the site's own network one may come from
// anywhere.
func cameBy(g *plan.Segment, r *record, nic int, network string) []netip.Prefix {
	switch n := r.Descriptor.NICs[nic]; {
	case n.Network != network:
		return nil
	case n.Public:
		return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	return g.Subnets
}

// at lists the hosts that a segment has to be put to, in order.
func at(s *state, id string) (hosts []string) {
	for member := range s.segments.of(id) {
		for _, h := range hostsOf(s.vees.rows[string(member)]) {
			if isPartner(h) && s.networks.rows[id] == nil {
				continue // this site's own network ends here
			}
			if i, there := slices.BinarySearch(hosts, h); !there {
				hosts = slices.Insert(hosts, i, h)
			}
		}
	}
	return hosts
}
