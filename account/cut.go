package account

import "math/bits"

// Cut i at a moment, which belongs to the second part. What was used is split by time, in
// whole units: it is exact where the rate was the same throughout, as it is in what a Series
// has made one, and the parts always sum up to i.
func (i Interval) Cut(ms int64) (before, after Interval) {
	ms = min(max(ms, i.FromMS), i.ToMS)
	before, after = Interval{FromMS: i.FromMS, ToMS: ms}, Interval{FromMS: ms, ToMS: i.ToMS}
	if ms > i.FromMS {
		before.Used = i.Used.share(ms-i.FromMS, i.ToMS-i.FromMS)
	}
	after.Used = i.Used.Minus(before.Used)
	return before, after
}

// Within is the part of i from one moment until before another. Parts that adjoin sum up to
// the part that they make together.
func (i Interval) Within(fromMS, toMS int64) Interval {
	before, _ := i.Cut(fromMS)
	through, _ := i.Cut(max(fromMS, toMS))
	return Interval{before.ToMS, through.ToMS, through.Used.Minus(before.Used)}
}

// share n/d of what was used, rounded down. 0 <= n <= d.
func (u Usage) share(n, d int64) Usage {
	part := func(v int64) int64 {
		hi, lo := bits.Mul64(uint64(v), uint64(n))
		q, _ := bits.Div64(hi, lo, uint64(d))
		return int64(q)
	}
	return Usage{
		part(u.InitialMS), part(u.DefinedMS), part(u.ActiveMS), part(u.PausedMS), part(u.SuspendedMS),
		part(u.VCPUMS), part(u.MemoryMiBMS), part(u.DiskMiBMS),
	}
}
