package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// scale of a large site: placing one VEE, the repair of one overloaded host, and memory, on
// a model of hosts and VEEs with four dimensions.
func scale(hosts, vees int) error {
	before := heap()
	random := rand.New(rand.NewPCG(1, 2))
	m, err := build(random, hosts, vees)
	if err != nil {
		return err
	}
	p := solve.NewPlacer(m, solve.Balance)
	memory := heap() - before

	const rounds = 20_000
	took := make([]time.Duration, 0, rounds)
	for range rounds {
		v := m.AddVEE(model.VEE{Name: "new"}, demand(random)...)
		start := time.Now()
		h := p.Place(v)
		took = append(took, time.Since(start))
		if h != model.None && random.IntN(10) > 0 { // some stay
			p.Remove(v)
		}
	}
	slices.Sort(took)
	p99 := took[rounds*99/100]
	fmt.Printf("%d hosts, %d VEEs: model and index %.0f MiB; placing one: median %v, p99 %v, worst %v\n",
		hosts, vees, float64(memory)/(1<<20), took[rounds/2], p99, took[rounds-1])
	m, err = build(random, hosts, vees) // without those that were only placed
	if err != nil {
		return err
	}
	repairs, err := relieve(m)
	if err != nil {
		return err
	}
	fmt.Printf("repair of one overloaded host: median %v, worst %v\n", figure.Median(repairs), slices.Max(repairs))
	late, err := search(m)
	if err != nil {
		return err
	}
	figure.Line("place_one_p99_us", float64(p99.Nanoseconds())/1000, "us", "<", 100)
	figure.Line("repair_one_ms", float64(figure.Median(repairs).Microseconds())/1000, "ms", "<", 10)
	figure.Line("placement_model_mb", float64(memory)/1e6, "MB", "<", 200)
	figure.Line("optimise_late", 100*late, "%", "<=", 5)
	return nil
}

// relieve one overloaded host after the other of a site that a Placer keeps: how long each
// repair takes, its plan of migrations included.
func relieve(m *model.Model) (took []time.Duration, err error) {
	p := solve.NewPlacer(m, solve.Balance)
	var all []int32
	for h := range m.Hosts {
		all = append(all, int32(h))
	}
	plan, err := p.Relieve(all, solve.Options{Seed: 1}) // those that are overloaded as it begins
	if err != nil {
		return nil, fmt.Errorf("repair the site: %w", err)
	}
	carryOut(m, plan)
	for h := range int32(99) {
		for range 12 {
			m.AddVEE(model.VEE{Name: "heavy", State: model.Running, Host: h, MemoryMiB: 4096}, 8000, 16384, 100, 1000)
		}
		p.At(int32(len(m.VEEs) - 1)) // counts them
		start := time.Now()
		plan, err := p.Relieve([]int32{h}, solve.Options{Seed: 1})
		if err != nil {
			return nil, fmt.Errorf("repair host %d: %w", h, err)
		}
		took = append(took, time.Since(start))
		if plan.Migrations() == 0 {
			return nil, fmt.Errorf("repair host %d: nothing moves", h)
		}
		if h%9 == 0 {
			if err := check.Plan(m, plan); err != nil {
				return nil, fmt.Errorf("the checker rejects the plan: %w", err)
			}
		}
		carryOut(m, plan)
	}
	return took, nil
}

// deadline of a search, from its call to its answer.
const deadline = 10 * time.Second

// search the site for better placements by each policy: what the deadline brings, and by what
// part of it the answer is late at worst.
func search(m *model.Model) (late float64, err error) {
	for _, p := range []struct {
		name      string
		objective solve.Objective
	}{{"balance", solve.Objective{Balance: 1, Migrations: .001}}, {"consolidate", solve.Objective{Consolidate: 1, Migrations: .01}}} {
		before := p.objective.Score(m, asIs(m))
		begin := time.Now()
		target, err := solve.Optimise(m, p.objective, solve.Options{Seed: 1, Stop: func() bool { return time.Since(begin) >= deadline }})
		took := time.Since(begin)
		if err != nil {
			return 0, fmt.Errorf("optimise the site: %w", err)
		}
		late = max(late, float64(took-deadline)/float64(deadline))
		fmt.Printf("%s with a deadline of %v: score %.1f before, %.1f after, in %v\n", p.name, deadline, before, p.objective.Score(m, target), took.Round(time.Millisecond))
	}
	return late, nil
}

// asIs is the placement that the model begins with.
func asIs(m *model.Model) solve.Target {
	t := solve.Target{At: make([]int32, len(m.VEEs))}
	for v := range m.VEEs {
		t.At[v] = m.VEEs[v].Host
	}
	return t
}

// carryOut a plan of migrations.
func carryOut(m *model.Model, plan model.Plan) {
	for _, a := range plan.Actions {
		m.VEEs[a.VEE].Host = a.To
	}
}

// demand of processors in thousandths, memory in MiB, disk in GiB, network in Mbit/s.
func demand(r *rand.Rand) []int64 {
	n := int64(1) << r.IntN(4)
	return []int64{500 * n, 1024 * n * (1 + r.Int64N(2)), 10 + r.Int64N(90), 50 * n}
}

// build a site of hosts of two sizes, about half full, a tenth of the VEEs in groups of
// four that must be apart.
func build(r *rand.Rand, hosts, vees int) (*model.Model, error) {
	m := model.New("cpu_milli", "memory_mib", "disk_gib", "net_mbit")
	m.Migration = model.Migration{MiBs: 1000, Slots: 2, Least: time.Second}
	for h := range hosts {
		size := int64(1 + h%2)
		m.AddHost(model.Host{Name: fmt.Sprint("host", h), Rack: fmt.Sprint("rack", h/40)}, 32000*size, 128*1024*size, 4000, 10000)
	}
	for v := range vees {
		m.AddVEE(model.VEE{Name: fmt.Sprint("vee", v), State: model.Running, Host: int32(v % hosts), MemoryMiB: 2048}, demand(r)...)
	}
	for v := 0; v+4 <= vees/10; v += 4 {
		m.Require(model.Spread{VEEs: []int32{int32(v), int32(v + 1), int32(v + 2), int32(v + 3)}, Always: model.Always{Continuous: true}})
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("build the model: %w", err)
	}
	return m, nil
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}
