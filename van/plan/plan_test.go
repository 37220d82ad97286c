package plan

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
)

var hosts = []string{"h1", "h2", "h3"}

func underlay(host string) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 80, 0, host[len(host)-1] - '0'})
}

// network number i of a site, with ports that are the site's own too.
func network(i, ports int) Segment {
	vni := uint32(i + 1)
	s := Segment{ID: fmt.Sprintf("alpha.shop.net%d", i), Version: 1, VNI: vni, MTU: 1370, Domain: "shop.alpha.internal",
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")}}
	for p := range ports {
		s.Ports = append(s.Ports, newPort(i, p, hosts[p%len(hosts)]))
	}
	return s
}

func newPort(i, p int, host string) Port {
	letters := func(n int) string {
		b := []byte("aaaaa")
		for k := range b {
			b[k] = byte('a' + n%26)
			n /= 26
		}
		return string(b)
	}
	port := Port{VEE: vee.ID("alpha." + letters(i) + letters(p)), MAC: fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", i>>8, i&255, p>>8, p&255),
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 1 + byte(p>>8), byte(p)}), netip.MustParseAddr(fmt.Sprintf("fd00:1::1:%x", p))},
		Host:      host, Underlay: underlay(host)}
	if p%3 == 0 {
		port.Scraped = 9100
		port.Firewall = []Rule{{Allow: true, Protocol: "tcp", First: 80}, {Out: true, Allow: true, Protocol: "any", Peers: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}}
	}
	return port
}

func site(t *rapid.T) []Segment {
	var all []Segment
	for i := range rapid.IntRange(0, 6).Draw(t, "networks") {
		s := network(i, rapid.IntRange(0, 8).Draw(t, "ports"))
		if i == 5 {
			s.ID, s.VNI, s.Public = "alpha//public", 0, true
		}
		for k := range s.Ports {
			s.Ports[k].Host = rapid.SampledFrom(hosts).Draw(t, "host")
			s.Ports[k].Underlay = underlay(s.Ports[k].Host)
		}
		all = append(all, s)
	}
	return all
}

func planOf(host string, s []Segment) HostPlan { return For(host, underlay(host), "rsv0", s) }

// follow applies changes as a kernel would.
func follow(have HostPlan, changes []Change) (HostPlan, error) {
	now := HostPlan{}
	for k, e := range have {
		now[k] = e
	}
	for _, c := range changes {
		old, there := now[c.Key()]
		if there != (c.Have != nil) || there && !old.same(c.Have) {
			return nil, fmt.Errorf("%s: but there is %v", c, old)
		}
		if delete(now, c.Key()); c.Want != nil {
			now[c.Key()] = c.Want
		}
	}
	return now, nil
}

func TestADiffLeadsFromHereToThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := planOf("h1", site(t)), planOf("h1", site(t))
		for k, e := range have { // no device is made anew: that is another test
			if w, ok := want[k]; ok && (k.Kind == KindTunnel || k.Kind == KindGateway) && !e.same(w) {
				return
			}
		}
		got, err := follow(have, Diff(have, want))
		if err != nil {
			t.Fatal(err)
		}
		if rest := Diff(got, want); len(rest) > 0 {
			t.Fatalf("left over: %v", rest)
		}
		if again := Diff(want, want); len(again) > 0 {
			t.Fatalf("a plan differs from itself: %v", again)
		}
	})
}

// TestEntriesAreMadeBeforeWhatNeedsThem: a bridge before its ports, a wall before its doors;
// and removed after them.
func TestEntriesAreMadeBeforeWhatNeedsThem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var gone, made Kind
		for i, c := range Diff(planOf("h1", site(t)), planOf("h1", site(t))) {
			k := c.Key().Kind
			switch {
			case c.Want == nil && i > 0 && k > gone:
				t.Fatalf("%s comes too late", c)
			case c.Want == nil && made > 0:
				t.Fatalf("%s after something was made", c)
			case c.Want == nil:
				gone = k
			case k < made:
				t.Fatalf("%s comes too late", c)
			default:
				made = k
			}
		}
	})
}

// TestOnePortsChangeTouchesItsOwnEntries alone, on every host.
func TestOnePortsChangeTouchesItsOwnEntries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := site(t)
		i := rapid.IntRange(0, 5).Draw(t, "network")
		if i >= len(before) || len(before[i].Ports) < 2 {
			return
		}
		after := append([]Segment(nil), before...)
		after[i].Ports = append([]Port(nil), before[i].Ports...)
		k := rapid.IntRange(0, len(after[i].Ports)-1).Draw(t, "port")
		own := func(p Port) []string {
			all := []string{p.MAC, p.Tap()}
			for _, a := range owned(p) {
				all = append(all, a.String()+" ")
			}
			return all
		}
		mine := own(after[i].Ports[k])
		switch rapid.SampledFrom([]string{"gone", "moved", "rules", "address"}).Draw(t, "change") {
		case "gone":
			after[i].Ports = append(after[i].Ports[:k:k], after[i].Ports[k+1:]...)
		case "moved":
			after[i].Ports[k].Host = rapid.SampledFrom(hosts).Draw(t, "to")
			after[i].Ports[k].Underlay = underlay(after[i].Ports[k].Host)
		case "rules":
			after[i].Ports[k].Firewall = []Rule{{Protocol: "udp"}}
		case "address":
			after[i].Ports[k].Addresses = []netip.Addr{netip.MustParseAddr("10.1.200.1")}
			mine = append(mine, own(after[i].Ports[k])...)
		}
		for _, h := range hosts {
			for _, c := range Diff(planOf(h, before), planOf(h, after)) {
				kind := c.Key().Kind
				touches := kind == KindUnderlay || kind == KindZone // of the network as a whole: the first or last of its kind
				for _, m := range mine {
					touches = touches || strings.Contains(c.String()+" ", m)
				}
				if !touches {
					t.Fatalf("host %s: %s is none of the port's (%v)", h, c, mine)
				}
			}
		}
	})
}

// TestHostsAgree: every port of a private network is behind one device of each host, the
// owner's TAP or a tunnel to it, and may send nowhere but at its owner's.
func TestHostsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := site(t)
		for _, h := range hosts {
			plan := planOf(h, all)
			for _, s := range all {
				for _, p := range s.Ports {
					here := Forward{Device: p.Tap(), MAC: p.MAC}
					there := Forward{Device: TunnelName(s.VNI), MAC: p.MAC, To: p.Underlay}
					_, local := plan[here.key()]
					remote := plan[there.key()]
					if local != (p.Host == h) || !s.Public && (remote == Entry(there)) != (p.Host != h) {
						t.Fatalf("host %s, port %s at %s: here %v, there %v", h, p.VEE, p.Host, local, remote)
					}
					if _, may := plan[Permit{Tap: p.Tap(), MAC: p.MAC}.key()]; may != (p.Host == h) {
						t.Fatalf("host %s: port %s of %s may send: %v", h, p.VEE, p.Host, may)
					}
				}
			}
		}
	})
}

func TestZonesOfNetworksDiffer(t *testing.T) {
	a, b, c := network(0, 1), network(0, 1), network(0, 1)
	a.VNI, b.VNI, c.VNI = 1, 1+1<<16-1, 1<<24-1
	zones := zonesOf("h1", []Segment{a, b, c})
	if len(zones) != 3 || zones[a.VNI] == zones[b.VNI] || zones[a.VNI] == 0 || zones[b.VNI] == 0 || zones[c.VNI] == 0 {
		t.Errorf("zones %v", zones)
	}
}

func TestADeviceThatIsMadeAnewGetsItsEntriesBack(t *testing.T) {
	want := planOf("h1", []Segment{network(0, 6)})
	have := planOf("h1", []Segment{network(0, 6)})
	tunnel := Tunnel{Name: TunnelName(1), Bridge: BridgeName(1), VNI: 1, Local: underlay("h3")}
	have.Add(tunnel)
	made := 0
	for i, c := range Diff(have, want) {
		if f, ok := c.Want.(Forward); ok && f.Device == tunnel.Name && i > 0 {
			made++
		}
	}
	if made != 4 {
		t.Errorf("%d entries behind the tunnel were made, want those of four ports at other hosts", made)
	}
}

func TestNamesFitTheKernelAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	take := func(n string, max int) {
		if len(n) > max || seen[n] {
			t.Fatalf("name %q: %d characters, seen %v", n, len(n), seen[n])
		}
		seen[n] = true
	}
	for range 2000 {
		id, err := vee.NewID("alpha", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			take(TapName(id, i), 15)
		}
	}
	for _, v := range []uint32{1, 255, 1 << 16, 1<<24 - 1} {
		take(BridgeName(v), 15)
		take(TunnelName(v), 15)
		take(GatewayName(v), 15)
		take(GatewayMAC(v), 17)
	}
}

func TestCheckRefusesWhatCannotBePlanned(t *testing.T) {
	if err := network(0, 9).Check(); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(*Segment){
		"without an identifier": func(s *Segment) { s.ID = "" },
		"VNI 0":                 func(s *Segment) { s.VNI = 0 },
		"VNI of 25 bits":        func(s *Segment) { s.VNI = 1 << 24 },
		"public with a VNI":     func(s *Segment) { s.Public = true },
		"no MTU":                func(s *Segment) { s.MTU = 0 },
		"a jumbo MTU":           func(s *Segment) { s.MTU = 9000 },
		"two IPv4 subnets":      func(s *Segment) { s.Subnets = append(s.Subnets, netip.MustParsePrefix("10.2.0.0/16")) },
		"host bits":             func(s *Segment) { s.Subnets[0] = netip.MustParsePrefix("10.1.2.3/16") },
		"a gateway elsewhere":   func(s *Segment) { s.Gateways[0] = netip.MustParseAddr("192.0.2.1") },
		"the gateway's address": func(s *Segment) { s.Ports[1].Addresses[0] = s.Gateways[0] },
		"one address twice":     func(s *Segment) { s.Ports[1].Addresses[0] = s.Ports[0].Addresses[0] },
		"one MAC twice":         func(s *Segment) { s.Ports[1].MAC = s.Ports[0].MAC },
		"a group's MAC":         func(s *Segment) { s.Ports[1].MAC = "53:54:00:00:00:01" },
		"a MAC in capitals":     func(s *Segment) { s.Ports[1].MAC = "52:54:00:00:00:AA" },
		"no VEE":                func(s *Segment) { s.Ports[1].VEE = "x" },
		"NIC 16":                func(s *Segment) { s.Ports[1].NIC = 16 },
		"an unknown protocol":   func(s *Segment) { s.Ports[1].Firewall = []Rule{{Protocol: "sctp"}} },
		"ports the wrong way":   func(s *Segment) { s.Ports[1].Firewall = []Rule{{Protocol: "tcp", First: 9, Last: 8}} },
		"a port of ICMP":        func(s *Segment) { s.Ports[1].Firewall = []Rule{{Protocol: "icmp", First: 9}} },
		"a peer that is none":   func(s *Segment) { s.Ports[1].Firewall = []Rule{{Protocol: "tcp", Peers: []netip.Prefix{{}}}} },
	} {
		s := network(0, 3)
		if spoil(&s); s.Check() == nil {
			t.Errorf("%s was accepted", what)
		}
	}
}

func TestWhatPeopleRead(t *testing.T) {
	before, public := network(9, 3), network(0, 2)
	public.ID, public.VNI, public.Public = "alpha//public", 0, true
	for i := range public.Ports {
		public.Ports[i].VEE = vee.ID(fmt.Sprintf("alpha.public222%c", 'a'+i))
	}
	var out bytes.Buffer
	if err := planOf("h1", []Segment{before, public}).Write(&out); err != nil {
		t.Fatal(err)
	}
	after := network(9, 3)
	after.Ports[0].Host, after.Ports[0].Underlay = "h2", underlay("h2")
	after.Ports[2].Underlay = netip.MustParseAddr("10.80.0.9")
	fmt.Fprintln(&out, "\none port has moved, and another's host has another address:")
	for _, c := range Diff(planOf("h1", []Segment{before, public}), planOf("h1", []Segment{after, public})) {
		fmt.Fprintln(&out, c)
	}
	const file = "testdata/plan.txt"
	if *update {
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("the plan's text differs (go test -update rewrites it); now:\n%s", &out)
	}
}
