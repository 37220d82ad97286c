// Package site is one site's control plane, wired: the record of truth, the site's
// authority, images, the VEE Manager and the Service Manager, and the one TLS listener
// that serves all of their interfaces. It decides nothing itself.
package site

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/event"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/receipt"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/site/peer"
	"github.com/reservoir-cloud/reservoir/sm"
	"github.com/reservoir-cloud/reservoir/sm/trade"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/van/balance"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/veem/federation/books"
	"github.com/reservoir-cloud/reservoir/veem/federation/connector"
	"github.com/reservoir-cloud/reservoir/veem/federation/partners"
	"github.com/reservoir-cloud/reservoir/veem/rebalance"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Config of a site's control plane.
type Config struct {
	Dir       string // all that the site keeps; mode 0700
	Name      string // of the site, a DNS label; its trust domain
	Listen    string // host:port of the one listener
	Advertise string // host:port under which hosts and people reach it; empty: Listen

	VEENetwork netip.Prefix // addresses that VEEs get, "10.80.128.0/17"
	VANs       netip.Prefix // that private networks get their subnets from; zero: 10.128.0.0/9
	VEEBits    int          // prefix length that VEEs configure; 0: that of VEENetwork
	VEEGateway netip.Addr   // their way out; zero: none

	AccessAddress           netip.Addr   // that access points share; zero: Advertise's
	AccessFirst, AccessLast uint16       // ports of it; 0: 20000 to 29999
	AccessPool              netip.Prefix // addresses that services get for their own access points; zero: none

	// AccountingInterval is how often the Service Manager is told what VEEs have used; 0: 5 min.
	AccountingInterval time.Duration
	// AccountingListeners are the only URLs that accounting information may be sent to.
	AccountingListeners []string

	// Monitoring is how measurements are kept and queried.
	Monitoring Monitoring

	// Member of several that are the control plane together; zero: the only one.
	Member Member
	// UnsealFile has the pass phrase that opens the seal of the authority's key; empty:
	// unseal.key in Dir. A new site makes it.
	UnsealFile string

	EtcdEndpoints []string
	EtcdTLS       *tls.Config
	StoreQuota    int64 // bytes; 0: the store's default

	// Federation is how the site shows itself to partners.
	Federation Federation

	Placement string // of new VEEs: "balance" or "pack"; empty: as the policy of Rebalance wants
	// Rebalance is how VEEs that run are moved, once they do.
	Rebalance veem.Rebalancing
	Relief    Relief
	// Overbooking of CPUs from history.
	Overbooking Overbooking
	HAScale     float64 // scales every timing together; 0: 1
	// FenceDir has programs that switch hosts off, by the host's name; empty: none.
	FenceDir string
	Version  string
	Log      *slog.Logger
}

func (c *Config) check() error {
	if !vee.ValidName(c.Name) {
		return fault.New(fault.Malformed, "site name %q: want a DNS label such as \"alpha\"", c.Name).Try("name the site: reservoir site --name alpha")
	}
	if c.Dir == "" || c.Listen == "" {
		return fault.New(fault.Malformed, "a site needs a directory and an address to listen on").Try("reservoir site --help")
	}
	if c.Advertise == "" {
		c.Advertise = c.Listen
	}
	host, _, err := net.SplitHostPort(c.Advertise)
	if err != nil {
		return fault.New(fault.Malformed, "advertised address %q: want HOST:PORT: %w", c.Advertise, err)
	}
	if !c.VEENetwork.IsValid() {
		return fault.New(fault.Malformed, "a site needs a network for its VEEs").Try("reservoir site --vee-network 10.80.128.0/17")
	}
	if c.VEEBits == 0 {
		c.VEEBits = c.VEENetwork.Bits()
	}
	if !c.AccessAddress.IsValid() {
		if c.AccessAddress, err = netip.ParseAddr(host); err != nil || c.AccessAddress.IsUnspecified() {
			return fault.New(fault.Malformed, "the advertised address %q is no address that access points could have", c.Advertise).
				Try("reservoir site --access-address ADDRESS")
		}
	}
	if c.AccessFirst == 0 {
		c.AccessFirst, c.AccessLast = 20000, 29999
	}
	if c.AccessLast < c.AccessFirst {
		return fault.New(fault.Malformed, "access point ports from %d to %d", c.AccessFirst, c.AccessLast).Try("reservoir site --access-points 20000-29999")
	}
	switch c.Placement {
	case "":
		c.Placement = "balance"
		if c.Rebalance.Policy == rebalance.Consolidate || c.Rebalance.Policy == rebalance.Cost {
			c.Placement = "pack"
		}
	case "balance", "pack":
	default:
		return fault.New(fault.Malformed, "placement %q: want balance or pack", c.Placement)
	}
	if r := c.Rebalance; r.Policy != rebalance.None && !slices.Contains(rebalance.Policies, r.Policy) {
		return fault.New(fault.Malformed, "rebalance %q: want one of %v", r.Policy, rebalance.Policies).Try("reservoir site --help")
	} else if r.Every < 0 || r.Link < 0 || !(r.PerMove >= 0) || !(r.Gain >= 0) {
		return fault.New(fault.Malformed, "rebalancing every %v, by at least %v a move and %v in all, over links of %v: none may be negative", r.Every, r.PerMove, r.Gain, r.Link).Try("reservoir site --help")
	}
	for _, u := range c.AccountingListeners {
		if err := checkListener(u); err != nil {
			return err
		}
	}
	if err := c.Overbooking.check(); err != nil {
		return err
	}
	if err := c.Relief.check(); err != nil {
		return err
	}
	if err := c.Federation.check(); err != nil {
		return err
	}
	if i := c.AccountingInterval; i != 0 && i < time.Second {
		return fault.New(fault.Malformed, "accounting interval %v: want at least 1s", i)
	}
	if c.HAScale == 0 {
		c.HAScale = 1
	}
	if err := c.ownership().Check(); err != nil {
		return fault.New(fault.Malformed, "%w", err).Try("reservoir site --ha-scale 1")
	}
	if err := c.checkMember(); err != nil {
		return err
	}
	return c.checkMonitoring()
}

func (c *Config) ownership() ownership.Timings { return ownership.DefaultTimings().Scale(c.HAScale) }

// site is a control plane at work: what a member has for the term in which it leads.
type site struct {
	cfg         Config
	started     time.Time
	member      *member
	term        *store.Term
	store       *store.Store
	ca          *identity.CA
	keys        *identity.Keypair
	tokens      *identity.Tokens
	invitations *identity.Invitations
	images      *image.Store
	events      *event.Log
	audit       *audit.Log
	balancer    *balance.Balancer
	veem        *veem.Manager
	sm          *sm.Manager
	desk        *trade.Desk
	demand      demand
	metering    metering
	gate        *gate
	trust       *identity.Trust
	partners    *partners.Registry
	offers      *connector.Connector
	forPartners net.Listener
	abroad      *abroad
	cooperation cooperation
	published   published
	books       *books.Keeper

	rowsMu sync.Mutex
	at     []string // addresses of the members
}

// open brings every part up, in the order in which they lean on each other.
func (s *site) open(ctx context.Context) (err error) {
	c := &s.cfg
	s.tokens = identity.NewTokens(store.NewCollection[identity.TokenRecord](s.store, "token"), time.Now)
	s.invitations = identity.NewInvitations(store.NewCollection[identity.Invitation](s.store, "invitation"), time.Now)
	if err := s.firstToken(ctx); err != nil {
		return err
	}
	if s.events, err = event.Open(ctx, event.Config{Sink: store.NewCollection[smi.Event](s.store, "event"), Now: time.Now, Logger: c.Log}); err != nil {
		return err
	}
	if s.audit, err = audit.Open(ctx, store.NewCollection[audit.Entry](s.store, "audit"), time.Now, c.Log); err != nil {
		return err
	}
	if err := s.openMeasurements(); err != nil {
		return err
	}
	s.balancer = balance.New(balance.Config{
		Address: c.AccessAddress, First: c.AccessFirst, Last: c.AccessLast, Pool: c.AccessPool, Log: c.Log,
		Every: max(leastCheck, time.Duration(c.HAScale*float64(2*time.Second))),
		// Points are set, and so checked, by the VEE Manager alone.
		Changed: func(key string, b plan.BackendState) { s.veem.BackendChanged(key, b) },
		Lease:   s.accessLease(),
	})
	if s.gate, err = s.openGate(ctx); err != nil {
		return err
	}
	if err := s.openPublished(ctx); err != nil {
		return err
	}
	if err := s.openFederation(ctx); err != nil {
		return err
	}
	s.abroad = s.openAbroad(s.partners)
	if s.veem, err = s.openVEEM(ctx); err != nil {
		return err
	}
	s.abroad.places.Serve(s.veem)
	s.gate.segments, s.gate.doors, s.gate.opened = s.veem.Border, s.veem.Doors, s.veem.DoorsOpened
	s.books = s.openBooks()
	s.sm = s.openSM()
	if err := s.openCooperation(ctx); err != nil {
		return err
	}
	return s.openHub(ctx)
}

// leastCheck is the shortest timeout of a health check: however much the timings are
// shortened, a guest is no faster.
const leastCheck = time.Second

// close undoes open, in reverse, as far as it got.
func (s *site) close() {
	if s.abroad != nil {
		s.abroad.images.Close()
		s.abroad.ways.Close()
	}
	if s.forPartners != nil {
		_ = s.forPartners.Close() // served, it is closed already
	}
	if s.balancer != nil {
		s.balancer.Close()
	}
	if s.metering.store != nil {
		if err := s.metering.store.Close(); err != nil {
			s.cfg.Log.Warn("close the measurements", "err", err)
		}
	}
	if s.events != nil {
		s.events.Close()
	}
	if s.audit != nil {
		s.audit.Close()
	}
}

// faces are all of the site's interfaces on one server.
func (s *site) faces(auditor httpapi.Auditor, receipts httpapi.Receipts) *httpapi.Server {
	api := httpapi.NewServer("Reservoir site "+s.cfg.Name, s.cfg.Version, s.cfg.Log)
	api.Audit(auditor)
	api.Receipts(receipts)
	vmi.Register(api, s.veem)
	vmi.RegisterMonitoringReceiver(api, s.sm)
	vmi.RegisterAccountingListener(api, s.sm)
	smi.Register(api, s.sm)
	smi.RegisterTrade(api, s.desk)
	smi.RegisterElasticity(api, s.sm)
	admin.Register(api, s)
	admin.RegisterFederation(api, s)
	admin.RegisterCooperation(api, s)
	admin.RegisterSettlements(api, s)
	admin.RegisterJoining(api, s)
	peer.Register(api, s.member)
	vhi.RegisterManager(api, hosts{s.veem, s})
	border.RegisterManager(api, keeper{s})
	border.RegisterKeeper(api, keeper{s})
	api.HandleStock("/v2/", s.seedsBeside(s.images.Handler(image.Allow)))
	s.registerMonitoring(api)
	s.registerOCCI(api)
	return api
}

func (s *site) serve(ctx context.Context, ln net.Listener) error {
	receipts := receipt.NewBook(store.NewCollection[receipt.Receipt](s.store, "receipt"), time.Now, s.cfg.Log)
	api := s.faces(s.audit, receipts)
	auth := &identity.Authenticator{Site: s.cfg.Name, Tokens: s.tokens, Admit: s.admit}
	listener := &httpapi.Listener{Handler: api.Handler(auth.Caller, vhi.JoinPath, border.JoinPath, admin.JoinPath), TLS: s.keys.ServerTLS(), Log: s.cfg.Log}

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	for _, f := range []func(context.Context) error{
		s.veem.Run, s.sm.Run, s.desk.Run, s.partners.Run, s.cooperation.shelf.Run, s.cooperation.shipper.Run,
		func(ctx context.Context) error { return s.serveFederation(ctx, receipts) },
		func(ctx context.Context) error { s.abroad.Run(ctx); return nil },
		func(ctx context.Context) error { s.openGateway().Run(ctx); return nil },
		func(ctx context.Context) error { s.books.Run(ctx); return nil },
		func(ctx context.Context) error { return listener.Serve(ctx, ln) },
		func(ctx context.Context) error { s.followMembers(ctx); return nil },
		func(ctx context.Context) error { s.collectImages(ctx); return nil },
		func(ctx context.Context) error { receipts.Run(ctx); return nil },
		func(ctx context.Context) error { s.followDemand(ctx); return nil },
		func(ctx context.Context) error { s.metering.hub.Run(ctx); return nil },
		func(ctx context.Context) error { s.gate.Run(ctx); return nil },
	} {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				stop(err)
			}
		})
	}
	s.cfg.Log.Info("site is up", "site", s.cfg.Name, "listen", ln.Addr().String(), "advertise", s.cfg.Advertise,
		"generation", s.store.Generation(), "took", time.Since(s.started).Round(time.Millisecond))
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// adminToken is the name of the operator's token that a new site makes and leaves in the
// file admin-token.
const adminToken = "admin"

func (s *site) firstToken(ctx context.Context) error {
	path := filepath.Join(s.cfg.Dir, "admin-token")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if s.member.several() {
		list, err := s.tokens.List(ctx)
		if err != nil || slices.ContainsFunc(list, func(t identity.Token) bool { return t.Name == adminToken }) {
			return err // another member has the file
		}
	}
	if err := s.tokens.Revoke(ctx, adminToken); err != nil && !fault.Has(err, fault.NotFound) {
		return err // the file was lost: the token that was in it is of no use to anybody honest
	}
	_, secret, err := s.tokens.Create(ctx, adminToken, identity.Operator, "", tokenLife)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, []byte(secret.Reveal()+"\n"), 0o600)
}

// admit refuses hosts that were removed while their certificates live on.
func (s *site) admit(ctx context.Context, c identity.Caller) error {
	if c.Role != identity.HostRole {
		return nil
	}
	if _, err := s.veem.GetHost(identity.With(ctx, s.self()), c.Host); err != nil {
		if fault.Has(err, fault.NotFound) {
			return fault.New(fault.Denied, "host %s is not part of site %s any more", c.Host, s.cfg.Name).
				Try("join it again: reservoir host invite %s", c.Host)
		}
		return err
	}
	return nil
}

// self is the caller that the control plane is to its own parts.
func (s *site) self() identity.Caller {
	id, _ := identity.SiteID(s.cfg.Name)
	return identity.Caller{ID: id.String(), Role: identity.SiteRole}
}

// imagesKeepFree of the disk is left to the record of truth beside the images.
const imagesKeepFree = 256 * vee.MiB

// collectEvery is how often unused image data is looked for.
const collectEvery = 10 * time.Minute

func (s *site) collectImages(ctx context.Context) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c, err := s.images.Collect(ctx); err != nil {
			s.cfg.Log.Warn("collect unused images", "err", err)
		} else if c.Bytes > 0 {
			s.cfg.Log.Info("dropped unused images", "images", c.Images, "blobs", c.Blobs, "freed", c.Bytes)
		}
	}
}

// imagesInUse names for each image the VEEs that are made of it.
func (s *site) imagesInUse(ctx context.Context) (map[string][]string, error) {
	vees, err := s.veem.ListVEEs(identity.With(ctx, s.self()), vmi.Filter{})
	if err != nil {
		return nil, err
	}
	used, err := s.cooperation.shelf.ImagesInUse(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range vees {
		for _, d := range v.Descriptor.Disks {
			if d.Image != "" {
				used[d.Image] = append(used[d.Image], string(v.ID))
			}
		}
	}
	return used, nil
}
