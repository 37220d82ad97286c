// Package border is what a site and its VAN proxy say to each other. The proxy is the one
// process of a site that other sites reach (spec: federation): a relay of TCP connections
// that have a ticket (van/border/relay), and a WireGuard tunnel for the virtual area networks
// that two sites share (van/border/tunnel). Types, Go interfaces, HTTP servers and clients;
// the process itself is van/border/post.
//
// It is level-triggered: the site puts a Config as a whole, and the proxy makes that so.
package border

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Config is all that a proxy is to do.
type Config struct {
	Version uint64 `json:"version"` // grows with every change of the rest
	// Members are where the site's control plane answers, host:port each; none: it is one
	// process, where the proxy was told at its start.
	Members  []string  `json:"members,omitempty"`
	Peers    []Peer    `json:"peers,omitempty"`
	Segments []Segment `json:"segments,omitempty"`
	Routes   []Route   `json:"routes,omitempty"`
	Doors    []Door    `json:"doors,omitempty"`
}

// Door is where the site's access points enter a network: what comes to that port of the
// proxy's inside address goes to a port of a VEE, at whichever site that is, by the kernel.
type Door struct {
	Port    uint16         `json:"port"` // FirstDoor to LastDoor
	UDP     bool           `json:"udp,omitempty"`
	Segment string         `json:"segment"` // ID of one of Segments, in which the proxy has a port
	To      netip.AddrPort `json:"to"`
}

// Ports of a proxy's inside address that are doors: below those that a kernel draws.
const (
	FirstDoor = 20000
	LastDoor  = 29999
)

// Peer is the proxy of a partner.
type Peer struct {
	Site string `json:"site"`
	Key  string `json:"key,omitempty"` // its WireGuard public key, base64; empty: there is no tunnel
	// Tunnel is where it takes WireGuard, host:port; empty: not known, it comes to us.
	Tunnel string `json:"tunnel,omitempty"`
	Relay  string `json:"relay,omitempty"` // where it takes TCP, host:port
}

// Segment is a network that this site shares. Its ports at a partner have the Host
// SiteHost(partner); what is at no peer is not reached.
type Segment struct {
	plan.Segment
	// Tunnel is the network's VNI inside the tunnel, at every site that it spans the same.
	Tunnel uint32 `json:"tunnel"`
}

// SiteHost is what plan.Port.Host says of a port at a partner: to the site's own hosts the
// partner is one more host.
func SiteHost(site string) string { return plan.SitePrefix + site }

// Route is where a ticket leads. One with Peer is for who comes from inside, and leads to
// that partner's proxy, with the ticket Show; one with To is for who comes from outside, and
// leads to that address of this site.
type Route struct {
	Ticket string `json:"ticket"`
	For    string `json:"for,omitempty"` // what it is given out for, for people
	To     string `json:"to,omitempty"`  // host:port
	Peer   string `json:"peer,omitempty"`
	Show   string `json:"show,omitempty"`
	// Once: it is good for one connection. The proxy remembers a used one for as long as the
	// site goes on putting it.
	Once    bool      `json:"once,omitempty"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
}

// SiteTicket is the standing ticket at each proxy, which leads to the control plane.
const SiteTicket = "site"

// PeerTicket is the standing ticket for the site's own processes that leads to the control
// plane of a partner.
func PeerTicket(site string) string { return SiteTicket + "." + site }

var ticketForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// ValidTicket reports whether t can be shown to a proxy.
func ValidTicket(t string) bool { return ticketForm.MatchString(t) }

// Check that a configuration can be followed. fault.Malformed.
func (c Config) Check() error {
	for _, m := range c.Members {
		if _, _, err := net.SplitHostPort(m); err != nil {
			return malformed("a member of the control plane answers at %q: want host:port", m)
		}
	}
	peers, keys, addresses := map[string]bool{}, map[string]string{}, map[netip.Addr]string{}
	for _, p := range c.Peers {
		switch {
		case !vee.ValidName(p.Site):
			return malformed("a peer has the name %q", p.Site)
		case peers[p.Site]:
			return malformed("peer %s is there twice", p.Site)
		}
		peers[p.Site] = true
		if p.Key == "" {
			continue
		}
		key, err := ParseKey(p.Key)
		switch {
		case err != nil:
			return malformed("peer %s: %w", p.Site, err)
		case keys[p.Key] != "":
			return malformed("peers %s and %s have the same key", keys[p.Key], p.Site)
		}
		if other, ok := addresses[key.Address()]; ok {
			return malformed("peers %s and %s have keys that make the same address: one of them needs a new key", other, p.Site)
		}
		keys[p.Key], addresses[key.Address()] = p.Site, p.Site
	}
	if err := c.checkSegments(); err != nil {
		return err
	}
	tickets := map[string]bool{}
	for _, r := range c.Routes {
		// The error goes to logs: it does not say the ticket.
		switch {
		case !ValidTicket(r.Ticket):
			return malformed("the ticket for %q: want 1 to 64 letters, digits and . _ -", r.For)
		case tickets[r.Ticket]:
			return malformed("the ticket for %q is there twice", r.For)
		case (r.To == "") == (r.Peer == ""):
			return malformed("the route for %q: want an address of this site or a peer", r.For)
		case r.Peer != "" && !ValidTicket(r.Show):
			return malformed("the route for %q has no ticket for site %s", r.For, r.Peer)
		}
		tickets[r.Ticket] = true
	}
	return c.checkDoors()
}

func (c Config) checkDoors() error {
	networks := map[string]Segment{}
	for _, s := range c.Segments {
		networks[s.ID] = s
	}
	type at struct {
		port uint16
		udp  bool
	}
	taken := map[at]bool{}
	for _, d := range c.Doors {
		s := networks[d.Segment]
		leads := slices.ContainsFunc(s.Ports, func(p plan.Port) bool { return slices.Contains(p.Addresses, d.To.Addr()) })
		switch {
		case d.Port < FirstDoor || d.Port > LastDoor:
			return malformed("door at port %d: want %d to %d", d.Port, FirstDoor, LastDoor)
		case taken[at{d.Port, d.UDP}]:
			return malformed("door at port %d is there twice", d.Port)
		case !s.Entered():
			return malformed("door at port %d: the proxy has no port of its own in network %q", d.Port, d.Segment)
		case !leads || !d.To.Addr().Is4() || d.To.Port() == 0:
			return malformed("door at port %d: nobody in network %q has %v", d.Port, d.Segment, d.To)
		}
		taken[at{d.Port, d.UDP}] = true
	}
	return nil
}

func (c Config) checkSegments() error {
	ids, vnis, tunnels := map[string]bool{}, map[uint32]string{}, map[uint32]string{}
	for _, s := range c.Segments {
		if err := s.Check(); err != nil {
			return malformed("%w", err)
		}
		switch {
		case s.Public:
			return malformed("network %s is public: only private ones are shared", s.ID)
		case ids[s.ID]:
			return malformed("network %s is there twice", s.ID)
		case vnis[s.VNI] != "":
			return malformed("networks %s and %s have the same VNI %d", vnis[s.VNI], s.ID, s.VNI)
		case s.Tunnel == 0 || s.Tunnel >= 1<<24:
			return malformed("network %s has VNI %d in the tunnel: want 1 to %d", s.ID, s.Tunnel, 1<<24-1)
		case tunnels[s.Tunnel] != "":
			return malformed("networks %s and %s have the same VNI %d in the tunnel", tunnels[s.Tunnel], s.ID, s.Tunnel)
		}
		taps := map[string]string{}
		for _, site := range s.Sites() {
			tap := plan.BorderTap(s.VNI, site)
			if taps[tap] != "" {
				return malformed("sites %s and %s have names that make the same device", taps[tap], site)
			}
			taps[tap] = site
		}
		ids[s.ID], vnis[s.VNI], tunnels[s.Tunnel] = true, s.ID, s.ID
	}
	return nil
}

func malformed(format string, args ...any) error {
	return fault.New(fault.Malformed, "proxy configuration: "+format, args...)
}

// Key is a WireGuard public key (Curve25519).
type Key [32]byte

// ParseKey of its text, base64.
func ParseKey(s string) (k Key, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(s))
	if err != nil || len(b) != len(k) {
		return k, fmt.Errorf("key %q: want 32 bytes in base64", s)
	}
	return Key(b), nil
}

func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Sites of the segment's ports beside this one.
func (s Segment) Sites() []string { return plan.SitesOf(s.Segment) }

// Entered reports whether the proxy has a port of its own in the network, so that doors lead
// there.
func (s Segment) Entered() bool {
	return slices.ContainsFunc(s.Ports, func(p plan.Port) bool { return p.Host == plan.AtBorder })
}

// Presence is what a proxy says of itself to its site: at its start, when something of
// it has changed, and regularly.
type Presence struct {
	Address  string     `json:"address"`  // of its API, host:port
	Underlay netip.Addr `json:"underlay"` // that the site's hosts send VXLAN to
	Inside   string     `json:"inside"`   // relay for the site's own processes, host:port
	Outside  string     `json:"outside"`  // relay for other sites, host:port
	Tunnel   string     `json:"tunnel"`   // WireGuard, UDP host:port
	Key      string     `json:"key"`      // WireGuard public key, base64
	Software string     `json:"softwareVersion,omitempty"`
	Holds    uint64     `json:"holds"` // Version of the Config that it has made so
}

// ProxyStatus is how a proxy is.
type ProxyStatus struct {
	Presence
	Started  time.Time       `json:"started"`
	Peers    []PeerStatus    `json:"peers"`
	Segments []SegmentStatus `json:"segments"`
	Routes   []RouteStatus   `json:"routes"`
	Doors    []Door          `json:"doors,omitempty"`
	Relay    RelayStatus     `json:"relay"`
	// Dropped frames since the proxy started, by the reason.
	Dropped map[string]uint64 `json:"dropped,omitempty"`
	// Error of the last attempt to make the Config so, while it stands.
	Error string `json:"error,omitempty"`
}

// PeerStatus is how the tunnel to a partner is.
type PeerStatus struct {
	Site      string    `json:"site"`
	Key       string    `json:"key"`
	Endpoint  string    `json:"endpoint,omitempty"` // that it was last heard from
	Handshake time.Time `json:"handshake,omitzero"` // the last one; zero: none since the proxy started
	Received  vee.Bytes `json:"receivedBytes"`
	Sent      vee.Bytes `json:"sentBytes"`
	MTU       int       `json:"mtu"` // of what guests may send through, bytes of IP
}

// SegmentStatus is how a shared network is at this proxy.
type SegmentStatus struct {
	ID     string   `json:"id"`
	VNI    uint32   `json:"vni"`
	Tunnel uint32   `json:"tunnel"`
	Sites  []string `json:"sites"`
	Ports  int      `json:"ports"`
	// Plan is what the kernel should hold of it, Missing and Surplus how it differs, in lines
	// for people.
	Plan    []string `json:"plan,omitempty"`
	Missing []string `json:"missing,omitempty"`
	Surplus []string `json:"surplus,omitempty"`
}

// RouteStatus of a ticket, which is not told itself.
type RouteStatus struct {
	Digest  string    `json:"digest"` // TicketDigest
	For     string    `json:"for,omitempty"`
	From    string    `json:"from"` // inside or outside
	To      string    `json:"to"`   // address or site
	Once    bool      `json:"once,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Used    uint64    `json:"used"` // connections that it was good for, since the proxy started; of a Once: ever
	Open    int       `json:"open"`
}

// RelayStatus is what the relay has done since it started.
type RelayStatus struct {
	Open    int    `json:"open"`
	Taken   uint64 `json:"taken"`
	Refused uint64 `json:"refused"`
}

// Proxy is a site's proxy, as the site sees it.
type Proxy interface {
	// Put is durable, and in effect, when it returns. One that is older than what the proxy
	// holds changes nothing and is no error. Errors: Malformed, Internal.
	Put(ctx context.Context, c Config) error
	Status(ctx context.Context) (ProxyStatus, error)
}

// Manager is the site, as its proxy sees it.
type Manager interface {
	// JoinProxy by a one-time token. Errors: TokenInvalid, Denied (it is for a host).
	JoinProxy(ctx context.Context, r ProxyJoin) (ProxyCertificate, error)
	// Announce that the calling proxy is there. The site puts its Config when the proxy does
	// not hold the newest.
	Announce(ctx context.Context, a Presence) error
	RenewProxy(ctx context.Context, csr []byte) (ProxyCertificate, error)
}

// Keeper is the site, as its operator sees it: what it knows of its proxy.
type Keeper interface {
	// InviteProxy makes a one-time token with which a machine may become the site's proxy.
	InviteProxy(ctx context.Context) (ProxyInvite, error)
	// ShowProxy asks the proxy how it is. Errors: NotFound, Unavailable.
	ShowProxy(ctx context.Context) (ProxyStatus, error)
}

// ProxyInvite is a one-time join token, with the fingerprint of the site's authority in it.
type ProxyInvite struct {
	Token   string    `json:"token"`
	Address string    `json:"address"` // of the site, host:port
	Expires time.Time `json:"expires"`
}

// ProxyJoin to become the site's proxy.
type ProxyJoin struct {
	Token string `json:"token"`
	CSR   []byte `json:"csr"`
}

// ProxyCertificate is a certificate.
type ProxyCertificate struct {
	Site        string `json:"site"`
	Certificate []byte `json:"certificate"` // chain, PEM
	Bundle      []byte `json:"bundle"`      // PEM
}
