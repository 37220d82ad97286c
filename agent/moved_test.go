package agent

import (
	"net/netip"
	"testing"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// A VEE that its hosts have moved is where its host says; nobody else has a say in that, and
// the site's next word stands above it.
func TestNetworksFollowWhatHostsMove(t *testing.T) {
	dir, at := t.TempDir(), shopPort()
	n := opened(t, dir, &fakePath{})
	at.Host, at.Underlay = "h2", netip.MustParseAddr("192.0.2.2")
	s := segmentOf("a", 1, 7, at)
	if err := n.put(s); err != nil {
		t.Fatal(err)
	}
	m := peer.Moved{VEE: s.Ports[0].VEE, To: "h3", Underlay: netip.MustParseAddr("192.0.2.3")}
	port := func() plan.Port { n.mu.Lock(); defer n.mu.Unlock(); return n.effect["a"].Ports[0] }
	if err := n.moved("h9", m); err != nil || port().Host != "h2" {
		t.Fatalf("h9 has moved a VEE of h2's: %+v, %v", port(), err)
	}
	if err := n.moved("h2", m); err != nil {
		t.Fatal(err)
	}
	if p := port(); p.Host != "h3" || p.Underlay != m.Underlay {
		t.Errorf("it is at %s (%s)", p.Host, p.Underlay)
	}
	if err := n.wire([]plan.Segment{s, segmentOf("b", 2, 1)}); err != nil {
		t.Fatal(err)
	}
	if port().Host != "h3" || n.versions()["b"] != 1 {
		t.Errorf("what another host tells replaced what was there: %+v, %v", port(), n.versions())
	}
	again := opened(t, dir, &fakePath{})
	if p := again.effect["a"].Ports[0]; p.Host != "h3" {
		t.Errorf("after a restart it is at %s", p.Host)
	}
	s.Version = 100 // the site's: a time
	if err := n.put(s); err != nil || port().Host != "h2" {
		t.Errorf("the site says h2: %+v, %v", port(), err)
	}
}
