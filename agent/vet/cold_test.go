package vet

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/sim"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// carry has a's VEE go to b in a power that it does not run in.
func carry(t *testing.T, a, b *machine, as vhi.Power) {
	t.Helper()
	m := theMove
	m.Cold = as
	expected, leaving := mover(4, vhi.Incoming), mover(4, as)
	expected.Move, leaving.Move = &m, &m
	assign(t, b.tr, expected)
	assign(t, a.tr, leaving)
}

// keptAt: after a while the VEE is at exactly one host, in the condition that it travels in, and
// the other has nothing of it.
func keptAt(t *testing.T, a, b *machine, as vhi.Power) *machine {
	t.Helper()
	time.Sleep(3 * time.Minute)
	synctest.Wait()
	at, other := a, b
	if a.condition() == hypervisor.Absent {
		at, other = b, a
	}
	if at.condition() != travels[as] || other.condition() != hypervisor.Absent {
		t.Fatalf("it is %s on a and %s on b", a.condition(), b.condition())
	}
	if len(other.bridge.taps) != 0 {
		t.Errorf("TAPs %v at the other host", other.bridge.taps)
	}
	return at
}

// What does not run goes over with its disks, and its memory if that was saved; what runs comes
// to rest before. It boots, or wakes, at the other host when that is told to.
func TestColdMove(t *testing.T) {
	for _, as := range []vhi.Power{vhi.Stopped, vhi.Suspended} {
		t.Run(string(as), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := twoHosts(t)
				defer func() { a.stop(); b.stop() }()
				carry(t, a, b, as)
				if at := keptAt(t, a, b, as); at != b {
					t.Fatalf("it is on %s", at.name)
				}
				for range 2 { // the second from what was on disk
					r := report(t, b.tr)
					if r.Epoch.Hop != 1 || r.Power != as || r.Move == nil || r.Move.Stage != vhi.MoveTaken || r.Move.Took.DiskBytes == 0 {
						t.Fatalf("report %+v, move %+v", r, r.Move)
					}
					b.restart()
				}
				on := mover(5, vhi.Running)
				on.Epoch = report(t, b.tr).Epoch
				assign(t, b.tr, on)
				time.Sleep(time.Second)
				synctest.Wait()
				if c := b.condition(); c != hypervisor.Running {
					t.Fatalf("it is %s", c)
				}
			})
		})
	}
}

// The cuts of TestMoveCutAtEachPhase.
func TestColdMoveCutAtEachPhase(t *testing.T) {
	for _, as := range []vhi.Power{vhi.Stopped, vhi.Suspended} {
		for _, call := range []string{"before open", "after open", "before stream", "after stream", "before give", "after give"} {
			for _, what := range []string{"lost", "source killed", "destination killed", "both killed"} {
				t.Run(fmt.Sprintf("%s, %s, %s", as, call, what), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						a, b := twoHosts(t)
						defer func() { a.stop(); b.stop() }()
						hit, once := make(chan struct{}, 1), true
						a.cut = func(c string) error {
							if c != call || !once {
								return nil
							}
							once = false
							hit <- struct{}{}
							if what != "lost" {
								time.Sleep(100 * time.Millisecond) // the killing
							}
							return fmt.Errorf("cut %s", c)
						}
						carry(t, a, b, as)
						<-hit
						if what == "source killed" || what == "both killed" {
							a.restart()
						}
						if what == "destination killed" || what == "both killed" {
							b.restart()
						}
						endsCold(t, a, b, as)
						keptAt(t, a, b, as)
					})
				})
			}
		}
	}
}

// endsCold is siteEnds of a VEE that does not run.
func endsCold(t *testing.T, a, b *machine, as vhi.Power) {
	t.Helper()
	time.Sleep(10 * time.Second)
	synctest.Wait()
	r := report(t, a.tr)
	if r.Move == nil || r.Move.Stage != vhi.MoveFailed && r.Move.Stage != vhi.MoveVoid {
		return
	}
	after := mover(5, as)
	after.Epoch = r.Epoch
	assign(t, a.tr, after)
	gone := after
	gone.Seq, gone.Power = 6, vhi.Absent
	if _, err := b.tr.Assign(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
}

// An agent is killed, or a driver fails, while it makes a guest of what comes: it stays.
func TestColdMoveUnpacking(t *testing.T) {
	for what, err := range map[string]error{"killed": nil, "full": fmt.Errorf("the test has it fail: %w", hypervisor.ErrNoSpace), "damaged": errors.New("the test has it fail")} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := twoHosts(t)
				defer func() { a.stop(); b.stop() }()
				b.hard(sim.Unpack, err)
				carry(t, a, b, vhi.Stopped)
				<-b.hit
				if what == "killed" {
					b.restart()
				}
				time.Sleep(10 * time.Second)
				synctest.Wait()
				if m := report(t, a.tr).Move; m == nil || m.Stage != vhi.MoveFailed || m.Error == "" {
					t.Errorf("the source says %+v", m)
				}
				b.hard("", nil)
				endsCold(t, a, b, vhi.Stopped)
				if at := keptAt(t, a, b, vhi.Stopped); at != a {
					t.Errorf("it is on %s", at.name)
				}
			})
		})
	}
}

// What was never made has nothing to be moved, and says so.
func TestColdMoveOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoHosts(t)
		defer func() { a.stop(); b.stop() }()
		assign(t, a.tr, mover(2, vhi.Stopped))
		time.Sleep(time.Minute)
		if err := a.d.Destroy(t.Context(), web, mover(2, vhi.Stopped).Epoch); err != nil {
			t.Fatal(err)
		}
		carry(t, a, b, vhi.Stopped)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if m := report(t, a.tr).Move; m == nil || m.Stage != vhi.MoveFailed || m.Error == "" {
			t.Errorf("the source says %+v", m)
		}
	})
}
