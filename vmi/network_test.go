package vmi_test

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var (
	subnet  = netip.MustParsePrefix("10.128.0.0/24")
	network = vmi.Network{Name: "back", GroupID: "acme/shop", Customer: "acme", Wish: vmi.NetworkWish{IPv6: true, MTU: 1400}, ID: "acme/shop/back", Version: 3,
		VNI: 7, Subnets: []netip.Prefix{subnet}, Gateways: []netip.Addr{subnet.Addr().Next()}, MTU: 1400, NICs: 2}
	view = vmi.NetworkView{Network: network, Domain: "shop.alpha.internal", Hosts: map[string]uint64{"h1": 1 << 50},
		Ports: []plan.Port{{VEE: id, MAC: "06:00:00:07:00:40", Addresses: []netip.Addr{subnet.Addr()}, Host: "h1", Underlay: netip.MustParseAddr("192.0.2.1"), Names: []string{"web-1"},
			Firewall: []plan.Rule{{Allow: true, Protocol: "tcp", First: 80, Last: 80, Peers: []netip.Prefix{subnet}}}}}}
	plans = []vhi.NetworkPlan{{Host: "h1", Version: 9, Entries: []string{"bridge rv000007"}, Missing: []string{"bridge rv000007"}}, {Host: "h2", Entries: []string{}, Error: "it does not answer"}}
)

func (r *recorder) PutNetwork(_ context.Context, n vmi.Network) (vmi.Network, error) {
	return network, r.got(n)
}
func (r *recorder) DeleteNetwork(_ context.Context, group, name string) error {
	return r.got(group, name)
}
func (r *recorder) ListNetworks(_ context.Context, group string) ([]vmi.Network, error) {
	return []vmi.Network{network}, r.got(group)
}
func (r *recorder) GetNetwork(_ context.Context, group, name string) (vmi.NetworkView, error) {
	return view, r.got(group, name)
}
func (r *recorder) NetworkPlan(_ context.Context, group, name string) ([]vhi.NetworkPlan, error) {
	return plans, r.got(group, name)
}

func callNetworks(ctx context.Context, s vmi.Service) (results []any, errs []error) {
	add := func(v any, err error) { results, errs = append(results, v), append(errs, err) }
	v1, err := s.PutNetwork(ctx, vmi.Network{Name: "back", GroupID: "acme/shop", Wish: vmi.NetworkWish{Subnet: subnet}})
	add(v1, err)
	add(nil, s.DeleteNetwork(ctx, "acme/shop", "back"))
	v3, err := s.ListNetworks(ctx, "acme/shop")
	add(v3, err)
	v4, err := s.GetNetwork(ctx, "acme/shop", "back")
	add(v4, err)
	v5, err := s.NetworkPlan(ctx, "", "site")
	add(v5, err)
	return results, errs
}

func TestNetworksLocalAndRemoteAlike(t *testing.T) {
	local, behind := &recorder{}, &recorder{}
	remote, _ := serve(t, behind, identity.Operator)
	want, _ := callNetworks(t.Context(), local)
	got, errs := callNetworks(t.Context(), remote)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
	if !reflect.DeepEqual(behind.calls, local.calls) {
		t.Errorf("calls arrived as\n%+v, want\n%+v", behind.calls, local.calls)
	}
}

func TestNetworkRoles(t *testing.T) {
	for role, want := range map[identity.Role]string{
		identity.Operator: "xxxxx", identity.SiteRole: "xxxxx", identity.Provider: "xxxx.", identity.Auditor: "..xxx", identity.HostRole: ".....",
	} {
		remote, _ := serve(t, &recorder{}, role)
		_, errs := callNetworks(t.Context(), remote)
		got := ""
		for _, err := range errs {
			if fault.Has(err, fault.Denied) {
				got += "."
			} else {
				got += "x"
			}
		}
		if got != want {
			t.Errorf("role %s may %s, want %s", role, got, want)
		}
	}
}
