package site

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/veem/federation"
	"github.com/reservoir-cloud/reservoir/veem/federation/agreement"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
	"github.com/reservoir-cloud/reservoir/veem/federation/partners"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// abroad is what makes partners places for this site's VEEs, and lets theirs in: the
// agreements as the VEE Manager asks for them (veem.Partnership), and a place for each
// partner that lends.
type abroad struct {
	site     string
	partners peer.Partners
	places   *federation.Places
	location peer.Location
	changed  func() // tells the VEE Manager
	// offers is what a partner has told of itself, and how old it is; tell is what this site does.
	offers func(partner string) (peer.Attributes, time.Duration, bool)
	tell   func(ctx context.Context) (peer.Attributes, error)
	prices func(ctx context.Context) (billing.Tariff, error)
	every  time.Duration
	again  chan struct{} // before its time
	now    func() time.Time
	log    *slog.Logger

	images *importer
	ways   *forwarder

	mu   sync.Mutex
	own  billing.Tariff // as of the last look; the VEE Manager cannot wait for it
	here broker.Candidate
}

func (s *site) openAbroad(partners *partners.Registry) *abroad {
	a := &abroad{site: s.cfg.Name, again: make(chan struct{}, 1), partners: partners, location: s.cfg.Federation.Location, every: 10 * time.Second, now: time.Now, log: s.cfg.Log}
	a.places = federation.NewPlaces(behindProxy{partners, s.gate}, s.cfg.HAScale, s.cfg.Log)
	a.prices = func(ctx context.Context) (billing.Tariff, error) {
		p, err := s.desk.Prices(identity.With(ctx, identity.Caller{ID: s.cfg.Name, Role: identity.SiteRole}))
		return p.Tariff, err
	}
	a.changed = func() { s.veem.PartnersChanged() }
	a.offers = partners.Offer
	a.tell = func(ctx context.Context) (peer.Attributes, error) {
		at, err := s.offers.Attributes(ctx)
		at.Site = s.cfg.Name
		return at, err
	}
	a.here.Silent = fault.New(fault.Unavailable, "this site has only just started")
	a.images = newImporter(filepath.Join(s.cfg.Dir, "borrowed"), s.images, partners.Client)
	a.ways = newForwarder(s.cfg.AccessAddress, s.cfg.Log)
	a.ways.reach = func(ctx context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error) {
		return s.veem.Connect(identity.With(ctx, s.self()), id, port)
	}
	a.ways.doorTo, a.ways.proxied = s.gate.Door, func() bool { return s.gate.announced().Inside != "" }
	a.ways.wanted = func() []veem.Door { return s.veem.Doors() }
	return a
}

// registry for partners: what they name by digest, and nothing else. A digest is told by who
// hands a VEE over.
func (s *site) registryForPartners() http.Handler {
	all := s.images.Handler(image.Allow)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reads := r.Method == http.MethodGet || r.Method == http.MethodHead
		if named := strings.Contains(r.URL.Path, "/manifests/sha256:") || strings.Contains(r.URL.Path, "/blobs/sha256:"); !reads || !named && r.URL.Path != "/v2/" {
			http.Error(w, "partners read what they know the digest of", http.StatusForbidden)
			return
		}
		all.ServeHTTP(w, r)
	})
}

// Run until ctx is done.
func (a *abroad) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { a.places.Run(ctx) })
	wg.Go(func() { a.ways.Run(ctx) })
	wg.Go(func() { a.follow(ctx) })
	tick := time.NewTicker(a.every)
	defer tick.Stop()
	for {
		a.look(ctx)
		if t, err := a.prices(ctx); err == nil {
			a.mu.Lock()
			a.own = t
			a.mu.Unlock()
		} else if ctx.Err() == nil {
			a.log.Debug("read this site's prices, to compare those of partners with", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.again:
		}
	}
}

// told: the site tells something else of itself.
func (a *abroad) told() {
	select {
	case a.again <- struct{}{}:
	default:
	}
}

// follow what becomes of partners and agreements, and have the VEE Manager look at it at once.
func (a *abroad) follow(ctx context.Context) {
	for ctx.Err() == nil {
		changed := a.partners.Changed()
		a.changed()
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// Admit implements veem.Partnership.
func (a *abroad) Admit(partner string, has []vee.Descriptor, more vee.Descriptor) error {
	x, err := a.partners.Partner(partner)
	if err != nil {
		return err
	}
	deal, err := x.Borrows(a.now())
	if err != nil {
		return fault.New(fault.Denied, "%w", err)
	}
	return agreement.Allows(deal, held(has), []vee.Descriptor{more}, a.location, a.now())
}

// AdmitAccess implements veem.Partnership.
func (a *abroad) AdmitAccess(partner string) error {
	x, err := a.partners.Partner(partner)
	if err != nil {
		return err
	}
	deal, err := x.Borrows(a.now())
	if err == nil && !deal.Access {
		err = fault.New(fault.Denied, "agreement %s lets site %s have no access points here", deal.ID, partner).Try("agree on it: access: true in the agreement's file")
	}
	return err
}

// Offer implements veem.Partnership.
func (a *abroad) Offer(partner string, has []vee.Descriptor, more vee.Descriptor) (veem.Offer, error) {
	x, err := a.partners.Partner(partner)
	if err != nil {
		return veem.Offer{}, err
	}
	deal, err := x.Lends(a.now())
	if err != nil {
		return veem.Offer{}, err
	}
	told, _, _ := a.offers(partner)
	there := told.Characteristics.Location
	if len(deal.Locations) > 0 {
		there = deal.Locations[0] // what was agreed holds, whatever it tells
	}
	if err := agreement.Allows(deal, held(has), []vee.Descriptor{more}, there, a.now()); err != nil {
		return veem.Offer{}, err
	}
	o := veem.Offer{Agreement: deal.ID, Country: there.Country, Jurisdiction: there.Jurisdiction, Currency: deal.Currency}
	o.PerHour = perHour(billing.Tariff{Currency: deal.Currency, Places: deal.Places, Lists: []billing.PriceList{{Name: deal.ID, Prices: deal.Prices}}}, more)
	a.mu.Lock()
	defer a.mu.Unlock()
	if o.OwnPerHour = o.PerHour; a.own.Currency == deal.Currency { // else nobody can compare them
		o.OwnPerHour = perHour(a.own, more)
	}
	return o, nil
}

// Candidates implements veem.Partnership.
func (a *abroad) Candidates() map[string]broker.Candidate {
	now := a.now()
	a.mu.Lock()
	here := a.here
	a.mu.Unlock()
	if here.Silent == nil {
		here.Age = max(0, now.Sub(here.At))
	}
	all := map[string]broker.Candidate{a.site: here}
	for _, x := range a.partners.Partners() {
		c := broker.Candidate{Attributes: peer.Attributes{Site: x.Name}, Silent: x.Down}
		if deal, err := x.Lends(now); err == nil {
			c.Agreement = &deal
		}
		if told, age, ok := a.offers(x.Name); ok {
			c.Attributes, c.Age = told, age
		} else if c.Silent == nil {
			c.Silent = fault.New(fault.Unavailable, "site %s has told nothing of itself yet", x.Name)
		}
		all[x.Name] = c
	}
	return all
}

// look at this site as partners see it, to compare it with them.
func (a *abroad) look(ctx context.Context) {
	at, err := a.tell(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.here = broker.Candidate{Attributes: at, Here: true, Silent: err}
}

// Covers implements veem.Partnership.
func (a *abroad) Covers(lender, borrower string, from, until time.Time) error {
	x, err := a.partners.Partner(cmp.Or(other(lender, a.site), borrower))
	if err != nil {
		return err
	}
	return agreement.Covers(x.Agreements, lender, borrower, from, until)
}

// Notice implements veem.Partnership.
func (a *abroad) Notice(lender, borrower string) *veem.Notice {
	x, err := a.partners.Partner(cmp.Or(other(lender, a.site), borrower))
	if err != nil {
		return nil // what becomes of the VEEs of a partner that was revoked is for people to decide
	}
	n, ending := agreement.Ending(x.Agreements, lender, borrower, a.now())
	if !ending {
		return nil
	}
	if borrower == a.site {
		// The lender stops what is there by its own clock: whichever says earlier.
		if theirs := x.OurTime(n.By).Add(-x.OffsetError); theirs.Before(n.By) {
			n.By = theirs
		}
	}
	return &veem.Notice{From: n.From, By: n.By, Why: n.Why}
}

// other is site, unless it is us.
func other(site, us string) string {
	if site == us {
		return ""
	}
	return site
}

func held(has []vee.Descriptor) (h agreement.Held) {
	for _, d := range has {
		h = h.Plus(d)
	}
	return h
}

// perHour is what an hour of d that runs costs, by the newest list.
func perHour(t billing.Tariff, d vee.Descriptor) float64 {
	if len(t.Lists) == 0 {
		return 0
	}
	const hour = 3_600_000
	list := t.Lists[len(t.Lists)-1]
	used := account.Meter{}.To(hour, account.RateOf(vee.Active, d)).Used
	sum := 0.
	for _, m := range billing.Meters {
		cost, err := strconv.ParseFloat(m.Quantity(m.Of(used)).Times(list.Prices[m]).Fixed(9), 64)
		if err == nil {
			sum += cost
		}
	}
	return sum
}

// behindProxy are partners as the site's hosts reach what is there: behind its own proxy.
type behindProxy struct {
	known peer.Partners
	gate  *gate
}

// Partner implements peer.Partners.
func (b behindProxy) Partner(name string) (peer.Partner, error) {
	x, err := b.known.Partner(name)
	x.Underlay = b.gate.Underlay()
	return x, err
}

// Partners implements peer.Partners.
func (b behindProxy) Partners() []peer.Partner {
	all := b.known.Partners()
	for i := range all {
		all[i].Underlay = b.gate.Underlay()
	}
	return all
}

// Changed implements peer.Partners.
func (b behindProxy) Changed() <-chan struct{} { return b.known.Changed() }
