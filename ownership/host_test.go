package ownership

import (
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// TestWitnessChange: an old witness set has its say until every host has acknowledged the
// new one, and with fewer than three witnesses nobody is given away or killed.
func TestWitnessChange(t *testing.T) {
	m := newModel(config{hosts: three}, Protocol{Timings: tickTimings})
	w := m.start()
	log := w.logs[0].Reconfigure([]string{"a0", "a1"})
	w.logs[0] = &log
	w.link[2] = linkCut
	round := func(ticks int) {
		for range ticks {
			for i := range int8(3) {
				if w.link[i] == linkUp {
					m.roundTrip(&w, i, 0, "")
				}
			}
			m.considerAll(&w)
			m.tick(&w)
		}
	}
	round(2)
	if n := len(w.logs[0].Witnesses); n != 2 {
		t.Fatalf("%d witness sets in force while a2 is cut off, want both", n)
	}
	w.link[2] = linkUp
	round(3)
	if n := len(w.logs[0].Witnesses); n != 1 {
		t.Fatalf("%d witness sets in force after all have acknowledged, want one", n)
	}
	w.link[0] = linkCut
	round(40)
	if n, at := m.running(&w); n != 1 || at != 0 {
		t.Errorf("with two witnesses %d guests run, on %d: want the one on a0 to go on", n, at)
	}
}

// TestNewHost: a host that nobody has vouched for yet takes no ticket.
func TestNewHost(t *testing.T) {
	p := Protocol{Timings: DefaultTimings()}
	h, _ := Host{ID: "a0"}.Step(p, time.Hour, Booted{})
	h, _ = h.Step(p, time.Hour, Ticket{VEE: theVEE, From: "a1", To: "a0", Epoch: vee.Epoch{Generation: 1, Term: 1, Hop: 1}})
	if h.Running(theVEE) {
		t.Error("a host that has never been vouched for runs a guest on a ticket")
	}
}
