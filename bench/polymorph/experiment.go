package main

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/reservoir-cloud/reservoir/sim"
	"github.com/reservoir-cloud/reservoir/sim/batch"
	"github.com/reservoir-cloud/reservoir/sim/managers"
	"github.com/reservoir-cloud/reservoir/sm"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
)

// Of the published experiment (Clayman et al., section "Polymorph search"; Chapman et al.,
// section 6): what is known of it.
const (
	mostNodes   = 16
	allJobs     = 7200
	longJobs    = 2
	measureEach = 30 * time.Second
)

// workload is a search: a batch of long jobs, then sets of short ones, each when the one
// before has ended and the orchestration has thought about its results.
type workload struct {
	Long  time.Duration // each of the long jobs
	Sets  int
	Short time.Duration // a short job, on average
	Think time.Duration // between a batch and the next
}

// settings under which a search is run.
type settings struct {
	Name  string
	Rules string        // of the manifest, in YAML: cooldown and elastic of the component, and rules
	Boot  time.Duration // from its order until a node takes jobs
	Least int           // nodes
	Most  int
}

// outcome of a search.
type outcome struct {
	Time     time.Duration // from its beginning until its last job has ended
	Nodes    float64       // in use on average in that time: ordered, serving, or stopping
	Peak     int
	Shutdown time.Duration // until all nodes are gone but those that always stay
	Requeued int           // jobs that lost their node
}

func (o outcome) saving() float64 { return 100 * (1 - o.Nodes/mostNodes) }

func (o outcome) extra(dedicated outcome) float64 {
	return 100 * (o.Time.Seconds()/dedicated.Time.Seconds() - 1)
}

// search submits a workload's jobs to a batch system.
type search struct {
	w      workload
	b      *batch.System
	s      *sim.Sim
	random *rand.Rand
	ended  func()
}

// begin the search.
func (x *search) begin() { x.batch(longJobs, 0, func() time.Duration { return x.w.Long }) }

// short jobs take from half to one and a half times their average, evenly spread.
func (x *search) short() time.Duration {
	return time.Duration((0.5 + x.random.Float64()) * float64(x.w.Short))
}

// batch of jobs, after so many sets.
func (x *search) batch(jobs, sets int, takes func() time.Duration) {
	left := jobs
	for range jobs {
		x.b.Submit(takes(), func() {
			if left--; left > 0 {
				return
			}
			if sets == x.w.Sets {
				x.ended()
				return
			}
			x.s.After(x.w.Think, "the orchestration goes on", func() {
				all := allJobs - longJobs
				x.batch(all*(sets+1)/x.w.Sets-all*sets/x.w.Sets, sets+1, x.short)
			})
		})
	}
}

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// horizon after which a search is given up.
const horizon = 12 * time.Hour

// dedicated runs a search on nodes that are there all the time.
func dedicated(w workload, seed uint64) (outcome, error) {
	s := sim.New(seed, begin)
	b := batch.New(s, "node")
	for i := range mostNodes {
		b.Add(fmt.Sprintf("node-%d", i+1))
	}
	var out outcome
	x := &search{w, b, s, s.Stream("jobs"), func() { out = outcome{Time: s.Now().Sub(begin), Nodes: mostNodes, Peak: mostNodes} }}
	x.begin()
	return out, s.Run(begin.Add(horizon))
}

// elastic runs it as a service of a simulated site, whose Service Manager and VEE Manager
// are those of a site's process.
func elastic(w workload, set settings, seed uint64, log *slog.Logger) (outcome, []smi.Event, error) {
	s := sim.New(seed, begin)
	b := batch.New(s, "executor")
	s.Every(measureEach, "the queue is measured", func() bool {
		_, busy := b.Nodes()
		b.Measure("queueSize", float64(b.Queue()))
		b.Measure("runningJobs", float64(busy))
		return true
	})
	boot := s.Stream("boot")
	cloud, err := managers.New(managers.Config{
		Sim: s, Hosts: mostNodes + 2, Capacity: vee.Resources{MilliCPU: 4000, Memory: 8 * vee.GiB, Disk: 100 * vee.GiB}, Guests: b,
		Times: managers.Times{
			// From nine tenths to eleven tenths of what is stated.
			Boot: func() time.Duration { return time.Duration((0.9 + 0.2*boot.Float64()) * float64(set.Boot)) },
			Stop: func() time.Duration { return 2 * time.Second },
		},
		Managers: func(m *sm.Config, _ *veem.Config) { m.Monitor = b },
		Log:      log,
	})
	if err != nil {
		return outcome{}, nil, err
	}
	defer cloud.Close()
	if err := s.Run(begin.Add(time.Second)); err != nil {
		return outcome{}, nil, err
	}
	if _, err := cloud.Manager().Deploy(cloud.As("acme"), smi.Deploy{Manifest: manifest(set)}); err != nil {
		return outcome{}, nil, err
	}
	cloud.Poke()
	warm := set.Boot + 10*time.Minute
	if err := s.Run(begin.Add(warm.Truncate(measureEach))); err != nil {
		return outcome{}, nil, err
	}

	var out outcome
	from, used, samples := s.Now(), 0, 0
	x := &search{w, b, s, s.Stream("jobs"), func() { out.Time = s.Now().Sub(from) }}
	s.Every(time.Second, "nodes are counted", func() bool {
		serving, others := cloud.Running("executor")
		n := serving + others
		out.Peak = max(out.Peak, n)
		switch {
		case out.Time == 0:
			used, samples = used+n, samples+1
		case n <= set.Least:
			out.Shutdown = s.Now().Sub(from)
			return false
		}
		return true
	})
	x.begin()
	for out.Shutdown == 0 && s.Now().Sub(from) < horizon {
		if err := s.Run(s.Now().Add(time.Minute)); err != nil {
			return outcome{}, nil, err
		}
		if err := cloud.Err(); err != nil {
			return outcome{}, nil, err
		}
	}
	if out.Shutdown == 0 {
		return out, cloud.Events(), fmt.Errorf("the search has not ended after %s: %d jobs wait", horizon, b.Queue())
	}
	out.Nodes, out.Requeued = float64(used)/float64(samples), b.Requeued
	return out, cloud.Events(), nil
}

// manifest of the search, as the site takes it.
func manifest(set settings) string {
	return fmt.Sprintf(`service: polymorph-search
components:
  - {name: orchestration, image: debian-slurm, memory: 256MiB, startup: {order: 2}}
  - {name: grid, image: debian-slurm, memory: 512MiB, startup: {order: 1}}
  - name: executor
    image: debian-slurm
    cpu: 4
    memory: 4GiB
    replicas: {initial: %d, min: %d, max: %d}
    startup: {order: 2}
    cooldown: {up: 0s, down: 0s}
kpis:
  - {name: queueSize, query: queueSize}
  - {name: runningJobs, query: runningJobs}
rules:
%s`, longJobs, set.Least, set.Most, set.Rules)
}

// published settings: a node more while more than 4 jobs wait for each, looked at as often as
// the queue is measured. How the published rule for less nodes read, and that 2 were there
// from the beginning, is a guess.
func published(boot time.Duration) settings {
	return settings{Name: "published", Boot: boot, Least: longJobs, Most: mostNodes, Rules: `  - name: grow
    every: 30s
    condition: queueSize / (executor.instances.size + 1) > 4 && executor.instances.size < 16
    do: {action: scaleUp, component: executor, by: 1}
  - name: shrink
    every: 30s
    condition: queueSize == 0
    do: {action: scaleDown, component: executor, by: 1}
`}
}

// ours: all nodes that are missing at once, and away with those that have nothing to do,
// down to none while the orchestration thinks.
func ours(boot time.Duration) settings {
	return settings{Name: "ours", Boot: boot, Least: 0, Most: mostNodes, Rules: `  - name: grow
    every: 10s
    condition: queueSize / (executor.instances.size + 1) > 4
    do: {action: scaleUp, component: executor, by: 16}
  - name: begin
    every: 10s
    condition: queueSize > 0 && executor.instances.size < 2
    do: {action: scaleUp, component: executor, by: 2}
  - name: shrink
    every: 10s
    condition: queueSize == 0 && runningJobs < executor.instances.size
    do: {action: scaleDown, component: executor, by: 14}
`}
}
