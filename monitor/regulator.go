package monitor

import (
	"fmt"
	"math"
	"time"
)

// Limits that a Regulator keeps; a zero one is not kept.
type Limits struct {
	ValuesPerSecond float64
	Load            float64 // of the machine: runnable tasks for each CPU
}

// Seen is what a Regulator looks at, since it last did.
type Seen struct {
	Values  int // that were collected
	Elapsed time.Duration
	Load    float64
}

// Bounds of a Regulation: rates are lowered to a 64th at most. They are raised again, by
// half, after calm looks in a row that leave room for it.
const (
	maxStretch = 64
	calm       = 3
	room       = 0.8 // of a limit that the raised rates may reach
)

// Regulation is what a Regulator has decided: intervals are multiplied by Stretch.
type Regulation struct {
	Stretch float64 `json:"stretch"`       // 0 and 1: not at all
	Why     string  `json:"why,omitempty"` // while it is more than 1
}

// Of measurements of that kind: KPIs, upon which services scale, are stretched by the
// square root.
func (r Regulation) Of(k Kind) float64 {
	switch {
	case !(r.Stretch > 1):
		return 1
	case k == KPIKind:
		return math.Sqrt(r.Stretch)
	}
	return r.Stretch
}

// harder of two regulations.
func (r Regulation) harder(o Regulation) Regulation {
	if o.Stretch > r.Stretch {
		return o
	}
	return r
}

// Regulator keeps measuring from being a load itself (spec: one regulator keeps the whole
// from flooding). It is pure. There is one at each source and one at the site, whose
// decisions go out with the Orders; of both the harder counts.
type Regulator struct {
	Limits Limits
	now    Regulation
	calm   int
}

// Step decides after a look. Rates fall at once, as far as the volume asks for, or by half
// when it is the load; they rise slowly.
func (r *Regulator) Step(seen Seen) Regulation {
	rate := 0.0
	if seen.Elapsed > 0 {
		rate = float64(seen.Values) / seen.Elapsed.Seconds()
	}
	over, why := 1.0, ""
	if l := r.Limits.ValuesPerSecond; l > 0 && rate > l {
		over, why = rate/l, fmt.Sprintf("%.0f values a second, above the limit of %.0f", rate, l)
	}
	if l := r.Limits.Load; l > 0 && seen.Load > l {
		over, why = max(over, 2), fmt.Sprintf("load %.2f for each CPU, above the limit of %.2f", seen.Load, l)
	}
	stretch := max(r.now.Stretch, 1)
	switch {
	case over > 1:
		r.calm = 0
		r.now = Regulation{Stretch: min(stretch*over, maxStretch), Why: why}
	case stretch > 1 && r.calmer(rate, seen.Load):
		if r.calm++; r.calm >= calm {
			r.calm = 0
			if r.now.Stretch = stretch / 2; r.now.Stretch < 1.01 {
				r.now = Regulation{}
			}
		}
	default:
		r.calm = 0
	}
	return r.now
}

// calmer: twice the rate would be within the limits.
func (r *Regulator) calmer(rate, load float64) bool {
	return (r.Limits.ValuesPerSecond <= 0 || 2*rate <= room*r.Limits.ValuesPerSecond) &&
		(r.Limits.Load <= 0 || load <= room*r.Limits.Load)
}
