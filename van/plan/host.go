package plan

import (
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Names of what belongs to a network on a host. All are of at most 15 characters, the
// kernel's bound, and their first two say what it is, so that leftovers are found.
const (
	TapPrefix     = "rt"
	BridgePrefix  = "rv"
	TunnelPrefix  = "rx"
	GatewayPrefix = "rg"
)

// BridgeName of a private network.
func BridgeName(vni uint32) string { return fmt.Sprintf("%s%06x", BridgePrefix, vni) }

// TunnelName of a private network's VXLAN device.
func TunnelName(vni uint32) string { return fmt.Sprintf("%s%06x", TunnelPrefix, vni) }

// GatewayName of a private network's veth, the end in the bridge.
func GatewayName(vni uint32) string { return fmt.Sprintf("%s%06x", GatewayPrefix, vni) }

// GatewayMAC is locally administered, and the same on every host.
func GatewayMAC(vni uint32) string {
	return fmt.Sprintf("0a:72:76:%02x:%02x:%02x", byte(vni>>16), byte(vni>>8), byte(vni))
}

// TapName of a VEE's i-th NIC: the same at every call. Two VEEs of one site differ in
// their identifier's random part; those of two sites in the hash.
func TapName(id vee.ID, i int) string {
	h := fnv.New32a()
	h.Write([]byte(id))
	return fmt.Sprintf("%s%s%02x%x", TapPrefix, id.Short(), byte(h.Sum32()), i&0xf)
}

// Tap of the port on its host.
func (p Port) Tap() string { return TapName(p.VEE, p.NIC) }

// HostPlan is what a host's kernel should hold, or holds.
type HostPlan map[Key]Entry

// Add an entry, in the place of one with its key.
func (h HostPlan) Add(e Entry) { h[e.key()] = e }

// For is the plan of a host that has the segments: those of whose networks it has ports.
// bridge is the host's own, which public networks use; underlay its address for tunnels.
// Segments must be valid (Segment.Check).
func For(host string, underlay netip.Addr, bridge string, segments []Segment) HostPlan {
	h := make(HostPlan, 16*len(segments))
	zones := zonesOf(host, segments)
	for _, s := range segments {
		if s.Public {
			h.public(host, bridge, s)
		} else {
			h.private(host, underlay, zones[s.VNI], s)
		}
		for _, p := range s.Ports {
			if p.Underlay.IsValid() {
				h.Add(Underlay{p.Underlay})
			}
		}
	}
	return h
}

// zonesOf gives each network that has a walled port on the host an identifier of 16 bits.
// It is made of the VNI, so that one network's coming or going does not change another's,
// unless two VNIs are the same in that part.
func zonesOf(host string, segments []Segment) map[uint32]uint16 {
	var vnis []uint32
	for _, s := range segments {
		if !s.Public && slices.ContainsFunc(s.Ports, func(p Port) bool { return p.Host == host && len(p.Firewall) > 0 }) {
			vnis = append(vnis, s.VNI)
		}
	}
	slices.Sort(vnis)
	const zones = 1<<16 - 1 // zone 0 is that of the host itself
	taken, of := map[uint16]bool{}, make(map[uint32]uint16, len(vnis))
	for _, v := range vnis {
		z := uint16((v-1)%zones) + 1
		for taken[z] {
			z = uint16(uint32(z)%zones) + 1
		}
		taken[z], of[v] = true, z
	}
	return of
}

func (h HostPlan) private(host string, underlay netip.Addr, zone uint16, s Segment) {
	bridge, tunnel, gateway := BridgeName(s.VNI), TunnelName(s.VNI), GatewayName(s.VNI)
	mac := GatewayMAC(s.VNI)
	h.Add(Bridge{Name: bridge})
	h.Add(Tunnel{Name: tunnel, Bridge: bridge, VNI: s.VNI, Local: underlay})
	h.Add(Gateway{Name: gateway, Bridge: bridge, MAC: mac, Addresses: withLengths(s, s.Gateways)})
	h.Add(Network{gateway, s.VNI})
	h.Add(Forward{Device: gateway, MAC: mac})
	h.Add(Gate{s.VNI, mac})
	for _, g := range s.Gateways {
		h.Add(Answer{s.VNI, g, mac})
		h.Add(Guest{Bridge: bridge, Addr: g, Gate: true})
	}
	if ll := LinkLocal(mac); len(s.Gateways) > 0 {
		h.Add(Answer{s.VNI, ll, mac})
		h.Add(Guest{Bridge: bridge, Addr: ll, Gate: true})
	}
	if zone != 0 {
		h.Add(Zone{bridge, zone})
	}
	for _, p := range s.Ports {
		for _, a := range owned(p) {
			h.Add(Answer{s.VNI, a, p.MAC})
		}
		if p.Host == host {
			h.port(bridge, s.VNI, p)
		} else if p.Underlay.IsValid() {
			h.Add(Forward{Device: tunnel, MAC: p.MAC, To: p.Underlay})
		}
	}
}

func (h HostPlan) public(host, bridge string, s Segment) {
	h.Add(Gate{0, ""})
	for _, p := range s.Ports {
		for _, a := range owned(p) {
			h.Add(Guest{Bridge: bridge, Addr: a})
		}
		if p.Host == host {
			h.port(bridge, 0, p)
			h.hatch(bridge, p)
		}
	}
}

// port that is on this host.
func (h HostPlan) port(bridge string, vni uint32, p Port) {
	tap := p.Tap()
	h.Add(Member{tap, bridge})
	h.Add(Forward{Device: tap, MAC: p.MAC})
	h.Add(Network{tap, vni})
	h.Add(Permit{Tap: tap, MAC: p.MAC})
	for _, a := range owned(p) {
		h.Add(Permit{Tap: tap, MAC: p.MAC, Addr: a})
	}
	for _, out := range []bool{false, true} {
		var rules []Rule
		for _, r := range p.Firewall {
			if r.Out == out {
				rules = append(rules, r)
			}
		}
		if len(rules) == 0 {
			continue
		}
		h.Add(NewWall(tap, out, rules))
		for _, a := range owned(p) {
			h.Add(Door{Bridge: bridge, Addr: a, Out: out, Tap: tap})
		}
	}
}

// hatch for the host alone in a wall of a public network.
func (h HostPlan) hatch(bridge string, p Port) {
	if p.Scraped == 0 || !slices.ContainsFunc(p.Firewall, func(r Rule) bool { return !r.Out }) {
		return
	}
	for _, a := range p.Addresses {
		h.Add(Hatch{Bridge: bridge, Addr: a, Port: p.Scraped})
	}
}

// owned addresses of a port: those that it was given, and the one that IPv6 makes of its
// MAC for use on the link.
func owned(p Port) []netip.Addr {
	return append(slices.Clone(p.Addresses), LinkLocal(p.MAC))
}

// LinkLocal address that RFC 4291, appendix A makes of a MAC; invalid where mac is not one.
func LinkLocal(mac string) netip.Addr {
	m, err := net.ParseMAC(mac)
	if err != nil || len(m) != 6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// withLengths writes addresses with the prefix lengths of the subnets that they are in.
func withLengths(s Segment, addresses []netip.Addr) string {
	var of []string
	for _, g := range addresses {
		for _, n := range s.Subnets {
			if n.Contains(g) {
				of = append(of, netip.PrefixFrom(g, n.Bits()).String())
			}
		}
	}
	return strings.Join(of, " ")
}
