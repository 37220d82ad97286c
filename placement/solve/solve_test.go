package solve_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// hosts of 4 each, and running VEEs given as "host:size".
func site(hosts int, vees ...string) *model.Model {
	m := model.New("cpu")
	m.Migration = model.Migration{Least: time.Second, Allocation: time.Second}
	for h := range hosts {
		m.AddHost(model.Host{Name: fmt.Sprint("h", h), Boot: time.Second, Shutdown: time.Second}, 4)
	}
	for i, v := range vees {
		x := model.VEE{Name: fmt.Sprint("v", i), Start: time.Second, Stop: time.Second, Suspend: time.Second, Resume: time.Second}
		var size int64
		if n, _ := fmt.Sscanf(v, "%d:%d", &x.Host, &size); n == 2 {
			x.State = model.Running
		} else {
			fmt.Sscanf(v, "ready:%d", &size)
		}
		m.AddVEE(x, size)
	}
	return m
}

func TestPlacer(t *testing.T) {
	m := site(3, "0:1", "1:2", "2:3", "ready:1", "ready:2", "ready:4")
	m.Require(model.Spread{VEEs: []int32{2, 3}})
	p := solve.NewPlacer(m, solve.Pack)
	if h := p.Place(3); h != 1 {
		t.Errorf("packed v3 on %d, want 1: the fullest, 2, is forbidden", h)
	}
	p = solve.NewPlacer(m, solve.Balance)
	if h := p.Place(4); h != 0 {
		t.Errorf("balanced v4 to %d, want 0", h)
	}
	if h := p.Place(5); h != model.None {
		t.Errorf("placed v5 on %d, where there is no room", h)
	}
	c, ok := p.Explain(5)
	if !ok || len(c.Reasons) != 1 || c.Reasons[0].Dimension != 0 || c.Reasons[0].Hosts != 3 {
		t.Errorf("Explain: %+v, %v", c, ok)
	}
	if text := p.String(c); !strings.Contains(text, "3 hosts: too little cpu") || !strings.Contains(text, "it lacks 2 of cpu") {
		t.Errorf("the conflict reads %q", text)
	}
	if text := p.Text(p.Why(3, 2)); !strings.Contains(text, "on distinct hosts") {
		t.Errorf("why not 2: %q", text)
	}
	if w := p.Why(3, 1); !w.Fits() {
		t.Errorf("why not 1: %+v", w)
	}
	p.Remove(4)
	if p.At(4) != model.None {
		t.Error("v4 is still there")
	}
	late := m.AddVEE(model.VEE{Name: "late"}, 2)
	if h := p.Place(late); h != 0 {
		t.Errorf("placed a VEE added later on %d, want 0", h)
	}
}

// TestConflictIsSmallest: no reason can be left out.
func TestConflictIsSmallest(t *testing.T) {
	m := site(4, "0:4", "1:1", "2:1", "3:1", "ready:2")
	m.Hosts[1].Draining = true
	m.Require(model.Ban{VEEs: []int32{4}, Hosts: []int32{0, 2, 3}}, model.Fence{VEEs: []int32{4}, Hosts: []int32{0, 1}})
	p := solve.NewPlacer(m, solve.Balance)
	c, ok := p.Explain(4)
	if !ok || len(c.Reasons) != 2 {
		t.Fatalf("Explain: %+v, %v, want two reasons", c, ok)
	}
	if c.Nearest.Host == 0 {
		t.Errorf("the nearest host is the full one: %+v", c.Nearest)
	}
}

func TestBatch(t *testing.T) {
	m := site(2, "ready:1", "ready:3", "ready:2", "ready:2")
	p := solve.NewPlacer(m, solve.Balance)
	got := p.Batch([]int32{0, 1, 2, 3})
	if slices.Contains(got, model.None) || got[0] != got[1] || got[2] != got[3] {
		t.Errorf("batch on %v, want 0 with 1 and 2 with 3", got)
	}
	m = site(1, "ready:3", "ready:3")
	if got := solve.NewPlacer(m, solve.Pack).Batch([]int32{0, 1}); got[0] == got[1] {
		t.Errorf("batch on %v, want one without a place", got)
	}
}

func TestRepair(t *testing.T) {
	vs := func(v ...int32) []int32 { return v }
	always := model.Always{Continuous: true}
	for name, c := range map[string]struct {
		m     *model.Model
		rules []model.Constraint
		off   []int32
		drain []int32
		want  string // actions, or the error
	}{
		"nothing to do":       {m: site(2, "0:1", "1:1"), want: ""},
		"overload":            {m: site(2, "0:3", "0:2", "1:1"), want: "migrate VEE 0 from host 0 to host 1"},
		"spread":              {m: site(2, "0:1", "0:1"), rules: []model.Constraint{model.Spread{VEEs: vs(0, 1), Always: always}}, want: "migrate VEE 0 from host 0 to host 1"},
		"gather":              {m: site(2, "0:1", "1:1"), rules: []model.Constraint{model.Gather{VEEs: vs(0, 1)}}, want: "migrate VEE 0 from host 0 to host 1"},
		"start":               {m: site(2, "0:3", "ready:2"), rules: []model.Constraint{model.InState{VEEs: vs(1), State: model.Running}}, want: "start VEE 1 on host 1"},
		"stop":                {m: site(2, "0:3"), rules: []model.Constraint{model.InState{VEEs: vs(0), State: model.Ready}}, want: "stop VEE 0 on host 0"},
		"drain":               {m: site(2, "0:1", "0:1", "1:1"), drain: vs(0), want: "migrate VEE 0 from host 0 to host 1; migrate VEE 1 from host 0 to host 1"},
		"off":                 {m: site(2, "0:1", "1:1"), rules: []model.Constraint{model.Power{Hosts: vs(0)}}, want: "migrate VEE 0 from host 0 to host 1; shut down host 0"},
		"max online":          {m: site(2, "0:1", "1:1", "1:1"), rules: []model.Constraint{model.MaxOnline{Hosts: vs(0, 1), Max: 1}}, want: "migrate VEE 0 from host 0 to host 1; shut down host 0"},
		"wake":                {m: site(2, "0:3", "ready:2"), off: vs(1), rules: []model.Constraint{model.InState{VEEs: vs(1), State: model.Running}}, want: "boot host 1; start VEE 1 on host 1"},
		"preserve":            {m: site(2, "0:1"), rules: []model.Constraint{model.Preserve{VEEs: vs(0), Amount: 3}}, want: "allocate VEE 0 on host 0"},
		"drive out":           {m: site(2, "0:2", "1:2", "ready:4"), rules: []model.Constraint{model.InState{VEEs: vs(2), State: model.Running}}, want: "migrate VEE"},
		"bypass":              {m: site(3, "0:3", "1:3"), rules: []model.Constraint{model.Fence{VEEs: vs(0), Hosts: vs(1)}, model.Fence{VEEs: vs(1), Hosts: vs(0)}}, want: "migrate VEE 0 from host 0 to host 2; migrate VEE 1 from host 1 to host 0; migrate VEE 0 from host 2 to host 1"},
		"sleep":               {m: site(2, "0:3", "1:3"), rules: []model.Constraint{model.Fence{VEEs: vs(0), Hosts: vs(1)}, model.Fence{VEEs: vs(1), Hosts: vs(0)}}, want: "suspend VEE 0 on host 0; migrate VEE 1 from host 1 to host 0; resume VEE 0 from host 0 to host 1"},
		"precedence":          {m: site(2, "ready:1", "ready:1"), rules: []model.Constraint{model.InState{VEEs: vs(0, 1), State: model.Running}, model.Precedence{Before: vs(1), After: vs(0)}}, want: "start VEE 1 on host 1; start VEE 0 on host 0"},
		"no room":             {m: site(1, "0:3", "ready:2"), rules: []model.Constraint{model.InState{VEEs: vs(1), State: model.Running}}, want: "error: no"},
		"too large":           {m: site(2, "ready:5"), rules: []model.Constraint{model.InState{VEEs: vs(0), State: model.Running}}, want: "error: no host takes v0: 2 hosts: too little cpu"},
		"rooted and overfull": {m: site(2, "0:3", "0:3"), rules: []model.Constraint{model.Root{VEEs: vs(0, 1)}}, want: "error: host h0 has more"},
		"rooted and draining": {m: site(2, "0:3"), drain: vs(0), rules: []model.Constraint{model.Root{VEEs: vs(0)}}, want: "error: VEE v0 must not move"},
		"contradiction":       {m: site(2, "ready:1"), rules: []model.Constraint{model.InState{VEEs: vs(0), State: model.Sleeping}}, want: "error: VEE v0 is ready and cannot become sleeping"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, h := range c.off {
				c.m.Hosts[h].Off = true
			}
			for _, h := range c.drain {
				c.m.Hosts[h].Draining = true
			}
			c.m.Require(c.rules...)
			p, err := solved(c.m, solve.Options{})
			var got []string
			for _, a := range p.Actions {
				got = append(got, a.String())
			}
			text := strings.Join(got, "; ")
			if err != nil {
				text = "error: " + err.Error()
			} else if err := check.Plan(c.m, p); err != nil {
				t.Errorf("the checker says: %v\n%s", err, text)
			}
			if text != c.want && (c.want == "" || !strings.HasPrefix(text, c.want)) {
				t.Errorf("got  %s\nwant %s", text, c.want)
			}
		})
	}
}

func solved(m *model.Model, o solve.Options) (model.Plan, error) {
	target, err := solve.Repair(m, o)
	if err != nil {
		return model.Plan{}, err
	}
	return solve.Schedule(m, target)
}

func TestRepairStops(t *testing.T) {
	m := site(2, "0:3", "0:3")
	if _, err := solve.Repair(m, solve.Options{Stop: func() bool { return true }}); !errors.Is(err, solve.ErrStopped) {
		t.Errorf("stopped at once: %v", err)
	}
}

// drawModel of some hosts and VEEs and rules of every kind.
func drawModel(t *rapid.T) *model.Model {
	dims := rapid.IntRange(1, 3).Draw(t, "dimensions")
	m := model.New([]model.Dimension{"a", "b", "c"}[:dims]...)
	m.Migration = model.Migration{MiBs: 100, Slots: rapid.IntRange(0, 2).Draw(t, "slots"), Least: time.Second, Allocation: time.Duration(rapid.IntRange(0, 1).Draw(t, "allocation")) * time.Second}
	amounts := func(label string, low, high int64) (a []int64) {
		for range dims {
			a = append(a, rapid.Int64Range(low, high).Draw(t, label))
		}
		return a
	}
	hosts := rapid.IntRange(1, 6).Draw(t, "hosts")
	if m.Migration.Shared = rapid.Bool().Draw(t, "shared"); m.Migration.Shared && rapid.Bool().Draw(t, "link") {
		m.Migration.Links = []model.Link{{Hosts: drawSome(t, hosts), MiBs: rapid.Float64Range(0, 300).Draw(t, "link")}}
	}
	for h := range hosts {
		kind := rapid.IntRange(0, 9).Draw(t, "host")
		m.AddHost(model.Host{Name: fmt.Sprint("h", h), Rack: fmt.Sprint("r", h/2), Room: fmt.Sprint("m", h/3), Off: kind == 0, Draining: kind == 1,
			Price: float64(h), Watts: float64(100 * (h % 3)), Heat: float64(h%2) / 2, Distance: float64(h % 4), Boot: 2 * time.Second, Shutdown: time.Second, LinkMiBs: rapid.SampledFrom([]float64{0, 0, 40, 250}).Draw(t, "link")}, amounts("capacity", 0, 12)...)
	}
	for v := range rapid.IntRange(0, 12).Draw(t, "VEEs") {
		x := model.VEE{Name: fmt.Sprint("v", v), Start: time.Second, Stop: time.Second, Suspend: time.Second, Resume: time.Second,
			MemoryMiB: rapid.Int64Range(0, 900).Draw(t, "memory"), DirtyMiBs: rapid.Float64Range(0, 120).Draw(t, "dirty"), HotMiB: rapid.Int64Range(0, 99).Draw(t, "hot"), Clonable: rapid.Bool().Draw(t, "clonable")}
		x.Host = int32(rapid.IntRange(0, hosts-1).Draw(t, "at"))
		if kind := rapid.IntRange(0, 5).Draw(t, "state"); kind == 1 {
			x.State = model.Sleeping
		} else if kind > 1 && !m.Hosts[x.Host].Off {
			x.State = model.Running
		}
		m.AddVEE(x, amounts("demand", 0, 5)...)
	}
	vees := func() []int32 { return drawSome(t, len(m.VEEs)) }
	some := func() []int32 { return drawSome(t, hosts) }
	for range rapid.IntRange(0, 4).Draw(t, "rules") {
		always := model.Always{Continuous: rapid.Bool().Draw(t, "continuous")}
		scope := model.Scope(rapid.IntRange(0, 2).Draw(t, "scope"))
		d := rapid.IntRange(0, dims-1).Draw(t, "dimension")
		sets := func(all []int32) [][]int32 { // two that share none
			i := len(all) / 2
			return [][]int32{all[:i], all[i:]}
		}
		c := []model.Constraint{
			model.Fence{VEEs: vees(), Hosts: some()}, model.Ban{VEEs: vees(), Hosts: some(), Always: always},
			model.Spread{VEEs: vees(), Scope: scope, Always: always}, model.Gather{VEEs: vees(), Scope: scope, Always: always},
			model.Lonely{VEEs: vees(), Always: always}, model.Split{Groups: sets(vees()), Always: always},
			model.Among{VEEs: vees(), Groups: sets(some()), Always: always}, model.SplitAmong{Sets: sets(vees()), Groups: sets(some()), Always: always},
			model.Preserve{VEEs: vees(), Dimension: d, Amount: rapid.Int64Range(0, 6).Draw(t, "amount")},
			model.Overbook{Hosts: some(), Dimension: d, Ratio: rapid.Float64Range(.5, 2).Draw(t, "ratio"), Always: always},
			model.ResourceCapacity{Hosts: some(), Dimension: d, Max: rapid.Int64Range(0, 20).Draw(t, "max"), Always: always},
			model.RunningCapacity{Hosts: some(), Max: rapid.IntRange(0, 8).Draw(t, "max"), Always: always},
			model.InState{VEEs: vees(), State: model.State(rapid.IntRange(0, 3).Draw(t, "wanted"))},
			model.Power{Hosts: some(), On: rapid.Bool().Draw(t, "on")}, model.MaxOnline{Hosts: some(), Max: rapid.IntRange(1, hosts).Draw(t, "online"), Always: always},
			model.Root{VEEs: vees()}, model.Quarantine{Hosts: some()}, model.MinPlaces{VEEs: vees(), Scope: scope, Min: rapid.IntRange(0, 2).Draw(t, "places")},
			model.Near{VEEs: vees(), On: vees(), Scope: scope}, model.CostCeiling{VEEs: vees(), Max: float64(hosts) / 2},
			model.Seq{VEEs: vees()}, model.NoDelay{VEEs: vees()}, model.Deadline{VEEs: vees(), By: 5 * time.Second},
			model.Precedence{Before: vees(), After: vees()}, model.Serialize{VEEs: vees()}, model.Sync{VEEs: vees()},
		}
		m.Require(c[rapid.IntRange(0, len(c)-1).Draw(t, "rule")])
	}
	return m
}

func drawSome(t *rapid.T, n int) (some []int32) {
	for i := range n {
		if rapid.IntRange(0, 2).Draw(t, "in") == 0 {
			some = append(some, int32(i))
		}
	}
	return some
}

// TestCheckerAgrees: whatever the model, the solver answers, always the same, and the
// checker finds nothing wrong with a plan.
func TestCheckerAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		if err := m.Validate(); err != nil {
			t.Fatalf("drew an invalid model: %v", err)
		}
		p, err := solved(m, solve.Options{Seed: 3, Iterations: 300})
		again, err2 := solved(m, solve.Options{Seed: 3, Iterations: 300})
		if !reflect.DeepEqual(p, again) || (err == nil) != (err2 == nil) {
			t.Fatalf("not reproducible: %v (%v) then %v (%v)", p, err, again, err2)
		}
		if err != nil {
			return
		}
		if err := check.Plan(m, p); err != nil {
			t.Fatalf("the checker rejects the plan: %v\n%v\nrules %v", err, p, m.Rules)
		}
	})
}

// TestPlanSurvivesDelay: when actions take longer than planned, those that come After them
// wait, and the plan is as good as before, but for the rules on its times.
func TestPlanSurvivesDelay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		m.Rules = slices.DeleteFunc(m.Rules, func(r model.Rule) bool {
			_, ok := r.Constraint.(model.OnPlan)
			return ok
		})
		p, err := solved(m, solve.Options{Iterations: 300})
		if err != nil {
			return
		}
		for i := range p.Actions {
			a := &p.Actions[i]
			length := a.End - a.Start + time.Duration(rapid.IntRange(0, 9).Draw(t, "delay"))*time.Second
			a.Start = 0
			for _, j := range a.After {
				a.Start = max(a.Start, p.Actions[j].End)
			}
			a.End = a.Start + length
		}
		if err := check.Plan(m, p); err != nil {
			t.Fatalf("the checker rejects the delayed plan: %v\n%+v\nrules %v", err, p, m.Rules)
		}
	})
}

// TestPlacerAgrees: one by one, every choice is a host that takes it, and none only if none
// does; after all of them the placement is valid.
func TestPlacerAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		p := solve.NewPlacer(m, solve.Policy(rapid.IntRange(0, 1).Draw(t, "policy")))
		for v := range m.VEEs {
			if p.At(int32(v)) != model.None {
				continue
			}
			var fit []int32
			for h := range m.Hosts {
				if p.Why(int32(v), int32(h)).Fits() {
					fit = append(fit, int32(h))
				}
			}
			if h := p.Place(int32(v)); h == model.None != (len(fit) == 0) || h != model.None && !slices.Contains(fit, h) {
				t.Fatalf("placed VEE %d on %d, of those that take it, %v", v, h, fit)
			}
			if c, ok := p.Explain(int32(v)); ok && p.At(int32(v)) == model.None && len(c.Reasons) == 0 {
				t.Fatalf("no reason why VEE %d has no place", v)
			}
		}
	})
}
