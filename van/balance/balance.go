// Package balance makes groups of VEEs reachable from outside: the access points of a site.
// The kernel spreads the connections (destination NAT by nftables); this package keeps its
// rules as they should be, draws the addresses, checks the backends' health and counts the
// connections of those that are being drained.
//
//	client ─► address:port ─► map points ─► chain of the point ─► slot ─► backend
//	                                                            (dnat, masquerade)
//
// A connection keeps its backend until one of the two ends it: connection tracking holds
// it, whatever happens to the rules, also while no process of the site runs. A backend that
// moves to another host keeps its address, and so its connections.
//
// IPv4 alone: the networks that a site calls public are.
package balance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
)

// Config of a Balancer.
type Config struct {
	Address     netip.Addr   // shared by access points that have none of their own
	First, Last uint16       // ports of it that are drawn
	Pool        netip.Prefix // addresses for groups; zero: none
	// Lease says until when this machine may have the addresses, which are put on it then, also
	// the shared one, and taken away by the kernel in time. nil: they are nobody else's, and the
	// shared one is there already.
	Lease func() time.Time
	// Every is the pause between two checks of a backend, and a third of their timeout; 0: 2 s.
	Every time.Duration
	// Changed is called when a backend of a point has become well, or ill. It does not block.
	// nil: nobody asks.
	Changed func(key string, b plan.BackendState)
	Log     *slog.Logger
}

// Balancer serves a site's access points in the network namespace of its process.
type Balancer struct {
	cfg    Config
	kernel *kernel

	mu     sync.Mutex
	opened bool
	points map[string]*point
	run    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

// point as it is served.
type point struct {
	plan.Point
	target target
	held   int // socket that holds the port
	health map[netip.AddrPort]health
	probes map[netip.AddrPort]context.CancelFunc
	// connections of the backends, when last counted.
	connections map[netip.AddrPort]int
	slots       []netip.AddrPort // that the kernel has
	written     bool
}

// New touches nothing yet: the rules come with the first point.
func New(cfg Config) *Balancer {
	if cfg.Every == 0 {
		cfg.Every = 2 * time.Second
	}
	if cfg.Changed == nil {
		cfg.Changed = func(string, plan.BackendState) {}
	}
	b := &Balancer{cfg: cfg, kernel: newKernel(tableName), points: map[string]*point{}}
	b.run, b.stop = context.WithCancel(context.Background())
	b.wg.Go(b.count)
	if b.leased() {
		b.wg.Go(b.keepAddresses)
	}
	return b
}

// Close stops checking. The rules stay, and with them the access points: a site whose
// control plane is restarted goes on serving; only addresses under a lease are let go of. Clear
// removes them.
func (b *Balancer) Close() {
	b.stop()
	b.mu.Lock()
	if b.leased() {
		if err := b.release(); err != nil {
			b.cfg.Log.Warn("let go of the addresses of access points", "err", err)
		}
	}
	for _, p := range b.points {
		unix.Close(p.held)
	}
	clear(b.points)
	b.mu.Unlock()
	b.wg.Wait()
}

// Clear removes every access point and every rule, and those of earlier processes.
func (b *Balancer) Clear() error {
	b.mu.Lock()
	var keys []string
	for key := range b.points {
		keys = append(keys, key)
	}
	b.mu.Unlock()
	var errs []error
	for _, key := range keys {
		errs = append(errs, b.Remove(key))
	}
	return errors.Join(append(errs, b.kernel.clear())...)
}

// Set makes an access point serve, or changes it. The answer is the address that it has,
// "host:port". Errors: fault.NoResources when there is no address left,
// fault.Unsupported when this process may not change the firewall.
func (b *Balancer) Set(_ context.Context, p plan.Point) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.run.Err() != nil {
		return "", fault.New(fault.Unavailable, "access point %s: the balancer is closed", p.Key)
	}
	if !b.opened {
		if err := b.kernel.open(); err != nil {
			return "", err
		}
		b.opened = true
	}
	have := b.points[p.Key]
	if have != nil && have.UDP != p.UDP { // another kind of port
		if err := b.remove(p.Key); err != nil {
			return "", err
		}
		have = nil
	}
	if have == nil {
		t, held, err := b.take(p)
		if err != nil {
			return "", fmt.Errorf("access point %s: %w", p.Key, err)
		}
		have = &point{target: t, held: held, health: map[netip.AddrPort]health{}, probes: map[netip.AddrPort]context.CancelFunc{}}
		b.points[p.Key] = have
	}
	gone := have.departed(p)
	have.Point = p
	have.Backends = slices.Clone(p.Backends)
	b.watch(have)
	if err := b.write(have); err != nil {
		return "", err
	}
	if len(gone) > 0 {
		if err := b.kernel.forget(have.target, func(a netip.AddrPort) bool { return gone[a] }); err != nil {
			b.cfg.Log.Warn("access point: connections to backends that are gone", "point", p.Key, "err", err)
		}
	}
	return have.target.at.String(), nil
}

// departed are the backends that are none any more, and whose connections are to end: those
// that have been drained, and those of datagrams, which can go to another. Any other may be
// back in a moment, and its connections with it.
func (p *point) departed(now plan.Point) map[netip.AddrPort]bool {
	gone := map[netip.AddrPort]bool{}
	for _, b := range p.Backends {
		stays := slices.ContainsFunc(now.Backends, func(n plan.Backend) bool { return n.Address == b.Address })
		if !stays && (b.Draining || now.UDP) {
			gone[b.Address] = true
		}
	}
	return gone
}

func (p *point) present() map[netip.AddrPort]bool {
	m := map[netip.AddrPort]bool{}
	for _, b := range p.Backends {
		m[b.Address] = true
	}
	return m
}

// write the point's rules, if they differ from what the kernel has.
func (b *Balancer) write(p *point) error {
	var open []netip.AddrPort
	for _, k := range p.Backends {
		if !k.Draining {
			open = append(open, k.Address)
		}
	}
	use := usable(open, func(a netip.AddrPort) health { return p.health[a] })
	load := make([]int, len(use))
	for i, a := range use {
		load[i] = p.connections[a]
	}
	slots := spread(p.Algorithm, use, load)
	if p.written && slices.Equal(slots, p.slots) {
		return nil
	}
	if err := b.kernel.put(p.Key, p.target, p.Algorithm, slots); err != nil {
		return err
	}
	p.slots, p.written = slots, true
	return nil
}

// watch starts and ends the checks of p's backends. A backend that datagrams go to is taken
// to be well.
func (b *Balancer) watch(p *point) {
	present, ready := p.present(), map[netip.AddrPort]bool{}
	for _, b := range p.Backends {
		ready[b.Address] = b.Ready
	}
	for a, end := range p.probes {
		if !present[a] {
			end()
			delete(p.probes, a)
			delete(p.health, a)
		}
	}
	for a := range present {
		if h, known := p.health[a]; known {
			if ready[a] && !h.once { // it was there before its guest was
				p.health[a] = health{well: true, once: true}
				b.kernel.askAgain(a.Addr())
			}
			continue
		}
		if p.UDP {
			p.health[a] = health{}.after(nil)
			continue
		}
		p.health[a] = health{well: ready[a], once: ready[a], why: "has not been checked yet"}
		ctx, end := context.WithCancel(b.run)
		p.probes[a] = end
		b.wg.Go(func() { b.probe(ctx, p, a) })
	}
}

// probe a backend until ctx ends. One that has not been well yet is asked more often, so
// that it serves soon after it can.
func (b *Balancer) probe(ctx context.Context, p *point, a netip.AddrPort) {
	for {
		b.mu.Lock()
		path := p.Health
		b.mu.Unlock()
		err := check(ctx, a, path, 3*b.cfg.Every)
		if ctx.Err() != nil {
			return
		}
		b.mu.Lock()
		key, k := p.Key, plan.Backend{Address: a}
		if i := slices.IndexFunc(p.Backends, func(k plan.Backend) bool { return k.Address == a }); i >= 0 {
			k = p.Backends[i]
		}
		was := p.health[a]
		now := was.after(err)
		if b.points[key] == p && p.probes[a] != nil {
			p.health[a] = now
			if was.well != now.well {
				if err := b.write(p); err != nil {
					b.cfg.Log.Warn("access point", "point", key, "err", err)
				}
			}
		}
		b.mu.Unlock()
		if was.well != now.well {
			b.cfg.Changed(key, plan.BackendState{Backend: k, Healthy: now.well, Why: now.why})
		}
		pause := b.cfg.Every
		if !now.once {
			pause /= 8
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// count the connections of points that are spread by load.
func (b *Balancer) count() {
	tick := time.NewTicker(b.cfg.Every / 8)
	defer tick.Stop()
	for {
		select {
		case <-b.run.Done():
			return
		case <-tick.C:
		}
		b.recount()
	}
}

func (b *Balancer) recount() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.ContainsFunc(b.list(), (*point).counts) {
		return
	}
	under, err := b.kernel.connections()
	if err != nil {
		b.cfg.Log.Warn("access points", "err", err)
		return
	}
	for key, p := range b.points {
		p.connections = under[p.target]
		if p.Algorithm == plan.LeastConnections {
			if err := b.write(p); err != nil {
				b.cfg.Log.Warn("access point", "point", key, "err", err)
			}
		}
	}
}

func (b *Balancer) list() (all []*point) {
	for _, p := range b.points {
		all = append(all, p)
	}
	return all
}

func (p *point) counts() bool { return p.Algorithm == plan.LeastConnections }

// Show the backends of points: health as last checked, connections as they are now.
func (b *Balancer) Show(keys ...string) map[string][]plan.BackendState {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string][]plan.BackendState{}
	if !slices.ContainsFunc(keys, func(key string) bool { return b.points[key] != nil }) {
		return all
	}
	under, err := b.kernel.connections()
	if err != nil {
		b.cfg.Log.Warn("access points", "err", err)
	}
	for _, key := range keys {
		p := b.points[key]
		if p == nil {
			continue
		}
		now := p.connections
		if err == nil {
			now = under[p.target]
		}
		for _, k := range p.Backends {
			h := p.health[k.Address]
			s := plan.BackendState{Backend: k, Healthy: h.well, Connections: now[k.Address]}
			if !h.well {
				s.Why = h.why
			}
			all[key] = append(all[key], s)
		}
	}
	return all
}

// Remove an access point. That there is none is no error.
func (b *Balancer) Remove(key string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.remove(key)
}

func (b *Balancer) remove(key string) error {
	p := b.points[key]
	if p == nil {
		return nil
	}
	if err := b.kernel.drop(p.target, chainOf(key)); err != nil {
		return err
	}
	delete(b.points, key)
	for _, end := range p.probes {
		end()
	}
	unix.Close(p.held)
	err := b.kernel.forget(p.target, func(netip.AddrPort) bool { return true })
	if a := p.target.at.Addr(); a != b.cfg.Address && !slices.ContainsFunc(b.list(), func(o *point) bool { return o.target.at.Addr() == a }) {
		err = errors.Join(err, b.kernel.free(a))
	}
	return err
}

// Sweep removes the rules of points that Set has not been told of: those of an earlier
// process.
func (b *Balancer) Sweep() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.opened && !b.kernel.there() {
		return nil
	}
	keep := map[target]string{}
	for key, p := range b.points {
		keep[p.target] = chainOf(key)
	}
	return b.kernel.sweep(keep)
}
