package veem

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// FuzzSharedNetwork: what a partner says of a network is refused, or can be planned with at a
// host and at the proxy, whose configuration it does not spoil.
func FuzzSharedNetwork(f *testing.F) {
	f.Add([]byte(`{"id":"shop/back","version":1,"groupID":"shop","name":"back","tunnelVNI":7,"subnets":["10.1.0.0/24"],"gateways":["10.1.0.1"],"mtu":1370,
		"ports":[{"vee":"alpha.aaaaaaaaaa","nic":0,"mac":"06:00:00:07:00:41","addresses":["10.1.0.65"],"site":"alpha"},
		{"vee":"alpha.bbbbbbbbbb","nic":0,"mac":"06:00:00:07:00:42","addresses":["10.1.0.66"],"site":"beta"}]}`))
	f.Add([]byte(`{"id":"shop/back","groupID":"shop","name":"back","tunnelVNI":7,"subnets":["::/0"],"gateways":[""],"mtu":-1,"ports":[{"site":"+border","mac":"ff:ff:ff:ff:ff:ff"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var n peer.Network
		if json.Unmarshal(text, &n) != nil || checkShared(n) != nil {
			return
		}
		g := segmentOf(n)
		g.VNI = 3
		if err := (border.Config{Segments: []border.Segment{{Segment: g, Tunnel: n.TunnelVNI}}}).Check(); err != nil {
			// Two sites whose names make the same device: the proxy leaves the network out.
			return
		}
		underlay := netip.MustParseAddr("192.0.2.1")
		plan.ForBorder(underlay, []plan.Segment{g})
		plan.For("h1", underlay, "rsv0", []plan.Segment{g})
	})
}
