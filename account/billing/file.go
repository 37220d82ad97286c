package billing

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/reservoir-cloud/reservoir/account/money"
)

// Bounds of a file of price lists, which nobody who means well reaches.
const (
	maxLists = 1000
	maxPrice = 1_000_000_000 // per unit
)

// fileList is a price list as it is written.
type fileList struct {
	Name   string            `yaml:"name"`
	From   string            `yaml:"from"`
	Until  string            `yaml:"until"`
	Prices map[string]string `yaml:"prices"`
}

// ParseTariff reads the price lists that an administrator writes:
//
//	currency: EUR
//	places: 2
//	invoices: monthly             # or daily, weekly; left out: by hand
//	lists:
//	  - name: "2026"
//	    from: 2026-01-01          # UTC, or a time of RFC 3339
//	    until: 2027-01-01         # optional: must be where the next list begins
//	    prices:
//	      vee: 0.001 EUR per VEE-hour
//	      vcpu: 0.48 EUR per vCPU-day
//	      memory: 0.004           # EUR per GiB-hour
//
// An error names every mistake, each with its list and meter.
func ParseTariff(text []byte) (Tariff, error) {
	var f struct {
		Currency string     `yaml:"currency"`
		Places   *int       `yaml:"places"`
		Invoices Period     `yaml:"invoices"`
		Lists    []fileList `yaml:"lists"`
	}
	d, err := yaml.NewLoader(strings.NewReader(string(text)), yaml.WithKnownFields())
	if err == nil {
		err = d.Load(&f)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return Tariff{}, fmt.Errorf("price lists: %w", err)
	}
	t := Tariff{Currency: f.Currency, Places: 2, Invoices: f.Invoices}
	if f.Places != nil {
		t.Places = *f.Places
	}
	if len(f.Lists) > maxLists {
		return t, fmt.Errorf("price lists: %d lists: want at most %d", len(f.Lists), maxLists)
	}
	var wrong []error
	names := map[string]bool{}
	var until time.Time // of the list before
	for i, x := range f.Lists {
		what := fmt.Sprintf("price list %q", x.Name)
		if x.Name == "" {
			what = fmt.Sprintf("price list %d", i+1)
			wrong = append(wrong, fmt.Errorf("%s: has no name", what))
		}
		if names[x.Name] {
			wrong = append(wrong, fmt.Errorf("%s: there are two of that name", what))
		}
		names[x.Name] = true
		l := PriceList{Name: x.Name, Prices: map[Meter]money.Amount{}}
		if l.From, err = moment(x.From); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: from: %w", what, err))
		} else if i > 0 {
			before := f.Lists[i-1].Name
			switch {
			case !until.IsZero() && l.From.Before(until):
				wrong = append(wrong, fmt.Errorf("%s: begins %s, while %q is in force until %s: their times overlap", what, stamp(l.From), before, stamp(until)))
			case !until.IsZero() && l.From.After(until):
				wrong = append(wrong, fmt.Errorf("%s: begins %s, but %q ends %s: no price is in force in between", what, stamp(l.From), before, stamp(until)))
			case !l.From.After(t.Lists[i-1].From):
				wrong = append(wrong, fmt.Errorf("%s: begins %s, which is not after %q, that stands before it", what, stamp(l.From), before))
			}
		}
		until = time.Time{}
		if x.Until != "" {
			if until, err = moment(x.Until); err != nil {
				wrong = append(wrong, fmt.Errorf("%s: until: %w", what, err))
			} else if !until.After(l.From) {
				wrong = append(wrong, fmt.Errorf("%s: ends %s, before it begins", what, stamp(until)))
			} else if i == len(f.Lists)-1 {
				wrong = append(wrong, fmt.Errorf("%s: ends %s and no list comes after it: leave until out, or add the next one", what, stamp(until)))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(x.Prices)) {
			m := Meter(name)
			if !slices.Contains(Meters, m) {
				wrong = append(wrong, fmt.Errorf("%s: unknown meter %q: want %v", what, name, Meters))
				continue
			}
			if l.Prices[m], err = m.price(x.Prices[name], f.Currency); err != nil {
				wrong = append(wrong, fmt.Errorf("%s: price of %s: %w", what, m, err))
			}
		}
		t.Lists = append(t.Lists, l)
	}
	if len(wrong) > 0 {
		return t, errors.Join(wrong...)
	}
	return t, t.Check()
}

var pricePattern = regexp.MustCompile(`^([^\s/]+)(?:\s+([A-Za-z]{3}))?(?:\s*(?:/|per)\s*([A-Za-z]+)-(hour|day)s?)?$`)

// price of one of the meter's unit, of "0.48 EUR per vCPU-day" or just "0.02".
func (m Meter) price(text, currency string) (money.Amount, error) {
	parts := pricePattern.FindStringSubmatch(strings.TrimSpace(text))
	if parts == nil {
		return money.Amount{}, fmt.Errorf("%q: want an amount per unit such as \"0.02 %s per %s\"", text, currency, m.singular())
	}
	a, err := money.Parse(parts[1])
	switch {
	case err != nil:
		return a, err
	case a.Sign() < 0:
		return a, fmt.Errorf("%s is below nothing", parts[1])
	case a.Compare(money.Of(maxPrice, 1)) > 0:
		return a, fmt.Errorf("%s is more than %d: that cannot be meant", parts[1], maxPrice)
	case parts[2] != "" && parts[2] != currency:
		return a, fmt.Errorf("it is in %s, the price lists are in %s", parts[2], currency)
	}
	if parts[3] == "" {
		return a, nil
	}
	thing, _, _ := strings.Cut(m.Unit(), "-")
	switch unit := parts[3]; {
	case strings.EqualFold(unit, thing):
	case strings.EqualFold(unit, "TiB") && thing == "GiB":
		a = a.Over(money.Of(1024, 1))
	default:
		return a, fmt.Errorf("unknown unit %s-%s: want %s-hour or %s-day", unit, parts[4], thing, thing)
	}
	if parts[4] == "day" {
		a = a.Over(money.Of(24, 1))
	}
	return a, nil
}

// singular of the unit: "vCPU-Hour".
func (m Meter) singular() string { return strings.TrimSuffix(m.Unit(), "s") }

// moment of a date or a time.
func moment(text string) (time.Time, error) {
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, text); err == nil {
			if t.Year() < 2000 || t.Year() > 2200 {
				return t, fmt.Errorf("%q: want a year from 2000 to 2200", text)
			}
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q: want a date such as 2026-01-01, or a time such as 2026-01-01T00:00:00Z", text)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
