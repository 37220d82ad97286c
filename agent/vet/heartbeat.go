package vet

import (
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// heartbeat counts for how long the agent in a guest has said nothing. It counts its own
// looks, and each for a quarter of what is allowed at most: what this process has slept
// through, a guest may have said.
type heartbeat struct {
	looked time.Time
	quiet  time.Duration
	hangs  bool
}

// beat looks at a guest whose agent was silent for so long: it hangs after one to one and a
// half times what is allowed.
func (h *heartbeat) beat(now time.Time, silent, allowed time.Duration) {
	gap := now.Sub(h.looked)
	h.looked = now
	if silent < allowed/2 {
		h.quiet, h.hangs = 0, false
		return
	}
	h.quiet += min(gap, allowed/4)
	h.hangs = silent >= allowed && h.quiet >= allowed/2
}

var errHangs = fault.New(fault.WrongState, "the guest hangs: its agent says nothing any more")

// listen to a guest's heart: end it where it hangs and is to be started again, and when to
// listen next.
func (v *tracked) listen(a vhi.Assignment, c hypervisor.Condition) (s step, again time.Duration) {
	allowed := time.Duration(a.Descriptor.Reliability.HeartbeatMS) * time.Millisecond
	v.mu.Lock()
	defer v.mu.Unlock()
	if allowed == 0 || a.Power != vhi.Running || c != hypervisor.Running {
		v.heart = heartbeat{}
		return rest, 0
	}
	now := time.Now()
	silent := v.line.silent(now)
	if !v.spoke {
		silent = 0 // it has no agent, or has just booted
	}
	if v.heart.beat(now, silent, allowed); !v.heart.hangs || a.Descriptor.Restart == vee.RestartNever {
		return rest, allowed / 8 // where it never is started again, somebody has to look at it
	}
	v.err = errHangs
	v.hung, v.spoke, v.heart = true, false, heartbeat{}
	v.crashes++
	v.restarts++
	return end, 0
}
