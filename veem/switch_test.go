package veem

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// ve of n VEEs that run.
func (s *fakeSite) ve(n int) (ids []vee.ID) {
	s.t.Helper()
	in := initialize(vmi.TwoPhase, web(1))
	in.VEEs[0].Count = n
	in.VEEs[0].Descriptor.Name = fmt.Sprintf("g%d", len(s.store.rows))
	out, err := s.m.InitializeVEEs(s.operator(), in)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, v := range out.VEEs {
		ids = append(ids, v.ID)
	}
	s.submit(ids...)
	for _, id := range ids {
		s.untilThat(id, "ready", func(v vmi.VEE) bool { return v.GuestReady })
	}
	return ids
}

func (s *fakeSite) together(a vee.Action, queue bool, ids ...vee.ID) ([]vmi.Outcome, error) {
	return s.m.UpdateState(s.operator(), vmi.UpdateState{Collection: vmi.Collection{IDs: ids}, Action: a, Together: true, Queue: queue, Wait: !queue})
}

func (s *fakeSite) states(ids []vee.ID) (list []vee.State) {
	for _, id := range ids {
		list = append(list, s.get(id).State)
	}
	return list
}

func (s *fakeSite) free(host int) int64 {
	list, _ := s.m.ListHosts(s.operator())
	return list[host].Capacity.Minus(list[host].Used).MilliCPU
}

func all(state vee.State, list []vee.State) bool {
	return !slices.ContainsFunc(list, func(s vee.State) bool { return s != state })
}

func TestAVESleepsAndWakesTogether(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		ids := s.ve(6)
		for round := range 2 {
			if outs, err := s.together(vee.Suspend, false, ids...); err != nil || slices.ContainsFunc(outs, func(o vmi.Outcome) bool { return !o.OK }) {
				t.Fatalf("sleep %d: %+v, %v", round, outs, err)
			}
			synctest.Wait()
			if !all(vee.Suspended, s.states(ids)) || s.free(0)+s.free(1) != 8000 {
				t.Fatalf("asleep: %v, %d free", s.states(ids), s.free(0)+s.free(1))
			}
			if outs, err := s.together(vee.Suspend, false, ids...); err != nil || !outs[0].OK {
				t.Fatalf("asleep already: %+v, %v", outs, err)
			}
			if _, err := s.together(vee.Activate, false, ids...); err != nil || !all(vee.Active, s.states(ids)) {
				t.Fatalf("awake: %v, %v", s.states(ids), err)
			}
		}
		if n := s.events.count("ContextSwitch"); n != 4 || len(s.m.ledger.switches.rows) != 0 {
			t.Errorf("%d context switches told, %d rows left", n, len(s.m.ledger.switches.rows))
		}
	})
}

// One VEE that cannot be saved, or whose host is lost, or of which somebody wants something
// else: all others run again.
func TestAContextSwitchReverts(t *testing.T) {
	for name, breaks := range map[string]func(s *fakeSite, victim vmi.VEE){
		"a full disk":      func(s *fakeSite, v vmi.VEE) { s.host(v.Host).set(func() { s.host(v.Host).failSave = true }) },
		"a lost host":      func(s *fakeSite, v vmi.VEE) { s.host(v.Host).set(func() { s.host(v.Host).down = true }) },
		"another's action": func(s *fakeSite, v vmi.VEE) { s.host(v.Host).set(func() { s.host(v.Host).slow = time.Second }) },
	} {
		t.Run(name, func(t *testing.T) {
			inSite(t, 2, func(s *fakeSite) {
				ids := s.ve(6)
				victim := s.get(ids[0])
				breaks(s, victim)
				if _, err := s.together(vee.Suspend, true, ids...); err != nil {
					t.Fatal(err)
				}
				if name == "another's action" {
					s.act(vee.Shutdown, ids[0])
				}
				time.Sleep(time.Minute)
				for _, id := range ids {
					v := s.get(id)
					switch {
					case v.Host == victim.Host && name == "a lost host", id == ids[0] && name == "another's action":
					case v.State != vee.Active || v.Target != vee.Active:
						t.Errorf("%s is %s, target %s: %s", id, v.State, v.Target, v.Error)
					}
				}
				if s.events.count("ContextSwitchReverted") != 1 || s.events.count("ContextSwitch") != 0 {
					t.Errorf("told: %+v", s.events.all)
				}
			})
		})
	}
}

// The room of a VE that is falling asleep is given to nobody before all of it sleeps.
func TestTheWayBackStaysOpen(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		ids := s.ve(8)
		slow := s.host(s.get(ids[0]).Host)
		slow.set(func() { slow.slow = 5 * time.Second })
		if _, err := s.together(vee.Suspend, true, ids...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if s.free(0)+s.free(1) != 0 {
			t.Fatalf("%d milliCPU were given up before the commit point", s.free(0)+s.free(1))
		}
		time.Sleep(time.Minute)
		if !all(vee.Suspended, s.states(ids)) || s.free(0)+s.free(1) != 8000 {
			t.Fatalf("asleep: %v, %d free", s.states(ids), s.free(0)+s.free(1))
		}
	})
}

// A manager that is gone in the middle of a context switch: the next one ends it.
func TestAContextSwitchOutlivesTheManager(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		ids := s.ve(6)
		for _, h := range s.hosts {
			h.set(func() { h.slow = 2 * time.Second })
		}
		if _, err := s.together(vee.Suspend, true, ids...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		s.stop()
		s.start()
		time.Sleep(30 * time.Second)
		if !all(vee.Suspended, s.states(ids)) || len(s.m.ledger.switches.rows) != 0 {
			t.Fatalf("asleep: %v, %d rows", s.states(ids), len(s.m.ledger.switches.rows))
		}
	})
}

func TestVEsThatHaveNoRoomWait(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		first := s.ve(3)
		if _, err := s.together(vee.Suspend, false, first...); err != nil {
			t.Fatal(err)
		}
		second := s.ve(4)
		if _, err := s.together(vee.Activate, false, first...); !fault.Has(err, fault.NoResources) {
			t.Fatalf("woken without room: %v", err)
		}
		outs, err := s.together(vee.Activate, true, first...)
		if err != nil || outs[0].Detail != "waits for room" || s.get(first[0]).Queue != 1 || s.get(second[0]).Queue != 0 {
			t.Fatalf("queued: %+v, %v, place %d", outs, err, s.get(first[0]).Queue)
		}
		in := initialize(vmi.BestEffort, web(1))
		in.VEEs[0].Descriptor.Name, in.VEEs[0].Descriptor.GroupID = "late", "another"
		late, err := s.m.InitializeVEEs(s.operator(), in)
		if err != nil || s.get(late.VEEs[0].ID).Queue != 2 {
			t.Fatalf("after it: %+v, %v", late, err)
		}
		if s.act(vee.Shutdown, second[0]); !all(vee.Suspended, s.states(first)) {
			t.Fatalf("part of it woke: %v", s.states(first))
		}
		s.act(vee.Shutdown, second[1:]...)
		time.Sleep(time.Second)
		if !all(vee.Active, s.states(first)) || s.get(first[0]).Queue != 0 {
			t.Fatalf("woken: %v", s.states(first))
		}
		if _, err := s.together(vee.Suspend, false, first...); err != nil {
			t.Fatal(err)
		}
		s.act(vee.Activate, second...)
		if _, err := s.together(vee.Activate, true, first...); err != nil {
			t.Fatal(err)
		}
		if _, err := s.together(vee.Suspend, false, first...); err != nil || s.get(first[0]).Queue != 0 || len(s.m.ledger.switches.rows) != 0 {
			t.Fatalf("not to be woken any more: %v, place %d", err, s.get(first[0]).Queue)
		}
	})
}

func TestContextSwitchRefusals(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		ids := s.ve(2)
		for what, u := range map[string]vmi.UpdateState{
			"another action": {Collection: vmi.Collection{IDs: ids}, Action: vee.Shutdown},
			"in order":       {Collection: vmi.Collection{IDs: ids, Ordered: true}, Action: vee.Suspend},
			"too many":       {Collection: vmi.Collection{IDs: make([]vee.ID, maxSwitched+1)}, Action: vee.Suspend},
		} {
			u.Together = true
			if _, err := s.m.UpdateState(s.operator(), u); !fault.Has(err, fault.Malformed) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := s.together(vee.Suspend, false, append(ids, "alpha.aaaaaaaaaa")...); !fault.Has(err, fault.NotFound) {
			t.Errorf("one that is not there: %v", err)
		}
		if h := s.host("h1"); h.power(ids[0]) != vhi.Running {
			t.Errorf("a refusal did something: %s", h.power(ids[0]))
		}
	})
}
