// Package sla keeps the score of a service level agreement: how long each objective was kept
// and broken in the windows of its contract, how much of its error budget is left, and which
// penalty is due. It is pure: observations carry their time, and the present is a parameter.
//
// Two kinds of objectives: Objective holds for a share of each window of time (availability,
// a KPI within a range), Restart for each single loss of a replica.
//
// Time of which nothing is known is neither kept nor broken: it is not held against the
// site, it is shown, and it is never guessed.
package sla

import (
	"fmt"
	"math"
	"time"

	"github.com/reservoir-cloud/reservoir/account/money"
)

// Status of an objective at a moment.
type Status int

// Statuses.
const (
	Unknown Status = iota
	Kept
	Broken
)

// Objective that holds for Percent of every Window, the first of which begins with the
// contract.
type Objective struct {
	Name     string
	Window   time.Duration
	Percent  float64
	Min, Max *float64      // range of a KPI, ends included; nil: open. Not used by availability
	Gap      time.Duration // so long one observation stands for what follows; 0: until the next one
	Penalty  Formula       // of a window in which it was broken
}

// Check says what no score can be kept of.
func (o Objective) Check() error {
	if o.Window < time.Minute || !(o.Percent >= 0 && o.Percent <= 100) || o.Gap < 0 || o.Min != nil && o.Max != nil && !(*o.Min <= *o.Max) {
		return fmt.Errorf("objective %s: %g %% of every %s: want 0 to 100 %%, a window of a minute at least, and min <= max", o.Name, o.Percent, o.Window)
	}
	return nil
}

// Budget is how long the objective may be broken in one window: Window × (100 − Percent) %,
// with the percentage taken to a millionth.
func (o Objective) Budget() time.Duration {
	const whole = 100_000_000
	share := time.Duration(math.Round((100 - o.Percent) * whole / 100))
	return o.Window/whole*share + o.Window%whole*share/whole
}

// Judge a measurement of the KPI.
func (o Objective) Judge(value float64) Status {
	switch {
	case math.IsNaN(value):
		return Unknown
	case o.Min != nil && value < *o.Min, o.Max != nil && value > *o.Max:
		return Broken
	}
	return Kept
}

// Observation of an objective.
type Observation struct {
	At     time.Time
	Status Status
}

// Window of an objective's time and its score.
type Window struct {
	Start   time.Time     `json:"start"`
	End     time.Time     `json:"end"` // or how far the score goes
	Kept    time.Duration `json:"kept"`
	Broken  time.Duration `json:"broken"`
	Unknown time.Duration `json:"unknown"`
	Budget  time.Duration `json:"budget"`
}

// Left of the error budget; negative: overdrawn.
func (w Window) Left() time.Duration { return w.Budget - w.Broken }

// Violated reports whether the objective was broken for longer than it may be. Once true of a
// window that is not over, it stays so.
func (w Window) Violated() bool { return w.Left() < 0 }

// Compliance is the share of the known time in which it was kept, %; 100 when nothing is
// known.
func (w Window) Compliance() float64 {
	if w.Kept+w.Broken == 0 {
		return 100
	}
	return 100 * float64(w.Kept) / float64(w.Kept+w.Broken)
}

func (w Window) String() string {
	text := fmt.Sprintf("%.4g %% kept from %s until %s, broken for %s of %s that are allowed", w.Compliance(),
		w.Start.UTC().Format(time.RFC3339), w.End.UTC().Format(time.RFC3339), w.Broken, w.Budget)
	if w.Unknown > 0 {
		text += fmt.Sprintf(", %s unknown", w.Unknown)
	}
	return text
}

// State of the score. The zero value has not begun. It may be kept as JSON.
type State struct {
	Start time.Time `json:"start,omitzero"` // of the window
	At    time.Time `json:"at,omitzero"`    // the score goes so far
	Last  Status    `json:"last,omitempty"`
	Seen  time.Time `json:"seen,omitzero"` // of the last observation

	Kept    time.Duration `json:"kept,omitempty"` // in the window
	Broken  time.Duration `json:"broken,omitempty"`
	Unknown time.Duration `json:"unknown,omitempty"`
}

// Begin the score with the contract.
func Begin(at time.Time) State { return State{Start: at, At: at} }

// Step takes observations in the order of time and goes on to now. It returns the windows
// that came to their end, but for those of which nothing at all is known. Observations of
// before the score's time, or after now, are passed over: what is told stays told.
func Step(o Objective, s State, seen []Observation, now time.Time) (State, []Window) {
	var over []Window
	for _, x := range seen {
		if x.At.Before(s.At) || x.At.After(now) {
			continue
		}
		s, over = s.to(o, x.At, over)
		s.Last, s.Seen = x.Status, x.At
	}
	return s.to(o, now, over)
}

// to a later moment, while the last observation holds.
func (s State) to(o Objective, t time.Time, over []Window) (State, []Window) {
	for s.At.Before(t) {
		status, next := s.Last, earlier(t, s.Start.Add(o.Window))
		if o.Gap > 0 && status != Unknown {
			if end := s.Seen.Add(o.Gap); end.After(s.At) {
				next = earlier(next, end)
			} else {
				status, s.Last = Unknown, Unknown
			}
		}
		if silent := t.Sub(s.At) / o.Window; status == Unknown && s.At.Equal(s.Start) && silent > 0 {
			s.Start, s.At = s.Start.Add(silent*o.Window), s.At.Add(silent*o.Window)
			continue
		}
		span := next.Sub(s.At)
		switch status {
		case Kept:
			s.Kept += span
		case Broken:
			s.Broken += span
		default:
			s.Unknown += span
		}
		s.At = next
		if end := s.Start.Add(o.Window); !s.At.Before(end) {
			if s.Kept+s.Broken > 0 {
				over = append(over, s.Window(o))
			}
			s.Start, s.Kept, s.Broken, s.Unknown = end, 0, 0, 0
		}
	}
	return s, over
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// Window that is not over yet.
func (s State) Window(o Objective) Window {
	return Window{Start: s.Start, End: s.At, Kept: s.Kept, Broken: s.Broken, Unknown: s.Unknown, Budget: o.Budget()}
}

// Due for a window, in which the service was charged price. Nothing is due for one that was
// not violated.
func (o Objective) Due(w Window, price money.Amount) (money.Amount, error) {
	if !w.Violated() {
		return money.Amount{}, nil
	}
	due, err := o.Penalty.Of(price, -w.Left())
	if err != nil {
		return due, fmt.Errorf("penalty of objective %s: %w", o.Name, err)
	}
	return due, nil
}
