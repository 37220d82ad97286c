package check_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
)

// site of four hosts, a and b in rack r1 and room m1, c and d in r2 and m2; d is off. VEEs
// 0 and 1 run on a, 2 on b, 3 on c, 4 is ready. Each VEE needs 1 of 4.
func site() *model.Model {
	m := model.New("cpu")
	for i, n := range []string{"a", "b", "c", "d"} {
		m.AddHost(model.Host{Name: n, Rack: fmt.Sprint("r", 1+i/2), Room: fmt.Sprint("m", 1+i/2), Site: "s", Jurisdiction: []string{"EU", "EU", "US", "US"}[i],
			Labels: []string{"l" + n}, Hypervisors: []string{"qemu"}, Price: float64(i), Off: n == "d", Boot: time.Second, Shutdown: time.Second}, 4)
	}
	for i, h := range []int32{0, 0, 1, 2} {
		m.AddVEE(model.VEE{Name: fmt.Sprint("v", i), State: model.Running, Host: h, Stop: time.Second, Suspend: time.Second, Resume: time.Second, Start: time.Second}, 1)
	}
	m.AddVEE(model.VEE{Name: "v4", Start: time.Second}, 1)
	m.Migration = model.Migration{Least: time.Second}
	return m
}

func move(v, from, to int32, start time.Duration) model.Action {
	return model.Action{Kind: model.Migrate, VEE: v, From: from, To: to, Start: start, End: start + time.Second}
}

var always = model.Always{Continuous: true}

// constraintCase is a constraint on site, checked after plan.
type constraintCase struct {
	c    model.Constraint
	plan []model.Action
	want string // part of the error
}

// constraintCases has each constraint satisfied and violated: see TestCatalogue.
func constraintCases() map[string]constraintCase {
	vs := func(v ...int32) []int32 { return v }
	away := []model.Action{move(1, 0, 2, 0)} // v1 from a to c
	return map[string]constraintCase{
		"fence":                   {model.Fence{VEEs: vs(0, 1), Hosts: vs(0, 3)}, nil, ""},
		"fence broken":            {model.Fence{VEEs: vs(0, 1), Hosts: vs(0, 3)}, away, "v1 is on c"},
		"ban":                     {model.Ban{VEEs: vs(0, 1), Hosts: vs(2)}, nil, ""},
		"ban broken":              {model.Ban{VEEs: vs(0, 1), Hosts: vs(2)}, away, "v1 is on c"},
		"located":                 {model.Located{VEEs: vs(0, 1), Jurisdictions: []string{"EU"}}, nil, ""},
		"located broken":          {model.Located{VEEs: vs(0, 1), Jurisdictions: []string{"EU"}}, away, "v1 is on c"},
		"labelled":                {model.Labelled{VEEs: vs(1), Label: "la"}, nil, ""},
		"labelled broken":         {model.Labelled{VEEs: vs(1), Label: "la"}, away, "v1 is on c"},
		"hypervised":              {model.Hypervised{VEEs: vs(1), Hypervisor: "qemu"}, away, ""},
		"hypervised broken":       {model.Hypervised{VEEs: vs(1), Hypervisor: "xen"}, nil, "v1 is on a"},
		"cost ceiling":            {model.CostCeiling{VEEs: vs(1), Max: 1}, nil, ""},
		"cost ceiling broken":     {model.CostCeiling{VEEs: vs(1), Max: 1}, away, "v1 is on c"},
		"spread":                  {model.Spread{VEEs: vs(0, 2, 3)}, nil, ""},
		"spread broken":           {model.Spread{VEEs: vs(0, 1, 2)}, nil, "v0 and v1 share host a"},
		"spread over racks":       {model.Spread{VEEs: vs(0, 3), Scope: model.InRack}, nil, ""},
		"spread racks broken":     {model.Spread{VEEs: vs(0, 2), Scope: model.InRack}, nil, "share rack r1"},
		"gather":                  {model.Gather{VEEs: vs(0, 1)}, nil, ""},
		"gather broken":           {model.Gather{VEEs: vs(0, 1)}, away, "one is on a and v1 on c"},
		"gather in a room":        {model.Gather{VEEs: vs(0, 2), Scope: model.InRoom}, nil, ""},
		"gather room broken":      {model.Gather{VEEs: vs(0, 3), Scope: model.InRoom}, nil, "one is on a and v3 on c"},
		"lonely":                  {model.Lonely{VEEs: vs(0, 1)}, nil, ""},
		"lonely broken":           {model.Lonely{VEEs: vs(0)}, nil, "v0 shares a with v1"},
		"split":                   {model.Split{Groups: [][]int32{{0, 1}, {2, 3}}}, nil, ""},
		"split broken":            {model.Split{Groups: [][]int32{{0, 1}, {2, 3}}}, away, "groups 0 and 1 are on c"},
		"among":                   {model.Among{VEEs: vs(0, 1, 2), Groups: [][]int32{{0, 1}, {2, 3}}}, nil, ""},
		"among apart":             {model.Among{VEEs: vs(0, 1), Groups: [][]int32{{0, 1}, {2, 3}}}, away, "apart from the others"},
		"among none":              {model.Among{VEEs: vs(0), Groups: [][]int32{{1}}}, nil, "in none of the groups"},
		"split among":             {model.SplitAmong{Sets: [][]int32{{0, 1}, {3}}, Groups: [][]int32{{0, 1}, {2, 3}}}, nil, ""},
		"split among broken":      {model.SplitAmong{Sets: [][]int32{{0, 1}, {2}}, Groups: [][]int32{{0, 1}, {2, 3}}}, nil, "sets 0 and 1 share group 0"},
		"preserve":                {model.Preserve{VEEs: vs(0), Amount: 1}, nil, ""},
		"preserve broken":         {model.Preserve{VEEs: vs(0), Amount: 2}, nil, "v0 has 1"},
		"overbook":                {model.Overbook{Hosts: vs(0, 1), Ratio: .5}, nil, ""},
		"overbook broken":         {model.Overbook{Hosts: vs(0, 1), Ratio: .25}, nil, "2 on a"},
		"resource capacity":       {model.ResourceCapacity{Hosts: vs(0, 1), Max: 3}, nil, ""},
		"resource cap. broken":    {model.ResourceCapacity{Hosts: vs(0, 1), Max: 2}, nil, ": 3"},
		"running capacity":        {model.RunningCapacity{Hosts: vs(0, 1), Max: 3}, nil, ""},
		"running capacity broken": {model.RunningCapacity{Hosts: vs(0, 1), Max: 2}, nil, ": 3"},
		"running":                 {model.InState{VEEs: vs(0, 1), State: model.Running}, nil, ""},
		"running broken":          {model.InState{VEEs: vs(4), State: model.Running}, nil, "v4 is ready"},
		"killed":                  {model.InState{VEEs: vs(0), State: model.Killed}, []model.Action{{Kind: model.KillVEE, VEE: 0, From: 0, To: -1, End: time.Second}}, ""},
		"sleeping":                {model.InState{VEEs: vs(0), State: model.Sleeping}, []model.Action{{Kind: model.Suspend, VEE: 0, From: 0, To: -1, End: time.Second}}, ""},
		"ready":                   {model.InState{VEEs: vs(0), State: model.Ready}, []model.Action{{Kind: model.StopVEE, VEE: 0, From: 0, To: -1, End: time.Second}}, ""},
		"online":                  {model.Power{Hosts: vs(0), On: true}, nil, ""},
		"online broken":           {model.Power{Hosts: vs(3), On: true}, nil, "d is not"},
		"offline broken":          {model.Power{Hosts: vs(0), On: false}, nil, "a is not"},
		"boot":                    {model.Power{Hosts: vs(3), On: true}, []model.Action{{Kind: model.BootHost, VEE: -1, From: -1, To: 3, End: time.Second}}, ""},
		"max online":              {model.MaxOnline{Hosts: vs(0, 1, 2, 3), Max: 3}, nil, ""},
		"max online broken":       {model.MaxOnline{Hosts: vs(0, 1, 2, 3), Max: 2}, nil, ": 3"},
		"min places":              {model.MinPlaces{VEEs: vs(0, 1, 2), Scope: model.OnHost, Min: 2}, nil, ""},
		"min places broken":       {model.MinPlaces{VEEs: vs(0, 1, 2), Scope: model.InRoom, Min: 2}, nil, ": 1"},
		"near":                    {model.Near{VEEs: vs(2), On: vs(0), Scope: model.InRoom}, nil, ""},
		"near broken":             {model.Near{VEEs: vs(3), On: vs(0), Scope: model.InRoom}, nil, "without them"},
		"root":                    {model.Root{VEEs: vs(0)}, away, ""},
		"root broken":             {model.Root{VEEs: vs(1)}, away, "do not move"},
		"quarantine":              {model.Quarantine{Hosts: vs(1)}, away, ""},
		"quarantine broken":       {model.Quarantine{Hosts: vs(2)}, away, "in quarantine"},
		"seq":                     {model.Seq{VEEs: vs(0, 1)}, []model.Action{move(0, 0, 1, 0), move(1, 0, 1, time.Second)}, ""},
		"seq broken":              {model.Seq{VEEs: vs(0, 1)}, []model.Action{move(1, 0, 1, 0), move(0, 0, 1, time.Second)}, "v1 begins before v0"},
		"no delay":                {model.NoDelay{VEEs: vs(1)}, away, ""},
		"no delay broken":         {model.NoDelay{VEEs: vs(1)}, []model.Action{move(1, 0, 1, time.Second)}, "begins after 1s"},
		"deadline":                {model.Deadline{VEEs: vs(1), By: time.Second}, away, ""},
		"deadline broken":         {model.Deadline{VEEs: vs(1), By: time.Second}, []model.Action{move(1, 0, 1, 1)}, "ends after"},
		"precedence":              {model.Precedence{Before: vs(0), After: vs(1)}, []model.Action{move(0, 0, 1, 0), move(1, 0, 1, time.Second)}, ""},
		"precedence broken":       {model.Precedence{Before: vs(0), After: vs(1)}, []model.Action{move(0, 0, 1, 0), move(1, 0, 1, 1)}, "before v0 has ended"},
		"serialize":               {model.Serialize{VEEs: vs(0, 1)}, []model.Action{move(0, 0, 1, time.Second), move(1, 0, 1, 0)}, ""},
		"serialize broken":        {model.Serialize{VEEs: vs(0, 1)}, []model.Action{move(0, 0, 1, 1), move(1, 0, 1, 0)}, "one at a time"},
		"sync":                    {model.Sync{VEEs: vs(0, 1)}, []model.Action{move(0, 0, 1, 1), move(1, 0, 1, 1)}, ""},
		"sync broken":             {model.Sync{VEEs: vs(0, 1)}, []model.Action{move(0, 0, 1, 1), move(1, 0, 1, 0)}, "begin apart"},
	}
}

func TestConstraints(t *testing.T) {
	for name, c := range constraintCases() {
		t.Run(name, func(t *testing.T) {
			m := site()
			m.Require(c.c)
			expect(t, check.Plan(m, model.Plan{Actions: c.plan}), c.want)
		})
	}
}

// continuousCase is a constraint that holds before and after a plan, but not in between.
type continuousCase struct {
	make func(model.Always) model.Constraint
	plan []model.Action
}

// continuousCases has each constraint that may be continuous: see TestCatalogue.
func continuousCases() map[string]continuousCase {
	vs := func(v ...int32) []int32 { return v }
	through := []model.Action{move(2, 1, 2, 0), move(3, 2, 1, 0)} // v2 and v3 change places
	over := []model.Action{move(3, 2, 0, 0), move(3, 0, 1, time.Second)}
	return map[string]continuousCase{
		"spread": {func(a model.Always) model.Constraint { return model.Spread{VEEs: vs(2, 3), Always: a} }, through},
		"ban":    {func(a model.Always) model.Constraint { return model.Ban{VEEs: vs(3), Hosts: vs(0), Always: a} }, over},
		"lonely": {func(a model.Always) model.Constraint { return model.Lonely{VEEs: vs(0, 1), Always: a} }, over},
		"split": {func(a model.Always) model.Constraint {
			return model.Split{Groups: [][]int32{{0, 1}, {3}}, Always: a}
		}, over},
		"running capacity": {func(a model.Always) model.Constraint {
			return model.RunningCapacity{Hosts: vs(0), Max: 2, Always: a}
		}, over},
		"resource capacity": {func(a model.Always) model.Constraint {
			return model.ResourceCapacity{Hosts: vs(0), Max: 2, Always: a}
		}, over},
		"overbook": {func(a model.Always) model.Constraint {
			return model.Overbook{Hosts: vs(0), Ratio: .5, Always: a}
		}, over},
		"gather": {func(a model.Always) model.Constraint { return model.Gather{VEEs: vs(2), Always: a} }, []model.Action{move(2, 1, 0, 0)}},
		"among": {func(a model.Always) model.Constraint {
			return model.Among{VEEs: vs(3), Groups: [][]int32{{0, 1}, {2}}, Always: a}
		}, over},
		"split among": {func(a model.Always) model.Constraint {
			return model.SplitAmong{Sets: [][]int32{{3}, {0, 1}}, Groups: [][]int32{{0}, {1}, {2}}, Always: a}
		}, over},
		"max online": {func(a model.Always) model.Constraint { return model.MaxOnline{Hosts: vs(1, 3), Max: 1, Always: a} },
			[]model.Action{move(2, 1, 0, 0), {Kind: model.BootHost, VEE: -1, From: -1, To: 3, End: time.Second},
				{Kind: model.ShutdownHost, VEE: -1, From: 1, To: -1, Start: 2 * time.Second, End: 3 * time.Second}}},
	}
}

func TestContinuous(t *testing.T) {
	for name, c := range continuousCases() {
		t.Run(name, func(t *testing.T) {
			m := site()
			m.Require(c.make(model.Always{}))
			expect(t, check.Plan(m, model.Plan{Actions: c.plan}), "")
			m = site()
			m.Require(c.make(always))
			expect(t, check.Plan(m, model.Plan{Actions: c.plan}), "at every instant")
		})
	}
}

// TestCatalogue: every constraint of the catalogue has a doc comment that names its source, a
// checker, and tests in which it is satisfied and violated, and broken under way if it may be
// continuous.
func TestCatalogue(t *testing.T) {
	catalogue, err := parser.ParseFile(token.NewFileSet(), "../model/catalogue.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	docs, constraints, continuous := map[string]string{}, map[string]bool{}, map[string]bool{}
	for _, d := range catalogue.Decls {
		switch d := d.(type) {
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				x, ok := spec.(*ast.TypeSpec)
				if !ok {
					continue
				}
				docs[x.Name.Name] = d.Doc.Text()
				if body, ok := x.Type.(*ast.StructType); ok {
					for _, f := range body.Fields.List {
						if of, ok := f.Type.(*ast.Ident); ok && len(f.Names) == 0 && of.Name == "Always" {
							continuous[x.Name.Name] = true
						}
					}
				}
			}
		case *ast.FuncDecl:
			if d.Recv != nil && d.Name.Name == "About" {
				constraints[d.Recv.List[0].Type.(*ast.Ident).Name] = true
			}
		}
	}
	if len(constraints) < 28 || len(continuous) < 11 {
		t.Fatalf("the catalogue has %d constraints, of them %d continuous: it has lost some", len(constraints), len(continuous))
	}
	kind := func(c model.Constraint) string { return reflect.TypeOf(c).Name() }
	satisfied, violated, under := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, c := range constraintCases() {
		_, onPlacement := c.c.(model.OnPlacement)
		if _, onPlan := c.c.(model.OnPlan); onPlacement == onPlan {
			t.Errorf("%s must be checked on a placement or on a plan", kind(c.c))
		}
		if c.want == "" {
			satisfied[kind(c.c)] = true
		} else {
			violated[kind(c.c)] = true
		}
	}
	for _, c := range continuousCases() {
		under[kind(c.make(always))] = true
	}
	for name := range constraints {
		if doc := docs[name]; !strings.HasPrefix(doc, name+" ") || !regexp.MustCompile(`BtrPlace|RESERVOIR|ROADEF|mVM`).MatchString(doc) {
			t.Errorf("%s has no doc comment that names its source: %q", name, doc)
		}
		if !satisfied[name] {
			t.Errorf("%s has no test in which it is satisfied", name)
		}
		if !violated[name] {
			t.Errorf("%s has no test in which it is violated", name)
		}
		if continuous[name] != under[name] {
			t.Errorf("%s may be continuous: %v; tested so: %v", name, continuous[name], under[name])
		}
	}
}

func TestPlanReplay(t *testing.T) {
	sec := time.Second
	for name, c := range map[string]struct {
		change func(*model.Model)
		plan   []model.Action
		want   string
	}{
		"nothing":             {nil, nil, ""},
		"a migration":         {nil, []model.Action{move(0, 0, 1, 0)}, ""},
		"from elsewhere":      {nil, []model.Action{move(0, 1, 2, 0)}, "the VEE is on host 0"},
		"to a host off":       {nil, []model.Action{move(0, 0, 3, 0)}, "host d is not on"},
		"to a draining host":  {func(m *model.Model) { m.Hosts[1].Draining = true }, []model.Action{move(0, 0, 1, 0)}, "host b is draining"},
		"draining, not empty": {func(m *model.Model) { m.Hosts[1].Draining = true }, nil, "b is draining and has 1"},
		"too short":           {nil, []model.Action{{Kind: model.Migrate, VEE: 0, From: 0, To: 1, End: sec / 2}}, "needs 1s"},
		"no such VEE":         {nil, []model.Action{move(9, 0, 1, 0)}, "no such VEE"},
		"no such host":        {nil, []model.Action{move(0, 0, 9, 0)}, "goes to no host"},
		"two at once":         {nil, []model.Action{move(0, 0, 1, 0), {Kind: model.StopVEE, VEE: 0, From: 0, To: -1, Start: sec / 2, End: 2 * sec}}, "another action"},
		"after what is not":   {nil, []model.Action{{Kind: model.Migrate, VEE: 0, From: 0, To: 1, End: sec, After: []int32{1}}, move(1, 0, 1, 0)}, "has not ended"},
		"room at both ends":   {func(m *model.Model) { m.AddVEE(model.VEE{Name: "big", State: model.Running, Host: 1}, 3) }, []model.Action{move(0, 0, 1, 0), move(2, 1, 0, 0)}, "host b has 4 of cpu and needs 5"},
		"one after the other": {func(m *model.Model) { m.AddVEE(model.VEE{Name: "big", State: model.Running, Host: 1}, 3) }, []model.Action{move(2, 1, 0, 0), move(0, 0, 1, sec)}, ""},
		"links":               {func(m *model.Model) { share(m, 100) }, []model.Action{copyOver(0, 60), copyOver(1, 40)}, ""},
		"too much for a link": {func(m *model.Model) { share(m, 100) }, []model.Action{copyOver(0, 60), copyOver(1, 50)}, "send 110 MiB in a second over a link of 100"},
		"too much uplink": {func(m *model.Model) {
			share(m, 100)
			m.Migration.Links = []model.Link{{Hosts: []int32{0, 1}, MiBs: 50}}
		}, []model.Action{{Kind: model.Migrate, VEE: 0, From: 0, To: 2, End: time.Minute, MiBs: 60}}, "over a link of 50"},
		"no bandwidth":        {func(m *model.Model) { share(m, 100) }, []model.Action{copyOver(0, 0)}, "it has no bandwidth"},
		"NaN bandwidth":       {func(m *model.Model) { share(m, 100) }, []model.Action{copyOver(0, math.NaN())}, "it has no bandwidth"},
		"slower than it says": {func(m *model.Model) { share(m, 100); m.VEEs[0].DirtyMiBs = 50 }, []model.Action{copyOver(0, 60)}, "but needs"},
		"slots":               {func(m *model.Model) { m.Migration.Slots = 1 }, []model.Action{move(0, 0, 1, 0), move(1, 0, 2, 0)}, "2 migrations at host 0"},
		"start and boot":      {nil, []model.Action{{Kind: model.BootHost, VEE: -1, From: -1, To: 3, End: sec}, {Kind: model.StartVEE, VEE: 4, From: -1, To: 3, Start: sec, End: 2 * sec}}, ""},
		"start before boot":   {nil, []model.Action{{Kind: model.BootHost, VEE: -1, From: -1, To: 3, End: sec}, {Kind: model.StartVEE, VEE: 4, From: -1, To: 3, End: 2 * sec}}, "host d is not on"},
		"shut down in use":    {nil, []model.Action{{Kind: model.ShutdownHost, VEE: -1, From: 0, To: -1, End: sec}}, "has 2 VEEs"},
		"sleep and resume":    {nil, []model.Action{{Kind: model.Suspend, VEE: 0, From: 0, To: -1, End: sec}, {Kind: model.Resume, VEE: 0, From: 0, To: 1, Start: sec, End: 2 * sec}}, ""},
		"resume the awake":    {nil, []model.Action{{Kind: model.Resume, VEE: 0, From: 0, To: 1, End: sec}}, "the VEE is running"},
		"relocate":            {func(m *model.Model) { m.VEEs[0].Clonable = true }, []model.Action{{Kind: model.Relocate, VEE: 0, From: 0, To: 1, End: 2 * sec}}, ""},
		"relocate a pet":      {nil, []model.Action{{Kind: model.Relocate, VEE: 0, From: 0, To: 1, End: 2 * sec}}, "cannot be instantiated again"},
		"allocate":            {func(m *model.Model) { m.Require(model.Preserve{VEEs: []int32{0}, Amount: 3}) }, []model.Action{{Kind: model.Allocate, VEE: 0, From: 0, To: 0}}, ""},
		"allocate too much":   {func(m *model.Model) { m.Require(model.Preserve{VEEs: []int32{0}, Amount: 4}) }, []model.Action{{Kind: model.Allocate, VEE: 0, From: 0, To: 0}}, "needs 5"},
		"still overloaded":    {func(m *model.Model) { m.AddVEE(model.VEE{Name: "big", State: model.Running, Host: 0}, 3) }, nil, "host a has 4 of cpu and needs 5"},
	} {
		t.Run(name, func(t *testing.T) {
			m := site()
			if c.change != nil {
				c.change(m)
			}
			expect(t, check.Plan(m, model.Plan{Actions: c.plan}), c.want)
		})
	}
}

// share links of so many MiB in a second.
func share(m *model.Model, mibs float64) {
	m.Migration = model.Migration{MiBs: mibs, Shared: true}
	for v := range m.VEEs {
		m.VEEs[v].MemoryMiB = 600
	}
}

// copyOver v from a to b, in the time that a quiet VEE takes with so many MiB in a second.
func copyOver(v int32, mibs float64) model.Action {
	a := model.Action{Kind: model.Migrate, VEE: v, From: 0, To: 1, End: time.Minute, MiBs: mibs}
	if mibs > 0 {
		a.End = time.Duration(600 / mibs * float64(time.Second))
	}
	return a
}

func TestSoftRules(t *testing.T) {
	m := site()
	m.Prefer(2, model.Spread{VEEs: []int32{0, 1}})
	m.Prefer(1, model.Gather{VEEs: []int32{0, 1}})
	broken, err := check.Broken(m, model.Plan{})
	if err != nil || len(broken) != 1 || broken[0] != 0 {
		t.Errorf("Broken: %v, %v, want rule 0", broken, err)
	}
	expect(t, check.Placement(m), "")
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want it to say %q", err, want)
	}
}
