package deploy

import (
	"maps"
	"slices"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Network of the service's own.
type Network struct {
	Name string
	Wish vmi.NetworkWish
}

// networks makes those that the service wants, and reports whether VEEs can be made on them.
// One that nobody wants any more goes when nothing is on it.
func (p *planner) networks() (there bool) {
	there = true
	wanted := map[string]bool{}
	for _, n := range p.goal.Networks {
		wanted[n.Name] = true
		is, made := p.w.Networks[n.Name]
		if (!made || is.Wish != n.Wish) && !p.held(Networks) {
			p.do(Action{Kind: PutNetwork, Network: vmi.Network{Name: n.Name, Wish: n.Wish}})
		}
		there = there && made
	}
	if !p.unanswered() { // a call of an older revision may still need one
		p.dropNetworks(func(n vmi.Network) bool { return !wanted[n.Name] && !p.used(n.Name) })
	}
	return there
}

// used: a VEE that is not gone is on it.
func (p *planner) used(network string) bool {
	for _, v := range p.w.VEEs {
		if v.State != vee.Destroyed && slices.ContainsFunc(v.Descriptor.NICs, func(n vee.NIC) bool { return n.Network == network && !n.Public }) {
			return true
		}
	}
	return false
}

func (p *planner) dropNetworks(match func(vmi.Network) bool) {
	for _, name := range slices.Sorted(maps.Keys(p.w.Networks)) {
		if n := p.w.Networks[name]; match(n) && !p.held(Networks) {
			p.do(Action{Kind: DeleteNetwork, Network: n})
		}
	}
}
