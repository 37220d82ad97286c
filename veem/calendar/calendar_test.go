package calendar

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
)

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func hour(n int) time.Time { return start.Add(time.Duration(n) * time.Hour) }

// naive looks at every hour of a day, one by one.
func naive(all []Booking, from, until int) (peak vee.Resources) {
	for h := from; h < until; h++ {
		var sum vee.Resources
		for _, b := range all {
			if !hour(h).Before(b.From) && (b.Until.IsZero() || hour(h).Before(b.Until)) {
				sum = sum.Plus(b.Takes)
			}
		}
		peak.MilliCPU, peak.Memory, peak.Disk = max(peak.MilliCPU, sum.MilliCPU), max(peak.Memory, sum.Memory), max(peak.Disk, sum.Disk)
	}
	return peak
}

// The height is what who looks at every moment sees.
func TestPeakIsWhatANaiveModelSees(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var all []Booking
		for range rapid.IntRange(0, 12).Draw(rt, "bookings") {
			from := rapid.IntRange(0, 23).Draw(rt, "from")
			b := Booking{From: hour(from), Takes: vee.Resources{MilliCPU: rapid.Int64Range(0, 4).Draw(rt, "cpu"), Memory: vee.Bytes(rapid.IntRange(0, 4).Draw(rt, "memory"))}}
			if rapid.Bool().Draw(rt, "ends") {
				b.Until = hour(rapid.IntRange(from, 24).Draw(rt, "until"))
			}
			all = append(all, b)
		}
		from := rapid.IntRange(0, 22).Draw(rt, "looked at from")
		until := rapid.IntRange(from+1, 24).Draw(rt, "looked at until")
		if got, want := Peak(all, hour(from), hour(until)), naive(all, from, until); got != want {
			rt.Fatalf("from %d until %d: %+v, want %+v: %+v", from, until, got, want, all)
		}
		if got, want := Peak(all, hour(from), time.Time{}), naive(all, from, 48); got != want {
			rt.Fatalf("from %d on: %+v, want %+v: %+v", from, got, want, all)
		}
	})
}

// What is admitted one after the other, each while it fits beside those before, fits at every
// moment.
func TestNeverMoreThanThereIs(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		capacity := vee.Resources{MilliCPU: 8, Memory: 8, Disk: 8}
		var all []Booking
		for range rapid.IntRange(1, 30).Draw(rt, "asked") {
			from := rapid.IntRange(0, 23).Draw(rt, "from")
			b := Booking{From: hour(from), Until: hour(rapid.IntRange(from+1, 24).Draw(rt, "until")),
				Takes: vee.Resources{MilliCPU: rapid.Int64Range(1, 8).Draw(rt, "cpu"), Memory: vee.Bytes(rapid.IntRange(1, 8).Draw(rt, "memory"))}}
			if Peak(all, b.From, b.Until).Plus(b.Takes).Fits(capacity) {
				all = append(all, b)
			}
			if !naive(all, 0, 24).Fits(capacity) {
				rt.Fatalf("%+v in all", naive(all, 0, 24))
			}
		}
	})
}
