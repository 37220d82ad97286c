package solve_test

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

func TestContradiction(t *testing.T) {
	both, one := []int32{0, 1}, []int32{0}
	ban := func(h int32) model.Ban { return model.Ban{VEEs: one, Hosts: []int32{h}} }
	for name, c := range map[string]struct {
		m     *model.Model
		rules []model.Constraint
		want  []int
		none  bool
	}{
		"two of three":     {m: site(2, "0:1", "0:1"), rules: []model.Constraint{model.Spread{VEEs: both}, ban(1), model.Gather{VEEs: both}}, want: []int{0, 2}},
		"all together":     {m: site(3, "0:1"), rules: []model.Constraint{ban(0), ban(1), ban(2)}, want: []int{0, 1, 2}},
		"one is enough":    {m: site(2, "0:1"), rules: []model.Constraint{ban(0), model.Fence{VEEs: one}}, want: []int{1}},
		"states":           {m: site(1, "0:1"), rules: []model.Constraint{model.InState{VEEs: one, State: model.Ready}, model.Root{}, model.InState{VEEs: one, State: model.Killed}}, want: []int{0, 2}},
		"rules not at all": {m: site(1, "0:3", "0:3"), rules: []model.Constraint{ban(0)}},
		"nothing":          {m: site(2, "0:1"), rules: []model.Constraint{ban(0)}, none: true},
	} {
		t.Run(name, func(t *testing.T) {
			c.m.Require(c.rules...)
			c.m.Prefer(1, model.Fence{VEEs: one})
			got, err := solve.Contradiction(c.m, solve.Options{})
			if (err != nil) != c.none || !slices.Equal(got, c.want) {
				t.Errorf("rules %v, %v, want %v", got, err, c.want)
			}
		})
	}
	if _, err := solve.Contradiction(site(2, "0:3", "0:3"), solve.Options{Stop: func() bool { return true }}); !errors.Is(err, solve.ErrStopped) {
		t.Errorf("without time: %v", err)
	}
}

// TestContradictionIsOne: with the rules that it names there is no placement.
func TestContradictionIsOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		o := solve.Options{Iterations: 300}
		found, err := solve.Contradiction(m, o)
		if err != nil {
			return
		}
		all := m.Rules
		m.Rules = nil
		for _, i := range found {
			m.Rules = append(m.Rules, all[i])
		}
		if _, err := solve.Repair(m, o); err == nil {
			t.Fatalf("a placement with the rules %v", m.Rules)
		}
	})
}
