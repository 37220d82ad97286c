package ownership

import (
	"slices"

	"github.com/reservoir-cloud/reservoir/vee"
)

// What shells need to know of a role's state, beside what its steps tell them to do.

// Leases reports whether guests are under lease with this witness set: with fewer than
// three witnesses nobody is given away without a fence, and so nobody is killed.
func (w WitnessSet) Leases() bool { return w.leases() }

// Current reports whether a host has renewed within the window.
func (c Control) Current(p Protocol, now Time, host string) bool {
	return c.view(host).current(p, now)
}

// Expired reports whether a host has not been current for so long that no guest under lease
// can run there.
func (c Control) Expired(p Protocol, now Time, host string) bool { return c.expired(p, now, host) }

// Steady reports whether the witnesses let expiry count.
func (c Control) Steady(p Protocol, now Time, sets []WitnessSet) bool {
	return c.steady(p, now, sets)
}

// MajorityCurrent reports whether more than half of a set's members are.
func (c Control) MajorityCurrent(p Protocol, now Time, set WitnessSet) bool {
	n := 0
	for _, w := range set.Members {
		if c.Current(p, now, w) {
			n++
		}
	}
	return set.majority(p, n)
}

// Waiting lists the hosts that neither have sealed the give-away at epoch e nor may be
// passed over.
func (c Control) Waiting(p Protocol, now Time, log Log, id vee.ID, e vee.Epoch) (hosts []string) {
	steady := c.steady(p, now, log.Witnesses)
	for _, m := range log.Members {
		if !c.view(m.Host).sealed(id, e) && !m.Fenced && !(m.mortal() && steady && c.expired(p, now, m.Host)) {
			hosts = append(hosts, m.Host)
		}
	}
	slices.Sort(hosts)
	return hosts
}

// Concerns reports whether a verdict can change anything at a host that has sent r: shells
// leave the others out of an answer.
func (v Verdict) Concerns(r Renew) bool {
	for _, h := range r.Holds {
		if h.VEE != v.VEE {
			continue
		}
		c := h.Epoch.Compare(v.Epoch)
		return v.Word != Not && v.Word != Seal || c < 0 || c == 0 && h.State != Free
	}
	return true
}
