// Package overbook says how much CPU may be promised on a machine, from what its VEEs have been
// seen to use. It is pure: the history is a parameter.
//
// Without history every vCPU counts in full: a VEE is trusted to need what it was promised until
// it has been seen for long enough to need less. So a machine that is new, or whose measurements
// are lost, is not overbooked at all; and what has been promised already is never taken back.
package overbook

import "fmt"

// Policy of overbooking.
type Policy struct {
	// Headroom is the part of a machine's CPUs that stays free of what its VEEs need, 0 to 1.
	Headroom float64
}

// Check the policy.
func (p Policy) Check() error {
	if !(p.Headroom >= 0 && p.Headroom < 1) {
		return fmt.Errorf("headroom of %g: want 0 to less than 1, such as 0.2", p.Headroom)
	}
	return nil
}

// Machine and what is promised on it. CPU is in thousandths of a (v)CPU.
type Machine struct {
	CPUs     int   // physical
	Declared int64 // that may be promised at most, whatever history says
	Promised map[string]int64
}

// Capacity that may be promised in all, by what each VEE has needed; need reports false for one
// that was not seen for long enough. It is at least what is promised, unless that is more than
// was declared, and at most what was declared.
func (p Policy) Capacity(m Machine, need func(vee string) (milliCPU int64, known bool)) int64 {
	room := int64(float64(m.CPUs) * 1000 * (1 - p.Headroom))
	var promised int64
	for id, full := range m.Promised {
		n, known := need(id)
		if !known || n > full { // it cannot need more than it has
			n = full
		}
		promised += full
		room -= max(0, n)
	}
	return min(m.Declared, promised+max(0, room))
}
