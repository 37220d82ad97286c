package veem

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// BenchmarkOnePort is what a change of one port costs the manager at a site of 1,000
// networks with 10 ports each: noting it, and the one segment that it is in.
func BenchmarkOnePort(b *testing.B) {
	m := &Manager{}
	s := &state{segments: newSegments()}
	for _, k := range s.shelves() {
		k.clear()
	}
	now := time.Unix(1_700_000_000, 0)
	for i := range 100 {
		h := fmt.Sprintf("h%d", i)
		s.hosts.rows[h] = &hostRecord{Name: h, Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}
	}
	var one *record
	for i := range 1000 {
		group := fmt.Sprintf("g%d", i)
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 + byte(i>>8), byte(i), 0}), 24)
		n := &networkRecord{Network: vmi.Network{Name: "back", GroupID: group, VNI: uint32(i + 1), Subnets: []netip.Prefix{subnet}, Gateways: []netip.Addr{nth(subnet, 1)}, MTU: vanMTU}}
		s.networks.rows[networkID(group, "back")] = n
		for k := range 10 {
			one = &record{Assigned: true, VEE: vmi.VEE{ID: vee.ID(fmt.Sprintf("alpha.%05d%05d", i, k)), State: vee.Active, Target: vee.Active, Host: fmt.Sprintf("h%d", (i+k)%100),
				Descriptor: vee.Descriptor{GroupID: group, Tags: []string{"web"}, Firewall: []vee.FirewallRule{{Allow: true, Protocol: "tcp", PeerTag: "web"}},
					NICs: []vee.NIC{{Network: "back", MAC: "06:00:00:01:00:40", Address: netip.PrefixFrom(nth(subnet, uint32(k+2)), 24).String()}}}}}
			s.vees.rows[string(one.ID)] = one
			s.segments.moved(nil, one, now)
		}
	}
	id := networkID(one.Descriptor.GroupID, "back")
	for b.Loop() {
		moved := *one
		moved.GuestReady = !one.GuestReady
		moved.GuestSeen = true
		s.vees.rows[string(one.ID)] = &moved
		s.segments.moved(one, &moved, now)
		one = &moved
		if g, ok := m.segment(s, id); !ok || len(g.Ports) != 10 || len(at(s, id)) != 10 {
			b.Fatal(g)
		}
	}
}
