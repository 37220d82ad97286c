package solve_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// event that befalls a site.
func event(t *rapid.T, m *model.Model) {
	host := &m.Hosts[rapid.IntRange(0, len(m.Hosts)-1).Draw(t, "host")]
	at := int32(slices.IndexFunc(m.Hosts, func(h model.Host) bool { return h.Name == host.Name }))
	switch rapid.SampledFrom([]string{"arrives", "leaves", "grows", "drains", "returns", "fails", "shrinks"}).Draw(t, "event") {
	case "arrives":
		var need []int64
		for range m.Dimensions {
			need = append(need, rapid.Int64Range(0, 4).Draw(t, "need"))
		}
		v := m.AddVEE(model.VEE{Name: "new"}, need...)
		m.Require(model.InState{VEEs: []int32{v}, State: model.Running})
	case "leaves":
		if len(m.VEEs) > 0 {
			v := int32(rapid.IntRange(0, len(m.VEEs)-1).Draw(t, "VEE"))
			m.Rules = slices.DeleteFunc(m.Rules, func(r model.Rule) bool { _, ok := r.Constraint.(model.InState); return ok })
			m.Require(model.InState{VEEs: []int32{v}, State: model.Killed})
		}
	case "grows":
		if len(m.VEEs) > 0 {
			for d := range m.Demand(int32(len(m.VEEs) - 1)) {
				m.Demand(int32(len(m.VEEs) - 1))[d]++
			}
		}
	case "drains":
		host.Draining = true
	case "returns":
		host.Draining = false
	case "fails": // with all that it has
		host.Off = true
		for v := range m.VEEs {
			if x := &m.VEEs[v]; x.Host == at && x.State == model.Running {
				x.State, x.Host = model.Ready, model.None
			}
		}
	case "shrinks":
		for d, c := range m.Capacity(at) {
			m.Capacity(at)[d] = max(0, c-1)
		}
	}
}

// carryOut a plan: m is what it leads to.
func carryOut(m *model.Model, p model.Plan) {
	for _, a := range p.Actions {
		switch a.Kind {
		case model.BootHost:
			m.Hosts[a.To].Off = false
		case model.ShutdownHost:
			m.Hosts[a.From].Off = true
		case model.StopVEE:
			m.VEEs[a.VEE].State, m.VEEs[a.VEE].Host = model.Ready, model.None
		case model.KillVEE:
			m.VEEs[a.VEE].State, m.VEEs[a.VEE].Host = model.Killed, model.None
		case model.Suspend:
			m.VEEs[a.VEE].State = model.Sleeping
		default:
			m.VEEs[a.VEE].State, m.VEEs[a.VEE].Host = model.Running, a.To
		}
	}
}

// TestEvents: whatever befalls a site, one thing after the other, the checker finds nothing
// wrong with the plan that answers it, which is then carried out.
func TestEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		for i, r := range m.Rules {
			_, placement := r.Constraint.(model.OnPlacement)
			if placement && rapid.IntRange(0, 2).Draw(t, "soft") == 0 {
				m.Rules[i].Weight = 1
			}
		}
		objective := solve.Objective{Balance: 1, Migrations: .1, Consolidate: float64(rapid.IntRange(0, 1).Draw(t, "consolidate"))}
		for range rapid.IntRange(1, 6).Draw(t, "events") {
			event(t, m)
			if err := m.Validate(); err != nil {
				t.Fatalf("an event made the model invalid: %v", err)
			}
			target, err := solve.Optimise(m, objective, solve.Options{Seed: 1, Iterations: 200})
			if err != nil {
				continue
			}
			p, err := solve.Schedule(m, target)
			if err != nil {
				continue
			}
			if err := check.Plan(m, p); err != nil {
				t.Fatalf("the checker rejects the plan: %v\n%v\nrules %v", err, p, m.Rules)
			}
			carryOut(m, p)
		}
	})
}

// TestRelieve: a Placer that is kept while hosts drain and VEEs come too many makes plans
// that the checker accepts, and is in step with the model when they have been carried out.
func TestRelieve(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawModel(t)
		m.Rules = slices.DeleteFunc(m.Rules, func(r model.Rule) bool { // what is no matter of where VEEs are
			switch r.Constraint.(type) {
			case model.InState, model.Power, model.MaxOnline, model.Preserve, model.MinPlaces:
				return true
			}
			return false
		})
		all := make([]int32, len(m.Hosts))
		for h := range all {
			all[h] = int32(h)
		}
		p := solve.NewPlacer(m, solve.Policy(rapid.IntRange(0, 1).Draw(t, "policy")))
		for range rapid.IntRange(1, 4).Draw(t, "events") {
			h := rapid.IntRange(0, len(m.Hosts)-1).Draw(t, "host")
			if rapid.Bool().Draw(t, "drains") {
				m.Hosts[h].Draining = true
			} else if !m.Hosts[h].Off {
				m.AddVEE(model.VEE{Name: "new", State: model.Running, Host: int32(h)}, rapid.Int64Range(0, 4).Draw(t, "need"))
			}
			plan, err := p.Relieve(all, solve.Options{Seed: 1})
			if err == nil {
				if err := check.Plan(m, plan); err != nil {
					t.Fatalf("the checker rejects the plan: %v\n%v\nrules %v", err, plan, m.Rules)
				}
				carryOut(m, plan)
			}
			for v := range m.VEEs {
				if x := &m.VEEs[v]; x.State == model.Running && p.At(int32(v)) != x.Host {
					t.Fatalf("VEE %d is on host %d, and the Placer has it on %d (%v)", v, x.Host, p.At(int32(v)), err)
				}
			}
		}
	})
}

// TestRelieveMovesLittle: of a site where all is well but for one host, that one alone.
func TestRelieveMovesLittle(t *testing.T) {
	m := site(4, "0:3", "0:2", "1:1", "2:4")
	p := solve.NewPlacer(m, solve.Balance)
	plan, err := p.Relieve([]int32{0}, solve.Options{})
	if err != nil || len(plan.Actions) != 1 || p.At(2) != 1 || p.At(3) != 2 {
		t.Errorf("plan %v, %v: want one migration away from host 0", plan.Actions, err)
	}
	if err := check.Plan(m, plan); err != nil {
		t.Error(err)
	}
}

// TestRelieveLooksAtAll: of two VEEs that must stay, the one that a rule does not allow there
// is found, wherever it is among its host's.
func TestRelieveLooksAtAll(t *testing.T) {
	for banned := range int32(2) {
		m := site(2, "0:1", "0:1")
		m.Require(model.Root{VEEs: []int32{0, 1}}, model.Ban{VEEs: []int32{banned}, Hosts: []int32{0}})
		if plan, err := solve.NewPlacer(m, solve.Balance).Relieve([]int32{0}, solve.Options{}); err == nil {
			t.Errorf("VEE %d is banned from where it must stay, and the plan is %v", banned, plan)
		}
	}
}
