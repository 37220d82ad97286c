package deploy

import (
	"cmp"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// surge is how many replicas a component may have beyond those that it wants, while outdated
// ones are replaced.
const surge = 1

// replace retires replicas that are too many, and outdated ones, one by one, once their
// successors have proven themselves; where there is no room for both, one outdated replica
// makes room for the next successor.
func (p *planner) replace() {
	for _, c := range p.goal.Components {
		p.retire(p.count(c.current)-c.Desired, c.current)
		// What never was ready is missed by nobody.
		p.retire(len(p.s.Slots), func(l Slot) bool { return c.outdated(l) && l.Ready.IsZero() })
		current, old := p.count(c.current), p.count(c.outdated)
		limit, slowly := p.s.Limit[c.Name]
		live := p.count(func(l Slot) bool { return l.Component == c.Name })
		switch {
		case old == 0:
			if live == current {
				delete(p.s.Limit, c.Name)
			}
		case p.proven(c)+old > c.Desired:
			p.retire(p.proven(c)+old-c.Desired, c.outdated)
		case slowly && current < c.Desired && live >= max(limit, c.Desired) && p.idleBut(c):
			p.event(true, "ReplacingOneByOne", "%s: there is no room for old and new replicas together; one is removed to make room", c.Name)
			p.retire(1, c.outdated)
		}
	}
}

// proven are c's new replicas that have been at work for as long as they are watched.
func (p *planner) proven(c Component) int {
	return p.count(func(l Slot) bool {
		if !c.current(l) || !p.works(l) {
			return false
		}
		until := l.Ready.Add(c.Watch)
		if until.After(p.w.Now) {
			p.wake(until)
			return false
		}
		return true
	})
}

// idleBut reports whether nothing is under way for c: its new replicas are at work and
// none is leaving.
func (p *planner) idleBut(c Component) bool {
	return !slices.ContainsFunc(p.s.Slots, func(l Slot) bool {
		return l.Component == c.Name && (!l.Retiring.IsZero() || c.current(l) && !p.works(l))
	}) && p.proven(c) == p.count(c.current)
}

// removeForeign retires the replicas of components that the manifest has no more, once the
// others are complete or one of them needs their room.
func (p *planner) removeForeign() {
	wait := false
	for _, c := range p.goal.Components {
		t, troubled := p.w.Troubles[c.Name]
		if !p.complete(c) && !(troubled && t.Stuck) {
			wait = true
		}
	}
	if wait {
		return
	}
	for _, c := range p.foreign() {
		p.retire(len(p.s.Slots), c.stays)
	}
}

// retire sends n of the matching replicas away, those first that are missed least: not
// ready ones, idle ones, the newest.
func (p *planner) retire(n int, match func(Slot) bool) {
	var candidates []int
	for i, l := range p.s.Slots {
		if l.VEE != "" && match(l) {
			candidates = append(candidates, i)
		}
	}
	rank := func(i int) int {
		switch v := p.w.VEEs[p.s.Slots[i].VEE]; {
		case !Ready(v):
			return 0
		case v.GuestIdle:
			return 1
		}
		return 2
	}
	slices.SortFunc(candidates, func(a, b int) int {
		x, y := p.s.Slots[a], p.s.Slots[b]
		return cmp.Or(cmp.Compare(rank(a), rank(b)), -cmp.Compare(x.Call, y.Call), -cmp.Compare(x.Number, y.Number))
	})
	for _, i := range candidates[:min(max(n, 0), len(candidates))] {
		p.s.Slots[i].Retiring = p.w.Now
	}
}

// leave shuts retiring replicas down when their work and their connections have ended, as far
// as they and their access points can tell, and destroys them
// when they have stopped, will not, or never did any work.
func (p *planner) leave() {
	if p.held(Stop) {
		return
	}
	var shutdown, destroy []vee.ID
	for _, l := range p.s.Slots {
		if l.VEE == "" || l.Retiring.IsZero() {
			continue
		}
		v := p.w.VEEs[l.VEE]
		runs := v.State == vee.Active && v.Phase != vee.PhaseUnknown && v.Phase != vee.PhaseFailed && !l.Ready.IsZero()
		drained := l.Retiring.Add(p.drain(l.Component))
		late := drained.Add(Patience)
		switch {
		case v.Target == vee.Destroyed: // on its way
		case runs && v.Target == vee.Active && p.w.Now.Before(drained) && l.Idles && !v.GuestIdle:
			p.wake(drained)
		case runs && v.Target == vee.Active && p.w.Now.Before(drained) && p.serves(l):
			p.wake(drained)
			p.wake(p.w.Now.Add(drainPoll))
		case runs && v.Target == vee.Active:
			shutdown = append(shutdown, l.VEE)
		case runs && p.w.Now.Before(late):
			p.wake(late)
		default:
			destroy = append(destroy, l.VEE)
		}
	}
	if len(shutdown) > 0 {
		p.do(Action{Kind: Shutdown, VEEs: shutdown})
	}
	if len(destroy) > 0 {
		p.do(Action{Kind: Destroy, VEEs: destroy})
	}
}

// drain is how long replicas of a component keep their connections.
func (p *planner) drain(component string) time.Duration {
	for _, c := range p.goal.Components {
		if c.Name == component && c.Drain > 0 {
			return c.Drain
		}
	}
	return Drain
}

// serves reports whether new connections may still be led to a replica, or old ones are
// under way.
func (p *planner) serves(l Slot) bool {
	for _, a := range p.w.AccessPoints {
		if a.Tag != l.Component {
			continue
		}
		if !slices.Contains(a.Draining, l.VEE) {
			return true
		}
		if slices.ContainsFunc(a.Serving, func(b vmi.Backend) bool { return b.VEE == l.VEE && b.Connections > 0 }) {
			return true
		}
	}
	return false
}

// strays destroys VEEs of the group that no slot holds. While a call is unanswered they
// may be what it has made.
func (p *planner) strays() {
	if p.unanswered() || p.held(Stop) {
		return
	}
	var ids []vee.ID
	for id, v := range p.w.VEEs {
		if !p.known[id] && v.State != vee.Destroyed && v.Target != vee.Destroyed {
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 {
		slices.Sort(ids)
		p.do(Action{Kind: Destroy, VEEs: ids})
	}
}

// delete takes the service down: first nobody is led to it any more, then its replicas
// stop in the reverse order of their start, and when nothing is left the record goes.
func (p *planner) delete() {
	p.s.Waiting = ""
	p.settle()
	if len(p.w.AccessPoints) > 0 {
		p.dropAccess(func(vmi.AccessPoint) bool { return true })
		return
	}
	groups := p.groups()
	slices.Reverse(groups)
	for _, group := range append([][]Component{p.foreign()}, groups...) {
		if !p.stop(group) {
			return
		}
	}
	switch {
	case len(p.s.Slots) > 0 || p.strayCount() > 0:
	case len(p.w.Networks) > 0:
		p.dropNetworks(func(vmi.Network) bool { return true })
	default:
		p.do(Action{Kind: Finish})
	}
}

// foreign are the components of slots that the manifest does not name any more.
func (p *planner) foreign() (cs []Component) {
	for _, l := range p.s.Slots {
		same := func(c Component) bool { return c.Name == l.Component }
		if !slices.ContainsFunc(p.goal.Components, same) && !slices.ContainsFunc(cs, same) {
			cs = append(cs, Component{Name: l.Component})
		}
	}
	return cs
}

// stop retires a group and reports whether the one before it may stop too: when all of it
// has stopped and its stop delay is over.
func (p *planner) stop(group []Component) bool {
	stopped := true
	for _, c := range group {
		for i := range p.s.Slots {
			l := &p.s.Slots[i]
			if l.Component != c.Name || l.VEE == "" {
				stopped = stopped && l.Component != c.Name
				continue
			}
			if l.Retiring.IsZero() {
				l.Retiring = p.w.Now
				if next := p.w.Now.Add(c.StopDelay); next.After(p.s.StopNext) {
					p.s.StopNext = next
				}
			}
			stopped = stopped && p.w.VEEs[l.VEE].State != vee.Active
		}
	}
	if stopped && p.s.StopNext.After(p.w.Now) {
		p.wake(p.s.StopNext)
		return false
	}
	return stopped
}

// strayCount counts the VEEs of the group that no slot holds and that are not gone yet.
func (p *planner) strayCount() (n int) {
	for id, v := range p.w.VEEs {
		if !p.known[id] && v.State != vee.Destroyed {
			n++
		}
	}
	return n
}
