package account

import (
	"math"
	"math/bits"
)

// Interval of a VEE's life, and what it used in it.
type Interval struct {
	FromMS int64 `json:"fromMs" doc:"ms since 1970 UTC"`
	ToMS   int64 `json:"toMs" doc:"its end, which is not part of it"`
	Used   Usage `json:"used"`
}

// Series of intervals in the order of time, none of which overlap.
type Series []Interval

// maxIntervals of a series. Of more, the oldest two are made one: their sums stay.
const maxIntervals = 512

// Add an interval that a meter has told. Where it adjoins the last one and the rate is the
// same, the two become one: usage is proportional to time there, so nothing is lost, and a
// VEE that runs for a year is one interval. What the series has already is not added again,
// whether it comes a second time or as the begin of a longer interval. It reports false, and
// adds nothing, where i begins amid what the series has and ends after it.
func (s Series) Add(i Interval) (Series, bool) { return s.AddBilled(i, math.MinInt64) }

// AddBilled is Add to a series of which all before a moment is on an invoice: it keeps that
// moment, so that the rest can still be told from it exactly.
func (s Series) AddBilled(i Interval, throughMS int64) (Series, bool) {
	n := len(s)
	if i.ToMS <= i.FromMS || n > 0 && i.ToMS <= s[n-1].ToMS {
		return s, true
	}
	if n > 0 && i.FromMS < s[n-1].ToMS {
		k := n - 1
		for i.Used = i.Used.Minus(s[k].Used); k > 0 && s[k].FromMS > i.FromMS; {
			k--
			i.Used = i.Used.Minus(s[k].Used)
		}
		if s[k].FromMS != i.FromMS || i.Used.negative() {
			return s, false
		}
		i.FromMS = s[n-1].ToMS
	}
	out := append(Series{}, s...) // others may look at s
	if n > 0 && s[n-1].ToMS == i.FromMS && s[n-1].sameRate(i) {
		out[n-1] = s[n-1].with(i)
		return out, true
	}
	if out = append(out, i); len(out) > maxIntervals {
		k := 0
		for out[k].FromMS < throughMS && throughMS < out[k+1].ToMS {
			k++
		}
		out[k+1] = out[k].with(out[k+1])
		out = append(out[:k], out[k+1:]...)
	}
	return out, true
}

// Total of all intervals.
func (s Series) Total() (u Usage) {
	for _, i := range s {
		u = u.Plus(i.Used)
	}
	return u
}

// with the next one.
func (i Interval) with(next Interval) Interval {
	return Interval{i.FromMS, next.ToMS, i.Used.Plus(next.Used)}
}

// sameRate compares usages per time without dividing, in 128 bits.
func (i Interval) sameRate(o Interval) bool {
	a, b := i.Used.Fields(), o.Used.Fields()
	for k := range a {
		hi, lo := bits.Mul64(uint64(a[k]), uint64(o.ToMS-o.FromMS))
		hi2, lo2 := bits.Mul64(uint64(b[k]), uint64(i.ToMS-i.FromMS))
		if hi != hi2 || lo != lo2 {
			return false
		}
	}
	return true
}

// Fields of u in their order.
func (u Usage) Fields() [8]int64 {
	return [8]int64{u.InitialMS, u.DefinedMS, u.ActiveMS, u.PausedMS, u.SuspendedMS, u.VCPUMS, u.MemoryMiBMS, u.DiskMiBMS}
}

func (u Usage) negative() bool {
	for _, v := range u.Fields() {
		if v < 0 {
			return true
		}
	}
	return false
}

// Valid reports whether i can be what a VEE has used.
func (i Interval) Valid() bool { return i.FromMS <= i.ToMS && !i.Used.negative() }
