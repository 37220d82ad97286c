package ownership

import (
	"testing"
	"time"
)

// mutants: the protocol without one of its rules, or with one timing wrong, and a scenario
// in which that shows. Each must be caught.
var mutants = []struct {
	without rule
	timing  func(*Timings)
	name    string
	in      config
}{
	{without: ruleOldEpoch, in: config{hosts: pair, budget: budget{hop: 1, late: 1}}},
	{name: "give-away shorter than self-kill", timing: func(t *Timings) { t.GiveAway = 1 }, in: config{hosts: two, budget: budget{link: 1, term: 1}}},
	{name: "witnesses need not be steady", timing: func(t *Timings) { t.Steady = 0 }, in: config{hosts: two, words: true, links: []link{linkNoControl}, budget: budget{link: 3, term: 1}}},
	{name: "a witness speaks while it is current", timing: func(t *Timings) { t.LostAfter = 1 }, in: config{hosts: two, words: true, budget: budget{link: 1, term: 1}}},
	{without: ruleFreshEcho, in: config{hosts: two, words: true, budget: budget{link: 2, term: 1}}},
	{without: ruleRead, in: config{hosts: pair, budget: budget{elect: 1, term: 1}}},
	{without: ruleSealDurable, in: config{hosts: pair, prologue: ticketLate, budget: budget{crash: 2, term: 1}}},
	{without: ruleMajority, in: config{hosts: two, words: true, budget: budget{link: 1, term: 1}}},
	{without: ruleVoid, in: config{hosts: pair, budget: budget{hop: 1, late: 1}}},
	{without: ruleGuardAtCont, in: config{hosts: pair, budget: budget{hop: 1, late: 1, crash: 1, term: 1}}},
	{without: ruleOldGeneration, in: config{hosts: two, backup: "a", ghost: true, loyal: map[string]int8{"a0": 0, "a1": 1}, budget: budget{backup: 1, term: 1}}},
	{without: ruleCustodyFirst, in: config{hosts: []string{"a0", "b0"}, sites: []string{"a", "b"}, budget: budget{hop: 1, term: 1}}},
	{without: ruleCustodyHolds, in: config{hosts: abroad, sites: ab, budget: budget{hop: 1, away: 1, crash: 1, term: 1}}},
	{without: ruleCustodyWord, in: config{hosts: abroad, sites: ab, budget: budget{hop: 1, away: 1, late: 1, term: 1}}},
	{without: ruleOffered, in: config{hosts: abroad, sites: ab, budget: budget{hop: 1, away: 1, late: 1, term: 1}}},
	{without: ruleDoor, in: config{hosts: abroad, sites: ab, backup: "b", budget: budget{hop: 1, away: 1, backup: 1, term: 1}}},
	{without: ruleTaken, in: config{hosts: []string{"a0", "a1", "a2"}, budget: budget{hop: 2, late: 1}}},
	{without: ruleIntentFirst, in: config{hosts: pair, budget: budget{link: 1, late: 1, term: 1, guest: 0}}},
	{without: ruleSealBeforeCall, in: config{hosts: pair, budget: budget{link: 1, late: 1, term: 1, guest: 0}}},
	{without: ruleCountAnew, in: config{hosts: pair, budget: budget{elect: 1, term: 1}}},
	{without: rulePartnerHeard, in: config{hosts: []string{"a0", "b0"}, sites: []string{"a", "b"}, backup: "a", budget: budget{hop: 1, away: 1, backup: 1, term: 1}}},
	{without: ruleRecoveryQuorum, in: config{hosts: two, backup: "a", ghost: true, loyal: map[string]int8{"a0": 0, "a1": 1, "w2": 1}, budget: budget{backup: 1, term: 1}}},
	{without: ruleSealAll, in: config{hosts: pair, budget: budget{hop: 1, crash: 1, term: 1, late: 1}}},
	{without: ruleHeard, in: config{hosts: pair, words: true, lossy: true, timings: &fineTimings, budget: budget{term: 1}}},
	{without: ruleNoRevival, in: config{hosts: pair, words: true, prologue: ticketToTheCutOff, budget: budget{term: 1, outage: 1}}},
}

// ticketLate: a0 has given the VEE to a1, and the ticket is under way.
func ticketLate(m *model, w *world) {
	m.post(w, 0, m.host(w, 0, Give{VEE: theVEE, To: m.hosts[1]}), "late")
}

// ticketToTheCutOff: a0 has given the VEE to a1, which lost the control plane before the
// ticket came.
func ticketToTheCutOff(m *model, w *world) {
	ticketLate(m, w)
	w.link[1] = linkNoControl
}

func TestMutants(t *testing.T) {
	for _, c := range mutants {
		name := c.name
		if name == "" {
			name = "without: " + string(c.without)
		}
		t.Run(name, func(t *testing.T) {
			m := newModel(c.in, Protocol{Timings: tickTimings, without: c.without})
			if c.timing != nil {
				c.timing(&m.p.Timings)
			}
			began := time.Now()
			r := m.explore(1_500_000, 0)
			if r.wrong == "" {
				t.Errorf("not caught in %d states (%v, all: %v)", r.states, time.Since(began), !r.stopped)
				return
			}
			t.Logf("%s: caught after %d states (%.1f s) by %d moves: %s", name, r.states, time.Since(began).Seconds(), len(r.trace)-1, r.wrong)
			if *traces {
				for _, l := range r.trace {
					t.Log(l)
				}
			}
		})
	}
}
