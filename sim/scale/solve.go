package scale

import (
	"time"

	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// problem of some hosts: their own model, and what its VEEs are called outside.
type problem struct {
	hosts []int32
	vees  []int32
	model *model.Model
}

// problem that the hosts have now.
func (w *world) problem(hosts []int32) problem {
	m := model.New("cpu", "memory_mib")
	m.Migration = w.move
	p := problem{hosts: hosts, model: m}
	for i, h := range hosts {
		m.AddHost(model.Host{}, int64(w.HostCPU), w.HostMemoryMiB)
		for _, v := range w.on[h] {
			p.vees = append(p.vees, v)
			m.AddVEE(model.VEE{State: model.Running, Host: int32(i), MemoryMiB: w.VEEMemoryMiB, DirtyMiBs: dirty}, int64(w.load[v]), w.VEEMemoryMiB)
		}
	}
	return p
}

// plan of moves that solves it; false: there is none.
func (p problem) plan(seed uint64) (model.Plan, bool) {
	t, err := solve.Repair(p.model, solve.Options{Seed: seed})
	if err != nil {
		return model.Plan{}, false
	}
	plan, err := solve.Schedule(p.model, t)
	return plan, err == nil
}

// pace of solving so many VEEs' problem.
func (w *world) pace(vees int) time.Duration { return w.Base + time.Duration(vees)*w.PerVEE }

// carryOut a plan, as it was scheduled, and then go on.
func (w *world) carryOut(p problem, plan model.Plan, then func()) {
	for _, a := range plan.Actions {
		if a.Kind == model.Migrate || a.Kind == model.Relocate {
			v, to := p.vees[a.VEE], p.hosts[a.To]
			w.sim.After(a.End, "", func() { w.migrated(v, to) })
		}
	}
	w.sim.After(plan.Makespan(), "", then)
}

// central scheduler: at each of its rounds it asks every host, solves what they say, and has
// the plan carried out; the next round begins when that is over. What happens meanwhile it
// does not know.
func (w *world) central() {
	all := make([]int32, w.Hosts)
	for h := range all {
		all[h] = int32(h)
	}
	var round func()
	next := func() {
		now := w.now()
		w.sim.After((now/w.Every+1)*w.Every-now, "", round)
	}
	round = func() {
		w.result.Messages += 2 * w.Hosts
		if w.bad == 0 {
			next()
			return
		}
		p := w.problem(all)
		w.result.Solves++
		plan, ok := p.plan(w.Seed)
		w.sim.After(w.pace(w.VEEs), "", func() {
			if !ok {
				w.result.NoPlan++
				next()
				return
			}
			w.result.Partitions.Add(float64(w.Hosts))
			w.result.Messages += 2 * len(plan.Actions)
			w.carryOut(p, plan, next)
		})
	}
	next()
}
