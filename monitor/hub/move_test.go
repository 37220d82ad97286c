package hub

import (
	"testing"

	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// A VEE that has moved: what its former host measured before is taken however late it comes,
// what it says of the time after is not, and a host that never had it is not believed.
func TestMoved(t *testing.T) {
	s := newStage()
	h := s.hub(t, monitor.Limits{})
	h.cfg.Former = func(host string, id vee.ID) bool { return id == "alpha.a" && host == "h1" }
	at := func(seconds int64) monitor.Reported {
		m := of("alpha.a", monitor.VEEKind, "vee_cpu")
		m.AtMS += 1000 * seconds
		return m
	}
	send := func(from string, ms ...monitor.Reported) { report(t, h, from, monitor.Report{Measurements: ms}) }
	stored := func() (seconds []int64) {
		for _, m := range s.stored {
			seconds = append(seconds, m.At.Unix()-start.Unix())
		}
		s.stored = nil
		return seconds
	}
	want := func(what string, seconds ...int64) {
		t.Helper()
		got := stored()
		for i := 0; i < max(len(got), len(seconds)); i++ {
			if i >= len(got) || i >= len(seconds) || got[i] != seconds[i] {
				t.Errorf("%s: stored what was measured at %v, want %v", what, got, seconds)
				return
			}
		}
	}
	send("h1", at(0), at(10))
	want("at its first host", 0, 10)
	s.host["alpha.a"] = "h2"
	send("h1", at(20))
	want("late, and nobody else has measured it yet", 20)
	send("h2", at(22), at(32))
	want("at its new host", 22, 32)
	send("h1", at(21), at(22), at(31))
	want("late, from before and from after", 21)
	send("h3", at(21))
	want("from a host that never had it")
	s.host["alpha.a"] = "h1"
	send("h1", at(42), at(52))
	want("back again", 42, 52)
}
