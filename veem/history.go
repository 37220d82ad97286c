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
	if old == nil || old.State == vee.Destroyed && r.State != vee.Destroyed { // it comes anew

		r.Meter = account.Meter{AtMS: now.UnixMilli()}
		r.History = []vmi.Step{r.step(now)}
		return
	}
	r.Meter = old.meterAt(now.UnixMilli())
	r.History = old.History
	if old.State == r.State && old.Phase == r.Phase && old.Host == r.Host {
		return
	}
	steps := slices.Clone(old.History) // records are never changed in place
	if n := len(steps); n > 0 && r.Progress != nil {
		steps[n-1].Progress = r.Progress
	}
	if len(steps) >= maxSteps {
		steps = slices.Delete(steps, 1, 2+len(steps)-maxSteps)
	}
	r.History = slices.Clip(append(steps, r.step(now)))
}

func (r *record) step(now time.Time) vmi.Step {
	note := r.Error
	if len(note) > maxNote {
		note = note[:maxNote] + "…"
	}
	return vmi.Step{At: now, State: r.State, Phase: r.Phase, Host: r.Host, Note: note}
}
