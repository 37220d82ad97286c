package ownership

import (
	"strings"
	"testing"
	"time"
)

func TestTimingsCheck(t *testing.T) {
	set := func(f func(*Timings)) Timings {
		d := DefaultTimings()
		f(&d)
		return d
	}
	for _, c := range []struct {
		name string
		t    Timings
		want string // part of the refusal; empty: allowed
	}{
		{"defaults", DefaultTimings(), ""},
		{"scaled for tests", DefaultTimings().Scale(0.1), ""},
		{"scaled up", DefaultTimings().Scale(3), ""},
		{"scaled until killing takes too long", DefaultTimings().Scale(0.03), "self-kill < watchdog"},
		{"nothing", Timings{}, "want positive times"},
		{"give-away below watchdog", set(func(t *Timings) { t.GiveAway = 45 * time.Second }), "watchdog < give-away"},
		{"watchdog below self-kill", set(func(t *Timings) { t.Watchdog = 30 * time.Second }), "self-kill < watchdog"},
		{"witnesses say lost while current", set(func(t *Timings) { t.LostAfter = 18 * time.Second }), "echo age + window < lost after"},
		{"witnesses not steady for long enough", set(func(t *Timings) { t.Steady = 30 * time.Second }), "lease < steady"},
		{"renewals too rare", set(func(t *Timings) { t.Renew = 6 * time.Second }), "2 × renew"},
		{"guests die before witnesses speak", set(func(t *Timings) { t.LostAfter = 28 * time.Second }), "lost after + word"},
		{"clocks too bad", set(func(t *Timings) { t.Drift = 0.06 }), "lost after"},
	} {
		err := c.t.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
