// Package responder answers, at the host of a port, what a guest asks its network for: its
// own address (DHCPv4, DHCPv6, router advertisements) and names (DNS). It knows what the
// segment (van/plan) says and nothing else, so there are no leases to keep: a host that
// takes a segment over answers what the one before did.
//
// The core is pure (Table: a question in, an answer out); Responder holds the sockets.
package responder

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

const (
	// advertiseEvery without being asked (RFC 4861, section 6.2.1: at least 4 s, at most a
	// third of the lifetime).
	advertiseEvery = 5 * time.Minute
	// mostForwarded questions under way; one more is told to come again.
	mostForwarded = 64
	// forwardPatience with the host's resolver.
	forwardPatience = 4 * time.Second
	// readPause after a socket could not be read.
	readPause = 100 * time.Millisecond
)

// Config of a Responder.
type Config struct {
	// Host whose own ports DHCP is for.
	Host string
	// Sockets are the responder's to close.
	Sockets *Sockets
	// Servers are this host's addresses; empty: the segments' gateways.
	Servers []netip.Addr
	// Directory of all segments of the host; nil: these alone.
	Directory *Directory
	// Resolve asks the host's own resolver; nil: there is none.
	Resolve func(ctx context.Context, q *dns.Msg) (*dns.Msg, error)
	Log     *slog.Logger
}

// Responder answers on one device: in a private network's segment, or in all those that
// share a host's bridge.
type Responder struct {
	cfg     Config
	tables  atomic.Pointer[[]*Table]
	forward chan struct{} // one for each question under way
	changed chan struct{} // holds at most one: advertise at once
	stop    context.CancelFunc
	servers []*dns.Server
	parts   sync.WaitGroup
}

// New starts to answer. Until the first Set it knows nobody. Close ends it.
func New(c Config) *Responder {
	ctx, stop := context.WithCancel(context.Background())
	r := &Responder{cfg: c, forward: make(chan struct{}, mostForwarded), changed: make(chan struct{}, 1), stop: stop}
	r.tables.Store(&[]*Table{})
	s := c.Sockets
	if s.DHCP4 != nil {
		r.parts.Go(func() { r.serve(ctx, s.DHCP4, r.dhcp4) })
	}
	if s.DHCP6 != nil {
		r.parts.Go(func() { r.serve(ctx, s.DHCP6, r.dhcp6) })
	}
	if s.ICMP6 != nil {
		r.parts.Go(func() { r.serve(ctx, s.ICMP6, r.solicitation) })
		r.parts.Go(func() { r.advertise(ctx) })
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { r.dns(ctx, w, q) })
	for _, c := range s.DNS {
		r.answerDNS(&dns.Server{PacketConn: c, Handler: handler})
	}
	for _, l := range s.DNSByTCP {
		r.answerDNS(&dns.Server{Listener: l, Handler: handler})
	}
	return r
}

// answerDNS starts one server, and returns when it can be shut down.
func (r *Responder) answerDNS(s *dns.Server) {
	up := make(chan struct{})
	s.NotifyStartedFunc = func() { close(up) }
	r.servers = append(r.servers, s)
	r.parts.Go(func() {
		if err := s.ActivateAndServe(); err != nil {
			r.cfg.Log.Warn("DNS is not answered any more", "segments", r, "error", err)
		}
	})
	<-up
}

// Set makes the next answer one of these segments, which share the device.
func (r *Responder) Set(segments ...plan.Segment) {
	tables := make([]*Table, len(segments))
	for i, s := range segments {
		tables[i] = NewTable(s, r.cfg.Host, r.cfg.Servers)
	}
	old := *r.tables.Swap(&tables)
	if r.cfg.Directory != nil {
		r.cfg.Directory.replace(old, tables)
	}
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// String names the segments, for logs.
func (r *Responder) String() string {
	var ids []string
	for _, t := range *r.tables.Load() {
		ids = append(ids, t.segment.ID)
	}
	return strings.Join(ids, " ")
}

// Close ends it, and closes the sockets.
func (r *Responder) Close() error {
	r.stop()
	if r.cfg.Directory != nil {
		r.cfg.Directory.replace(*r.tables.Load(), nil)
	}
	var errs []error
	for _, s := range r.servers {
		errs = append(errs, s.Shutdown())
	}
	for _, c := range []net.PacketConn{r.cfg.Sockets.DHCP4, r.cfg.Sockets.DHCP6, r.cfg.Sockets.ICMP6} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	r.parts.Wait()
	return errors.Join(errs...)
}

// serve one socket until it is closed.
func (r *Responder) serve(ctx context.Context, c net.PacketConn, answer func(query []byte, from netip.AddrPort) (reply []byte, to net.Addr)) {
	buffer := make([]byte, 64<<10)
	for {
		n, peer, err := c.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			r.cfg.Log.Debug("a question was lost", "segments", r, "error", err)
			select { // a device that is gone fails at once, again and again
			case <-ctx.Done():
				return
			case <-time.After(readPause):
			}
			continue
		}
		reply, to := answer(buffer[:n], sender(peer))
		if reply == nil {
			continue
		}
		if _, err := c.WriteTo(reply, to); err != nil && !errors.Is(err, net.ErrClosed) {
			r.cfg.Log.Debug("an answer was lost", "segments", r, "to", to, "error", err)
		}
	}
}

// sender without a zone: its name would be looked up in another network namespace than the
// socket's, and the socket is bound to one device anyway.
func sender(a net.Addr) netip.AddrPort {
	var from netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		from = a.AddrPort()
	case *net.TCPAddr:
		from = a.AddrPort()
	case *net.IPAddr:
		ip, _ := netip.AddrFromSlice(a.IP)
		from = netip.AddrPortFrom(ip, 0)
	}
	return netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
}

func (r *Responder) dhcp4(query []byte, from netip.AddrPort) ([]byte, net.Addr) {
	for _, t := range *r.tables.Load() {
		answer := t.DHCP4(query)
		if answer == nil {
			continue
		}
		// To one that has no address yet as a broadcast, which RFC 2131 (section 4.1) allows in
		// place of a frame made by hand; the host's isolation keeps it on this host.
		to := &net.UDPAddr{IP: net.IPv4bcast, Port: 68}
		if _, known := t.asker[from.Addr()]; known {
			to.IP = from.Addr().AsSlice()
		}
		return answer, to
	}
	return nil, nil
}

func (r *Responder) dhcp6(query []byte, from netip.AddrPort) ([]byte, net.Addr) {
	for _, t := range *r.tables.Load() {
		if answer := t.DHCP6(query, from.Addr()); answer != nil {
			return answer, net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.Addr(), 546))
		}
	}
	return nil, nil
}

// everybody is all nodes of a link.
var everybody = &net.IPAddr{IP: net.IPv6linklocalallnodes}

func (r *Responder) solicitation(message []byte, from netip.AddrPort) ([]byte, net.Addr) {
	for _, t := range *r.tables.Load() {
		switch answer := t.Advertisement(); {
		case answer == nil || !t.Solicited(message, from.Addr()):
		case from.Addr().IsUnspecified():
			return answer, everybody
		default:
			return answer, &net.IPAddr{IP: from.Addr().AsSlice()}
		}
	}
	return nil, nil
}

// advertise from time to time, and when a segment has changed.
func (r *Responder) advertise(ctx context.Context) {
	tick := time.NewTicker(advertiseEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.changed:
		}
		for _, t := range *r.tables.Load() {
			message := t.Advertisement()
			if message == nil {
				continue
			}
			if _, err := r.cfg.Sockets.ICMP6.WriteTo(message, everybody); err != nil && ctx.Err() == nil {
				r.cfg.Log.Debug("a router advertisement was lost", "segments", r, "error", err)
			}
		}
	}
}

func (r *Responder) dns(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	var also []*Table
	if r.cfg.Directory != nil {
		also = r.cfg.Directory.all()
	}
	from := sender(w.RemoteAddr()).Addr()
	t := &Table{} // of a stranger
	for _, own := range *r.tables.Load() {
		if _, known := own.asker[from]; known {
			t = own
		}
	}
	answer, forward := t.Answer(q, from, also)
	if answer == nil {
		return
	}
	if forward && r.cfg.Resolve != nil {
		answer = r.resolve(ctx, q)
	}
	if _, byUDP := w.RemoteAddr().(*net.UDPAddr); byUDP {
		room := dns.MinMsgSize
		if e := q.IsEdns0(); e != nil {
			room = min(max(room, int(e.UDPSize())), dns.DefaultMsgSize) // is not cut up on its way
		}
		answer.Truncate(room)
	}
	if err := w.WriteMsg(answer); err != nil {
		r.cfg.Log.Debug("a DNS answer was lost", "segments", r, "to", w.RemoteAddr(), "error", err)
	}
}

// resolve by the host's resolver, in bounded number and time.
func (r *Responder) resolve(ctx context.Context, q *dns.Msg) *dns.Msg {
	failed := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	select {
	case r.forward <- struct{}{}:
		defer func() { <-r.forward }()
	default:
		return failed
	}
	ctx, cancel := context.WithTimeout(ctx, forwardPatience)
	defer cancel()
	answer, err := r.cfg.Resolve(ctx, q)
	if err != nil || answer == nil {
		r.cfg.Log.Debug("the host's resolver does not answer", "segments", r, "error", err)
		return failed
	}
	answer.Id = q.Id
	return answer
}

// Directory is what a host knows of all its segments. Its zero value is empty.
type Directory struct {
	mu     sync.RWMutex
	tables map[string]*Table
}

func (d *Directory) replace(old, tables []*Table) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tables == nil {
		d.tables = map[string]*Table{}
	}
	for _, t := range old {
		delete(d.tables, t.segment.ID)
	}
	for _, t := range tables {
		d.tables[t.segment.ID] = t
	}
}

func (d *Directory) all() []*Table {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Collect(maps.Values(d.tables))
}

// Forward makes a Resolve of a file as resolv.conf(5): its servers one after the other.
func Forward(file string) (func(ctx context.Context, q *dns.Msg) (*dns.Msg, error), error) {
	conf, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, q *dns.Msg) (answer *dns.Msg, err error) {
		err = errors.New(file + " names no server")
		for _, server := range conf.Servers {
			at := net.JoinHostPort(server, conf.Port)
			if answer, _, err = (&dns.Client{}).ExchangeContext(ctx, q, at); err == nil && answer.Truncated {
				answer, _, err = (&dns.Client{Net: "tcp"}).ExchangeContext(ctx, q, at)
			}
			if err == nil {
				return answer, nil
			}
		}
		return nil, err
	}, nil
}
