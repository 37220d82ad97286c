package cli

import (
	"context"
	"net/netip"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var fakeNetworks = []vmi.Network{
	{Name: "site", Public: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.80.0.0/16")}, Gateways: []netip.Addr{netip.MustParseAddr("10.80.0.254")}, MTU: 1500, NICs: 1},
	{Name: "back", GroupID: "s-db", Customer: "acme", ID: "s-db/back", VNI: 7, MTU: 1370, NICs: 1,
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.128.0.0/24"), netip.MustParsePrefix("fd00::/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.128.0.1"), netip.MustParseAddr("fd00::1")}},
	{Name: "back", GroupID: "s-old", Customer: "acme", ID: "s-old/back", VNI: 6, MTU: 1370, Leaving: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.128.1.0/24")}},
}

func (f fakeVEEM) PutNetwork(context.Context, vmi.Network) (vmi.Network, error) {
	return vmi.Network{}, f.unused()
}
func (f fakeVEEM) DeleteNetwork(context.Context, string, string) error { return f.unused() }
func (f fakeVEEM) ListNetworks(context.Context, string) ([]vmi.Network, error) {
	return fakeNetworks, nil
}
func (f fakeVEEM) GetNetwork(_ context.Context, group, name string) (vmi.NetworkView, error) {
	for _, n := range fakeNetworks {
		if (n.GroupID == group || n.GroupID == "") && n.Name == name {
			v := vmi.NetworkView{Network: n, Ports: []plan.Port{}}
			if group == "s-db" {
				v.Domain, v.Hosts = "db.alpha.internal", map[string]uint64{"h1": 3}
				v.Ports = []plan.Port{{VEE: "alpha.aaaaaaaaaa", MAC: "06:00:00:07:00:40", Host: "h1", Underlay: netip.MustParseAddr("10.80.0.11"),
					Addresses: []netip.Addr{netip.MustParseAddr("10.128.0.64"), netip.MustParseAddr("fd00::40")}, Names: []string{"db-1.db", "db-1", "db"}, Firewall: []plan.Rule{{Allow: true, Protocol: "tcp"}}}}
			}
			return v, nil
		}
	}
	return vmi.NetworkView{}, fault.New(fault.NotFound, "group %q has no network %q", group, name).Try("reservoir van list")
}
func (f fakeVEEM) NetworkPlan(context.Context, string, string) ([]vhi.NetworkPlan, error) {
	return []vhi.NetworkPlan{
		{Host: "h1", Version: 3, Entries: []string{"bridge   rv000007 mtu 1500", "member   rtaaaaaaaaaa120 in rv000007"}, Missing: []string{"member   rtaaaaaaaaaa120 in rv000007"}, Surplus: []string{"answer   10.128.0.99 is 06:00:00:07:00:63 in van 7"}},
		{Host: "h2", Version: 3, Entries: []string{"bridge   rv000007 mtu 1500"}},
		{Host: "h3", Error: "it does not answer"},
	}, nil
}
