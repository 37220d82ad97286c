package plan

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// threeTiers on two hosts: the web is on the site's network and on "app", the application
// on "app" and "data", the database on "data", where the application alone may ask it.
func threeTiers() []Segment {
	ip, prefix := netip.MustParseAddr, netip.MustParsePrefix
	port := func(id vee.ID, nic int, addr, host string, rules ...Rule) Port {
		mac := fmt.Sprintf("02:00:00:00:00:%02x", ip(addr).As4()[3])
		underlay := ip("10.80.0.1" + host[1:])
		return Port{VEE: id, NIC: nic, MAC: mac, Addresses: []netip.Addr{ip(addr)}, Host: host, Underlay: underlay, Firewall: rules}
	}
	private := func(id string, vni uint32, net string, ports ...Port) Segment {
		p := prefix(net)
		return Segment{ID: id, Version: 1, VNI: vni, Subnets: []netip.Prefix{p}, Gateways: []netip.Addr{p.Addr().Next()}, MTU: 1370, Ports: ports}
	}
	return []Segment{
		{ID: "site", Version: 1, Public: true, Subnets: []netip.Prefix{prefix("10.80.0.0/16")}, Gateways: []netip.Addr{ip("10.80.0.254")}, MTU: 1500,
			Ports: []Port{port("alpha.web", 0, "10.80.128.7", "h1")}},
		private("alpha.shop.app", 7, "10.128.1.0/24", port("alpha.web", 1, "10.128.1.2", "h1"), port("alpha.app", 0, "10.128.1.3", "h1")),
		private("alpha.shop.data", 8, "10.128.2.0/24", port("alpha.app", 1, "10.128.2.2", "h1"), port("alpha.tool", 0, "10.128.2.4", "h2"),
			port("alpha.db", 0, "10.128.2.3", "h2",
				Rule{Allow: true, Protocol: "tcp", First: 5432, Peers: []netip.Prefix{prefix("10.128.2.2/32")}},
				Rule{Allow: true, Out: true, Protocol: "udp", First: 1, Last: 1023})),
	}
}

func TestTraces(t *testing.T) {
	var b strings.Builder
	for _, q := range []Question{
		{"alpha.web", netip.MustParseAddr("10.128.1.3"), "tcp", 8080},
		{"alpha.app", netip.MustParseAddr("10.128.2.3"), "tcp", 5432},
		{"alpha.app", netip.MustParseAddr("10.128.2.3"), "tcp", 22},
		{"alpha.tool", netip.MustParseAddr("10.128.2.3"), "tcp", 5432},
		{"alpha.web", netip.MustParseAddr("10.128.2.3"), "tcp", 5432},
		{"alpha.db", netip.MustParseAddr("10.128.2.4"), "udp", 514},
		{"alpha.db", netip.MustParseAddr("10.128.2.4"), "tcp", 80},
		{"alpha.db", netip.MustParseAddr("10.128.2.1"), "udp", 53},
		{"alpha.db", netip.MustParseAddr("10.128.2.1"), "tcp", 22},
		{"alpha.app", netip.MustParseAddr("10.128.2.99"), "icmp", 0},
		{"alpha.app", netip.MustParseAddr("192.0.2.1"), "tcp", 443},
		{"alpha.web", netip.MustParseAddr("192.0.2.1"), "tcp", 443},
		{"alpha.web", netip.MustParseAddr("10.80.128.99"), "tcp", 80},
		{"alpha.gone", netip.MustParseAddr("10.80.128.7"), "tcp", 80},
	} {
		fmt.Fprintf(&b, "$ %s → %v %s %d\n", q.From, q.To, q.Protocol, q.Port)
		a := Find(threeTiers(), q)
		for _, h := range a.Hops {
			fmt.Fprintf(&b, "  %s\n", h)
		}
		if a.Dropped != "" {
			fmt.Fprintf(&b, "  dropped %s\n", a.Dropped)
		}
		if a.Delivered == (a.Dropped != "") {
			t.Errorf("%+v: delivered %v, dropped %q", q, a.Delivered, a.Dropped)
		}
	}
	const file = "testdata/traces.txt"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("traces differ (go test -update rewrites them); now:\n%s", &b)
	}
}
