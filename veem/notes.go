package veem

import (
	"fmt"

	"github.com/reservoir-cloud/reservoir/vee"
)

// notes are the events that a change of a VEE's record amounts to. They come from the
// record alone, so each is told once, whoever made the change and however often it was
// tried.
func notes(before, after *record) (es []Event) {
	if after == nil {
		return nil
	}
	b := record{}
	if before != nil {
		b = *before
	}
	a := *after
	add := func(warning bool, reason, format string, args ...any) {
		es = append(es, Event{Warning: warning, Reason: reason, Object: "vee/" + string(a.ID), Customer: a.Descriptor.Customer,
			GroupID: a.Descriptor.GroupID, Message: a.Descriptor.Name + ": " + fmt.Sprintf(format, args...)})
	}
	if before == nil {
		add(false, "Initialized", "known as %s", a.ID)
	}
	if a.Host != b.Host && a.Host != "" {
		why := a.Why
		if why != "" {
			why = ": " + why
		}
		add(false, "Placed", "on host %s%s", a.Host, why)
	}
	if a.Withdraw && !b.Withdraw {
		add(true, "Withdrawn", "from %s, and placed anew: %s", a.Host, a.Error)
	}
	if a.Host == "" && b.Host != "" && a.State != vee.Destroyed && !b.Withdraw {
		add(true, "ReservationExpired", "it was not submitted in time and gave up its place on host %s", b.Host)
	}
	if a.Evicted != nil && b.Evicted == nil {
		add(true, "Evicted", "%s", a.Evicted.Why)
	}
	migrationNotes(&a, &b, add)
	if a.Submitted && !b.Submitted {
		add(false, "Submitted", "it will be active")
	}
	if a.State != b.State && before != nil {
		freed := ""
		if a.Freed > 0 {
			freed = fmt.Sprintf(", %s of disk reclaimed", a.Freed)
		}
		add(false, stateReason(a), "%s%s", a.State, freed)
	}
	if a.GuestReady && !b.GuestReady {
		add(false, "Ready", "the guest says that it is ready")
	}
	if a.GuestFailure != "" && a.GuestFailure != b.GuestFailure {
		add(true, "FirstBootFailed", "%s", a.GuestFailure)
	}
	if a.Restarts > b.Restarts {
		add(true, "GuestRestarted", "the guest ended by itself and is started again (restart %d)", a.Restarts)
	}
	if a.Phase == vee.PhaseUnknown && b.Phase != vee.PhaseUnknown {
		add(true, "Unknown", "host %s does not say what became of it", a.Host)
	}
	if a.Phase != vee.PhaseUnknown && b.Phase == vee.PhaseUnknown && a.State != vee.Destroyed {
		add(false, "Found", "host %s knows of it again", a.Host)
	}
	if a.Error != "" && a.Error != b.Error {
		add(true, errorReason(a, b), "%s", a.Error)
	}
	return es
}

func stateReason(a record) string {
	switch a.State {
	case vee.Active:
		return "Booted"
	case vee.Destroyed:
		return "Destroyed"
	}
	return "StateChanged"
}

func errorReason(a, b record) string {
	switch {
	case a.State == vee.Initial:
		return "NoPlace"
	case a.Phase == vee.PhaseFailed:
		return "GuestExited"
	case a.Failure != "" && a.Failure != b.Failure:
		return "ActionFailed"
	}
	return "Trouble"
}
