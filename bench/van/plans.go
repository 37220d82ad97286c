package main

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Size of the site that is planned for.
const (
	networks        = 1000
	portsPerNetwork = 10
	siteHosts       = 20
	planRuns        = 7
)

// plans measures the planning of a host that has a port of every network: everything from
// nothing, and after one port has moved, each with the comparison and the fastest of some
// runs. The answer is the longer of the two.
func plans() (time.Duration, error) {
	segments, err := bigSite()
	if err != nil {
		return 0, err
	}
	at := func() plan.HostPlan { return plan.For("h0", underlay(0), "rsv0", segments) }
	home, moved := segments[500].Ports[0], &segments[500].Ports[0]
	var all, single []time.Duration
	var first, changes []plan.Change
	for range planRuns {
		*moved = home
		start := time.Now()
		whole := at()
		first = plan.Diff(nil, whole)
		all = append(all, time.Since(start))

		moved.Host, moved.Underlay = "h1", underlay(1)
		start = time.Now()
		changes = plan.Diff(whole, at())
		single = append(single, time.Since(start))
	}
	fromNothing, one := slices.Min(all), slices.Min(single)
	fmt.Printf("%d networks with %d ports at %d hosts, planned for a host that is in all of them (fastest of %d runs):\n\n", networks, networks*portsPerNetwork, siteHosts, planRuns)
	fmt.Printf("%-26s %10s %10s\n", "", "changes", "time")
	fmt.Printf("%-26s %10d %10v\n", "from nothing", len(first), fromNothing.Round(time.Millisecond))
	fmt.Printf("%-26s %10d %10v\n", "one port has moved", len(changes), one.Round(time.Millisecond))
	return max(fromNothing, one), nil
}

func underlay(host int) netip.Addr { return netip.AddrFrom4([4]byte{10, 80, 0, byte(11 + host)}) }

// bigSite is 1,000 networks; every second port has a firewall.
func bigSite() ([]plan.Segment, error) {
	all := make([]plan.Segment, networks)
	subnets := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")}
	for i := range all {
		s := plan.Segment{ID: fmt.Sprintf("alpha.service%d.net", i), Version: 1, VNI: uint32(i + 1), MTU: 1370, Subnets: subnets,
			Gateways: []netip.Addr{subnets[0].Addr().Next(), subnets[1].Addr().Next()}}
		for p := range portsPerNetwork {
			id, err := vee.NewID("alpha", nil)
			if err != nil {
				return nil, err
			}
			host := 0
			if p > 0 {
				host = (i + p) % siteHosts
			}
			port := plan.Port{VEE: id, MAC: fmt.Sprintf("52:54:00:%02x:%02x:%02x", i>>8, i&255, p), Host: fmt.Sprintf("h%d", host), Underlay: underlay(host),
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(10 + p)}), netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", 0x10+p))}}
			if p%2 == 0 {
				port.Firewall = []plan.Rule{{Allow: true, Protocol: "tcp", First: 80, Peers: subnets[:1]}, {Allow: true, Out: true, Protocol: "any"}}
			}
			s.Ports = append(s.Ports, port)
		}
		if err := s.Check(); err != nil {
			return nil, err
		}
		all[i] = s
	}
	return all, nil
}
