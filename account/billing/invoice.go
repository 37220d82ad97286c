package billing

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Head of an invoice.
type Head struct {
	Number   string    `json:"number"`
	Site     string    `json:"site"` // that issues it
	Customer string    `json:"customer"`
	From     time.Time `json:"from"`  // of the billing period
	Until    time.Time `json:"until"` // its end, which is not part of it
}

// Invoice for a customer. Amounts of lines and credits are rounded, and Subtotal, Credited
// and Total are their exact sums.
type Invoice struct {
	Head
	Currency string       `json:"currency"`
	Places   int          `json:"places"`
	Lines    []Line       `json:"lines"`
	Credits  []Credit     `json:"credits,omitempty"`
	Subtotal money.Amount `json:"subtotal"`
	Credited money.Amount `json:"credited"`
	Total    money.Amount `json:"total"`
	Charges  []Charge     `json:"charges"` // that the lines are made of
}

// Line for what a service used of a meter at a price.
type Line struct {
	Service  string       `json:"service"`
	Meter    Meter        `json:"meter"`
	List     string       `json:"list"`
	Price    money.Amount `json:"price"`
	Quantity money.Amount `json:"quantity"` // exact, in Meter.Unit
	Amount   money.Amount `json:"amount"`
}

// Credit for a promise that was not kept.
type Credit struct {
	Service string       `json:"service"`
	Reason  string       `json:"reason"`
	Due     money.Amount `json:"due"`    // by the agreement
	Amount  money.Amount `json:"amount"` // given: no more than the service is charged
}

// Billed says of each VEE through which moment (ms) its usage is on an invoice.
type Billed map[vee.ID]int64

// Bill everything before the period's end that is not billed yet: what came too late for the
// invoice before is on this one. It returns what is billed then; nothing is on two invoices
// that were made one from the other's Billed, and nothing on none.
func (t Tariff) Bill(h Head, accounts []Account, credits []Credit, billed Billed) (Invoice, Billed, error) {
	inv := Invoice{Head: h, Currency: t.Currency, Places: t.Places}
	if err := t.Check(); err != nil {
		return inv, billed, err
	}
	next, seen := Billed{}, map[vee.ID]bool{}
	maps.Copy(next, billed)
	for _, a := range accounts {
		if seen[a.VEE] {
			return inv, billed, fmt.Errorf("invoice %s: VEE %s has two accounts", h.Number, a.VEE)
		}
		seen[a.VEE] = true
		n := len(a.Intervals)
		if n == 0 {
			continue
		}
		from, ok := billed[a.VEE]
		if !ok {
			from = a.Intervals[0].FromMS
		}
		through := min(h.Until.UnixMilli(), a.Intervals[n-1].ToMS)
		if through <= from {
			continue
		}
		charges, err := t.Rate(a, from, through)
		if err != nil {
			return inv, billed, fmt.Errorf("invoice %s: %w", h.Number, err)
		}
		inv.Charges, next[a.VEE] = append(inv.Charges, charges...), through
	}
	inv.lines()
	inv.credits(credits)
	inv.Total = inv.Subtotal.Minus(inv.Credited)
	return inv, next, nil
}

// lines from charges.
func (v *Invoice) lines() {
	slices.SortStableFunc(v.Charges, func(a, b Charge) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(slices.Index(Meters, a.Meter), slices.Index(Meters, b.Meter)),
			cmp.Compare(a.FromMS, b.FromMS), cmp.Compare(a.VEE, b.VEE))
	})
	type key struct {
		service, list string
		meter         Meter
	}
	at := map[key]int{}
	var exact []money.Amount
	for _, c := range v.Charges {
		k := key{c.Service, c.List, c.Meter}
		i, ok := at[k]
		if !ok {
			i = len(v.Lines)
			at[k] = i
			v.Lines, exact = append(v.Lines, Line{Service: c.Service, Meter: c.Meter, List: c.List, Price: c.Price}), append(exact, money.Amount{})
		}
		v.Lines[i].Quantity = v.Lines[i].Quantity.Plus(c.Meter.Quantity(c.Raw))
		exact[i] = exact[i].Plus(c.Cost)
	}
	for i, a := range money.Round(exact, v.Places) {
		v.Lines[i].Amount = a
	}
	v.Subtotal = money.Sum(exact).Round(v.Places)
}

// credits that are due, of which no service gets more than it is charged.
func (v *Invoice) credits(due []Credit) {
	left := map[string]money.Amount{}
	for _, l := range v.Lines {
		left[l.Service] = left[l.Service].Plus(l.Amount)
	}
	for _, c := range due {
		c.Amount = c.Due.Round(v.Places)
		if c.Amount.Compare(left[c.Service]) > 0 {
			c.Amount = left[c.Service]
		}
		if c.Amount.Sign() < 0 {
			c.Amount = money.Amount{}
		}
		left[c.Service] = left[c.Service].Minus(c.Amount)
		v.Credits, v.Credited = append(v.Credits, c), v.Credited.Plus(c.Amount)
	}
}

// String is the invoice for people.
func (v Invoice) String() string {
	var b strings.Builder // to which writing never fails
	fmt.Fprintf(&b, "Invoice %s of site %s for customer %s\nPeriod  %s until %s\n\n", cmp.Or(v.Number, "(not issued)"), v.Site, v.Customer,
		v.From.UTC().Format(time.RFC3339), v.Until.UTC().Format(time.RFC3339))
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "SERVICE\tMETER\tQUANTITY\tUNIT\tPRICE\t%s\t\n", v.Currency)
	for _, l := range v.Lines {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t\n", l.Service, l.Meter, l.Quantity.Fixed(4), l.Meter.Unit(), l.Price, l.Amount.Fixed(v.Places))
	}
	fmt.Fprintf(t, "\t\t\t\tcharges\t%s\t\n", v.Subtotal.Fixed(v.Places))
	for _, c := range v.Credits {
		fmt.Fprintf(t, "%s\t\t\t\tcredit\t%s\t\n", c.Service, c.Amount.Negative().Fixed(v.Places))
	}
	fmt.Fprintf(t, "\t\t\t\ttotal\t%s\t\n", v.Total.Fixed(v.Places))
	t.Flush()
	for _, c := range v.Credits {
		fmt.Fprintf(&b, "\nCredit for %s: %s; %s %s is due, %s is given\n", c.Service, c.Reason, c.Due.Fixed(v.Places), v.Currency, c.Amount.Fixed(v.Places))
	}
	return b.String()
}
