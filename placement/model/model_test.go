package model_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*model.Model)
		want   string
	}{
		"sound":             {func(*model.Model) {}, ""},
		"zero capacity":     {func(m *model.Model) { m.AddHost(model.Host{Name: "z"}, 0) }, ""},
		"negative":          {func(m *model.Model) { m.AddHost(model.Host{Name: "n"}, -1) }, "host n has -1 of cpu"},
		"enormous":          {func(m *model.Model) { m.AddVEE(model.VEE{Name: "e"}, math.MaxInt64) }, "use a larger unit"},
		"more heat":         {func(m *model.Model) { m.Hosts[0].Heat = 2 }, "has 2 of its heat wanted"},
		"no heat":           {func(m *model.Model) { m.Hosts[0].Heat = math.NaN() }, "has NaN of its heat wanted"},
		"no number":         {func(m *model.Model) { m.Hosts[0].Price = math.NaN() }, "the price NaN"},
		"infinite weight":   {func(m *model.Model) { m.Prefer(math.Inf(1), model.Root{}) }, "the weight +Inf"},
		"host of nowhere":   {func(m *model.Model) { m.VEEs[0].Host = 9 }, "running on host 9 of 1"},
		"running on off":    {func(m *model.Model) { m.Hosts[0].Off = true }, "which is off"},
		"rule of nobody":    {func(m *model.Model) { m.Require(model.Root{VEEs: []int32{7}}) }, "names VEE 7 of 1"},
		"rule of no host":   {func(m *model.Model) { m.Require(model.Quarantine{Hosts: []int32{-1}}) }, "names host -1"},
		"no such dimension": {func(m *model.Model) { m.Require(model.Preserve{Dimension: 4}) }, "names dimension 4"},
		"in two groups":     {func(m *model.Model) { m.Require(model.Split{Groups: [][]int32{{0}, {0}}}) }, "in two groups"},
		"empty rule":        {func(m *model.Model) { m.Require(nil) }, "no constraint"},
		"negative time":     {func(m *model.Model) { m.VEEs[0].Start = -1 }, "negative length"},
	} {
		t.Run(name, func(t *testing.T) {
			m := model.New("cpu")
			m.AddHost(model.Host{Name: "h"}, 4)
			m.AddVEE(model.VEE{Name: "v", State: model.Running}, 1)
			c.change(m)
			err := m.Validate()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("Validate: %v, want it to say %q", err, c.want)
			}
		})
	}
}

func TestPromise(t *testing.T) {
	m := model.New("cpu", "mem")
	v := m.AddVEE(model.VEE{}, 1, 2)
	if p := m.Promised(v); p[0] != 1 || p[1] != 2 {
		t.Errorf("promised %v without a promise", p)
	}
	m.Promise(v, 4, 8)
	w := m.AddVEE(model.VEE{}, 3)
	if p, q := m.Promised(v), m.Promised(w); p[0] != 4 || p[1] != 8 || q[0] != 3 || q[1] != 0 || m.Demand(v)[0] != 1 {
		t.Errorf("promised %v and %v", p, q)
	}
}

// TestMigrationDuration: memory and what is dirtied meanwhile, over the slot's share.
func TestMigrationDuration(t *testing.T) {
	for _, c := range []struct {
		g      model.Migration
		memory int64
		dirty  float64
		want   time.Duration
	}{
		{model.Migration{Least: time.Second}, 1000, 0, time.Second},
		{model.Migration{MiBs: 100}, 1000, 0, 10 * time.Second},
		{model.Migration{MiBs: 100}, 1000, 50, 20 * time.Second},
		{model.Migration{MiBs: 100, Slots: 2}, 1000, 0, 20 * time.Second},
		{model.Migration{MiBs: 100}, 1000, 1e9, 100 * time.Second},
		{model.Migration{MiBs: 100, Least: time.Minute}, 0, 0, time.Minute},
	} {
		if got := c.g.Duration(&model.VEE{MemoryMiB: c.memory, DirtyMiBs: c.dirty}); got.Round(time.Millisecond) != c.want {
			t.Errorf("%+v, %d MiB, %g MiB/s dirty: %v, want %v", c.g, c.memory, c.dirty, got, c.want)
		}
	}
}
