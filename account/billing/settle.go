package billing

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Settlement of a period between the site that ran VEEs and the one that they belong to, each
// of which kept a book about them.
type Settlement struct {
	From, Until time.Time
	Currency    string
	Places      int
	Ours        money.Amount // by our book, exact
	Theirs      money.Amount // by theirs
	Differences []Difference
}

// Difference between two books about one VEE: Ours − Theirs.
type Difference struct {
	VEE   vee.ID
	Usage account.Usage
	Cost  money.Amount
	Where []Gap // the times that the books tell differently
}

// Gap is a time, ms since 1970.
type Gap struct{ FromMS, ToMS int64 }

// Settle two books. Usage that differs is found to the millisecond and the MiB, whatever
// intervals the books keep it in.
func (t Tariff) Settle(ours, theirs []Account, from, until time.Time) (Settlement, error) {
	s := Settlement{From: from, Until: until, Currency: t.Currency, Places: t.Places}
	if err := t.Check(); err != nil {
		return s, err
	}
	a, b := from.UnixMilli(), until.UnixMilli()
	books := [2]map[vee.ID]Account{{}, {}}
	vees := map[vee.ID]bool{}
	for n, book := range [2][]Account{ours, theirs} {
		for _, x := range book {
			if _, twice := books[n][x.VEE]; twice {
				return s, fmt.Errorf("settlement: VEE %s has two accounts in one book", x.VEE)
			}
			books[n][x.VEE], vees[x.VEE] = x, true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(vees)) {
		var cost [2]money.Amount
		for n := range books {
			charges, err := t.Rate(books[n][id], a, b)
			if err != nil {
				return s, fmt.Errorf("settlement: %w", err)
			}
			for _, c := range charges {
				cost[n] = cost[n].Plus(c.Cost)
			}
		}
		s.Ours, s.Theirs = s.Ours.Plus(cost[0]), s.Theirs.Plus(cost[1])
		d := Difference{VEE: id, Cost: cost[0].Minus(cost[1])}
		x, y := books[0][id].Intervals, books[1][id].Intervals
		d.Usage = used(x, a, b).Minus(used(y, a, b))
		if d.Where = gaps(x, y, a, b); d.Usage != (account.Usage{}) || d.Cost.Sign() != 0 {
			s.Differences = append(s.Differences, d)
		}
	}
	return s, nil
}

func used(s account.Series, fromMS, toMS int64) (u account.Usage) {
	for _, i := range s {
		u = u.Plus(i.Within(fromMS, toMS).Used)
	}
	return u
}

// gaps are the times in which two series differ; those that adjoin are one.
func gaps(x, y account.Series, fromMS, toMS int64) (list []Gap) {
	ends := []int64{fromMS, toMS}
	for _, i := range slices.Concat(x, y) {
		ends = append(ends, min(max(i.FromMS, fromMS), toMS), min(max(i.ToMS, fromMS), toMS))
	}
	slices.Sort(ends)
	ends = slices.Compact(ends)
	for k := range len(ends) - 1 {
		a, b := ends[k], ends[k+1]
		if used(x, a, b) == used(y, a, b) {
			continue
		}
		if n := len(list); n > 0 && list[n-1].ToMS == a {
			list[n-1].ToMS = b
			continue
		}
		list = append(list, Gap{a, b})
	}
	return list
}

// String is the settlement for people.
func (s Settlement) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Settlement %s until %s\nour book   %s %s\ntheir book %s %s\n", s.From.UTC().Format(time.RFC3339), s.Until.UTC().Format(time.RFC3339),
		s.Ours.Fixed(s.Places), s.Currency, s.Theirs.Fixed(s.Places), s.Currency)
	if len(s.Differences) == 0 {
		b.WriteString("the books agree\n")
	}
	const stamp = "2006-01-02T15:04:05.000Z"
	for _, d := range s.Differences {
		fmt.Fprintf(&b, "VEE %s: ours − theirs is %s %s (%d ms active, %d vCPU·ms, %d MiB·ms of memory, %d MiB·ms of disk)\n", d.VEE, d.Cost.Fixed(s.Places+4), s.Currency,
			d.Usage.ActiveMS, d.Usage.VCPUMS, d.Usage.MemoryMiBMS, d.Usage.DiskMiBMS)
		for _, g := range d.Where {
			fmt.Fprintf(&b, "  from %s until %s\n", time.UnixMilli(g.FromMS).UTC().Format(stamp), time.UnixMilli(g.ToMS).UTC().Format(stamp))
		}
	}
	return b.String()
}
