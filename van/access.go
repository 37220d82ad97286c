package van

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Balancer serves a site's access points: for each a TCP listener whose connections are
// spread over the backends in turn. A backend that does not accept is passed over for
// that connection; connections that are under way stay with their backend when the set
// changes.
type Balancer struct {
	ip          netip.Addr // that the listeners bind to
	first, last uint16     // ports that they are drawn from
	log         *slog.Logger

	mu     sync.Mutex
	points map[string]*point
	wg     sync.WaitGroup
	closed bool
}

// dialTimeout bounds the search for a backend, dialPatience the wait for one before the
// next is tried beside it.
const (
	dialTimeout  = 3 * time.Second
	dialPatience = 200 * time.Millisecond
)

type point struct {
	ln   net.Listener
	addr string
	mu   sync.Mutex
	next int
	to   []netip.AddrPort
	open map[net.Conn]struct{}
}

// NewBalancer serves on ip, with ports first to last.
func NewBalancer(ip netip.Addr, first, last uint16, log *slog.Logger) *Balancer {
	return &Balancer{ip: ip, first: first, last: last, log: log, points: map[string]*point{}}
}

// Set makes the access point key listen and sets its backends. wanted is the address that
// it had before ("host:port"), kept if it is free; empty or taken: another is drawn. The
// answer is the address that it has.
func (b *Balancer) Set(_ context.Context, key, wanted string, backends []netip.AddrPort) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return "", fault.New(fault.Unavailable, "access point %s: the balancer is closed", key)
	}
	p := b.points[key]
	if p == nil {
		ln, err := b.listen(wanted)
		if err != nil {
			return "", fmt.Errorf("access point %s: %w", key, err)
		}
		p = &point{ln: ln, addr: ln.Addr().String(), open: map[net.Conn]struct{}{}}
		b.points[key] = p
		b.wg.Add(1)
		go func() { defer b.wg.Done(); b.serve(p) }()
	}
	p.mu.Lock()
	p.to = append([]netip.AddrPort(nil), backends...)
	p.mu.Unlock()
	return p.addr, nil
}

func (b *Balancer) listen(wanted string) (net.Listener, error) {
	if ap, err := netip.ParseAddrPort(wanted); err == nil {
		if ln, err := net.Listen("tcp", netip.AddrPortFrom(b.ip, ap.Port()).String()); err == nil {
			return ln, nil
		}
	}
	for port := int(b.first); port <= int(b.last); port++ {
		ln, err := net.Listen("tcp", net.JoinHostPort(b.ip.String(), strconv.Itoa(port)))
		if err == nil {
			return ln, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fault.New(fault.Unavailable, "listen on %s: %w", b.ip, err).
				Try("give the site an address of this machine: reservoir site --access-address")
		}
	}
	return nil, fault.New(fault.NoResources, "every port from %d to %d of %s is taken", b.first, b.last, b.ip).
		Try("give the site more ports: reservoir site --access-points 20000-29999")
}

// Remove closes the access point and its connections.
func (b *Balancer) Remove(key string) {
	b.mu.Lock()
	p := b.points[key]
	delete(b.points, key)
	b.mu.Unlock()
	if p != nil {
		p.close()
	}
}

// Close removes all and waits until every connection has ended.
func (b *Balancer) Close() {
	b.mu.Lock()
	b.closed = true
	for k, p := range b.points {
		p.close()
		delete(b.points, k)
	}
	b.mu.Unlock()
	b.wg.Wait()
}

func (p *point) close() {
	p.ln.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
}

func (b *Balancer) serve(p *point) {
	for {
		c, err := p.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of files: let some end
			b.log.Warn("access point: accept", "address", p.addr, "err", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		b.wg.Add(1)
		go func() { defer b.wg.Done(); p.handle(c) }()
	}
}

// connect to the first backend in turn that accepts. One that is silent does not hold the
// caller up: the next is tried beside it (RFC 8305 does so with addresses).
func (p *point) connect() net.Conn {
	order := p.order()
	var dials sync.WaitGroup
	defer dials.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	accepted := make(chan net.Conn) // nil: one was refused
	try := func(to netip.AddrPort) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		if err != nil {
			c = nil
		}
		select {
		case accepted <- c:
		case <-ctx.Done():
			if c != nil {
				c.Close()
			}
		}
	}
	for i, under := 0, 0; i < len(order) || under > 0; {
		var patience <-chan time.Time
		if i < len(order) {
			to := order[i]
			dials.Go(func() { try(to) })
			i, under = i+1, under+1
			patience = time.After(dialPatience)
		}
		select {
		case c := <-accepted:
			if c != nil {
				return c
			}
			under--
		case <-patience:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// order of backends to try for the next connection.
func (p *point) order() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.to)
	o := make([]netip.AddrPort, 0, n)
	for i := range n {
		o = append(o, p.to[(p.next+i)%n])
	}
	p.next++
	return o
}

func (p *point) track(c net.Conn) (untrack func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[c] = struct{}{}
	return func() {
		c.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, c)
	}
}

func (p *point) handle(c net.Conn) {
	defer p.track(c)()
	if up := p.connect(); up != nil {
		defer p.track(up)()
		splice(c.(*net.TCPConn), up.(*net.TCPConn))
		return
	}
	_ = c.(*net.TCPConn).SetLinger(0) // no backend: a reset says so at once
}

// splice copies both ways; an end of one direction is passed on as a half close.
func splice(a, b *net.TCPConn) {
	done := make(chan struct{})
	half := func(dst, src *net.TCPConn) {
		_, err := io.Copy(dst, src)
		_ = dst.CloseWrite()
		if err != nil {
			a.Close()
			b.Close()
		}
	}
	go func() { defer close(done); half(a, b) }()
	half(b, a)
	<-done
}
