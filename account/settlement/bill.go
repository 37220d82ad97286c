package settlement

import (
	"fmt"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
)

// Terms of an agreement, as far as they are about money.
type Terms struct {
	Agreement, Lender, Borrower string

	Currency string
	Places   int
	Prices   map[billing.Meter]money.Amount // for an hour
	// Availability that was promised, 0 to 1, and the part in percent of a VEE's charge for a
	// month that is given back when it ran less. Zero: nothing is.
	Availability, CreditPercent money.Amount
}

// Bill of the lender for the borrower by a book, in a time that begins with a month.
func (t Terms) Bill(number string, lines []Line, from, until time.Time) (billing.Invoice, error) {
	h := billing.Head{Number: number, Site: t.Lender, Customer: t.Borrower, From: from, Until: until}
	tariff := billing.Tariff{Currency: t.Currency, Places: t.Places, Lists: []billing.PriceList{{Name: t.Agreement, Prices: t.Prices}}}
	var accounts []billing.Account
	var credits []billing.Credit
	for len(lines) > 0 {
		var its []Line
		its, lines = one(lines[0].VEE, lines)
		a := billing.Account{Service: t.Agreement, VEE: its[0].VEE, Name: its[0].Name}
		for _, l := range its {
			a.Intervals = append(a.Intervals, l.Interval)
		}
		accounts = append(accounts, a)
		charges, err := tariff.Rate(a, from.UnixMilli(), until.UnixMilli())
		if err != nil {
			return billing.Invoice{}, fmt.Errorf("bill by agreement %s: %w", t.Agreement, err)
		}
		if c, due := t.credit(its, charges); due {
			credits = append(credits, c)
		}
	}
	v, _, err := tariff.Bill(h, accounts, credits, nil)
	if err != nil {
		return v, fmt.Errorf("bill by agreement %s: %w", t.Agreement, err)
	}
	return v, nil
}

// credit for one VEE, if one is due: of the time in which it was to run, from its first
// running on, it ran less than was promised.
func (t Terms) credit(its []Line, charges []billing.Charge) (c billing.Credit, due bool) {
	up, out := int64(0), int64(0)
	for _, l := range its {
		up, out = up+l.Used.ActiveMS, out+l.OutMS
	}
	if out == 0 || t.CreditPercent.Sign() <= 0 || money.Of(up, up+out).Compare(t.Availability) >= 0 {
		return c, false
	}
	c.Service = t.Agreement
	for _, x := range charges {
		c.Due = c.Due.Plus(x.Cost)
	}
	c.Due = c.Due.Times(t.CreditPercent).Over(money.Of(100, 1))
	percent := money.Of(100, 1)
	c.Reason = fmt.Sprintf("VEE %s ran %s %% of the %s in which it was to; %s %% was promised", called(its[0]),
		money.Of(up, up+out).Times(percent).Fixed(3), (time.Duration(up+out) * time.Millisecond).Round(time.Second), t.Availability.Times(percent))
	return c, c.Due.Sign() > 0
}

func called(l Line) string {
	if l.Name != "" {
		return l.Name
	}
	return string(l.VEE)
}

// Month of the calendar in UTC: "2026-11".
func Month(text string) (from, until time.Time, err error) {
	if from, err = time.Parse("2006-01", text); err != nil {
		return from, until, fmt.Errorf("period %q: want a month such as 2026-11", text)
	}
	return from, from.AddDate(0, 1, 0), nil
}

// MonthOf a moment.
func MonthOf(t time.Time) string { return t.UTC().Format("2006-01") }
