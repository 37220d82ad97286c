package vet

import (
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

var (
	powers     = []vhi.Power{vhi.Running, vhi.Paused, vhi.Suspended, vhi.Stopped, vhi.Absent}
	conditions = []hypervisor.Condition{hypervisor.Absent, hypervisor.Stopped, hypervisor.Running, hypervisor.Paused, hypervisor.Suspended, hypervisor.Halted, hypervisor.Crashed}
)

// The whole table, as a person would write it down.
func TestNext(t *testing.T) {
	want := map[vhi.Power]string{
		//             absent  stopped running paused  suspended halted  crashed
		vhi.Running:   "prepare start   -       resume  wake      resume  start",
		vhi.Paused:    "prepare start   pause   -       wake      -       start",
		vhi.Suspended: "-       -       suspend suspend -         suspend failed",
		vhi.Stopped:   "-       -       stop    stop    stop      stop    stop",
		vhi.Absent:    "-       destroy destroy destroy destroy   destroy destroy",
	}
	for _, p := range powers {
		row := splitFields(want[p])
		for i, c := range conditions {
			w := step(row[i])
			if w == "-" {
				w = rest
			}
			if got := next(p, c, vee.RestartInPlace); got != w {
				t.Errorf("%s from %s: %q, want %q", p, c, got, w)
			}
		}
	}
	if got := next(vhi.Running, hypervisor.Crashed, vee.RestartNever); got != failed {
		t.Errorf("crashed with policy never: %q, want %q", got, failed)
	}
}

func splitFields(s string) (f []string) {
	cur := ""
	for _, r := range s + " " {
		if r == ' ' {
			if cur != "" {
				f = append(f, cur)
			}
			cur = ""
			continue
		}
		cur += string(r)
	}
	return f
}

// effect is what a step does to a condition when it succeeds.
var effect = map[step]hypervisor.Condition{
	prepare: hypervisor.Stopped, start: hypervisor.Running, pause: hypervisor.Paused, resume: hypervisor.Running,
	suspend: hypervisor.Suspended, wake: hypervisor.Running, stop: hypervisor.Stopped, destroy: hypervisor.Absent,
}

// From every condition every assigned power is reached, or a reported end, in at most
// four steps: there is no way round in circles and no dead end.
func TestEveryWayEnds(t *testing.T) {
	for _, p := range powers {
		for _, c := range conditions {
			now := c
			for n := 0; ; n++ {
				s := next(p, now, vee.RestartInPlace)
				if s == rest || s == failed {
					break
				}
				if n == 4 {
					t.Errorf("%s from %s: still at %s after %d steps", p, c, now, n)
					break
				}
				now = effect[s]
			}
		}
	}
}

func TestBackoffGrowsToItsBound(t *testing.T) {
	last := time.Duration(0)
	for n := range 100 {
		d := backoff(restartPause, n)
		if d < last || d > longestPause {
			t.Fatalf("pause %d is %s after %s", n, d, last)
		}
		last = d
	}
	if last != longestPause {
		t.Errorf("the last pause is %s, want %s", last, longestPause)
	}
}
