package solve_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// TestMillion VEEs on 20,000 hosts: one is placed, a host that has too many is relieved, and
// the checker accepts the plan.
func TestMillion(t *testing.T) {
	const hosts, vees = 20_000, 1_000_000
	m := model.New("cpu", "memory")
	for range hosts {
		m.AddHost(model.Host{Name: "h"}, 100, 100)
	}
	for v := range vees {
		m.AddVEE(model.VEE{Name: "v", State: model.Running, Host: int32(v % hosts)}, 1, 1)
	}
	p := solve.NewPlacer(m, solve.Balance)
	if h := p.Place(m.AddVEE(model.VEE{Name: "new"}, 1, 1)); h != 0 {
		t.Errorf("placed on host %d, want the first of equals", h)
	}
	for range 80 {
		m.AddVEE(model.VEE{Name: "more", State: model.Running, Host: 7}, 1, 1)
	}
	plan, err := p.Relieve([]int32{7}, solve.Options{})
	if err != nil || len(plan.Actions) != 30 {
		t.Fatalf("%d actions, %v: want the 30 that are too many to go", len(plan.Actions), err)
	}
	if err := check.Plan(m, plan); err != nil {
		t.Error(err)
	}
}

// TestMillionRepaired: a whole site of a million VEEs is repaired and planned for, one host of
// which drains and some of which have too many, and searched for better placements until
// there is no more time.
func TestMillionRepaired(t *testing.T) {
	const hosts, vees = 20_000, 1_000_000
	m := model.New("cpu", "memory")
	for range hosts {
		m.AddHost(model.Host{Name: "h"}, 100, 100)
	}
	m.Hosts[3].Draining = true
	for v := range vees {
		m.AddVEE(model.VEE{Name: "v", State: model.Running, Host: int32(v % hosts)}, 1, 1+int64(v%hosts/19_900))
	}
	asked := 0
	stop := solve.Options{Seed: 1, Stop: func() bool { asked++; return asked > 100 }}
	target, err := solve.Optimise(m, solve.Objective{Balance: 1}, stop)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := solve.Schedule(m, target)
	if err != nil {
		t.Fatal(err)
	}
	if n := plan.Migrations(); n < 50 {
		t.Errorf("%d migrations: want the 50 VEEs of host 3 at least to leave it", n)
	}
	if err := check.Plan(m, plan); err != nil {
		t.Error(err)
	}
}

// TestNoNumber: weights that are none are refused.
func TestNoNumber(t *testing.T) {
	for _, w := range []float64{math.NaN(), math.Inf(1), -1} {
		for kind, f := range map[string]func(*model.Model, solve.Objective, solve.Options) (solve.Target, error){"optimise": solve.Optimise, "exact": solve.Exact} {
			for i, o := range []solve.Objective{{Balance: w}, {Consolidate: w}, {Cost: w}, {Energy: w}, {Distance: w}, {Migrations: w}, {Time: w}} {
				if _, err := f(site(2, "0:1"), o, solve.Options{}); err == nil || !strings.Contains(err.Error(), "a number from 0 on") {
					t.Errorf("%s with weight %d of %v: %v", kind, i, w, err)
				}
			}
		}
	}
}

// TestExtremes: amounts of nothing and of all there can be, and no time at all.
func TestExtremes(t *testing.T) {
	for name, c := range map[string]struct {
		capacity, demand int64
		fits             bool
	}{
		"nothing on nothing":   {0, 0, true},
		"something on nothing": {0, 1, false},
		"all on all":           {model.MaxAmount, model.MaxAmount, true},
		"all on less":          {model.MaxAmount - 1, model.MaxAmount, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := model.New("amount")
			for h := range 3 {
				m.AddHost(model.Host{Name: fmt.Sprint("h", h)}, c.capacity)
			}
			v := m.AddVEE(model.VEE{Name: "v"}, c.demand)
			m.Require(model.InState{VEEs: []int32{v}, State: model.Running})
			if err := m.Validate(); err != nil {
				t.Fatal(err)
			}
			objective := solve.Objective{Balance: 1, Consolidate: 1, Cost: 1, Migrations: 1}
			for kind, solved := range map[string]func() (solve.Target, error){
				"repair":   func() (solve.Target, error) { return solve.Repair(m, solve.Options{}) },
				"optimise": func() (solve.Target, error) { return solve.Optimise(m, objective, solve.Options{}) },
				"exact":    func() (solve.Target, error) { return solve.Exact(m, objective, solve.Options{}) },
			} {
				target, err := solved()
				if (err == nil) != c.fits {
					t.Fatalf("%s: %v", kind, err)
				}
				if err != nil {
					continue
				}
				p, err := solve.Schedule(m, target)
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				if err := check.Plan(m, p); err != nil {
					t.Errorf("%s: %v", kind, err)
				}
			}
		})
	}
}

// TestNoTime: with a deadline that is over, the answer is that there was no time, or what is
// known without any.
func TestNoTime(t *testing.T) {
	over := solve.Options{Stop: func() bool { return true }}
	well := site(2, "0:2", "1:2")
	target, err := solve.Optimise(well, solve.Objective{Balance: 1}, over)
	if err != nil || target.At[0] != 0 || target.At[1] != 1 {
		t.Errorf("nothing is broken: %v, %v, want it as it is", target.At, err)
	}
	asked := 0
	if _, err := solve.Optimise(site(2, "0:2", "0:2"), solve.Objective{Balance: 1}, solve.Options{Stop: func() bool { asked++; return true }}); err != nil || asked > 10 {
		t.Errorf("asked for the time %d times after it was over, %v", asked, err)
	}
}

// TestWishes: a soft rule is kept where it costs less than it weighs, and broken where it must
// be.
func TestWishes(t *testing.T) {
	apart := model.Spread{VEEs: []int32{0, 1}}
	for name, c := range map[string]struct {
		m      *model.Model
		weight float64
		want   float64
	}{
		"worth a migration":     {site(2, "0:1", "0:1"), 2, 1},
		"not worth a migration": {site(2, "0:1", "0:1"), .5, .5},
		"impossible":            {site(1, "0:1", "0:1"), 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			c.m.Prefer(c.weight, apart)
			objective := solve.Objective{Migrations: 1}
			for kind, f := range map[string]func(*model.Model, solve.Objective, solve.Options) (solve.Target, error){"optimise": solve.Optimise, "exact": solve.Exact} {
				target, err := f(c.m, objective, solve.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if got := objective.Score(c.m, target); got != c.want {
					t.Errorf("%s: score %g on %v, want %g", kind, got, target.At, c.want)
				}
			}
		})
	}
	m := site(3, "0:1")
	m.Prefer(1, model.Spread{VEEs: []int32{0, m.AddVEE(model.VEE{Name: "new"}, 1)}})
	m.Prefer(1, model.Ban{VEEs: []int32{1}, Hosts: []int32{1}})
	if h := solve.NewPlacer(m, solve.Pack).Place(1); h != 2 {
		t.Errorf("placed on host %d, want 2, against which no wish speaks", h)
	}
}
