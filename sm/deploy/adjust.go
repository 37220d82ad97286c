package deploy

import (
	"fmt"
	"slices"

	"github.com/reservoir-cloud/reservoir/vee"
)

// adjust gives replicas that stay the size and the firewall that they should have, while
// they run. One that cannot take it is outdated, and replaced as such.
func (p *planner) adjust() {
	if p.held(Fitting) {
		return
	}
	var slots []Slot
	for _, c := range p.goal.Components {
		for _, l := range p.s.Slots {
			if l.VEE != "" && c.current(l) && l.Fit != c.Fit {
				l.Resized = l.Resized || l.Fit.VCPUs != c.Fit.VCPUs || l.Fit.Memory != c.Fit.Memory
				l.Fit = c.Fit
				slots = append(slots, l)
			}
		}
	}
	if len(slots) > 0 {
		p.do(Action{Kind: Adjust, Slots: slots})
	}
}

// Adjusted records what became of an Adjust: the slots whose VEEs took it, and those whose
// cannot.
func (s State) Adjusted(fitted, misfits []Slot) State {
	s = s.clone()
	for i := range s.Slots {
		same := func(l Slot) bool { return l.VEE == s.Slots[i].VEE }
		if j := slices.IndexFunc(fitted, same); j >= 0 {
			s.Slots[i].Fit, s.Slots[i].Resized = fitted[j].Fit, fitted[j].Resized
		}
		if j := slices.IndexFunc(misfits, same); j >= 0 {
			s.Slots[i].Misfit = misfits[j].Fit
		}
	}
	return s
}

// undo goes back to the revision before, where a new replica does not do as well as the
// outdated ones that it should replace. It reports whether it does.
func (p *planner) undo() bool {
	if !p.goal.Undo {
		return false
	}
	for _, c := range p.goal.Components {
		if !slices.ContainsFunc(p.s.Slots, c.outdated) {
			continue
		}
		if why := p.failure(c); why != "" {
			p.do(Action{Kind: Undo, Why: c.Name + ": " + why})
			return true
		}
	}
	return false
}

// failure of an update of c, in words; "" when there is none, or not yet.
func (p *planner) failure(c Component) string {
	for _, l := range p.lost {
		if l.Component == c.Name && l.Spec == c.Spec && !l.Ready.IsZero() && p.w.Now.Before(l.Ready.Add(c.Watch)) {
			return fmt.Sprintf("the new replica %s was lost %s after it was ready", l.Name(), p.w.Now.Sub(l.Ready).Round(1e9))
		}
	}
	patience := c.Patience
	if patience == 0 {
		patience = UpdatePatience
	}
	ready := false
	for _, l := range p.s.Slots {
		v := p.w.VEEs[l.VEE]
		switch {
		case !c.current(l) || l.VEE == "":
		case v.Phase == vee.PhaseFailed:
			return fmt.Sprintf("the new replica %s failed: %s", l.Name(), orUnknown(v.Error))
		case v.GuestFailure != "":
			return fmt.Sprintf("the new replica %s could not be set up: %s", l.Name(), v.GuestFailure)
		case !l.Ready.IsZero():
			ready = true
		case l.Started.IsZero():
		case !p.w.Now.Before(l.Started.Add(patience)):
			return fmt.Sprintf("the new replica %s was not ready within %s", l.Name(), patience)
		default:
			p.wake(l.Started.Add(patience))
		}
	}
	if why := p.w.Objections[c.Name]; ready && why != "" {
		return why
	}
	return ""
}
