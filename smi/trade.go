package smi

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
)

// Prices of a site.
type Prices struct {
	File    string         `json:"file"` // as its administrator wrote it
	Tariff  billing.Tariff `json:"tariff"`
	Changed time.Time      `json:"changed"`
	Version uint64         `json:"version"`
}

// Promise that a manifest asks for.
type Promise struct {
	Name       string   `json:"name"` // unique in its service
	Kind       string   `json:"kind" enum:"availability,kpi,restart"`
	Component  string   `json:"component,omitempty"` // empty: the whole service
	KPI        string   `json:"kpi,omitempty"`
	Min        *float64 `json:"min,omitempty"`
	Max        *float64 `json:"max,omitempty"`
	WindowMS   int64    `json:"windowMs,omitempty"`
	Percent    float64  `json:"percent,omitempty"`  // of every window
	WithinMS   int64    `json:"withinMs,omitempty"` // restart
	Penalty    string   `json:"penalty,omitempty"`  // formula
	Protection string   `json:"protection,omitempty"`
}

// Status of an offer.
type Status string

// Statuses of an offer.
const (
	Open     Status = "open"
	Accepted Status = "accepted"
	Expired  Status = "expired"
)

// Offer of a site on a manifest. Once it is accepted, it is the contract that the service
// runs under.
type Offer struct {
	ID       string    `json:"id"`
	Site     string    `json:"site"`
	Customer string    `json:"customer"`
	Service  string    `json:"service"`
	Status   Status    `json:"status"`
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires"`
	Accepted time.Time `json:"accepted,omitzero"`
	Ended    time.Time `json:"ended,omitzero"` // of the contract: another one has taken its place
	// Prices that are fixed by it, and what an hour of the service costs at its smallest, as
	// it starts, and at its largest.
	Currency string            `json:"currency"`
	Places   int               `json:"places"`
	List     billing.PriceList `json:"list"`
	Hour     HourlyPrice       `json:"hour"`
	Promises []Promise         `json:"promises,omitempty"`
	Terms    []Term            `json:"terms,omitempty"`
}

// HourlyPrice of a service, exact.
type HourlyPrice struct {
	Least   money.Amount `json:"least"`
	Initial money.Amount `json:"initial"`
	Most    money.Amount `json:"most"`
}

// Term of an offer, in words.
type Term struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// SLA is how a service's promises are kept.
type SLA struct {
	Customer   string       `json:"customer"`
	Service    string       `json:"service"`
	ServiceID  string       `json:"serviceID"`
	Contract   string       `json:"contract,omitempty"` // offer; empty: promises are watched, and no penalty is due
	Since      time.Time    `json:"since,omitzero"`     // the score; zero: the service was not ready yet
	Ended      bool         `json:"ended,omitempty"`
	Currency   string       `json:"currency,omitempty"`
	Objectives []Objective  `json:"objectives"`
	Due        money.Amount `json:"due"` // penalties in all
}

// Objective and its score.
type Objective struct {
	Promise
	Now      string       `json:"now" enum:"kept,broken,unknown"`
	Window   *Window      `json:"window,omitempty"` // that is not over
	Past     []Window     `json:"past,omitempty"`   // that are, oldest first; of many the older kept ones are gone
	Late     []Late       `json:"late,omitempty"`   // losses of replicas that were not back in time
	Due      money.Amount `json:"due"`
	LastHelp time.Time    `json:"lastHelp,omitzero"` // when its protection last did something
}

// Window of an objective's time.
type Window struct {
	Start     time.Time    `json:"start"`
	End       time.Time    `json:"end"` // or how far the score goes
	KeptMS    int64        `json:"keptMs"`
	BrokenMS  int64        `json:"brokenMs"`
	UnknownMS int64        `json:"unknownMs"`
	BudgetMS  int64        `json:"budgetMs"` // for which it may be broken
	Kept      float64      `json:"keptPercent"`
	Violated  bool         `json:"violated,omitempty"`
	Due       money.Amount `json:"due"`
	Invoice   string       `json:"invoice,omitempty"` // that has the credit
}

// Late loss of a replica.
type Late struct {
	Replica string       `json:"replica"`
	Lost    time.Time    `json:"lost"`
	Due     money.Amount `json:"due"`
	Invoice string       `json:"invoice,omitempty"`
}

// Budget is what a customer may spend in a month.
type Budget struct {
	Customer string       `json:"customer"`
	Limit    money.Amount `json:"limit"` // in a calendar month, UTC
	Policy   BudgetPolicy `json:"policy" enum:"warn,refuse,shrink"`
	Currency string       `json:"currency,omitempty"`
	Spent    money.Amount `json:"spent"` // in this month
	Hour     money.Amount `json:"hour"`  // of what runs now
	Version  uint64       `json:"version"`
}

// BudgetPolicy says what follows when a budget is used up.
type BudgetPolicy string

// Policies of a budget.
const (
	Warn   BudgetPolicy = "warn"   // events at 80 % and 100 %
	Refuse BudgetPolicy = "refuse" // and no service is deployed or grows
	Shrink BudgetPolicy = "shrink" // and services go down to their least replicas
)

// Trade is the part of the SMI that is about money: prices, offers, contracts, how promises
// are kept, invoices, budgets. An empty customer is the caller's own. Errors are *fault.Error.
type Trade interface {
	// Prices that are in force. Errors: NotFound before any were set.
	Prices(ctx context.Context) (Prices, error)
	// SetPrices from a file (billing.ParseTariff). Errors: Malformed with every mistake;
	// WrongState for a change of prices that are in force already; Conflict.
	SetPrices(ctx context.Context, file string, version uint64) (Prices, error)
	// Offer on a manifest: what running it here costs, and what is promised. It reserves
	// nothing. Errors: those of Manager.Plan, WrongState where there are no prices.
	Offer(ctx context.Context, d Deploy) (Offer, error)
	GetOffer(ctx context.Context, id string) (Offer, error)
	Offers(ctx context.Context, customer string) ([]Offer, error)
	// Accept an offer: the service is deployed, or redeployed, under it. To accept again
	// changes nothing. Errors: NotFound, Denied (of another site), WrongState (expired, or
	// its contract is over), those of Manager.Deploy.
	Accept(ctx context.Context, id string) (Service, error)
	// SLA of a service, of all services of a customer, or of the site.
	SLA(ctx context.Context, customer, name string) ([]SLA, error)
	// Draft is the invoice that would be issued now, or at a moment that has passed.
	Draft(ctx context.Context, customer string, until time.Time) (billing.Invoice, error)
	// Issue that invoice. All before until that is known and on no invoice yet is on it.
	Issue(ctx context.Context, customer string, until time.Time) (billing.Invoice, error)
	// Invoices without the charges that their lines are made of.
	Invoices(ctx context.Context, customer string) ([]billing.Invoice, error)
	Invoice(ctx context.Context, customer, number string) (billing.Invoice, error)
	Budgets(ctx context.Context, customer string) ([]Budget, error)
	SetBudget(ctx context.Context, b Budget) (Budget, error)
	DeleteBudget(ctx context.Context, customer string) error
}
