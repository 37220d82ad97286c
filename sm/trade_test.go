package sm

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/sm/trade"
	"github.com/reservoir-cloud/reservoir/smi"
)

// trading opens a desk beside the bench's manager.
func (b *bench) trading() *trade.Desk {
	b.t.Helper()
	d := trade.New(trade.Config{Site: "alpha", Store: b.store, Record: b.events.Record, Every: 20 * time.Millisecond, Now: time.Now,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	b.stop()
	b.trade = d
	b.start()
	d.Attach(b.m)
	if _, err := d.SetPrices(as(b.t.Context(), identity.Operator, ""), "currency: EUR\nlists: [{name: \"2000\", from: 2000-01-01, prices: {vcpu: 60}}]", 0); err != nil {
		b.t.Fatal(err)
	}
	return d
}

// A service is deployed under a contract in one transaction, scaled within it, and refused
// what the contract or the budget does not cover; its promises are watched as it is shown.
func TestDeployedUnderAContract(t *testing.T) {
	b := newBench(t, 21)
	d := b.trading()
	text := yaml("shop", "web:1", 2) + "availability: {window: 1h, percentile: 99, penalty: 1 EUR}\n"
	o, err := d.Offer(b.acme(), smi.Deploy{Manifest: text})
	if err != nil {
		t.Fatal(err)
	}
	if o.Hour.Initial.String() != "180" || o.Hour.Most.String() != "420" || len(o.Promises) != 1 {
		t.Errorf("%+v", o)
	}
	if _, err := b.m.Get(b.acme(), "", "shop"); !fault.Has(err, fault.NotFound) {
		t.Errorf("an offer deploys: %v", err)
	}
	s, err := d.Accept(b.acme(), o.ID)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.Accept(b.acme(), o.ID); err != nil || again.ID != s.ID || again.Revision != 1 {
		t.Errorf("accepted again: %+v, %v", again, err)
	}
	b.ready("shop")
	b.scale("shop", 3)
	b.ready("shop")
	if _, err := b.m.Deploy(b.acme(), smi.Deploy{Manifest: yaml("shop", "web:2", 2), Replace: true}); !fault.Has(err, fault.WrongState) || !strings.Contains(err.Error(), "runs under contract "+o.ID) {
		t.Errorf("another manifest: %v", err)
	}
	p, err := b.m.Plan(b.acme(), smi.Deploy{Manifest: yaml("shop", "web:2", 2), Replace: true})
	if err != nil || p.Feasible || !strings.Contains(strings.Join(p.Warnings, "\n"), "runs under contract") {
		t.Errorf("a plan of it: %+v, %v", p, err)
	}
	operator := as(t.Context(), identity.Operator, "")
	if _, err := d.SetBudget(operator, smi.Budget{Customer: "acme", Limit: money.Of(10, 1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.m.Scale(b.acme(), "", "shop", "web", 5); !fault.Has(err, fault.QuotaExceeded) {
		t.Errorf("beyond the budget: %v", err)
	}
	if _, err := b.m.Scale(b.acme(), "", "shop", "web", 1); err != nil {
		t.Errorf("down: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = d.Run(ctx) })
	defer running.Wait()
	defer cancel()
	b.until("the promise is kept", func() bool {
		list, err := d.SLA(b.acme(), "", "shop")
		return err == nil && len(list) == 1 && list[0].Contract == o.ID && list[0].Objectives[0].Now == "kept"
	})
	b.vanish("shop")
	b.until("the score ends", func() bool {
		list, err := d.SLA(b.acme(), "", "shop")
		return err == nil && list[0].Ended && len(list[0].Objectives[0].Past) == 1
	})
	if _, err := d.Accept(b.acme(), o.ID); !fault.Has(err, fault.WrongState) || !strings.Contains(err.Error(), "was accepted on") {
		t.Errorf("accepted when its service is gone: %v", err)
	}
}

func TestAccountsThatAreForgotten(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	ended := func(ago time.Duration, billed bool) trade.Account {
		at := now.Add(-ago).UnixMilli()
		a := trade.Account{Ended: true, Intervals: account.Series{{FromMS: at - 1, ToMS: at}}}
		if billed {
			a.Billed = &trade.Cut{FromMS: at - 1, ToMS: at}
		}
		return a
	}
	for what, c := range map[string]struct {
		a    trade.Account
		want bool
	}{
		"used nothing": {trade.Account{Ended: true}, true}, "billed": {ended(keepUsage, true), true}, "young": {ended(keepUsage-1e6, true), false},
		"not billed": {ended(keepUsage+time.Hour, false), false}, "not billed for long": {ended(2*keepUsage, false), true},
	} {
		if got := forgettable(c.a, now); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}
