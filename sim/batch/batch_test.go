package batch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/sim"
	"github.com/reservoir-cloud/reservoir/sim/managers"
	"github.com/reservoir-cloud/reservoir/sm"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
)

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// grid has one to six executors, by the length of its queue.
const grid = `service: grid
components:
  - {name: master, image: master, memory: 128MiB, startup: {order: 1}}
  - name: executor
    image: executor
    memory: 128MiB
    replicas: {initial: 1, min: 1, max: 6}
    startup: {order: 2}
    cooldown: {up: %s, down: %s}
kpis:
  - {name: queueSize, query: queueSize}
rules:
  - name: grow
    every: 10s
    condition: queueSize / (executor.instances.size + 1) > 4
    do: {action: scaleUp, component: executor, by: 3}
  - name: shrink
    every: 10s
    condition: queueSize == 0
    do: {action: scaleDown, component: executor, by: 2}
`

const most = 6

// world is a site, a batch system on it, and the service that has the nodes.
type world struct {
	*testing.T
	sim       *sim.Sim
	site      *managers.Site
	batch     *System
	submitted int
	peak      int
}

func newWorld(t *testing.T, seed uint64, up, down time.Duration) *world {
	t.Helper()
	k := sim.New(seed, begin)
	k.ShuffleTies()
	b := New(k, "executor")
	boot := k.Stream("boot")
	s, err := managers.New(managers.Config{Sim: k, Hosts: 3, Capacity: vee.Resources{MilliCPU: 4000, Memory: 8 * vee.GiB, Disk: 100 * vee.GiB}, Guests: b,
		Times: managers.Times{
			Fetch: func() time.Duration { return 5 * time.Second },
			Boot:  func() time.Duration { return 10*time.Second + time.Duration(boot.Int64N(int64(20*time.Second))) },
			Stop:  func() time.Duration { return time.Second },
		},
		Managers: func(m *sm.Config, _ *veem.Config) { m.Monitor = b }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{T: t, sim: k, site: s, batch: b}
	w.run(time.Second)
	if _, err := s.Manager().Deploy(s.As("acme"), smi.Deploy{Manifest: fmt.Sprintf(grid, up, down)}); err != nil {
		t.Fatal(err)
	}
	s.Poke()
	return w
}

// run for some time, in which nothing must happen that never may.
func (w *world) run(d time.Duration) {
	w.Helper()
	for end := w.sim.Now().Add(d); w.sim.Now().Before(end); {
		if err := w.sim.Run(minTime(end, w.sim.Now().Add(time.Second))); err != nil {
			w.Fatal(err)
		}
		serving, others := w.site.Running("executor")
		if w.peak = max(w.peak, serving+others); serving+others > most {
			w.Fatalf("%s: %d executors serve and there are %d others: %d are allowed%s", w.sim.Now().Sub(begin), serving, others, most, w.told())
		}
	}
	if err := w.site.Err(); err != nil {
		w.Fatalf("%v%s", err, w.told())
	}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (w *world) submit(jobs int, takes func() time.Duration) {
	for range jobs {
		w.batch.Submit(takes(), func() {})
	}
	w.submitted += jobs
}

func ten() time.Duration { return 10 * time.Second }

// told is the story of a run.
func (w *world) told() string {
	var out strings.Builder
	for _, e := range w.site.Events() {
		fmt.Fprintf(&out, "\n  %12s %s %s: %s", e.At.Sub(begin).Truncate(time.Millisecond), e.Reason, e.Object, e.Message)
	}
	return out.String()
}

// settled: every job has ended once, what was ordered is gone again, and the service is ready.
func (w *world) settled() error {
	if w.batch.Ended != w.submitted || w.batch.Queue() > 0 {
		return fmt.Errorf("%d of %d jobs have ended, %d wait", w.batch.Ended, w.submitted, w.batch.Queue())
	}
	if serving, others := w.site.Running("executor"); serving != 1 || others != 0 {
		return fmt.Errorf("%d executors serve and there are %d others: want 1", serving, others)
	}
	if serving, others := w.site.Running(""); serving != 2 || others != 0 {
		return fmt.Errorf("%d guests serve and there are %d others: want 2", serving, others)
	}
	m := w.site.Manager()
	if m == nil {
		return errors.New("the site is down")
	}
	s, err := m.Get(w.site.As("acme"), "", "grid")
	if err == nil && (s.Phase != smi.Ready || len(s.Components[1].Replicas) != 1) {
		err = fmt.Errorf("the service is %+v", s)
	}
	return err
}

// scaleUp is a run in which 60 jobs come at once; spoil is called when they do.
func scaleUp(t *testing.T, spoil func(w *world)) *world {
	w := newWorld(t, 1, 0, 0)
	w.batch.MeasureQueue("queueSize", 5*time.Second)
	w.run(70 * time.Second)
	spoil(w)
	w.submit(60, ten)
	w.run(5 * time.Minute)
	return w
}

// A site that crashes anywhere in a scale-up, or in the scale-down after it, goes on with it:
// every write and every call to a host is tried, before it and after it.
func TestCrashAnywhereInAScaleUp(t *testing.T) {
	places := 0
	w := scaleUp(t, func(w *world) {
		w.site.Chances(func() bool { places++; return false }, nil)
	})
	if err := w.settled(); err != nil || w.peak != most {
		t.Fatalf("without a crash: %v; at most %d executors%s", err, w.peak, w.told())
	}
	t.Logf("%d places", places)
	for at := 1; at <= places; at++ {
		n := 0
		w := scaleUp(t, func(w *world) {
			w.site.Chances(func() bool { n++; return n == at }, func() time.Duration { return 7 * time.Second })
		})
		if err := w.settled(); err != nil || w.site.Crashes != 1 || w.peak != most {
			t.Fatalf("crash at place %d: %v; %d crashes, at most %d executors%s", at, err, w.site.Crashes, w.peak, w.told())
		}
	}
}

// Whatever crashes, and however often: no VEE runs twice, no host runs more than it can, there
// are never more executors than allowed, and when it is over every job has ended, and what is
// not needed is gone.
func TestRandomSchedules(t *testing.T) {
	const seeds = 30
	crashes := 0
	for seed := range uint64(seeds) {
		w := newWorld(t, seed, 20*time.Second, 40*time.Second)
		w.batch.MeasureQueue("queueSize", 5*time.Second)
		r := w.sim.Stream("chaos")
		odds := 20 + r.IntN(200)
		w.site.Chances(func() bool { return r.IntN(odds) == 0 }, func() time.Duration { return time.Duration(r.Int64N(int64(40 * time.Second))) })
		for range 10 {
			w.submit(r.IntN(30), func() time.Duration { return time.Duration(r.Int64N(int64(40 * time.Second))) })
			w.befall(r)
			w.run(time.Duration(r.Int64N(int64(2 * time.Minute))))
		}
		w.site.Chances(nil, nil)
		for i := range 3 {
			w.site.Cut(fmt.Sprintf("h%d", i+1), false)
		}
		w.run(20 * time.Minute)
		if err := w.settled(); err != nil {
			t.Fatalf("seed %d: %v%s", seed, err, w.told())
		}
		crashes += w.site.Crashes
	}
	t.Logf("%d runs, %d crashes", seeds, crashes)
	if crashes < seeds {
		t.Errorf("only %d crashes in %d runs", crashes, seeds)
	}
}

// befall the site, its guests or its network with something.
func (w *world) befall(r *rand.Rand) {
	host := fmt.Sprintf("h%d", 1+r.IntN(3))
	switch r.IntN(4) {
	case 0:
		w.site.Cut(host, true)
		w.sim.After(time.Duration(r.Int64N(int64(time.Minute))), host+" is connected", func() { w.site.Cut(host, false) })
	case 1:
		w.site.KillOne(r)
	case 2:
		w.site.Crash(time.Duration(r.Int64N(int64(time.Minute))))
	}
}

// A measure that goes up and down as fast as it is looked at does not take the service with
// it: between two changes of size the cool-down passes, also over a crash in between.
func TestRuleThatFlaps(t *testing.T) {
	const up, down = 90 * time.Second, 4 * time.Minute
	crashes := 0
	for seed := range uint64(5) {
		w := newWorld(t, seed, up, down)
		r := w.sim.Stream("flaps")
		w.sim.Every(5*time.Second, "the measure flaps", func() bool {
			w.batch.Measure("queueSize", float64(100*r.IntN(2)))
			return true
		})
		w.site.Chances(func() bool { return r.IntN(500) == 0 }, func() time.Duration { return 10 * time.Second })
		w.run(time.Hour)
		var last time.Time
		changes := 0
		for _, e := range w.site.Events() {
			cool := map[string]time.Duration{"ScaledUp": up, "ScaledDown": down}[e.Reason]
			if cool == 0 {
				continue
			}
			if changes++; !last.IsZero() && e.At.Sub(last) < cool {
				t.Fatalf("seed %d: %s %s after the change before: the cool-down is %s%s", seed, e.Reason, e.At.Sub(last), cool, w.told())
			}
			last = e.At
		}
		if crashes += w.site.Crashes; changes == 0 {
			t.Errorf("seed %d: no change", seed)
		}
	}
	if crashes == 0 {
		t.Error("no crash")
	}
}

// A KPI that nobody measures, or that stopped to be, changes nothing.
func TestNothingIsMeasured(t *testing.T) {
	w := newWorld(t, 1, 0, 0)
	w.submit(500, ten)
	w.run(10 * time.Minute)
	if w.peak != 1 {
		t.Fatalf("%d executors%s", w.peak, w.told())
	}
	w.batch.Measure("queueSize", 100) // once
	w.run(time.Hour)
	if serving, _ := w.site.Running("executor"); serving != 4 && serving != 6 {
		t.Errorf("%d executors serve%s", serving, w.told())
	}
}

// Nodes take jobs in order; one that leaves ends its job first, and a job whose node is gone
// runs elsewhere.
func TestNodes(t *testing.T) {
	k := sim.New(1, begin)
	b := New(k, "executor")
	var ended []string
	job := func(name string) { b.Submit(10*time.Second, func() { ended = append(ended, name) }) }
	one, two := managers.Guest{VEE: "1", Name: "executor-1"}, managers.Guest{VEE: "2", Name: "executor-2"}
	b.Serves(managers.Guest{Name: "master-1"})
	b.Serves(one)
	b.Serves(two)
	for i := range 5 {
		job(fmt.Sprint(i))
	}
	left := false
	k.After(5*time.Second, "leave", func() { b.Stops(one, func() { left = true }) })
	k.After(12*time.Second, "crash", func() { b.Gone(two) })
	k.After(20*time.Second, "back", func() { b.Serves(managers.Guest{VEE: "2", Name: "executor-2", Start: 2}) })
	if err := k.Run(begin.Add(9 * time.Second)); err != nil || left {
		t.Errorf("it left with its job: %v", err)
	}
	if err := k.Run(begin.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(ended, " "); got != "0 1 2 3 4" || !left || b.Requeued != 1 || b.Ended != 5 {
		t.Errorf("ended: %s; left: %v; requeued: %d", got, left, b.Requeued)
	}
	if all, busy := b.Nodes(); all != 2 || busy != 0 {
		t.Errorf("%d nodes, %d busy", all, busy)
	}
}
