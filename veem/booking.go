package veem

import (
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/placement/overbook"
)

// book sets what of each host's CPU may be promised, where that goes by history
// (Config.Booking): new VEEs, those that are activated again and those that grow are admitted
// by it.
func (m *Manager) book(t *tx, hosts []placement.Host) {
	if m.cfg.Booking == nil {
		return
	}
	machines := map[string]*overbook.Machine{}
	for _, h := range t.hosts.all() {
		machines[h.Name] = &overbook.Machine{CPUs: h.CPUs, Declared: h.Capacity.MilliCPU, Promised: map[string]int64{}}
	}
	for id, r := range t.vees.all() {
		for _, host := range r.hosts() {
			if x := machines[host]; x != nil && r.usage().MilliCPU > 0 {
				x.Promised[id] = r.usage().MilliCPU
			}
		}
	}
	for i := range hosts {
		if x := machines[hosts[i].Name]; x != nil && x.CPUs > 0 {
			hosts[i].Capacity.MilliCPU = m.cfg.Booking(*x)
		}
	}
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
