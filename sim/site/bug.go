package site

import (
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Deliberate mistakes, which only the tests make: the random faults must find each of them.
const (
	bugGiveAway  bug = "give-away before self-kill"
	bugSteady    bug = "witnesses need not be steady, nor wait before they say lost"
	bugGuard     bug = "the guard does not kill"
	bugDisk      bug = "what is written is not on the disk"
	bugAutostart bug = "a host starts its guests by itself when it boots"
	bugStaleRead bug = "a deposed leader answers from what it remembers"
	bugImpatient bug = "the source of a handover goes on when it hears nothing"
	bugCopyEarly bug = "memory is copied before the guest is stopped"
	bugReserve   bug = "hosts move VEEs for whoever asks"
	bugMeter     bug = "a meter counts what did not run"
	bugForget    bug = "usage that is not acknowledged is forgotten"
	bugClock     bug = "a host's clock runs at half its rate"
)

// mutate the site's timings where the bug is one of those.
func (s *Site) mutate() {
	switch s.bug {
	case bugGiveAway:
		s.p.GiveAway = 10 * time.Second
	case bugSteady:
		s.p.Steady, s.p.LostAfter = 0, 2*time.Second
	case bugClock:
		s.hosts[0].rate = .5
	}
}

// impatient source of a handover: it lets the guest go on.
func (h *host) impatient(id vee.ID) {
	if p := h.procs[id]; h.s.bug == bugImpatient && p != nil && !p.running {
		p.running = true
		h.count(id, true)
	}
}
