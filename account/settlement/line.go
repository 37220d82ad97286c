package settlement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Line of a book: a time in which nothing changed about a VEE.
type Line struct {
	VEE  vee.ID `json:"vee"`
	Name string `json:"name,omitempty"` // of the VEE, component and replica
	account.Interval
	// OutMS of it the VEE was to run, had run before, and did not.
	OutMS int64 `json:"outMs,omitempty"`
}

// Outage is counted beside what is charged: it is what credits are given for.
const Outage billing.Meter = "outage"

// meters that two books are compared by.
var meters = append(slices.Clone(billing.Meters), Outage)

// of reads a meter.
func (l Line) of(m billing.Meter) int64 {
	if m == Outage {
		return l.OutMS
	}
	return m.Of(l.Used)
}

// Lines of a VEE's log from one moment until before another, under one agreement. What it was
// last it is until then.
func (l Log) Lines(id vee.ID, name, agreement string, fromMS, untilMS int64) (lines []Line) {
	ran := false // since it was to
	for k, e := range l {
		end := untilMS
		if k+1 < len(l) {
			end = min(end, l[k+1].AtMS)
		}
		begin := max(e.AtMS, fromMS)
		ran = e.Wanted && (ran || e.State == vee.Active)
		if begin >= end || e.Agreement != agreement || e.State == "" || e.State == vee.Destroyed {
			continue
		}
		line := Line{VEE: id, Name: name, Interval: account.Interval{FromMS: begin, ToMS: end, Used: account.Meter{AtMS: begin}.To(end, e.Size.Rate(e.State)).Used}}
		if ran && e.State != vee.Active {
			line.OutMS = end - begin
		}
		lines = append(lines, line)
	}
	return lines
}

// Order of lines in a book.
func Order(a, b Line) int {
	return cmp.Or(strings.Compare(string(a.VEE), string(b.VEE)), cmp.Compare(a.FromMS, b.FromMS))
}

// Clip lines to what was before a moment.
func Clip(lines []Line, untilMS int64) (out []Line) {
	for _, l := range lines {
		if l.FromMS >= untilMS {
			continue
		}
		if l.ToMS > untilMS {
			out = append(out, l.within(l.FromMS, untilMS))
		} else {
			out = append(out, l)
		}
	}
	return out
}

// within is the part of l in a time that lies in it.
func (l Line) within(fromMS, toMS int64) Line {
	out := account.Interval{FromMS: l.FromMS, ToMS: l.ToMS, Used: account.Usage{ActiveMS: l.OutMS}}
	l.OutMS = out.Within(fromMS, toMS).Used.ActiveMS
	l.Interval = l.Within(fromMS, toMS)
	return l
}

// most that a VEE can use of anything in a month: sums of it overflow nothing.
const most = 1 << 60

// Check lines that a partner tells: of VEEs of the borrower, in order, none over another,
// within a time, none less than nothing.
func Check(lines []Line, borrower string, fromMS, untilMS int64) error {
	var sum [8]int64
	for k, l := range lines {
		bad := func(why string) error {
			return fmt.Errorf("line %d, VEE %s from %d until %d ms: %s", k+1, l.VEE, l.FromMS, l.ToMS, why)
		}
		id, err := vee.ParseID(string(l.VEE))
		switch {
		case err != nil:
			return bad(err.Error())
		case id.Site() != borrower:
			return bad("it is no VEE of " + borrower)
		case len(l.Name) > 255:
			return bad("its name is too long")
		case l.FromMS < fromMS || l.ToMS > untilMS || l.FromMS >= l.ToMS:
			return bad("it is not in the time that was asked for")
		case k > 0 && (Order(lines[k-1], l) >= 0 || lines[k-1].VEE == l.VEE && lines[k-1].ToMS > l.FromMS):
			return bad("it overlaps the one before")
		case !l.Valid() || l.OutMS < 0 || l.OutMS > l.ToMS-l.FromMS:
			return bad("it has used less than nothing")
		}
		if k > 0 && lines[k-1].VEE != l.VEE {
			sum = [8]int64{}
		}
		for n, v := range l.Used.Fields() {
			if v > most || sum[n]+v > most {
				return bad("no VEE can use so much")
			}
			sum[n] += v
		}
	}
	return nil
}
