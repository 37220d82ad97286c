package deploy

import (
	"slices"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// asleep is a service of two replicas of which one has a name that sleep is read from.
type sleeper struct {
	t     *testing.T
	goal  Goal
	state State
	world World
}

func newSleeper(t *testing.T) *sleeper {
	s := &sleeper{t: t, goal: Goal{Revision: 1, Components: []Component{{Name: "web", Desired: 2, Spec: "a"}}}}
	s.world = World{VEEs: map[vee.ID]vmi.VEE{}, Now: time.Unix(1000, 0)}
	for i, id := range []vee.ID{"alpha.a", "alpha.b"} {
		s.state.Slots = append(s.state.Slots, Slot{Component: "web", Number: i + 1, Revision: 1, Spec: "a", Call: 1, VEE: id, Started: s.world.Now, Ready: s.world.Now})
		s.set(id, vee.Active, vee.Active)
	}
	s.state.Established, s.state.Settled, s.state.Phase = true, true, smi.Ready
	return s
}

func (s *sleeper) set(id vee.ID, state, target vee.State) {
	phase := map[vee.State]vee.Phase{vee.Active: vee.PhaseRunning, vee.Suspended: vee.PhaseSuspended}[state]
	s.world.VEEs[id] = vmi.VEE{ID: id, State: state, Target: target, Phase: phase, Submitted: true, GuestReady: state == vee.Active}
}

// next does a step, and wants these actions.
func (s *sleeper) next(want ...Kind) Step {
	s.t.Helper()
	out := Next(s.goal, s.state, s.world)
	var kinds []Kind
	for _, a := range out.Actions {
		kinds = append(kinds, a.Kind)
	}
	if !slices.Equal(kinds, want) {
		s.t.Fatalf("actions %v, want %v", out.Actions, want)
	}
	s.state = out.State
	return out
}

func TestSleepAndWake(t *testing.T) {
	s := newSleeper(t)
	s.next()
	s.goal.Asleep = true
	if a := s.next(Sleep).Actions[0]; !slices.Equal(a.VEEs, []vee.ID{"alpha.a", "alpha.b"}) {
		t.Fatalf("put to sleep: %+v", a)
	}
	s.set("alpha.a", vee.Suspended, vee.Suspended)
	s.set("alpha.b", vee.Active, vee.Suspended)
	if s.next(); s.state.Message != "falls asleep: 1 of 2 VEEs sleep" {
		t.Errorf("on its way: %s, %s", s.state.Phase, s.state.Message)
	}
	s.set("alpha.b", vee.Suspended, vee.Suspended)
	if s.next(); s.state.Phase != smi.Sleeping || s.state.Message != "" {
		t.Errorf("asleep: %s, %s", s.state.Phase, s.state.Message)
	}
	s.goal.Asleep = false
	s.state.Settled = false
	if a := s.next(Wake).Actions[0]; len(a.VEEs) != 2 {
		t.Fatalf("woken: %+v", a)
	}
	for id, v := range s.world.VEEs {
		v.Queue = 2
		s.world.VEEs[id] = v
	}
	if s.next(); s.state.Phase != smi.Deploying || s.state.Message != "waits for room to wake, at place 2 of the queue; web: 0 of 2 ready" {
		t.Errorf("in the queue: %s, %s", s.state.Phase, s.state.Message)
	}
	s.set("alpha.a", vee.Active, vee.Active)
	s.set("alpha.b", vee.Active, vee.Active)
	if s.next(); s.state.Phase != smi.Ready || s.state.Slept {
		t.Errorf("awake: %+v", s.state)
	}
}

// What was reverted is asked for again, after a while, and what starts is waited for.
func TestSleepIsAskedForAgain(t *testing.T) {
	s := newSleeper(t)
	s.goal.Asleep = true
	s.set("alpha.b", vee.Defined, vee.Active)
	s.next()
	s.set("alpha.b", vee.Active, vee.Active)
	s.next(Sleep)
	if out := s.next(); !out.Wake.Equal(s.world.Now.Add(switchAgain)) {
		t.Errorf("asked again at %v", out.Wake)
	}
	s.world.Now = s.world.Now.Add(switchAgain)
	s.next(Sleep)
	s.goal.Asleep, s.goal.Deleting = false, true
	if out := Next(s.goal, s.state, s.world); out.State.Phase != smi.Deleting {
		t.Errorf("deleted while it falls asleep: %s", out.State.Phase)
	}
}
