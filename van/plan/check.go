package plan

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Check that a segment that came from outside can be planned with: its identifiers are in
// range, its MACs are written as the kernel writes them, its addresses are of its subnets,
// and nobody has an address that is another's.
func (s Segment) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("network %s: "+format, append([]any{s.ID}, args...)...)
	}
	switch {
	case s.ID == "":
		return fmt.Errorf("a network without an identifier")
	case s.Public && s.VNI != 0:
		return bad("it is public and has VNI %d", s.VNI)
	case !s.Public && (s.VNI == 0 || s.VNI >= 1<<24):
		return bad("VNI %d: want 1 to %d (RFC 7348)", s.VNI, 1<<24-1)
	case s.MTU < 576 || s.MTU > DeviceMTU:
		return bad("MTU %d: want 576 to %d", s.MTU, DeviceMTU)
	}
	var families [2]int
	for _, n := range s.Subnets {
		if !n.IsValid() || n != n.Masked() {
			return bad("subnet %s: want a network's own address and length", n)
		}
		families[family(n.Addr())]++
	}
	if families[0] > 1 || families[1] > 1 {
		return bad("%d subnets: want at most one of each family", len(s.Subnets))
	}
	addresses, macs := map[netip.Addr]string{}, map[string]string{}
	take := func(who string, a netip.Addr) error {
		if !s.contains(a) {
			return bad("%s has %s, which is in none of its subnets", who, a)
		}
		if other, ok := addresses[a]; ok {
			return bad("%s and %s have the same address %s", other, who, a)
		}
		addresses[a] = who
		return nil
	}
	for _, g := range s.Gateways {
		if err := take("the gateway", g); err != nil {
			return err
		}
	}
	for _, p := range s.Ports {
		who := fmt.Sprintf("NIC %d of VEE %s", p.NIC, p.VEE)
		if m, err := net.ParseMAC(p.MAC); err != nil || len(m) != 6 || m.String() != p.MAC || m[0]&1 != 0 {
			return bad("%s has MAC %q: want one such as 52:54:00:0a:0b:0c", who, p.MAC)
		}
		if _, err := vee.ParseID(string(p.VEE)); err != nil || p.NIC < 0 || p.NIC > 15 {
			return bad("%s: want a VEE's identifier and a NIC from 0 to 15", who)
		}
		if other, ok := macs[p.MAC]; ok {
			return bad("%s and %s have the same MAC %s", other, who, p.MAC)
		}
		macs[p.MAC] = who
		for _, a := range p.Addresses {
			if err := take(who, a); err != nil {
				return err
			}
		}
		for _, r := range p.Firewall {
			if err := r.check(); err != nil {
				return bad("%s: %w", who, err)
			}
		}
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (s Segment) contains(a netip.Addr) bool {
	for _, n := range s.Subnets {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

func (r Rule) check() error {
	switch r.Protocol {
	case "tcp", "udp", "icmp", "any":
	default:
		return fmt.Errorf("firewall rule for protocol %q: want tcp, udp, icmp or any", r.Protocol)
	}
	if r.Last != 0 && r.Last < r.First {
		return fmt.Errorf("firewall rule for ports %d to %d", r.First, r.Last)
	}
	if r.Protocol == "icmp" && r.First != 0 {
		return fmt.Errorf("firewall rule for ports of icmp, which has none")
	}
	for _, p := range r.Peers {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("firewall rule for peer %s", p)
		}
	}
	return nil
}
