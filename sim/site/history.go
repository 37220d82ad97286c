package site

import (
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Span of time in which a VEE ran on a host, since the story began.
type Span struct {
	VEE      vee.ID        `json:"vee"`
	Host     string        `json:"host"`
	From, To time.Duration `json:"-"`
}

// Mark is a command, and when it was given.
type Mark struct {
	At time.Duration
	Do string
}

// History of a site, for charts. Warm-up is not told.
type History struct {
	Hosts []string
	Spans []Span
	Marks []Mark
	End   time.Duration
}

// History so far.
func (s *Site) History() History {
	h := History{Spans: slices.Clone(s.spans), Marks: s.marks, End: s.now()}
	for _, x := range s.hosts {
		if !x.guestless {
			h.Hosts = append(h.Hosts, x.name)
		}
	}
	for i := range h.Spans {
		if h.Spans[i].To < 0 {
			h.Spans[i].To = h.End
		}
	}
	return h
}

// now is the time since the story began.
func (s *Site) now() time.Duration { return max(0, s.sim.Now().Sub(s.begin)) }

// note that a VEE begins to run at a host, or ends.
func (s *Site) note(id vee.ID, host string, running bool) {
	if running {
		s.spans = append(s.spans, Span{VEE: id, Host: host, From: s.now(), To: -1})
		return
	}
	for i := range s.spans {
		if x := &s.spans[i]; x.VEE == id && x.Host == host && x.To < 0 {
			x.To = s.now()
		}
	}
}
