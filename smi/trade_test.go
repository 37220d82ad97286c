package smi_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/receipt"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/smi"
)

// trader is a Trade that keeps what it was called with.
type trader struct{ recorder }

var (
	most   = 2.5
	prices = smi.Prices{File: "currency: EUR\n", Version: 3, Changed: at, Tariff: billing.Tariff{Currency: "EUR", Places: 2,
		Lists: []billing.PriceList{{Name: "2026", From: at, Prices: map[billing.Meter]money.Amount{billing.VCPUs: money.Of(1, 3)}}}}}
	offered = smi.Offer{ID: "alpha.o-aaaaaaaaaa", Site: "alpha", Customer: "acme", Service: "shop", Status: smi.Open, Created: at, Expires: at, Currency: "EUR", Places: 2,
		List: prices.Tariff.Lists[0], Hour: smi.HourlyPrice{Least: money.Of(1, 3), Initial: money.Of(2, 3), Most: money.Of(7, 2)}, Terms: []smi.Term{{Key: "a", Value: "b"}},
		Promises: []smi.Promise{{Name: "quick", Kind: "kpi", KPI: "latency", Max: &most, WindowMS: 3_600_000, Percent: 95, Penalty: "1 EUR"}}}
	kept = smi.SLA{Customer: "acme", Service: "shop", ServiceID: "alpha.s-1", Contract: "alpha.o-aaaaaaaaaa", Since: at, Currency: "EUR", Due: money.Of(1, 1),
		Objectives: []smi.Objective{{Promise: offered.Promises[0], Now: "kept", Window: &smi.Window{Start: at, End: at, KeptMS: 5, Kept: 100, Due: money.Of(0, 1)},
			Late: []smi.Late{{Replica: "web-1", Lost: at, Due: money.Of(1, 1)}}, Due: money.Of(1, 1)}}}
	invoice = billing.Invoice{Head: billing.Head{Number: "alpha-acme-000001", Site: "alpha", Customer: "acme", From: at, Until: at}, Currency: "EUR", Places: 2,
		Lines:    []billing.Line{{Service: "shop", Meter: billing.VCPUs, List: "2026", Price: money.Of(1, 3), Quantity: money.Of(3, 1), Amount: money.Of(1, 1)}},
		Subtotal: money.Of(1, 1), Credited: money.Of(0, 1), Total: money.Of(1, 1),
		Charges: []billing.Charge{{Service: "shop", VEE: "alpha.aaaaaaaaaa", Name: "web-1", Meter: billing.VCPUs, FromMS: 1, ToMS: 2, Raw: 3, List: "2026", Price: money.Of(1, 3), Cost: money.Of(1, 1)}}}
	budgeted = smi.Budget{Customer: "acme", Limit: money.Of(100, 1), Policy: smi.Shrink, Currency: "EUR", Spent: money.Of(1, 3), Hour: money.Of(1, 7), Version: 4}
)

func (r *trader) Prices(context.Context) (smi.Prices, error) { return prices, r.got() }
func (r *trader) SetPrices(_ context.Context, file string, v uint64) (smi.Prices, error) {
	return prices, r.got(file, v)
}
func (r *trader) Offer(_ context.Context, d smi.Deploy) (smi.Offer, error) { return offered, r.got(d) }
func (r *trader) GetOffer(_ context.Context, id string) (smi.Offer, error) { return offered, r.got(id) }
func (r *trader) Offers(_ context.Context, c string) ([]smi.Offer, error) {
	return []smi.Offer{offered}, r.got(c)
}
func (r *trader) Accept(_ context.Context, id string) (smi.Service, error) { return service, r.got(id) }
func (r *trader) SLA(_ context.Context, c, name string) ([]smi.SLA, error) {
	return []smi.SLA{kept}, r.got(c, name)
}
func (r *trader) Draft(_ context.Context, c string, until time.Time) (billing.Invoice, error) {
	return invoice, r.got(c, until)
}
func (r *trader) Issue(_ context.Context, c string, until time.Time) (billing.Invoice, error) {
	return invoice, r.got(c, until)
}
func (r *trader) Invoices(_ context.Context, c string) ([]billing.Invoice, error) {
	return nil, r.got(c)
}
func (r *trader) Invoice(_ context.Context, c, n string) (billing.Invoice, error) {
	return invoice, r.got(c, n)
}
func (r *trader) Budgets(_ context.Context, c string) ([]smi.Budget, error) {
	return []smi.Budget{budgeted}, r.got(c)
}
func (r *trader) SetBudget(_ context.Context, b smi.Budget) (smi.Budget, error) {
	return budgeted, r.got(b.Customer, b.Limit.String(), b.Policy)
}
func (r *trader) DeleteBudget(_ context.Context, c string) error { return r.got(c) }

func serveTrade(t *testing.T, r smi.Trade, role identity.Role) smi.Trade {
	t.Helper()
	s := httpapi.NewServer("test", "1", slog.New(slog.DiscardHandler))
	smi.RegisterTrade(s, r)
	web := httptest.NewServer(s.Handler(func(*http.Request) (identity.Caller, error) {
		return identity.Caller{ID: "test", Role: role, Customer: "acme"}, nil
	}))
	t.Cleanup(web.Close)
	return smi.NewTradeClient(&httpapi.Client{Base: web.URL, HTTP: web.Client()})
}

var tradeCalls = map[string]struct {
	call func(ctx context.Context, t smi.Trade, v string) (any, error)
	args []any // where v is "v"
	want any
}{
	"GET /smi/v1/prices": {func(ctx context.Context, t smi.Trade, _ string) (any, error) { return t.Prices(ctx) }, nil, prices},
	"PUT /smi/v1/prices": {func(ctx context.Context, t smi.Trade, v string) (any, error) { return t.SetPrices(ctx, v, 7) }, []any{"v", uint64(7)}, prices},
	"POST /smi/v1/offers": {func(ctx context.Context, t smi.Trade, v string) (any, error) {
		return t.Offer(ctx, smi.Deploy{Manifest: v, Name: "shop"})
	}, []any{smi.Deploy{Manifest: "v", Name: "shop"}}, offered},
	"GET /smi/v1/offers":              {func(ctx context.Context, t smi.Trade, v string) (any, error) { return t.Offers(ctx, v) }, []any{"v"}, []smi.Offer{offered}},
	"GET /smi/v1/offers/{id}":         {func(ctx context.Context, t smi.Trade, v string) (any, error) { return t.GetOffer(ctx, v) }, []any{"v"}, offered},
	"POST /smi/v1/offers/{id}/accept": {func(ctx context.Context, t smi.Trade, v string) (any, error) { return t.Accept(ctx, v) }, []any{"v"}, service},
	"GET /smi/v1/sla":                 {func(ctx context.Context, t smi.Trade, v string) (any, error) { return t.SLA(ctx, v, "shop") }, []any{"v", "shop"}, []smi.SLA{kept}},
	"GET /smi/v1/draft":               {func(ctx context.Context, t smi.Trade, v string) (any, error) { return t.Draft(ctx, v, at) }, []any{"v", at}, invoice},
	"POST /smi/v1/invoices":           {func(ctx context.Context, t smi.Trade, v string) (any, error) { return t.Issue(ctx, v, at) }, []any{"v", at}, invoice},
	"GET /smi/v1/invoices":            {func(ctx context.Context, t smi.Trade, v string) (any, error) { return t.Invoices(ctx, v) }, []any{"v"}, []billing.Invoice{}},
	"GET /smi/v1/invoices/{number}":   {func(ctx context.Context, t smi.Trade, v string) (any, error) { return t.Invoice(ctx, "acme", v) }, []any{"acme", "v"}, invoice},
	"GET /smi/v1/budgets":             {func(ctx context.Context, t smi.Trade, v string) (any, error) { return t.Budgets(ctx, v) }, []any{"v"}, []smi.Budget{budgeted}},
	"PUT /smi/v1/budgets/{customer}": {func(ctx context.Context, t smi.Trade, v string) (any, error) {
		return t.SetBudget(ctx, smi.Budget{Customer: v, Limit: money.Of(1, 3), Policy: smi.Warn})
	}, []any{"v", "1/3", smi.Warn}, budgeted},
	"DELETE /smi/v1/budgets/{customer}": {func(ctx context.Context, t smi.Trade, v string) (any, error) { return nil, t.DeleteBudget(ctx, v) }, []any{"v"}, nil},
}

func TestTradeRoundTrip(t *testing.T) {
	for op, c := range tradeCalls {
		t.Run(op, func(t *testing.T) {
			r := &trader{}
			m := serveTrade(t, r, identity.Operator)
			got, err := c.call(t.Context(), m, "v")
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("answer: %v, %+v\nwant %+v", err, got, c.want)
			}
			if len(r.calls)+len(c.args) > 0 && !reflect.DeepEqual(r.calls, c.args) {
				t.Errorf("called with %+v\nwant %+v", r.calls, c.args)
			}
			r.err = fault.New(fault.QuotaExceeded, "the budget is used up").Try("wait")
			_, err = c.call(t.Context(), m, "v")
			var f *fault.Error
			if !errors.As(err, &f) || f.Code != fault.QuotaExceeded || f.Next != "wait" {
				t.Errorf("error came as %+v", err)
			}
			for role, may := range map[identity.Role]bool{identity.HostRole: false, identity.Partner: false, "": false, identity.SiteRole: true} {
				if _, err := c.call(t.Context(), serveTrade(t, &trader{}, role), "v"); may != (err == nil) || !may && !fault.Has(err, fault.Denied) {
					t.Errorf("as %q: %v", role, err)
				}
			}
		})
	}
}

// TestEveryChangeOfTradeOnce: every call that changes something is done once under its key.
func TestEveryChangeOfTradeOnce(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	st := store.InMemory(log, nil)
	defer st.Close()
	book := receipt.NewBook(store.NewCollection[receipt.Receipt](st, "receipt"), time.Now, log)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { book.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	api := httpapi.NewServer("test", "1", log)
	api.Receipts(book)
	r := &trader{}
	smi.RegisterTrade(api, r)
	srv := httptest.NewServer(api.Handler(func(*http.Request) (identity.Caller, error) {
		return identity.Caller{ID: "ann", Role: identity.Operator}, nil
	}))
	defer srv.Close()
	m := smi.NewTradeClient(&httpapi.Client{Base: srv.URL, HTTP: srv.Client()})
	var all []string
	for _, op := range api.Operations() {
		name := op.Method + " " + op.Path
		all = append(all, name)
		c, known := tradeCalls[name]
		if !known || !op.Changes() {
			continue
		}
		ctx := httpapi.WithKey(t.Context(), "key of "+name)
		r.calls = nil
		first, err := c.call(ctx, m, "a")
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		once := slices.Clone(r.calls)
		if again, err := c.call(ctx, m, "a"); err != nil || !reflect.DeepEqual(again, first) || !reflect.DeepEqual(r.calls, once) {
			t.Errorf("%s again: %+v, %v, done %v", name, again, err, r.calls)
		}
		if _, err := c.call(ctx, m, "b"); !fault.Has(err, fault.Conflict) {
			t.Errorf("%s, another call under the key: %v", name, err)
		}
	}
	slices.Sort(all)
	if table := slices.Sorted(maps.Keys(tradeCalls)); !slices.Equal(all, table) {
		t.Errorf("operations\n%q\nand those of the table\n%q", all, table)
	}
}
