package veem

import (
	"context"
	"sync"
	"time"
)

// job names something to look at. What is to be done about it is read when it runs, so a
// job that is added twice before it runs is one job.
type job struct {
	kind jobKind
	name string
}

type jobKind int

const (
	veeJob jobKind = iota
	hostJob
	reapJob // name is HOST/VEE
	pointJob
	placeJob
	planJob
	sweepJob
	segmentJob // name is HOST\x00SEGMENT
	networkJob
	leaseJob
	switchJob
	fenceJob
	noticeJob
	reserveJob
	partnerPointJob // name is HOST\x00POINT
)

// queue runs jobs: one job never in parallel with itself, each lane at most laneWidth at a
// time (a lane is a host, so that one that hangs does not hold up the others), failed ones
// again after pauses that grow.
type queue struct {
	do    func(context.Context, job) result
	retry time.Duration
	now   func() time.Time
	// stepped: jobs run when step is called, and nowhere else.
	stepped bool

	mu       sync.Mutex
	ctx      context.Context // of run; nil before
	lanes    map[string]*lane
	waiting  map[job]bool
	running  map[job]string // the lane to run in again afterwards, or ""
	timers   map[job]*timer
	failures map[job]int
	wg       sync.WaitGroup
}

type lane struct {
	jobs    []job
	workers int
}

type timer struct {
	t    *time.Timer // nil when stepped
	at   time.Time
	lane string
}

// result of a job: whether it failed, and when to run it again at the latest.
type result struct {
	failed bool
	after  time.Duration // 0: not
	lane   string        // for the next time
}

const laneWidth = 16

// longest pause, in multiples of the first.
const longest = 64

func newQueue(do func(context.Context, job) result, retry time.Duration, now func() time.Time, stepped bool) *queue {
	return &queue{do: do, retry: retry, now: now, stepped: stepped, lanes: map[string]*lane{}, waiting: map[job]bool{}, running: map[job]string{},
		timers: map[job]*timer{}, failures: map[job]int{}}
}

// run until ctx is done, and wait for the jobs under way.
func (q *queue) run(ctx context.Context) {
	q.mu.Lock()
	q.ctx = ctx
	for name, l := range q.lanes {
		q.staff(name, l)
	}
	q.mu.Unlock()
	<-ctx.Done()
	q.mu.Lock()
	for _, t := range q.timers {
		t.stop()
	}
	q.mu.Unlock()
	q.wg.Wait()
}

// add j to the end of a lane, or have it run once more when it is running.
func (q *queue) add(j job, laneName string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addLocked(j, laneName)
}

func (q *queue) addLocked(j job, laneName string) {
	if t := q.timers[j]; t != nil {
		t.stop()
		delete(q.timers, j)
	}
	if _, now := q.running[j]; now {
		q.running[j] = laneName
		return
	}
	if q.waiting[j] {
		return
	}
	q.waiting[j] = true
	l := q.lanes[laneName]
	if l == nil {
		l = &lane{}
		q.lanes[laneName] = l
	}
	l.jobs = append(l.jobs, j)
	q.staff(laneName, l)
}

// staff gives a lane the workers that it needs. mu is held.
func (q *queue) staff(name string, l *lane) {
	for !q.stepped && q.ctx != nil && q.ctx.Err() == nil && l.workers < min(laneWidth, len(l.jobs)) {
		l.workers++
		q.wg.Go(func() { q.work(name, l) })
	}
}

// work on a lane's jobs until there are none.
func (q *queue) work(name string, l *lane) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(l.jobs) > 0 && q.ctx.Err() == nil {
		j := l.jobs[0]
		l.jobs = l.jobs[1:]
		q.one(j)
	}
	l.workers--
	if l.workers == 0 && len(l.jobs) == 0 {
		delete(q.lanes, name)
	}
}

// one job that was waiting. mu is held, but not while it runs.
func (q *queue) one(j job) {
	delete(q.waiting, j)
	q.running[j] = ""
	q.mu.Unlock()
	r := q.do(q.ctx, j)
	q.mu.Lock()
	again := q.running[j]
	delete(q.running, j)
	q.settle(j, r, again)
}

// settle what comes after a job. mu is held.
func (q *queue) settle(j job, r result, again string) {
	pause := r.after
	if r.failed {
		pause = q.retry * time.Duration(min(longest, 1<<min(q.failures[j], 10)))
		q.failures[j]++
		again = "" // what changed meanwhile is seen after the pause
	} else {
		delete(q.failures, j)
	}
	switch {
	case q.ctx.Err() != nil:
	case again != "":
		q.addLocked(j, again)
	case pause > 0 || r.failed:
		t := &timer{at: q.now().Add(pause), lane: r.lane}
		q.timers[j] = t
		if q.stepped {
			return
		}
		t.t = time.AfterFunc(pause, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			if q.timers[j] == t && q.ctx.Err() == nil {
				q.addLocked(j, r.lane)
			}
		})
	}
}

func (t *timer) stop() {
	if t.t != nil {
		t.t.Stop()
	}
}
