package standby

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Order of an operator to go on with services of a site that is lost.
type Order struct {
	Site string
	// Service by its name or its ID; empty: all of which something whole is here.
	Service string
	// Customer of this site's that they are to be of; empty: SITE-CUSTOMER.
	Customer string
	// Fenced: somebody has made sure that nothing of them runs at their site any more. Without
	// it the site must have been silent for ShelfConfig.Silent.
	Fenced bool
}

// Promote this site. Its commit point is the row of each service: what follows from that is done
// by Run, and repeated until it is done. Services that are promoted already are answered as they
// are. Errors: NotFound (nothing whole is here), WrongState (the site answers, or did so just
// now), Conflict (another standby was promoted), Malformed.
func (h *Shelf) Promote(ctx context.Context, o Order) ([]Shown, error) {
	all, err := h.rows.Values(ctx, o.Site+"/")
	if err != nil {
		return nil, err
	}
	var chosen []row
	partly := ""
	for _, r := range all {
		s := r.Whole
		switch {
		case s == nil:
			partly = r.Service
		case o.Service == "" || o.Service == s.Name || o.Service == s.Service:
			chosen = append(chosen, r)
		}
	}
	if len(chosen) == 0 {
		err := fault.New(fault.NotFound, "site %s has shipped no service here that is called %q", o.Site, o.Service)
		if o.Service == "" {
			err = fault.New(fault.NotFound, "site %s has shipped no service here", o.Site)
		}
		if partly != "" {
			err = fault.New(fault.NotFound, "what site %s has shipped of service %s is not whole", o.Site, partly)
		}
		return nil, err.Try("reservoir federation standby")
	}
	if slices.ContainsFunc(chosen, func(r row) bool { return r.Promoted == nil }) {
		if err := h.mayPromote(ctx, o, chosen); err != nil {
			return nil, err
		}
	}
	shown := []Shown{}
	for _, r := range chosen {
		r, err := h.promote(ctx, o, r)
		if err != nil {
			return shown, err
		}
		shown = append(shown, h.show(ctx, r))
	}
	h.poke()
	return shown, nil
}

// mayPromote refuses to succeed a site that is there, or that another has succeeded.
func (h *Shelf) mayPromote(ctx context.Context, o Order, chosen []row) error {
	x, err := h.cfg.Partners.Partner(o.Site)
	switch {
	case fault.Has(err, fault.NotFound): // it was revoked or has left: nobody hears of it any more
	case err != nil:
		return err
	case x.Down == nil:
		return fault.New(fault.WrongState, "site %s answers: its services are there", o.Site).
			Try("to have its VEEs here: at site %s, reservoir site evacuate --to %s", o.Site, h.cfg.Site)
	case !o.Fenced && h.silence(x) < h.cfg.Silent:
		return fault.New(fault.WrongState, "site %s has been silent for %s: it may be back soon", o.Site, h.silence(x).Round(time.Second)).
			Try("try again in %s, or, when it is sure that nothing runs there: reservoir federation promote %s --i-am-sure --fenced", (h.cfg.Silent - h.silence(x)).Round(time.Second), o.Site)
	}
	for _, r := range chosen {
		if p, found := h.another(ctx, r); r.Promoted == nil && found {
			return fault.New(fault.Conflict, "site %s has gone on with service %s at %s", p.By, r.Whole.Name, p.At.UTC().Format(time.RFC3339)).
				Try("at site %s: reservoir service show %s --customer %s", p.By, p.Name, p.Customer)
		}
		if _, err := customerFor(o, r); err != nil {
			return err
		}
	}
	return nil
}

// silence of a partner, as far as this process has listened. One that asks is there, whether it
// answers or not.
func (h *Shelf) silence(x peer.Partner) time.Duration {
	h.mu.Lock()
	heard := h.heard[x.Name]
	h.mu.Unlock()
	last := h.opened
	for _, at := range []time.Time{x.Seen, heard} {
		if at.After(last) {
			last = at
		}
	}
	return h.cfg.Now().Sub(last)
}

// agreed promotions: of services whose site has been silent for as long as the agreement says.
func (h *Shelf) agreed(ctx context.Context, rows []row) {
	asked := map[string]bool{}
	for _, r := range rows {
		if r.Whole == nil || r.Promoted != nil || asked[r.Site] {
			continue
		}
		asked[r.Site] = true
		x, err := h.cfg.Partners.Partner(r.Site)
		if err != nil || x.Down == nil {
			continue
		}
		deal, err := x.Borrows(h.cfg.Now())
		after := time.Duration(deal.PromoteMS) * time.Millisecond
		if err != nil || after == 0 || h.silence(x) < after {
			continue
		}
		if _, err := h.Promote(ctx, Order{Site: r.Site}); err != nil && ctx.Err() == nil {
			h.once("agreed "+r.Site, Event{Warning: true, Reason: "PromotionFails", Object: "site/" + r.Site,
				Message: fmt.Sprintf("agreement %s says that this site goes on with services of site %s after %s of silence: %s", deal.ID, r.Site, after, fault.From(err).Message)})
		}
	}
}

// another standby that has gone on with a service, of those that answer.
func (h *Shelf) another(ctx context.Context, r row) (peer.Promotion, bool) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	var found []peer.Promotion
	for _, site := range r.Whole.Standbys {
		x, err := h.cfg.Partners.Partner(site)
		if site == h.cfg.Site || err != nil || x.Down != nil || x.Hello.Needs(peer.CanCooperate) != nil {
			continue
		}
		list, err := x.Site.Succeeded(ctx, r.Site)
		if err != nil {
			h.cfg.Log.Info("ask another standby whether it was promoted", "site", site, "err", err)
			continue
		}
		for _, p := range list {
			if p.Service == r.Service && p.By == site {
				found = append(found, p)
			}
		}
	}
	if len(found) == 0 {
		return peer.Promotion{}, false
	}
	return first(r.Whole.Standbys, found), true
}

// askPatience with other sites, in all.
const askPatience = 10 * time.Second

// customerFor a service that comes here. By itself it is none that this site has already.
func customerFor(o Order, r row) (string, error) {
	customer := o.Customer
	if customer == "" {
		customer = r.Site + "-" + r.Whole.Customer
	}
	if !vee.ValidName(customer) {
		return "", fault.New(fault.Malformed, "customer %q: want a DNS label of at most 32 characters", customer).Try("reservoir federation promote %s --customer NAME", r.Site)
	}
	return customer, nil
}

func (h *Shelf) promote(ctx context.Context, o Order, r row) (row, error) {
	if r.Promoted != nil {
		return r, nil
	}
	customer, err := customerFor(o, r)
	if err != nil {
		return r, err
	}
	fresh := false
	r, _, err = h.rows.Modify(ctx, rowKey(r.Site, r.Service), func(now *row) error {
		if fresh = now.Promoted == nil && now.Whole != nil; fresh {
			now.Promoted = &promotion{Fenced: o.Fenced, By: identity.From(ctx).ID,
				Promotion: peer.Promotion{Service: now.Service, By: h.cfg.Site, Number: now.Whole.Number, At: h.cfg.Now(), Customer: customer, Name: now.Whole.Name}}
			now.Coming, now.Problem = nil, ""
		}
		return nil
	})
	if err != nil || !fresh {
		return r, err
	}
	h.reload(ctx)
	h.cfg.Record(Event{Warning: true, Reason: "Promoted", Object: "site/" + r.Site, Message: fmt.Sprintf("service %s of site %s is this site's now, as %s of customer %s, from %s",
		r.Whole.Name, r.Site, r.Promoted.Name, customer, r.Whole.At.UTC().Format(time.RFC3339))})
	return r, nil
}

// reload who is let in.
func (h *Shelf) reload(ctx context.Context) {
	rows, err := h.rows.Values(context.WithoutCancel(ctx), "")
	if err != nil {
		h.cfg.Log.Error("read the promotions", "err", err)
		return
	}
	h.close(rows)
}

// carryOut a promotion: first nobody else has anything to say about what is here of the service,
// then it is the Service Manager's.
func (h *Shelf) carryOut(ctx context.Context, r row) error {
	p := r.Promoted
	key := rowKey(r.Site, r.Service)
	if p.Done {
		return h.yield(ctx, r)
	}
	if p.Group == "" {
		group, lodgers, err := h.cfg.Successor.TakeOver(ctx, r.Site, r.Service, p.Customer)
		if err != nil {
			return fmt.Errorf("take over what is here of it: %w", err)
		}
		now, _, err := h.rows.Modify(ctx, key, func(now *row) error {
			now.Promoted.Group, now.Promoted.Lodgers = group, lodgers
			return nil
		})
		if err != nil {
			return err
		}
		p = now.Promoted
	}
	a := Adoption{From: r.Site, At: p.At, Group: p.Group, Customer: p.Customer, Name: p.Name, Definition: r.Whole.Definition, Lodgers: p.Lodgers, Seeds: map[vee.ID]vee.Seed{}}
	for _, part := range r.Whole.Parts {
		if !slices.Contains(p.Lodgers, part.VEE) {
			a.Seeds[part.VEE] = vee.Seed{Digest: part.Digest, Size: part.Size, Of: part.VEE, At: part.At}
		}
	}
	if err := h.cfg.Successor.Adopt(ctx, a); err != nil {
		return fmt.Errorf("go on with it: %w", err)
	}
	_, _, err := h.rows.Modify(ctx, key, func(now *row) error {
		now.Promoted.Done, now.Problem = true, ""
		return nil
	})
	return err
}

// yield to another standby that was promoted too, when that goes first.
func (h *Shelf) yield(ctx context.Context, r row) error {
	if r.Promoted.Yielded != "" {
		return nil
	}
	other, found := h.another(ctx, r)
	if !found {
		return nil
	}
	h.once(rowKey(r.Site, r.Service)+" "+other.By, Event{Warning: true, Reason: "PromotedTwice", Object: "site/" + r.Site,
		Message: fmt.Sprintf("service %s of site %s was gone on with here and at site %s; the manifest has %v: the first of them goes on", r.Whole.Name, r.Site, other.By, r.Whole.Standbys)})
	if first(r.Whole.Standbys, []peer.Promotion{r.Promoted.Promotion, other}).By == h.cfg.Site {
		return nil
	}
	if err := h.cfg.Successor.Yield(ctx, r.Promoted.Group, other); err != nil {
		return err
	}
	_, _, err := h.rows.Modify(ctx, rowKey(r.Site, r.Service), func(now *row) error {
		now.Promoted.Yielded = other.By
		return nil
	})
	h.reload(ctx)
	return err
}

// once tells an event of that key.
func (h *Shelf) once(key string, e Event) {
	h.mu.Lock()
	told := h.said[key] == e.Message
	h.said[key] = e.Message
	h.mu.Unlock()
	if !told {
		h.cfg.Record(e)
	}
}

// GaveWay implements peer.Cooperation.
func (h *Shelf) GaveWay(ctx context.Context, services []string) error {
	site, err := partner(ctx)
	if err != nil {
		return err
	}
	for _, s := range services {
		fresh := false
		_, _, err := h.rows.Modify(ctx, rowKey(site, s), func(now *row) error {
			if now.Promoted == nil {
				return fault.New(fault.NotFound, "service %s was not promoted", s)
			}
			// What runs here of it must be ours before its old site sees again what we show it.
			if now.Promoted.Group == "" {
				return fault.New(fault.Unavailable, "the promotion of service %s is being carried out", s)
			}
			if fresh = !now.Promoted.Known; !fresh {
				return errOvertaken
			}
			now.Promoted.Known = true
			return nil
		})
		if errors.Is(err, errOvertaken) || fault.Has(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if fresh {
			h.cfg.Record(Event{Reason: "GaveWay", Object: "site/" + site, Message: fmt.Sprintf("site %s is back and has given service %s up", site, s)})
		}
	}
	h.reload(ctx)
	return nil
}

// Succeeded implements peer.Cooperation.
func (h *Shelf) Succeeded(ctx context.Context, site string) ([]peer.Promotion, error) {
	asks, err := partner(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := h.rows.Values(ctx, site+"/")
	if err != nil {
		return nil, err
	}
	list := []peer.Promotion{}
	for _, r := range rows {
		if p := r.Promoted; p != nil && p.Yielded == "" && r.Whole != nil && slices.Contains(r.Whole.Standbys, asks) {
			list = append(list, p.Promotion)
		}
	}
	return list, nil
}
