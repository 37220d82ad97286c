package federation

import (
	"fmt"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// This file is the pure core: what the next call to a partner is, given an assignment and
// the VEE as the partner shows it; and what the partner's word means to our manager.

// step is the next call.
type step struct {
	do     do
	action vee.Action
	update vmi.VEEUpdate
	part   bool   // of what is assigned: more follows
	why    string // of refuse
}

type do int

const (
	rest    do = iota // it is as assigned, or another wish has overruled this one
	reserve           // InitializeVEEs
	act               // UpdateState
	fit               // UpdateVEEs
	refuse            // the partner has nothing of it and will not have it under this wish
)

func custody(a vhi.Assignment, agreement string) vmi.Custody {
	return vmi.Custody{Agreement: agreement, Epoch: a.Epoch, Seq: a.Seq}
}

// actions that lead to a power.
var actions = map[vhi.Power]vee.Action{
	vhi.Running: vee.Activate, vhi.Paused: vee.Pause, vhi.Suspended: vee.Suspend, vhi.Stopped: vee.Shutdown, vhi.Absent: vee.Destroy,
}

// targets of the actions.
var targets = map[vhi.Power]vee.State{
	vhi.Running: vee.Active, vhi.Paused: vee.Paused, vhi.Suspended: vee.Suspended, vhi.Stopped: vee.Defined, vhi.Absent: vee.Destroyed,
}

// next step towards a. v is the VEE as the partner shows it, nil for none. Called again with
// what came of the step it comes to rest or refuse, from whatever a lost or repeated call has
// left.
func next(a vhi.Assignment, v *vmi.VEE) step {
	action, known := actions[a.Power]
	switch {
	case !known:
		return step{do: refuse, why: fmt.Sprintf("a partner does not take the power %q", a.Power)}
	case v == nil && a.Power == vhi.Absent:
		return step{do: act, action: vee.Destroy} // what is on its way must not arrive later
	case v == nil:
		return step{do: reserve, part: a.Power != vhi.Stopped}
	case v.Custody == nil:
		return step{do: refuse, why: "the partner says that it is its own"}
	}
	c := custody(a, "").Compare(*v.Custody)
	switch {
	case c < 0:
		return step{}
	case v.State == vee.Destroyed && a.Power == vhi.Absent:
		if c > 0 {
			return step{do: act, action: vee.Destroy}
		}
		return step{}
	case v.State == vee.Destroyed && v.Custody.Epoch == a.Epoch && v.Custody.Seq == a.Seq:
		return step{do: refuse, why: "it has been given up"}
	case v.State == vee.Destroyed:
		return step{do: reserve, part: a.Power != vhi.Stopped}
	case c == 0:
		return step{} // obeyed; what has become of it since, it tells
	}
	if u, differs := update(a, *v); differs && a.Power != vhi.Absent {
		return step{do: fit, update: u}
	}
	switch {
	case v.Target == targets[a.Power]:
	case a.Power == vhi.Paused && v.Target != vee.Active:
		return step{do: act, action: vee.Activate, part: true} // before it is paused
	case a.Power == vhi.Suspended && v.Target == vee.Defined:
		return step{do: act, action: vee.Shutdown} // it does not run: our manager judges that
	}
	return step{do: act, action: action}
}

// update that v needs to be as a describes it.
func update(a vhi.Assignment, v vmi.VEE) (u vmi.VEEUpdate, differs bool) {
	want, is := a.Descriptor, v.Descriptor
	u = vmi.VEEUpdate{ID: v.ID, Version: v.Version}
	if want.VCPUs == 0 { // a wish without a descriptor
		return u, false
	}
	if want.Memory != is.Memory {
		u.Memory, differs = &want.Memory, true
	}
	if want.VCPUs != is.VCPUs {
		u.VCPUs, differs = &want.VCPUs, true
	}
	if want.CPU != is.CPU {
		u.CPU, differs = &want.CPU, true
	}
	if !slices.Equal(want.Tags, is.Tags) {
		u.Tags, differs = &want.Tags, true
	}
	if !slices.Equal(want.Firewall, is.Firewall) {
		u.Firewall, differs = &want.Firewall, true
	}
	for _, k := range want.Disks {
		i := slices.IndexFunc(is.Disks, func(o vee.Disk) bool { return o.Name == k.Name })
		if i >= 0 && k.Size > is.Disks[i].Size {
			if u.Disks == nil {
				u.Disks = map[string]vee.Bytes{}
			}
			u.Disks[k.Name], differs = k.Size, true
		}
	}
	return u, differs
}

// report of a VEE that the partner has for us, in a host's words.
func report(v vmi.VEE) vhi.Report {
	p := vhi.Report{
		VEE: v.ID, Epoch: v.Custody.Epoch, Seq: v.Custody.Seq, Phase: v.Phase, Progress: v.Progress,
		GuestReady: v.GuestReady, GuestSeen: v.GuestSeen, GuestIdle: v.GuestIdle, GuestFailure: v.GuestFailure, Restarts: v.Restarts,
		Error: v.Error, Since: v.Changed, DiskUsed: v.DiskUsed, Fitted: true, NextBoot: v.NextBoot, Freed: v.Freed,
		Move: v.Move,
	}
	if starting := v.Target == vee.Active && v.State == vee.Defined; v.State != v.Target && !starting {
		p.Error = "" // the partner goes on trying
	}
	if v.Custody.Part && p.Seq > 0 {
		p.Seq-- // of an older wish, until the whole is obeyed
	}
	if v.Evicted != nil && v.State == vee.Defined {
		p.Power, p.Error, p.Code, p.Evicted = vhi.Failed, v.Evicted.Why, string(fault.Denied), true
		return p
	}
	if expected(v) && v.State != vee.Destroyed {
		p.Power = vhi.Incoming
		return p
	}
	switch v.State {
	case vee.Active:
		p.Power = vhi.Running
	case vee.Paused:
		p.Power = vhi.Paused
	case vee.Suspended:
		p.Power = vhi.Suspended
	case vee.Destroyed:
		p.Power = vhi.Absent
	default:
		switch p.Power = vhi.Stopped; v.Phase {
		case vee.PhaseFailed:
			p.Power = vhi.Failed
		case vee.PhaseProlog:
			p.Power = vhi.Unprepared
		}
	}
	return p
}

// refusal in a host's words: nothing of it is there, under a's own wish.
func refusal(a vhi.Assignment, why, code string) vhi.Report {
	return vhi.Report{VEE: a.VEE, Epoch: a.Epoch, Seq: a.Seq, Power: vhi.Absent, Phase: vee.PhaseFailed, Error: why, Code: code}
}
