package veem

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// on a group's networks and the site's.
func on(d vee.Descriptor, networks ...string) vee.Descriptor {
	d.NICs = nil
	for _, n := range networks {
		d.NICs = append(d.NICs, vee.NIC{Network: n})
	}
	d.Naming = vee.Naming{Domain: "shop.alpha.internal", Own: []string{d.Name + ".web", d.Name}, Shared: []string{"web"}}
	return d
}

func (s *fakeSite) network(group, name string, w vmi.NetworkWish) vmi.Network {
	s.t.Helper()
	n, err := s.manager().PutNetwork(s.operator(), vmi.Network{Name: name, GroupID: group, Customer: "acme", Wish: w})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *fakeSite) make(ds ...vee.Descriptor) []vmi.VEE {
	s.t.Helper()
	out, err := s.manager().InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, ds...))
	if err != nil {
		s.t.Fatal(err)
	}
	return out.VEEs
}

func (h *fakeHost) segment(id string) (plan.Segment, bool) {
	defer h.lock()()
	g, there := h.segments[id]
	return g, there
}

// names of a segment: name to how many addresses it has.
func names(g plan.Segment) map[string]int {
	found := map[string]int{}
	for _, p := range g.Ports {
		for _, n := range p.Names {
			found[n]++
		}
	}
	return found
}

func TestNetworkOfAGroup(t *testing.T) {
	inSite(t, 3, func(s *fakeSite) {
		n := s.network("shop", "back", vmi.NetworkWish{IPv6: true})
		if again := s.network("shop", "back", vmi.NetworkWish{IPv6: true}); fmt.Sprint(again) != fmt.Sprint(n) {
			t.Errorf("put again: %+v, want %+v", again, n)
		}
		if n.VNI == 0 || n.MTU != 1370 || len(n.Subnets) != 2 || !netip.MustParsePrefix("10.128.0.0/9").Contains(n.Subnets[0].Addr()) || n.Subnets[1].Bits() != 64 {
			t.Errorf("%+v", n)
		}
		apart := []vmi.PlacementRule{{Kind: "anti-affinity", Tag: "web"}}
		in := initialize(vmi.TwoPhase, on(web(1), "back", "net"), on(web(2), "back", "net"))
		for i := range in.VEEs {
			in.VEEs[i].Descriptor.Metrics = vee.Metrics{Port: 9100, Path: "/metrics", EveryMS: 10_000}
		}
		in.Rules = apart
		out, err := s.m.InitializeVEEs(s.operator(), in)
		if err != nil {
			t.Fatal(err)
		}
		s.submit(ids(out.VEEs)...)
		seen := map[string]bool{}
		for _, v := range out.VEEs {
			v = s.untilThat(v.ID, "ready", func(v vmi.VEE) bool { return v.GuestReady })
			nic := v.Descriptor.NICs[0]
			a, a6 := netip.MustParsePrefix(nic.Address), netip.MustParsePrefix(nic.Address6)
			if seen[nic.MAC] || seen[nic.Address] || !n.Subnets[0].Contains(a.Addr()) || !n.Subnets[1].Contains(a6.Addr()) || nic.Gateway != "" || len(nic.DNS) != 2 || nic.MTU != 1370 {
				t.Errorf("%+v", nic)
			}
			seen[nic.MAC], seen[nic.Address] = true, true
			if !v.Descriptor.NICs[1].Public || v.Descriptor.NICs[1].Gateway == "" {
				t.Errorf("the public NIC: %+v", v.Descriptor.NICs[1])
			}
		}
		time.Sleep(time.Second)
		holders := 0
		for _, h := range s.hosts {
			g, there := h.segment("shop/back")
			if !there {
				continue
			}
			holders++
			want := map[string]int{"web-1": 1, "web-1.web": 1, "web-2": 1, "web-2.web": 1, "web": 2}
			if len(g.Ports) != 2 || g.VNI != n.VNI || g.Domain != "shop.alpha.internal" || !maps.Equal(names(g), want) || g.Ports[0].Underlay == g.Ports[1].Underlay || !g.Ports[0].Underlay.IsValid() {
				t.Errorf("%s: %+v", h.name, g)
			}
			if p, there := h.segment("acme/shop//net"); !there || !p.Public || len(p.Ports) != 2 || p.VNI != 0 || p.Ports[0].Scraped != 9100 || g.Ports[0].Scraped != 0 {
				t.Errorf("%s, public: %+v", h.name, p)
			}
		}
		if holders != 2 {
			t.Errorf("%d hosts have the network, want the two that have a VEE on it", holders)
		}
		if err := s.m.DeleteNetwork(s.operator(), "shop", "back"); !fault.Has(err, fault.InUse) {
			t.Errorf("deleted in use: %v", err)
		}
		view, err := s.m.GetNetwork(s.provider("acme"), "shop", "back")
		if err != nil || len(view.Ports) != 2 || len(view.Hosts) != 2 || view.NICs != 2 {
			t.Errorf("%+v, %v", view, err)
		}
		plans, err := s.m.NetworkPlan(s.operator(), "shop", "back")
		if err != nil || len(plans) != 2 || plans[0].Version == 0 || len(plans[0].Entries) != 1 {
			t.Errorf("%+v, %v", plans, err)
		}
		if _, err := s.m.GetNetwork(s.provider("other"), "shop", "back"); !fault.Has(err, fault.NotFound) {
			t.Errorf("another customer's: %v", err)
		}
	})
}

// TestNamesFollow: a replica that stops has no name within a second, and its port goes with
// it.
func TestNamesFollow(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		s.network("shop", "back", vmi.NetworkWish{})
		vs := s.make(on(web(1), "back"), on(web(2), "back"))
		s.submit(ids(vs)...)
		for _, v := range vs {
			s.untilThat(v.ID, "ready", func(v vmi.VEE) bool { return v.GuestReady })
		}
		h := s.hosts[0]
		look := func(what string, ports int, want map[string]int) {
			t.Helper()
			time.Sleep(time.Second)
			if g, _ := h.segment("shop/back"); len(g.Ports) != ports || !maps.Equal(names(g), want) {
				t.Errorf("%s: %d ports, names %v; want %d and %v", what, len(g.Ports), names(g), ports, want)
			}
		}
		both := map[string]int{"web-1": 1, "web-1.web": 1, "web-2": 1, "web-2.web": 1, "web": 2}
		one := map[string]int{"web-1": 1, "web-1.web": 1, "web": 1}
		look("both run", 2, both)
		s.act(vee.Pause, vs[1].ID)
		look("one is paused", 2, one)
		s.act(vee.Activate, vs[1].ID)
		look("it goes on", 2, both)
		h.set(func() { h.guests[vs[1].ID].ready, h.guests[vs[1].ID].unready = false, true })
		s.untilThat(vs[1].ID, "not ready", func(v vmi.VEE) bool { return !v.GuestReady })
		look("it says that it is not ready", 2, map[string]int{"web-1": 1, "web-1.web": 1, "web-2": 1, "web-2.web": 1, "web": 1})
		s.act(vee.Destroy, vs[1].ID)
		look("one is gone", 1, one)
		s.act(vee.Destroy, vs[0].ID)
		time.Sleep(time.Second)
		if _, there := h.segment("shop/back"); there {
			t.Error("the host holds a network that it has no VEE of")
		}
	})
}

// TestOneNetworkOnly: what changes on one network is told to its hosts and costs the others
// nothing.
func TestOneNetworkOnly(t *testing.T) {
	inSite(t, 3, func(s *fakeSite) {
		for _, group := range []string{"shop", "other"} {
			s.network(group, "back", vmi.NetworkWish{})
			d := on(web(1), "back")
			d.GroupID = group
			s.submit(s.make(d)[0].ID)
		}
		time.Sleep(time.Minute)
		versions := func(group string) (all []uint64) {
			for _, h := range s.hosts {
				g, _ := h.segment(group + "/back")
				all = append(all, g.Version)
			}
			return all
		}
		shop, other := versions("shop"), versions("other")
		more := s.make(on(web(2), "back"))
		s.submit(more[0].ID)
		s.until(more[0].ID, vee.Active)
		time.Sleep(time.Minute)
		if slices.Equal(versions("shop"), shop) || !slices.Equal(versions("other"), other) {
			t.Errorf("shop %v, was %v; other %v, was %v", versions("shop"), shop, versions("other"), other)
		}
		if slices.Index(other, 0) < 0 {
			t.Errorf("%v: a host has a network that it has no VEE of", other)
		}
	})
}

// TestIdentifiersRest: a VNI and a subnet are nobody else's while a host may hold something
// of their network.
func TestIdentifiersRest(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		n := s.network("shop", "back", vmi.NetworkWish{})
		vs := s.make(on(web(1), "back"))
		s.submit(vs[0].ID)
		v := s.until(vs[0].ID, vee.Active)
		s.act(vee.Destroy, v.ID)
		s.host(v.Host).set(func() { s.host(v.Host).down = true })
		if err := s.m.DeleteNetwork(s.operator(), "shop", "back"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		list, err := s.m.ListNetworks(s.operator(), "shop")
		if err != nil || len(list) != 2 || !slices.ContainsFunc(list, func(l vmi.Network) bool { return l.Leaving && l.VNI == n.VNI }) {
			t.Fatalf("a host that may hold it does not answer: %+v, %v", list, err)
		}
		if other := s.network("other", "back", vmi.NetworkWish{}); other.VNI == n.VNI || other.Subnets[0].Overlaps(n.Subnets[0]) {
			t.Errorf("%+v has what %+v had", other, n)
		}
		s.host(v.Host).set(func() { s.host(v.Host).down = false })
		time.Sleep(time.Minute)
		if list, err := s.m.ListNetworks(s.operator(), "shop"); err != nil || len(list) != 1 {
			t.Errorf("every host has said that it does not hold it: %+v, %v", list, err)
		}
		again := s.network("shop", "back", vmi.NetworkWish{})
		if again.VNI == n.VNI {
			t.Errorf("VNI %d is used again at once", n.VNI)
		}
	})
}

func TestSubnets(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		p := netip.MustParsePrefix("10.1.0.0/24")
		s.network("shop", "a", vmi.NetworkWish{Subnet: p})
		if n := s.network("other", "a", vmi.NetworkWish{Subnet: p}); n.Subnets[0] != p {
			t.Errorf("another group asked for the same: %+v", n)
		}
		for want, w := range map[string]vmi.NetworkWish{
			"overlaps 10.1.0.0/24": {Subnet: netip.MustParsePrefix("10.1.0.128/25")},
			"overlaps 10.80.0.0":   {Subnet: netip.MustParsePrefix("10.80.4.0/24")},
			"wish.subnet":          {Subnet: netip.MustParsePrefix("10.0.0.0/8")},
			"wish.mtu":             {MTU: 1000, IPv6: true},
		} {
			if _, err := s.m.PutNetwork(s.operator(), vmi.Network{Name: "b", GroupID: "shop", Customer: "acme", Wish: w}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v, want %q", w, err, want)
			}
		}
		if _, err := s.m.PutNetwork(s.provider("other"), vmi.Network{Name: "a", GroupID: "shop"}); !fault.Has(err, fault.Denied) {
			t.Errorf("another customer's: %v", err)
		}
		d := on(web(1), "a")
		d.NICs[0].Address = "10.1.0.9"
		s.make(d)
		twice := on(web(2), "a")
		twice.NICs[0].Address = "10.1.0.9"
		if _, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, twice)); !fault.Has(err, fault.NoResources) || !strings.Contains(fmt.Sprint(err), "web-1") {
			t.Errorf("an address that is taken: %v", err)
		}
		for _, a := range []string{"10.1.0.1", "10.1.0.0", "10.1.0.255", "10.2.0.1"} {
			twice.NICs[0].Address = a
			if _, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, twice)); !fault.Has(err, fault.Malformed) {
				t.Errorf("address %s: %v", a, err)
			}
		}
		if _, err := s.m.PutNetwork(s.operator(), vmi.Network{Name: "a", GroupID: "shop", Customer: "acme"}); !fault.Has(err, fault.InUse) {
			t.Errorf("another subnet while a VEE is on it: %v", err)
		}
		s.m.cfg.VANs = netip.MustParsePrefix("10.80.0.0/14") // the site's own network is in it
		for i := range 3 {
			if n := s.network("shop", fmt.Sprint("n", i), vmi.NetworkWish{}); n.Subnets[0].Overlaps(netip.MustParsePrefix("10.80.0.0/16")) {
				t.Errorf("%+v overlaps the site's", n)
			}
		}
	})
}

// TestFirewallIsResolved: components to the addresses of their replicas as they are now.
func TestFirewallIsResolved(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		s.network("shop", "back", vmi.NetworkWish{IPv6: true})
		db := on(web(1), "back")
		db.Name, db.Tags = "db-1", []string{"db"}
		db.Firewall = []vee.FirewallRule{{Allow: true, Protocol: "tcp", First: 5432, Last: 5432, PeerTag: "web"}, {Allow: true, Protocol: "icmp", PeerNetwork: "back"}, {Protocol: "any", PeerPrefix: "10.0.0.0/8"}}
		vs := s.make(db)
		s.submit(vs[0].ID)
		s.until(vs[0].ID, vee.Active)
		rules := func() []plan.Rule {
			time.Sleep(time.Second)
			g, _ := s.hosts[0].segment("shop/back")
			for _, p := range g.Ports {
				if p.VEE == vs[0].ID {
					return p.Firewall
				}
			}
			return nil
		}
		if r := rules(); len(r) != 3 || len(r[0].Peers) != 1 || r[0].Peers[0] != nobody || len(r[1].Peers) != 2 || r[2].Peers[0].String() != "10.0.0.0/8" {
			t.Errorf("without a web replica: %+v", r)
		}
		more := s.make(on(web(2), "back"))
		s.submit(more[0].ID)
		s.until(more[0].ID, vee.Active)
		a := netip.MustParsePrefix(more[0].Descriptor.NICs[0].Address).Addr()
		if r := rules(); len(r) != 3 || !slices.Contains(r[0].Peers, netip.PrefixFrom(a, 32)) || len(r[0].Peers) != 2 {
			t.Errorf("with one at %v: %+v", a, r)
		}
	})
}

// TestRestartedManagerPutsSegmentsAgain: what hosts hold from before is replaced, whatever
// its version, also when the clock was set back.
func TestRestartedManagerPutsSegmentsAgain(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		s.network("shop", "back", vmi.NetworkWish{})
		vs := s.make(on(web(1), "back"))
		s.submit(vs[0].ID)
		s.untilThat(vs[0].ID, "ready", func(v vmi.VEE) bool { return v.GuestReady })
		time.Sleep(time.Minute)
		h := s.hosts[0]
		h.set(func() {
			g := h.segments["shop/back"]
			g.Ports, g.Version = nil, g.Version+1<<50
			h.segments["shop/back"] = g
			h.segments["gone/back"] = g
		})
		s.stop()
		s.start()
		time.Sleep(time.Minute)
		if g, _ := h.segment("shop/back"); len(g.Ports) != 1 {
			t.Errorf("%+v", g)
		}
		if _, there := h.segment("gone/back"); there {
			t.Error("a network that there is not is still held")
		}
		puts := h.puts
		time.Sleep(30 * time.Minute)
		if h.puts != puts {
			t.Errorf("%d puts in an idle half hour", h.puts-puts)
		}
	})
}

// TestAddressesProperty: whatever comes and goes, no two VEEs of a network have the same
// address or MAC, and all are of its subnet.
func TestAddressesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		subnet := netip.PrefixFrom(netip.MustParseAddr("10.9.0.0"), rapid.IntRange(largest, smallest).Draw(t, "bits"))
		n := networkRecord{Network: vmi.Network{VNI: uint32(rapid.IntRange(1, maxVNI).Draw(t, "vni")), Subnets: []netip.Prefix{subnet}, Gateways: []netip.Addr{nth(subnet, 1)}, MTU: vanMTU}}
		p := &pool{net: n.range4(), of: &n, taken: map[netip.Addr]string{}}
		macs := map[string]netip.Addr{}
		for i := range rapid.IntRange(1, 40).Draw(t, "NICs") {
			d := vee.Descriptor{Name: fmt.Sprint("v", i), NICs: []vee.NIC{{Network: "back"}}}
			if rapid.Bool().Draw(t, "asks") {
				d.NICs[0].Address = nth(subnet, uint32(rapid.IntRange(0, 1<<(32-subnet.Bits())-1).Draw(t, "address"))).String()
			}
			before := maps.Clone(p.taken)
			if p.give(&d, 0) != nil {
				continue
			}
			a := netip.MustParsePrefix(d.NICs[0].Address)
			if before[a.Addr()] != "" || !subnet.Contains(a.Addr()) || a.Addr() == n.Gateways[0] || macs[d.NICs[0].MAC].IsValid() {
				t.Fatalf("%+v was given, taken before: %v", d.NICs[0], before)
			}
			macs[d.NICs[0].MAC] = a.Addr()
			if number(subnet, a.Addr()) == 0 || a.Addr() == lastOf(subnet) {
				t.Fatalf("%v is no host's", a)
			}
		}
	})
}
