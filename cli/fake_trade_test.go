package cli

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
)

// fakeTrade sells at prices that were set, and has kept one promise badly.
type fakeTrade struct {
	f *fake

	mu       sync.Mutex
	prices   *smi.Prices
	offers   []smi.Offer
	invoices []billing.Invoice
	budgets  []smi.Budget
}

var fakeDay = time.Date(2030, 5, 6, 7, 0, 0, 0, time.UTC)

func (t *fakeTrade) Prices(context.Context) (smi.Prices, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.prices == nil {
		return smi.Prices{}, fault.New(fault.NotFound, "site alpha has no price list").Try("its operator sets one: reservoir account prices set FILE")
	}
	return *t.prices, nil
}

func (t *fakeTrade) SetPrices(_ context.Context, file string, _ uint64) (smi.Prices, error) {
	tariff, err := billing.ParseTariff([]byte(file))
	if err != nil {
		return smi.Prices{}, fault.New(fault.Malformed, "%w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.prices = &smi.Prices{File: file, Tariff: tariff, Version: 1}
	return *t.prices, nil
}

func (t *fakeTrade) Offer(_ context.Context, d smi.Deploy) (smi.Offer, error) {
	if d.Manifest == "" || d.File == "" {
		return smi.Offer{}, fault.New(fault.Malformed, "no manifest")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	o := smi.Offer{ID: "alpha.o-k3v9q2m7xd", Site: "alpha", Customer: "house", Service: "web", Status: smi.Open, Created: fakeDay, Expires: fakeDay.Add(24 * time.Hour),
		Currency: "EUR", Places: 2, List: billing.PriceList{Name: "2030", From: fakeDay},
		Hour: smi.HourlyPrice{Least: money.Of(1, 50), Initial: money.Of(2, 50), Most: money.Of(6, 50)},
		Promises: []smi.Promise{{Name: "availability", Kind: "availability", WindowMS: 3_600_000, Percent: 99.9, Penalty: "0.1 * price", Protection: "spare"},
			{Name: "web restart time", Kind: "restart", Component: "web", WithinMS: 120_000, Penalty: "1 EUR"}},
		Terms: []smi.Term{{Key: "support", Value: "by mail"}}}
	t.offers = append(t.offers, o)
	return o, nil
}

func (t *fakeTrade) Offers(context.Context, string) ([]smi.Offer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.offers), nil
}

func (t *fakeTrade) GetOffer(_ context.Context, id string) (smi.Offer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.offers {
		if o.ID == id {
			return o, nil
		}
	}
	return smi.Offer{}, notThere("offer", id)
}

func (t *fakeTrade) Accept(ctx context.Context, id string) (smi.Service, error) {
	o, err := t.GetOffer(ctx, id)
	if err != nil {
		return smi.Service{}, err
	}
	t.mu.Lock()
	t.offers[0].Status, t.offers[0].Accepted = smi.Accepted, fakeDay.Add(time.Hour)
	t.mu.Unlock()
	return fakeSM{t.f}.Deploy(ctx, smi.Deploy{Name: o.Service, Replace: true, Manifest: "service: web\ncomponents:\n  - {name: web, image: disk, memory: 128MiB, replicas: {initial: 1, max: 2}}\n"})
}

func (t *fakeTrade) SLA(_ context.Context, _, name string) ([]smi.SLA, error) {
	if name != "" && name != "web" {
		return nil, fault.New(fault.NotFound, "service %s has promised nothing", name)
	}
	at := fakeDay
	now := smi.Window{Start: at.Add(time.Hour), End: at.Add(90 * time.Minute), KeptMS: 1_799_000, BrokenMS: 1000, BudgetMS: 3600, Kept: 99.944}
	bad := smi.Window{Start: at, End: at.Add(time.Hour), KeptMS: 3_540_000, BrokenMS: 60_000, BudgetMS: 3600, Kept: 98.333333, Violated: true, Due: money.Of(1, 4)}
	return []smi.SLA{{Customer: "acme", Service: "web", ServiceID: "alpha.s-1", Contract: "alpha.o-k3v9q2m7xd", Since: at, Currency: "EUR", Due: money.Of(5, 4), Objectives: []smi.Objective{
		{Promise: smi.Promise{Name: "availability", Kind: "availability", WindowMS: 3_600_000, Percent: 99.9, Penalty: "0.1 * price"}, Now: "kept", Window: &now, Past: []smi.Window{bad}, Due: money.Of(1, 4)},
		{Promise: smi.Promise{Name: "web restart time", Kind: "restart", Component: "web", WithinMS: 120_000, Penalty: "1 EUR"}, Now: "kept", Due: money.Of(1, 1),
			Late: []smi.Late{{Replica: "web-1", Lost: at.Add(time.Minute), Due: money.Of(1, 1)}}},
	}}}, nil
}

func (t *fakeTrade) Draft(context.Context, string, time.Time) (billing.Invoice, error) {
	tariff := billing.Tariff{Currency: "EUR", Places: 2, Lists: []billing.PriceList{{Name: "2030", From: fakeDay, Prices: map[billing.Meter]money.Amount{billing.VCPUs: money.Of(2, 1)}}}}
	hour := account.Interval{FromMS: fakeDay.UnixMilli(), ToMS: fakeDay.Add(time.Hour).UnixMilli(), Used: account.Usage{ActiveMS: 3_600_000, VCPUMS: 3_600_000}}
	v, _, err := tariff.Bill(billing.Head{Number: "alpha-acme-000001", Site: "alpha", Customer: "acme", From: fakeDay, Until: fakeDay.Add(2 * time.Hour)},
		[]billing.Account{{Service: "web", VEE: "alpha.aaaaaaaaaa", Name: "web-1", Intervals: account.Series{hour}}},
		[]billing.Credit{{Service: "web", Reason: "availability: 99.9 % was promised", Due: money.Of(1, 4)}}, nil)
	return v, err
}

func (t *fakeTrade) Issue(ctx context.Context, customer string, until time.Time) (billing.Invoice, error) {
	v, err := t.Draft(ctx, customer, until)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.invoices = []billing.Invoice{v}
	return v, err
}

func (t *fakeTrade) Invoices(context.Context, string) ([]billing.Invoice, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.invoices), nil
}

func (t *fakeTrade) Invoice(_ context.Context, _, number string) (billing.Invoice, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range t.invoices {
		if v.Number == number {
			return v, nil
		}
	}
	return billing.Invoice{}, notThere("invoice", number)
}

func (t *fakeTrade) Budgets(context.Context, string) ([]smi.Budget, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.budgets), nil
}

func (t *fakeTrade) SetBudget(_ context.Context, b smi.Budget) (smi.Budget, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b.Currency, b.Spent, b.Hour, b.Version = "EUR", money.Of(81, 2), money.Of(1, 3), 1
	t.budgets = []smi.Budget{b}
	return b, nil
}

func (t *fakeTrade) DeleteBudget(_ context.Context, customer string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.budgets) == 0 {
		return notThere("budget of", customer)
	}
	t.budgets = nil
	return nil
}
