// Package sim is the kernel of a discrete-event simulation: virtual time, a queue of events,
// random numbers and a network, all of which follow from one seed. The same program with
// the same seed gives the same run, event by event, on any machine; so a run that shows a
// fault can be shown again, and an experiment can be published by its seed.
//
// Everything happens in the goroutine that calls Run. What is simulated schedules its next
// events and returns; it never waits, looks at a real clock or starts a goroutine.
package sim

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// Sim is a simulation that stands at a moment of virtual time.
type Sim struct {
	// Trace, when it is set, is told of each event before it happens.
	Trace func(at time.Time, what string)

	seed   uint64
	now    time.Time
	queue  queue
	number uint64
	ties   *rand.Rand // nil: events of one moment happen as they were scheduled
}

// New simulation that begins at a moment.
func New(seed uint64, begin time.Time) *Sim { return &Sim{seed: seed, now: begin} }

// ShuffleTies lets the events of one moment happen in an order that the seed decides, so
// that different seeds try different orders. It is for what is scheduled from now on.
func (s *Sim) ShuffleTies() { s.ties = s.Stream("ties") }

// Now is the virtual time.
func (s *Sim) Now() time.Time { return s.now }

// Stream of random numbers of that name. It depends on the seed and the name alone: what is
// drawn elsewhere, or added to the program, does not change it. Each call begins it anew.
func (s *Sim) Stream(name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(s.seed, h.Sum64()))
}

// Event that is going to happen.
type Event struct {
	at     time.Time
	tie    uint64
	number uint64
	what   string
	do     func()
	index  int // in the queue; -1: happened or cancelled
	sim    *Sim
}

// At a moment, do something; what says it for people. A moment that is over is now.
func (s *Sim) At(at time.Time, what string, do func()) *Event {
	if at.Before(s.now) {
		at = s.now
	}
	s.number++
	e := &Event{at: at, number: s.number, what: what, do: do, sim: s}
	if s.ties != nil {
		e.tie = s.ties.Uint64()
	}
	heap.Push(&s.queue, e)
	return e
}

// After some time, do something.
func (s *Sim) After(d time.Duration, what string, do func()) *Event {
	return s.At(s.now.Add(d), what, do)
}

// Every so often, d apart, do something, for the first time after d; until it returns false.
func (s *Sim) Every(d time.Duration, what string, do func() bool) {
	s.After(d, what, func() {
		if do() {
			s.Every(d, what, do)
		}
	})
}

// Cancel the event. It reports false when it has happened, or was cancelled, before.
func (e *Event) Cancel() bool {
	if e.index < 0 {
		return false
	}
	heap.Remove(&e.sim.queue, e.index)
	return true
}

// mostAtOnce events of one moment are taken for a loop without end.
const mostAtOnce = 1_000_000

// Run until a moment, or until nothing is left to happen; events of that moment happen. Time
// then stands there in any case. Error: events that go on and on while no time passes.
func (s *Sim) Run(until time.Time) error {
	atOnce := 0
	for len(s.queue) > 0 && !s.queue[0].at.After(until) {
		e := heap.Pop(&s.queue).(*Event)
		if atOnce++; e.at.After(s.now) {
			atOnce = 0
		}
		if atOnce > mostAtOnce {
			return fmt.Errorf("simulation: more than %d events at %s, the last one is %q: does it schedule itself without a delay?", mostAtOnce, s.now.Format(time.RFC3339Nano), e.what)
		}
		s.now = e.at
		if s.Trace != nil {
			s.Trace(s.now, e.what)
		}
		e.do()
	}
	if s.now.Before(until) {
		s.now = until
	}
	return nil
}

// Pending is how many events are going to happen.
func (s *Sim) Pending() int { return len(s.queue) }

// queue is a heap by time, then tie, then number: container/heap.
type queue []*Event

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	a, b := q[i], q[j]
	switch {
	case !a.at.Equal(b.at):
		return a.at.Before(b.at)
	case a.tie != b.tie:
		return a.tie < b.tie
	}
	return a.number < b.number
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	e := x.(*Event)
	e.index = len(*q)
	*q = append(*q, e)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last], e.index = nil, -1
	*q = (*q)[:last]
	return e
}
