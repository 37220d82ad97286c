package cli

import (
	"context"
	"net/netip"
	"time"

	"github.com/reservoir-cloud/reservoir/van/border"
)

// fakeKeeper is a site with a proxy, whose kernel lacks an entry.
type fakeKeeper struct{ f *fake }

func (fakeKeeper) InviteProxy(context.Context) (border.ProxyInvite, error) {
	return border.ProxyInvite{Token: "FINGERPRINT.SECRET", Address: "10.80.0.1:8440", Expires: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}, nil
}

func (k fakeKeeper) ShowProxy(context.Context) (border.ProxyStatus, error) {
	now := time.Now()
	return border.ProxyStatus{
		Presence: border.Presence{Address: "10.80.0.2:8442", Underlay: netip.MustParseAddr("10.80.0.2"), Inside: "10.80.0.2:8444", Outside: "192.0.2.1:8443", Tunnel: "192.0.2.1:8443",
			Key: "Y1dGuzAbRve4EORIUxqmSioOjbYdqxP2mTFkMjgDrnk=", Software: "v0.1", Holds: 7},
		Started: now.Add(-3 * time.Hour),
		Peers: []border.PeerStatus{
			{Site: "beta", Key: "gGhA01TKjwsEpQ+6QwT3vVNncgqDwcHGRhlTfXM+dBs=", Endpoint: "192.0.2.2:8443", Handshake: now.Add(-time.Minute), Received: 5 << 20, Sent: 1 << 20, MTU: 1370},
			{Site: "gamma", Key: "0GhA01TKjwsEpQ+6QwT3vVNncgqDwcHGRhlTfXM+dBs=", MTU: 1370},
		},
		Segments: []border.SegmentStatus{{ID: "s-db/back", VNI: 7, Tunnel: 99, Sites: []string{"beta"}, Ports: 2,
			Plan: []string{"bridge   rv000007 mtu 1500", "member   rtb00000781e4c7 in rv000007"}, Missing: []string{"member   rtb00000781e4c7 in rv000007"}}},
		Routes: []border.RouteStatus{
			{Digest: "3f1c2a000001", For: "migration m-1 of VEE alpha.aaaaaaaaaa", From: "inside", To: "beta", Once: true, Expires: now.Add(10*time.Minute + time.Second), Used: 1, Open: 1},
			{Digest: "3f1c2a000002", For: "this site", From: "outside", To: "10.80.0.1:8440", Used: 12},
		},
		Relay:   border.RelayStatus{Open: 1, Taken: 13, Refused: 2},
		Dropped: map[string]uint64{"too big": 3},
	}, nil
}
