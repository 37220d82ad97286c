package lrt

import (
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/vhi"
)

var policy = vhi.Relief{Overload: 0.9, Calm: 0.75, Underload: 0.1, LastsMS: 60_000}

func TestWatch(t *testing.T) {
	const every = 5 * time.Second
	for _, c := range []struct {
		name  string
		looks []Look // each for two minutes
		want  []dvms.Reason
	}{
		{"busy and fine", []Look{{0.5, 3, false}, {0.85, 3, false}}, []dvms.Reason{"", ""}},
		{"too much, until it is calm", []Look{{1, 3, false}, {0.8, 2, false}, {0.7, 2, false}}, []dvms.Reason{dvms.Overloaded, dvms.Overloaded, ""}},
		{"nobody is there", []Look{{0, 0, false}}, []dvms.Reason{""}},
		{"idle, until there is a little more", []Look{{0.05, 1, false}, {0.11, 1, false}, {0.2, 1, false}}, []dvms.Reason{dvms.Idle, dvms.Idle, ""}},
		{"to be emptied", []Look{{0.5, 2, true}, {0, 0, true}}, []dvms.Reason{dvms.Draining, ""}},
		{"to be emptied, and overloaded", []Look{{1, 2, true}, {1, 2, false}}, []dvms.Reason{dvms.Draining, dvms.Overloaded}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w Watch
			now := dvms.Time(0)
			for i, l := range c.looks {
				for range 2 * time.Minute / every {
					now += every
					w = w.Look(policy, l, now)
				}
				if w.Trouble != c.want[i] {
					t.Fatalf("part %d: %q, want %q (load %.2f)", i, w.Trouble, c.want[i], w.Load)
				}
			}
		})
	}
}

func TestAPeakIsNoTrouble(t *testing.T) {
	var w Watch
	for now := dvms.Time(0); now < time.Hour; now += 5 * time.Second {
		l := Look{CPU: 0.3, Guests: 2}
		if now%(2*time.Minute) < 50*time.Second {
			l.CPU = 1
		}
		if w = w.Look(policy, l, now); w.Trouble != "" {
			t.Fatalf("%q after %v", w.Trouble, now)
		}
	}
}

func TestNobodyIsAskedAllTheTime(t *testing.T) {
	w, now, said := Watch{}, dvms.Time(0), 0
	for ; now < 4*time.Hour; now += 5 * time.Second {
		if w = w.Look(policy, Look{CPU: 1, Guests: 1}, now); w.Says(now) {
			said++
			w = w.Helpless(now)
		}
	}
	if said < 6 || said > 15 {
		t.Errorf("%d times in four hours that nobody could help", said)
	}
	if w = w.Look(policy, Look{CPU: 1, Guests: 2}, now); !w.Says(now) {
		t.Error("nothing is said when another guest has come")
	}
	off := Watch{}
	for now := dvms.Time(0); now < time.Hour; now += 5 * time.Second {
		if off = off.Look(vhi.Relief{}, Look{CPU: 1, Guests: 1}, now); off.Trouble != "" {
			t.Fatal("trouble where nobody is to look for it")
		}
	}
}
