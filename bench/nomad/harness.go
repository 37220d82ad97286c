// Command nomad runs Nomad's own scheduler in its own harness on the workloads of
// bench/placement, and prints what it did as JSON. It is a module of its own, so that
// nothing of Nomad's reaches the product.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/nomad/client/lib/idset"
	"github.com/hashicorp/nomad/client/lib/numalib"
	"github.com/hashicorp/nomad/client/lib/numalib/hw"
	"github.com/hashicorp/nomad/nomad/mock"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/scheduler"
)

// Workload of bench/placement: jobs of so many equal allocations each.
type Workload struct {
	Nodes int    `json:"nodes"`
	Racks int    `json:"racks"`
	Jobs  int    `json:"jobs"`
	Count int    `json:"count"` // of each job
	Rule  string `json:"rule"`  // "plain", "anti-affinity" (distinct hosts), "spread" (over racks)
	// Of a node and of an allocation.
	NodeMHz, NodeMB, MHz, MB int
}

// Result of a workload.
type Result struct {
	Placed  int     `json:"placed"`
	Hosts   int     `json:"hosts"` // in use
	Seconds float64 `json:"seconds"`
}

func main() {
	testing.Init()
	_ = os.Setenv("NOMAD_TEST_LOG_LEVEL", "ERROR") // its logs would cost it time
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "nomad:", err)
		os.Exit(1)
	}
}

func run() error {
	var all []Workload
	if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil {
		return fmt.Errorf("read the workloads: %w", err)
	}
	results := make([]Result, len(all))
	for i, w := range all {
		var err error
		ran := false
		testing.Benchmark(func(b *testing.B) { // the harness wants a testing.TB
			if !ran {
				ran = true
				results[i], err = place(b, w)
			}
		})
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(results)
}

func place(tb testing.TB, w Workload) (r Result, err error) {
	h := scheduler.NewHarness(tb)
	for i := range w.Nodes {
		if err := h.State.UpsertNode(structs.MsgTypeTestSetup, h.NextIndex(), node(i, w)); err != nil {
			return r, fmt.Errorf("add a node: %w", err)
		}
	}
	used := map[string]bool{}
	for range w.Jobs {
		j := job(w)
		if err := h.State.UpsertJob(structs.MsgTypeTestSetup, h.NextIndex(), nil, j); err != nil {
			return r, fmt.Errorf("add a job: %w", err)
		}
		e := mock.Eval()
		e.JobID, e.Type, e.TriggeredBy, e.Priority = j.ID, j.Type, structs.EvalTriggerJobRegister, j.Priority
		if err := h.State.UpsertEvals(structs.MsgTypeTestSetup, h.NextIndex(), []*structs.Evaluation{e}); err != nil {
			return r, fmt.Errorf("add an evaluation: %w", err)
		}
		begin := time.Now()
		if err := h.Process(scheduler.NewServiceScheduler, e); err != nil {
			return r, fmt.Errorf("schedule: %w", err)
		}
		r.Seconds += time.Since(begin).Seconds()
	}
	for _, p := range h.Plans {
		for n, allocs := range p.NodeAllocation {
			used[n] = true
			r.Placed += len(allocs)
		}
	}
	r.Hosts = len(used)
	if r.Placed == 0 {
		return r, fmt.Errorf("it has placed nothing: %+v", *h.Evals[0].FailedTGAllocs["web"])
	}
	return r, nil
}

// node without anything reserved.
func node(i int, w Workload) *structs.Node {
	n := mock.Node()
	n.Name = fmt.Sprint("node", i)
	n.Meta["rack"] = fmt.Sprint("r", i%w.Racks)
	const cores = 10
	top := &numalib.Topology{Distances: numalib.SLIT{[]numalib.Cost{10}}, Cores: make([]numalib.Core, cores)}
	top.SetNodes(idset.From[hw.NodeID]([]hw.NodeID{0}))
	for c := range top.Cores {
		top.Cores[c] = numalib.Core{ID: hw.CoreID(c), Grade: numalib.Performance, BaseSpeed: hw.MHz(w.NodeMHz / cores)}
	}
	n.NodeResources.Processors = structs.NewNodeProcessorResources(top)
	n.NodeResources.Memory.MemoryMB = int64(w.NodeMB)
	n.Reserved, n.ReservedResources = nil, nil
	n.NodeResources.Compatibility()
	_ = n.ComputeClass()
	return n
}

func job(w Workload) *structs.Job {
	j := mock.Job()
	g := j.TaskGroups[0]
	g.Count, g.Networks, g.EphemeralDisk.SizeMB = w.Count, nil, 1
	g.Constraints, g.Services = nil, nil
	t := g.Tasks[0]
	t.Services, t.Constraints = nil, nil
	t.Resources = &structs.Resources{CPU: w.MHz, MemoryMB: w.MB}
	switch w.Rule {
	case "anti-affinity":
		g.Constraints = []*structs.Constraint{{Operand: structs.ConstraintDistinctHosts}}
	case "spread":
		j.Spreads = []*structs.Spread{{Attribute: "${meta.rack}", Weight: 100}}
	}
	j.Canonicalize()
	return j
}
