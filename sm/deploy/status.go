package deploy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// shown is how many problems a message names.
const shown = 3

// status puts the difference between desired and observed in one word and a message.
func (p *planner) status() {
	was := p.s.Phase
	problems, stuck := p.problems()
	if p.goal.Asleep && !p.goal.Deleting {
		p.sleeping(problems)
		return
	}
	pending := p.pending()
	switch {
	case p.goal.Deleting:
		p.s.Phase = smi.Deleting
	case len(pending) == 0 && len(problems) == 0:
		p.s.Phase, p.s.Settled, p.s.Established = smi.Ready, true, true
	case p.s.Settled:
		p.s.Phase = smi.Degraded
	case stuck && !p.goal.BestEffort:
		p.s.Phase = smi.Failing
	default:
		p.s.Phase = smi.Deploying
	}
	p.say(slices.Concat(problems, pending))
	if was == p.s.Phase {
		return
	}
	switch p.s.Phase {
	case smi.Ready:
		p.event(false, "Ready", "every replica is ready")
	case smi.Degraded, smi.Failing:
		p.event(true, map[smi.Phase]string{smi.Degraded: "Degraded", smi.Failing: "Failing"}[p.s.Phase], "%s", p.s.Message)
	}
}

// say the first of what there is to say.
func (p *planner) say(all []string) {
	p.s.Message = strings.Join(all[:min(shown, len(all))], "; ")
	if more := len(all) - shown; more > 0 {
		p.s.Message += fmt.Sprintf("; and %d more", more)
	}
}

// problems are what has gone wrong. stuck: some of it will not mend by itself.
func (p *planner) problems() (list []string, stuck bool) {
	for _, key := range slices.Sorted(maps.Keys(p.w.Troubles)) {
		list = append(list, p.w.Troubles[key].Message)
		stuck = stuck || p.w.Troubles[key].Stuck
	}
	for _, l := range p.s.Slots {
		v := p.w.VEEs[l.VEE]
		switch {
		case l.VEE == "" || !l.Retiring.IsZero():
		case v.Phase == vee.PhaseFailed:
			stuck = true
			list = append(list, fmt.Sprintf("%s failed: %s (look: reservoir vee console %s; replace it: reservoir vee destroy %s)", l.Name(), orUnknown(v.Error), l.VEE, l.VEE))
		case v.Phase == vee.PhaseUnknown:
			list = append(list, fmt.Sprintf("%s: its host %s does not answer", l.Name(), v.Host))
		case v.Submitted && v.Target != vee.Active && v.Target != vee.Destroyed && !(p.s.Slept && v.Target == vee.Suspended):
			list = append(list, fmt.Sprintf("%s was told to be %s (go on: reservoir vee activate %s)", l.Name(), v.Target, l.VEE))
		case v.Error != "" && !Ready(v):
			list = append(list, fmt.Sprintf("%s: %s", l.Name(), v.Error))
		}
	}
	return list, stuck
}

func orUnknown(s string) string {
	if s == "" {
		return "its guest ended"
	}
	return s
}

// unreached are the public addresses of a component at which nobody answers yet.
func (p *planner) unreached(c Component) (list []string) {
	for _, port := range c.Ports {
		if a, there := p.w.AccessPoints[AccessPointName(c.Name, port)]; there && a.Address != "" && a.Backends == 0 {
			p.wake(p.w.Now.Add(drainPoll))
			list = append(list, fmt.Sprintf("%s: nobody answers at %s yet (look: reservoir service access)", c.Name, a.Address))
		}
	}
	return list
}

// pending is what is still to be waited for when nothing has gone wrong.
func (p *planner) pending() (list []string) {
	if p.s.Waiting != "" {
		list = append(list, p.s.Waiting)
	}
	list = append(list, p.queued()...)
	leaving := 0
	for _, c := range p.goal.Components {
		works := p.count(func(l Slot) bool { return c.current(l) && p.works(l) })
		if works < c.Desired && !p.goal.Deleting {
			what := "ready"
			if p.count(c.outdated) > 0 {
				what = "replaced"
			}
			list = append(list, fmt.Sprintf("%s: %d of %d %s", c.Name, works, c.Desired, what))
		}
		if works > 0 && !p.goal.Deleting {
			list = append(list, p.unreached(c)...)
		}
		leaving += p.count(func(l Slot) bool { return l.Component == c.Name && !c.current(l) })
	}
	leaving += p.strayCount()
	for _, c := range p.foreign() {
		leaving += p.count(func(l Slot) bool { return l.Component == c.Name })
	}
	if p.goal.Deleting {
		leaving = len(p.s.Slots) + p.strayCount()
	}
	if leaving > 0 {
		list = append(list, fmt.Sprintf("VEEs still to be removed: %d", leaving))
	}
	if slices.ContainsFunc(p.out.Actions, func(a Action) bool { return a.Kind == PutAccessPoint || a.Kind == DeleteAccessPoint }) {
		list = append(list, "access points")
	}
	if slices.ContainsFunc(p.out.Actions, func(a Action) bool { return a.Kind == PutNetwork || a.Kind == DeleteNetwork }) {
		list = append(list, "networks")
	}
	return list
}
