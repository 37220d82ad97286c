package deploy

import (
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// A service that sleeps keeps its slots, its networks and its access points, and starts and
// replaces nothing; its VEEs are put to sleep, and woken, all in one action of the VEE
// Manager's, which does it for all or for none.

// switchAgain is how long one such action is given before it is asked for again: it was
// reverted, or not answered.
const switchAgain = 30 * time.Second

// sleep puts every VEE that runs to sleep.
func (p *planner) sleep() {
	var ids []vee.ID
	for _, l := range p.s.Slots {
		switch v := p.w.VEEs[l.VEE]; {
		case l.VEE == "" || !l.Retiring.IsZero() || !v.Submitted || v.Target == vee.Suspended || v.Target == vee.Destroyed:
		case v.State != vee.Active && v.State != vee.Paused:
			if v.Target == vee.Active {
				return // what is still starting cannot be saved yet
			}
		default:
			ids = append(ids, l.VEE)
		}
	}
	p.s.Slept = true
	p.switchTo(Sleep, ids)
}

// rise wakes every VEE that sleep has put to sleep.
func (p *planner) rise() {
	if !p.s.Slept {
		return
	}
	var ids []vee.ID
	left := 0
	for _, l := range p.s.Slots {
		v := p.w.VEEs[l.VEE]
		if v.State == vee.Suspended {
			left++
		}
		if v.Target == vee.Suspended && v.Queue == 0 && l.Retiring.IsZero() {
			ids = append(ids, l.VEE)
		}
	}
	p.s.Slept = left+len(ids) > 0
	p.switchTo(Wake, ids)
}

func (p *planner) switchTo(k Kind, ids []vee.ID) {
	if len(ids) == 0 {
		p.s.Asked = time.Time{}
		return
	}
	if again := p.s.Asked.Add(switchAgain); !p.s.Asked.IsZero() && again.After(p.w.Now) {
		p.wake(again)
		return
	}
	if p.held(Switch) {
		return
	}
	slices.Sort(ids)
	p.s.Asked = p.w.Now
	p.do(Action{Kind: k, VEEs: ids})
}

// asleep counts the VEEs that sleep, of those that have begun to run.
func (p *planner) asleep() (n, of int) {
	for _, l := range p.s.Slots {
		v := p.w.VEEs[l.VEE]
		if l.VEE == "" || !v.Submitted || v.State == vee.Destroyed {
			continue
		}
		of++
		if v.State == vee.Suspended || v.State == vee.Defined && v.Target == vee.Defined {
			n++
		}
	}
	return n, of
}

// sleeping is the status of a service that sleeps, or is falling asleep.
func (p *planner) sleeping(problems []string) {
	n, of := p.asleep()
	was := p.s.Phase
	if n == of {
		if p.s.Phase = smi.Sleeping; was != p.s.Phase {
			p.event(false, "Sleeping", "every VEE sleeps")
		}
	} else {
		problems = append(problems, fmt.Sprintf("falls asleep: %d of %d VEEs sleep", n, of))
		if was == smi.Sleeping {
			p.s.Phase = smi.Degraded
		}
	}
	p.say(problems)
}

// queued says which place the VEEs have that wait for room to wake.
func (p *planner) queued() (list []string) {
	for _, l := range p.s.Slots {
		if v := p.w.VEEs[l.VEE]; v.Queue > 0 && v.State == vee.Suspended {
			return []string{fmt.Sprintf("waits for room to wake, at place %d of the queue", v.Queue)}
		}
	}
	return nil
}
