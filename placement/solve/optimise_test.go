package solve_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

func TestOptimise(t *testing.T) {
	for name, c := range map[string]struct {
		objective solve.Objective
		m         *model.Model
		want      float64
	}{
		"balance":               {solve.Objective{Balance: 1}, site(2, "0:2", "0:2"), .5},
		"not worth a migration": {solve.Objective{Balance: 1, Migrations: 1}, site(2, "0:2", "0:2"), 1},
		"consolidate":           {solve.Objective{Consolidate: 1}, site(4, "0:1", "1:1", "2:1", "3:1"), 1},
		"consolidate in two":    {solve.Objective{Consolidate: 1}, site(4, "0:3", "1:2", "2:2", "3:1"), 2},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, f := range map[string]func(*model.Model, solve.Objective, solve.Options) (solve.Target, error){"optimise": solve.Optimise, "exact": solve.Exact} {
				target, err := f(c.m, c.objective, solve.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if got := c.objective.Score(c.m, target); math.Abs(got-c.want) > 1e-9 {
					t.Errorf("%s: score %g on %v, want %g", kind, got, target.At, c.want)
				}
			}
		})
	}
}

// TestObjectives: of two hosts that can take a VEE which runs on the first, the better one for
// each objective.
func TestObjectives(t *testing.T) {
	for name, c := range map[string]struct {
		objective solve.Objective
		change    func(*model.Model)
		want      int32
	}{
		"cheap":                    {solve.Objective{Cost: 1}, func(m *model.Model) { m.Hosts[0].Price, m.Hosts[1].Price = 2, 1 }, 1},
		"little power":             {solve.Objective{Energy: 1}, func(m *model.Model) { m.Hosts[0].Watts, m.Hosts[1].Watts = 200, 100 }, 1},
		"warms somebody":           {solve.Objective{Energy: 1}, func(m *model.Model) { m.Hosts[0].Watts, m.Hosts[1].Watts, m.Hosts[1].Heat = 200, 300, .5 }, 1},
		"near its users":           {solve.Objective{Distance: 1}, func(m *model.Model) { m.Hosts[0].Distance, m.Hosts[1].Distance = 30, 5 }, 1},
		"not worth the time":       {solve.Objective{Distance: 1, Time: 1}, func(m *model.Model) { m.Hosts[0].Distance, m.Hosts[1].Distance, m.VEEs[0].MemoryMiB = 30, 5, 4000 }, 0},
		"worth it with less to do": {solve.Objective{Distance: 1, Time: 1}, func(m *model.Model) { m.Hosts[0].Distance, m.Hosts[1].Distance, m.VEEs[0].MemoryMiB = 30, 5, 2000 }, 1},
		"weighed":                  {solve.Objective{Cost: 1, Energy: .01}, func(m *model.Model) { m.Hosts[0].Price, m.Hosts[1].Price, m.Hosts[1].Watts = 2, 1, 200 }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := site(2, "0:1")
			m.Migration.MiBs = 100
			c.change(m)
			if err := m.Validate(); err != nil {
				t.Fatal(err)
			}
			for kind, f := range map[string]func(*model.Model, solve.Objective, solve.Options) (solve.Target, error){"optimise": solve.Optimise, "exact": solve.Exact} {
				if target, err := f(m, c.objective, solve.Options{}); err != nil || target.At[0] != c.want {
					t.Errorf("%s: on host %d, %v, want %d", kind, target.At[0], err, c.want)
				}
			}
		})
	}
}

func TestSwitchOff(t *testing.T) {
	m := site(3, "0:1", "1:1")
	m.Require(model.Power{Hosts: []int32{2}, On: true})
	target, err := solve.Optimise(m, solve.Objective{Consolidate: 1, SwitchOff: true}, solve.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := solve.Schedule(m, target)
	if err != nil {
		t.Fatal(err)
	}
	if err := check.Plan(m, p); err != nil {
		t.Error(err)
	}
	if target.On[0] == target.On[1] || !target.On[2] {
		t.Errorf("on: %v, want one of the first two and the third", target.On)
	}
}

func TestOptimiseStops(t *testing.T) {
	asked := 0
	target, err := solve.Optimise(site(2, "0:2", "0:2"), solve.Objective{Balance: 1}, solve.Options{Stop: func() bool { asked++; return asked > 3 }})
	if err != nil || len(target.At) != 2 {
		t.Errorf("%+v, %v", target, err)
	}
}

// TestOptimiseHolds: a target is never worse than the repaired placement, never better than
// the proven best, and its plan passes the checker.
func TestOptimiseHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		objective := solve.Objective{Balance: rapid.Float64Range(0, 2).Draw(t, "balance"), Consolidate: rapid.Float64Range(0, 2).Draw(t, "consolidate"),
			Cost: rapid.Float64Range(0, 2).Draw(t, "cost"), Energy: rapid.Float64Range(0, .01).Draw(t, "energy"), Distance: rapid.Float64Range(0, .1).Draw(t, "distance"),
			Time: rapid.Float64Range(0, .1).Draw(t, "time"), Migrations: rapid.Float64Range(0, .5).Draw(t, "migrations"), SwitchOff: rapid.Bool().Draw(t, "off")}
		o := solve.Options{Seed: 1, Iterations: 400}
		repaired, err := solve.Repair(m, o)
		if err != nil {
			return
		}
		target, err := solve.Optimise(m, objective, o)
		if err != nil {
			t.Fatalf("repaired, but not optimised: %v", err)
		}
		score := objective.Score(m, target)
		if before := objective.Score(m, repaired); score > before+1e-6 {
			t.Fatalf("repaired %g, optimised %g", before, score)
		}
		again, _ := solve.Optimise(m, objective, o)
		if !slices.Equal(target.At, again.At) {
			t.Fatal("not reproducible")
		}
		if p, err := solve.Schedule(m, target); err == nil {
			if err := check.Plan(m, p); err != nil {
				t.Fatalf("the checker rejects the plan: %v\n%v\nrules %v", err, p, m.Rules)
			}
		}
		best, err := solve.Exact(m, objective, solve.Options{Iterations: 20_000})
		switch {
		case errors.Is(err, solve.ErrNotProven):
		case err == nil && objective.Score(m, best) > score+1e-6:
			t.Fatalf("proven %g, but %g was found", objective.Score(m, best), score)
		}
	})
}

// TestExact against trying everything.
func TestExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var vees []string
		for range rapid.IntRange(1, 5).Draw(t, "VEEs") {
			vees = append(vees, fmt.Sprintf("%d:%d", rapid.IntRange(0, 2).Draw(t, "at"), rapid.IntRange(0, 3).Draw(t, "size")))
		}
		m := site(3, vees...)
		m.Hosts[0].Rack, m.Hosts[1].Rack, m.Hosts[2].Rack = "a", "a", "b"
		ends := []int32{0, int32(len(vees) - 1)}
		rules := []model.Constraint{model.Spread{VEEs: ends}, model.Near{VEEs: ends[:1], On: ends[1:], Scope: model.InRack},
			model.Gather{VEEs: ends, Scope: model.InRack}, model.Ban{VEEs: ends, Hosts: []int32{1}}, model.Lonely{VEEs: ends},
			model.MinPlaces{VEEs: ends, Scope: model.InRack, Min: 2}, model.RunningCapacity{Hosts: []int32{2}, Max: 1}}
		for range rapid.IntRange(0, 2).Draw(t, "rules") {
			c := rules[rapid.IntRange(0, len(rules)-1).Draw(t, "rule")]
			m.Rules = append(m.Rules, model.Rule{Constraint: c, Weight: .3 * float64(rapid.IntRange(0, 2).Draw(t, "weight"))})
		}
		objective := solve.Objective{Balance: rapid.Float64Range(0, 1).Draw(t, "balance"), Consolidate: rapid.Float64Range(0, 1).Draw(t, "consolidate"), Migrations: .1 * float64(rapid.IntRange(0, 2).Draw(t, "migrations"))}
		got, err := solve.Exact(m, objective, solve.Options{})
		best := math.Inf(1)
		for at := range everywhere(len(vees)) {
			target := solve.Target{State: slices.Repeat([]model.State{model.Running}, len(vees)), At: at, On: []bool{true, true, true}}
			if feasible(m, at) {
				best = min(best, objective.Score(m, target))
			}
		}
		if math.IsInf(best, 1) != (err != nil) {
			t.Fatalf("best is %g, but Exact says %v", best, err)
		}
		if err == nil && math.Abs(objective.Score(m, got)-best) > 1e-6 {
			t.Fatalf("Exact scores %g, the best is %g", objective.Score(m, got), best)
		}
	})
}

// everywhere is every placement of n VEEs on three hosts.
func everywhere(n int) func(func([]int32) bool) {
	return func(yield func([]int32) bool) {
		at := make([]int32, n)
		for {
			if !yield(at) {
				return
			}
			i := 0
			for ; i < n && at[i] == 2; i++ {
				at[i] = 0
			}
			if i == n {
				return
			}
			at[i]++
		}
	}
}

// feasible asks the checker about a model that begins so.
func feasible(m *model.Model, at []int32) bool {
	c := *m
	c.VEEs = slices.Clone(m.VEEs)
	for v := range c.VEEs {
		c.VEEs[v].Host = at[v]
	}
	return check.Placement(&c) == nil
}
