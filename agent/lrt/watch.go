package lrt

import (
	"time"

	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// The monitoring layer: from looks at what guests take, whether the host is in trouble. Pure.

// Look at a host.
type Look struct {
	CPU     float64 // part of its physical CPUs that guests take
	Guests  int     // that run
	Leaving bool    // they are to leave it
}

// Watch of a host. The zero value has seen nothing.
type Watch struct {
	Load    float64     // CPU, smoothed
	Trouble dvms.Reason // empty: none

	seen    bool
	leaning dvms.Reason // what it would be if it lasted
	since   dvms.Time   // it leans so
	guests  int
	quiet   dvms.Time // nothing is said before
	failed  int       // times in a row that nobody could help
}

const (
	// smoothing: how much of a look is in the load. After three looks two thirds of a step are.
	smoothing = 1. / 3
	// still idle up to this times the threshold, once it is.
	slack = 1.25
	// quiet after nobody could help, doubled each time: the others' state changes slowly, and
	// each question costs every host of the site one.
	firstQuiet, longestQuiet = time.Minute, 32 * time.Minute
)

// Look again at now.
func (w Watch) Look(p vhi.Relief, l Look, now dvms.Time) Watch {
	w.Load += smoothing * (l.CPU - w.Load)
	if l.Guests != w.guests || !w.seen {
		// What was is no measure of what is, nor whether anybody could help with it.
		w.Load, w.seen = l.CPU, true
		w.guests, w.quiet, w.failed = l.Guests, 0, 0
	}
	lean := w.lean(p, l)
	if lean != w.leaning {
		w.leaning, w.since = lean, now
	}
	lasts := time.Duration(p.LastsMS) * time.Millisecond
	if lean == w.Trouble || lean != "" && lean != dvms.Draining && now-w.since < lasts {
		return w
	}
	w.Trouble, w.quiet, w.failed = lean, 0, 0
	return w
}

// lean: what the host would be in if it lasted. Trouble ends at another load than it begins.
func (w Watch) lean(p vhi.Relief, l Look) dvms.Reason {
	over, under := p.Overload, p.Underload
	switch w.Trouble {
	case dvms.Overloaded:
		over = p.Calm
	case dvms.Idle:
		under *= slack
	}
	switch {
	case l.Guests == 0:
	case l.Leaving:
		return dvms.Draining
	case p.Overload > 0 && w.Load > over:
		return dvms.Overloaded
	case w.Load < under:
		return dvms.Idle
	}
	return ""
}

// Says whether to speak of the trouble now.
func (w Watch) Says(now dvms.Time) bool { return w.Trouble != "" && now >= w.quiet }

// Helpless: nobody could help.
func (w Watch) Helpless(now dvms.Time) Watch {
	w.quiet = now + min(firstQuiet<<min(w.failed, 10), longestQuiet)
	w.failed++
	return w
}
