package trade

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Account is what one VEE has used, as the Service Manager's accounting listener keeps it, and
// how far that is on invoices.
type Account struct {
	Customer  string         `json:"customer"`
	Service   string         `json:"service"`
	ServiceID string         `json:"serviceID"`
	VEE       vee.ID         `json:"vee"`
	Name      string         `json:"name"` // of the VEE, component and replica
	Ended     bool           `json:"ended,omitempty"`
	Intervals account.Series `json:"intervals,omitempty"`
	Billed    *Cut           `json:"billed,omitempty"` // last; nil: nothing yet

	// Of a service that has gone from one site to another (docs/federation.md): what is not
	// within [SinceMS, UntilMS) is the other site's to account for; 0: open.
	SinceMS int64 `json:"sinceMs,omitempty"`
	UntilMS int64 `json:"untilMs,omitempty"`
	// Site whose account it is a copy of, for people; it is on no invoice here.
	Site string `json:"site,omitempty"`
}

// Cut is a part of an account that is on one invoice: [FromMS, ToMS). All before it is on
// earlier ones.
type Cut struct {
	Invoice string `json:"invoice"`
	FromMS  int64  `json:"fromMs"`
	ToMS    int64  `json:"toMs"`
}

// Accounts of a site, by CUSTOMER/SERVICE ID/VEE.
func Accounts(s *store.Store) store.Collection[Account] {
	return store.NewCollection[Account](s, "usage")
}

// Add an interval that the VEE's meter has told; see account.Series.Add.
func (a *Account) Add(i account.Interval) (ok bool) {
	if i = a.ours(i); i.ToMS <= i.FromMS {
		return true
	}
	through := i.FromMS
	if a.Billed != nil {
		through = a.Billed.ToMS
	}
	a.Intervals, ok = a.Intervals.AddBilled(i, through)
	return ok
}

// Settled says that all of it is on invoices.
func (a Account) Settled() bool {
	n := len(a.Intervals)
	return n == 0 || a.Site != "" || a.Billed != nil && a.Billed.ToMS >= a.Intervals[n-1].ToMS
}

// next cut: what is known before a moment and on no invoice yet.
func (a Account) next(number string, untilMS int64) (Cut, bool) {
	n := len(a.Intervals)
	if n == 0 || a.Site != "" {
		return Cut{}, false
	}
	c := Cut{Invoice: number, FromMS: a.Intervals[0].FromMS, ToMS: min(untilMS, a.Intervals[n-1].ToMS)}
	if a.Billed != nil {
		c.FromMS = a.Billed.ToMS
	}
	return c, c.ToMS > c.FromMS
}

// within a cut, as the invoice needs it.
func (a Account) within(c Cut, lists []billing.PriceList) billing.Account {
	b := billing.Account{Service: a.Service, VEE: a.VEE, Name: a.Name, Lists: lists}
	for _, i := range a.Intervals {
		if i = i.Within(c.FromMS, c.ToMS); i.ToMS > i.FromMS {
			b.Intervals = append(b.Intervals, i)
		}
	}
	return b
}

// through is the moment until which the account is complete.
func (a Account) through() (ms int64, ended bool) {
	if n := len(a.Intervals); n > 0 {
		ms = a.Intervals[n-1].ToMS
	}
	return ms, a.Ended
}

// book of a customer.
type book struct {
	Customer string    `json:"customer"`
	Invoices int       `json:"invoices"`         // that were issued
	Through  time.Time `json:"through,omitzero"` // end of the last one's period
	Open     *opening  `json:"open,omitempty"`   // one that is being issued
}

// opening of an invoice, under whose number accounts and scores are cut.
type opening struct {
	Number string    `json:"number"`
	From   time.Time `json:"from,omitzero"`
	Until  time.Time `json:"until"`
}

func (d *Desk) head(customer string, o opening) billing.Head {
	return billing.Head{Number: o.Number, Site: d.cfg.Site, Customer: customer, From: o.From, Until: o.Until}
}

// Issue implements smi.Trade.
func (d *Desk) Issue(ctx context.Context, whose string, until time.Time) (billing.Invoice, error) {
	if err := rule(ctx, "issue invoices"); err != nil {
		return billing.Invoice{}, err
	}
	whose, err := customer(ctx, whose)
	if err != nil {
		return billing.Invoice{}, err
	}
	d.issuing.Lock()
	defer d.issuing.Unlock()
	if err := d.finish(ctx, whose); err != nil { // what an earlier call has begun
		return billing.Invoice{}, err
	}
	// What cannot be billed is told before anything is cut.
	draft, err := d.draft(ctx, whose, until)
	if err != nil {
		return billing.Invoice{}, err
	}
	if len(draft.Lines) == 0 && len(draft.Credits) == 0 {
		return billing.Invoice{}, fault.New(fault.WrongState, "customer %s has used nothing until %s that is on no invoice yet", whose, draft.Until.Format(time.RFC3339)).
			Try("see what was used: reservoir account usage --customer %s", whose)
	}
	b, version, err := d.bookOf(ctx, whose)
	if err != nil {
		return billing.Invoice{}, err
	}
	b.Open = &opening{Number: fmt.Sprintf("%s-%s-%06d", d.cfg.Site, whose, b.Invoices+1), From: draft.From, Until: draft.Until}
	if version == 0 {
		_, err = d.books.Create(ctx, whose, b)
	} else {
		_, err = d.books.Update(ctx, whose, b, version)
	}
	if err != nil {
		return billing.Invoice{}, err
	}
	if err := d.finish(ctx, whose); err != nil {
		return billing.Invoice{}, err
	}
	return d.invoice(ctx, whose, b.Open.Number)
}

// bookOf a customer; version 0: it has none yet.
func (d *Desk) bookOf(ctx context.Context, customer string) (book, uint64, error) {
	b, version, err := d.books.Get(ctx, customer)
	if fault.Has(err, fault.NotFound) {
		return book{Customer: customer}, 0, nil
	}
	return b, version, err
}

// finish the invoice at which a book is open, if it is. Each step may be repeated.
func (d *Desk) finish(ctx context.Context, customer string) error {
	b, version, err := d.bookOf(ctx, customer)
	if err != nil || b.Open == nil {
		return err
	}
	accounts, err := d.cut(ctx, customer, *b.Open)
	if err != nil {
		return fmt.Errorf("invoice %s: cut the accounts: %w", b.Open.Number, err)
	}
	credits, err := d.cutCredits(ctx, customer, *b.Open)
	if err != nil {
		return fmt.Errorf("invoice %s: cut the credits: %w", b.Open.Number, err)
	}
	t, err := d.tariff(ctx)
	if err != nil {
		return err
	}
	v, _, err := t.Bill(d.head(customer, *b.Open), accounts, credits, nil)
	if err != nil {
		return fault.New(fault.WrongState, "%w", err)
	}
	return d.close(ctx, b, version, v)
}

// perPart charges of an invoice are kept in one object: the store bounds an object's size.
const perPart = 2000

// close a book: the charges first, then the invoice, with the book.
func (d *Desk) close(ctx context.Context, b book, version uint64, v billing.Invoice) error {
	n := 0
	for part := range slices.Chunk(v.Charges, perPart) {
		if _, err := d.charges.Put(ctx, fmt.Sprintf("%s/%s/%06d", b.Customer, v.Number, n), part); err != nil {
			return fmt.Errorf("invoice %s: write charges: %w", v.Number, err)
		}
		n++
	}
	v.Charges = nil
	b.Invoices, b.Open = b.Invoices+1, nil
	if v.Until.After(b.Through) { // else the clock was set back
		b.Through = v.Until
	}
	if _, err := d.cfg.Store.Txn(ctx, d.invoices.OpPut(b.Customer+"/"+v.Number, v), d.books.OpUpdate(b.Customer, b, version)); err != nil {
		return fmt.Errorf("invoice %s: %w", v.Number, err)
	}
	d.say("normal", "Invoiced", b.Customer, "", "invoice %s until %s: %s %s", v.Number, v.Until.Format(time.RFC3339), v.Total.Fixed(v.Places), v.Currency)
	return nil
}

// cut every account of a customer under an invoice's number, and return what is on it.
func (d *Desk) cut(ctx context.Context, customer string, o opening) ([]billing.Account, error) {
	rows, err := d.accounts.List(ctx, customer+"/")
	if err != nil {
		return nil, err
	}
	lists, err := d.listsBy(ctx)
	if err != nil {
		return nil, err
	}
	var all []billing.Account
	for _, r := range rows {
		a, _, err := d.accounts.Modify(ctx, r.Key, func(a *Account) error {
			if a.Billed != nil && a.Billed.Invoice == o.Number {
				return nil
			}
			if c, more := a.next(o.Number, o.Until.UnixMilli()); more {
				a.Billed = &c
			}
			return nil
		})
		if fault.Has(err, fault.NotFound) {
			continue // forgotten meanwhile
		}
		if err != nil {
			return nil, err
		}
		if a.Billed != nil && a.Billed.Invoice == o.Number {
			all = append(all, a.within(*a.Billed, lists(a.ServiceID)))
		}
	}
	return all, nil
}

// listsBy returns the price lists that contracts set for a service; nil: the site's own.
func (d *Desk) listsBy(ctx context.Context) (func(service string) []billing.PriceList, error) {
	t, err := d.tariff(ctx)
	if err != nil {
		return nil, err
	}
	contracts, err := d.contracts(ctx)
	return func(service string) []billing.PriceList { return under(t, contracts[service]) }, err
}

// Draft implements smi.Trade.
func (d *Desk) Draft(ctx context.Context, whose string, until time.Time) (billing.Invoice, error) {
	whose, err := customer(ctx, whose)
	if err != nil {
		return billing.Invoice{}, err
	}
	return d.draft(ctx, whose, until)
}

func (d *Desk) draft(ctx context.Context, whose string, until time.Time) (billing.Invoice, error) {
	now := d.cfg.Now().UTC()
	switch {
	case until.IsZero():
		until = now
	case until.After(now):
		return billing.Invoice{}, fault.New(fault.Malformed, "an invoice until %s: that has not come yet", until.UTC().Format(time.RFC3339)).Try("leave --until out for all that was used so far")
	}
	t, err := d.tariff(ctx)
	if err != nil {
		return billing.Invoice{}, err
	}
	b, _, err := d.bookOf(ctx, whose)
	if err != nil {
		return billing.Invoice{}, err
	}
	o := opening{From: b.Through, Until: until.UTC()}
	rows, err := d.accounts.Values(ctx, whose+"/")
	if err != nil {
		return billing.Invoice{}, err
	}
	lists, err := d.listsBy(ctx)
	if err != nil {
		return billing.Invoice{}, err
	}
	var all []billing.Account
	for _, a := range rows {
		if c, more := a.next("", until.UnixMilli()); more {
			all = append(all, a.within(c, lists(a.ServiceID)))
			if from := time.UnixMilli(c.FromMS).UTC(); b.Invoices == 0 && (o.From.IsZero() || from.Before(o.From)) {
				o.From = from
			}
		}
	}
	credits, err := d.creditsUntil(ctx, whose, until)
	if err != nil {
		return billing.Invoice{}, err
	}
	if o.From.IsZero() {
		o.From = o.Until
	}
	v, _, err := t.Bill(d.head(whose, o), all, credits, nil)
	if err != nil {
		return v, fault.New(fault.WrongState, "%w", err).Try("add a price list for that time: reservoir account prices show --file")
	}
	return v, nil
}

// Invoices implements smi.Trade.
func (d *Desk) Invoices(ctx context.Context, whose string) ([]billing.Invoice, error) {
	of, err := prefix(ctx, whose)
	if err != nil {
		return nil, err
	}
	list, err := d.invoices.Values(ctx, of)
	slices.SortStableFunc(list, func(a, b billing.Invoice) int {
		return cmp.Or(a.Until.Compare(b.Until), cmp.Compare(a.Number, b.Number))
	})
	return list, err
}

// Invoice implements smi.Trade.
func (d *Desk) Invoice(ctx context.Context, whose, number string) (billing.Invoice, error) {
	if whose == "" && !identity.From(ctx).Is(identity.Provider) { // the number says whose it is
		list, err := d.Invoices(ctx, "")
		if err != nil {
			return billing.Invoice{}, err
		}
		for _, v := range list {
			if v.Number == number {
				whose = v.Customer
			}
		}
	}
	whose, err := customer(ctx, whose)
	if err != nil {
		return billing.Invoice{}, err
	}
	return d.invoice(ctx, whose, number)
}

func (d *Desk) invoice(ctx context.Context, customer, number string) (billing.Invoice, error) {
	v, _, err := d.invoices.Get(ctx, customer+"/"+number)
	if fault.Has(err, fault.NotFound) {
		return v, fault.New(fault.NotFound, "invoice %s of customer %s does not exist", number, customer).Try("see what there is: reservoir account invoice list --customer %s", customer)
	}
	if err != nil {
		return v, err
	}
	parts, err := d.charges.Values(ctx, customer+"/"+number+"/")
	for _, p := range parts {
		v.Charges = append(v.Charges, p...)
	}
	return v, err
}

// resume invoices that an earlier process has begun, and end the scores of services that went
// while there was none.
func (d *Desk) resume(ctx context.Context) {
	if err := d.endGone(ctx); err != nil && ctx.Err() == nil {
		d.cfg.Log.Warn("look for scores of services that are gone", "err", err)
	}
	list, err := d.books.Values(ctx, "")
	if err != nil && ctx.Err() == nil {
		d.cfg.Log.Warn("look for invoices that were begun", "err", err)
	}
	d.issuing.Lock()
	defer d.issuing.Unlock()
	for _, b := range list {
		if err := d.finish(ctx, b.Customer); err != nil && !errors.Is(err, context.Canceled) {
			d.cfg.Log.Warn("finish an invoice that was begun: the next one will try again", "customer", b.Customer, "err", err)
		}
	}
}

// charged is what a service used in a time costs, as far as it is known, and whether that is all.
func charged(t billing.Tariff, accounts []Account, lists []billing.PriceList, service string, from, until time.Time) (sum money.Amount, complete bool, err error) {
	known, late := false, false
	for _, a := range accounts {
		if a.ServiceID != service {
			continue
		}
		known = true
		if ms, ended := a.through(); !ended && ms < until.UnixMilli() {
			late = true
		}
		charges, err := t.Rate(a.within(Cut{FromMS: from.UnixMilli(), ToMS: until.UnixMilli()}, lists), from.UnixMilli(), until.UnixMilli())
		if err != nil {
			return sum, false, err
		}
		for _, c := range charges {
			sum = sum.Plus(c.Cost)
		}
	}
	return sum, known && !late, nil
}
