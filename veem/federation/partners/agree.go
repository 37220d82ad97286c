package partners

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/agreement"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// agreed is an agreement as it is kept. Signatures are verified before they are.
type agreed struct {
	peer.Agreement
	// Bring: the partner does not know yet what was signed or ended here.
	Bring bool `json:"bring,omitempty"`
	// Changed is when it last did.
	Changed time.Time `json:"changed"`
}

// maxOpen proposals of one partner that are not signed by us.
const maxOpen = 100

// PutAgreement implements peer.Agreements.
func (r *Registry) PutAgreement(ctx context.Context, a peer.Agreement) (peer.Agreement, error) {
	p, err := r.caller(ctx)
	if err != nil {
		return peer.Agreement{}, err
	}
	if err := agreement.Check(a.Terms); err != nil {
		return peer.Agreement{}, err
	}
	if err := r.between(a.Terms, p.Name); err != nil {
		return peer.Agreement{}, err
	}
	if err := r.verify(p, a); err != nil {
		return peer.Agreement{}, err
	}
	if agreement.Over(a, r.cfg.Now()) { // also one that was ours once and comes again
		return peer.Agreement{}, fault.New(fault.WrongState, "agreement %s was over on %s", a.ID, a.Leave().UTC().Format(time.RFC3339))
	}
	var out agreed
	err = r.change(ctx, a.ID, func(old agreed, there bool) (agreed, error) {
		switch {
		case !there && vee.ID(a.ID).Site() != p.Name:
			return old, fault.New(fault.NotFound, "site %s has proposed no agreement %s", r.cfg.Site, a.ID)
		case !there && r.open(p.Name) >= maxOpen:
			return old, fault.New(fault.QuotaExceeded, "site %s has %d proposals here that are not signed", p.Name, maxOpen)
		case !there:
			old = agreed{Agreement: peer.Agreement{Terms: a.Terms, Signatures: map[string]string{}}}
		case !sameTerms(old.Terms, a.Terms):
			return old, fault.New(fault.Conflict, "agreement %s has other terms here", a.ID).Try("propose it under a new identifier")
		case old.End != nil:
			return old, fault.New(fault.WrongState, "agreement %s was ended by %s on %s", a.ID, old.End.By, old.End.At.UTC().Format(time.RFC3339))
		}
		if old.Signatures[p.Name] == "" {
			old.Signatures = maps.Clone(old.Signatures)
			old.Signatures[p.Name] = a.Signatures[p.Name]
			r.event(false, "AgreementSigned", "agreement/"+a.ID, "site %s has signed agreement %s", p.Name, a.ID)
		}
		out = old
		return old, nil
	})
	return out.Agreement, err
}

// open proposals of a partner.
func (r *Registry) open(partner string) (n int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, a := range r.agreements {
		if a.Other(r.cfg.Site) == partner && a.Signatures[r.cfg.Site] == "" {
			n++
		}
	}
	return n
}

// between reports that the terms are about us and the partner.
func (r *Registry) between(t peer.Terms, partner string) error {
	if t.Lender == r.cfg.Site && t.Borrower == partner || t.Lender == partner && t.Borrower == r.cfg.Site {
		return nil
	}
	return fault.New(fault.Denied, "agreement %s is between %s and %s, not between %s and %s", t.ID, t.Lender, t.Borrower, r.cfg.Site, partner)
}

// verify the partner's signature.
func (r *Registry) verify(p record, a peer.Agreement) error {
	text, err := agreement.Text(a.Terms)
	if err != nil {
		return err
	}
	return r.signedBy(p, text, a.Signatures[p.Name])
}

func (r *Registry) signedBy(p record, text []byte, signature string) error {
	id, err := identity.SiteID(p.Name)
	if err != nil {
		return err
	}
	b, err := identity.ParseBundle(p.Name, p.Bundle.JWKS)
	if err != nil {
		return err
	}
	return identity.VerifySignature(text, signature, id, b, r.cfg.Now())
}

func sameTerms(a, b peer.Terms) bool {
	x, err := agreement.Text(a)
	y, err2 := agreement.Text(b)
	return err == nil && err2 == nil && string(x) == string(y)
}

// clockTolerance is how far ahead of our clock a partner may date an end.
const clockTolerance = 10 * time.Minute

// EndAgreement implements peer.Agreements.
func (r *Registry) EndAgreement(ctx context.Context, e peer.End) (peer.Agreement, error) {
	p, err := r.caller(ctx)
	if err != nil {
		return peer.Agreement{}, err
	}
	if e.By != p.Name {
		return peer.Agreement{}, fault.New(fault.Denied, "site %s brings an end by %q", p.Name, e.By)
	}
	text, err := agreement.EndText(e)
	if err != nil {
		return peer.Agreement{}, err
	}
	if err := r.signedBy(p, text, e.Signature); err != nil {
		return peer.Agreement{}, err
	}
	var out agreed
	err = r.change(ctx, e.Agreement, func(old agreed, there bool) (agreed, error) {
		if !there || old.Other(r.cfg.Site) != p.Name {
			return old, fault.New(fault.NotFound, "there is no agreement %s with site %s", e.Agreement, p.Name).Try("reservoir agreement list")
		}
		if old.End == nil {
			if e.At.Sub(r.cfg.Now()) > clockTolerance {
				return old, fault.New(fault.Denied, "the end of agreement %s is dated %s, but the clock here says %s", e.Agreement, e.At.UTC().Format(time.RFC3339), r.cfg.Now().UTC().Format(time.RFC3339)).
					Try("compare the two clocks: date -u")
			}
			e.Known = r.cfg.Now() // an end that is dated back shortens no notice
			old.End = &e
			r.event(true, "AgreementEnded", "agreement/"+e.Agreement, "site %s has ended agreement %s: %s; what runs under it must leave by %s", p.Name, e.Agreement, e.Reason, old.Leave().UTC().Format(time.RFC3339))
		}
		out = old
		return old, nil
	})
	return out.Agreement, err
}

// Propose an agreement to a partner, with our signature. The terms get an identifier.
func (r *Registry) Propose(ctx context.Context, partner string, t peer.Terms) (peer.Agreement, error) {
	p, err := r.Partner(partner)
	if err != nil {
		return peer.Agreement{}, err
	}
	id, err := vee.NewID(r.cfg.Site, rand.Reader)
	if err != nil {
		return peer.Agreement{}, err
	}
	t.ID = string(id)
	if err := agreement.Check(t); err != nil {
		return peer.Agreement{}, err
	}
	if err := r.between(t, p.Name); err != nil {
		return peer.Agreement{}, err
	}
	return r.sign(ctx, t.ID, func(old agreed, there bool) (agreed, error) {
		return agreed{Agreement: peer.Agreement{Terms: t}}, nil
	})
}

// SignAgreement that a partner has proposed.
func (r *Registry) SignAgreement(ctx context.Context, id string) (peer.Agreement, error) {
	return r.sign(ctx, id, func(old agreed, there bool) (agreed, error) {
		switch {
		case !there:
			return old, noAgreement(id)
		case old.End != nil || agreement.Over(old.Agreement, r.cfg.Now()):
			return old, fault.New(fault.WrongState, "agreement %s has ended", id)
		}
		return old, nil
	})
}

func noAgreement(id string) error {
	return fault.New(fault.NotFound, "there is no agreement %s", id).Try("reservoir agreement list")
}

// sign what prepare returns, keep it and bring it to the partner.
func (r *Registry) sign(ctx context.Context, id string, prepare func(agreed, bool) (agreed, error)) (peer.Agreement, error) {
	err := r.change(ctx, id, func(old agreed, there bool) (agreed, error) {
		a, err := prepare(old, there)
		if err != nil {
			return a, err
		}
		if a.Signatures[r.cfg.Site] == "" {
			text, err := agreement.Text(a.Terms)
			if err != nil {
				return a, err
			}
			signature, err := r.cfg.Keys.Sign(text)
			if err != nil {
				return a, err
			}
			a.Signatures = maps.Clone(a.Signatures)
			if a.Signatures == nil {
				a.Signatures = map[string]string{}
			}
			a.Signatures[r.cfg.Site], a.Bring = signature, true
		}
		return a, nil
	})
	if err != nil {
		return peer.Agreement{}, err
	}
	return r.brought(ctx, id)
}

// EndOurs ends an agreement from our side.
func (r *Registry) EndOurs(ctx context.Context, id, reason string) (peer.Agreement, error) {
	err := r.change(ctx, id, func(old agreed, there bool) (agreed, error) {
		if !there {
			return old, noAgreement(id)
		}
		if old.End != nil {
			return old, nil
		}
		e := peer.End{Agreement: id, By: r.cfg.Site, At: r.cfg.Now().UTC().Truncate(time.Second), Reason: reason}
		text, err := agreement.EndText(e)
		if err != nil {
			return old, err
		}
		if e.Signature, err = r.cfg.Keys.Sign(text); err != nil {
			return old, err
		}
		old.End, old.Bring = &e, true
		return old, nil
	})
	if err != nil {
		return peer.Agreement{}, err
	}
	return r.brought(ctx, id)
}

// brought is the agreement after an attempt to tell the partner; if that fails it is told
// with the next greeting that it answers.
func (r *Registry) brought(ctx context.Context, id string) (peer.Agreement, error) {
	r.mu.RLock()
	a := r.agreements[id]
	l := r.links[a.Other(r.cfg.Site)]
	r.mu.RUnlock()
	if l != nil && l.why() == nil {
		ctx, cancel := context.WithTimeout(ctx, r.cfg.Timing.Wait)
		defer cancel()
		if err := r.bring(ctx, l); err != nil {
			r.cfg.Log.Warn("bring an agreement to a partner", "agreement", id, "partner", l.name, "err", err)
		}
	}
	out, err := r.Agreement(id)
	return out.Agreement, err
}

// bring what a partner has not been told.
func (r *Registry) bring(ctx context.Context, l *link) error {
	r.mu.RLock()
	p := r.partners[l.name]
	var list []agreed
	for _, a := range r.agreements {
		if a.Bring && a.Other(r.cfg.Site) == l.name {
			list = append(list, a)
		}
	}
	r.mu.RUnlock()
	for _, a := range list {
		var back peer.Agreement
		var err error
		if a.End == nil || a.Signatures[l.name] == "" {
			back, err = peer.NewClient(l.client).PutAgreement(ctx, peer.Agreement{Terms: a.Terms, Signatures: a.Signatures})
		}
		if err == nil && a.End != nil && a.End.By == r.cfg.Site {
			back, err = peer.NewClient(l.client).EndAgreement(ctx, *a.End)
		}
		if err != nil {
			if f := fault.From(err); f.Code == fault.Unavailable || f.Code == fault.Timeout || f.Code == fault.Internal {
				return fmt.Errorf("agreement %s: %w", a.ID, err)
			}
			r.event(true, "AgreementRefused", "agreement/"+a.ID, "site %s refuses: %v", l.name, err)
		}
		signed := back.Signatures[l.name] != "" && sameTerms(back.Terms, a.Terms) && r.verify(p, back) == nil
		err = r.change(ctx, a.ID, func(now agreed, _ bool) (agreed, error) {
			if now.Changed.Equal(a.Changed) {
				now.Bring = false
				if e := now.End; e != nil && e.By == r.cfg.Site && e.Known.IsZero() {
					told := *e
					told.Known = r.cfg.Now()
					now.End = &told
				}
			}
			if signed && now.Signatures[l.name] == "" {
				now.Signatures = maps.Clone(now.Signatures)
				now.Signatures[l.name] = back.Signatures[l.name]
			}
			return now, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// change an agreement in the store, and then here.
func (r *Registry) change(ctx context.Context, id string, f func(agreed, bool) (agreed, error)) error {
	r.acting.Lock()
	defer r.acting.Unlock()
	r.mu.RLock()
	old, there := r.agreements[id]
	r.mu.RUnlock()
	next, err := f(old, there)
	if err != nil {
		return err
	}
	next.Changed = r.cfg.Now()
	if _, err := r.kept.Put(ctx, id, next); err != nil {
		return fmt.Errorf("keep agreement %s: %w", id, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.agreements[id] = next
	r.tell()
	return nil
}

// Agreed is an agreement as this site has it.
type Agreed struct {
	peer.Agreement
	Partner string     `json:"partner"`
	State   State      `json:"state"`
	Leave   *time.Time `json:"leave,omitempty"` // when what runs must have left, of one that has ended
	Told    bool       `json:"told"`            // the partner knows all that was signed here
}

// State of an agreement.
type State string

// States. What is ending covers no new VEE; when it is over, nothing may be left.
const (
	Proposed State = "proposed" // by us; the partner has not signed
	ToSign   State = "to-sign"  // by the partner; we have not signed
	Coming   State = "coming"   // signed, and not in force yet
	InForce  State = "in-force"
	Ending   State = "ending"
	Over     State = "over"
)

// Agreement of that identifier; NotFound.
func (r *Registry) Agreement(id string) (Agreed, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	a, ok := r.agreements[id]
	if !ok {
		return Agreed{}, noAgreement(id)
	}
	return r.shown(a), nil
}

// Agreements in the order of their identifiers.
func (r *Registry) Agreements() []Agreed {
	r.mu.RLock()
	defer r.mu.RUnlock()
	list := []Agreed{}
	for _, id := range slices.Sorted(maps.Keys(r.agreements)) {
		list = append(list, r.shown(r.agreements[id]))
	}
	return list
}

// current is the agreement as this site goes by it: of one that we lend under and have ended,
// the notice begins when the partner knows.
func (r *Registry) current(a agreed) peer.Agreement {
	if e := a.End; a.Bring && e != nil && e.By == r.cfg.Site && a.Lender == r.cfg.Site {
		untold := *e
		untold.Known = r.cfg.Now()
		a.End = &untold
	}
	return a.Agreement
}

func (r *Registry) shown(a agreed) Agreed {
	a.Agreement = r.current(a)
	now, out := r.cfg.Now(), Agreed{Agreement: a.Agreement, Partner: a.Other(r.cfg.Site), Told: !a.Bring}
	switch {
	case agreement.Over(a.Agreement, now):
		out.State = Over
	case a.End != nil || !now.Before(a.Until):
		out.State = Ending
	case a.Signatures[r.cfg.Site] == "":
		out.State = ToSign
	case a.Signatures[out.Partner] == "":
		out.State = Proposed
	case now.Before(a.From):
		out.State = Coming
	default:
		out.State = InForce
	}
	if out.State == Ending || out.State == Over {
		leave := a.Leave()
		out.Leave = &leave
	}
	return out
}
