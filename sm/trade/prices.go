package trade

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/smi"
)

// tariff is the site's price lists as they are stored.
type tariff struct {
	File    string         `json:"file"`
	Tariff  billing.Tariff `json:"tariff"`
	Changed time.Time      `json:"changed"`
}

const current = "current"

// tariff that is in force. Errors: WrongState where there is none.
func (d *Desk) tariff(ctx context.Context) (billing.Tariff, error) {
	t, _, err := d.tariffs.Get(ctx, current)
	if fault.Has(err, fault.NotFound) {
		return t.Tariff, fault.New(fault.WrongState, "site %s has no price list", d.cfg.Site).Try("its operator sets one: reservoir account prices set FILE")
	}
	return t.Tariff, err
}

// Prices implements smi.Trade.
func (d *Desk) Prices(ctx context.Context) (smi.Prices, error) {
	if !identity.From(ctx).Is(identity.Operator, identity.Provider, identity.Auditor, identity.SiteRole) {
		return smi.Prices{}, fault.New(fault.Denied, "role %q may not see prices", identity.From(ctx).Role)
	}
	t, version, err := d.tariffs.Get(ctx, current)
	if fault.Has(err, fault.NotFound) {
		return smi.Prices{}, fault.New(fault.NotFound, "site %s has no price list", d.cfg.Site).Try("its operator sets one: reservoir account prices set FILE")
	}
	return smi.Prices{File: t.File, Tariff: t.Tariff, Changed: t.Changed, Version: version}, err
}

// SetPrices implements smi.Trade.
func (d *Desk) SetPrices(ctx context.Context, file string, version uint64) (smi.Prices, error) {
	if err := rule(ctx, "set prices"); err != nil {
		return smi.Prices{}, err
	}
	t, err := billing.ParseTariff([]byte(file))
	if err != nil {
		return smi.Prices{}, fault.New(fault.Malformed, "%w", err).Try("correct these places; what a file looks like: docs/billing.md")
	}
	next := tariff{File: file, Tariff: t, Changed: d.cfg.Now()}
	old, at, err := d.tariffs.Get(ctx, current)
	switch {
	case fault.Has(err, fault.NotFound):
		at, err = d.tariffs.Create(ctx, current, next)
	case err != nil:
	case version != 0 && version != at:
		err = fault.New(fault.Conflict, "the price lists have version %d and not %d", at, version)
	default:
		if err = follows(old.Tariff, t, next.Changed); err == nil {
			at, err = d.tariffs.Update(ctx, current, next, at)
		}
	}
	return smi.Prices{File: file, Tariff: t, Changed: next.Changed, Version: at}, err
}

// follows refuses price lists that change what others were told of a time that has begun.
func follows(old, t billing.Tariff, now time.Time) error {
	if old.Currency != t.Currency {
		return fault.New(fault.WrongState, "the price lists are in %s: another currency such as %s is another site's", old.Currency, t.Currency)
	}
	for i, l := range t.Lists {
		if !l.From.After(now) && l.From.After(old.Lists[0].From) && !known(old, l) {
			return fault.New(fault.WrongState, "price list %s: is in force since %s and was not known until now", l.Name, l.From.Format(time.RFC3339)).
				Try("let the list begin later than now")
		}
		if i == 0 && l.From.After(old.Lists[0].From) {
			return fault.New(fault.WrongState, "price list %s: the lists begin with it; %s, of %s, was in force before and is missing", l.Name, old.Lists[0].Name, old.Lists[0].From.Format(time.RFC3339)).
				Try("add lists to those that there are: reservoir account prices show --file")
		}
	}
	for _, l := range old.Lists {
		if !l.From.After(now) && !known(t, l) {
			return fault.New(fault.WrongState, "price list %s: is in force since %s and cannot be changed", l.Name, l.From.Format(time.RFC3339)).
				Try("leave it as it is and add one that begins later: reservoir account prices show --file")
		}
	}
	return nil
}

// known reports whether t has that list.
func known(t billing.Tariff, l billing.PriceList) bool {
	for _, x := range t.Lists {
		if x.Name != l.Name || !x.From.Equal(l.From) {
			continue
		}
		for _, m := range billing.Meters {
			if x.Prices[m].Compare(l.Prices[m]) != 0 {
				return false
			}
		}
		return true
	}
	return false
}
