package sla

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/account/money"
)

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

func formula(t interface{ Fatal(...any) }, text string) Formula {
	f, err := ParseFormula(text, "EUR")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAvailability(t *testing.T) {
	o := Objective{Name: "availability", Window: 30 * 24 * time.Hour, Percent: 99.9, Penalty: formula(t, "0.1 * price + 0.05 EUR * minutes")}
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	day := func(d float64) time.Time { return begin.Add(time.Duration(d * 24 * float64(time.Hour))) }
	s, over := Step(o, Begin(begin), []Observation{{begin, Kept}, {day(10), Broken}}, day(10).Add(40*time.Minute))
	w := s.Window(o)
	if len(over) != 0 || w.Budget != 43*time.Minute+12*time.Second || w.Left() != 3*time.Minute+12*time.Second || w.Violated() {
		t.Fatalf("%+v: %s", over, w)
	}
	s, over = Step(o, s, []Observation{{day(10).Add(53*time.Minute + 12*time.Second), Kept}}, day(31))
	if len(over) != 1 || over[0].Left() != -10*time.Minute || !over[0].Violated() {
		t.Fatalf("%+v", over)
	}
	if got, want := over[0].String(), "99.88 % kept from 2026-01-01T00:00:00Z until 2026-01-31T00:00:00Z, broken for 53m12s of 43m12s that are allowed"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if due, err := o.Due(over[0], money.Of(20, 1)); err != nil || due.String() != "2.5" {
		t.Errorf("%s is due, %v", due, err)
	}
	if w := s.Window(o); w.Kept != 24*time.Hour || w.Broken != 0 {
		t.Errorf("the next window begins with %s", w)
	}
	if due, err := o.Due(s.Window(o), money.Of(20, 1)); err != nil || due.Sign() != 0 {
		t.Errorf("%s is due for a window that was kept, %v", due, err)
	}
}

func TestPerformance(t *testing.T) {
	most := 200.0
	o := Objective{Name: "quick", Window: time.Hour, Percent: 95, Max: &most, Gap: 2 * time.Minute}
	for v, want := range map[float64]Status{0: Kept, 200: Kept, 200.5: Broken, math.Inf(1): Broken, math.Inf(-1): Kept} {
		if got := o.Judge(v); got != want {
			t.Errorf("%g is %d", v, got)
		}
	}
	if o.Judge(math.NaN()) != Unknown {
		t.Error("what is no number is known")
	}
	// Measured in the first ten minutes only; the last measurement stands for two more.
	var seen []Observation
	for m := range 11 {
		seen = append(seen, Observation{begin.Add(time.Duration(m) * time.Minute), o.Judge(float64(150 + 60*(m%2)))})
	}
	_, over := Step(o, Begin(begin), seen, begin.Add(5*time.Hour))
	want := Window{Start: begin, End: begin.Add(time.Hour), Kept: 7 * time.Minute, Broken: 5 * time.Minute, Unknown: 48 * time.Minute, Budget: 3 * time.Minute}
	if len(over) != 1 || over[0] != want {
		t.Errorf("%+v", over)
	}
}

// drawTrace of observations at whole seconds, in the order of time.
func drawTrace(t *rapid.T) (seen []Observation, end int) {
	for range rapid.IntRange(0, 25).Draw(t, "observations") {
		end += rapid.IntRange(0, 90).Draw(t, "seconds")
		seen = append(seen, Observation{begin.Add(seconds(end)), Status(rapid.IntRange(0, 2).Draw(t, "status"))})
	}
	return seen, end + rapid.IntRange(0, 300).Draw(t, "rest")
}

func drawObjective(t *rapid.T) Objective {
	return Objective{Name: "o", Window: seconds(rapid.IntRange(60, 200).Draw(t, "window")), Percent: float64(rapid.IntRange(0, 1000).Draw(t, "percent")) / 10,
		Gap: seconds(rapid.IntRange(0, 100).Draw(t, "gap"))}
}

// The score is what counting each second gives.
func TestTheScoreIsThatOfEachSecond(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := drawObjective(t)
		seen, end := drawTrace(t)
		s, over := Step(o, Begin(begin), seen, begin.Add(seconds(end)))
		var want []Window
		w := Window{Start: begin, Budget: o.Budget()}
		for n := range end {
			at, status := begin.Add(seconds(n)), Unknown
			for _, x := range seen {
				if !x.At.After(at) {
					status = x.Status
					if o.Gap > 0 && at.Sub(x.At) >= o.Gap {
						status = Unknown
					}
				}
			}
			*map[Status]*time.Duration{Kept: &w.Kept, Broken: &w.Broken, Unknown: &w.Unknown}[status] += time.Second
			if w.End = at.Add(time.Second); w.End.Sub(w.Start) == o.Window {
				if w.Kept+w.Broken > 0 {
					want = append(want, w)
				}
				w = Window{Start: w.End, Budget: w.Budget}
			}
		}
		w.End = begin.Add(seconds(end))
		if !reflect.DeepEqual(over, want) || s.Window(o) != w {
			t.Fatalf("%+v, then %+v; want %+v, then %+v", over, s.Window(o), want, w)
		}
		for _, w := range over {
			if w.Kept+w.Broken+w.Unknown != o.Window || !(w.Compliance() >= 0 && w.Compliance() <= 100) {
				t.Fatalf("%+v", w)
			}
		}
	})
}

// However observations come in, and through whatever storage, the score is the same; within
// a window the budget only shrinks.
func TestTheScoreDoesNotDependOnTheSteps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := drawObjective(t)
		seen, end := drawTrace(t)
		whole, all := Step(o, Begin(begin), seen, begin.Add(seconds(end)))
		s, now := Begin(begin), 0
		var parts []Window
		for now < end {
			now = min(end, now+rapid.IntRange(1, 100).Draw(t, "step"))
			var part []Observation
			for len(seen) > 0 && !seen[0].At.After(begin.Add(seconds(now))) {
				part, seen = append(part, seen[0]), seen[1:]
			}
			raw, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			var stored State
			if err := json.Unmarshal(raw, &stored); err != nil {
				t.Fatal(err)
			}
			before := s.Window(o)
			var over []Window
			s, over = Step(o, stored, part, begin.Add(seconds(now)))
			parts = append(parts, over...)
			if after := s.Window(o); after.Start.Equal(before.Start) && after.Left() > before.Left() {
				t.Fatalf("the budget grew from %s to %s", before.Left(), after.Left())
			}
			if late, _ := Step(o, s, []Observation{{begin, Broken}, {begin.Add(seconds(end + 1)), Broken}}, begin.Add(seconds(now))); late != s && now > 0 {
				t.Fatalf("an observation out of its time changed %+v to %+v", s, late)
			}
		}
		if s.Window(o) != whole.Window(o) || len(parts) != len(all) || len(all) > 0 && !reflect.DeepEqual(parts, all) {
			t.Fatalf("in steps %+v, then %+v; at once %+v, then %+v", parts, s, all, whole)
		}
	})
}

// A clock that jumps by years over silence makes no work, and no window.
func TestSilenceIsPassedOver(t *testing.T) {
	o := Objective{Window: time.Minute, Percent: 99, Gap: time.Second}
	s, over := Step(o, Begin(begin), []Observation{{begin, Kept}}, begin.AddDate(200, 0, 0))
	if len(over) != 1 || s.At.Sub(s.Start) >= time.Minute {
		t.Errorf("%d windows, %+v", len(over), s)
	}
}

func TestBudget(t *testing.T) {
	for percent, want := range map[float64]time.Duration{100: 0, 99.999: 25920 * time.Millisecond, 99.9: 2592 * time.Second, 50: 15 * 24 * time.Hour, 0: 30 * 24 * time.Hour} {
		if got := (Objective{Window: 30 * 24 * time.Hour, Percent: percent}).Budget(); got != want {
			t.Errorf("%g %%: %s, want %s", percent, got, want)
		}
	}
	one, two := 1.0, 2.0
	for _, o := range []Objective{{}, {Window: time.Hour, Percent: 101}, {Window: time.Hour, Percent: math.NaN()}, {Window: time.Hour, Min: &two, Max: &one}, {Window: time.Hour, Gap: -1}} {
		if o.Check() == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

// Each loss that lasts too long is told once, whenever it is looked at; no other is.
func TestLateLossesAreToldOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Restart{Within: seconds(rapid.IntRange(0, 60).Draw(t, "within"))}
		var s RestartState
		var told []Loss
		lost := map[string]time.Time{} // the model
		var want int
		late := map[string]bool{}
		now := begin
		for range rapid.IntRange(1, 60).Draw(t, "turns") {
			now = now.Add(seconds(rapid.IntRange(0, 40).Draw(t, "seconds")))
			for name, since := range lost {
				if !late[name] && now.Sub(since) > r.Within {
					late[name] = true
					want++
				}
			}
			var changes []Change
			if rapid.Bool().Draw(t, "change") {
				c := Change{rapid.SampledFrom([]string{"a", "b"}).Draw(t, "replica"), now, rapid.Bool().Draw(t, "lost")}
				changes = append(changes, c, c) // it may come again
				if _, is := lost[c.Replica]; c.Lost && !is {
					lost[c.Replica], late[c.Replica] = now, false
				} else if !c.Lost {
					delete(lost, c.Replica)
				}
			}
			var l []Loss
			s, l = r.Step(s, changes, now)
			told = append(told, l...)
		}
		if len(told) != want || len(s) != len(lost) {
			t.Fatalf("%d told, want %d; lost %+v, want %+v", len(told), want, s, lost)
		}
	})
}

func TestRestartPenalty(t *testing.T) {
	r := Restart{Within: 2 * time.Minute, Penalty: formula(t, "1 EUR")}
	s, late := r.Step(nil, []Change{{"web-1", begin, true}}, begin.Add(2*time.Minute))
	if len(late) != 0 {
		t.Fatalf("%+v", late)
	}
	s, late = r.Step(s, []Change{{"web-1", begin.Add(3 * time.Minute), false}}, begin.Add(time.Hour))
	if len(late) != 1 || len(s) != 0 {
		t.Fatalf("%+v, %+v", late, s)
	}
	if due, err := r.Due(money.Amount{}); err != nil || due.String() != "1" {
		t.Errorf("%s, %v", due, err)
	}
}
