package sites

import (
	"fmt"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// carry a VEE to a place, cold.
func (s *scene) carry(id vee.ID, to string) vmi.Migration {
	s.t.Helper()
	a := s.Sites["alpha"]
	m, err := a.Manager().Migrate(a.As(), vmi.Migrate{VEE: id, To: to, Cold: true})
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// act on a VEE, and wait for it.
func (s *scene) act(id vee.ID, action vee.Action) {
	s.t.Helper()
	a := s.Sites["alpha"]
	outs, err := a.Manager().UpdateState(a.As(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: action, Wait: true})
	if err != nil || !outs[0].OK {
		s.t.Fatalf("%s: %+v, %v", action, outs, err)
	}
}

// holds is where something of the VEE is: its site, and how it is there. Several: "".
func (s *scene) holds(id vee.ID) (site string, c hypervisor.Condition) {
	n := 0
	for name, x := range s.Sites {
		for _, h := range x.Hosts {
			if is := h.Condition(id); is != hypervisor.Absent {
				site, c = name, is
				n++
			}
		}
	}
	if n != 1 {
		return "", ""
	}
	return site, c
}

// lies: its disks are at exactly one place, in that state, both logs know where, and nothing is
// on its way.
func (s *scene) lies(id vee.ID, want vee.State) (site string) {
	s.t.Helper()
	conditions := map[vee.State]hypervisor.Condition{vee.Active: hypervisor.Running, vee.Suspended: hypervisor.Suspended, vee.Defined: hypervisor.Stopped}
	s.until("it lies at one place, "+string(want), func() bool {
		a := s.Sites["alpha"]
		if m, err := a.Manager().GetMigration(a.As(), string(id)); err == nil && m.State == vmi.MigrationRunning {
			return false
		}
		v := s.get(id)
		var c hypervisor.Condition
		if site, c = s.holds(id); c != conditions[want] || v.State != want || v.Target != want {
			return false
		}
		if (site == "alpha") == (v.Host[0] == '@') || site != "alpha" && v.Host != "@"+site {
			return false
		}
		for name, x := range s.Sites {
			there, err := x.Manager().GetVEE(x.As(), id)
			if here := err == nil && there.State != vee.Destroyed; name != "alpha" && here != (site == name) {
				return false
			}
		}
		return true
	})
	return site
}

// What is stopped, suspended or running goes over the border cold, to a third site too, and
// inside a site; and is what it was there.
func TestColdThereAndBack(t *testing.T) {
	for state, action := range map[vee.State]vee.Action{vee.Active: "", vee.Suspended: vee.Suspend, vee.Defined: vee.Shutdown} {
		t.Run(string(state), func(t *testing.T) {
			stage(t, 2, []string{"alpha", "beta", "gamma"}, func(s *scene) {
				id := s.deploy(vee.RestartInPlace)
				if action != "" {
					s.act(id, action)
				}
				defer s.never(id)()
				for _, to := range []string{"@beta", "@gamma", "h1", "h2", "beta"} {
					m := s.carry(id, to)
					s.until("it has come to "+to, func() bool { return s.get(id).Host == m.To })
					s.lies(id, state)
					got, err := s.Sites["alpha"].m.GetMigration(s.Sites["alpha"].As(), m.ID)
					if err != nil || got.State != vmi.MigrationDone || got.Took.DiskBytes == 0 || got.Cold == "" {
						t.Errorf("to %s: %+v, %v", to, got, err)
					}
				}
				if state != vee.Active { // it runs there when it is told to
					s.act(id, vee.Activate)
					if at := s.at(id); at != "beta" {
						t.Errorf("it runs at %q", at)
					}
				}
			})
		})
	}
}

// The cuts of TestCrossingCutAtEachPhase, of what goes cold: a stopped VEE, and one that is shut
// down for it and starts again.
func TestColdCutAtEachPhase(t *testing.T) {
	for state, action := range map[vee.State]vee.Action{vee.Active: "", vee.Suspended: vee.Suspend, vee.Defined: vee.Shutdown} {
		for _, way := range [][2]string{{"alpha", "beta"}, {"beta", "alpha"}} {
			for _, phase := range []string{"before call", "after call", "before open", "after open", "before stream", "after stream", "before give", "after give"} {
				for _, x := range troubles {
					t.Run(string(state)+", "+way[0]+" to "+way[1]+", "+phase+", "+x.name, func(t *testing.T) {
						t.Parallel()
						stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
							id := s.deploy(vee.RestartInPlace)
							to := map[string]string{"alpha": "h1", "beta": "@beta"}
							if way[0] == "beta" {
								s.migrate(id, "@beta")
								s.settled(id)
							}
							if action != "" {
								s.act(id, action)
								s.lies(id, state)
							}
							defer s.never(id)()
							hit := s.strike(phase)
							s.carry(id, to[way[1]])
							<-hit
							from, dest := s.Sites[way[0]], s.Sites[way[1]]
							if x.begin != nil {
								x.begin(s, from, dest)
								time.Sleep(25 * time.Second)
								x.end(s, from, dest)
							}
							s.lies(id, state)
						})
					})
				}
			}
		}
	}
}

// What a person wants of a VEE while it is on its way cold is done where it has come to.
func TestColdAndWanted(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		id := s.deploy(vee.RestartInPlace)
		a := s.Sites["alpha"]
		s.act(id, vee.Shutdown)
		s.carry(id, "@beta")
		_, err := a.m.UpdateState(a.As(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: vee.Activate})
		s.must(err)
		if s.lies(id, vee.Active) != "beta" {
			t.Error("it is not there")
		}
		s.carry(id, "h1")
		if _, err := a.m.CancelMigration(a.As(), string(id)); err != nil {
			t.Fatal(err)
		}
		s.lies(id, vee.Active)
		s.carry(id, map[bool]string{true: "@beta", false: "h1"}[s.at(id) == "alpha"])
		_, err = a.m.UpdateState(a.As(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: vee.Destroy})
		s.must(err)
		s.until("nothing is left of it", func() bool {
			for _, x := range s.Sites {
				for _, h := range x.Hosts {
					if h.Condition(id) != hypervisor.Absent {
						return false
					}
				}
			}
			v, err := a.m.GetVEE(a.As(), id)
			return fault.Has(err, fault.NotFound) || v.State == vee.Destroyed
		})
	})
}

// A site is left with what runs, and then with what does not; in the time that there is.
func TestEvacuationOfWhatDoesNotRun(t *testing.T) {
	stage(t, 2, []string{"alpha", "beta"}, func(s *scene) {
		a := s.Sites["alpha"]
		ids := map[string]vee.ID{}
		for name, action := range map[string]vee.Action{"runs": "", "sleeps": vee.Suspend, "lies": vee.Shutdown, "waits": vee.Pause} {
			ids[name] = s.deployAs(name, vee.RestartInPlace)
			if action != "" {
				s.act(ids[name], action)
			}
		}
		short, err := a.m.PlanEvacuation(a.As(), vmi.Evacuate{To: "beta", DeadlineMS: 3000})
		s.must(err)
		if len(short.Steps) != 2 || short.Steps[0].Name != "runs" || short.Steps[1].Name != "sleeps" {
			t.Errorf("in three seconds: %+v", short.Steps)
		}
		p, err := a.m.Evacuate(a.As(), vmi.Evacuate{To: "beta"})
		s.must(err)
		var steps []string
		for _, st := range p.Steps {
			steps = append(steps, fmt.Sprint(st.Name, " ", st.Cold))
		}
		if want := "[runs false sleeps true lies true]"; fmt.Sprint(steps) != want {
			t.Errorf("plan %v, want %s", steps, want)
		}
		if len(p.Stays) != 1 || p.Stays[0].Name != "waits" || p.Stays[0].Why == "" {
			t.Errorf("stays: %+v", p.Stays)
		}
		for name, state := range map[string]vee.State{"runs": vee.Active, "sleeps": vee.Suspended, "lies": vee.Defined} {
			s.until(name+" has left", func() bool { at, _ := s.holds(ids[name]); return at == "beta" })
			s.lies(ids[name], state)
		}
	})
}
