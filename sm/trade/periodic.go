package trade

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/account/billing"
)

// lateUsage is how long an invoice waits, after its period, for accounts that are not complete;
// what comes later still is on the next one.
const lateUsage = 24 * time.Hour

// periodic is what is remembered of invoices that are issued by themselves; all of it may be lost.
type periodic struct {
	period billing.Period
	end    time.Time         // of the last period: every customer has its invoice until then
	said   map[string]string // by customer: why it has none
}

// issueDue issues the invoices of all periods that are over, if the operator has them issued so. It
// goes by what is there: what is used and on no invoice yet, and how far a customer's book has
// come. So it may be called at any time, and after any crash; a period has one invoice at most.
func (d *Desk) issueDue(ctx context.Context) {
	t, err := d.tariff(ctx)
	if err != nil || t.Invoices == billing.Never {
		d.periodic = periodic{}
		return
	}
	now := d.cfg.Now().UTC()
	end := last(t.Invoices, now)
	if d.periodic.period == t.Invoices && d.periodic.end.Equal(end) {
		return
	}
	customers, err := d.customers(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.cfg.Log.Warn("look for invoices that are due", "err", err)
		}
		return
	}
	all := true
	said := map[string]string{}
	for _, c := range customers {
		done, err := d.billPeriods(ctx, c, t.Invoices, now)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if said[c] = err.Error(); said[c] != d.periodic.said[c] {
				d.say("warning", "NotInvoiced", c, "", "its %s invoice: %v; it is tried again", t.Invoices, err)
			}
		}
		all = all && done && err == nil
	}
	d.periodic.said = said
	if all {
		d.periodic.period, d.periodic.end = t.Invoices, end
	}
}

// last end of a period that is not after now.
func last(p billing.Period, now time.Time) time.Time {
	end := p.After(now.AddDate(0, 0, -40))
	for next := p.After(end); !next.After(now); next = p.After(end) {
		end = next
	}
	return end
}

// customers that have used something, in order.
func (d *Desk) customers(ctx context.Context) (list []string, err error) {
	rows, err := d.accounts.List(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("list the accounts of all customers: %w", err)
	}
	for _, r := range rows { // by key
		of, _, _ := strings.Cut(r.Key, "/")
		if len(list) == 0 || list[len(list)-1] != of {
			list = append(list, of)
		}
	}
	return list, nil
}

// billPeriods of a customer, one after the other; done: no invoice waits for late usage.
func (d *Desk) billPeriods(ctx context.Context, customer string, p billing.Period, now time.Time) (done bool, err error) {
	if err := d.finishAlone(ctx, customer); err != nil {
		return false, err
	}
	b, _, err := d.bookOf(ctx, customer)
	if err != nil {
		return false, err
	}
	rows, err := d.accounts.Values(ctx, customer+"/")
	if err != nil {
		return false, fmt.Errorf("read the accounts of customer %s: %w", customer, err)
	}
	first, some := unbilled(rows, now)
	if !some {
		return true, nil
	}
	if first.Before(b.Through) { // it was late for its own period
		first = b.Through
	}
	for end := p.After(first); !end.After(now); end = p.After(end) {
		draft, err := d.draft(ctx, customer, end)
		if err != nil {
			return false, err
		}
		if len(draft.Lines) == 0 && len(draft.Credits) == 0 {
			continue
		}
		if !complete(rows, end) && now.Sub(end) < lateUsage {
			return false, nil
		}
		if _, err := d.Issue(ctx, customer, end); err != nil {
			return false, err
		}
	}
	return true, nil
}

// finishAlone what an earlier process has begun.
func (d *Desk) finishAlone(ctx context.Context, customer string) error {
	d.issuing.Lock()
	defer d.issuing.Unlock()
	return d.finish(ctx, customer)
}

// unbilled usage before now begins there.
func unbilled(rows []Account, now time.Time) (first time.Time, some bool) {
	for _, a := range rows {
		c, more := a.next("", now.UnixMilli())
		if at := time.UnixMilli(c.FromMS).UTC(); more && (!some || at.Before(first)) {
			first, some = at, true
		}
	}
	return first, some
}

// complete accounts have all that was used until then.
func complete(rows []Account, until time.Time) bool {
	for _, a := range rows {
		if ms, ended := a.through(); !ended && ms < until.UnixMilli() {
			return false
		}
	}
	return true
}
