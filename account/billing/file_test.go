package billing

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/account/money"
)

const priceFile = `# what a site asks
currency: EUR
invoices: monthly
lists:
  - name: "2025"
    from: 2025-01-01
    until: 2026-01-15
    prices: {vcpu: 0.02, memory: 0.004 EUR, disk: 0.1024 EUR per TiB-hour}
  - name: "2026"
    from: 2026-01-15T00:00:00Z
    prices:
      vee: 0.001 EUR per VEE-hour
      vcpu: 0.432 EUR per vCPU-day
      memory: 0.005/GiB-hour
`

func TestPriceFile(t *testing.T) {
	got, err := ParseTariff([]byte(priceFile))
	if err != nil {
		t.Fatal(err)
	}
	if got.Currency != "EUR" || got.Invoices != Monthly || got.Places != 2 || len(got.Lists) != 2 || !got.Lists[1].From.Equal(date(15, 0)) {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct {
		list int
		m    Meter
		want string
	}{{0, VCPUs, "0.02"}, {0, Memory, "0.004"}, {0, Disk, "0.0001"}, {1, VEEs, "0.001"}, {1, VCPUs, "0.018"}, {1, Memory, "0.005"}, {1, Disk, "0"}} {
		if p := got.Lists[c.list].Prices[c.m]; p.String() != c.want {
			t.Errorf("list %d: %s per %s of %s, want %s", c.list, p, c.m.Unit(), c.m, c.want)
		}
	}
}

func TestBadPriceFiles(t *testing.T) {
	list := func(rest string) string { return "currency: EUR\nlists:\n  - name: a\n    from: 2026-01-01\n" + rest }
	second := func(rest string) string {
		return list("    until: 2026-06-01\n    prices: {vcpu: 1}\n  - name: b\n    prices: {vcpu: 1}\n" + rest)
	}
	for name, c := range map[string]struct{ text, says string }{
		"nothing":        {"", "want an ISO 4217 currency"},
		"no YAML":        {"currency: [", "price lists: "},
		"unknown field":  {"curency: EUR\n", "curency"},
		"currency":       {"currency: euro\nlists: [{name: a, from: 2026-01-01}]", "want an ISO 4217 currency"},
		"period":         {"currency: EUR\ninvoices: fortnightly\nlists: [{name: a, from: 2026-01-01}]", `invoices "fortnightly": want daily, weekly or monthly`},
		"no lists":       {"currency: EUR\n", "one list at least"},
		"negative":       {list("    prices: {vcpu: -0.1}\n"), `price list "a": price of vcpu: -0.1 is below nothing`},
		"NaN":            {list("    prices: {vcpu: .nan}\n"), `price list "a": price of vcpu: amount ".nan": want a number`},
		"infinite":       {list("    prices: {vcpu: Inf}\n"), `amount "Inf": want a number`},
		"exponent":       {list("    prices: {vcpu: 1e300}\n"), `amount "1e300"`},
		"enormous":       {list("    prices: {vcpu: 1000000001}\n"), "more than 1000000000: that cannot be meant"},
		"very enormous":  {list("    prices: {vcpu: " + strings.Repeat("9", 5000) + "}\n"), "want a number"},
		"unknown meter":  {list("    prices: {gpu: 1}\n"), `unknown meter "gpu": want [vee vcpu memory disk]`},
		"unknown unit":   {list("    prices: {memory: 1 EUR per acre-hour}\n"), "unknown unit acre-hour: want GiB-hour or GiB-day"},
		"unknown time":   {list("    prices: {memory: 1 EUR per GiB-fortnight}\n"), "want an amount per unit"},
		"other money":    {list("    prices: {memory: 1 USD per GiB-hour}\n"), "it is in USD, the price lists are in EUR"},
		"no name":        {"currency: EUR\nlists: [{from: 2026-01-01}]", "price list 1: has no name"},
		"two names":      {second("    from: 2026-06-01\n  - {name: a, from: 2027-01-01}\n"), `price list "a": there are two of that name`},
		"no begin":       {"currency: EUR\nlists: [{name: a}]", `price list "a": from: ""`},
		"far":            {"currency: EUR\nlists: [{name: a, from: 9999-01-01}]", "want a year from 2000 to 2200"},
		"overlap":        {second("    from: 2026-05-31\n"), `"b": begins 2026-05-31T00:00:00Z, while "a" is in force until 2026-06-01T00:00:00Z: their times overlap`},
		"gap":            {second("    from: 2026-06-02\n"), "no price is in force in between"},
		"order":          {list("  - {name: b, from: 2025-01-01}\n"), `not after "a"`},
		"backwards":      {list("    until: 2025-01-01\n"), "before it begins"},
		"ends":           {list("    until: 2027-01-01\n"), "no list comes after it"},
		"too many lists": {"currency: EUR\nlists: [" + strings.Repeat("{name: a},", maxLists+1) + "]", "want at most 1000"},
	} {
		if _, err := ParseTariff([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	_, err := ParseTariff([]byte(list("    prices: {vcpu: -1, gpu: 2}\n")))
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("not every mistake is told: %v", err)
	}
}

func FuzzPriceFile(f *testing.F) {
	f.Add([]byte(priceFile))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := ParseTariff(text)
		if err == nil && got.Check() != nil {
			t.Errorf("taken, though %v", got.Check())
		}
	})
}

// Under contracts each moment has the price of the contract, or that of the list.
func TestPricesUnderContracts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := Tariff{Currency: "EUR"}
		day := 1
		for n := range rapid.IntRange(1, 4).Draw(t, "lists") {
			base.Lists = append(base.Lists, PriceList{Name: "list", From: date(day, 0), Prices: map[Meter]money.Amount{VCPUs: money.Of(int64(n+1), 1)}})
			day += rapid.IntRange(1, 9).Draw(t, "days")
		}
		var terms []Term
		day = rapid.IntRange(1, 9).Draw(t, "first")
		for n := range rapid.IntRange(0, 3).Draw(t, "contracts") {
			c := Term{From: date(day, 0), List: PriceList{Name: "contract", Prices: map[Meter]money.Amount{VCPUs: money.Of(int64(100+n), 1)}}}
			day += rapid.IntRange(1, 9).Draw(t, "length")
			if rapid.IntRange(0, 4).Draw(t, "open") > 0 {
				c.Until = date(day, 0)
				day += rapid.IntRange(0, 3).Draw(t, "pause")
			}
			terms = append(terms, c)
			if c.Until.IsZero() {
				break
			}
		}
		lists := base.Under(terms)
		for i := 1; i < len(lists); i++ {
			if !lists[i].From.After(lists[i-1].From) {
				t.Fatalf("%+v", lists)
			}
		}
		for d := -5; d < 60; d++ {
			at := date(d, 1)
			want := priceAt(base.Lists, at)
			for _, c := range terms {
				if !at.Before(c.From) && (c.Until.IsZero() || at.Before(c.Until)) {
					want = c.List.Prices[VCPUs]
				}
			}
			if got := priceAt(lists, at); got.Compare(want) != 0 {
				t.Fatalf("day %d: %s, want %s", d, got, want)
			}
		}
	})
}

func priceAt(lists []PriceList, at time.Time) (p money.Amount) {
	for _, l := range lists {
		if !l.From.After(at) {
			p = l.Prices[VCPUs]
		}
	}
	return p
}
