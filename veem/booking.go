package veem

import (
	"iter"

	"github.com/reservoir-cloud/reservoir/placement/overbook"
	"github.com/reservoir-cloud/reservoir/vee"
)

// capacities of hosts, by name: what VEEs may be promised there. CPU goes by history where the
// site books it so (Config.Booking). New VEEs, those that are activated again, those that grow
// and those that are to move are all admitted by it.
func (m *Manager) capacities(hosts iter.Seq2[string, *hostRecord], vees iter.Seq2[string, *record]) map[string]vee.Resources {
	capacity, machines := map[string]vee.Resources{}, map[string]*overbook.Machine{}
	for _, h := range hosts {
		capacity[h.Name] = h.Capacity
		if h.CPUs > 0 {
			machines[h.Name] = &overbook.Machine{CPUs: h.CPUs, Declared: h.Capacity.MilliCPU, Promised: map[string]int64{}}
		}
	}
	if m.cfg.Booking == nil {
		return capacity
	}
	for id, r := range vees {
		for _, host := range r.hosts() {
			if x := machines[host]; x != nil && r.usage().MilliCPU > 0 {
				x.Promised[id] = r.usage().MilliCPU
			}
		}
	}
	for name, x := range machines {
		c := capacity[name]
		c.MilliCPU = m.cfg.Booking(*x)
		capacity[name] = c
	}
	return capacity
}

// hosts that r takes room of: its own, and the one that it moves to.
func (r *record) hosts() (list []string) {
	if r.Host != "" {
		list = append(list, r.Host)
	}
	if r.moving() {
		list = append(list, r.Move.To)
	}
	return list
}
