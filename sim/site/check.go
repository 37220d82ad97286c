package site

import (
	"fmt"
	"strings"
	"time"
)

// most that is wrong is written down; the first says it.
const most = 5

func (s *Site) fail(format string, args ...any) {
	if len(s.wrong) < most {
		line := fmt.Sprintf(format, args...)
		s.wrong = append(s.wrong, fmt.Sprintf("after %.1f s: %s", s.sim.Now().Sub(s.begin).Seconds(), line))
		s.say("WRONG: %s", line)
	}
}

// Wrong is what was found wrong so far, a line each; none: nothing.
func (s *Site) Wrong() []string { return s.wrong }

// check what must hold at every moment: no VEE runs twice, and so no address is there twice,
// for each belongs to one VEE for good.
func (s *Site) check() {
	for _, v := range s.vees {
		var at []string
		for _, h := range s.hosts {
			if p := h.procs[v.id]; p != nil && p.running && !h.frozen {
				at = append(at, h.name)
			}
		}
		if len(at) > 1 && s.twice != v.id {
			s.twice = v.id
			s.fail("%s runs on %s at once", v.id, strings.Join(at, " and "))
		}
	}
}

// longest that it may take until all is well after the last fault: an expiry, seals, a start,
// a partition or two, and the moves.
const longest = 4 * time.Minute

// Settle waits until faults have been over for a while, and then says what is not well: a VEE
// that runs nowhere, a partition that did not end, a host with too much although there is
// room elsewhere, usage that no account has. Where a person has to decide (an unfenced host
// that a restored log waits for) nothing can be well.
func (s *Site) Settle() error {
	if err := s.Run(longest); err != nil {
		return err
	}
	for _, v := range s.vees {
		r := s.store.log.Record(v.id)
		switch h := s.on(v.id); {
		case h == nil:
			s.fail("%s runs nowhere; the log has it at %s, %s, sealing %v", v.id, r.Host, r.Epoch, r.Sealing)
		case r.Host != h.name:
			s.fail("%s runs on %s, and the log has it at %s", v.id, h.name, r.Host)
		}
	}
	for _, h := range s.hosts {
		if h.load() > h.room {
			s.fail("%s has %d %% of %d %%, and nobody has relieved it", h.name, h.load(), h.room)
		}
		if since := s.parts[h.name].since; h.node.In() && s.sim.Now().Sub(since) > longest/2 {
			s.fail("%s has been in %s since %.0f s", h.name, h.node.Part.ID, since.Sub(s.begin).Seconds())
		}
	}
	s.audit()
	return nil
}

// Running VEEs, each counted once.
func (s *Site) Running() (n int) {
	for _, v := range s.vees {
		if s.on(v.id) != nil {
			n++
		}
	}
	return n
}
