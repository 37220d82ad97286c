package veem

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (l *link) PutAccessPoint(ctx context.Context, a vmi.AccessPoint) (vmi.AccessPoint, error) {
	return over(ctx, l, "open", func(ctx context.Context, m *Manager) (vmi.AccessPoint, error) { return m.PutAccessPoint(ctx, a) })
}

func (l *link) DeleteAccessPoint(ctx context.Context, group, name string) error {
	_, err := over(ctx, l, "close", func(ctx context.Context, m *Manager) (struct{}, error) {
		return struct{}{}, m.DeleteAccessPoint(ctx, group, name)
	})
	return err
}

// points of a site, as its operator sees them.
func (s *fakeSite) accessPoints() []vmi.AccessPoint {
	s.t.Helper()
	list, err := s.m.ListAccessPoints(s.operator(), "")
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// TestAccessPointsOfTwoSites: the partner opens one for the VEEs that it has, tells how it is,
// keeps it while its primary is away, and drops it with the last of them; where the agreement
// does not let it, that is told.
func TestAccessPointsOfTwoSites(t *testing.T) {
	inSites(t, 1, 1, func(s *sites) {
		s.granted.price = -1 // no access points
		all := s.alpha.deploy(5)
		away := s.away(all)
		if len(away) != 1 {
			t.Fatalf("%d of 5 are at the partner", len(away))
		}
		point := vmi.AccessPoint{Name: "web-80", GroupID: "shop", Customer: "acme", Port: 80, Partners: true}
		put := func(p vmi.AccessPoint) {
			t.Helper()
			if _, err := s.alpha.m.PutAccessPoint(s.alpha.operator(), p); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		put(point)
		if at := s.alpha.accessPoints()[0].Elsewhere; len(at) != 1 || at[0].Site != "beta" || at[0].Address != "" || !strings.Contains(at[0].Why, "no access points here") {
			t.Errorf("a partner that may not: %+v", at)
		}
		s.granted.price = .02
		time.Sleep(time.Minute)
		at := s.alpha.accessPoints()[0].Elsewhere
		if len(at) != 1 || at[0].Address == "" || len(at[0].Serving) != 1 || at[0].Serving[0].VEE != away[0] {
			t.Errorf("the partner's, as told here: %+v", at)
		}
		theirs := s.beta.accessPoints()
		if len(theirs) != 1 || theirs[0].GroupID != "alpha/shop" || theirs[0].Customer != "alpha/acme" || theirs[0].Partners || len(theirs[0].Elsewhere) != 0 {
			t.Errorf("at the partner: %+v", theirs)
		}
		s.link.set(func() { s.link.down = true })
		time.Sleep(time.Hour)
		if at := s.alpha.accessPoints()[0].Elsewhere; len(at) != 1 || at[0].Why == "" || len(s.beta.accessPoints()) != 1 {
			t.Errorf("while the sites do not reach each other: %+v", at)
		}
		s.link.set(func() { s.link.down = false })
		s.alpha.until(away[0], vee.Active)
		point.Partners = false
		put(point)
		if len(s.beta.accessPoints()) != 0 || len(s.alpha.accessPoints()[0].Elsewhere) != 0 {
			t.Errorf("one that is wanted no more: %+v", s.beta.accessPoints())
		}
		point.Partners = true
		put(point)
		if len(s.beta.accessPoints()) != 1 {
			t.Error("it is wanted again, and not there")
		}
		s.alpha.act(vee.Destroy, away...)
		time.Sleep(time.Minute)
		if len(s.beta.accessPoints()) != 0 || len(s.alpha.accessPoints()[0].Elsewhere) != 0 {
			t.Errorf("after the last VEE has left: %+v, %+v", s.beta.accessPoints(), s.alpha.accessPoints())
		}
		ctx := s.link.as(context.Background())
		if _, err := s.beta.m.PutAccessPoint(ctx, point); !fault.Has(err, fault.WrongState) {
			t.Errorf("one for no VEE: %v", err)
		}
		if err := s.beta.m.DeleteAccessPoint(ctx, "shop", "web-80"); !fault.Has(err, fault.NotFound) {
			t.Errorf("close what is not there: %v", err)
		}
	})
}

// TestDoors: an access point leads to a VEE on private networks alone, and to one at a partner,
// by the network that both are on, and by the same door wherever it is; walls let it in.
func TestDoors(t *testing.T) {
	inSites(t, 1, 1, func(s *sites) {
		var asked []Door
		s.alpha.m.cfg.Forward = func(d Door) (netip.AddrPort, error) {
			asked = append(asked, d)
			return netip.MustParseAddrPort("192.0.2.201:20000"), nil
		}
		if _, err := s.alpha.m.PutNetwork(s.alpha.operator(), vmi.Network{Name: "back", GroupID: "shop", Customer: "acme", Wish: vmi.NetworkWish{Subnet: netip.MustParsePrefix("10.1.0.0/29")}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.alpha.m.PutAccessPoint(s.alpha.operator(), vmi.AccessPoint{Name: "web-80", GroupID: "shop", Customer: "acme", Port: 80}); err != nil {
			t.Fatal(err)
		}
		d := web(1)
		d.NICs = []vee.NIC{{Network: "back"}}
		d.Firewall = []vee.FirewallRule{{Allow: true, Protocol: "tcp", First: 22, Last: 22}}
		out, err := s.alpha.m.InitializeVEEs(s.alpha.operator(), initialize(vmi.TwoPhase, d))
		if err != nil {
			t.Fatal(err)
		}
		id := out.VEEs[0].ID
		s.alpha.submit(id)
		s.alpha.until(id, vee.Active)
		time.Sleep(time.Minute)
		address, _ := netip.ParsePrefix(s.alpha.get(id).Descriptor.NICs[0].Address)
		want := Door{VEE: id, Port: 80, Segment: "shop/back", To: netip.AddrPortFrom(address.Addr(), 80)}
		if len(asked) == 0 || slices.ContainsFunc(asked, func(d Door) bool { return d != want }) || !slices.Equal(s.alpha.m.Doors(), []Door{want}) {
			t.Fatalf("doors %+v, want %+v", asked, want)
		}
		carried := s.alpha.m.Border()
		if len(carried) != 1 || !carried[0].Entered() {
			t.Fatalf("the proxy carries %+v", carried)
		}
		var guest, entry *netip.Addr
		for _, p := range carried[0].Ports {
			if p.VEE == id {
				guest = &p.Addresses[0]
				if len(p.Firewall) != 2 || p.Firewall[0].First != 80 || !p.Firewall[0].Allow || len(p.Firewall[0].Peers) != 1 {
					t.Errorf("its wall: %+v", p.Firewall)
				}
			} else {
				entry = &p.Addresses[0]
			}
		}
		if guest == nil || entry == nil || *entry != netip.MustParseAddr("10.1.0.6") {
			t.Errorf("ports %+v", carried[0].Ports)
		}
		again := web(2)
		again.NICs = []vee.NIC{{Network: "back", Address: "10.1.0.6"}}
		if _, err := s.alpha.m.InitializeVEEs(s.alpha.operator(), initialize(vmi.TwoPhase, again)); err == nil || !strings.Contains(err.Error(), "the site's proxy") {
			t.Errorf("a VEE with the proxy's address: %v", err)
		}
		if err := s.alpha.m.DeleteAccessPoint(s.alpha.operator(), "shop", "web-80"); err != nil {
			t.Fatal(err)
		}
		if len(s.alpha.m.Border()) != 0 || len(s.alpha.m.Doors()) != 0 {
			t.Error("the proxy carries what nobody enters")
		}
	})
}
