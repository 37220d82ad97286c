package ownership

import (
	"flag"
	"strings"
	"testing"
	"time"
)

var (
	large = flag.Bool("large", false, "explore the large scenarios instead (make model-check)")
	limit = flag.Int("limit", 5_000_000, "give up a scenario that has more states")

	traces = flag.Bool("traces", false, "print how each mutant fails")
)

var (
	pair    = []string{"a0", "a1"} // and a third witness that is always with the control plane
	two     = []string{"a0", "a1", "w2"}
	three   = []string{"a0", "a1", "a2"}
	abroad  = []string{"a0", "b0"}
	abroad3 = []string{"a0", "a1", "b0"}
	ab      = []string{"a", "b"}
)

// small scenarios are part of every test run, large ones of make model-check.
var small = []config{
	{name: "links", hosts: two, words: true, budget: budget{link: 2, term: 1}},
	{name: "late messages", hosts: pair, budget: budget{link: 1, late: 1, guest: 1, term: 1}},
	{name: "handover", hosts: pair, budget: budget{hop: 1, late: 1, crash: 1, term: 1}},
	{name: "handover there and back", hosts: pair, budget: budget{hop: 2, late: 1}},
	{name: "election", hosts: pair, budget: budget{elect: 1, term: 1}},
	{name: "outage", hosts: pair, words: true, budget: budget{outage: 1, link: 1, term: 1}},
	{name: "clock drift", hosts: pair, words: true, budget: budget{link: 1, drift: 1, term: 1}},
	{name: "restore", hosts: pair, backup: "a", budget: budget{hop: 1, backup: 1, link: 1, term: 1}},
	{name: "restore, old log alive", hosts: two, backup: "a", ghost: true, budget: budget{backup: 1, term: 1}, loyal: map[string]int8{"a0": 0, "a1": 1}},
	{name: "partner", hosts: abroad, sites: ab, budget: budget{hop: 1, away: 1, crash: 1, term: 1}},
	{name: "partner, elections at both", hosts: abroad, sites: ab, budget: budget{hop: 1, away: 1, elect: 1, term: 1}},
	{name: "partner, outages at both", hosts: abroad, sites: ab, budget: budget{hop: 1, away: 1, outage: 1, term: 1}},
	{name: "partner, links", hosts: abroad, sites: ab, budget: budget{hop: 1, away: 1, link: 1, term: 1}},
	{name: "partner restored", hosts: abroad, sites: ab, backup: "b", unknown: true, budget: budget{hop: 1, away: 1, backup: 1, term: 1}},
	{name: "partner, restore", hosts: abroad, sites: ab, backup: "a", unknown: true, budget: budget{hop: 1, away: 1, backup: 1, term: 1}},
	{name: "three hosts", hosts: three, budget: budget{hop: 1, link: 1, term: 1}},
}

var larger = []config{
	{name: "links, large", hosts: two, words: true, budget: budget{link: 2, guest: 1, term: 2}},
	{name: "late words, large", hosts: two, words: true, budget: budget{link: 1, late: 1, term: 1}},
	{name: "clock drift, large", hosts: two, words: true, budget: budget{link: 2, drift: 1, term: 1}},
	{name: "outage, large", hosts: two, words: true, budget: budget{outage: 1, link: 1, term: 1}},
	{name: "late twice, large", hosts: pair, budget: budget{late: 2, term: 1}},
	{name: "handover, large", hosts: pair, budget: budget{hop: 2, late: 1, crash: 1, term: 1}},
	{name: "election, large", hosts: pair, budget: budget{elect: 1, late: 1, term: 1}},
	{name: "restore, large", hosts: pair, backup: "a", budget: budget{hop: 1, backup: 1, link: 1, crash: 1, term: 1}},
	{name: "restore, old log alive, large", hosts: two, backup: "a", ghost: true, budget: budget{backup: 1, hop: 1, term: 1}, loyal: map[string]int8{"a0": 0, "a1": 1}},
	{name: "partner, large", hosts: abroad, sites: ab, budget: budget{hop: 1, away: 1, crash: 1, late: 1, term: 1}},
	{name: "partner and back, large", hosts: abroad, sites: ab, budget: budget{hop: 2, away: 2, late: 1, term: 1}},
	{name: "partner, three hosts, large", hosts: abroad3, sites: ab, budget: budget{hop: 2, away: 1, term: 1}},
	{name: "partner, elections and late, large", hosts: abroad, sites: ab, budget: budget{hop: 1, away: 1, elect: 1, late: 1, term: 1}},
	{name: "partner, links and crash, large", hosts: abroad, sites: ab, budget: budget{hop: 1, away: 1, link: 1, crash: 1, term: 1}},
	{name: "partner restored, large", hosts: abroad, sites: ab, backup: "b", unknown: true, budget: budget{hop: 1, away: 1, backup: 1, crash: 1, term: 1}},
	{name: "partner restored, late, large", hosts: abroad, sites: ab, backup: "b", unknown: true, budget: budget{hop: 1, away: 1, backup: 1, late: 1}},
	{name: "partner, restore, large", hosts: abroad, sites: ab, backup: "a", unknown: true, budget: budget{hop: 1, away: 1, backup: 1, crash: 1, term: 1}},
	{name: "three hosts, large", hosts: three, budget: budget{hop: 2, link: 1, term: 1}},
	{name: "three hosts, words, large", hosts: three, words: true, budget: budget{link: 2, term: 1}},
	{name: "loss without end, large", hosts: pair, words: true, lossy: true, budget: budget{term: 1}},
	{name: "loss without end, fine, large", hosts: pair, words: true, lossy: true, timings: &fineTimings, budget: budget{term: 1}},
}

// TestExhaustive explores every state that the scenarios' budgets of trouble allow. In none
// does the VEE run twice, and from every nth the VEE is found running again, in place if it
// ran, once the trouble stops.
func TestExhaustive(t *testing.T) {
	scenarios, nth := small, 16
	if *large {
		scenarios, nth = larger, 16
	}
	total := 0
	for _, c := range scenarios {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			m := newModel(c, Protocol{Timings: tickTimings})
			r := m.explore(*limit, nth)
			total += r.states
			t.Logf("%-30s %9d states %9d moves %8d continued %4d deep %6.1f s", m.name, r.states, r.moves, r.calm, r.depth, time.Since(began).Seconds())
			if r.wrong != "" {
				t.Errorf("%s: %s after %d moves:\n%s", m.name, r.wrong, len(r.trace)-1, strings.Join(r.trace, "\n"))
			}
			if r.stopped {
				t.Errorf("%s: more than %d states", m.name, *limit)
			}
		})
	}
	t.Logf("%d states", total)
}
