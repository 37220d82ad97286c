package billing

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/vee"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, []byte(got)) {
		t.Errorf("%s differs (go test -update rewrites it); now:\n%s", file, got)
	}
}

func amount(s string) money.Amount {
	a, err := money.Parse(s)
	if err != nil {
		panic(err)
	}
	return a
}

func date(day, hour int) time.Time { return time.Date(2026, 1, day, hour, 0, 0, 0, time.UTC) }

var tariff = Tariff{Currency: "EUR", Places: 2, Lists: []PriceList{
	{Name: "2025", From: date(1, 0).AddDate(-1, 0, 0), Prices: map[Meter]money.Amount{VCPUs: amount("0.02"), Memory: amount("0.004"), Disk: amount("0.0001")}},
	{Name: "2026-01-15", From: date(15, 0), Prices: map[Meter]money.Amount{VEEs: amount("0.001"), VCPUs: amount("0.018"), Memory: amount("0.005"), Disk: amount("0.0001")}},
}}

// ran is the usage of a running VEE.
func ran(from, to time.Time, vcpus, mib int64) account.Interval {
	ms := to.Sub(from).Milliseconds()
	return account.Interval{FromMS: from.UnixMilli(), ToMS: to.UnixMilli(), Used: account.Usage{ActiveMS: ms, VCPUMS: ms * vcpus, MemoryMiBMS: ms * mib, DiskMiBMS: ms * 2048}}
}

func accounts() []Account {
	return []Account{
		{Service: "shop", VEE: "alpha.web1aaaaaa", Name: "web-1", Intervals: account.Series{ran(date(3, 0), date(20, 7), 2, 1536)}},
		{Service: "shop", VEE: "alpha.web2aaaaaa", Name: "web-2", Intervals: account.Series{ran(date(5, 0), date(5, 1), 1, 512), ran(date(5, 1).Add(time.Second), date(6, 0), 2, 512)}},
		{Service: "batch", VEE: "alpha.job1aaaaaa", Name: "job-1", Intervals: account.Series{ran(date(31, 23), date(32, 1), 1, 256)}},
	}
}

var january = Head{Number: "2026-001", Site: "alpha", Customer: "acme", From: date(1, 0), Until: date(32, 0)}

func TestInvoice(t *testing.T) {
	v, billed, err := tariff.Bill(january, accounts(), []Credit{
		{Service: "shop", Reason: "available 99.7 % of the window, 99.9 % was promised", Due: amount("1.725")},
		{Service: "batch", Reason: "back after 5m, 2m was promised", Due: amount("1")},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "invoice.txt", v.String())
	february := Head{Number: "2026-002", Site: "alpha", Customer: "acme", From: date(32, 0), Until: date(60, 0)}
	v, _, err = tariff.Bill(february, accounts(), nil, billed)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "next.txt", v.String())
}

func TestWhatIsRefused(t *testing.T) {
	twice := accounts()[:1]
	twice[0].Intervals = append(twice[0].Intervals, ran(date(20, 6), date(21, 0), 1, 1))
	early := accounts()[:1]
	early[0].Intervals = account.Series{ran(date(1, 0).AddDate(-2, 0, 0), date(3, 0), 1, 1)}
	for name, list := range map[string][]Account{"overlapping intervals": twice, "no price list": early, "two accounts": append(accounts(), accounts()[0])} {
		if v, billed, err := tariff.Bill(january, list, nil, nil); err == nil || billed != nil {
			t.Errorf("%s: %s, %v", name, v, billed)
		}
	}
	for name, bad := range map[string]Tariff{
		"currency": {Lists: tariff.Lists}, "no list": {Currency: "EUR"},
		"order":    {Currency: "EUR", Lists: []PriceList{tariff.Lists[1], tariff.Lists[0]}},
		"negative": {Currency: "EUR", Lists: []PriceList{{Prices: map[Meter]money.Amount{Disk: amount("-1")}}}},
		"meter":    {Currency: "EUR", Lists: []PriceList{{Prices: map[Meter]money.Amount{"air": amount("1")}}}},
	} {
		if bad.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// drawAccounts of VEEs that live at most 60 days from the first of January.
func drawAccounts(t *rapid.T) (list []Account) {
	for n := range rapid.IntRange(1, 4).Draw(t, "VEEs") {
		a := Account{Service: rapid.SampledFrom([]string{"one", "two"}).Draw(t, "service"), VEE: vee.ID("alpha." + string(rune('a'+n))), Name: "x"}
		at := date(1, 0).UnixMilli()
		for range rapid.IntRange(0, 5).Draw(t, "intervals") {
			from := at + rapid.Int64Range(0, 1).Draw(t, "pause")*rapid.Int64Range(1, 86_400_000).Draw(t, "pause ms")
			at = from + rapid.Int64Range(1, 12*86_400_000).Draw(t, "ms")
			i := account.Interval{FromMS: from, ToMS: at, Used: account.Usage{ActiveMS: at - from}}
			i.Used.VCPUMS = rapid.Int64Range(0, 1<<40).Draw(t, "vcpu")
			i.Used.MemoryMiBMS = rapid.Int64Range(0, 1<<50).Draw(t, "memory")
			i.Used.DiskMiBMS = rapid.Int64Range(0, 1<<50).Draw(t, "disk")
			a.Intervals = append(a.Intervals, i)
		}
		list = append(list, a)
	}
	return list
}

func cost(t *rapid.T, list []Account, from, to int64) (sum money.Amount) {
	for _, a := range list {
		charges, err := tariff.Rate(a, from, to)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range charges {
			sum = sum.Plus(c.Cost)
		}
	}
	return sum
}

// However time is cut into parts, their charges sum up to the charge for the whole, exactly.
func TestPartsSumUpToTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := drawAccounts(t)
		from, end := date(1, 0).UnixMilli(), date(70, 0).UnixMilli()
		var sum money.Amount
		for at := from; at < end; {
			next := min(end, at+rapid.Int64Range(86_400_000/2, 30*86_400_000).Draw(t, "part"))
			sum, at = sum.Plus(cost(t, list, at, next)), next
		}
		if whole := cost(t, list, from, end); sum.Compare(whole) != 0 {
			t.Fatalf("parts %s, whole %s", sum, whole)
		}
	})
}

// Invoices at any times, some of usage that comes late: each millisecond is on exactly one.
func TestNothingIsBilledTwiceOrNever(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := drawAccounts(t)
		known := make([]Account, len(all))
		for i, a := range all {
			known[i] = a
			known[i].Intervals = nil
		}
		var billed Billed
		var sum money.Amount
		bill := func(until time.Time) {
			v, next, err := tariff.Bill(Head{Number: "n", Until: until}, known, nil, billed)
			if err != nil {
				t.Fatal(err)
			}
			var lines []money.Amount
			for _, l := range v.Lines {
				lines = append(lines, l.Amount)
			}
			if got := money.Sum(lines); got.Compare(v.Subtotal) != 0 || v.Total.Compare(v.Subtotal) != 0 {
				t.Fatalf("lines %s, subtotal %s, total %s", got, v.Subtotal, v.Total)
			}
			for _, c := range v.Charges {
				sum = sum.Plus(c.Cost)
			}
			billed = next
		}
		until := date(1, 0)
		for range rapid.IntRange(1, 8).Draw(t, "invoices") {
			for i := range known {
				n := len(known[i].Intervals)
				more := rapid.IntRange(0, len(all[i].Intervals)-n).Draw(t, "come in")
				known[i].Intervals = all[i].Intervals[:n+more]
			}
			until = until.Add(time.Duration(rapid.Int64Range(-10*86_400_000, 20*86_400_000).Draw(t, "period")) * time.Millisecond)
			bill(until)
		}
		copy(known, all)
		bill(date(400, 0))
		bill(date(400, 0))
		if whole := cost(t, all, date(1, 0).UnixMilli(), date(400, 0).UnixMilli()); sum.Compare(whole) != 0 {
			t.Fatalf("on invoices %s, used %s", sum, whole)
		}
	})
}

func TestCreditsNeverExceedCharges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var due []Credit
		for range rapid.IntRange(0, 5).Draw(t, "credits") {
			due = append(due, Credit{Service: rapid.SampledFrom([]string{"one", "two", "none"}).Draw(t, "of"), Due: money.Of(rapid.Int64Range(-5, 100_000).Draw(t, "due"), 700)})
		}
		v, _, err := tariff.Bill(Head{Until: date(400, 0)}, drawAccounts(t), due, nil)
		if err != nil {
			t.Fatal(err)
		}
		if v.Total.Sign() < 0 || v.Total.Plus(v.Credited).Compare(v.Subtotal) != 0 {
			t.Fatalf("%s", v)
		}
		for _, c := range v.Credits {
			if c.Amount.Sign() < 0 || c.Amount.Compare(c.Due.Round(2)) > 0 && c.Amount.Sign() > 0 || c.Service == "none" && c.Amount.Sign() != 0 {
				t.Fatalf("%+v", c)
			}
		}
	})
}
