package elastic

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world is a component in which replicas come and go in their own time, with steps at any
// moment and measurements that are lost, late, doubled or wrong.
type world struct {
	policy  Policy
	now     time.Time
	state   State
	wanted  Size
	there   []replica
	samples []Sample // all that were ever sent
}

func drawPolicy(t *rapid.T) Policy {
	span := func(name string, most int) time.Duration {
		return time.Duration(rapid.IntRange(0, most).Draw(t, name)) * time.Second
	}
	p := Policy{Component: "c", Min: rapid.IntRange(0, 3).Draw(t, "min"), Up: span("up", 300), Down: span("down", 300),
		Patience: span("patience", 300)}
	p.Max = p.Min + rapid.IntRange(0, 5).Draw(t, "range")
	for i := range rapid.IntRange(0, 2).Draw(t, "arrays") {
		p.Arrays = append(p.Arrays, Array{KPI: []string{"a", "b"}[i], Window: span("window", 120) + time.Second,
			Every: span("every", 60), Quota: 10, Tolerance: float64(rapid.IntRange(0, 50).Draw(t, "tolerance"))})
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "rules") {
		above := rapid.Bool().Draw(t, "above")
		kind := rapid.SampledFrom([]Kind{ScaleUp, ScaleDown, Resize}).Draw(t, "kind")
		p.Rules = append(p.Rules, Rule{Name: fmt.Sprint("r", i), Every: span("every", 60), KPIs: []string{"a"},
			Holds: func(v Values) (bool, error) { return v.KPIs["a"] > 20 == above, nil },
			Do:    Action{Kind: kind, By: rapid.IntRange(0, 3).Draw(t, "by"), VCPUs: 2}})
	}
	if rapid.Bool().Draw(t, "schedule") {
		p.Schedules = []Schedule{{Name: "s", From: 8*time.Hour + span("from", 1200), To: 8*time.Hour + 1200*time.Second + span("to", 1200), Min: 2, Max: 4}}
	}
	return p
}

// turn lets some time pass and steps; it returns the observation and the decision.
func (w *world) turn(t *rapid.T) (Observation, Decision) {
	w.now = w.now.Add(time.Duration(rapid.IntRange(0, 45).Draw(t, "seconds")) * time.Second)
	o := Observation{Wanted: w.wanted}
	for range rapid.IntRange(0, 3).Draw(t, "measured") {
		s := Sample{rapid.SampledFrom([]string{"a", "b", "other"}).Draw(t, "kpi"), w.now.Add(-time.Duration(rapid.IntRange(-5, 30).Draw(t, "ago")) * time.Second),
			rapid.Float64Range(0, 100).Draw(t, "value")}
		w.samples, o.Samples = append(w.samples, s), append(o.Samples, s)
	}
	w.there = slices.DeleteFunc(w.there, func(r replica) bool { return !r.gone.IsZero() && !r.gone.After(w.now) })
	stay := 0
	for _, r := range w.there {
		is := Replica{Ready: !r.booted.After(w.now), Leaving: !r.gone.IsZero(), VCPUs: w.wanted.VCPUs}
		if o.Replicas = append(o.Replicas, is); !is.Leaving {
			stay++
		}
	}
	var d Decision
	w.state, d = Step(w.policy, w.state, o, w.now)
	w.wanted = d.Size
	for i := range w.there {
		if w.there[i].gone.IsZero() && stay > d.Size.Replicas {
			w.there[i].gone = w.now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "leave")) * time.Second)
			stay--
		}
	}
	for ; stay < d.Size.Replicas; stay++ {
		w.there = append(w.there, replica{booted: w.now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "boot")) * time.Second)})
	}
	return o, d
}

func drawWorld(t *rapid.T) *world {
	return &world{policy: drawPolicy(t), now: epoch, wanted: Size{Replicas: rapid.IntRange(0, 9).Draw(t, "replicas"), VCPUs: 1}}
}

func TestDecisionsKeepThePolicy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		if err := w.policy.Check(); err != nil {
			t.Fatal(err)
		}
		var changed, unsettled time.Time
		for range rapid.IntRange(1, 80).Draw(t, "turns") {
			before := w.wanted
			_, d := w.turn(t)
			low, high, whose := w.policy.Bounds(w.now)
			if d.Size.Replicas < low || d.Size.Replicas > high {
				t.Fatalf("%d replicas, outside %d to %d", d.Size.Replicas, low, high)
			}
			if (d.Kind == Hold) != (d.Size == before) {
				t.Fatalf("%s from %+v to %+v", d.Kind, before, d.Size)
			}
			if d.Why == "" || !d.Wake.After(w.now) {
				t.Fatalf("without a reason, or no time to wake: %+v", d)
			}
			if strings.Contains(d.Why, "in flight") {
				unsettled = w.now
			}
			if d.Kind == Hold {
				continue
			}
			if d.Rule != whose {
				cool := w.policy.Up
				if d.Kind == ScaleDown {
					cool = w.policy.Down
				}
				if !changed.IsZero() && w.now.Sub(changed) < cool {
					t.Fatalf("%s %s after a change, within the cool-down of %s", d.Kind, w.now.Sub(changed), cool)
				}
				w.checkFull(t, d, maxTime(changed, unsettled))
			}
			changed = w.now
		}
	})
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// checkFull: no elastic array decides before it saw a whole window of measurements after from.
func (w *world) checkFull(t *rapid.T, d Decision, from time.Time) {
	for _, a := range w.policy.Arrays {
		if a.String() != d.Rule {
			continue
		}
		full := slices.ContainsFunc(w.samples, func(s Sample) bool {
			return s.KPI == a.KPI && !s.At.After(w.now.Add(-a.Window)) && s.At.After(from)
		})
		if !full {
			t.Fatalf("decided before the window was full: %s", d.Why)
		}
	}
}

// The same trace gives the same decisions, whatever the order in which measurements come
// and how often, and from a state that was stored. Nothing that is handed in is changed.
func TestDecisionsAreAFunctionOfTheTrace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		other := State{}
		shuffled := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for range rapid.IntRange(1, 40).Draw(t, "turns") {
			before, err := json.Marshal(w.state)
			if err != nil {
				t.Fatal(err)
			}
			old := w.state
			o, d := w.turn(t)
			if after, _ := json.Marshal(old); string(after) != string(before) {
				t.Fatalf("the state was changed from\n%s to\n%s", before, after)
			}
			seen := map[string]bool{} // of two values for one moment, the first counts
			o.Samples = slices.DeleteFunc(o.Samples, func(s Sample) bool {
				key := s.KPI + s.At.String()
				again := seen[key]
				seen[key] = true
				return again
			})
			o.Samples = append(o.Samples, o.Samples...)
			shuffled.Shuffle(len(o.Samples), func(i, j int) { o.Samples[i], o.Samples[j] = o.Samples[j], o.Samples[i] })
			var stored State
			raw, err := json.Marshal(other)
			if err == nil {
				err = json.Unmarshal(raw, &stored)
			}
			if err != nil {
				t.Fatal(err)
			}
			var e Decision
			other, e = Step(w.policy, stored, o, w.now)
			d.Ignored, e.Ignored = 0, 0
			if !reflect.DeepEqual(d, e) {
				t.Fatalf("%+v, again %+v", d, e)
			}
		}
	})
}

// A load that stays is met: nothing gets stuck, and nothing goes to and fro.
func TestALoadIsMet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		load := rapid.Float64Range(0, 120).Draw(t, "load")
		a := Array{KPI: "a", Window: time.Minute, Every: 15 * time.Second, Quota: 10, Tolerance: float64(rapid.IntRange(0, 40).Draw(t, "tolerance"))}
		w := &world{policy: Policy{Component: "c", Min: 1, Max: 10, Arrays: []Array{a}}, now: epoch}
		start := rapid.IntRange(0, 12).Draw(t, "replicas")
		w.wanted.Replicas = start
		last, turned := Hold, 0
		for range 800 {
			w.now = w.now.Add(15 * time.Second)
			o := Observation{Wanted: w.wanted, Samples: []Sample{{"a", w.now, load}}}
			for range w.wanted.Replicas {
				o.Replicas = append(o.Replicas, Replica{Ready: true})
			}
			var d Decision
			w.state, d = Step(w.policy, w.state, o, w.now)
			if d.Kind != Hold && d.Rule == a.String() {
				if last != Hold && last != d.Kind {
					turned++
				}
				last = d.Kind
			}
			w.wanted = d.Size
		}
		n := w.wanted.Replicas
		r := load / float64(n)
		if r > a.Quota*(1+a.Tolerance/100)+1e-9 && n < 10 {
			t.Fatalf("%g on %d replicas is %g each", load, n, r)
		}
		if r < a.Quota*(1-a.Tolerance/100)-1e-9 && n > 1 && load/float64(n-1) < a.Quota*(1+a.Tolerance/100)-1e-9 {
			t.Fatalf("%g on %d replicas is %g each, one less would do", load, n, r)
		}
		if turned > 0 {
			t.Fatalf("a load of %g turned %d times", load, turned)
		}
	})
}

// A probe that floods is thinned out.
func TestMeasurementsAreBounded(t *testing.T) {
	p := Policy{Component: "c", Min: 1, Max: 9, Arrays: []Array{{KPI: "a", Window: time.Minute, Every: time.Second, Quota: 10}}}
	var s State
	var d Decision
	now := epoch
	for range 120 {
		var o Observation
		o.Wanted.Replicas, o.Replicas = 2, []Replica{{Ready: true}, {Ready: true}}
		for range 1000 {
			now = now.Add(time.Millisecond)
			o.Samples = append(o.Samples, Sample{"a", now, 20})
		}
		s, d = Step(p, s, o, now)
	}
	if n := len(s.Samples["a"]); n > resolution+2 {
		t.Errorf("%d measurements are kept", n)
	}
	if !strings.Contains(d.Why, "10 per replica (average 20 over 1m ÷ 2), between 10 and 10") {
		t.Errorf("%+v", d)
	}
}

func TestSchedules(t *testing.T) {
	rome, err := time.LoadLocation("Europe/Rome")
	if err != nil {
		t.Fatal(err)
	}
	p := Policy{Min: 1, Max: 2, Schedules: []Schedule{
		{Name: "day", From: 9 * time.Hour, To: 17 * time.Hour, Location: rome, Min: 3, Max: 3},
		{Name: "night", Days: []time.Weekday{time.Friday}, From: 22 * time.Hour, To: 2 * time.Hour, Min: 4, Max: 4},
		{Name: "sunday", Days: []time.Weekday{time.Sunday}, To: 24 * time.Hour, Min: 0, Max: 0},
	}}
	for at, want := range map[string]int{
		"2026-01-05T07:59:59Z": 1, // 8:59 in Rome, in winter
		"2026-01-05T08:00:00Z": 3,
		"2026-07-06T07:00:00Z": 3, // and in summer
		"2026-07-06T15:00:00Z": 1,
		"2026-01-09T21:59:59Z": 1,
		"2026-01-09T22:00:00Z": 4, // Friday
		"2026-01-10T01:59:59Z": 4,
		"2026-01-10T02:00:00Z": 1,
		"2026-01-10T22:30:00Z": 1, // Saturday
		"2026-01-11T12:00:00Z": 0,
	} {
		now, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if low, _, whose := p.Bounds(now); low != want {
			t.Errorf("%s: %d by %s, want %d", at, low, whose, want)
		}
	}
}

func TestCheck(t *testing.T) {
	fine := conditions["grow"]
	fine.Name = "grow"
	for name, p := range map[string]Policy{
		"min over max":     {Min: 2, Max: 1},
		"below nothing":    {Min: -1},
		"cool-down":        {Up: -1},
		"no window":        {Arrays: []Array{{KPI: "a", Quota: 1}}},
		"no quota":         {Arrays: []Array{{KPI: "a", Window: 1}}},
		"tolerance":        {Arrays: []Array{{KPI: "a", Window: 1, Quota: 1, Tolerance: 101}}},
		"two of a name":    {Rules: []Rule{fine, fine}},
		"no condition":     {Rules: []Rule{{Name: "a", Do: Action{Kind: ScaleUp}}}},
		"no action":        {Rules: []Rule{{Name: "a", Holds: fine.Holds}}},
		"two of a KPI":     {Arrays: []Array{{KPI: "a", Window: 1, Quota: 1}, {KPI: "a", Window: 1, Quota: 2}}},
		"resize to what":   {Rules: []Rule{{Name: "a", Holds: fine.Holds, Do: Action{Kind: Resize}}}},
		"schedule's hours": {Schedules: []Schedule{{From: 25 * time.Hour}}},
	} {
		if p.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := (Policy{Max: 3, Rules: []Rule{fine}}).Check(); err != nil {
		t.Error(err)
	}
}
