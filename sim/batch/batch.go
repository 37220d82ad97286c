// Package batch is a batch system in virtual time: a queue of jobs, and nodes that take one
// each, in order. Its nodes are the guests of one component of a simulated site (managers.Guests):
// a node is there when its guest serves, takes no new job once its guest is to stop, and a
// job whose node goes away waits again, at the head of the queue, for another one. What it
// measures of itself is answered as a monitor.Querier, as the site's own would.
package batch

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/sim"
	"github.com/reservoir-cloud/reservoir/sim/managers"
)

// System of jobs and nodes.
type System struct {
	sim       *sim.Sim
	component string // whose replicas are the nodes
	nodes     map[managers.Guest]*node
	order     []*node // as they came
	queue     []*job
	measures  map[string]measure

	Requeued int // how often a job lost its node
	Ended    int // jobs
}

type measure struct {
	at    time.Time
	value float64
}

type job struct {
	takes time.Duration
	done  func()
}

type node struct {
	guest   managers.Guest
	job     *job
	ends    *sim.Event
	leaving func() // not nil: takes no job, and is told when the one that it has ends
}

// New system whose nodes are the replicas of a component.
func New(s *sim.Sim, component string) *System {
	return &System{sim: s, component: component, nodes: map[managers.Guest]*node{}, measures: map[string]measure{}}
}

// Submit a job that takes so long; done is called when it has ended.
func (b *System) Submit(takes time.Duration, done func()) {
	b.queue = append(b.queue, &job{takes, done})
	b.dispatch()
}

// Queue is how many jobs wait.
func (b *System) Queue() int { return len(b.queue) }

// Nodes that are there, and how many of them have a job.
func (b *System) Nodes() (all, busy int) {
	for _, n := range b.order {
		if n.job != nil {
			busy++
		}
	}
	return len(b.order), busy
}

// Add a node that no guest is: one of a dedicated machine.
func (b *System) Add(name string) { b.add(managers.Guest{Name: name}) }

func (b *System) add(g managers.Guest) {
	n := &node{guest: g}
	b.nodes[g] = n
	b.order = append(b.order, n)
	b.dispatch()
}

// dispatch jobs to nodes that have none.
func (b *System) dispatch() {
	for _, n := range b.order {
		if len(b.queue) == 0 {
			return
		}
		if n.job != nil || n.leaving != nil {
			continue
		}
		j := b.queue[0]
		b.queue = b.queue[1:]
		n.job = j
		n.ends = b.sim.After(j.takes, "job ends on "+n.guest.Name, func() {
			n.job, n.ends = nil, nil
			b.Ended++
			if n.leaving != nil {
				n.leaving()
			}
			j.done()
			b.dispatch()
		})
	}
}

// Serves: managers.Guests.
func (b *System) Serves(g managers.Guest) {
	if b.mine(g) {
		b.add(g)
	}
}

// Stops: managers.Guests.
func (b *System) Stops(g managers.Guest, done func()) {
	n := b.nodes[g]
	if n == nil || n.job == nil {
		done()
	}
	if n != nil {
		n.leaving = done // called once more by nobody: it takes no job
	}
}

// Gone: managers.Guests.
func (b *System) Gone(g managers.Guest) {
	n := b.nodes[g]
	if n == nil {
		return
	}
	delete(b.nodes, g)
	b.order = slices.DeleteFunc(b.order, func(o *node) bool { return o == n })
	if n.job != nil {
		n.ends.Cancel()
		b.Requeued++
		b.queue = append([]*job{n.job}, b.queue...)
		b.dispatch()
	}
}

// Idle: managers.Guests.
func (b *System) Idle(g managers.Guest) bool {
	n := b.nodes[g]
	return n != nil && n.job == nil
}

func (b *System) mine(g managers.Guest) bool { return strings.HasPrefix(g.Name, b.component+"-") }

// Measure something now.
func (b *System) Measure(name string, value float64) { b.measures[name] = measure{b.sim.Now(), value} }

// MeasureQueue so often, as the KPI of that name.
func (b *System) MeasureQueue(name string, every time.Duration) {
	b.sim.Every(every, "the queue is measured", func() bool {
		b.Measure(name, float64(b.Queue()))
		return true
	})
}

// Querier: monitor.Repository.
func (b *System) Querier(monitor.Scope) monitor.Querier { return querier{b} }

// querier knows no PromQL but the names of what is measured.
type querier struct{ b *System }

// staleness of a measurement: an older one is none.
const staleness = 5 * time.Minute

// Query: monitor.Querier.
func (q querier) Query(_ context.Context, expr string, at time.Time) ([]monitor.Series, error) {
	m, measured := q.b.measures[expr]
	if !measured || at.Sub(m.at) > staleness {
		return nil, nil
	}
	return []monitor.Series{{Points: []monitor.Point{{At: at, Value: m.value}}}}, nil
}

// QueryRange: monitor.Querier. Nothing is kept that it could answer by.
func (q querier) QueryRange(_ context.Context, expr string, _, _ time.Time, _ time.Duration) ([]monitor.Series, error) {
	return nil, fault.New(fault.Unsupported, "a simulated batch system knows only the newest %s, and measures %v", expr, slices.Sorted(maps.Keys(q.b.measures)))
}
