package trade

import (
	"github.com/reservoir-cloud/reservoir/account"
)

// A service that goes from one site to another is accounted for by each for its own time: the
// moment belongs to the later one, so that there is neither a gap nor an overlap.

// ours is the part of i that is this site's to account for.
func (a *Account) ours(i account.Interval) account.Interval {
	from, to := i.FromMS, i.ToMS
	if a.SinceMS > 0 {
		from = max(from, a.SinceMS)
	}
	if a.UntilMS > 0 {
		to = min(to, a.UntilMS)
	}
	if from == i.FromMS && to == i.ToMS {
		return i
	}
	return i.Within(from, max(from, to))
}

// CloseAt gives everything from a moment on to another site, and reports whether that changed
// anything. What is on an invoice stays: then it is closed at the invoice's end, and there is
// something to credit.
func (a *Account) CloseAt(ms int64) (changed bool) {
	if a.Billed != nil {
		ms = max(ms, a.Billed.ToMS)
	}
	if a.UntilMS > 0 && a.UntilMS <= ms {
		return false
	}
	a.UntilMS, a.Ended = ms, true
	var kept account.Series
	for _, i := range a.Intervals {
		if i = a.ours(i); i.ToMS > i.FromMS {
			kept = append(kept, i)
		}
	}
	a.Intervals = kept
	return true
}
