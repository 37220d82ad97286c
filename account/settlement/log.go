// Package settlement is money between two sites, of which one (the lender) runs VEEs of the
// other (the borrower) under framework agreements. Each keeps a book: for every VEE a log of
// what it was from when on. It is pure: no clock, no I/O.
//
//   - log.go: the log of a VEE, and what of a partner's word is believed.
//   - line.go: what a log comes to in a time, under one agreement.
//   - compare.go: where two books differ, to the millisecond and the MiB.
//   - bill.go: what it costs by the agreement, with the credits for what was promised.
//
// Every time is by the lender's clock, in ms since 1970 UTC: so two sites that saw the same
// have the same book, however their clocks differ.
package settlement

import (
	"math"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Event is what a VEE was from a moment on, until the next event of its log.
type Event struct {
	AtMS int64 `json:"atMs"`
	// State; empty: nobody knows, and nothing is counted.
	State vee.State `json:"state,omitempty"`
	// Counted is what it is counted as in that state.
	vmi.Counted
}

// Log of a VEE at a lender, in the order of time. Logs are never changed in place.
type Log []Event

// Sight is what a look at a lender is worth: what is new in it happened after the look before
// and before its answer came. By the lender's clock, as far as that is known.
type Sight struct {
	AfterMS, BeforeMS int64
	// Most that we have asked for; nil: the teller's own word is enough.
	Most *account.Size
}

// Own is the sight that a lender has of itself.
func Own() Sight { return Sight{AfterMS: math.MinInt64, BeforeMS: math.MaxInt64} }

// Hear appends what the lender tells that is new: the steps of its VEE after the one that was
// heard last (zero: none was). What cannot have been so is not believed, and put as near as
// can be: a time out of sight at its edge, a size as it was asked for. It returns the last step
// that was heard, and how many of them were not believed.
//
// A clock that was set back turns no log back: what it tells takes no time until the hour has
// come again. (Nor does it turn back an account.Meter.)
func (l Log) Hear(steps []vmi.Step, heard vmi.Step, s Sight) (out Log, last vmi.Step, doubted int) {
	out, last = append(Log{}, l...), heard
	for _, step := range after(steps, heard) {
		last = vmi.Step{At: step.At, State: step.State, Phase: step.Phase, Counted: step.Counted}
		if step.Counted == nil {
			continue
		}
		e := Event{AtMS: step.At.UnixMilli(), State: step.State, Counted: *step.Counted}
		believed := e
		believed.AtMS = max(min(e.AtMS, s.BeforeMS), s.AfterMS)
		z := e.Size
		if s.Most != nil && !z.Within(*s.Most) && (len(out) == 0 || !z.Within(out[len(out)-1].Size)) || !z.Valid() {
			if believed.Size = (account.Size{}); s.Most != nil {
				believed.Size = *s.Most
			}
		}
		if believed != e {
			doubted++
		}
		out = out.add(believed)
	}
	return out, last, doubted
}

// after the step that was heard, by its place: a clock may have been set back since. Where it
// is not among them any more, those with a later time.
func after(steps []vmi.Step, heard vmi.Step) []vmi.Step {
	if heard.At.IsZero() {
		return steps
	}
	for i := len(steps) - 1; i >= 0; i-- {
		if Same(steps[i], heard) {
			return steps[i+1:]
		}
	}
	for i, s := range steps {
		if s.At.After(heard.At) {
			return steps[i:]
		}
	}
	return nil
}

// Same reports whether two steps are one. There may be several at one moment.
func Same(a, b vmi.Step) bool {
	return a.At.Equal(b.At) && a.State == b.State && a.Phase == b.Phase && (a.Counted == nil) == (b.Counted == nil) && (a.Counted == nil || *a.Counted == *b.Counted)
}

// add e, unless nothing changed.
func (l Log) add(e Event) Log {
	if n := len(l); n > 0 {
		was := l[n-1]
		e.AtMS = max(e.AtMS, was.AtMS)
		if was.AtMS = e.AtMS; was == e {
			return l
		}
	}
	return append(l, e)
}

// Gone ends the log of a VEE that the lender does not show any more: when it was seen last is
// all that is known.
func (l Log) Gone(atMS int64) Log {
	if l.Ended() {
		return l
	}
	e := l[len(l)-1]
	e.AtMS, e.State, e.Wanted = atMS, vee.Destroyed, false
	return append(Log{}, l...).add(e)
}

// Skip leaves out the hours that the lender's clock has jumped over: they never were.
func (l Log) Skip(fromMS, toMS int64) Log {
	if l.Ended() || toMS <= fromMS {
		return l
	}
	e := l[len(l)-1]
	unknown, again := e, e
	unknown.AtMS, unknown.State, unknown.Wanted = fromMS, "", false
	again.AtMS = toMS
	return append(Log{}, l...).add(unknown).add(again)
}

// Ended reports whether the VEE is not at the lender.
func (l Log) Ended() bool { return len(l) == 0 || l[len(l)-1].State == vee.Destroyed }
