package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/dnt"
	"github.com/reservoir-cloud/reservoir/agent/lrt"
	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// The host among the others: who they are (dnt), and how they relieve each other (lrt). All of
// it goes on while the site does not answer.

// lookEvery so often a host looks at what its guests take.
const lookEvery = 5 * time.Second

// usualCalm is the part of its own threshold that a host is brought to where the site has none.
const usualCalm = 5. / 6

// opMigrate is the operation that a host's driver has to declare to take a VEE from another.
const opMigrate = "migrate"

// company of this host.
type company struct {
	others *dnt.Tracker
	relief *lrt.Reliever
}

// openCompany begins to listen to the others, and reads what this host knew of them.
func (a *agent) openCompany() error {
	address, err := a.reachedAt()
	if err != nil {
		return err
	}
	var c company
	c.others, err = dnt.Open(dnt.Config{
		Dir: a.cfg.Dir, Host: a.cfg.Name, Address: address, Underlay: a.cfg.Underlay, Scale: a.cfg.HAScale, Changed: a.renewer.poke, Log: a.cfg.Log,
		Doubted: func(host string) { c.relief.Doubted(host) }, // by Run, when relief is there
		Dial: func(ctx context.Context, host, address, kind string) (net.Conn, error) {
			return peer.DialGossip(ctx, a.toPeer(host, address), kind)
		},
	})
	if err != nil {
		return err
	}
	c.relief, err = lrt.Open(lrt.Config{
		Dir: a.cfg.Dir, Host: a.cfg.Name, Protocol: scaled(dvms.DefaultProtocol(true), a.cfg.HAScale), Every: a.renewer.scaled(lookEvery),
		Guests: a.tracker, CPUUse: a.cpuUse, Self: a.self, Overlay: c.others.Overlay, Peer: a.reliefOf, Whereabouts: a.whereabouts,
		Segments: a.networks.segmentsOf, Wire: a.networks.wire, Handed: a.handed, Changed: a.renewer.poke, Log: a.cfg.Log,
	})
	a.company = c
	return err
}

// reachedAt is where the others reach this host's agent.
func (a *agent) reachedAt() (netip.AddrPort, error) {
	at, err := net.ResolveTCPAddr("tcp", a.cfg.Advertise)
	if err != nil {
		return netip.AddrPort{}, fault.New(fault.Malformed, "address %q, by which other hosts reach this one: %w", a.cfg.Advertise, err).Try("reservoir host --advertise ADDRESS:PORT")
	}
	p := at.AddrPort()
	if !p.Addr().IsValid() || p.Addr().IsUnspecified() {
		p = netip.AddrPortFrom(a.cfg.Underlay, p.Port())
	}
	if !p.Addr().IsValid() {
		p = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.Port())
	}
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port()), nil
}

func scaled(p dvms.Protocol, by float64) dvms.Protocol {
	for _, t := range []*dvms.Time{&p.Answer, &p.Beat, &p.Silence, &p.Rest} {
		*t = dvms.Time(float64(*t) * by)
	}
	return p
}

// run both until ctx is done.
func (c company) run(ctx context.Context) error {
	gone := make(chan error, 1)
	go func() { gone <- c.others.Run(ctx) }()
	return errors.Join(c.relief.Run(ctx), <-gone)
}

// hear the site's word on the others. What this host was told for itself goes before it.
func (a *agent) hear(c vhi.Company) {
	a.company.others.Meet(c.Neighbours)
	switch o := a.cfg.Overload; {
	case o < 0:
		c.Relief.Overload = 0
	case o > 0:
		calm := usualCalm
		if c.Relief.Overload > 0 {
			calm = c.Relief.Calm / c.Relief.Overload
		}
		c.Relief.Overload, c.Relief.Calm = o, calm*o
	}
	if err := a.company.relief.Company(c); err != nil {
		a.cfg.Log.Warn("what the site says of the other hosts", "err", err)
	}
}

// peering of this host, for its report.
func (a *agent) peering() *vhi.Peering {
	p := a.company.relief.Peering()
	for _, m := range a.company.others.Members() {
		if m.Doubted {
			p.Doubted = append(p.Doubted, m.Host)
		} else {
			p.Known++
		}
	}
	return &p
}

func (a *agent) whereabouts(host string) (address string, underlay netip.Addr, known bool) {
	m, known := a.company.others.Member(host)
	return m.Address, m.Underlay, known && !m.Doubted
}

func (a *agent) reliefOf(host string) (peer.Relief, error) {
	m, known := a.company.others.Member(host)
	if !known {
		return nil, fault.New(fault.NotFound, "host %s is not known here", host)
	}
	return peer.NewReliefClient(a.toPeer(host, m.Address)), nil
}

// self is this host to those that would have it take VEEs.
func (a *agent) self() peer.Load {
	l := peer.Load{Driver: a.info.Name, CPUs: a.cpus, Capacity: a.capacity, Guarded: a.leaseStatus().Guarded}
	if !slices.Contains(a.info.Operations, opMigrate) {
		l.Closed = "its hypervisor cannot receive a live migration"
	}
	return l
}

func (a *agent) cpuUse(ctx context.Context, id vee.ID) (time.Duration, error) {
	m, ok := a.driver.(hypervisor.Meter)
	if !ok {
		return 0, hypervisor.ErrUnsupported
	}
	return m.CPUUse(ctx, id)
}

// neighbourly is what other hosts ask this one for.
type neighbourly struct {
	*lrt.Reliever
	a *agent
}

// Expect implements peer.Relief.
func (n neighbourly) Expect(ctx context.Context, e peer.Expected) error {
	if g := n.a.generation.Load(); e.Assignment.Epoch.Generation < g {
		return fault.New(fault.StaleEpoch, "VEE %s: generation %d is older than %d, which this host has seen", e.Assignment.VEE, e.Assignment.Epoch.Generation, g)
	}
	return n.Reliever.Expect(ctx, e)
}

// Moved implements peer.Relief.
func (n neighbourly) Moved(ctx context.Context, m peer.Moved) error {
	return n.a.networks.moved(identity.From(ctx).Host, m)
}

const (
	// tellMoved so often a host is told of a VEE that has moved while it does not answer.
	tellMoved  = 3
	tellPause  = 2 * time.Second
	tellWithin = 5 * time.Second
)

// handed over a VEE: this host and those that share a network with it note where it is. Who
// does not hear of it sends what is for the VEE here, from where it is passed on, until the
// site has told.
func (a *agent) handed(ctx context.Context, id vee.ID, to string) {
	_, underlay, known := a.whereabouts(to)
	if !known || !underlay.IsValid() {
		return
	}
	m := peer.Moved{VEE: id, To: to, Underlay: underlay}
	left := map[string]bool{to: true}
	for _, s := range a.networks.segmentsOf(id) {
		for _, p := range s.Ports {
			left[p.Host] = true
		}
	}
	delete(left, a.cfg.Name)
	if err := a.networks.moved(a.cfg.Name, m); err != nil {
		a.cfg.Log.Warn("note where a VEE has gone", "vee", id, "to", to, "err", err)
	}
	for try := range tellMoved {
		for host := range left {
			r, err := a.reliefOf(host)
			if err == nil {
				call, cancel := context.WithTimeout(ctx, tellWithin)
				err = r.Moved(call, m)
				cancel()
			}
			if err == nil {
				delete(left, host)
				continue
			}
			a.cfg.Log.Info("tell another host where a VEE has gone", "host", host, "vee", id, "try", try, "err", err)
		}
		if len(left) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(tellPause):
		}
	}
}

// reserved refuses to begin a move for the site while VEEs move by a plan of the hosts': it
// tries again when that is over.
func (a *agent) reserved(as vhi.Assignment) error {
	if as.Move == nil {
		return nil
	}
	if p, is := a.company.relief.Applying(); is {
		return fault.New(fault.Conflict, "host %s moves VEEs by plan of partition %s now", a.cfg.Name, p).Try("reservoir host partitions")
	}
	return nil
}

// borrowing is how images are fetched: from the site, and while that does not answer from
// another host that has them. What comes is verified by its digest, whoever sends it.
type borrowing struct {
	site   http.RoundTripper
	a      *agent
	silent atomic.Pointer[time.Time] // when the site did not answer last
}

const (
	// siteBegins within this to answer, or it is taken not to.
	siteBegins = 3 * time.Second
	// trustSilence so long the others are asked first.
	trustSilence = 30 * time.Second
)

// RoundTrip implements http.RoundTripper.
func (b *borrowing) RoundTrip(q *http.Request) (*http.Response, error) {
	if at := b.silent.Load(); at != nil && time.Since(*at) < trustSilence {
		if resp := b.borrow(q); resp != nil {
			return resp, nil
		}
	}
	ctx, cancel := context.WithCancel(q.Context())
	late := time.AfterFunc(siteBegins, cancel)
	resp, err := b.site.RoundTrip(q.WithContext(ctx))
	if late.Stop() && err == nil {
		b.silent.Store(nil)
		resp.Body = cancelling{resp.Body, cancel}
		return resp, nil
	}
	cancel()
	if err == nil { // it came with the last moment
		resp.Body.Close()
		err = context.Canceled
	}
	if q.Context().Err() != nil {
		return nil, err
	}
	now := time.Now()
	b.silent.Store(&now)
	if resp := b.borrow(q); resp != nil {
		return resp, nil
	}
	return nil, fmt.Errorf("the site does not answer, and no other host has it: %w", err)
}

// borrow from another host; nil: none has it.
func (b *borrowing) borrow(q *http.Request) *http.Response {
	if q.Method != http.MethodGet || b.a.company.others == nil {
		return nil
	}
	for _, m := range b.a.company.others.Members() {
		if m.Doubted {
			continue
		}
		there := q.Clone(q.Context())
		there.URL.Host, there.Host = m.Address, ""
		resp, err := b.a.toPeer(m.Host, m.Address).HTTP.Transport.RoundTrip(there)
		switch {
		case err != nil:
		case resp.StatusCode < http.StatusMultipleChoices:
			return resp
		default:
			resp.Body.Close()
		}
	}
	return nil
}

// cancelling body: what waited for it to begin is let go with it.
type cancelling struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c cancelling) Close() error { defer c.cancel(); return c.ReadCloser.Close() }

// lend images to other hosts.
func lend(api *httpapi.Server, images *image.Cache) {
	h := images.Handler()
	api.Handle("GET "+image.CachePath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !identity.From(r.Context()).Is(identity.HostRole) {
			http.Error(w, "for hosts of this site", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	}))
}
