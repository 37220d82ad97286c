package site

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/receipt"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
	"github.com/reservoir-cloud/reservoir/veem/federation/connector"
	"github.com/reservoir-cloud/reservoir/veem/federation/partners"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Federation is how the site shows itself to partners.
type Federation struct {
	// Listen for partners' control planes, host:port; empty: the host of Config.Listen and a
	// free port, as soon as there is a proxy, which alone connects to it.
	Listen string
	// Partnering is the policy by which VEEs are placed over sites that do not choose one
	// themselves; empty: overflow. Never bans partners. Partnerings are those that they may
	// choose; nil: all.
	Partnering  vee.Partnering
	Partnerings []vee.Partnering

	Location peer.Location
	Energy   peer.Energy
	// HeatWanted is how much of the site's waste heat somebody wants, 0 to 1.
	HeatWanted float64
}

func (f Federation) check() error {
	l := f.Location
	switch {
	case l.Country != "" && (len(l.Country) != 2 || strings.ToUpper(l.Country) != l.Country):
		return fault.New(fault.Malformed, "country %q: want two letters such as SE", l.Country).Try("reservoir site --country SE")
	case !(l.Latitude >= -90 && l.Latitude <= 90 && l.Longitude >= -180 && l.Longitude <= 180):
		return fault.New(fault.Malformed, "the site is at %v, %v: want degrees of latitude and longitude", l.Latitude, l.Longitude)
	case !(f.HeatWanted >= 0 && f.HeatWanted <= 1) || f.Energy.GramsKWh < 0:
		return fault.New(fault.Malformed, "%v of the heat is wanted, %v g CO₂/kWh: want 0 to 1, and no less than 0", f.HeatWanted, f.Energy.GramsKWh)
	case !slices.Contains([]string{"", "normal", "scarce", "failing"}, f.Energy.Condition):
		return fault.New(fault.Malformed, "power is %q: want normal, scarce or failing", f.Energy.Condition)
	}
	for _, p := range append(slices.Clone(f.Partnerings), cmp.Or(f.Partnering, vee.PartnersOverflow)) {
		if !slices.Contains(vee.Partnerings, p) {
			return fault.New(fault.Malformed, "policy over sites %q: want one of %v", p, vee.Partnerings).Try("reservoir site --partnering overflow")
		}
	}
	return nil
}

// capabilities of this version.
var capabilities = []peer.Capability{peer.CanPlace, peer.CanReserve, peer.CanNetwork, peer.CanMove, peer.CanMoveCold, peer.CanPublish, peer.CanAccount, peer.CanMeasure, peer.CanAccess, peer.CanCooperate, peer.CanRotate}

// listenForPartners and tell the proxy where: at the address that hosts use too, and the port
// that it is.
func (s *site) listenForPartners() error {
	c := &s.cfg
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fault.New(fault.Malformed, "address %q: want HOST:PORT: %w", c.Listen, err)
	}
	listen := cmp.Or(c.Federation.Listen, net.JoinHostPort(host, "0"))
	if s.forPartners, err = net.Listen("tcp", listen); err != nil {
		return fault.New(fault.Unavailable, "listen for partners on %s: %w", listen, err).Try("choose another address: reservoir site --federation-listen HOST:PORT")
	}
	host, _, err = net.SplitHostPort(c.Advertise)
	if err != nil {
		return fault.New(fault.Malformed, "advertised address %q: want HOST:PORT: %w", c.Advertise, err)
	}
	_, port, err := net.SplitHostPort(s.forPartners.Addr().String())
	if err != nil {
		return fmt.Errorf("the address for partners: %w", err)
	}
	s.gate.lead(net.JoinHostPort(host, port))
	return nil
}

// openFederation knows who partners are, and listens for them where an address for that was
// given; else that waits for a proxy.
func (s *site) openFederation(ctx context.Context) (err error) {
	c := &s.cfg
	s.trust = identity.NewTrust(time.Now)
	if c.Federation.Listen != "" {
		if err := s.listenForPartners(); err != nil {
			return err
		}
	}
	of := func(d time.Duration) time.Duration { return time.Duration(float64(d) * c.HAScale) }
	s.partners, err = partners.Open(ctx, partners.Config{
		Site: c.Name, Version: c.Version, Capabilities: capabilities, CA: s.ca, Keys: s.keys, Trust: s.trust, Store: s.store,
		Border: s.gate.Border, Dial: s.gate.Dial, Tunnel: s.gate.Tunnel, Recertify: s.member.certified,
		Timing: partners.Timing{Hello: max(leastHello, of(5*time.Second))},
		Record: func(e partners.Event) {
			kind := "normal"
			if e.Warning {
				kind = "warning"
			}
			s.events.Record(smi.Event{Type: kind, Reason: e.Reason, Object: e.Object, Message: e.Message})
		},
		Now: time.Now, Log: c.Log,
	})
	if err != nil {
		return err
	}
	s.gate.borders = s.partners.Borders
	s.offers = connector.New(connector.Config{Look: s.tell, Every: max(leastHello, of(2*time.Second)), Good: offersGood, Now: time.Now})
	return nil
}

const (
	// leastHello is the shortest pause between two greetings, however short the timings are.
	leastHello = 500 * time.Millisecond
	// offersGood is how old what a site has told may be used, by whoever places VEEs by it.
	offersGood = 30 * time.Second
)

// asPartner is the site as partners see it beside the VMI: of each part it is the one whose
// affair it is.
type asPartner struct {
	*partners.Registry
	*connector.Connector
	veem.Peering
	peer.Books
	peer.Gauges
	peer.Cooperation
}

// faceForPartners is all that a partner can ask for.
func (s *site) faceForPartners(log httpapi.Auditor, receipts *receipt.Book) *httpapi.Server {
	api := httpapi.NewServer("Reservoir site "+s.cfg.Name+", for partners", s.cfg.Version, s.cfg.Log)
	api.Audit(log)
	api.Receipts(receipts)
	peer.RegisterHost(api, s.partners)
	peer.Register(api, asPartner{Registry: s.partners, Connector: s.offers, Peering: s.veem.Peering(), Books: s.books, Gauges: measured{veem: s.veem}, Cooperation: s.cooperation.shelf})
	vmi.Register(api, s.veem)
	api.HandleStock("/v2/", s.cooperation.shipper.Registry(s.registryForPartners(), partnerOf))
	return api
}

// serveFederation is the listener for partners. Nobody else gets past its handshake but, while
// an invitation is open, who has its token.
func (s *site) serveFederation(ctx context.Context, receipts *receipt.Book) error {
	if s.forPartners == nil {
		if !s.gate.waitForProxy(ctx) {
			return nil
		}
		if err := s.listenForPartners(); err != nil {
			return err
		}
	}
	api := s.faceForPartners(s.audit, receipts)
	// The other end learns nothing of why, so that people see it here.
	told := rate.Sometimes{Interval: time.Minute}
	refused := func(err error) {
		s.cfg.Log.Debug("refused at the handshake for partners", "err", err)
		told.Do(func() {
			s.events.Record(smi.Event{Type: "warning", Reason: "PartnerRefused", Object: "site", Message: "somebody was refused who came as a partner: " + err.Error()})
		})
	}
	l := &httpapi.Listener{Handler: limited(s.forPartnersAlone(api), s.trust.Caller), TLS: s.keys.FederationTLS(s.trust, s.partners.Strangers, refused), Log: s.cfg.Log}
	return l.Serve(ctx, s.forPartners)
}

// Calls a second of one partner, and of all strangers together.
const (
	partnerRate, partnerBurst   = 200, 400
	strangerRate, strangerBurst = 2, 10
)

// limited answers 429 to who calls more often than that, before anything is decoded.
func limited(h http.Handler, callerOf func(*http.Request) (identity.Caller, error)) http.Handler {
	limits := newLimits()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := callerOf(r) // a stranger has no name: the handler itself refuses
		if !limits.allow(c.Site) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many calls", http.StatusTooManyRequests)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// tell of the site what partners may know.
func (s *site) tell(ctx context.Context) (peer.Attributes, error) {
	ctx = identity.With(ctx, s.self())
	a := peer.Attributes{Site: s.cfg.Name, Characteristics: peer.Characteristics{Location: s.cfg.Federation.Location, Software: s.cfg.Version, Types: types},
		State: peer.State{FreeByType: map[string]int{}}}
	said, _ := s.Published(ctx)
	a.State.Energy, a.State.HeatWanted = peer.Energy{Condition: said.Power, GramsKWh: said.GramsKWh}, said.HeatWanted
	hosts, err := s.veem.ListHosts(ctx)
	if err != nil {
		return a, err
	}
	s.lookAtHosts(hosts, &a)
	vees, err := s.veem.ListVEEs(ctx, vmi.Filter{})
	if err != nil {
		return a, err
	}
	for _, v := range vees {
		if v.Host == "" && v.Submitted && v.State == vee.Initial {
			a.State.Queue++
		}
	}
	images, err := s.images.List(ctx)
	if err != nil {
		return a, err
	}
	for _, i := range images {
		if !slices.Contains(a.Characteristics.Images, i.Digest) {
			a.Characteristics.Images = append(a.Characteristics.Images, i.Digest)
		}
	}
	slices.Sort(a.Characteristics.Images)
	prices, err := s.desk.Prices(ctx)
	if fault.Has(err, fault.NotFound) {
		return a, nil
	}
	if err != nil {
		return a, err
	}
	a.Characteristics.Currency = prices.Tariff.Currency
	for _, l := range prices.Tariff.Lists {
		if !l.From.After(time.Now()) { // the last one that has begun: they are in the order of time
			a.Characteristics.Prices = l.Prices
		}
	}
	return a, nil
}

// types that a site says how many it has room for.
var types = []peer.InstanceType{
	{Name: "small", VCPUs: 1, Memory: vee.GiB},
	{Name: "medium", VCPUs: 2, Memory: 4 * vee.GiB},
	{Name: "large", VCPUs: 4, Memory: 8 * vee.GiB},
}

// lookAtHosts sums up those of this site's own that take VEEs.
func (s *site) lookAtHosts(hosts []vmi.Host, a *peer.Attributes) {
	var all int64
	for _, h := range hosts {
		if vhi.SiteOf(h.Name) != "" || h.State != vmi.HostOn || !h.Alive {
			continue
		}
		free := h.Capacity.Minus(h.Used)
		free.MilliCPU, free.Memory, free.Disk = max(0, free.MilliCPU), max(0, free.Memory), max(0, free.Disk)
		a.State.Hosts++
		a.State.VEEs += h.VEEs
		a.State.Free = a.State.Free.Plus(free)
		all += h.Capacity.MilliCPU
		for _, t := range types {
			a.State.FreeByType[t.Name] += int(min(free.MilliCPU/(1000*int64(t.VCPUs)), int64(free.Memory/t.Memory)))
		}
		for _, d := range h.Drivers {
			if !slices.Contains(a.Characteristics.Hypervisors, d.Name) {
				a.Characteristics.Hypervisors = append(a.Characteristics.Hypervisors, d.Name)
			}
		}
	}
	slices.Sort(a.Characteristics.Hypervisors)
	if all > 0 {
		a.State.Load = 1 - float64(a.State.Free.MilliCPU)/float64(all)
	}
}

// InvitePartner implements admin.Federation.
func (s *site) InvitePartner(ctx context.Context, r admin.NewPartnerInvite) (partners.Invitation, error) {
	if r.Site != "" && !vee.ValidName(r.Site) {
		return partners.Invitation{}, fault.New(fault.Malformed, "site name %q: want a DNS label such as \"beta\"", r.Site)
	}
	d, err := life(r.TTLMS, inviteLife)
	if err != nil {
		return partners.Invitation{}, err
	}
	if err := s.gate.ready(ctx); err != nil { // it may be before the token is used
		s.cfg.Log.Warn("the invitation leads nowhere yet", "err", err)
	}
	return s.partners.Invite(ctx, r.Site, d)
}

// AcceptPartner implements admin.Federation.
func (s *site) AcceptPartner(ctx context.Context, r admin.PartnerToken) (partners.Shown, error) {
	p, err := s.partners.AcceptToken(ctx, r.Token)
	if err != nil {
		return partners.Shown{}, err
	}
	return s.partners.Show(p.Name)
}

// ListPartners implements admin.Federation.
func (s *site) ListPartners(context.Context) ([]partners.Shown, error) { return s.partners.List(), nil }

// GetPartner implements admin.Federation.
func (s *site) GetPartner(_ context.Context, name string) (partners.Shown, error) {
	return s.partners.Show(name)
}

// LeavePartner implements admin.Federation.
func (s *site) LeavePartner(ctx context.Context, name string, r admin.Leaving) error {
	return s.partners.LeavePartner(ctx, name, r.Force)
}

// RevokePartner implements admin.Federation.
func (s *site) RevokePartner(ctx context.Context, name string, r admin.Reason) error {
	return s.partners.Revoke(ctx, name, r.Reason)
}

// RotateAuthority implements admin.Federation.
func (s *site) RotateAuthority(ctx context.Context, r admin.Rotate) (partners.Rotation, error) {
	step := partners.RotateBegin
	if r.Now {
		step = partners.RotateNow
	}
	return s.partners.Rotate(ctx, step)
}

// Preflight implements admin.Federation.
func (s *site) Preflight(ctx context.Context, r admin.Way) ([]partners.Check, error) {
	if (r.Partner == "") == (r.Token == "") {
		return nil, fault.New(fault.Malformed, "the way to whom? want a partner or a token").Try("reservoir federation preflight PARTNER")
	}
	return s.partners.Preflight(ctx, r.Partner, r.Token)
}

// ProposeAgreement implements admin.Federation.
func (s *site) ProposeAgreement(ctx context.Context, r admin.Proposal) (partners.Agreed, error) {
	a, err := s.partners.Propose(ctx, r.Partner, r.Terms)
	if err != nil {
		return partners.Agreed{}, err
	}
	return s.partners.Agreement(a.ID)
}

// SignAgreement implements admin.Federation.
func (s *site) SignAgreement(ctx context.Context, id string) (partners.Agreed, error) {
	if _, err := s.partners.SignAgreement(ctx, id); err != nil {
		return partners.Agreed{}, err
	}
	return s.partners.Agreement(id)
}

// EndAgreement implements admin.Federation.
func (s *site) EndAgreement(ctx context.Context, id string, r admin.Reason) (partners.Agreed, error) {
	if _, err := s.partners.EndOurs(ctx, id, r.Reason); err != nil {
		return partners.Agreed{}, err
	}
	return s.partners.Agreement(id)
}

// ListAgreements implements admin.Federation.
func (s *site) ListAgreements(context.Context) ([]partners.Agreed, error) {
	return s.partners.Agreements(), nil
}

// GetAgreement implements admin.Federation.
func (s *site) GetAgreement(_ context.Context, id string) (partners.Agreed, error) {
	return s.partners.Agreement(id)
}

// FindSites implements admin.Federation.
func (s *site) FindSites(ctx context.Context, r admin.Find) (broker.Answer, error) {
	q := broker.Question{Requirement: r.Requirement, Order: broker.Order(r.Order), VEE: broker.Size{VCPUs: r.VCPUs, Memory: r.Memory, Disk: r.Disk}, Count: r.Count}
	if r.Users != nil {
		q.Users = &vee.Point{Latitude: r.Users.Latitude, Longitude: r.Users.Longitude}
	}
	b, err := broker.New(q)
	if err != nil {
		return broker.Answer{}, err
	}
	return b.Answer(s.partners.Candidates(ctx, s.offers)), nil
}
