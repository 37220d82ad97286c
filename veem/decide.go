package veem

import (
	"fmt"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// condition of a VEE's host, as far as the manager knows.
type condition int

const (
	unheard condition = iota // nothing yet since the manager started: wait for its word
	alive
	lost // no renewal for too long
)

// view is what the manager knows, in memory, of a VEE that has a host.
type view struct {
	host condition
	// known: the host's word is newer than everything that this manager told it. report is
	// nil when the word is that it has no such VEE.
	known  bool
	report *vhi.Report
	// settled: the report was made a while after the assignment, so that an error in it is
	// the outcome and not what stood there before.
	settled bool
	// guarded: the host can run VEEs under lease.
	guarded bool
	// progress that the phase which has ended had made; nil: nothing is known.
	progress *vee.Progress
}

// act is the one thing to do next about a VEE.
type act int

const (
	nothing act = iota
	place       // find a host
	assign      // tell the host
	purge       // drop the record
	invite      // tell the host that it is to migrate to
)

func (a act) String() string { return [...]string{"nothing", "place", "assign", "purge", "invite"}[a] }

// decision of the core.
type decision struct {
	rec record    // as it should be; written where it differs, and then decided anew
	do  act       // for rec as it is when nothing had to be written
	at  time.Time // look again then; zero: when something happens
}

// decide says what to do about one VEE. It is the manager's life cycle in one place: pure,
// called again and again, from any state that a crash may have left.
func decide(r record, v view, now time.Time, keep time.Duration) decision {
	switch {
	case r.State == vee.Destroyed:
		end := r.Changed.Add(keep)
		if now.Before(end) {
			return decision{rec: r, at: end}
		}
		return decision{rec: r, do: purge}
	case !r.Assigned:
		return decideUnassigned(r, now)
	case v.host == unheard:
		return decision{rec: r}
	case v.host == lost:
		r.Phase = vee.PhaseUnknown
		r.GuestReady = false
		return decision{rec: r}
	case !v.known:
		return decision{rec: r, do: assign}
	case v.report == nil && r.Withdraw:
		return decision{rec: r, do: assign}
	case v.report == nil:
		return decideGone(r)
	case r.away() && v.report.Power == vhi.Absent && v.report.Epoch == r.Epoch && v.report.Seq == r.Seq && r.Target != vee.Destroyed:
		return decideAway(r, *v.report, now)
	case r.away() && stoppedThere(&r, v.report) && r.Target == vee.Active && r.Descriptor.Restart != vee.RestartNever && !r.moving():
		r.State, r.Phase, r.GuestReady, r.GuestSeen, r.Error = vee.Defined, vee.PhaseFailed, false, false, v.report.Error
		return decision{rec: r} // until there is a place elsewhere (evicted)
	}
	if came(&r, r.Host, v.report) { // there and back again
		if !r.leased() { // else the log of ownership takes it in
			r.follow(v.report, now)
		}
		return decision{rec: r}
	}
	if m, is := byHosts(&r, v.report, now); is {
		r.Move = m
		return decision{rec: r}
	}
	r.Progress = v.progress
	d := decideReported(r, *v.report, v.settled)
	if d.do == nothing && v.report.Epoch == d.rec.Epoch && v.report.Seq == d.rec.Seq {
		d.rec = decideLease(d.rec, *v.report, v.guarded)
	}
	return d
}

// decideUnassigned is for a VEE that no host has heard of.
func decideUnassigned(r record, now time.Time) decision {
	switch {
	case r.Target == vee.Destroyed:
		r.finish()
	case r.Host == "" && r.State == vee.Initial:
		return decision{rec: r, do: place}
	case r.Host != "" && r.ReservedUntil != nil:
		if now.Before(*r.ReservedUntil) {
			return decision{rec: r, at: *r.ReservedUntil}
		}
		if r.release(); r.lodges() {
			r.finish() // its own site looks for another place
		}
	}
	return decision{rec: r}
}

// decideGone is for a VEE that was assigned to a host which says that it has no such VEE.
func decideGone(r record) decision {
	switch {
	case r.Target == vee.Destroyed:
		r.finish()
		return decision{rec: r}
	case r.State == vee.Defined && r.Phase != vee.PhaseUnknown && !r.Settled:
		return decision{rec: r, do: assign} // it was on its way there, or has been given up already
	case r.Phase != vee.PhaseUnknown:
		r.Phase = vee.PhaseUnknown
		r.GuestReady = false
		return decision{rec: r}
	}
	// The restart policy decides about what ran; a memory that somebody wanted kept is lost.
	switch {
	case r.Target == vee.Suspended || r.Target == vee.Paused:
		return failed(r, "its memory is gone from the host", "", vee.Defined)
	case r.Descriptor.Restart == vee.RestartNever && r.State != vee.Defined:
		return failed(r, "it is gone from the host, and its restart policy is never", "", vee.Defined)
	}
	return decision{rec: r, do: assign}
}

// failed gives up what was asked for and stays in (or goes to) state.
func failed(r record, why, code string, state vee.State) decision {
	r.retarget(state)
	r.Failure, r.FailureCode, r.Error = why, code, why
	if state == vee.Defined {
		r.State, r.Phase = vee.Defined, vee.PhaseFailed
		r.GuestReady, r.GuestSeen = false, false
	}
	return decision{rec: r}
}

// decideReported is for a VEE that its host reports.
func decideReported(r record, p vhi.Report, settled bool) decision {
	switch c := p.Epoch.Compare(r.Epoch); {
	case p.Epoch.Generation > r.Epoch.Generation:
		// This record is an old copy: whoever restored it must say so first.
		r.Error = fmt.Sprintf("host %s has obeyed epoch %s, newer than this site's generation %d", r.Host, p.Epoch, r.Epoch.Generation)
		return decision{rec: r}
	case c > 0 && r.Lease != nil && r.Lease.Sealing:
		return decision{rec: r} // the log of ownership finds out who has it
	case c > 0:
		// The host was fenced by a command that is not in the record; it is still the one
		// that should have it.
		r.Epoch.Term = p.Epoch.Term + 1
		if r.Lease != nil { // nor one that a give-away has proposed
			r.Epoch.Term = max(r.Epoch.Term, r.Lease.Next.Term+1)
		}
		r.Seq++
		return decision{rec: r}
	case c == 0 && p.Seq > r.Seq:
		r.Seq = p.Seq + 1
		return decision{rec: r}
	case c < 0 || p.Seq < r.Seq:
		r = observed(r, p)
		return decision{rec: r, do: assign}
	}
	if r.Target == vee.Destroyed && p.Power == vhi.Absent {
		r.finish()
		r.Freed = p.Freed
		return decision{rec: r}
	}
	if p.Power == vhi.Absent {
		return decideGone(r)
	}
	r = observed(r, p)
	starts := (p.Power == vhi.Stopped || p.Power == vhi.Unprepared) && p.Phase != vee.PhaseStopped
	if r.Settled = r.State == r.Target && !starts; r.Settled {
		r.Lease = r.Lease.running()
		r.Holds = r.Holds && r.State != vee.Defined && !r.asleep()
	}
	if settled {
		return judge(r, p)
	}
	return decision{rec: r}
}

// decideLease gives a VEE that came to its host before that had a guard the lease that it
// wants. First the host puts its guest under guard, then, and not before, the log of ownership
// counts on the guest's end: a give-away honours only what the host has acknowledged.
func decideLease(r record, p vhi.Report, guarded bool) record {
	switch {
	case r.Lease != nil || !r.wantsLease() || r.Target == vee.Destroyed:
	case r.Offered && p.Guarded:
		r.Offered, r.Lease = false, &lease{}
	case !r.Offered && guarded && r.Settled:
		r.Offered, r.Settled = true, false
		r.Seq++
	}
	return r
}

// states that a power is seen as.
var states = map[vhi.Power]vee.State{
	vhi.Running: vee.Active, vhi.Paused: vee.Paused, vhi.Suspended: vee.Suspended,
	vhi.Stopped: vee.Defined, vhi.Unprepared: vee.Defined, vhi.Failed: vee.Defined,
}

// observed is r with what the host sees.
func observed(r record, p vhi.Report) record {
	if s, known := states[p.Power]; known {
		r.State = s
	}
	if p.Phase != "" {
		r.Phase = p.Phase
	}
	if r.Target == vee.Defined && r.State == vee.Defined && r.Failure != "" {
		r.Phase = vee.PhaseFailed // stopped, and not because somebody asked for it
	}
	if r.Target == vee.Destroyed && p.Phase != vee.PhaseSave {
		r.Phase = vee.PhaseEpilog
	}
	// A host that has just taken a guest over, or was restarted, has not heard it yet: what it
	// said last still holds while it runs on.
	if p.GuestSeen || p.Power != vhi.Running || p.Restarts != r.HostRestarts {
		r.GuestReady = p.GuestReady && r.State == vee.Active
		r.GuestSeen = p.GuestSeen
	}
	r.GuestFailure = p.GuestFailure
	r.Restarts += max(0, p.Restarts-r.HostRestarts)
	r.HostRestarts = p.Restarts
	r.Error = p.Error
	if r.Error == "" {
		r.Error = r.Failure
	}
	return r
}

// judge whether what was asked for has failed for good. Starting a guest never has: its
// host goes on trying. A guest that could not be saved or stopped runs on.
func judge(r record, p vhi.Report) decision {
	idle := p.Phase == vee.PhaseRunning || p.Phase == vee.PhaseBoot || p.Phase == vee.PhaseHold // no save or stop under way
	live := idle && (p.Power == vhi.Running || p.Power == vhi.Paused)
	switch {
	case r.Target == vee.Destroyed:
	case p.Power == vhi.Failed && r.Target != vee.Defined:
		return failed(r, orElse(p.Error, "the guest ended by itself"), p.Code, vee.Defined)
	case r.Target == vee.Suspended && (p.Power == vhi.Unprepared || p.Power == vhi.Stopped && p.Phase == vee.PhaseStopped):
		return failed(r, orElse(p.Error, "it does not run, and no memory of it is saved"), p.Code, vee.Defined)
	case p.Error == "" || r.State == r.Target:
	case live && (r.Target == vee.Suspended || r.Target == vee.Defined || r.Target == vee.Paused),
		r.Target == vee.Active && p.Power == vhi.Suspended && p.Phase == vee.PhaseSuspended:
		return failed(r, p.Error, p.Code, r.State)
	}
	return decision{rec: r}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
