package vet

import (
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// step is the next thing to do about one VEE.
type step string

const (
	rest    step = ""        // as assigned, or as near as it gets
	prepare step = "prepare" // fetch images, make disks
	start   step = "start"
	pause   step = "pause"
	resume  step = "resume"
	suspend step = "suspend"
	wake    step = "wake"
	stop    step = "stop"
	destroy step = "destroy"
	end     step = "end"  // a guest that hangs
	send    step = "send" // the steps of a live migration: see move.go
	give    step = "give"
	take    step = "take"
	failed  step = "failed" // ended by itself, and its policy is not to start it again
)

// next is the life cycle of a VEE on its host: from what was assigned and what is
// observed, the one step to do. It is level-triggered: whatever happened in between, the
// steps that it gives lead to the assigned power or to a condition that is reported.
func next(want vhi.Power, now hypervisor.Condition, policy vee.RestartPolicy) step {
	crashed := start // what Crashed means for a VEE that should be running
	if policy == vee.RestartNever {
		crashed = failed
	}
	type row map[hypervisor.Condition]step
	return map[vhi.Power]row{
		vhi.Running: {
			hypervisor.Absent: prepare, hypervisor.Stopped: start, hypervisor.Paused: resume,
			hypervisor.Suspended: wake, hypervisor.Halted: resume, hypervisor.Crashed: crashed,
			hypervisor.Incoming: take, hypervisor.Sent: resume,
		},
		// A halted guest's vCPUs do not run, which is what was asked for.
		vhi.Paused: {
			hypervisor.Absent: prepare, hypervisor.Stopped: start, hypervisor.Running: pause,
			hypervisor.Suspended: wake, hypervisor.Crashed: crashed,
			hypervisor.Incoming: take, hypervisor.Sent: resume,
		},
		// A guest that has no memory any more cannot be suspended: it is reported as it is.
		vhi.Suspended: {
			hypervisor.Running: suspend, hypervisor.Paused: suspend, hypervisor.Halted: suspend,
			hypervisor.Crashed: failed, hypervisor.Incoming: take, hypervisor.Sent: resume,
		},
		// Absent has no disks to keep and is as good as stopped.
		vhi.Stopped: {
			hypervisor.Running: stop, hypervisor.Paused: stop, hypervisor.Halted: stop,
			hypervisor.Suspended: stop, hypervisor.Crashed: stop,
			hypervisor.Incoming: take, hypervisor.Sent: resume,
		},
		vhi.Absent: {
			hypervisor.Stopped: destroy, hypervisor.Running: destroy, hypervisor.Paused: destroy,
			hypervisor.Suspended: destroy, hypervisor.Halted: destroy, hypervisor.Crashed: destroy,
			hypervisor.Incoming: destroy, hypervisor.Sent: destroy,
		},
	}[want][now]
}

// power is what a condition is called in a report.
func power(want vhi.Power, now hypervisor.Condition, s step) vhi.Power {
	switch {
	case s == failed:
		return vhi.Failed
	case now == hypervisor.Running:
		return vhi.Running
	case now == hypervisor.Paused, now == hypervisor.Halted, now == hypervisor.Sent:
		return vhi.Paused
	case want == vhi.Incoming, now == hypervisor.Incoming:
		return vhi.Incoming
	case now == hypervisor.Suspended:
		return vhi.Suspended
	case now == hypervisor.Absent && want == vhi.Absent:
		return vhi.Absent
	case now == hypervisor.Absent:
		return vhi.Unprepared
	}
	return vhi.Stopped
}

// bootPatience is how long a guest without an agent is called booting.
const bootPatience = 2 * time.Minute

// phase is the finer word for people. doing is the step under way, if any.
func phase(want vhi.Power, o hypervisor.Observation, doing, next step, guestSeen bool, now time.Time) vee.Phase {
	switch doing {
	case prepare:
		return vee.PhaseProlog
	case start, wake, restore:
		return vee.PhaseBoot
	case suspend, snapshot:
		return vee.PhaseSave
	case stop, destroy, end:
		return vee.PhaseEpilog
	case send, give, take:
		return vee.PhaseMigrate
	}
	if want == vhi.Incoming {
		return vee.PhaseMigrate
	}
	switch o.Condition {
	case hypervisor.Sent, hypervisor.Incoming:
		return vee.PhaseMigrate
	case hypervisor.Running:
		if !guestSeen && now.Sub(o.Since) < bootPatience {
			return vee.PhaseBoot
		}
		return vee.PhaseRunning
	case hypervisor.Paused, hypervisor.Halted:
		return vee.PhaseHold
	case hypervisor.Suspended:
		return vee.PhaseSuspended
	case hypervisor.Crashed:
		if next == start {
			return vee.PhaseBoot
		}
		return vee.PhaseFailed
	case hypervisor.Absent:
		switch want {
		case vhi.Absent:
			return vee.PhaseDone
		case vhi.Stopped:
			return vee.PhaseStopped
		}
		return vee.PhaseProlog
	}
	return vee.PhaseStopped
}

// Pauses before a crashed guest is started again, and before a failed step is repeated:
// doubled each time. A guest that ran for calm starts anew at the shortest.
const (
	restartPause = time.Second
	retryPause   = 500 * time.Millisecond
	longestPause = time.Minute
	calm         = 5 * time.Minute
)

// backoff is the pause before the n-th repetition, n from 0.
func backoff(base time.Duration, n int) time.Duration {
	if n > 7 {
		return longestPause
	}
	return min(base<<n, longestPause)
}
