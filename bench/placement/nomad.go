package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// job workload of bench/nomad, which has the same type.
type job struct {
	Nodes int    `json:"nodes"`
	Racks int    `json:"racks"`
	Jobs  int    `json:"jobs"`
	Count int    `json:"count"`
	Rule  string `json:"rule"`

	NodeMHz, NodeMB, MHz, MB int
}

type jobResult struct {
	Placed  int     `json:"placed"`
	Hosts   int     `json:"hosts"`
	Seconds float64 `json:"seconds"`
}

// jobs beside Nomad's scheduler: allocations of 500 MHz and 1 GiB on nodes of 14 GHz and
// 64 GiB, a hundred for each job.
func jobs() error {
	var all []job
	for _, nodes := range []int{1000, 5000} {
		for _, rule := range []struct {
			name string
			jobs int
		}{{"plain", 100}, {"anti-affinity", 100}, {"spread", 20}} {
			all = append(all, job{Nodes: nodes, Racks: 10, Jobs: rule.jobs, Count: 100, Rule: rule.name, NodeMHz: 14000, NodeMB: 65536, MHz: 500, MB: 1024})
		}
	}
	theirs, err := nomad(all)
	if err != nil {
		return err
	}
	fmt.Printf("%6s %-14s %7s | %9s %6s | %9s %6s | %8s %11s\n", "nodes", "rule", "placed", "Nomad/s", "hosts", "ours/s", "hosts", "speed-up", "least hosts")
	slowest, most := map[string]float64{}, 0.
	for i, w := range all {
		ours := w.place()
		if n := w.Jobs * w.Count; ours.Placed != n || theirs[i].Placed != n {
			return fmt.Errorf("%d nodes, %s: Nomad has placed %d, we %d of %d", w.Nodes, w.Rule, theirs[i].Placed, ours.Placed, n)
		}
		us, them := float64(ours.Placed)/ours.Seconds, float64(theirs[i].Placed)/theirs[i].Seconds
		bound := w.bound()
		fmt.Printf("%6d %-14s %7d | %9.0f %6d | %9.0f %6d | %7.0fx %11d\n", w.Nodes, w.Rule, ours.Placed, them, theirs[i].Hosts, us, ours.Hosts, us/them, bound)
		if old, seen := slowest[w.Rule]; !seen || us/them < old {
			slowest[w.Rule] = us / them
		}
		if w.Rule != "anti-affinity" { // which spreads: a job has a host for each of its VEEs
			most = max(most, float64(ours.Hosts)/float64(bound))
		}
	}
	figure.Line("nomad_speedup_plain", slowest["plain"], "x", ">=", 50)
	figure.Line("nomad_speedup_anti_affinity", slowest["anti-affinity"], "x", ">=", 50)
	figure.Line("nomad_speedup_spread", slowest["spread"], "x", ">=", 50)
	figure.Line("nomad_hosts_over_bound", most, "x", "<=", 1.02)
	return nil
}

// nomad runs the workloads in the module bench/nomad.
func nomad(all []job) (results []jobResult, err error) {
	in, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "run", ".")
	cmd.Dir, cmd.Stdin, cmd.Stderr = "bench/nomad", bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run Nomad's scheduler (bench/nomad): %w", err)
	}
	if err := json.Unmarshal(out, &results); err != nil || len(results) != len(all) {
		return nil, fmt.Errorf("what bench/nomad says: %d results, %w", len(results), err)
	}
	return results, nil
}

// bound on the hosts that any placement needs.
func (w job) bound() int {
	n := w.Jobs * w.Count
	per := min(w.NodeMHz/w.MHz, w.NodeMB/w.MB)
	hosts := func(vees int) int { return (vees + per - 1) / per }
	if w.Rule == "spread" {
		return w.Racks * hosts(n/w.Racks)
	}
	return hosts(n)
}

// place the workload, job by job as it would come. An even spread over the racks is said in
// groups with one VEE for each rack.
func (w job) place() (r jobResult) {
	m := model.New("mhz", "memory_mb")
	for h := range w.Nodes {
		m.AddHost(model.Host{Name: fmt.Sprint("node", h), Rack: fmt.Sprint("r", h%w.Racks)}, int64(w.NodeMHz), int64(w.NodeMB))
	}
	for range w.Jobs {
		var group []int32
		for i := range w.Count {
			group = append(group, m.AddVEE(model.VEE{Name: "web"}, int64(w.MHz), int64(w.MB)))
			switch {
			case w.Rule == "spread" && len(group) == w.Racks:
				m.Require(model.Spread{VEEs: group, Scope: model.InRack})
				group = nil
			case w.Rule == "anti-affinity" && i == w.Count-1:
				m.Require(model.Spread{VEEs: group})
			}
		}
	}
	begin := time.Now()
	p := solve.NewPlacer(m, solve.Pack) // its index counts
	used := map[int32]bool{}
	for v := range m.VEEs {
		if h := p.Place(int32(v)); h != model.None {
			r.Placed++
			used[h] = true
		}
	}
	r.Seconds, r.Hosts = time.Since(begin).Seconds(), len(used)
	return r
}
