package veem

import (
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// maxSteps of a VEE's history that are kept: its first one, and the newest.
const maxSteps = 24

// maxNote of a step, in bytes.
const maxNote = 160

// live brings what grows with a VEE's life, its meter and its history, from old (nil: it is
// new) to r, which is about to be written. So neither costs a write of its own.
func (r *record) live(old *record, now time.Time) {
	anew := old == nil || old.State == vee.Destroyed && r.State != vee.Destroyed
	if r.History = nil; anew {
		r.Meter = account.Meter{AtMS: now.UnixMilli()}
	} else {
		r.Meter = old.meterAt(now.UnixMilli())
	}
	if old != nil && (!anew || r.lodges()) { // the books are about each time that it was here
		r.History = old.History
	}
	var last vmi.Step
	if n := len(r.History); n > 0 {
		last = r.History[n-1]
	}
	counted := r.counted(last)
	if !anew && old.State == r.State && old.Phase == r.Phase && old.Host == r.Host && (counted == nil || last.Counted != nil && *counted == *last.Counted) {
		return
	}
	steps := slices.Clone(r.History) // records are never changed in place
	if n := len(steps); n > 0 && r.Progress != nil {
		steps[n-1].Progress = r.Progress
	}
	if len(steps) >= maxSteps {
		steps = slices.Delete(steps, 1, 2+len(steps)-maxSteps)
	}
	s := r.step(now)
	s.Counted = counted
	r.History = slices.Clip(append(steps, s))
}

// counted is what r counts as after its last step; nil: it is this site's own. It is here under
// the agreement that was named last.
func (r *record) counted(last vmi.Step) *vmi.Counted {
	if !r.lodges() {
		return nil
	}
	c := vmi.Counted{Agreement: r.Custody.Agreement, Wanted: r.Target == vee.Active, Size: account.SizeOf(r.Descriptor)}
	if c.Agreement == "" && last.Counted != nil {
		c.Agreement = last.Counted.Agreement
	}
	return &c
}

func (r *record) step(now time.Time) vmi.Step {
	note := r.Error
	if len(note) > maxNote {
		note = note[:maxNote] + "…"
	}
	return vmi.Step{At: now, State: r.State, Phase: r.Phase, Host: r.Host, Note: note}
}
