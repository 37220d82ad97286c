package site

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
)

// forwarder leads access points to VEEs that the site's clients do not reach by themselves: by
// a door of the site's proxy, where the kernel does the rest. Where there is none, since the
// site has no proxy or the VEE is on none of the site's private networks, each has a port of this
// site's, from which connections are passed on to the guest over the VMI; datagrams are not.
type forwarder struct {
	address netip.Addr // where it listens
	doorTo  func(ctx context.Context, d veem.Door) (netip.AddrPort, error)
	proxied func() bool // there is a proxy
	wanted  func() []veem.Door
	reach   func(ctx context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error)
	log     *slog.Logger

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	doors map[veem.Door]net.Listener
}

func newForwarder(address netip.Addr, log *slog.Logger) *forwarder {
	f := &forwarder{address: address, log: log, doors: map[veem.Door]net.Listener{}}
	f.ctx, f.stop = context.WithCancel(context.Background())
	return f
}

// Forward is veem.Config.Forward.
func (f *forwarder) Forward(d veem.Door) (netip.AddrPort, error) {
	if d.Segment != "" && f.proxied() {
		return f.doorTo(f.ctx, d)
	}
	if d.UDP {
		return netip.AddrPort{}, fault.New(fault.Unsupported, "datagrams reach VEE %s by a private network and the site's VAN proxy alone", d.VEE)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.doors[d]
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", netip.AddrPortFrom(f.address, 0).String()); err != nil {
			return netip.AddrPort{}, fault.New(fault.Unavailable, "open a way to VEE %s at its site: %w", d.VEE, err)
		}
		f.doors[d] = l
		f.wg.Go(func() { f.serve(l, d) })
	}
	return netip.ParseAddrPort(l.Addr().String())
}

// serve a door until it is closed.
func (f *forwarder) serve(l net.Listener, d veem.Door) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		f.wg.Go(func() { f.pass(c, d) })
	}
}

// pass one connection on.
func (f *forwarder) pass(c net.Conn, d veem.Door) {
	defer c.Close()
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	to, err := f.reach(ctx, d.VEE, d.Port)
	if err != nil {
		f.log.Debug("a connection to a VEE at a partner", "vee", d.VEE, "err", err)
		return
	}
	defer to.Close()
	end := context.AfterFunc(f.ctx, func() { c.Close(); to.Close() })
	defer end()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(c, to)
		_ = c.Close()
	})
	_, _ = io.Copy(to, c)
	_ = to.Close()
	back.Wait()
}

// Run closes the doors that no access point leads through any more, until ctx is done.
func (f *forwarder) Run(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		wanted := f.wanted()
		f.mu.Lock()
		for d, l := range f.doors {
			if !slices.Contains(wanted, d) {
				_ = l.Close()
				delete(f.doors, d)
			}
		}
		f.mu.Unlock()
	}
}

// Close ends all connections.
func (f *forwarder) Close() {
	f.stop()
	f.mu.Lock()
	for _, l := range f.doors {
		_ = l.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}
