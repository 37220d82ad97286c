package smi

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// priceFile is the body that carries price lists.
type priceFile struct {
	File string `json:"file" maxLength:"1048576"`
}

// Period is which invoice is meant: everything until a moment.
type Period struct {
	Customer string    `query:"customer" doc:"empty: the caller's own"`
	Until    time.Time `query:"until" doc:"everything before it; empty: now"`
}

// issue is the body that asks for an invoice.
type issue struct {
	Customer string    `json:"customer"`
	Until    time.Time `json:"until,omitzero"`
}

// limit is the body that sets a budget.
type limit struct {
	Limit  money.Amount `json:"limit"`
	Policy BudgetPolicy `json:"policy,omitempty" enum:"warn,refuse,shrink"`
}

// OfCustomer is whose objects are meant.
type OfCustomer struct {
	Customer string `query:"customer" doc:"empty: the caller's own, or all for who may see all"`
}

// RegisterTrade serves t on s.
func RegisterTrade(s *httpapi.Server, t Trade) {
	operators := []identity.Role{identity.Operator, identity.SiteRole}
	registerOffers(s, t)
	registerInvoices(s, t, operators)
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/prices", Summary: "The site's price lists", Roles: readers},
		func(ctx context.Context, _ *httpapi.Empty) (Prices, error) { return t.Prices(ctx) })
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: "/smi/v1/prices", Summary: "Set the site's price lists", Roles: operators},
		func(ctx context.Context, in *struct {
			Match string `header:"If-Match" doc:"the version that is to be replaced; empty: any"`
			Body  priceFile
		}) (Prices, error) {
			httpapi.Concerns(ctx, "prices")
			version, err := httpapi.ParseMatch(in.Match)
			if err != nil {
				return Prices{}, err
			}
			return t.SetPrices(ctx, in.Body.File, version)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/sla", Summary: "How promises are kept", Roles: readers},
		func(ctx context.Context, in *struct {
			Customer string `query:"customer" doc:"empty: the caller's own, or all for who may see all"`
			Service  string `query:"service" doc:"empty: all of them"`
		}) ([]SLA, error) {
			list, err := t.SLA(ctx, in.Customer, in.Service)
			return orEmpty(list), err
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/budgets", Summary: "What customers may spend, and have spent", Roles: readers},
		func(ctx context.Context, in *OfCustomer) ([]Budget, error) {
			list, err := t.Budgets(ctx, in.Customer)
			return orEmpty(list), err
		})
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: "/smi/v1/budgets/{customer}", Summary: "Set what a customer may spend in a month", Roles: operators},
		func(ctx context.Context, in *struct {
			Customer string `path:"customer" maxLength:"32"`
			Body     limit
		}) (Budget, error) {
			httpapi.Concerns(ctx, "budget/"+in.Customer)
			return t.SetBudget(ctx, Budget{Customer: in.Customer, Limit: in.Body.Limit, Policy: in.Body.Policy})
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: "/smi/v1/budgets/{customer}", Summary: "Take a customer's budget away", Roles: operators},
		func(ctx context.Context, in *struct {
			Customer string `path:"customer" maxLength:"32"`
		}) error {
			return t.DeleteBudget(ctx, in.Customer)
		})
}

func registerOffers(s *httpapi.Server, t Trade) {
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/smi/v1/offers", Summary: "What the site offers on a manifest", Roles: writers, Status: 201},
		func(ctx context.Context, in *struct{ Body Deploy }) (Offer, error) {
			o, err := t.Offer(ctx, in.Body)
			if o.ID != "" {
				httpapi.Concerns(ctx, "offer/"+o.ID)
			}
			return o, err
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/offers", Summary: "Offers and the contracts that they became", Roles: readers},
		func(ctx context.Context, in *OfCustomer) ([]Offer, error) {
			list, err := t.Offers(ctx, in.Customer)
			return orEmpty(list), err
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/offers/{id}", Summary: "One offer", Roles: readers},
		func(ctx context.Context, in *struct {
			ID string `path:"id" maxLength:"64"`
		}) (Offer, error) {
			return t.GetOffer(ctx, in.ID)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/smi/v1/offers/{id}/accept", Summary: "Accept an offer: its service is deployed under it", Roles: writers, Status: 202},
		func(ctx context.Context, in *struct {
			ID string `path:"id" maxLength:"64"`
		}) (Service, error) {
			httpapi.Concerns(ctx, "offer/"+in.ID)
			return t.Accept(ctx, in.ID)
		})
}

func registerInvoices(s *httpapi.Server, t Trade, operators []identity.Role) {
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/invoices", Summary: "Invoices of a customer, without single charges", Roles: readers},
		func(ctx context.Context, in *OfCustomer) ([]billing.Invoice, error) {
			list, err := t.Invoices(ctx, in.Customer)
			return orEmpty(list), err
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/invoices/{number}", Summary: "One invoice, with its charges", Roles: readers},
		func(ctx context.Context, in *struct {
			Customer string `query:"customer" doc:"empty: the caller's own"`
			Number   string `path:"number" maxLength:"64"`
		}) (billing.Invoice, error) {
			return t.Invoice(ctx, in.Customer, in.Number)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/smi/v1/invoices", Summary: "Issue an invoice", Roles: operators, Status: 201},
		func(ctx context.Context, in *struct{ Body issue }) (billing.Invoice, error) {
			v, err := t.Issue(ctx, in.Body.Customer, in.Body.Until)
			if v.Number != "" {
				httpapi.Concerns(ctx, "invoice/"+v.Number)
			}
			return v, err
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/draft", Summary: "The invoice that would be issued now", Roles: readers},
		func(ctx context.Context, in *Period) (billing.Invoice, error) {
			return t.Draft(ctx, in.Customer, in.Until)
		})
}
