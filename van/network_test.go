package van

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

func TestSmoke(t *testing.T) {
	inNamespace(t, func() {
		n, err := Open(Config{Host: "h1", Underlay: netip.MustParseAddr("10.0.0.1"), Bridge: "rsv0", Log: slog.Default()})
		if err != nil {
			t.Fatal(err)
		}
		seg := plan.Segment{ID: "a.b.c", Version: 1, VNI: 10, MTU: 1370, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64")},
			Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1")},
			Ports: []plan.Port{{VEE: "alpha.aaaaaaaaaa", MAC: "52:54:00:00:00:01", Host: "h1", Underlay: netip.MustParseAddr("10.0.0.1"), Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00::5")},
				Firewall: []plan.Rule{{Allow: true, Protocol: "icmp", Peers: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("10.1.0.7/32")}}}},
				{VEE: "alpha.bbbbbbbbbb", MAC: "52:54:00:00:00:02", Host: "h2", Underlay: netip.MustParseAddr("10.0.0.2"), Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.6")}}}}
		if err := n.Apply([]plan.Segment{seg}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Plug("alpha.aaaaaaaaaa", 0); err != nil {
			t.Fatal(err)
		}
		have, want, err := n.Show()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range plan.Diff(have, want) {
			t.Error(c)
		}
		if err := n.Unplug(vee.ID("alpha.aaaaaaaaaa")); err != nil {
			t.Fatal(err)
		}
		if err := n.Destroy(); err != nil {
			t.Fatal(err)
		}
	})
}
