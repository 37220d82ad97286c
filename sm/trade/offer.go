package trade

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Lives of offers that say nothing else, and how long one that was not accepted is remembered.
const (
	validity    = 24 * time.Hour
	maxValidity = 90 * 24 * time.Hour
	remembered  = 30 * 24 * time.Hour
)

// offer as it is stored. Once accepted it is a contract.
type offer struct {
	smi.Offer
	ServiceID string     `json:"serviceID,omitempty"` // that was accepted for
	Deploy    smi.Deploy `json:"deploy"`
	Words     string     `json:"words"` // of the manifest, without what it says of offers
}

func (o offer) shown(now time.Time) smi.Offer {
	switch {
	case !o.Accepted.IsZero():
		o.Status = smi.Accepted
	case now.After(o.Expires):
		o.Status = smi.Expired
	default:
		o.Status = smi.Open
	}
	return o.Offer
}

// Offer implements smi.Trade.
func (d *Desk) Offer(ctx context.Context, r smi.Deploy) (smi.Offer, error) {
	if !identity.From(ctx).Is(identity.Operator, identity.Provider, identity.SiteRole) {
		return smi.Offer{}, fault.New(fault.Denied, "role %q may not ask for offers", identity.From(ctx).Role)
	}
	q, err := d.cfg.Services.Quote(ctx, r)
	if err != nil {
		return smi.Offer{}, err
	}
	t, err := d.tariff(ctx)
	if err != nil {
		return smi.Offer{}, err
	}
	now := d.cfg.Now().UTC()
	list, ok := inForce(t, now)
	if !ok {
		return smi.Offer{}, fault.New(fault.WrongState, "site %s: its first price list, %s, is in force from %s on", d.cfg.Site, t.Lists[0].Name, t.Lists[0].From.Format(time.RFC3339))
	}
	o := offer{Offer: smi.Offer{Site: d.cfg.Site, Customer: q.Customer, Service: q.Service, Created: now, Expires: now.Add(validity),
		Currency: t.Currency, Places: t.Places, List: list, Hour: price(list, q), Promises: promises(q.Manifest)}}
	for _, p := range o.Promises {
		if err := check(p, t.Currency); err != nil {
			return smi.Offer{}, fault.New(fault.Malformed, "no offer can be made: %w", err).Try("correct the manifest: reservoir manifest check FILE")
		}
	}
	if w := q.Manifest.Offer; w != nil {
		if err := o.wanted(w); err != nil {
			return smi.Offer{}, err
		}
	}
	id, err := vee.NewID(d.cfg.Site, d.cfg.Random)
	if err != nil {
		return smi.Offer{}, err
	}
	o.ID = id.Site() + ".o-" + id.Short()
	o.Deploy = r
	o.Deploy.Customer, o.Deploy.Name = q.Customer, q.Service
	if o.Words, err = words(q.Manifest); err != nil {
		return smi.Offer{}, err
	}
	if _, err := d.offers.Create(ctx, o.ID, o); err != nil {
		return smi.Offer{}, err
	}
	d.say("normal", "Offered", o.Customer, o.Service, "offer %s: %s %s an hour, open until %s", o.ID, o.Hour.Initial.Fixed(max(4, o.Places)), o.Currency, o.Expires.Format(time.RFC3339))
	return o.shown(now), nil
}

// wanted by the manifest: sites, a price that it must not exceed, how long it is valid, terms.
func (o *offer) wanted(w *manifest.Offer) error {
	if len(w.Sites) > 0 && !slices.Contains(w.Sites, o.Site) {
		return fault.New(fault.WrongState, "the manifest wants offers of %s, this is site %s", strings.Join(w.Sites, ", "), o.Site).Try("ask one of those sites: reservoir --context NAME service offer")
	}
	if v := time.Duration(w.Validity); v > 0 {
		o.Expires = o.Created.Add(min(v, maxValidity))
	}
	if w.MaxPrice != "" {
		most, err := parseMost(w.MaxPrice, o.Currency)
		if err != nil {
			return fault.New(fault.Malformed, "offer.maxPrice: %w", err)
		}
		if o.Hour.Initial.Compare(most) > 0 {
			return fault.New(fault.WrongState, "an hour of the service costs %s %s at this site, the manifest wants at most %s", o.Hour.Initial.Fixed(o.Places+4), o.Currency, w.MaxPrice).
				Try("ask another site, for less, or for fewer replicas")
		}
	}
	for _, x := range w.Terms {
		o.Terms = append(o.Terms, smi.Term{Key: x.Key, Value: x.Value})
	}
	return nil
}

// parseMost reads "12 EUR/h", "12 EUR" or "12": for an hour.
func parseMost(text, currency string) (money.Amount, error) {
	text = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSpace(text), "/hour"), "/h")
	number, unit, _ := strings.Cut(strings.TrimSpace(text), " ")
	if unit = strings.TrimSpace(unit); unit != "" && unit != currency {
		return money.Amount{}, fault.New(fault.Malformed, "%q: the site's prices are in %s", text, currency)
	}
	return money.Parse(number)
}

// inForce at a moment.
func inForce(t billing.Tariff, at time.Time) (l billing.PriceList, ok bool) {
	for _, x := range t.Lists {
		if !x.From.After(at) {
			l, ok = x, true
		}
	}
	return l, ok
}

// find an offer. What the caller may not see does not exist for it.
func (d *Desk) find(ctx context.Context, id string) (offer, uint64, error) {
	missing := fault.New(fault.NotFound, "offer %s does not exist", id).Try("see what there is: reservoir service offers")
	site, _, ok := strings.Cut(id, ".o-")
	if !ok {
		return offer{}, 0, fault.New(fault.NotFound, "offer %q does not exist: want one such as %s.o-k3v9q2m7xd", id, d.cfg.Site).Try("see what there is: reservoir service offers")
	}
	if site != d.cfg.Site {
		return offer{}, 0, fault.New(fault.Denied, "offer %s was made by site %s: this is site %s", id, site, d.cfg.Site).Try("accept it there: reservoir --context %s service accept %s", site, id)
	}
	o, version, err := d.offers.Get(ctx, id)
	if fault.Has(err, fault.NotFound) || err == nil && !identity.From(ctx).Sees(o.Customer) {
		return offer{}, 0, missing
	}
	return o, version, err
}

// GetOffer implements smi.Trade.
func (d *Desk) GetOffer(ctx context.Context, id string) (smi.Offer, error) {
	o, _, err := d.find(ctx, id)
	if err != nil {
		return smi.Offer{}, err
	}
	return o.shown(d.cfg.Now()), nil
}

// Offers implements smi.Trade.
func (d *Desk) Offers(ctx context.Context, whose string) ([]smi.Offer, error) {
	of, err := prefix(ctx, whose)
	if err != nil {
		return nil, err
	}
	all, err := d.offers.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	var list []smi.Offer
	for _, o := range all {
		if of == "" || o.Customer+"/" == of {
			list = append(list, o.shown(d.cfg.Now()))
		}
	}
	slices.SortFunc(list, func(a, b smi.Offer) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return list, nil
}

// Accept implements smi.Trade. The deployment is the acceptance: Admit is asked in it.
func (d *Desk) Accept(ctx context.Context, id string) (smi.Service, error) {
	o, _, err := d.find(ctx, id)
	if err != nil {
		return smi.Service{}, err
	}
	if err := o.acceptable(d.cfg.Now()); err != nil && o.Accepted.IsZero() {
		return smi.Service{}, err
	}
	r := o.Deploy
	r.Offer, r.Replace, r.IdempotencyKey = id, true, "accept "+id
	return d.cfg.Services.Deploy(ctx, r)
}

func (o offer) acceptable(now time.Time) error {
	switch {
	case !o.Accepted.IsZero():
		return fault.New(fault.WrongState, "offer %s was accepted on %s already", o.ID, o.Accepted.Format(time.RFC3339)).Try("ask for another one: reservoir service offer -f MANIFEST")
	case now.After(o.Expires):
		return fault.New(fault.WrongState, "offer %s was open until %s", o.ID, o.Expires.Format(time.RFC3339)).Try("ask for another one: reservoir service offer -f MANIFEST")
	}
	return nil
}

// Admission is a deployment that is about to be recorded.
type Admission struct {
	Deploy    smi.Deploy
	ServiceID string
	Exists    bool
	Quote     Quote
	Desired   map[string]int // replicas by component
	Running   map[string]int // of the service as it was, where it exists
}

// Admit a deployment under its contract and its customer's budget, or say why not. The
// transaction that records the service must have the ops too.
func (d *Desk) Admit(ctx context.Context, a Admission) ([]store.Op, error) {
	q := a.Quote
	id := a.Deploy.Offer
	if c := q.Manifest.Contract; c != nil {
		if id != "" && id != c.Offer {
			return nil, fault.New(fault.Malformed, "offer %s is to be accepted, the manifest is about %s", id, c.Offer)
		}
		if c.Site != "" && c.Site != d.cfg.Site {
			return nil, fault.New(fault.Denied, "the manifest's contract is with site %s: this is site %s", c.Site, d.cfg.Site).Try("reservoir --context %s service deploy FILE", c.Site)
		}
		id = c.Offer
	}
	var now *offer
	var version uint64
	if a.Exists {
		var err error
		if now, version, err = d.contract(ctx, a.ServiceID); err != nil {
			return nil, err
		}
	}
	text, err := words(q.Manifest)
	if err != nil {
		return nil, err
	}
	var ops []store.Op
	switch {
	case id == "" && now == nil:
	case id == "" || now != nil && now.ID == id:
		if now.Words != text {
			return nil, fault.New(fault.WrongState, "service %s runs under contract %s, which is about another manifest", q.Service, now.ID).
				Try("ask for an offer on the changed one, and accept it: reservoir service offer -f FILE")
		}
	default:
		if ops, err = d.sign(ctx, id, text, a, now, version); err != nil {
			return nil, err
		}
	}
	if err := d.afford(ctx, a); err != nil {
		return nil, err
	}
	return ops, nil
}

// sign an offer for a service, whose contract so far ends by that.
func (d *Desk) sign(ctx context.Context, id, text string, a Admission, before *offer, version uint64) ([]store.Op, error) {
	o, at, err := d.find(ctx, id)
	if err != nil {
		return nil, err
	}
	now := d.cfg.Now().UTC()
	if err := o.acceptable(now); err != nil {
		return nil, err
	}
	switch {
	case o.Customer != a.Quote.Customer || o.Service != a.Quote.Service:
		return nil, fault.New(fault.WrongState, "offer %s is about service %s of customer %s, not about %s of %s", id, o.Service, o.Customer, a.Quote.Service, a.Quote.Customer)
	case o.Words != text:
		return nil, fault.New(fault.WrongState, "offer %s is about another manifest: it was changed since", id).Try("ask for an offer on the changed one: reservoir service offer -f FILE")
	}
	var ops []store.Op
	if before != nil {
		if !now.After(before.Accepted) { // the clock was set back: contracts follow each other all the same
			now = before.Accepted.Add(time.Millisecond)
		}
		before.Ended = now
		ops = append(ops, d.offers.OpUpdate(before.ID, *before, version))
	}
	o.Accepted, o.ServiceID = now, a.ServiceID
	return append(ops, d.offers.OpUpdate(id, o, at)), nil
}

// contract of a service that is in force, nil where there is none.
func (d *Desk) contract(ctx context.Context, service string) (*offer, uint64, error) {
	list, err := d.offers.List(ctx, "")
	for _, o := range list {
		if o.Value.ServiceID == service && o.Value.Ended.IsZero() && !o.Value.Accepted.IsZero() {
			return &o.Value, o.Version, nil
		}
	}
	return nil, 0, err
}

// contracts by service, in their order.
func (d *Desk) contracts(ctx context.Context) (map[string][]offer, error) {
	list, err := d.offers.Values(ctx, "")
	by := map[string][]offer{}
	for _, o := range list {
		if !o.Accepted.IsZero() {
			by[o.ServiceID] = append(by[o.ServiceID], o)
		}
	}
	for _, of := range by {
		slices.SortFunc(of, func(a, b offer) int { return a.Accepted.Compare(b.Accepted) })
	}
	return by, err
}

// under contracts, the price lists of a service.
func under(t billing.Tariff, list []offer) []billing.PriceList {
	if len(list) == 0 {
		return nil
	}
	var terms []billing.Term
	for _, o := range list {
		fixed := o.List
		fixed.Name = o.ID
		terms = append(terms, billing.Term{From: o.Accepted, Until: o.Ended, List: fixed})
	}
	return t.Under(terms)
}

// forgetOffers that nobody has accepted in time.
func (d *Desk) forgetOffers(ctx context.Context) {
	list, err := d.offers.List(ctx, "")
	if err != nil {
		d.cfg.Log.Warn("look for old offers", "err", err)
	}
	for _, o := range list {
		if !o.Value.Accepted.IsZero() || d.cfg.Now().Sub(o.Value.Expires) < remembered {
			continue
		}
		if err := d.offers.Delete(ctx, o.Key, o.Version); err != nil && !fault.Has(err, fault.NotFound) && !fault.Has(err, fault.Conflict) {
			d.cfg.Log.Warn("drop an old offer", "offer", o.Key, "err", err)
		}
	}
}
