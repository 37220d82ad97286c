package plan

import (
	"net/netip"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Point is an access point: an address and port of the site whose connections are spread
// over backends.
type Point struct {
	Key   string // of the site: "alpha.shop/web-80"
	Group string // points of one group share an address of the pool where they can
	UDP   bool   // else TCP
	// Address that it had before, "host:port": kept where it is still free.
	Address string
	// Port that it has on an address of the pool; on the shared address a port is drawn.
	Port      uint16
	Algorithm Algorithm
	// Health is the path that answers 200 to 399 when a backend is well; empty: it is well
	// when it accepts connections. Datagrams are not checked.
	Health   string
	Backends []Backend
}

// Algorithm of spreading.
type Algorithm string

// Algorithms; empty means RoundRobin. SourceHash sends the connections of one client address to
// one backend as long as that is there.
const (
	RoundRobin       Algorithm = "round-robin"
	LeastConnections Algorithm = "least-connections"
	SourceHash       Algorithm = "source"
)

// Backend of an access point.
type Backend struct {
	VEE     vee.ID
	Address netip.AddrPort
	// Ready: its guest says that its service answers, so it serves before the first check.
	Ready bool
	// Draining: it keeps the connections that it has and gets no new one.
	Draining bool
}

// BackendState is what is known of one.
type BackendState struct {
	Backend
	Healthy     bool
	Why         string // it is not healthy
	Connections int    // under way
}
