// Package billing makes money of usage: price lists, charges for what VEEs have used,
// and invoices with the credits of service level agreements. It is pure, and exact: charges are
// rational amounts, which are rounded once, on the invoice.
package billing

import (
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/money"
)

const hourMS = 3_600_000

// Meter is something that is charged.
type Meter string

// Meters.
const (
	VEEs   Meter = "vee"    // time in which a VEE is ACTIVE or PAUSED
	VCPUs  Meter = "vcpu"   // vCPUs that are held in that time
	Memory Meter = "memory" // memory that is held in that time
	Disk   Meter = "disk"   // disk that is allocated
)

// Meters in the order of an invoice.
var Meters = []Meter{VEEs, VCPUs, Memory, Disk}

// Unit that a price is for, in the plural that FOCUS wants.
func (m Meter) Unit() string {
	switch m {
	case VEEs:
		return "VEE-Hours"
	case VCPUs:
		return "vCPU-Hours"
	}
	return "GiB-Hours"
}

// Of reads the meter: whole ms, or MiB·ms.
func (m Meter) Of(u account.Usage) int64 {
	switch m {
	case VEEs:
		return u.ActiveMS + u.PausedMS
	case VCPUs:
		return u.VCPUMS
	case Memory:
		return u.MemoryMiBMS
	case Disk:
		return u.DiskMiBMS
	}
	return 0
}

// Quantity in units, exactly.
func (m Meter) Quantity(raw int64) money.Amount {
	if m == Memory || m == Disk {
		return money.Of(raw, 1024*hourMS)
	}
	return money.Of(raw, hourMS)
}

// PriceList is in force from a moment until the next list is.
type PriceList struct {
	Name   string                 `json:"name"`
	From   time.Time              `json:"from"`
	Prices map[Meter]money.Amount `json:"prices"` // per Unit; what is not in it is free
}

// Tariff is all price lists of a site, in the order of time, in one currency.
type Tariff struct {
	Currency string      `json:"currency"` // ISO 4217
	Places   int         `json:"places"`   // decimal places of amounts on invoices
	Invoices Period      `json:"invoices,omitempty"`
	Lists    []PriceList `json:"lists"`
}

var currency = regexp.MustCompile(`^[A-Z]{3}$`)

// Check says what no bill can be made by.
func (t Tariff) Check() error {
	if !currency.MatchString(t.Currency) || t.Places < 0 || t.Places > 9 || len(t.Lists) == 0 {
		return fmt.Errorf("tariff in %q with %d decimal places and %d price lists: want an ISO 4217 currency, 0 to 9 places and one list at least", t.Currency, t.Places, len(t.Lists))
	}
	if err := t.Invoices.Check(); err != nil {
		return err
	}
	for i, l := range t.Lists {
		if i > 0 && !l.From.After(t.Lists[i-1].From) {
			return fmt.Errorf("price list %s: is not in force later than %s, which stands before it", l.Name, t.Lists[i-1].Name)
		}
		for m, p := range l.Prices {
			if !slices.Contains(Meters, m) || p.Sign() < 0 {
				return fmt.Errorf("price list %s: %s per %q: want a price of %v, not below nothing", l.Name, p, m, Meters)
			}
		}
	}
	return nil
}

// Term is a time in which a contract sets the prices.
type Term struct {
	From, Until time.Time // zero Until: until the end of time
	List        PriceList // its own From does not matter
}

// Under contracts, of which at most one is in force at a time, in their order: the price
// lists that hold, the tariff's own where there is no contract.
func (t Tariff) Under(terms []Term) []PriceList {
	lists := slices.Clone(t.Lists)
	for _, c := range terms {
		var out []PriceList
		after := -1 // the tariff's list that holds when the contract is over
		for i, l := range lists {
			switch {
			case l.From.Before(c.From):
				out = append(out, l)
				after = i
			case !c.Until.IsZero() && !l.From.After(c.Until):
				after = i
			}
		}
		fixed := c.List
		fixed.From = c.From
		out = append(out, fixed)
		if !c.Until.IsZero() {
			if after >= 0 {
				back := lists[after]
				back.From = c.Until
				out = append(out, back)
			}
			for _, l := range lists {
				if l.From.After(c.Until) {
					out = append(out, l)
				}
			}
		}
		lists = out
	}
	return lists
}

// span in which the list at i is in force, ms.
func (t Tariff) span(i int) (from, to int64) {
	from, to = t.Lists[i].From.UnixMilli(), 1<<62
	if i+1 < len(t.Lists) {
		to = t.Lists[i+1].From.UnixMilli()
	}
	return from, to
}
