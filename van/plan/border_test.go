package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestForBorder: ports at a host of this site are behind the site's own tunnel, those of each
// other site behind a TAP, from which they alone may send.
func TestForBorder(t *testing.T) {
	at := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	s := Segment{ID: "alpha.shop/back", VNI: 7, MTU: 1370, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}, Gateways: []netip.Addr{at("10.1.0.1")}, Ports: []Port{
		{VEE: "alpha.aaaaaaaaaa", MAC: "52:54:00:00:00:01", Addresses: []netip.Addr{at("10.1.0.10")}, Host: "h1", Underlay: at("10.80.0.11")},
		{VEE: "alpha.bbbbbbbbbb", MAC: "52:54:00:00:00:02", Addresses: []netip.Addr{at("10.1.0.11")}, Host: "@beta", Underlay: at("10.80.0.2")},
		{VEE: "alpha.cccccccccc", MAC: "52:54:00:00:00:03", Addresses: []netip.Addr{at("10.1.0.12")}, Host: "@gamma", Underlay: at("10.80.0.2")},
		{VEE: "alpha.dddddddddd", MAC: "52:54:00:00:00:04", Addresses: []netip.Addr{at("10.1.0.13")}, Host: "h2"}, // which has not said its underlay address
		{VEE: "alpha.eeeeeeeeee", MAC: "06:00:00:07:00:fe", Addresses: []netip.Addr{at("10.1.0.254")}, Host: AtBorder, Underlay: at("10.80.0.2")},
	}}
	if sites := SitesOf(s); !slices.Equal(sites, []string{"beta", "gamma"}) {
		t.Errorf("sites %v", sites)
	}
	var b strings.Builder
	if err := ForBorder(at("10.80.0.2"), []Segment{s}).Write(&b); err != nil {
		t.Fatal(err)
	}
	beta, gamma := BorderTap(7, "beta"), BorderTap(7, "gamma")
	got := strings.NewReplacer(beta, "BETA", gamma, "GAMMA").Replace(b.String())
	const want = `bridge   rv000007 mtu 1500
forward  06:00:00:07:00:fe to rg000007
forward  52:54:00:00:00:01 to rx000007 at 10.80.0.11
forward  52:54:00:00:00:02 to BETA
forward  52:54:00:00:00:03 to GAMMA
gateway  rg000007 in rv000007 06:00:00:07:00:fe 10.1.0.254/24
member   BETA in rv000007
member   GAMMA in rv000007
tunnel   rx000007 in rv000007 vni 7 from 10.80.0.2 udp 4789
underlay 10.80.0.11
`
	var lines []string
	for line := range strings.Lines(got) {
		if !strings.HasPrefix(line, "answer") && !strings.HasPrefix(line, "permit") && !strings.HasPrefix(line, "network") {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines) // TAPs are named by a hash
	if text := strings.Join(lines, ""); text != want {
		t.Errorf("got\n%swant\n%s", text, want)
	}
	for _, line := range []string{"permit   52:54:00:00:00:02 10.1.0.11 from BETA", "permit   52:54:00:00:00:02 fe80::5054:ff:fe00:2 from BETA", "permit   52:54:00:00:00:03 10.1.0.12 from GAMMA",
		"answer   10.1.0.10 is 52:54:00:00:00:01 in van 7", "answer   10.1.0.13 is 52:54:00:00:00:04 in van 7"} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("there is no entry %q in\n%s", line, got)
		}
	}
	if n := strings.Count(got, "permit "); n != 6 {
		t.Errorf("%d permits: want those of the two ports elsewhere", n)
	}
	if len(beta) != 15 || beta == gamma || beta == BorderTap(8, "beta") {
		t.Errorf("TAPs %s, %s", beta, gamma)
	}
}
