package trade

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// budget of a customer as it is stored.
type budget struct {
	Customer string           `json:"customer"`
	Limit    money.Amount     `json:"limit"`
	Policy   smi.BudgetPolicy `json:"policy"`
}

// month is the calendar month, UTC, of a moment.
func month(at time.Time) (from, until time.Time) {
	at = at.UTC()
	from = time.Date(at.Year(), at.Month(), 1, 0, 0, 0, 0, time.UTC)
	return from, from.AddDate(0, 1, 0)
}

// spent by a customer in the month of a moment, as far as its VEEs have told; what they have
// used since is added at the rate of the last interval, so that a budget is not passed because
// messages come seldom.
func (d *Desk) spent(ctx context.Context, customer string, at time.Time) (sum, hour money.Amount, err error) {
	b, err := d.bill(ctx, customer)
	if err != nil {
		return sum, hour, err
	}
	from, _ := month(at)
	for _, a := range b.accounts {
		lists := b.lists(a.ServiceID)
		cost := func(begin, end int64, of Account) (c money.Amount, err error) {
			charges, err := b.tariff.Rate(of.within(Cut{FromMS: begin, ToMS: end}, lists), begin, end)
			for _, x := range charges {
				c = c.Plus(x.Cost)
			}
			return c, err
		}
		known, err := cost(from.UnixMilli(), at.UnixMilli(), a)
		if err != nil {
			return sum, hour, err
		}
		sum = sum.Plus(known)
		n := len(a.Intervals)
		if a.Ended || n == 0 {
			continue
		}
		last := a.Intervals[n-1]
		c, err := cost(last.FromMS, last.ToMS, a)
		if err != nil {
			return sum, hour, err
		}
		rate := c.Over(money.Of(last.ToMS-last.FromMS, 1)) // of a ms
		hour = hour.Plus(rate.Times(money.Of(time.Hour.Milliseconds(), 1)))
		if since := at.UnixMilli() - max(last.ToMS, from.UnixMilli()); since > 0 {
			sum = sum.Plus(rate.Times(money.Of(since, 1)))
		}
	}
	return sum, hour, nil
}

// afford refuses a deployment that its customer's budget does not last for: what is left must
// be enough for an hour of what runs and of what is new.
func (d *Desk) afford(ctx context.Context, a Admission) error {
	b, _, err := d.budgets.Get(ctx, a.Quote.Customer)
	if fault.Has(err, fault.NotFound) || err == nil && b.Policy == smi.Warn {
		return nil
	}
	if err != nil {
		return err
	}
	now := d.cfg.Now()
	sum, hour, err := d.spent(ctx, b.Customer, now)
	if err != nil {
		return err
	}
	t, err := d.tariff(ctx)
	if err != nil {
		return err
	}
	list, _ := inForce(t, now)
	more := hourly(list, a.Quote.Sizes, func(component string) int { return max(0, a.Desired[component]-a.Running[component]) })
	if more.Sign() == 0 || sum.Plus(hour).Plus(more).Compare(b.Limit) <= 0 {
		return nil
	}
	_, next := month(now)
	return fault.New(fault.QuotaExceeded, "the budget of customer %s is %s %s in this month: %s is spent, and an hour would cost %s with what is asked for", b.Customer,
		b.Limit.Fixed(t.Places), t.Currency, sum.Fixed(t.Places), hour.Plus(more).Fixed(t.Places+2)).
		Try("delete what is not needed, wait until %s, or ask the site's operator for more: reservoir account budget set %s AMOUNT", next.Format(time.DateOnly), b.Customer)
}

// AffordScale refuses a component's growth that its customer's budget does not last for.
func (d *Desk) AffordScale(ctx context.Context, customer, component string, size vee.Descriptor, more int) error {
	return d.afford(ctx, Admission{Quote: Quote{Customer: customer, Sizes: map[string]vee.Descriptor{component: size}}, Desired: map[string]int{component: more}})
}

// watchBudgets warns of budgets that are nearly or wholly used up, and shrinks services where
// that is the policy.
func (d *Desk) watchBudgets(ctx context.Context) {
	list, err := d.budgets.Values(ctx, "")
	if err != nil && ctx.Err() == nil {
		d.cfg.Log.Warn("look at budgets", "err", err)
	}
	for _, b := range list {
		if err := d.watchBudget(ctx, b); err != nil && ctx.Err() == nil {
			d.cfg.Log.Warn("look at a budget", "customer", b.Customer, "err", err)
		}
	}
}

func (d *Desk) watchBudget(ctx context.Context, b budget) error {
	now := d.cfg.Now()
	sum, _, err := d.spent(ctx, b.Customer, now)
	if err != nil {
		return err
	}
	from, _ := month(now)
	said, reason := "", ""
	switch {
	case sum.Compare(b.Limit) >= 0:
		said, reason = "is used up", "BudgetUsedUp"
	case sum.Compare(b.Limit.Times(money.Of(4, 5))) >= 0:
		said, reason = "is used up to 80 %", "BudgetNearlyUsedUp"
	}
	if key := from.Format("2006-01 ") + b.Limit.String() + said; said != "" && d.warned[b.Customer] != key {
		d.warned[b.Customer] = key
		d.say("warning", reason, b.Customer, "", "the budget of %s of customer %s %s: %s is spent in this month", b.Limit, b.Customer, said, sum.Fixed(4))
	}
	if b.Policy != smi.Shrink || sum.Compare(b.Limit) < 0 {
		return nil
	}
	services, err := d.cfg.Services.List(ctx, b.Customer)
	if err != nil {
		return err
	}
	for _, s := range services {
		for _, c := range s.Components {
			if s.Phase == smi.Deleting || c.Desired <= c.Min {
				continue
			}
			if _, err := d.cfg.Services.Scale(ctx, s.Customer, s.Name, c.Name, c.Min); err != nil {
				return err
			}
			d.say("warning", "Shrunk", s.Customer, s.Name, "%s from %d to %d replicas, since the budget of customer %s is used up", c.Name, c.Desired, c.Min, b.Customer)
		}
	}
	return nil
}

// Budgets implements smi.Trade.
func (d *Desk) Budgets(ctx context.Context, whose string) ([]smi.Budget, error) {
	of, err := prefix(ctx, whose)
	if err != nil {
		return nil, err
	}
	rows, err := d.budgets.List(ctx, of[:max(0, len(of)-1)])
	if err != nil {
		return nil, err
	}
	var list []smi.Budget
	for _, r := range rows {
		if of != "" && r.Key+"/" != of {
			continue
		}
		b := smi.Budget{Customer: r.Key, Limit: r.Value.Limit, Policy: r.Value.Policy, Version: r.Version}
		t, err := d.tariff(ctx)
		if err == nil {
			b.Currency = t.Currency
			b.Spent, b.Hour, err = d.spent(ctx, r.Key, d.cfg.Now())
		}
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b smi.Budget) int { return cmp.Compare(a.Customer, b.Customer) })
	return list, nil
}

// SetBudget implements smi.Trade.
func (d *Desk) SetBudget(ctx context.Context, b smi.Budget) (smi.Budget, error) {
	if err := rule(ctx, "set budgets"); err != nil {
		return b, err
	}
	if b.Policy == "" {
		b.Policy = smi.Refuse
	}
	switch {
	case !vee.ValidName(b.Customer):
		return b, fault.New(fault.Malformed, "customer %q: want a DNS label such as \"acme\"", b.Customer)
	case b.Limit.Sign() < 0:
		return b, fault.New(fault.Malformed, "a budget of %s: want nothing or more", b.Limit)
	case !slices.Contains([]smi.BudgetPolicy{smi.Warn, smi.Refuse, smi.Shrink}, b.Policy):
		return b, fault.New(fault.Malformed, "policy %q: want warn, refuse or shrink", b.Policy)
	}
	if _, err := d.tariff(ctx); err != nil {
		return b, err // nothing costs anything, in no currency
	}
	if _, err := d.budgets.Put(ctx, b.Customer, budget{b.Customer, b.Limit, b.Policy}); err != nil {
		return b, err
	}
	list, err := d.Budgets(ctx, b.Customer)
	if err != nil || len(list) == 0 {
		return b, err
	}
	return list[0], nil
}

// DeleteBudget implements smi.Trade.
func (d *Desk) DeleteBudget(ctx context.Context, customer string) error {
	if err := rule(ctx, "take budgets away"); err != nil {
		return err
	}
	err := d.budgets.Delete(ctx, customer, 0)
	if fault.Has(err, fault.NotFound) {
		return fault.New(fault.NotFound, "customer %q has no budget", customer).Try("see who has: reservoir account budget list")
	}
	return err
}
