package lrt

import (
	"maps"
	"slices"

	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// The scheduling layer's problem: the hosts of a partition as a model, repaired. Pure.

// Move of a VEE that a plan has.
type Move struct {
	VEE      vee.ID
	Name     string
	Epoch    vee.Epoch
	From, To string
	After    []int // of the plan: moves that must have ended before
}

// dimensions: what guests take of the CPUs, and what is promised to them.
var dimensions = []model.Dimension{"cpu_used_milli", "cpu_milli", "memory_kib", "disk_kib"}

func amounts(used int64, r vee.Resources) []int64 {
	kib := func(b vee.Bytes) int64 { return (int64(b) + 1023) / 1024 }
	return []int64{used, r.MilliCPU, kib(r.Memory), kib(r.Disk)}
}

// Plan the relief of a partition: the least moves after which its initiator has no more than
// it should, and no other member more than that, of what its guests take of the CPUs and of
// what is promised to them. loads are of those members that have answered; the others take and
// give nothing.
func Plan(p dvms.Partition, loads []peer.Load) ([]Move, dvms.Outcome) {
	at := slices.IndexFunc(loads, func(l peer.Load) bool { return l.Host == p.ID.Initiator })
	if at < 0 {
		return nil, dvms.NoWay
	}
	if !troubled(p.Reason, loads[at]) {
		return nil, dvms.Nothing
	}
	calm, most := loads[at].Relief.Calm, loads[at].Relief.Overload
	if moves, ok := build(p.Reason, loads, at, calm).moves(); ok {
		return moves, dvms.Planned
	}
	if p.Reason == dvms.Overloaded && most > calm {
		// What is calm cannot be had; less than too much is better than too much.
		if moves, ok := build(p.Reason, loads, at, most).moves(); ok {
			return moves, dvms.Planned
		}
	}
	return nil, dvms.NoWay
}

func troubled(r dvms.Reason, l peer.Load) bool {
	switch {
	case r == dvms.Overloaded:
		return used(l) > share(l, l.Relief.Calm)
	case r == dvms.Draining && !l.Leaving:
		return false
	}
	return len(l.VEEs) > 0
}

func used(l peer.Load) (sum int64) {
	for _, v := range l.VEEs {
		sum += v.CPU
	}
	return sum
}

// share of a host's physical CPUs, in thousandths of one.
func share(l peer.Load, part float64) int64 { return int64(part * float64(l.CPUs) * 1000) }

// problem of a partition.
type problem struct {
	m     *model.Model
	loads []peer.Load
	vees  []peer.Taken // by VEE of the model
}

func build(why dvms.Reason, loads []peer.Load, troubled int, part float64) problem {
	p := problem{m: model.New(dimensions...), loads: loads}
	var stay []int32
	apart, together := map[string][]int32{}, map[string][]int32{}
	fixed := map[int32]bool{}
	for h, l := range loads {
		p.m.AddHost(model.Host{Name: l.Host})
		has, rooted := make([]int64, len(dimensions)), int64(0)
		for _, t := range l.VEEs {
			need := amounts(t.CPU, t.Needs)
			v := p.m.AddVEE(model.VEE{Name: t.Name, State: model.Running, Host: int32(h), MemoryMiB: int64(t.Copy / vee.MiB)}, need...)
			p.vees = append(p.vees, t)
			for d := range need {
				has[d] += need[d]
			}
			if t.Stays != "" {
				stay, fixed[v] = append(stay, v), true
				rooted += t.CPU
			}
			for _, k := range t.Apart {
				apart[k] = append(apart[k], v)
			}
			for _, k := range t.Together {
				together[k] = append(together[k], v)
			}
		}
		// What is there stays allowed, but for what is too much where the trouble is.
		capacity := p.m.Capacity(int32(h))
		for d, n := range amounts(share(l, part), l.Capacity) {
			capacity[d] = max(n, has[d])
		}
		if h == troubled && why == dvms.Overloaded {
			capacity[0] = max(share(l, part), rooted)
		}
	}
	if len(stay) > 0 {
		p.m.Require(model.Root{VEEs: stay})
	}
	if why != dvms.Overloaded {
		p.empty(int32(troubled), fixed)
	}
	p.close(fixed)
	p.bind(apart, together)
	return p
}

// empty a host of what can move.
func (p problem) empty(h int32, fixed map[int32]bool) {
	var leave, stay []int32
	for i := range p.vees {
		switch v := int32(i); {
		case fixed[v]:
		case p.m.VEEs[v].Host == h:
			leave = append(leave, v)
		default:
			stay = append(stay, v)
		}
	}
	for _, c := range []model.Ban{{VEEs: leave, Hosts: []int32{h}}, {VEEs: stay, Hosts: []int32{h}, Always: model.Always{Continuous: true}}} {
		if len(c.VEEs) > 0 { // without any it would be about all
			p.m.Require(c)
		}
	}
}

// close each host to those that it does not take.
func (p problem) close(fixed map[int32]bool) {
	for h, l := range p.loads {
		var none []int32
		for i, t := range p.vees {
			v, from := int32(i), p.m.VEEs[i].Host
			switch {
			case from == int32(h), fixed[v]:
			case l.Closed != "", t.Leased && !l.Guarded, p.loads[from].Driver != l.Driver:
				none = append(none, v)
			}
		}
		if len(none) > 0 {
			p.m.Require(model.Ban{VEEs: none, Hosts: []int32{int32(h)}, Always: model.Always{Continuous: true}})
		}
	}
}

// bind VEEs as the rules of their services do, as far as these are kept now.
func (p problem) bind(apart, together map[string][]int32) {
	for _, k := range slices.Sorted(maps.Keys(apart)) {
		vees := apart[k]
		if hosts := p.hosts(vees); len(vees) > 1 && len(hosts) == len(vees) {
			p.m.Require(model.Spread{VEEs: vees, Always: model.Always{Continuous: true}})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(together)) {
		vees := together[k]
		if len(vees) > 1 && len(p.hosts(vees)) == 1 {
			p.m.Require(model.Gather{VEEs: vees})
		}
	}
}

// hosts that VEEs are on.
func (p problem) hosts(vees []int32) map[int32]bool {
	on := map[int32]bool{}
	for _, v := range vees {
		on[p.m.VEEs[v].Host] = true
	}
	return on
}

// moves that solve it; false: there are none.
func (p problem) moves() ([]Move, bool) {
	t, err := solve.Repair(p.m, solve.Options{})
	if err != nil {
		return nil, false
	}
	plan, err := solve.Schedule(p.m, t)
	if err != nil {
		return nil, false
	}
	moves, moved := make([]Move, 0, len(plan.Actions)), map[int32]bool{}
	for _, a := range plan.Actions {
		if a.Kind != model.Migrate || moved[a.VEE] {
			return nil, false // a way by a third host, or by sleep: the site's to go
		}
		moved[a.VEE] = true
		v := p.vees[a.VEE]
		m := Move{VEE: v.VEE, Name: v.Name, Epoch: v.Epoch, From: p.loads[a.From].Host, To: p.loads[a.To].Host}
		for _, n := range a.After {
			m.After = append(m.After, int(n))
		}
		moves = append(moves, m)
	}
	return moves, len(moves) > 0
}
