package partners

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/veem/federation/connector"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// link is the connection to one partner. Greetings have connections of their own. All
// others are cut, and no new one is made, from the second greeting that is not answered
// until one is.
type link struct {
	r      *Registry
	name   string
	client *httpapi.Client // of all calls but greetings
	greet  peer.Site
	probe  *http.Transport // of greet
	cancel context.CancelFunc

	mu     sync.Mutex // guards what follows
	down   error      // nil: reachable
	missed int
	seen   time.Time
	clock  clock
	conns  map[net.Conn]bool
	offers peer.Attributes // that it has told last
	told   time.Time       // by our clock
}

func newLink(r *Registry, name string, id spiffeid.ID) *link {
	l := &link{r: r, name: name, conns: map[net.Conn]bool{}, cancel: func() {}}
	l.down = fault.New(fault.Unavailable, "site %s has not been greeted yet", name)
	transport := func(dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
		return &http.Transport{TLSClientConfig: r.cfg.Keys.PartnerTLS(r.cfg.Trust, id), ForceAttemptHTTP2: true, DialContext: dial,
			TLSHandshakeTimeout: r.cfg.Timing.Dial, ResponseHeaderTimeout: r.cfg.Timing.Call, IdleConnTimeout: time.Minute}
	}
	base := "https://" + name // the dialer knows the way
	l.client = &httpapi.Client{Base: base, HTTP: &http.Client{Transport: transport(l.dial)}}
	l.probe = transport(func(ctx context.Context, _, _ string) (net.Conn, error) { return l.reach(ctx) })
	l.greet = peer.NewClient(&httpapi.Client{Base: base, HTTP: &http.Client{Transport: l.probe}})
	return l
}

// reach the partner by its proxy as it was last told.
func (l *link) reach(ctx context.Context) (net.Conn, error) {
	l.r.mu.RLock()
	p, ok := l.r.partners[l.name]
	l.r.mu.RUnlock()
	if !ok || p.Revoked != nil {
		return nil, l.r.unknown(l.name, p)
	}
	ctx, cancel := context.WithTimeout(ctx, l.r.cfg.Timing.Dial)
	defer cancel()
	return l.r.cfg.Dial(ctx, l.name, p.Hello.Border)
}

// dial is reach while the partner is not down, and remembers the connection.
func (l *link) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := l.why(); err != nil {
		return nil, err
	}
	c, err := l.reach(ctx)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down != nil {
		c.Close()
		return nil, l.down
	}
	t := &tracked{Conn: c, l: l}
	l.conns[t] = true
	return t, nil
}

// tracked connection of a link.
type tracked struct {
	net.Conn
	l *link
}

func (t *tracked) Close() error {
	t.l.mu.Lock()
	delete(t.l.conns, t)
	t.l.mu.Unlock()
	return t.Conn.Close()
}

// why the partner cannot be called; nil: it can.
func (l *link) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.down
}

// cut every connection, for a reason that the next callers get.
func (l *link) cut(why error) {
	l.mu.Lock()
	l.down = why
	conns := l.conns
	l.conns = map[net.Conn]bool{}
	l.mu.Unlock()
	for c := range conns {
		_ = c.(*tracked).Conn.Close()
	}
}

// stop for good; run returns soon.
func (l *link) stop() {
	l.cancel()
	l.cut(fault.New(fault.Unavailable, "the connection to site %s: %w", l.name, errStopped))
	l.probe.CloseIdleConnections()
}

// show what the link knows.
func (l *link) show(p *peer.Partner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.Offset, p.OffsetError = l.clock.best()
	p.Seen, p.Down = l.seen, l.down
}

// run greets, and brings what the partner has not been told, until ctx ends.
func (l *link) run(ctx context.Context) {
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { l.watchOffers(ctx) })
	tick := time.NewTicker(l.r.cfg.Timing.Hello)
	defer tick.Stop()
	for n := 1; ; n++ {
		if n%proveEvery == 0 {
			l.probe.CloseIdleConnections()
		}
		l.round(ctx)
		select {
		case <-ctx.Done():
			l.probe.CloseIdleConnections()
			return
		case <-tick.C:
		}
	}
}

// proveEvery so many greetings both ends prove anew who they are: certificates expire, and
// clocks are set, while connections stand.
const proveEvery = 12

// round is one greeting and what follows from it.
func (l *link) round(ctx context.Context) {
	h, err := l.hello(ctx)
	if err != nil {
		l.miss(ctx, err)
		return
	}
	call, cancel := context.WithTimeout(ctx, l.r.cfg.Timing.Wait)
	defer cancel()
	if err := l.r.noted(call, l.name, h); err != nil {
		l.r.cfg.Log.Warn("keep what a partner says of itself", "partner", l.name, "err", err)
	}
	if err := l.r.follow(call, l, h); err != nil {
		l.r.event(true, "BundleRefused", "site/"+l.name, "%v", err)
	}
	if err := l.r.bring(call, l); err != nil && ctx.Err() == nil {
		l.r.cfg.Log.Warn("bring agreements to a partner", "partner", l.name, "err", err)
	}
}

func (l *link) hello(ctx context.Context) (peer.Hello, error) {
	ctx, cancel := context.WithTimeout(ctx, l.r.cfg.Timing.Wait)
	defer cancel()
	ours := l.r.hello(l.name)
	sent := l.r.cfg.Now()
	h, err := l.greet.Hello(ctx, ours)
	back := l.r.cfg.Now()
	if err == nil && h.Site != l.name {
		err = fault.New(fault.Denied, "the answer is that of site %q", h.Site)
	}
	if err != nil {
		return h, err
	}
	l.mu.Lock()
	was := l.down
	l.clock.add(measure(sent, h.Received, h.Sent, back))
	l.seen, l.missed, l.down = back, 0, nil
	offset, within := l.clock.best()
	l.mu.Unlock()
	if was != nil {
		l.r.event(false, "PartnerReached", "site/"+l.name, "site %s is reached; its clock is %v off ours, ±%v", l.name, offset.Round(time.Millisecond), within.Round(time.Millisecond))
		l.r.news()
	}
	return h, nil
}

// miss a greeting.
func (l *link) miss(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	l.probe.CloseIdleConnections() // what was proven once is proven again
	l.mu.Lock()
	l.missed++
	missed, was := l.missed, l.down
	l.mu.Unlock()
	if missed == 1 && was == nil {
		return
	}
	err = explained(err)
	f := fault.From(err)
	why := &fault.Error{Code: f.Code, Message: fmt.Sprintf("site %s does not answer: %v", l.name, err), Next: f.Next, Err: err}
	if f.Code == fault.Internal {
		why.Code = fault.Unavailable
	}
	if why.Next == "" {
		why.Next = "reservoir federation preflight " + l.name
	}
	l.cut(why)
	if was == nil {
		l.r.event(true, "PartnerLost", "site/"+l.name, "%v", why)
		l.r.news()
	}
}

// explained is an error of a call to a partner: TLS lets the refused end know no more than
// that it was.
func explained(err error) error {
	if err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
		return err
	}
	return fault.New(fault.Denied, "it does not take this site's certificate: revoked there, not known, expired, or by a clock that differs (%w)", err).
		Try("at the other site, look for PartnerRefused: reservoir event list; and compare the two clocks: date -u")
}

// watchOffers keeps what the partner says that it has to offer.
func (l *link) watchOffers(ctx context.Context) {
	tick := time.NewTicker(l.r.cfg.Timing.Hello)
	defer tick.Stop()
	for {
		if l.why() == nil && l.can(peer.CanPublish) {
			l.followOffers(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-l.r.Changed():
		}
	}
}

func (l *link) can(c peer.Capability) bool {
	l.r.mu.RLock()
	defer l.r.mu.RUnlock()
	return l.r.partners[l.name].Hello.Can(c)
}

func (l *link) followOffers(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	offers, err := peer.NewClient(l.client).WatchAttributes(ctx)
	if err != nil {
		if ctx.Err() == nil {
			l.r.cfg.Log.Debug("watch a partner's attributes", "partner", l.name, "err", err)
		}
		return
	}
	for a := range offers {
		if err := l.offered(a); err != nil {
			l.r.event(true, "OfferRefused", "site/"+l.name, "%v", err)
			return
		}
	}
}

// offered keeps a partner's attributes, unless they make no sense. It speaks for itself alone.
func (l *link) offered(a peer.Attributes) error {
	if a.Site != l.name {
		return fault.New(fault.Denied, "site %s tells attributes of %q", l.name, a.Site)
	}
	if err := connector.Plausible(a); err != nil {
		return fault.New(fault.Malformed, "what site %s tells of itself: %w", l.name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !a.At.Before(l.offers.At) { // else it comes late, or once more
		l.offers, l.told = a, l.r.cfg.Now()
	}
	return nil
}

// Offer of a partner as it was told last, and how old it is: since it was told, or since the
// partner made it, by its clock, whichever is more. False: it has told nothing yet.
func (r *Registry) Offer(name string) (a peer.Attributes, age time.Duration, ok bool) {
	r.mu.RLock()
	l := r.links[name]
	r.mu.RUnlock()
	if l == nil {
		return a, 0, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told.IsZero() {
		return a, 0, false
	}
	offset, within := l.clock.best()
	now := r.cfg.Now()
	return l.offers, max(0, now.Sub(l.told), now.Sub(l.offers.At.Add(-offset))-within), true
}

// Ask a partner for its attributes now, and keep them.
func (r *Registry) Ask(ctx context.Context, name string) (peer.Attributes, error) {
	r.mu.RLock()
	l := r.links[name]
	p := r.partners[name]
	r.mu.RUnlock()
	if l == nil {
		return peer.Attributes{}, r.unknown(name, p)
	}
	if err := p.Hello.Needs(peer.CanPublish); err != nil {
		return peer.Attributes{}, err
	}
	a, err := peer.NewClient(l.client).Attributes(ctx)
	if err != nil {
		return a, err
	}
	return a, l.offered(a)
}
