package billing

import (
	"fmt"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Account of one VEE.
type Account struct {
	Service   string         `json:"service"`
	VEE       vee.ID         `json:"vee"`
	Name      string         `json:"name"` // component and replica
	Intervals account.Series `json:"intervals"`
	// Lists that hold for it by contract, instead of the tariff's own (Tariff.Under).
	Lists []PriceList `json:"lists,omitempty"`
}

// Charge for what one VEE used of one meter at one price.
type Charge struct {
	Service string       `json:"service"`
	VEE     vee.ID       `json:"vee"`
	Name    string       `json:"name"`
	Meter   Meter        `json:"meter"`
	FromMS  int64        `json:"fromMs"` // of the first usage
	ToMS    int64        `json:"toMs"`   // of the last
	Raw     int64        `json:"raw"`    // ms or MiB·ms
	List    string       `json:"list"`   // name of the price list
	Price   money.Amount `json:"price"`  // per Meter.Unit
	Cost    money.Amount `json:"cost"`   // exact
}

// Rate what was used from one moment until before another. Usage is cut where one price list
// follows another. Errors: intervals that overlap, so that something would be billed twice,
// and usage of a time in which no list is in force.
func (t Tariff) Rate(a Account, fromMS, toMS int64) ([]Charge, error) {
	for k, i := range a.Intervals {
		if !i.Valid() || k > 0 && i.FromMS < a.Intervals[k-1].ToMS {
			return nil, fmt.Errorf("usage of VEE %s from %d to %d ms: overlaps what came before, or is less than nothing", a.VEE, i.FromMS, i.ToMS)
		}
	}
	if a.Lists != nil {
		t.Lists = a.Lists
	}
	first, _ := t.span(0)
	var all []Charge
	for _, i := range a.Intervals {
		if early := i.Within(fromMS, min(toMS, first)); early.Used.BilledMS() > 0 {
			return nil, fmt.Errorf("usage of VEE %s at %d ms: the first price list, %s, is in force from %d ms on", a.VEE, early.FromMS, t.Lists[0].Name, first)
		}
	}
	for n, list := range t.Lists {
		begin, end := t.span(n)
		for _, m := range Meters {
			price := list.Prices[m]
			if price.Sign() == 0 {
				continue
			}
			c := Charge{Service: a.Service, VEE: a.VEE, Name: a.Name, Meter: m, List: list.Name, Price: price}
			for _, i := range a.Intervals {
				i = i.Within(max(fromMS, begin), min(toMS, end))
				raw := m.Of(i.Used)
				if raw == 0 {
					continue
				}
				if c.Raw == 0 {
					c.FromMS = i.FromMS
				}
				c.Raw, c.ToMS = c.Raw+raw, i.ToMS
			}
			if c.Raw > 0 {
				c.Cost = m.Quantity(c.Raw).Times(price)
				all = append(all, c)
			}
		}
	}
	return all, nil
}
