// Package rebalance decides how the VEEs of a site should move, and what to do next of what
// was decided. Make turns a site as it is into a plan: hosts that are to be left are left,
// broken rules mended, and with a policy VEEs move where that gains enough. Next looks at a
// plan and the site as it is by now, and says which steps to begin, or that the world is not
// the one that was planned for.
//
// Both are pure, and Next needs no memory of what was begun: a manager that starts again
// goes on where it was.
package rebalance

import (
	"fmt"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Policy of a site: what moving is for.
type Policy string

// Policies. None moves nothing for its own sake.
const (
	None        Policy = ""
	Balance     Policy = "balance"     // hosts equally full
	Consolidate Policy = "consolidate" // few hosts in use
	Cost        Policy = "cost"        // cheap hosts in use
)

// Policies that there are.
var Policies = []Policy{Balance, Consolidate, Cost}

// Host of a site.
type Host struct {
	Name     string
	Capacity vee.Resources
	Drivers  []string
	Price    float64 // per hour while it has VEEs
	Leave    bool    // its VEEs are to leave it
	// Closed says why it takes no VEE; empty: it does.
	Closed string
}

// VEE that takes something of a host.
type VEE struct {
	ID       vee.ID
	Name     string
	Host, To string // To is where it is on its way to; empty: it stays
	Uses     vee.Resources
	Copy     vee.Bytes // that a migration has to send
	Driver   string    // that it needs; empty: any
	Label    placement.Label
	// Stuck says why it cannot be moved now; empty: it can.
	Stuck string
	// Resting VEEs have moved lately, and are not moved again for the sake of a policy.
	Resting bool
	// Last migration, when it failed: where to, since when and why it did not come.
	Failed      string
	FailedTo    string
	FailedBegan time.Time
	// Avoid is a host that it goes to only if there is no other: it did not come there lately.
	Avoid string
}

// Site as it is.
type Site struct {
	Hosts []Host
	VEEs  []VEE
	Rules []placement.Rule
}

func (s *Site) host(name string) int32 {
	return int32(slices.IndexFunc(s.Hosts, func(h Host) bool { return h.Name == name }))
}

var dimensions = []model.Dimension{"cpu_milli", "memory_kib", "disk_kib"}

// amounts of r; a KiB is small enough for memory and large enough for disks (model.MaxAmount).
func amounts(r vee.Resources) []int64 {
	kib := func(b vee.Bytes) int64 { return (int64(b) + 1023) / 1024 }
	return []int64{r.MilliCPU, kib(r.Memory), kib(r.Disk)}
}

// problem is a site as a model. VEE i of the site is VEE i of the model; those on their way
// have a shadow at the end where they came from.
type problem struct {
	site Site
	m    *model.Model
	stay map[int]string // by VEE: why it does not move
}

// build the model. stay has the VEEs that must not move; what is soft is in it as if it were
// hard, but for VEEs that are relaxed.
func (s Site) build(o Options, stay map[int]string, relaxed map[int]bool) *problem {
	p := &problem{site: s, m: model.New(dimensions...), stay: stay}
	p.m.Migration = model.Migration{MiBs: float64(o.Bandwidth) / float64(vee.MiB), Slots: o.Slots, Least: o.Least, Shared: o.Shared}
	at := map[string]int32{}
	for _, h := range s.Hosts {
		at[h.Name] = p.m.AddHost(model.Host{Name: h.Name, Hypervisors: h.Drivers, Price: h.Price}, amounts(h.Capacity)...)
	}
	var root []int32
	pinned := make([]int64, len(s.Hosts)*len(dimensions))
	pin := func(v, h int32) {
		root = append(root, v)
		for d, n := range p.m.Demand(v) {
			pinned[int(h)*len(dimensions)+d] += n
		}
	}
	for i, v := range s.VEEs {
		h := at[v.Host]
		if v.To != "" {
			h = at[v.To]
		}
		n := p.m.AddVEE(model.VEE{Name: v.Name, State: model.Running, Host: h, MemoryMiB: int64(v.Copy / vee.MiB)}, amounts(v.Uses)...)
		if _, stays := stay[i]; stays {
			pin(n, h)
		}
	}
	for _, v := range s.VEEs {
		if v.To != "" {
			h := at[v.Host]
			pin(p.m.AddVEE(model.VEE{Name: v.Name, State: model.Running, Host: h}, amounts(v.Uses)...), h)
		}
	}
	for h := range s.Hosts {
		// What cannot move fits, whatever the host says that it has.
		capacity := p.m.Capacity(int32(h))
		for d := range capacity {
			capacity[d] = max(capacity[d], pinned[h*len(dimensions)+d])
		}
	}
	if len(root) > 0 {
		p.m.Require(model.Root{VEEs: root})
	}
	p.close()
	p.rules(relaxed)
	return p
}

// close hosts to those that are not there, and those that are to be left to all.
func (p *problem) close() {
	var closed []int32
	for h := range p.site.Hosts {
		if x := &p.site.Hosts[h]; x.Closed != "" || x.Leave {
			closed = append(closed, int32(h))
		}
	}
	if len(closed) == 0 {
		return
	}
	on := map[int32][]int32{} // by closed host that they are on, or model.None
	for i := range p.site.VEEs {
		if _, stays := p.stay[i]; stays {
			continue
		}
		h := p.m.VEEs[i].Host
		if !slices.Contains(closed, h) {
			h = model.None
		}
		on[h] = append(on[h], int32(i))
	}
	always := model.Always{Continuous: true} // not on the way either
	for h := model.None; int(h) < len(p.site.Hosts); h++ {
		vees := on[h]
		if len(vees) == 0 {
			continue
		}
		p.m.Require(model.Ban{VEEs: vees, Hosts: slices.DeleteFunc(slices.Clone(closed), func(c int32) bool { return c == h }), Always: always})
		if h != model.None && p.site.Hosts[h].Leave {
			p.m.Require(model.Ban{VEEs: vees, Hosts: []int32{h}})
		}
	}
}

// rules of the site's services. VEEs that must be apart are so at every instant.
func (p *problem) rules(relaxed map[int]bool) {
	for i, v := range p.site.VEEs {
		_, stays := p.stay[i]
		if !stays && v.Driver != "" {
			p.m.Require(model.Hypervised{VEEs: []int32{int32(i)}, Hypervisor: v.Driver})
		}
		if h := p.site.host(v.Avoid); !stays && !relaxed[i] && h >= 0 {
			p.m.Require(model.Ban{VEEs: []int32{int32(i)}, Hosts: []int32{h}})
		}
	}
	now := model.Begin(p.m)
	for _, r := range p.site.Rules {
		var vees []int32
		moves, strict := false, true
		for i, v := range p.site.VEEs {
			if v.Label.Group == r.Group && slices.Contains(v.Label.Tags, r.Tag) {
				_, stays := p.stay[i]
				vees, moves, strict = append(vees, int32(i)), moves || !stays, strict && !relaxed[i]
			}
		}
		if len(vees) < 2 || !moves {
			continue
		}
		var c model.OnPlacement = model.Gather{VEEs: vees}
		if r.Kind == placement.AntiAffinity {
			c = model.Spread{VEEs: vees, Always: model.Always{Continuous: true}}
		}
		if !r.Soft || strict && c.Check(p.m, now) == nil {
			p.m.Require(c)
		}
	}
}

// words of a placement's failure, with the names of the site instead of the model's.
func noPlace(v VEE, err error) string {
	return fmt.Sprintf("VEE %s has no other place: %v", v.Name, err)
}
