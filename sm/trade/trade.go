// Package trade is what the Service Manager has to do with money: the site's price lists,
// offers and the contracts that they become, the score of what was promised, what is done
// before a promise is broken, budgets, and invoices. Prices, charges and scores are computed
// in account/billing and sm/sla, which are pure; here they are kept, so that a crash at any
// instruction loses no second and bills none twice:
//
//   - An offer is accepted in the transaction that records its service.
//   - An invoice is opened in its customer's book, then every account and every score is cut
//     under its number, then it is written and the book closed in one transaction. Whoever
//     finds a book open goes on where that stopped: what has been cut under the number stays.
//   - Invoices that are issued by themselves are those of the periods that are over and that
//     the customer's book has not come to the end of.
//   - A score is one record, in which a window ends and its penalty becomes due at once.
package trade

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Services are those of the site, as this package needs to know them.
type Services interface {
	// Quote reads a manifest as Deploy would. Errors: those of Deploy, but for room.
	Quote(ctx context.Context, d smi.Deploy) (Quote, error)
	Deploy(ctx context.Context, d smi.Deploy) (smi.Service, error)
	Scale(ctx context.Context, customer, name, component string, replicas int) (smi.Service, error)
	List(ctx context.Context, customer string) ([]smi.Service, error)
	Manifest(ctx context.Context, customer, name string) (string, error)
	Watch(ctx context.Context, customer, name string) (<-chan smi.Service, error)
	// KPI of a service now; NaN where nothing is known.
	KPI(ctx context.Context, s smi.Service, k manifest.KPI) float64
	// Restart a replica's VEE, or Move it to another host.
	Restart(ctx context.Context, id vee.ID) error
	Move(ctx context.Context, id vee.ID) error
}

// Quote is what a manifest would be deployed as.
type Quote struct {
	Customer string
	Service  string
	Manifest *manifest.Service
	Sizes    map[string]vee.Descriptor // of one replica, by component
}

// Config of a Desk.
type Config struct {
	Site     string
	Store    *store.Store
	Services Services
	Record   func(smi.Event)
	// Every is how often promises are looked at, beside each change of a service; 0: 5 s. One
	// observation stands for three times that.
	Every  time.Duration
	Now    func() time.Time
	Random io.Reader // for identifiers; nil: crypto/rand
	Log    *slog.Logger
}

// Desk of a site. It implements smi.Trade.
type Desk struct {
	cfg      Config
	tariffs  store.Collection[tariff]  // current
	offers   store.Collection[offer]   // ID
	accounts store.Collection[Account] // CUSTOMER/SERVICE ID/VEE
	scores   store.Collection[score]   // CUSTOMER/SERVICE ID
	books    store.Collection[book]    // CUSTOMER
	invoices store.Collection[billing.Invoice]
	charges  store.Collection[[]billing.Charge]
	budgets  store.Collection[budget] // CUSTOMER

	issuing  sync.Mutex // one invoice at a time
	periodic periodic   // the watching goroutine's own
	scoring  sync.Mutex // guards open, and each change of a score
	open     map[string]*watched
	warned   map[string]string // by customer: what was said last of its budget
	helping  sync.WaitGroup    // those who protect promises
}

var _ smi.Trade = (*Desk)(nil)

// New desk, which watches nothing before Run. Services may be set after it, by Attach.
func New(cfg Config) *Desk {
	if cfg.Every == 0 {
		cfg.Every = 5 * time.Second
	}
	return &Desk{
		cfg:      cfg,
		tariffs:  store.NewCollection[tariff](cfg.Store, "price list"),
		offers:   store.NewCollection[offer](cfg.Store, "offer"),
		accounts: Accounts(cfg.Store),
		scores:   store.NewCollection[score](cfg.Store, "score"),
		books:    store.NewCollection[book](cfg.Store, "book"),
		invoices: store.NewCollection[billing.Invoice](cfg.Store, "invoice"),
		charges:  store.NewCollection[[]billing.Charge](cfg.Store, "charge"),
		budgets:  store.NewCollection[budget](cfg.Store, "budget"),
		open:     map[string]*watched{},
		warned:   map[string]string{},
	}
}

// Attach the services, before anything else is called.
func (d *Desk) Attach(s Services) { d.cfg.Services = s }

// Run watches promises and budgets, and ends what an earlier process has begun, until ctx ends.
func (d *Desk) Run(ctx context.Context) error {
	ctx = d.asSite(ctx)
	defer d.helping.Wait()
	d.resume(ctx)
	d.watch(ctx)
	return nil
}

// asSite gives the desk's own calls the site's identity.
func (d *Desk) asSite(ctx context.Context) context.Context {
	return identity.With(ctx, identity.Caller{ID: "trade." + d.cfg.Site, Role: identity.SiteRole})
}

// House is the customer of callers that belong to none.
const House = "house"

// customer that is meant, which the caller must be allowed to see.
func customer(ctx context.Context, name string) (string, error) {
	c := identity.From(ctx)
	if name == "" {
		name = c.Customer
	}
	if name == "" {
		name = House
	}
	if !vee.ValidName(name) {
		return "", fault.New(fault.Malformed, "customer %q: want a DNS label such as \"acme\"", name)
	}
	if !c.Sees(name) {
		return "", fault.New(fault.Denied, "%s may not see the accounts of customer %s", c.ID, name)
	}
	return name, nil
}

// prefix of the keys of the customers that are meant: one, or "" for all.
func prefix(ctx context.Context, name string) (string, error) {
	if name == "" && identity.From(ctx).Is(identity.Operator, identity.Auditor, identity.SiteRole) {
		return "", nil
	}
	name, err := customer(ctx, name)
	return name + "/", err
}

// rule refuses who does not run the site.
func rule(ctx context.Context, what string) error {
	if c := identity.From(ctx); !c.Is(identity.Operator, identity.SiteRole) {
		return fault.New(fault.Denied, "role %q may not %s", c.Role, what)
	}
	return nil
}

func (d *Desk) say(kind, reason, customer, service, format string, args ...any) {
	e := smi.Event{Type: kind, Reason: reason, Object: "service/" + service, Customer: customer, Service: service, Message: fmt.Sprintf(format, args...)}
	if service == "" {
		e.Object = "customer/" + customer
	}
	d.cfg.Record(e)
}
