// Package post is a site's VAN proxy as a process (border post): it joins its site with a
// one-time token, as hosts do, and then does what the site puts (van/border). It keeps that on
// disk, so that after a restart tunnel and tickets are as before without the site.
package post

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/border/door"
	"github.com/reservoir-cloud/reservoir/van/border/relay"
	"github.com/reservoir-cloud/reservoir/van/border/tunnel"
	"github.com/reservoir-cloud/reservoir/van/plan"
)

// Config of a proxy. All addresses are host:port.
type Config struct {
	Dir       string   // all that it keeps; made with mode 0700
	Sites     []string // of the members of the control plane; any of them will do
	JoinToken string   // one time; not needed once it has joined
	Listen    string   // for the site: how the proxy is told what to do
	Inside    string   // relay for the site's own processes
	Outside   string   // relay for other sites by TCP, and the tunnel by UDP
	Advertise string   // how other sites reach Outside; empty: as it is
	Underlay  netip.Addr
	HAScale   float64 // scales every timing together; 0: 1
	Version   string
	Log       *slog.Logger
}

func (c *Config) check() error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Malformed, format, args...).Try("reservoir proxy --help")
	}
	if c.Dir == "" || len(c.Sites) == 0 {
		return bad("a proxy needs a directory and the address of its site")
	}
	var ports [3]netip.AddrPort
	for i, a := range []string{c.Listen, c.Inside, c.Outside} {
		p, err := netip.ParseAddrPort(a)
		if err != nil || p.Addr().IsUnspecified() || p.Port() == 0 {
			return bad("address %q: want one address of this machine and a port; what is inside is told from what is outside by it", a)
		}
		if p.Port() >= border.FirstDoor && p.Port() <= border.LastDoor {
			return bad("address %q: ports %d to %d are doors of access points", a, border.FirstDoor, border.LastDoor)
		}
		ports[i] = p
	}
	if ports[0] == ports[1] || ports[0] == ports[2] || ports[1] == ports[2] {
		return bad("the addresses %s, %s and %s must differ", c.Listen, c.Inside, c.Outside)
	}
	if !c.Underlay.IsValid() {
		c.Underlay = ports[0].Addr()
	}
	if c.Advertise == "" {
		c.Advertise = c.Outside
	}
	if c.HAScale == 0 {
		c.HAScale = 1
	}
	return nil
}

// post is a running proxy.
type post struct {
	cfg      Config
	keys     *identity.Keypair
	key      tunnel.PrivateKey
	networks *van.Network
	tunnel   *tunnel.Tunnel
	routes   *routes
	relay    *relay.Relay
	started  time.Time
	changed  chan struct{} // of size one: there is something to announce

	members *httpapi.Members // of the control plane
	mu      sync.Mutex
	held    border.Config
	err     error // of the last attempt to make it so
}

// Run joins if need be, and then serves until ctx is done. What the kernel holds stays, so
// that a new process goes on where this one was; without one nothing passes.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make the proxy's directory: %w", err)
	}
	lock, err := durable.Lock(filepath.Join(cfg.Dir, "lock"))
	if err != nil {
		return fault.New(fault.InUse, "directory %s: another proxy works on it: %w", cfg.Dir, err).Try("stop the other process, or give this one a directory of its own: reservoir proxy --dir")
	}
	defer lock.Close()
	p := &post{cfg: cfg, started: time.Now(), changed: make(chan struct{}, 1)}
	if p.keys, err = joined(ctx, cfg); err != nil {
		return err
	}
	if err := p.open(ctx); err != nil {
		return errors.Join(err, p.close())
	}
	return errors.Join(p.serve(ctx), p.close())
}

// open everything, as it was before.
func (p *post) open(ctx context.Context) (err error) {
	if p.key, err = openKey(filepath.Join(p.cfg.Dir, "tunnel.key")); err != nil {
		return err
	}
	if p.routes, err = openRoutes(filepath.Join(p.cfg.Dir, "used.json"), time.Now); err != nil {
		return err
	}
	if err := durable.ReadJSON(p.configFile(), &p.held); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("what the site put last: %w", err)
	}
	if p.networks, err = van.Open(van.Config{Host: "proxy", Underlay: p.cfg.Underlay, Border: true, Log: p.cfg.Log}); err != nil {
		return err
	}
	port := netip.MustParseAddrPort(p.cfg.Outside).Port()
	if p.tunnel, err = tunnel.Open(tunnel.Config{Key: p.key, Port: port, Networks: p.networks, Log: p.cfg.Log}); err != nil {
		return err
	}
	p.relay = relay.New(relay.Config{Tickets: p.routes.lead, Valid: border.ValidTicket, Dial: &net.Dialer{KeepAlive: 15 * time.Second}, Log: p.cfg.Log})
	if p.err = p.follow(ctx, p.held); p.err != nil {
		p.cfg.Log.Error("take up what the site put last", "err", p.err)
	}
	return nil
}

func (p *post) configFile() string { return filepath.Join(p.cfg.Dir, "config.json") }

func (p *post) close() error {
	if p.tunnel != nil {
		p.tunnel.Close()
	}
	if p.networks != nil {
		return p.networks.Close()
	}
	return nil
}

// serve until ctx is done.
func (p *post) serve(ctx context.Context) error {
	listeners := map[string]net.Listener{}
	for _, at := range []string{p.cfg.Listen, p.cfg.Inside, p.cfg.Outside} {
		ln, err := net.Listen("tcp", at)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return fault.New(fault.Unavailable, "listen on %s: %w", at, err).Try("see who has it: ss -ltnp; choose others: reservoir proxy --help")
		}
		listeners[at] = ln
	}
	site, err := identity.SiteID(p.keys.Site())
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.members = httpapi.NewMembers(p.keys.ClientTLS(site), membersOf(p.cfg, p.held)...)
	p.mu.Unlock()
	manager := border.NewManagerClient(&httpapi.Client{Base: "https://" + p.cfg.Sites[0], HTTP: &http.Client{Transport: p.members.Transport()}})
	api := httpapi.NewServer("Reservoir proxy of site "+p.keys.Site(), p.cfg.Version, p.cfg.Log)
	border.RegisterProxy(api, p)
	auth := &identity.Authenticator{Site: p.keys.Site()}
	server := &httpapi.Listener{Handler: api.Handler(auth.Caller), TLS: p.keys.ServerTLS(), Log: p.cfg.Log}

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	for _, f := range []func(context.Context) error{
		func(ctx context.Context) error { return server.Serve(ctx, listeners[p.cfg.Listen]) },
		func(ctx context.Context) error { return p.relay.Serve(ctx, relay.Inside, listeners[p.cfg.Inside]) },
		func(ctx context.Context) error { return p.relay.Serve(ctx, relay.Outside, listeners[p.cfg.Outside]) },
		func(ctx context.Context) error { p.announce(ctx, manager); return nil },
		func(ctx context.Context) error { p.mend(ctx); return nil },
		func(ctx context.Context) error {
			p.keys.KeepFresh(ctx, p.cfg.Log, func(ctx context.Context, csr []byte) (chain, bundle []byte, err error) {
				r, err := manager.RenewProxy(ctx, csr)
				return r.Certificate, r.Bundle, err
			})
			return nil
		},
	} {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				stop(err)
			}
		})
	}
	p.cfg.Log.Info("proxy is up", "site", p.keys.Site(), "inside", p.cfg.Inside, "outside", p.cfg.Outside, "key", p.key.Public())
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Put implements border.Proxy.
func (p *post) Put(ctx context.Context, c border.Config) error {
	if err := c.Check(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.Version < p.held.Version || c.Version == p.held.Version && p.err == nil {
		return nil
	}
	if err := durable.WriteJSON(p.configFile(), c, 0o600); err != nil {
		return fmt.Errorf("keep what the site puts: %w", err)
	}
	p.held = c
	p.members.Set(membersOf(p.cfg, c))
	p.err = p.follow(context.WithoutCancel(ctx), c)
	select {
	case p.changed <- struct{}{}:
	default:
	}
	return p.err
}

// follow a configuration. p.mu is held, or nobody else is there yet.
func (p *post) follow(ctx context.Context, c border.Config) error {
	return errors.Join(p.routes.put(c.Peers, c.Routes), p.tunnel.Put(ctx, c.Peers, c.Segments), door.Put(p.networks, netip.MustParseAddrPort(p.cfg.Inside).Addr(), c))
}

// mendEvery is how often the kernel is compared with what it should hold.
const mendEvery = time.Minute

func (p *post) mend(ctx context.Context) {
	tick := time.NewTicker(mendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		changes, err := p.networks.Mend()
		for _, c := range changes {
			p.cfg.Log.Warn("the kernel's networks were not as they should be", "change", c.String())
		}
		p.mu.Lock()
		if err == nil { // what could not be done may go now, and a TAP that is gone is made anew
			err = p.follow(ctx, p.held)
		}
		p.err = err
		p.mu.Unlock()
		if err != nil {
			p.cfg.Log.Error("the networks of this proxy", "err", err)
		}
	}
}

func (p *post) presence() border.Presence {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := border.Presence{Address: p.cfg.Listen, Underlay: p.cfg.Underlay, Inside: p.cfg.Inside, Outside: p.cfg.Advertise, Tunnel: p.cfg.Advertise,
		Key: p.key.Public().String(), Software: p.cfg.Version}
	if p.err == nil {
		a.Holds = p.held.Version
	}
	return a
}

// announceEvery is how often the site is told that the proxy is there; it scales.
const announceEvery = 5 * time.Second

func (p *post) announce(ctx context.Context, site border.Manager) {
	every := time.Duration(float64(announceEvery) * p.cfg.HAScale)
	lost := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.changed:
		}
		c, cancel := context.WithTimeout(ctx, every)
		err := site.Announce(c, p.presence())
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !lost:
			p.cfg.Log.Warn("the site does not answer", "err", err)
		case err == nil && lost:
			p.cfg.Log.Info("the site answers again")
		}
		lost = err != nil
		timer.Reset(every)
	}
}

// Status implements border.Proxy.
func (p *post) Status(context.Context) (border.ProxyStatus, error) {
	s := border.ProxyStatus{Presence: p.presence(), Started: p.started, Peers: p.tunnel.Peers(), Routes: p.routes.status(), Dropped: p.tunnel.Dropped(), Segments: []border.SegmentStatus{}}
	s.Relay.Open, s.Relay.Taken, s.Relay.Refused = p.relay.Counts()
	have, want, err := p.networks.Show()
	if err != nil {
		return s, err
	}
	p.mu.Lock()
	held := p.held
	s.Doors = held.Doors
	if p.err != nil {
		s.Error = p.err.Error()
	}
	p.mu.Unlock()
	for _, g := range held.Segments {
		s.Segments = append(s.Segments, segmentStatus(g, p.cfg.Underlay, have, want))
	}
	return s, nil
}

// segmentStatus is what the kernel has and should have of one network. A bridge and its
// devices are told by the VNI in their names.
func segmentStatus(g border.Segment, underlay netip.Addr, have, want plan.HostPlan) border.SegmentStatus {
	s := border.SegmentStatus{ID: g.ID, VNI: g.VNI, Tunnel: g.Tunnel, Sites: g.Sites(), Ports: len(g.Ports), Plan: []string{}}
	for _, e := range plan.ForBorder(underlay, []plan.Segment{g.Segment}).Entries() {
		s.Plan = append(s.Plan, e.String())
		if h := have[plan.KeyOf(e)]; h == nil || !plan.Same(e, h) {
			s.Missing = append(s.Missing, e.String())
		}
	}
	for _, c := range plan.Diff(have, want) {
		if c.Want == nil && c.Key().VNI == g.VNI {
			s.Surplus = append(s.Surplus, c.Have.String())
		}
	}
	return s
}

// openKey of WireGuard, made where there is none.
func openKey(file string) (k tunnel.PrivateKey, err error) {
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		k = tunnel.NewKey()
		return k, durable.WriteFile(file, k[:], 0o600)
	case err != nil:
		return k, fmt.Errorf("the tunnel's key: %w", err)
	case len(b) != len(k):
		return k, fault.New(fault.Malformed, "the tunnel's key in %s has %d bytes: want %d", file, len(b), len(k)).Try("delete the file: the proxy makes a new key, and partners are told")
	}
	return tunnel.PrivateKey(b), nil
}
