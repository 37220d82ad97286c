// Package calendar is what is promised of a capacity over time: bookings, each from a moment
// until another, and how much of everything they take at their height. It is pure.
//
// What is promised of a capacity changes where a booking begins and where one ends, and grows
// only where one begins. So whatever is asked of a time is asked of its beginning and of the
// moments within it at which bookings begin.
package calendar

import (
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Booking of something for a time.
type Booking struct {
	From  time.Time
	Until time.Time // not part of it; zero: for ever
	Takes vee.Resources
}

// covers reports whether it is booked at that moment.
func (b Booking) covers(at time.Time) bool {
	return !at.Before(b.From) && (b.Until.IsZero() || at.Before(b.Until))
}

// Moments of a time at which bookings may be at their height, in order. A zero until: it has
// no end.
func Moments(all []Booking, from, until time.Time) []time.Time {
	list := []time.Time{from}
	for _, b := range all {
		if b.From.After(from) && (until.IsZero() || b.From.Before(until)) {
			list = append(list, b.From)
		}
	}
	slices.SortFunc(list, time.Time.Compare)
	return slices.CompactFunc(list, time.Time.Equal)
}

// At is the sum of what is booked at a moment.
func At(all []Booking, at time.Time) (sum vee.Resources) {
	for _, b := range all {
		if b.covers(at) {
			sum = sum.Plus(b.Takes)
		}
	}
	return sum
}

// Peak is the most that is booked of everything within a time, each at its own height.
func Peak(all []Booking, from, until time.Time) (peak vee.Resources) {
	for _, t := range Moments(all, from, until) {
		sum := At(all, t)
		peak.MilliCPU, peak.Memory, peak.Disk = max(peak.MilliCPU, sum.MilliCPU), max(peak.Memory, sum.Memory), max(peak.Disk, sum.Disk)
	}
	return peak
}
