package partners

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Hello implements peer.Trust.
func (r *Registry) Hello(ctx context.Context, h peer.Hello) (peer.Hello, error) {
	received := r.cfg.Now()
	p, err := r.caller(ctx)
	if err != nil {
		return peer.Hello{}, err
	}
	// Where a partner's proxy has moved, only its own greeting can tell.
	if err := r.noted(ctx, p.Name, h); err != nil {
		return peer.Hello{}, err
	}
	out := r.hello(p.Name)
	out.Received, out.Sent = received, r.cfg.Now()
	return out, nil
}

// noted keeps what a partner says of itself, when it is something new.
func (r *Registry) noted(ctx context.Context, name string, h peer.Hello) error {
	h.Received, h.Sent = time.Time{}, time.Time{}
	r.mu.RLock()
	old, ok := r.partners[name]
	r.mu.RUnlock()
	if !ok || sameHello(old.Hello, h) {
		return nil
	}
	if h.Border == (peer.Border{}) { // its proxy is not up yet: the way that we know is better than none
		h.Border = old.Hello.Border
	}
	return r.keep(ctx, name, func(p *record) error { p.Hello = h; return nil })
}

func sameHello(a, b peer.Hello) bool {
	return a.Site == b.Site && a.Version == b.Version && a.BundleSequence == b.BundleSequence && a.Holds == b.Holds &&
		(a.Border == b.Border || b.Border == (peer.Border{})) && slices.Equal(a.Capabilities, b.Capabilities)
}

// Bundle implements peer.Trust.
func (r *Registry) Bundle(context.Context) (peer.Bundle, error) { return r.ownBundle() }

func (r *Registry) ownBundle() (peer.Bundle, error) {
	b := r.cfg.CA.SPIFFEBundle()
	jwks, err := b.Marshal()
	if err != nil {
		return peer.Bundle{}, fmt.Errorf("write the site's trust bundle: %w", err)
	}
	sequence, _ := b.SequenceNumber()
	return peer.Bundle{Site: r.cfg.Site, Sequence: sequence, JWKS: jwks}, nil
}

// follow a partner's new authorities. They come over a connection that the old ones have
// proven, and never go back.
func (r *Registry) follow(ctx context.Context, l *link, h peer.Hello) error {
	r.mu.RLock()
	has := r.partners[l.name].Bundle.Sequence
	r.mu.RUnlock()
	if h.BundleSequence <= has {
		return nil
	}
	b, err := l.greet.Bundle(ctx)
	if err != nil {
		return fmt.Errorf("fetch the trust bundle of site %s: %w", l.name, err)
	}
	if err := checkBundle(b, l.name); err != nil {
		return err
	}
	if b.Sequence <= has {
		return fault.New(fault.Conflict, "site %s announces trust bundle %d and sends %d; %d is known", l.name, h.BundleSequence, b.Sequence, has)
	}
	err = r.keep(ctx, l.name, func(p *record) error {
		if b.Sequence > p.Bundle.Sequence {
			p.Bundle = b
		}
		return nil
	})
	if err == nil {
		r.event(false, "BundleFollowed", "site/"+l.name, "site %s has announced new authorities (trust bundle %d)", l.name, b.Sequence)
	}
	return err
}

// checkBundle that it is the site's own and says its own sequence.
func checkBundle(b peer.Bundle, site string) error {
	if b.Site != site {
		return fault.New(fault.Denied, "site %s shows the trust bundle of %q", site, b.Site)
	}
	parsed, err := identity.ParseBundle(site, b.JWKS)
	if err != nil {
		return err
	}
	if n, ok := parsed.SequenceNumber(); !ok || n != b.Sequence {
		return fault.New(fault.Malformed, "the trust bundle of site %s has sequence %d inside and %d outside", site, n, b.Sequence)
	}
	return nil
}

// Leave implements peer.Trust: the calling partner goes.
func (r *Registry) Leave(ctx context.Context) error {
	p, err := r.caller(ctx)
	if err != nil {
		return err
	}
	if err := r.forget(ctx, p.Name); err != nil {
		return err
	}
	r.event(true, "PartnerLeft", "site/"+p.Name, "site %s has ended the partnership", p.Name)
	return nil
}

// forget a partner. Its agreements stay as records of what was.
func (r *Registry) forget(ctx context.Context, name string) error {
	r.acting.Lock()
	defer r.acting.Unlock()
	if err := r.records.Delete(ctx, name, 0); err != nil && !fault.Has(err, fault.NotFound) {
		return fmt.Errorf("forget site %s: %w", name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(name)
	delete(r.partners, name)
	r.tell()
	return nil
}

// LeavePartner ends a partnership from this side. Without force the partner has to agree by
// answering, and no agreement may have VEEs of either at the other: running says why not.
func (r *Registry) LeavePartner(ctx context.Context, name string, force bool) error {
	r.mu.RLock()
	p, ok := r.partners[name]
	l := r.links[name]
	var open []string
	for _, a := range r.agreements {
		if a.Other(r.cfg.Site) == name && a.Signed() && r.cfg.Now().Before(a.Leave()) {
			open = append(open, a.ID)
		}
	}
	r.mu.RUnlock()
	if !ok {
		return r.unknown(name, p)
	}
	slices.Sort(open)
	if len(open) > 0 && !force {
		return fault.New(fault.InUse, "site %s has agreements with us that are not over: %v", name, open).
			Try("reservoir agreement end %s, or one-sided: reservoir federation leave %s --force", open[0], name)
	}
	if l != nil {
		err := peer.NewClient(l.client).Leave(ctx)
		switch {
		case err == nil:
		case force:
			r.event(true, "PartnerNotTold", "site/"+name, "the partnership with site %s is ended without its knowing: %v", name, err)
		default:
			return fault.New(fault.Unavailable, "tell site %s that we leave: %w", name, err).Try("leave one-sided: reservoir federation leave %s --force", name)
		}
	}
	if err := r.forget(ctx, name); err != nil {
		return err
	}
	r.event(false, "PartnershipEnded", "site/"+name, "this site has ended the partnership with site %s", name)
	return nil
}

// Revoke a partner: from now on nothing is taken from it, on open connections too.
func (r *Registry) Revoke(ctx context.Context, name, reason string) error {
	r.mu.RLock()
	p, ok := r.partners[name]
	r.mu.RUnlock()
	if !ok {
		return r.unknown(name, p)
	}
	if p.Revoked != nil {
		return nil
	}
	err := r.keep(ctx, name, func(p *record) error {
		p.Revoked = &Revocation{At: r.cfg.Now(), Reason: reason}
		return nil
	})
	if err != nil {
		return fmt.Errorf("revoke site %s: %w", name, err)
	}
	r.event(true, "PartnerRevoked", "site/"+name, "site %s is revoked: %s", name, reason)
	return nil
}

// RotateStep is what Rotate is asked to do.
type RotateStep int

// Steps. RotateOn goes on with a replacement that is under way, when it is time; RotateBegin
// announces one; RotateNow activates without waiting for anybody, when a key was stolen.
const (
	RotateOn RotateStep = iota
	RotateBegin
	RotateNow
)

// rotateEvery is how often a replacement under way is looked at.
const rotateEvery = time.Minute

// Rotation of the authority's key and who does not know of it yet.
type Rotation struct {
	identity.Rotation
	// Waiting for these partners, and until that moment for hosts, to have the new bundle.
	Waiting []string  `json:"waiting,omitempty"`
	After   time.Time `json:"after,omitzero"`
}

// Rotate the authority's key by one step.
func (r *Registry) Rotate(ctx context.Context, step RotateStep) (Rotation, error) {
	r.rotating.Lock()
	defer r.rotating.Unlock()
	ca := r.cfg.CA
	before := ca.Rotation()
	if step != RotateOn && before.Next == "" {
		if err := errors.Join(ca.Announce(), r.cfg.Recertify()); err != nil {
			return Rotation{}, err
		}
		r.event(false, "AuthorityAnnounced", "site", "a new authority of the site is announced: %s", ca.Rotation().Next)
	}
	out := r.rotation()
	if out.Next != "" && (step == RotateNow || len(out.Waiting) == 0 && !r.cfg.Now().Before(out.After)) {
		if err := errors.Join(ca.Activate(), r.cfg.Recertify()); err != nil {
			return Rotation{}, err
		}
		r.event(step == RotateNow, "AuthorityActivated", "site", "certificates are signed by the new authority from now on: %s", ca.Fingerprint())
	}
	if err := ca.Retire(); err != nil {
		return Rotation{}, err
	}
	return r.rotation(), nil
}

func (r *Registry) rotation() Rotation {
	out := Rotation{Rotation: r.cfg.CA.Rotation()}
	if out.Next == "" {
		return out
	}
	// A host asks for its certificate again well before it expires, and gets the bundle too.
	out.After = out.Announced.Add(identity.CertLife)
	r.mu.RLock()
	defer r.mu.RUnlock()
	for name, p := range r.partners {
		if p.Revoked == nil && p.Hello.Holds < out.Sequence {
			out.Waiting = append(out.Waiting, name)
		}
	}
	slices.Sort(out.Waiting)
	return out
}
