// Package partners is who a site's partners are and how it speaks to them: how one becomes
// a partner and ceases to be, the bundles that prove who it is, the connection that is
// watched by greetings, and the agreements that were signed. It decides nothing about VEEs.
//
//   - partners.go: the registry, and what it keeps in the record of truth.
//   - link.go: the connection to one partner. While a partner does not answer its greetings,
//     every other call to it fails at once: nothing here waits for a partner that is slow.
//   - clock.go: how far a partner's clock is off (pure).
//   - accept.go: becoming partners. trust.go: bundles, leaving, revoking.
//   - agree.go: agreements. preflight.go: the way there, step by step.
package partners

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Event is something that people should know of.
type Event struct {
	Reason, Object, Message string
	Warning                 bool
}

// Config of a Registry. Every field but those that say so is needed.
type Config struct {
	Site, Version string
	Capabilities  []peer.Capability
	CA            *identity.CA
	Keys          *identity.Keypair
	// Trust that the listener for partners goes by; the registry fills it.
	Trust *identity.Trust
	Store *store.Store
	// Border is how this site's own proxy is reached now; zero: it has none yet.
	Border func() peer.Border
	// Dial the control plane of a partner.
	Dial func(ctx context.Context, site string, b peer.Border) (net.Conn, error)
	// Tunnel says how the tunnel to a partner is; nil: it is not looked at.
	Tunnel func(ctx context.Context, site string) error
	// Recertify this process after the authority's key was replaced.
	Recertify func() error
	Timing    Timing // zero: the usual one
	Record    func(Event)
	Now       func() time.Time
	Log       *slog.Logger
}

// Timing of greetings.
type Timing struct {
	Hello time.Duration // from one to the next
	Wait  time.Duration // for the answer: two that are not answered, and the partner is down
	Dial  time.Duration // until a connection stands
	Call  time.Duration // until an answer begins
}

func (t Timing) orUsual() Timing {
	usual := func(d *time.Duration, otherwise time.Duration) { *d = cmp.Or(*d, otherwise) }
	usual(&t.Hello, 5*time.Second)
	usual(&t.Wait, 5*time.Second)
	usual(&t.Dial, 5*time.Second)
	usual(&t.Call, time.Minute)
	return t
}

// record of a partner.
type record struct {
	Name   string      `json:"name"`
	Since  time.Time   `json:"since"`
	Bundle peer.Bundle `json:"bundle"`
	Hello  peer.Hello  `json:"hello"` // its last one that said something new
	// Revoked by our operator: it is refused, and may become a partner only by a new token.
	Revoked *Revocation `json:"revoked,omitempty"`
}

// Revocation of a partner.
type Revocation struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
}

// Registry of partners. It implements peer.Partners, and what partners are answered of
// trust and agreements (peer.Trust, peer.Agreements, peer.Host).
type Registry struct {
	cfg         Config
	records     store.Collection[record]
	kept        store.Collection[agreed]
	invitations *identity.Invitations
	invited     store.Collection[identity.Invitation]

	// acting is held from the change of a record in the store until it is in the maps below:
	// so that they follow one another in the same order.
	acting   sync.Mutex
	rotating sync.Mutex

	mu       sync.RWMutex // guards what follows
	partners map[string]record
	links    map[string]*link
	// joining are sites that are becoming partners, whose proxies we must reach already.
	joining    map[string]peer.Border
	agreements map[string]agreed
	changed    chan struct{}
	expecting  time.Time // the last invitation that is open expires then
	running    context.Context
	wg         sync.WaitGroup // links
}

var (
	_ peer.Partners   = (*Registry)(nil)
	_ peer.Trust      = (*Registry)(nil)
	_ peer.Agreements = (*Registry)(nil)
	_ peer.Host       = (*Registry)(nil)
)

// Open reads what was kept. Nothing is sent before Run.
func Open(ctx context.Context, cfg Config) (*Registry, error) {
	cfg.Timing = cfg.Timing.orUsual()
	r := &Registry{cfg: cfg,
		records: store.NewCollection[record](cfg.Store, "partner"), kept: store.NewCollection[agreed](cfg.Store, "agreement"),
		invited:  store.NewCollection[identity.Invitation](cfg.Store, "partner-invitation"),
		partners: map[string]record{}, links: map[string]*link{}, joining: map[string]peer.Border{}, agreements: map[string]agreed{}, changed: make(chan struct{}),
	}
	r.invitations = identity.NewInvitations(r.invited, cfg.Now)
	list, err := r.records.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		if err := r.adopt(p); err != nil {
			return nil, fmt.Errorf("partner %s: %w", p.Name, err)
		}
	}
	agreements, err := r.kept.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, a := range agreements {
		r.agreements[a.ID] = a
	}
	open, err := r.invited.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, i := range open {
		r.expect(i.Expires)
	}
	return r, nil
}

// Run greets partners until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	r.mu.Lock()
	r.running = ctx
	for _, l := range r.links {
		r.start(l)
	}
	r.mu.Unlock()
	tick := time.NewTicker(rotateEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			r.mu.Lock()
			for _, l := range r.links {
				l.stop()
			}
			r.mu.Unlock()
			r.wg.Wait()
			return nil
		case <-tick.C:
			if _, err := r.Rotate(ctx, RotateOn); err != nil {
				r.cfg.Log.Warn("replace the authority's key", "err", err)
			}
		}
	}
}

// start l's loop. The caller holds mu.
func (r *Registry) start(l *link) {
	if r.running == nil || r.running.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.running)
	l.cancel = cancel
	r.wg.Go(func() { l.run(ctx) })
}

// adopt a partner as its record has it: it is trusted, and linked unless it was revoked.
func (r *Registry) adopt(p record) error {
	id, err := identity.SiteID(p.Name)
	if err != nil {
		return err
	}
	b, err := identity.ParseBundle(p.Name, p.Bundle.JWKS)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.partners[p.Name] = p
	delete(r.joining, p.Name)
	if p.Revoked != nil {
		r.drop(p.Name)
	} else {
		r.cfg.Trust.Put(id, b)
		if r.links[p.Name] == nil {
			l := newLink(r, p.Name, id)
			r.links[p.Name] = l
			r.start(l)
		}
	}
	r.tell()
	return nil
}

// drop the link to a partner and all trust in it. The caller holds mu.
func (r *Registry) drop(name string) {
	if id, err := identity.SiteID(name); err == nil {
		r.cfg.Trust.Remove(id)
	}
	if l := r.links[name]; l != nil {
		l.stop()
		delete(r.links, name)
	}
}

// tell who waits for Changed. The caller holds mu.
func (r *Registry) tell() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// news is tell for who does not hold mu.
func (r *Registry) news() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell()
}

// Changed implements peer.Partners.
func (r *Registry) Changed() <-chan struct{} {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.changed
}

// Partner implements peer.Partners.
func (r *Registry) Partner(name string) (peer.Partner, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	p, ok := r.partners[name]
	if !ok || p.Revoked != nil {
		return peer.Partner{}, r.unknown(name, p)
	}
	return r.view(p), nil
}

func (r *Registry) unknown(name string, p record) error {
	if p.Revoked != nil {
		return fault.New(fault.NotFound, "site %s is no partner any more: it was revoked on %s", name, p.Revoked.At.UTC().Format(time.RFC3339)).
			Try("become partners anew: reservoir federation invite %s", name)
	}
	return fault.New(fault.NotFound, "site %q is no partner of %s", name, r.cfg.Site).Try("reservoir federation list")
}

// Partners implements peer.Partners.
func (r *Registry) Partners() []peer.Partner {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var list []peer.Partner
	for _, name := range slices.Sorted(maps.Keys(r.partners)) {
		if p := r.partners[name]; p.Revoked == nil {
			list = append(list, r.view(p))
		}
	}
	return list
}

// view of a partner that was not revoked. The caller holds mu.
func (r *Registry) view(p record) peer.Partner {
	l := r.links[p.Name]
	out := peer.Partner{Name: p.Name, VMI: vmi.NewClient(l.client), Site: peer.NewClient(l.client), Hello: p.Hello, Bundle: p.Bundle}
	for _, id := range slices.Sorted(maps.Keys(r.agreements)) {
		if a := r.agreements[id]; a.Other(r.cfg.Site) == p.Name {
			out.Agreements = append(out.Agreements, r.current(a))
		}
	}
	l.show(&out)
	return out
}

// Borders are how the proxies of partners are reached, and of sites that are becoming ones.
func (r *Registry) Borders() map[string]peer.Border {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := maps.Clone(r.joining)
	for name, p := range r.partners {
		if p.Revoked == nil {
			all[name] = p.Hello.Border
		}
	}
	return all
}

// keep changes a partner's record in the store, and then here.
func (r *Registry) keep(ctx context.Context, name string, change func(*record) error) error {
	r.acting.Lock()
	defer r.acting.Unlock()
	p, _, err := r.records.Modify(ctx, name, change)
	if err != nil {
		return err
	}
	return r.adopt(p)
}

// hello is ours, to a partner or as the answer to one.
func (r *Registry) hello(to string) peer.Hello {
	r.mu.RLock()
	holds := r.partners[to].Bundle.Sequence
	r.mu.RUnlock()
	return peer.Hello{Site: r.cfg.Site, Version: r.cfg.Version, Capabilities: r.cfg.Capabilities,
		BundleSequence: r.cfg.CA.Rotation().Sequence, Holds: holds, Border: r.cfg.Border()}
}

// caller is the partner that ctx has proven to come from.
func (r *Registry) caller(ctx context.Context) (record, error) {
	c := identity.From(ctx)
	r.mu.RLock()
	defer r.mu.RUnlock()
	p, ok := r.partners[c.Site]
	if !c.Is(identity.Partner) || !ok || p.Revoked != nil {
		return record{}, fault.New(fault.Denied, "site %q is no partner of %s", c.Site, r.cfg.Site)
	}
	return p, nil
}

// record an event.
func (r *Registry) event(warning bool, reason, object, format string, args ...any) {
	r.cfg.Record(Event{Reason: reason, Object: object, Message: fmt.Sprintf(format, args...), Warning: warning})
}

var errStopped = errors.New("this site is stopping")
