package boot

import (
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/seed"
)

func TestLeased(t *testing.T) {
	ack, err := dhcpv4.New(
		dhcpv4.WithYourIP(net.IPv4(10, 9, 0, 2)), dhcpv4.WithNetmask(net.CIDRMask(20, 32)),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{5, 90}),
		dhcpv4.WithOption(dhcpv4.OptRouter(net.IPv4(10, 9, 0, 1), net.IPv4(10, 9, 0, 7))),
		dhcpv4.WithOption(dhcpv4.OptDNS(net.IPv4(10, 9, 0, 1))),
		dhcpv4.WithOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: []string{"shop.alpha.internal"}})),
	)
	if err != nil {
		t.Fatal(err)
	}
	gateway := netip.MustParseAddr("10.9.0.1")
	want := seed.Link{
		MTU: 1370, Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/20")},
		Routes: []seed.Route{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: gateway}},
		DNS:    []netip.Addr{gateway}, Search: []string{"shop.alpha.internal"},
	}
	var got seed.Link
	if err := leased(ack, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	ack.UpdateOption(dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4(192, 0, 2, 0), Mask: net.CIDRMask(24, 32)}, Router: net.IPv4(10, 9, 0, 3)}))
	got = seed.Link{MTU: 1400}
	if err := leased(ack, &got); err != nil || got.MTU != 1400 || len(got.Routes) != 1 || got.Routes[0].To.String() != "192.0.2.0/24" {
		t.Errorf("with classless routes: %+v, %v", got, err)
	}
	ack.DeleteOption(dhcpv4.OptionSubnetMask)
	if err := leased(ack, &got); err == nil {
		t.Error("an address without a mask is taken")
	}
}
