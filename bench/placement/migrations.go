package main

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// A gigabit's MiB in a second, with which the links below are counted.
const gigabit = 1e9 / 8 / (1 << 20)

// migrations plans the experiments with which mVM was measured (Kherbache, Madelaine,
// Hermenier, "Scheduling Live Migration of Virtual Machines", IEEE TCC 2017; its setups are
// published as btrplace/migrations-UCC-15), beside schedulers that cap how many migrations
// there are at once, in the order of the VMs (Memory Buddies with 2 and 3, as there; 1 and 2
// at each host, as sites do). What a schedule takes is not what its model says, but what a
// simulated network and pre-copying hypervisors make of it, the same for all.
func migrations() error {
	fmt.Printf("%-34s %-16s %18s %18s\n", "", "", "a migration, s", "until all done, s")
	var savedEach, savedAll []float64 // beside the schedulers of the paper, on its testbed
	for _, e := range []struct {
		name  string
		runs  int
		setup func(*rand.Rand) *model.Model
	}{
		{"10 VMs, 4 hosts, 50 times", 50, shuffled}, {"96 VMs, 72 hosts in 3 racks", 1, maintenance},
	} {
		var ours outcome
		said := 0. // by the plans, until all is done
		capped := make([]outcome, len(caps))
		r := rand.New(rand.NewPCG(2017, 4))
		for range e.runs {
			m := e.setup(r)
			if err := m.Validate(); err != nil {
				return fmt.Errorf("the model of %s: %w", e.name, err)
			}
			target, err := solve.Repair(m, solve.Options{Seed: 1})
			if err != nil {
				return fmt.Errorf("where the VMs of %s go: %w", e.name, err)
			}
			plan, err := solve.Schedule(m, target)
			if err != nil {
				return fmt.Errorf("plan %s: %w", e.name, err)
			}
			if err := check.Plan(m, plan); err != nil {
				return fmt.Errorf("the checker rejects the plan of %s: %w", e.name, err)
			}
			ours.add(simulate(m, planned(plan)))
			said += plan.Makespan().Seconds()
			for i, c := range caps {
				capped[i].add(simulate(m, inOrder(m, target, c.max, c.perHost)))
			}
		}
		n := float64(e.runs)
		fmt.Printf("%-34s %-16s %18.1f %18.1f   the plan says %.1f\n", e.name, "ours", ours.each/n, ours.all/n, said/n)
		for i, c := range caps {
			each, all := 100*(1-ours.each/capped[i].each), 100*(1-ours.all/capped[i].all)
			fmt.Printf("%-34s %-16s %18.1f %18.1f   ours saves %.1f %% and %.1f %%\n", "", c.name, capped[i].each/n, capped[i].all/n, each, all)
			if c.published && e.runs > 1 {
				savedEach, savedAll = append(savedEach, each), append(savedAll, all)
			}
		}
	}
	share, err := planningShare()
	if err != nil {
		return err
	}
	// The paper's are means too.
	figure.Line("migration_time_saved", mean(savedEach), "%", ">=", 20.4)
	figure.Line("migration_completion_saved", mean(savedAll), "%", ">=", 28.1)
	figure.Line("migration_planning_share", 100*share, "%", "<=", 1)
	return nil
}

// planningShare is how long it takes to plan thousands of migrations, as a part of how long
// they take: half of 2,000 hosts, in racks of 40 with an uplink, are left.
func planningShare() (float64, error) {
	const hosts, rack, each = 2000, 40, 5
	m := model.New("vees")
	m.Migration = model.Migration{MiBs: 10 * gigabit, Shared: true}
	for h := range int32(hosts) {
		if h%rack == 0 {
			m.Migration.Links = append(m.Migration.Links, model.Link{MiBs: 100 * gigabit})
		}
		l := &m.Migration.Links[h/rack]
		l.Hosts = append(l.Hosts, m.AddHost(model.Host{Name: fmt.Sprint("host", h), Draining: h < hosts/2}, 3*each))
	}
	for v := range each * hosts {
		x := busy(2000 + 1000*int64(v%7))
		x.Name, x.Host = fmt.Sprint("vm", v), int32(v%hosts)
		m.AddVEE(x, 1)
	}
	begin := time.Now()
	target, err := solve.Repair(m, solve.Options{Seed: 1})
	if err != nil {
		return 0, fmt.Errorf("empty %d hosts: %w", hosts/2, err)
	}
	plan, err := solve.Schedule(m, target)
	if err != nil {
		return 0, fmt.Errorf("empty %d hosts: %w", hosts/2, err)
	}
	took := time.Since(begin)
	if err := check.Plan(m, plan); err != nil {
		return 0, fmt.Errorf("the checker rejects the plan that empties %d hosts: %w", hosts/2, err)
	}
	fmt.Printf("%d migrations planned in %.2f s, to be done in %.0f s\n", plan.Migrations(), took.Seconds(), plan.Makespan().Seconds())
	return took.Seconds() / plan.Makespan().Seconds(), nil
}

func mean(of []float64) (m float64) {
	for _, x := range of {
		m += x / float64(len(of))
	}
	return m
}

// caps on parallel migrations: in all, or at each host.
var caps = []struct {
	name         string
	max, perHost int
	published    bool // mVM's gain was measured beside it
}{
	{"2 at once", 2, 0, true}, {"3 at once", 3, 0, true}, {"1 at a host", 0, 1, false}, {"2 at a host", 0, 2, false}, {"all at once", 0, 0, false},
}

// outcome of a schedule: the mean duration of a migration and when the last one ends, in
// seconds; or the sums over several.
type outcome struct{ each, all float64 }

func (o *outcome) add(p outcome) { o.each, o.all = o.each+p.each, o.all+p.all }

// busy is the VM of the experiments under `stress --vm 1000 --bytes 70K`: 96 MiB dirtied over
// and over, in 2 s; idle has 5 MiB in 3 s.
func busy(memory int64) model.VEE {
	return model.VEE{State: model.Running, MemoryMiB: memory, DirtyMiBs: 48, HotMiB: 96}
}

func idle(memory int64) model.VEE {
	return model.VEE{State: model.Running, MemoryMiB: memory, DirtyMiBs: 5. / 3, HotMiB: 5}
}

// shuffled VMs: ten of 2 and 3 GB on four hosts, two with a link of 500 Mbit/s, two of
// 1 Gbit/s; each goes to another host by lot.
func shuffled(r *rand.Rand) *model.Model {
	const hosts, vms, room = 4, 10, 16
	m := model.New("memory_gb")
	m.Migration = model.Migration{MiBs: gigabit, Shared: true}
	for h := range hosts {
		x := model.Host{Name: fmt.Sprint("node", h)}
		if h < hosts/2 {
			x.LinkMiBs = gigabit / 2
		}
		m.AddHost(x, 2*room)
	}
	free := slices.Repeat([]int64{room}, hosts)
	for v := range vms {
		size := int64(2 + v*2/vms)
		x := busy(1000 * size)
		x.Name, x.Host = fmt.Sprint("vm", v), int32(v%hosts)
		id := m.AddVEE(x, size)
		to := r.Int32N(hosts)
		for to == x.Host || free[to] <= size {
			to = r.Int32N(hosts)
		}
		free[to] -= size
		m.Require(model.Fence{VEEs: []int32{id}, Hosts: []int32{to}})
	}
	return m
}

// maintenance of two racks of 24 servers: their 96 VMs go to the 24 of a third. Servers have
// links of 1 Gbit/s, racks of 10.
func maintenance(*rand.Rand) *model.Model {
	const rack = 24
	m := model.New("memory_gb")
	m.Migration = model.Migration{MiBs: gigabit, Shared: true}
	for i := range 3 {
		uplink := model.Link{MiBs: 10 * gigabit}
		for h := range rack {
			uplink.Hosts = append(uplink.Hosts, m.AddHost(model.Host{Name: fmt.Sprintf("rack%d-%d", i, h), Rack: fmt.Sprint("rack", i)}, 16))
		}
		m.Migration.Links = append(m.Migration.Links, uplink)
	}
	for h := range int32(2 * rack) {
		pair := [2]model.VEE{idle(2000), busy(4000)}
		if h%2 == 1 {
			pair = [2]model.VEE{busy(2000), idle(4000)}
		}
		// As published: two of a server of the first rack, two of one of the second from its end.
		to := h
		if h >= rack {
			to = 2*rack - 1 - h
		}
		for k, x := range pair {
			x.Name, x.Host = fmt.Sprintf("vm%d-%d", h, k), h
			m.Require(model.Fence{VEEs: []int32{m.AddVEE(x, 4)}, Hosts: []int32{2*rack + to}})
		}
	}
	return m
}

// transfer is a migration of the simulation.
type transfer struct {
	vee      *model.VEE
	path     []int32
	ends     [2]int32 // its hosts
	limit    float64  // MiB in a second; 0: none
	start    float64  // in seconds
	end      float64
	begun    bool
	ended    bool
	sending  float64 // MiB of this round that are left
	dirty    float64 // MiB dirtied in it
	round    float64 // MiB that it began with
	high     int     // rounds in which much was dirtied
	throttle float64 // part of its time that the VM is held still
	mayBegin func(now []*transfer) bool
}

// planned transfers begin when those have ended that they come after.
func planned(p model.Plan) func(*model.Model) []*transfer {
	return func(m *model.Model) (all []*transfer) {
		for _, a := range p.Actions {
			t := &transfer{vee: &m.VEEs[a.VEE], ends: [2]int32{a.From, a.To}, limit: a.MiBs}
			t.mayBegin = func(now []*transfer) bool {
				return !slices.ContainsFunc(a.After, func(i int32) bool { return !now[i].ended })
			}
			all = append(all, t)
		}
		return all
	}
}

// inOrder of the VMs, with so many at once, in all or at a host (0: any number).
func inOrder(_ *model.Model, target solve.Target, most, perHost int) func(*model.Model) []*transfer {
	return func(m *model.Model) (all []*transfer) {
		for v := range m.VEEs {
			x := &m.VEEs[v]
			t := &transfer{vee: x, ends: [2]int32{x.Host, target.At[v]}}
			t.mayBegin = func(now []*transfer) bool {
				running, here := 0, [2]int{}
				for _, o := range now {
					if !o.begun || o.ended {
						continue
					}
					running++
					for k, h := range t.ends {
						if slices.Contains(o.ends[:], h) {
							here[k]++
						}
					}
				}
				return (most == 0 || running < most) && (perHost == 0 || max(here[0], here[1]) < perHost)
			}
			all = append(all, t)
		}
		return all
	}
}

// downtime that a hypervisor may hold a VM still for the last round, as QEMU has it.
const downtime = .3

// simulate transfers until all have ended. Links are shared as TCP shares them, max-min fair;
// hypervisors pre-copy in rounds and slow a VM down that dirties its memory as fast as it is
// sent, as QEMU's auto-converge does: by a fifth after two rounds in which more than half of
// what was sent was dirtied again, then by a tenth more.
func simulate(m *model.Model, schedule func(*model.Model) []*transfer) outcome {
	net := m.Network()
	all := schedule(m)
	for _, t := range all {
		t.path = net.Path(t.ends[0], t.ends[1], nil)
	}
	for now := 0.; ; {
		var running []*transfer
		for _, t := range all {
			if !t.begun && t.mayBegin(all) {
				t.begun, t.start = true, now
				t.sending = float64(t.vee.MemoryMiB)
				t.round = t.sending
			}
			if t.begun && !t.ended {
				running = append(running, t)
			}
		}
		if len(running) == 0 {
			break
		}
		rates := fair(net, running)
		step := math.Inf(1) // until the first round ends
		for i, t := range running {
			step = min(step, t.sending/rates[i])
		}
		now += step
		for i, t := range running {
			t.sending -= step * rates[i]
			t.dirty = min(float64(t.vee.HotMiB), t.dirty+step*t.vee.DirtyMiBs*(1-t.throttle))
			if t.sending > 1e-9 {
				continue
			}
			if t.dirty <= downtime*rates[i] {
				t.ended, t.end = true, now+t.dirty/rates[i]
				continue
			}
			if t.dirty > t.round/2 {
				t.high++
			}
			if t.high >= 2 {
				t.high = 0
				t.throttle = min(.99, cmp.Or(t.throttle, .1)+.1)
			}
			t.sending, t.round, t.dirty = t.dirty, t.dirty, 0
		}
	}
	var o outcome
	for _, t := range all {
		o.each += (t.end - t.start) / float64(len(all))
		o.all = max(o.all, t.end)
	}
	return o
}

// fair rates of what runs: all grow alike until a link is full or a limit reached.
func fair(net *model.Network, running []*transfer) []float64 {
	rates, fixed := make([]float64, len(running)), make([]bool, len(running))
	left, on := map[int32]float64{}, map[int32]int{}
	for _, t := range running {
		for _, d := range t.path {
			left[d] = net.Capacity(d)
			on[d]++
		}
	}
	for n := len(running); n > 0; {
		grow := math.Inf(1)
		for d, k := range on {
			if k > 0 {
				grow = min(grow, left[d]/float64(k))
			}
		}
		for i, t := range running {
			if !fixed[i] && t.limit > 0 {
				grow = min(grow, t.limit-rates[i])
			}
		}
		for d, k := range on {
			left[d] -= grow * float64(k)
		}
		for i, t := range running {
			if fixed[i] {
				continue
			}
			rates[i] += grow
			full := t.limit > 0 && rates[i] >= t.limit-1e-9
			for _, d := range t.path {
				full = full || left[d] <= 1e-9
			}
			if full {
				fixed[i] = true
				n--
				for _, d := range t.path {
					on[d]--
				}
			}
		}
	}
	return rates
}
