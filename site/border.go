package site

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/border/relay"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// gate keeps the site's VAN proxy as it should be: it puts together what the proxy is to do
// from what the site's parts know, and puts it whenever the proxy does not hold that.
type gate struct {
	site    string
	records store.Collection[border.Presence]
	dial    func(address string) border.Proxy
	every   time.Duration
	log     *slog.Logger
	now     func() time.Time

	// What the site's parts know. They are set before Run, and called without locks.
	borders  func() map[string]peer.Border // of partners, and of sites that become ones
	segments func() []border.Segment
	doors    func() []veem.Door // that may be led through
	opened   func()             // Forward may answer otherwise than before
	members  func() []string    // addresses of the control plane, if it is one of several

	wake  chan struct{} // of size one
	there chan struct{} // closed once there is a proxy
	leads chan struct{} // closed once control is known

	putting sync.Mutex      // one Put after the other
	mu      sync.Mutex      // guards what follows; never held in a call
	control string          // address for partners, as the proxy reaches it; empty: there is none yet
	proxy   border.Presence // zero: there is none
	routes  []border.Route
	ways    map[veem.Door]*doorway
	want    border.Config
	err     error // of the last Put, while it stands
}

// proxyKey of the one record.
const proxyKey = "proxy"

func (s *site) openGate(ctx context.Context) (*gate, error) {
	g := &gate{site: s.cfg.Name, records: store.NewCollection[border.Presence](s.store, "border"), dial: s.toProxy,
		every: time.Duration(s.cfg.HAScale * float64(2*time.Second)), log: s.cfg.Log, now: time.Now,
		borders: func() map[string]peer.Border { return nil }, segments: func() []border.Segment { return nil },
		doors: func() []veem.Door { return nil }, opened: func() {}, members: s.controlPlane, ways: map[veem.Door]*doorway{}, wake: make(chan struct{}, 1), there: make(chan struct{}), leads: make(chan struct{})}
	var err error
	if g.proxy, _, err = g.records.Get(ctx, proxyKey); fault.Has(err, fault.NotFound) {
		err = nil
	}
	if g.proxy.Address != "" {
		close(g.there)
	}
	return g, err
}

// controlPlane is where its members answer, for the proxy, which was told one address at its
// start; none: it is one process.
func (s *site) controlPlane() []string {
	if !s.member.several() {
		return nil
	}
	return s.addresses()
}

// toProxy speaks to the site's proxy, and takes nobody else for it.
func (s *site) toProxy(address string) border.Proxy {
	var c *tls.Config
	if id, err := identity.ProxyID(s.cfg.Name); err == nil { // names are checked when a site starts
		c = s.keys.ClientTLS(id)
	}
	return border.NewProxyClient(&httpapi.Client{Base: "https://" + address, HTTP: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: c, ForceAttemptHTTP2: true, IdleConnTimeout: 10 * time.Second, DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
	}}})
}

// compose what the proxy is to do, but for the version. What one partner says that makes no
// sense costs that partner its tunnel, or that network, and nobody else.
func compose(control string, borders map[string]peer.Border, segments []border.Segment, routes []border.Route, doors []border.Door) (c border.Config, odd []error) {
	if control != "" {
		c.Routes = append(c.Routes, border.Route{Ticket: border.SiteTicket, For: "this site", To: control})
	}
	for name, b := range borders {
		c.Peers = append(c.Peers, border.Peer{Site: name, Key: b.Key, Tunnel: b.Tunnel, Relay: b.Relay})
		if b.Relay != "" {
			c.Routes = append(c.Routes, border.Route{Ticket: border.PeerTicket(name), For: "site " + name, Peer: name, Show: border.SiteTicket})
		}
	}
	slices.SortFunc(c.Peers, func(a, b border.Peer) int { return strings.Compare(a.Site, b.Site) })
	slices.SortFunc(c.Routes, func(a, b border.Route) int { return strings.Compare(a.For, b.For) })
	c.Segments, c.Routes, c.Doors = segments, append(c.Routes, routes...), doors
	if c.Check() == nil {
		return c, nil
	}
	good := border.Config{}
	try := func(with border.Config) bool {
		err := with.Check()
		if err != nil {
			odd = append(odd, err)
		}
		return err == nil
	}
	for _, p := range c.Peers {
		if !try(border.Config{Peers: append(slices.Clip(good.Peers), p)}) {
			p.Key = ""
		}
		good.Peers = append(good.Peers, p)
	}
	for _, s := range c.Segments {
		if try(border.Config{Segments: append(slices.Clip(good.Segments), s)}) {
			good.Segments = append(good.Segments, s)
		}
	}
	for _, r := range c.Routes {
		if try(border.Config{Routes: append(slices.Clip(good.Routes), r)}) {
			good.Routes = append(good.Routes, r)
		}
	}
	for _, d := range c.Doors {
		if try(border.Config{Segments: good.Segments, Doors: append(slices.Clip(good.Doors), d)}) {
			good.Doors = append(good.Doors, d)
		}
	}
	return good, odd
}

// Run until ctx is done.
func (g *gate) Run(ctx context.Context) {
	tick := time.NewTicker(g.every)
	defer tick.Stop()
	for {
		before := g.failure()
		err := g.sync(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && before == nil:
			g.log.Warn("the site's proxy is not as it should be", "err", err)
		case err == nil && before != nil:
			g.log.Info("the site's proxy is as it should be again")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-g.wake:
		}
	}
}

// Poke says that what the proxy is to do may have changed. It never blocks.
func (g *gate) Poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// lead partners to that address of the control plane.
func (g *gate) lead(control string) {
	g.mu.Lock()
	if g.control == "" {
		close(g.leads)
	}
	g.control = control
	g.mu.Unlock()
	g.Poke()
}

// waitForProxy until the site has one; false: ctx is done before.
func (g *gate) waitForProxy(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-g.there:
		return true
	}
}

// ready returns when whoever comes to the proxy as a partner is led to the control plane. That
// there is no proxy is no error. Errors: Unavailable.
func (g *gate) ready(ctx context.Context) error {
	if g.announced().Address == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	select {
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "the control plane does not listen for partners yet").Try("reservoir site proxy show")
	case <-g.leads:
	}
	if err := g.sync(ctx); err != nil {
		return fault.New(fault.Unavailable, "tell the site's proxy the way to the control plane: %w", err).Try("reservoir site proxy show")
	}
	return nil
}

// readyPatience with the proxy of a site that has just been started.
const readyPatience = 5 * time.Second

func (g *gate) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// sync puts what the proxy is to do, if it does not hold that. That there is no proxy is no
// error.
func (g *gate) sync(ctx context.Context) error {
	g.putting.Lock()
	defer g.putting.Unlock()
	borders, doors, members := g.borders(), g.doors(), g.members()
	segments := g.segments() // after the doors, so that each has its network
	g.mu.Lock()
	g.keepWays(doors)
	next, odd := compose(g.control, borders, segments, g.routes, g.listWays())
	next.Members = members
	next.Version = g.want.Version
	changed := next.Version == 0 || !reflect.DeepEqual(next, g.want)
	if changed {
		next.Version = max(g.want.Version+1, uint64(g.now().UnixMicro()))
		g.want = next
	}
	proxy := g.proxy
	news := proxy.Holds == next.Version && g.openWays(next.Doors)
	g.mu.Unlock()
	if news {
		g.opened()
	}
	if changed {
		for _, err := range odd {
			g.log.Warn("left out of what the proxy is to do", "err", err)
		}
	}
	if proxy.Address == "" || proxy.Holds == next.Version {
		return nil
	}
	err := g.dial(proxy.Address).Put(ctx, next)
	g.mu.Lock()
	g.err = err
	if err == nil && g.proxy.Address == proxy.Address {
		g.proxy.Holds = next.Version
		news = g.openWays(next.Doors)
	}
	g.mu.Unlock()
	if news {
		g.opened()
	}
	return err
}

// Announce implements border.Manager.
func (g *gate) Announce(ctx context.Context, a border.Presence) error {
	if _, err := border.ParseKey(a.Key); err != nil || !a.Underlay.IsValid() {
		return fault.New(fault.Malformed, "the proxy announces key %q and underlay address %v", a.Key, a.Underlay)
	}
	for _, address := range []string{a.Address, a.Inside, a.Outside, a.Tunnel} {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fault.New(fault.Malformed, "the proxy announces address %q: %w", address, err)
		}
	}
	g.mu.Lock()
	same := g.proxy
	same.Holds = a.Holds
	behind := a.Holds != g.want.Version
	g.mu.Unlock()
	if same != a { // seldom, for all that the proxy says each few seconds
		kept := a
		kept.Holds = 0
		if _, err := g.records.Put(ctx, proxyKey, kept); err != nil {
			return err
		}
		g.log.Info("the site's proxy", "address", a.Address, "outside", a.Outside, "key", a.Key)
	}
	g.mu.Lock()
	first, none := g.proxy.Inside == "", g.proxy.Address == ""
	g.proxy = a
	if none {
		close(g.there)
	}
	g.mu.Unlock()
	if behind {
		g.Poke()
	}
	if first {
		g.opened()
	}
	return nil
}

func (g *gate) announced() border.Presence {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.proxy
}

// Border is how the proxy is reached from other sites; zero: there is none.
func (g *gate) Border() peer.Border {
	a := g.announced()
	return peer.Border{Relay: a.Outside, Tunnel: a.Tunnel, Key: a.Key}
}

// Underlay address of the proxy; zero: there is none.
func (g *gate) Underlay() netip.Addr { return g.announced().Underlay }

func (g *gate) none() error {
	return fault.New(fault.Unavailable, "site %s has no VAN proxy, by which other sites are reached", g.site).
		Try("reservoir site proxy invite, then on a machine with a leg outside: reservoir proxy")
}

// Dial the control plane of a partner, through both proxies.
func (g *gate) Dial(ctx context.Context, site string, _ peer.Border) (net.Conn, error) {
	if err := g.sync(ctx); err != nil { // the way to a new one is put first
		return nil, err
	}
	a := g.announced()
	if a.Inside == "" {
		return nil, g.none()
	}
	return relay.Dial(ctx, &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}, a.Inside, border.PeerTicket(site))
}

// tunnelFresh is how old the last handshake of a tunnel that works can be: WireGuard makes a
// new one after two minutes at the latest, and gives up after three.
const tunnelFresh = 3 * time.Minute

// Tunnel says how the tunnel to a partner is, nil: it works.
func (g *gate) Tunnel(ctx context.Context, site string) error {
	a := g.announced()
	if a.Address == "" {
		return g.none()
	}
	st, err := g.dial(a.Address).Status(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(st.Peers, func(p border.PeerStatus) bool { return p.Site == site })
	switch {
	case i < 0:
		return fault.New(fault.Unavailable, "site %s has told no key for a tunnel", site)
	case st.Peers[i].Handshake.IsZero():
		return fault.New(fault.Unavailable, "the proxy of site %s has never answered", site).Try("let UDP pass both ways between udp://%s and the proxy of site %s", a.Tunnel, site)
	case g.now().Sub(st.Peers[i].Handshake) > tunnelFresh:
		return fault.New(fault.Unavailable, "the proxy of site %s has not answered since %s", site, st.Peers[i].Handshake.Format(time.DateTime))
	}
	return nil
}

// Pass puts the routes of live migrations in the place of those before; they are in effect
// when it returns. It is the half of veem.Crossing that is the proxy's.
func (g *gate) Pass(ctx context.Context, routes []border.Route) (inside string, err error) {
	g.mu.Lock()
	g.routes = slices.Clone(routes)
	a := g.proxy
	g.mu.Unlock()
	if a.Inside == "" {
		return "", g.none()
	}
	return a.Inside, g.sync(ctx)
}

// keeper is the site as its proxy and, of it, its operator see it.
type keeper struct{ *site }

var (
	_ border.Manager = keeper{}
	_ border.Keeper  = keeper{}
)

// InviteProxy implements border.Keeper.
func (k keeper) InviteProxy(ctx context.Context) (border.ProxyInvite, error) {
	token, err := k.invitations.CreateProxy(ctx, k.ca, inviteLife)
	if err != nil {
		return border.ProxyInvite{}, err
	}
	return border.ProxyInvite{Token: token.Reveal(), Address: k.cfg.Advertise, Expires: time.Now().Add(inviteLife)}, nil
}

// ShowProxy implements border.Keeper.
func (k keeper) ShowProxy(ctx context.Context) (border.ProxyStatus, error) {
	a := k.gate.announced()
	if a.Address == "" {
		return border.ProxyStatus{}, fault.New(fault.NotFound, "site %s has no VAN proxy", k.cfg.Name).Try("reservoir site proxy invite")
	}
	st, err := k.gate.dial(a.Address).Status(ctx)
	if put := k.gate.failure(); put != nil && st.Error == "" {
		st.Error = put.Error()
	}
	return st, err
}

// JoinProxy implements border.Manager.
func (k keeper) JoinProxy(ctx context.Context, r border.ProxyJoin) (border.ProxyCertificate, error) {
	inv, err := k.invitations.Redeem(ctx, identity.Secret(r.Token), r.CSR)
	if err != nil {
		return border.ProxyCertificate{}, err
	}
	if !inv.Proxy {
		return border.ProxyCertificate{}, fault.New(fault.Denied, "the invitation is for a host, not for the site's proxy").Try("reservoir site proxy invite")
	}
	return k.RenewProxy(ctx, r.CSR)
}

// Announce implements border.Manager.
func (k keeper) Announce(ctx context.Context, a border.Presence) error {
	return k.gate.Announce(ctx, a)
}

// RenewProxy implements border.Manager.
func (k keeper) RenewProxy(_ context.Context, csr []byte) (border.ProxyCertificate, error) {
	id, err := identity.ProxyID(k.cfg.Name)
	if err != nil {
		return border.ProxyCertificate{}, err
	}
	chain, err := k.ca.Issue(csr, id)
	if err != nil {
		return border.ProxyCertificate{}, err
	}
	return border.ProxyCertificate{Site: k.cfg.Name, Certificate: chain, Bundle: k.ca.Bundle()}, nil
}
