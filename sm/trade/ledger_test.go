package trade

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/sm/sla"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

func vee1() vee.Descriptor { return vee.Descriptor{VCPUs: 1, Memory: 128 * vee.MiB} }

func TestInvoice(t *testing.T) {
	m := open(t, nil)
	_, err := m.desk.Issue(operator, "acme", time.Time{})
	wants(t, "without prices", err, fault.WrongState, "no price list")
	m.price(t, prices)
	_, err = m.desk.Issue(operator, "acme", time.Time{})
	wants(t, "of nothing", err, fault.WrongState, "has used nothing")
	_, err = m.desk.Issue(acme, "acme", time.Time{})
	wants(t, "by oneself", err, fault.Denied, "may not issue invoices")
	o, err := m.desk.Offer(acme, web(""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Deploy(acme, web("")); err != nil {
		t.Fatal(err)
	}
	m.price(t, prices+"  - {name: dear, from: 2026-03-04T08:00:00Z, prices: {vcpu: 600}}\n")
	m.at = begin.Add(4 * time.Hour)
	if _, err := m.desk.Accept(acme, o.ID); err != nil { // at 9:00, at the old price
		t.Fatal(err)
	}
	m.use(t, "alpha.s-1", "alpha.web1", begin, begin.Add(5*time.Hour), true)
	m.at = begin.Add(6 * time.Hour)
	_, err = m.desk.Issue(operator, "acme", m.at.Add(time.Second))
	wants(t, "of the future", err, fault.Malformed, "has not come yet")
	// 3 h at 66, 1 h at 600, 1 h by contract at 66.
	draft, err := m.desk.Draft(acme, "", time.Time{})
	if err != nil || draft.Total.String() != "864" {
		t.Fatalf("%s, %v", draft, err)
	}
	first, err := m.desk.Issue(operator, "acme", begin.Add(3*time.Hour))
	if err != nil || first.Total.String() != "198" || first.Number != "alpha-acme-000001" || !first.From.Equal(begin) {
		t.Fatalf("%s, %v", first, err)
	}
	_, err = m.desk.Issue(operator, "acme", begin.Add(3*time.Hour))
	wants(t, "again", err, fault.WrongState, "has used nothing until 2026-03-04T08:00:00Z that is on no invoice yet")
	second, err := m.desk.Issue(operator, "acme", time.Time{})
	if err != nil || second.Total.String() != "666" || !second.From.Equal(first.Until) {
		t.Fatalf("%s, %v", second, err)
	}
	list, err := m.desk.Invoices(acme, "")
	if err != nil || len(list) != 2 || list[0].Charges != nil {
		t.Errorf("%+v, %v", list, err)
	}
	whole, err := m.desk.Invoice(acme, "", first.Number)
	if err != nil || len(whole.Charges) != 2 || whole.String() != first.String() {
		t.Errorf("%+v, %v", whole, err)
	}
	if v, err := m.desk.Invoice(operator, "", first.Number); err != nil || v.Number != first.Number {
		t.Errorf("an operator need not say whose it is: %v", err)
	}
	_, err = m.desk.Invoice(rival, "acme", first.Number)
	wants(t, "another's", err, fault.Denied, "may not see the accounts")
	_, err = m.desk.Invoice(rival, "", first.Number)
	wants(t, "not one's own", err, fault.NotFound, "does not exist")
}

var errCrash = fault.New(fault.Unavailable, "the process dies")

// TestNoSecondIsLostOrBilledTwice: VEEs live, change and are told of late, twice, or from the
// beginning; invoices are issued at any time by a clock that steps back and forth; any write
// may be the last of its process, done or not. In the end each millisecond is on exactly one
// invoice, at its price, and each penalty that is due is credited once.
func TestNoSecondIsLostOrBilledTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		deadly := false // the next writes may kill
		m := open(t, func(bool) error {
			if deadly && rapid.IntRange(0, 5).Draw(t, "dies") == 0 {
				return errCrash
			}
			return nil
		})
		m.price(t, prices+"  - {name: dear, from: 2026-03-04T06:00:00Z, prices: {vcpu: 600, vee: 1}}\n")
		lives := drawLives(t, 1)
		owed := m.drawScore(t)
		survive := func(what string, err error) bool {
			switch {
			case err == nil || fault.Has(err, fault.WrongState):
				return true
			case errors.Is(err, errCrash) || fault.Has(err, fault.Unavailable) || fault.Has(err, fault.Conflict) || fault.Has(err, fault.Exists):
				m.restart()
				if rapid.Bool().Draw(t, "resumed") {
					m.desk.resume(operator)
				}
			default:
				t.Fatalf("%s: %v", what, err)
			}
			return false
		}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			deadly = rapid.Bool().Draw(t, "deadly")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0, 1:
				l := lives[rapid.IntRange(0, len(lives)-1).Draw(t, "VEE")]
				for !survive("account", l.tell(t, m)) {
				}
			case 2:
				m.at = begin.Add(time.Duration(rapid.Int64Range(0, 10*3_600_000).Draw(t, "clock")) * time.Millisecond)
				_, err := m.desk.Issue(operator, "acme", time.Time{})
				survive("invoice", err)
			}
		}
		deadly = false
		m.restart()
		m.desk.resume(operator)
		for _, l := range lives {
			for l.told < l.end() {
				if err := l.tell(t, m); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.at = begin.AddDate(0, 1, 0)
		if _, err := m.desk.Issue(operator, "acme", time.Time{}); err != nil && !fault.Has(err, fault.WrongState) {
			t.Fatal(err)
		}
		m.balance(t, lives, owed)
	})
}

// balance what is on all invoices with what was used and what was owed.
func (m *market) balance(t *rapid.T, lives []*life, owed int) {
	list, err := m.desk.Invoices(operator, "acme")
	if err != nil {
		t.Fatal(err)
	}
	used, cost := map[vee.ID]int64{}, money.Amount{}
	credited := map[string]int{}
	numbers := map[string]bool{}
	for _, v := range list {
		numbers[v.Number] = true
		v, err = m.desk.Invoice(operator, "acme", v.Number)
		if err != nil {
			t.Fatal(err)
		}
		var lines money.Amount
		for _, l := range v.Lines {
			lines = lines.Plus(l.Amount)
		}
		if lines.Compare(v.Subtotal) != 0 || v.Total.Sign() < 0 {
			t.Fatalf("lines sum up to %s:\n%s", lines, v)
		}
		for _, c := range v.Charges {
			cost = cost.Plus(c.Cost)
			if c.Meter == billing.VCPUs {
				used[c.VEE] += c.Raw
			}
		}
		for _, c := range v.Credits {
			credited[c.Reason]++
		}
	}
	for n := range list {
		if !numbers[fmt.Sprintf("alpha-acme-%06d", n+1)] {
			t.Fatalf("of %d invoices, none has number %d: %v", len(list), n+1, numbers)
		}
	}
	tariff, err := m.desk.tariff(operator)
	if err != nil {
		t.Fatal(err)
	}
	var want money.Amount
	for _, l := range lives {
		whole := l.whole()
		var sum int64
		for _, i := range whole {
			sum += i.Used.VCPUMS
		}
		if used[l.id] != sum {
			t.Fatalf("VEE %s: %d vCPU·ms are on %d invoices, it used %d", l.id, used[l.id], len(list), sum)
		}
		charges, err := tariff.Rate(billing.Account{VEE: l.id, Intervals: whole}, 0, 1<<60)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range charges {
			want = want.Plus(c.Cost)
		}
	}
	if cost.Compare(want) != 0 {
		t.Fatalf("charged %s, used %s", cost, want)
	}
	if len(credited) != owed {
		t.Fatalf("%d penalties are due, credited: %v", owed, credited)
	}
	for reason, n := range credited {
		if n != 1 {
			t.Fatalf("credited %d times: %s", n, reason)
		}
	}
}

// life of a VEE: rates, one after the other, and how far it was told.
type life struct {
	id    vee.ID
	born  int64 // ms
	ms    []int64
	vcpus []int64
	told  int64
	last  account.Interval // that was answered
	next  account.Interval // that was sent and not answered
}

// drawLives of VEEs, of some hours or, at a larger scale, days.
func drawLives(t *rapid.T, scale int64) (list []*life) {
	for n := range rapid.IntRange(1, 3).Draw(t, "VEEs") {
		l := &life{id: vee.ID(fmt.Sprintf("alpha.vee%d", n)), born: begin.UnixMilli() + rapid.Int64Range(0, 3_600_000).Draw(t, "born")}
		for range rapid.IntRange(1, 5).Draw(t, "segments") {
			l.ms = append(l.ms, scale*rapid.Int64Range(1, 2*3_600_000).Draw(t, "ms"))
			l.vcpus = append(l.vcpus, rapid.Int64Range(0, 4).Draw(t, "vcpus"))
		}
		l.told = l.born
		list = append(list, l)
	}
	return list
}

func (l *life) end() int64 {
	end := l.born
	for _, ms := range l.ms {
		end += ms
	}
	return end
}

// used from birth until a moment.
func (l *life) used(until int64) (u account.Usage) {
	at := l.born
	for k, ms := range l.ms {
		n := min(max(until-at, 0), ms)
		u.ActiveMS += n
		u.VCPUMS += n * l.vcpus[k]
		at += ms
	}
	return u
}

func (l *life) whole() (s account.Series) {
	at := l.born
	for _, ms := range l.ms {
		s = append(s, account.Interval{FromMS: at, ToMS: at + ms, Used: l.used(at + ms).Minus(l.used(at))})
		at += ms
	}
	return s
}

// tell what comes next as the VEE Manager does, which cuts at each change of rate; or the last
// message again; or all from the beginning, as after a lost registration. What was not answered
// is sent again as it was.
func (l *life) tell(t *rapid.T, m *market) error {
	message := func(from, to int64) account.Interval {
		return account.Interval{FromMS: from, ToMS: to, Used: l.used(to).Minus(l.used(from))}
	}
	if l.last.ToMS > 0 && rapid.IntRange(0, 3).Draw(t, "again") == 0 {
		return m.told("alpha.s-1", string(l.id), l.last, false)
	}
	if l.told == l.end() {
		return nil
	}
	if l.next.ToMS == 0 {
		change := l.born // next change of rate
		for _, ms := range l.ms {
			if change += ms; change > l.told {
				break
			}
		}
		from := l.told
		if rapid.IntRange(0, 9).Draw(t, "anew") == 0 {
			from = l.born
		}
		l.next = message(from, rapid.Int64Range(l.told+1, change).Draw(t, "through"))
	}
	if err := m.told("alpha.s-1", string(l.id), l.next, l.next.ToMS == l.end()); err != nil {
		return err
	}
	l.last, l.told, l.next = l.next, l.next.ToMS, account.Interval{}
	return nil
}

// drawScore of a service under a contract: windows, some of them violated. It returns how many
// penalties are due.
func (m *market) drawScore(t *rapid.T) (owed int) {
	s := score{Customer: "acme", Service: "shop", ServiceID: "alpha.s-1", Contract: "alpha.o-1", Since: begin}
	p := smi.Promise{Name: "availability", Kind: availability, WindowMS: 600_000, Percent: 99, Penalty: "1 EUR"}
	for n := range rapid.IntRange(0, 5).Draw(t, "windows") {
		start := begin.Add(time.Duration(n) * 10 * time.Minute)
		broken := time.Duration(rapid.IntRange(0, 1).Draw(t, "violated")) * time.Minute
		s.Past = append(s.Past, past{Promise: p, Contract: "alpha.o-1", Window: &sla.Window{Start: start, End: start.Add(10 * time.Minute), Kept: 10*time.Minute - broken, Broken: broken, Budget: 6 * time.Second}})
		if broken > 0 {
			owed++
		}
	}
	if _, err := m.desk.scores.Create(operator, "acme/alpha.s-1", s); err != nil {
		t.Fatal(err)
	}
	return owed
}
