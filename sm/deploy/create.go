package deploy

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// create adds slots for the replicas that are missing. Until a service has been as desired
// for the first time, the replicas of a start group are one call, all or none; later each
// is a call of its own, so that what can be mended is.
func (p *planner) create() {
	calls := map[int]int{} // start group to call, in this step
	for _, c := range p.goal.Components {
		missing := c.Desired - p.count(c.current)
		if p.oneByOne(c) {
			missing = min(missing, c.Desired+surge-p.count(c.stays)) // one by one
		}
		if limit, slowly := p.s.Limit[c.Name]; slowly {
			missing = min(missing, max(limit, c.Desired)-p.count(func(l Slot) bool { return l.Component == c.Name }))
		}
		for ; missing > 0 && !p.held(c.Name); missing-- {
			call, begun := calls[c.Group]
			if p.s.Established || !begun {
				p.s.Calls++
				call = p.s.Calls
				calls[c.Group] = call
			}
			p.s.Slots = append(p.s.Slots, Slot{
				Component: c.Name, Number: p.freeNumber(c.Name), Revision: p.goal.Revision, Spec: c.Spec, Fit: c.Fit, Made: p.w.Now, Call: call, Model: p.model(c),
			})
		}
	}
}

// oneByOne: old replicas of c serve, so that new ones take their places one after the other.
func (p *planner) oneByOne(c Component) bool {
	return p.count(func(l Slot) bool { return c.outdated(l) && !l.Ready.IsZero() }) > 0
}

// freeNumber is the lowest that neither a slot nor a VEE of the group has.
func (p *planner) freeNumber(component string) int {
	taken := map[string]bool{}
	for _, l := range p.s.Slots {
		taken[l.Name()] = true
	}
	for _, v := range p.w.VEEs {
		if v.State != vee.Destroyed {
			taken[v.Descriptor.Name] = true
		}
	}
	for n := 1; ; n++ {
		if !taken[Slot{Component: component, Number: n}.Name()] {
			return n
		}
	}
}

// settle makes, or makes again, every call that has not been answered.
func (p *planner) settle() {
	byCall := map[int][]Slot{}
	for _, l := range p.s.Slots {
		if l.VEE == "" {
			byCall[l.Call] = append(byCall[l.Call], l)
		}
	}
	calls := make([]int, 0, len(byCall))
	for call := range byCall {
		calls = append(calls, call)
	}
	slices.Sort(calls)
	for _, call := range calls {
		if !slices.ContainsFunc(byCall[call], func(l Slot) bool { return p.held(l.Component) }) {
			p.do(Action{Kind: Initialize, Call: call, Slots: byCall[call]})
		}
	}
}

// model of the call that makes a replica of c. Replacements reserve in any case: whether
// there is room beside what they replace decides how to go on.
func (p *planner) model(c Component) vmi.Model {
	old := p.count(func(l Slot) bool { return l.Component == c.Name && !c.current(l) })
	if p.goal.BestEffort && old == 0 {
		return vmi.BestEffort
	}
	return vmi.TwoPhase
}

// start submits VEEs in the order of the start groups.
func (p *planner) start() {
	was := p.s.Waiting
	p.s.Waiting = ""
	p.startGroups()
	if p.s.Waiting != "" && p.s.Waiting != was {
		p.event(false, "Waiting", "%s", p.s.Waiting)
	}
}

func (p *planner) startGroups() {
	if !p.s.Established && !p.goal.BestEffort && len(p.s.Limit) == 0 && !slices.ContainsFunc(p.goal.Components, p.oneByOne) && p.incomplete() {
		return // all or none: nothing starts before everything has its place
	}
	blocked := ""
	for _, group := range p.groups() {
		var ready []Slot
		for _, c := range group {
			fresh := p.unstarted(c)
			switch {
			case len(fresh) == 0 || p.held(c.Name):
			case blocked != "":
				p.out.Waiting[c.Name] = blocked
				if p.s.Waiting == "" {
					p.s.Waiting = fmt.Sprintf("%s waits for %s", c.Name, blocked)
				}
			default:
				ready = append(ready, fresh...)
			}
		}
		if len(ready) > 0 {
			p.do(Action{Kind: Submit, Slots: ready})
		}
		if blocked == "" {
			blocked = p.blocks(group)
		}
	}
}

// incomplete reports whether some replica has no VEE yet.
func (p *planner) incomplete() bool {
	return p.unanswered() || slices.ContainsFunc(p.goal.Components, func(c Component) bool { return p.count(c.current) < c.Desired })
}

// groups are the components by start group, the first to start first.
func (p *planner) groups() [][]Component {
	sorted := slices.Clone(p.goal.Components)
	slices.SortStableFunc(sorted, func(a, b Component) int { return cmp.Compare(a.Group, b.Group) })
	var groups [][]Component
	for i, c := range sorted {
		if i == 0 || c.Group != sorted[i-1].Group {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], c)
	}
	return groups
}

// unstarted are c's replicas that have a VEE which nobody has submitted.
func (p *planner) unstarted(c Component) (fresh []Slot) {
	for _, l := range p.s.Slots {
		if v := p.w.VEEs[l.VEE]; l.VEE != "" && c.current(l) && !v.Submitted && (v.State == vee.Initial || v.State == vee.Defined) {
			fresh = append(fresh, l)
		}
	}
	return fresh
}

// blocks says what the groups after this one wait for; empty: for nothing any more.
func (p *planner) blocks(group []Component) string {
	for _, c := range group {
		slots := slices.DeleteFunc(slices.Clone(p.s.Slots), func(l Slot) bool { return !c.current(l) })
		if !p.s.Established && len(slots) < c.Desired {
			return c.Name + " to have its place"
		}
		var last time.Time
		for _, l := range slots {
			switch {
			case l.Started.IsZero():
				return c.Name + " to start"
			case c.WaitForGuest && l.Ready.IsZero():
				return c.Name + " to be ready"
			case l.Started.After(last):
				last = l.Started
			}
		}
		if next := last.Add(c.StartDelay); len(slots) > 0 && next.After(p.w.Now) {
			p.wake(next)
			return fmt.Sprintf("%s after the start of %s", c.StartDelay, c.Name)
		}
	}
	return ""
}

// access makes the access points that components want and removes those that none does.
func (p *planner) access() {
	wanted := map[string]bool{}
	for _, c := range p.goal.Components {
		for _, port := range c.Ports {
			a := vmi.AccessPoint{
				Name: AccessPointName(c.Name, port), Tag: c.Name, Port: port.Number, Scheme: port.Scheme,
				Algorithm: port.Algorithm, Health: port.Health, Partners: port.Partners, Draining: p.leaving(c.Name),
			}
			wanted[a.Name] = true
			is, there := p.w.AccessPoints[a.Name]
			same := there && is.Tag == a.Tag && is.Port == a.Port && is.Scheme == a.Scheme && is.Algorithm == a.Algorithm &&
				is.Health == a.Health && is.Partners == a.Partners && slices.Equal(is.Draining, a.Draining) && is.Address != ""
			if !same && !p.held(Access) {
				p.do(Action{Kind: PutAccessPoint, Access: a})
			}
		}
	}
	// A component that the manifest has no more is reached as long as it has replicas that
	// are not leaving.
	p.dropAccess(func(a vmi.AccessPoint) bool {
		return !wanted[a.Name] && !slices.ContainsFunc(p.foreign(), func(c Component) bool {
			return c.Name == a.Tag && p.count(c.stays) > 0
		})
	})
}

// leaving are the VEEs of a component that have done work and do not stay.
func (p *planner) leaving(component string) (ids []vee.ID) {
	for _, l := range p.s.Slots {
		if l.Component == component && l.VEE != "" && !l.Retiring.IsZero() && !l.Ready.IsZero() {
			ids = append(ids, l.VEE)
		}
	}
	slices.Sort(ids)
	return ids
}

// AccessPointName of a component's port.
func AccessPointName(component string, port Port) string {
	if port.Scheme == "udp" {
		return fmt.Sprintf("%s-%d-udp", component, port.Number)
	}
	return fmt.Sprintf("%s-%d", component, port.Number)
}

func (p *planner) dropAccess(match func(vmi.AccessPoint) bool) {
	var names []string
	for name, a := range p.w.AccessPoints {
		if match(a) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if !p.held(Access) {
			p.do(Action{Kind: DeleteAccessPoint, Access: p.w.AccessPoints[name]})
		}
	}
}
