package overbook

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestCapacity(t *testing.T) {
	seen := map[string]int64{"idle": 100, "busy": 1900, "mad": 9000}
	need := func(id string) (int64, bool) { n, ok := seen[id]; return n, ok }
	p := Policy{Headroom: 0.25}
	for name, c := range map[string]struct {
		m    Machine
		want int64
	}{
		"empty":               {Machine{CPUs: 4, Declared: 16_000}, 3000},
		"of unknown VEEs":     {Machine{CPUs: 4, Declared: 16_000, Promised: map[string]int64{"new": 2000}}, 3000},
		"of an idle VEE":      {Machine{CPUs: 4, Declared: 16_000, Promised: map[string]int64{"idle": 2000}}, 4900},
		"of idle and busy":    {Machine{CPUs: 4, Declared: 16_000, Promised: map[string]int64{"idle": 2000, "busy": 2000}}, 5000},
		"bounded":             {Machine{CPUs: 4, Declared: 4000, Promised: map[string]int64{"idle": 2000}}, 4000},
		"full":                {Machine{CPUs: 1, Declared: 8000, Promised: map[string]int64{"busy": 2000}}, 2000},
		"more than it has":    {Machine{CPUs: 4, Declared: 16_000, Promised: map[string]int64{"mad": 1000}}, 3000},
		"already overcrowded": {Machine{CPUs: 1, Declared: 8000, Promised: map[string]int64{"a": 3000, "b": 3000}}, 6000},
	} {
		if got := p.Capacity(c.m, need); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	for _, h := range []float64{-0.1, 1, math.NaN(), math.Inf(1)} {
		if (Policy{Headroom: h}).Check() == nil {
			t.Errorf("headroom %g is taken", h)
		}
	}
}

// Whatever is admitted within the capacity, what the VEEs need fits into the machine, and what
// is promised stays within what was declared.
func TestWhatIsAdmittedFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{Headroom: float64(rapid.IntRange(0, 9).Draw(t, "headroom")) / 10}
		m := Machine{CPUs: rapid.IntRange(1, 64).Draw(t, "CPUs"), Promised: map[string]int64{}}
		m.Declared = int64(m.CPUs) * 1000 * rapid.Int64Range(1, 8).Draw(t, "overbooking")
		needs := map[string]int64{}
		need := func(id string) (int64, bool) { n, ok := needs[id]; return n, ok }
		var promised, needed int64
		for n := range rapid.IntRange(0, 60).Draw(t, "VEEs") {
			full := rapid.Int64Range(1, 8).Draw(t, "vcpus") * 1000
			if promised+full > p.Capacity(m, need) {
				continue
			}
			id := fmt.Sprint(n)
			m.Promised[id] = full
			promised += full
			used := rapid.Int64Range(0, full).Draw(t, "used")
			if rapid.Bool().Draw(t, "seen") { // by now it is known
				needs[id] = used
				needed += used
			} else {
				needed += full
			}
		}
		if room := float64(m.CPUs) * 1000 * (1 - p.Headroom); float64(needed) > room+0.5 || promised > m.Declared {
			t.Fatalf("%d needed of %g, %d promised of %d", needed, room, promised, m.Declared)
		}
	})
}
