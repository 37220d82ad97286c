package trade

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/account/billing"
)

const daily = "invoices: daily\n" + prices

func TestInvoicesOfPeriods(t *testing.T) {
	m := open(t, nil)
	m.price(t, prices)
	if _, err := m.Deploy(acme, web("")); err != nil {
		t.Fatal(err)
	}
	day := func(n, hour int) time.Time { return time.Date(2026, 3, n, hour, 0, 0, 0, time.UTC) }
	m.use(t, "alpha.s-1", "alpha.web1", begin, day(5, 1), false)
	bill := func(at time.Time, want ...string) {
		t.Helper()
		m.at = at
		m.desk.issueDue(m.desk.asSite(t.Context()))
		list, err := m.desk.Invoices(operator, "acme")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range list {
			got = append(got, v.From.Format("02 15h")+" to "+v.Until.Format("02 15h")+" "+v.Total.String())
		}
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("on %s: %v, want %v", at.Format(time.RFC3339), got, want)
		}
	}
	bill(day(5, 1)) // by hand
	m.price(t, daily)
	first := "04 05h to 05 00h 1254" // 19 hours at 66
	bill(day(4, 23))
	bill(day(5, 1), first)
	bill(day(5, 2), first)
	m.restart()
	bill(day(5, 3), first)
	bill(day(6, 1), first) // the VEE has not told of the end of the day yet
	m.use(t, "alpha.s-1", "alpha.web1", day(5, 1), day(6, 0), false)
	second := "05 00h to 06 00h 1584"
	bill(day(6, 2), first, second)
	bill(day(5, 12), first, second) // a clock that was set back
	bill(day(7, 23), first, second) // nothing is known, and much is waited for
	m.use(t, "alpha.s-1", "alpha.web1", day(6, 0), day(6, 5), false)
	third := "06 00h to 07 00h 330"
	bill(day(7, 23), first, second)
	bill(day(8, 0), first, second, third) // a day late: what is known
	// What comes later is on the next one, and days without usage have none.
	m.use(t, "alpha.s-1", "alpha.web1", day(6, 5), day(6, 6), true)
	bill(day(8, 1), first, second, third)
	late := "07 00h to 08 00h 66"
	bill(day(9, 0), first, second, third, late)
	m.use(t, "alpha.s-1", "alpha.web2", day(12, 3), day(13, 3), true)
	m.price(t, strings.Replace(daily, "daily", "weekly", 1))
	bill(day(15, 23), first, second, third, late)
	bill(day(16, 0), first, second, third, late, "08 00h to 16 00h 1584")
	if n := len(m.reasons("Invoiced")); n != 5 {
		t.Errorf("%d invoices were told of", n)
	}
}

func (m *market) reasons(reason string) (list []string) {
	for _, e := range m.events {
		if e.Reason == reason {
			list = append(list, e.Message)
		}
	}
	return list
}

// What there is no price for is said once, and billed when there is one.
func TestInvoiceThatCannotBe(t *testing.T) {
	m := open(t, nil)
	m.price(t, strings.Replace(daily, "2026-01-01", "2026-03-05", 1))
	m.use(t, "alpha.s-1", "alpha.web1", begin, begin.Add(time.Hour), true)
	m.at = begin.AddDate(0, 0, 2)
	for range 3 {
		m.desk.issueDue(m.desk.asSite(t.Context()))
	}
	if said := m.reasons("NotInvoiced"); len(said) != 1 {
		t.Errorf("said %q", said)
	}
	m.price(t, "currency: EUR\ninvoices: daily\nlists:\n  - {name: before, from: 2026-01-01, prices: {vcpu: 1}}\n  - {name: \"2026\", from: 2026-03-05, prices: {vee: 6, vcpu: 60}}\n")
	m.desk.issueDue(m.desk.asSite(t.Context()))
	if said := m.reasons("Invoiced"); len(said) != 1 {
		t.Errorf("said %q", said)
	}
}

// TestPeriodsAreBilledOnce: invoices are issued by themselves, whenever that is looked at, by a
// clock that steps back and forth, and any write may be the last of its process, done or not. In
// the end each millisecond is on exactly one invoice, and each period has one at most.
func TestPeriodsAreBilledOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		deadly, died := false, false
		m := open(t, func(bool) error {
			if deadly && rapid.IntRange(0, 5).Draw(t, "dies") == 0 {
				died = true
				return errCrash
			}
			return nil
		})
		m.price(t, daily+"  - {name: dear, from: 2026-03-06T06:00:00Z, prices: {vcpu: 600, vee: 1}}\n")
		lives := drawLives(t, 12)
		owed := m.drawScore(t)
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			deadly = rapid.Bool().Draw(t, "deadly")
			if rapid.IntRange(0, 2).Draw(t, "what") > 0 {
				l := lives[rapid.IntRange(0, len(lives)-1).Draw(t, "VEE")]
				for l.tell(t, m) != nil {
					m.restart()
				}
			} else {
				m.at = begin.Add(time.Duration(rapid.Int64Range(0, 9*24*3_600_000).Draw(t, "clock")) * time.Millisecond)
				m.desk.issueDue(operator)
			}
			if died {
				died = false
				m.restart()
				if rapid.Bool().Draw(t, "resumed") {
					m.desk.resume(operator)
				}
			}
		}
		deadly = false
		for _, l := range lives {
			for l.told < l.end() {
				if err := l.tell(t, m); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.at = begin.AddDate(0, 1, 0)
		m.restart()
		m.desk.issueDue(operator)
		m.balance(t, lives, owed)
		list, err := m.desk.Invoices(operator, "acme")
		if err != nil {
			t.Fatal(err)
		}
		ends := map[time.Time]bool{}
		for i, v := range list {
			if ends[v.Until] || !billing.Daily.After(v.Until.Add(-1)).Equal(v.Until) || i > 0 && v.From.Before(list[i-1].Until) {
				t.Fatalf("invoice %s from %s until %s, after %v", v.Number, v.From, v.Until, ends)
			}
			ends[v.Until] = true
		}
	})
}
