package sm

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/event"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// stage is a manager in virtual time, over a fake VMI whose VEEs boot in some seconds, and
// over measurements that the test makes up.
type stage struct {
	t      *testing.T
	now    time.Time
	vmi    *fakeVMI
	store  *store.Store
	events *event.Log
	m      *Manager
	// measured is the answer to each query, by expression.
	measured map[string]func(at time.Time) ([]monitor.Series, error)
	scopes   map[monitor.Scope]bool // that were asked for
	endless  bool                   // no query comes to an end
}

func newStage(t *testing.T) *stage {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s := &stage{t: t, now: time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC), vmi: newFake(1), store: store.InMemory(log, nil),
		measured: map[string]func(time.Time) ([]monitor.Series, error){}, scopes: map[monitor.Scope]bool{}}
	t.Cleanup(func() { s.store.Close() })
	var err error
	if s.events, err = event.Open(t.Context(), event.Config{Sink: store.NewCollection[smi.Event](s.store, "event"), Now: s.clock, Logger: log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.events.Close)
	s.restart()
	return s
}

func (s *stage) clock() time.Time { return s.now }

// restart the manager: all that it knows is what is stored.
func (s *stage) restart() {
	s.m = New(Config{Site: "alpha", Store: s.store, VMI: s.vmi, Images: fakeImages{}, Events: s.events, Network: "site", Monitor: s, Now: s.clock,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

// Querier of the made-up measurements.
func (s *stage) Querier(of monitor.Scope) monitor.Querier {
	if of.VEEs != "" {
		if !strings.HasPrefix(of.VEEs, "- ") && of.VEEs != "-" {
			s.t.Errorf("asked about the VEEs %q", of.VEEs)
		}
		of.VEEs = "those that are there"
	}
	s.scopes[of] = true
	return s
}

func (s *stage) Query(ctx context.Context, expr string, at time.Time) ([]monitor.Series, error) {
	if s.endless {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if f := s.measured[expr]; f != nil {
		return f(at)
	}
	return nil, nil
}

func (s *stage) QueryRange(ctx context.Context, expr string, from, to time.Time, step time.Duration) ([]monitor.Series, error) {
	var one monitor.Series
	for at := from; !at.After(to); at = at.Add(step) {
		list, err := s.Query(ctx, expr, at)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			continue
		}
		one.Points = append(one.Points, list[0].Points...)
	}
	if len(one.Points) == 0 {
		return nil, nil
	}
	return []monitor.Series{one}, nil
}

// kpi has a value from now on.
func (s *stage) kpi(name string, value float64) {
	s.measured[name] = func(at time.Time) ([]monitor.Series, error) {
		return []monitor.Series{{Points: []monitor.Point{{At: at, Value: value}}}}, nil
	}
}

// pass lets time go by, in which VEEs come up and the manager does what it has to.
func (s *stage) pass(d time.Duration) {
	s.t.Helper()
	for end := s.now.Add(d); s.now.Before(end); {
		moved := false
		s.vmi.with(func() {
			before := s.vmi.seq
			for _, id := range slices.Sorted(maps.Keys(s.vmi.vees)) {
				s.vmi.advance(s.vmi.vees[id])
			}
			moved = s.vmi.seq != before
		})
		next, turns := time.Time{}, 0
		for busy := true; busy; turns++ {
			var err error
			if next, busy, err = s.m.Step(s.t.Context()); err != nil && !s.vmi.faults {
				s.t.Fatal(err)
			}
			if turns > 200 {
				s.t.Fatal("no rest")
			}
		}
		later := s.now.Add(time.Second)
		if idle := !moved && turns == 1; idle && next.After(later) {
			later = next.Truncate(time.Second).Add(time.Second)
		} else if idle && next.IsZero() {
			later = end
		}
		if s.now = later; s.now.After(end) {
			s.now = end
		}
	}
}

func (s *stage) acme() context.Context { return as(s.t.Context(), identity.Provider, "acme") }

func (s *stage) deploy(text string) {
	s.t.Helper()
	if _, err := s.m.Deploy(s.acme(), smi.Deploy{Manifest: text, Replace: true}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) web() smi.Component {
	s.t.Helper()
	got, err := s.m.Get(s.acme(), "", "shop")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range got.Components {
		if c.Name == "web" {
			return c
		}
	}
	s.t.Fatal("no component web")
	return smi.Component{}
}

// size is how many replicas of web are wanted and how many serve.
func (s *stage) size() (desired, ready int) { c := s.web(); return c.Desired, c.Ready }

func (s *stage) want(when string, desired, ready int) {
	s.t.Helper()
	if d, r := s.size(); d != desired || r != ready {
		s.t.Fatalf("%s: %d wanted and %d ready, want %d and %d\n%s", when, d, r, desired, ready, strings.Join(s.said(""), "\n"))
	}
}

// said are the messages of events with that reason.
func (s *stage) said(reason string) (list []string) {
	for _, e := range s.events.List(smi.EventFilter{Service: "shop"}) {
		if e.Reason == reason || reason == "" {
			list = append(list, fmt.Sprintf("%s %s: %s", e.At.Format(time.TimeOnly), e.Reason, e.Message))
		}
	}
	return list
}

func (s *stage) now1() smi.ElasticComponent {
	s.t.Helper()
	r, err := s.m.Rules(s.acme(), "", "shop")
	if err != nil || len(r.Components) == 0 {
		s.t.Fatal(r, err)
	}
	return r.Components[0]
}

func shop(rules string) string {
	return `service: shop
components:
  - name: web
    image: web:1
    memory: {size: 128MiB, max: 512MiB}
    replicas: {initial: 1, min: 1, max: 4}
` + rules
}

const array = `    elastic:
      - {kpi: load, window: 1m, frequency: 10s, quota: 10, tolerance: 10}
    cooldown: {up: 2m, down: 5m}
kpis:
  - {name: load, query: load}
`

func TestRulesChangeTheSize(t *testing.T) {
	s := newStage(t)
	s.deploy(shop(array))
	s.pass(30 * time.Second)
	s.want("deployed", 1, 1)
	s.kpi("load", 25)
	s.pass(50 * time.Second)
	s.want("before the window is full", 1, 1)
	s.pass(time.Minute)
	s.want("above the quota", 2, 2)
	s.pass(40 * time.Second)
	s.want("within the cool-down", 2, 2)
	s.pass(3 * time.Minute)
	s.want("still above", 3, 3)
	s.pass(10 * time.Minute)
	s.want("in the band", 3, 3)
	s.kpi("load", 100)
	s.pass(20 * time.Minute)
	s.want("far above: at most", 4, 4)
	if why := s.now1().Now; !strings.Contains(why, "the manifest allows at most 4") {
		t.Errorf("explained as %q", why)
	}
	// The replica that says that it is idle leaves, not the newest.
	idle := s.web().Replicas[1]
	s.vmi.with(func() {
		v := s.vmi.vees[idle.VEE]
		v.GuestIdle = true
		s.vmi.set(v)
	})
	s.kpi("load", 15)
	s.pass(3 * time.Minute)
	s.want("below", 3, 3)
	for _, r := range s.web().Replicas {
		if r.Number == idle.Number {
			t.Errorf("the idle replica is still there: %+v", r)
		}
	}
	s.pass(20 * time.Minute)
	s.want("as few as carry it", 2, 2)
	up, down := s.said("ScaledUp"), s.said("ScaledDown")
	if len(up) != 3 || len(down) != 2 {
		t.Errorf("decisions:\n%s", strings.Join(s.said(""), "\n"))
	}
	if want := "web from 1 to 2: load is 25 per replica (average 25 over 1m ÷ 1), above 11 (quota 10 + 10%)"; !strings.HasSuffix(up[0], want) {
		t.Errorf("said %q, want %q", up[0], want)
	}
	if !maps.Equal(s.scopes, map[monitor.Scope]bool{{Customer: "acme", Service: "shop", VEEs: "those that are there"}: true}) {
		t.Errorf("asked in the name of %v", s.scopes)
	}
	if c := s.now1(); c.Last == nil || c.Last.Kind != "scaleDown" || c.Last.Rule != "load over 1m" || len(c.Rules) != 1 || c.Min != 1 || c.By != "the manifest" {
		t.Errorf("told as %+v", c)
	}
}

func rule(condition, action string) string {
	return fmt.Sprintf("    cooldown: {up: 1m, down: 3m}\nkpis:\n  - {name: queue, query: queue}\nrules:\n  - {name: grow, every: 10s, condition: %q, do: {action: %s, component: web}}\n", condition, action)
}

// A site that stops in the middle of a scale-up goes on with it, and the cool-down too.
func TestRestartInAScaleUp(t *testing.T) {
	s := newStage(t)
	s.deploy(shop(rule("queue / web.instances.size > 4", "scaleUp, by: 2")))
	s.pass(30 * time.Second)
	s.kpi("queue", 40)
	for len(s.said("ScaledUp")) == 0 {
		s.pass(time.Second)
	}
	s.restart()
	s.pass(time.Second)
	s.restart()
	s.pass(20 * time.Second)
	s.want("two more", 3, 3)
	s.restart()
	s.pass(30 * time.Second)
	s.want("the cool-down", 3, 3)
	s.pass(time.Minute)
	s.want("after it", 4, 4)
	if n := len(s.said("ScaledUp")); n != 2 {
		t.Errorf("decisions:\n%s", strings.Join(s.said(""), "\n"))
	}
}

// What is measured wrongly, too late or not at all changes nothing; and what comes right again
// is gone by again.
// A window is of what was measured, whoever looked at it: a manager that starts anew asks for
// what there is of it, but for what was measured before the last change was done.
func TestWindowOutlivesARestart(t *testing.T) {
	s := newStage(t)
	s.deploy(shop(strings.Replace(array, "up: 2m", "up: 10s", 1)))
	s.pass(30 * time.Second)
	since := s.now
	load := func(at time.Time) ([]monitor.Series, error) {
		if at.Before(since) {
			return nil, nil
		}
		return []monitor.Series{{Points: []monitor.Point{{At: at, Value: 25}}}}, nil
	}
	broken := true
	s.measured["load"] = func(at time.Time) ([]monitor.Series, error) {
		if broken && at.Before(s.now) {
			return nil, fault.New(fault.Unavailable, "the measurements are being read")
		}
		return load(at)
	}
	s.pass(50 * time.Second)
	s.want("before the window is full", 1, 1)
	s.restart()
	s.pass(5 * time.Second)
	s.want("before the window is full, after a restart", 1, 1)
	broken = false // the past is asked for until it is told
	s.pass(20 * time.Second)
	if d, _ := s.size(); d != 2 {
		t.Fatalf("%d wanted 75 s after the load began, with a restart after 50 of them; want 2\n%s", d, strings.Join(s.said(""), "\n"))
	}
	s.pass(10 * time.Second)
	s.want("up", 2, 2)
	s.restart()
	s.pass(40 * time.Second)
	s.want("the second's window is not full, though the load was there before", 2, 2)
	s.restart()
	s.pass(40 * time.Second)
	if d, _ := s.size(); d != 3 {
		t.Errorf("%d wanted 90 s after the second was there; want 3", d)
	}
}

func TestBadMeasurements(t *testing.T) {
	point := func(age time.Duration, values ...float64) func(at time.Time) ([]monitor.Series, error) {
		return func(at time.Time) (list []monitor.Series, err error) {
			for _, v := range values {
				list = append(list, monitor.Series{Points: []monitor.Point{{At: at.Add(-age), Value: v}}})
			}
			return list, nil
		}
	}
	for name, c := range map[string]struct {
		measure func(at time.Time) ([]monitor.Series, error)
		event   string
		why     string
	}{
		"NaN":        {point(0, math.NaN()), "", "there is no measurement of queue yet"},
		"infinite":   {point(0, math.Inf(1)), "", "there is no measurement of queue yet"},
		"none":       {point(0), "", "there is no measurement of queue yet"},
		"late":       {point(time.Hour, 1000), "", "there is no measurement of queue yet"},
		"the future": {point(-time.Hour, 1000), "", "there is no measurement of queue yet"},
		"many":       {point(0, 1000, 1000, 1000), "KPI queue: its query gives 3 series: want one number", ""},
		"proxy down": {func(time.Time) ([]monitor.Series, error) {
			return nil, fault.New(fault.Unavailable, "the proxy does not answer")
		}, "KPI queue: the proxy does not answer", ""},
		"twice": {func(at time.Time) ([]monitor.Series, error) { return point(5*time.Second, 1)(at.Truncate(time.Minute)) }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.deploy(shop(rule("queue > 4", "scaleUp")))
			s.measured["queue"] = c.measure
			s.pass(5 * time.Minute)
			s.want("with "+name, 1, 1)
			if said := s.said("KPIUnknown"); c.event == "" && len(said) > 0 || c.event != "" && (len(said) != 1 || !strings.Contains(said[0], c.event)) {
				t.Errorf("said %q, want one of %q", said, c.event)
			}
			if why := s.now1().Now; !strings.Contains(why, c.why) {
				t.Errorf("explained as %q, want %q", why, c.why)
			}
			s.kpi("queue", 5)
			s.pass(30 * time.Second)
			s.want("when it is right again", 2, 2)
		})
	}
}

// A KPI's query that never comes to an end is given up, and nothing is decided by it.
func TestEndlessQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.deploy(shop(rule("queue > 4", "scaleUp") + "  - {name: shrink, every: 10s, condition: queue < 2, do: {action: scaleDown, component: web}}\n"))
		s.kpi("queue", 5)
		s.pass(30 * time.Second)
		s.want("with five", 2, 2)
		s.kpi("queue", 3)
		s.pass(30 * time.Second)
		s.endless = true
		s.pass(5 * time.Minute)
		s.want("with no answer", 2, 2)
		if said := s.said("KPIUnknown"); len(said) != 1 {
			t.Errorf("said %q, want one", said)
		}
		s.endless = false
		s.kpi("queue", 1)
		s.pass(5 * time.Minute)
		s.want("when there is one", 1, 1)
	})
}

// A condition that cannot be told holds nothing up and changes nothing.
func TestBadConditions(t *testing.T) {
	for condition, why := range map[string]string{
		"100 / queue > 1": "cannot be told with queue = 0: division by zero",
		"[1,2,3,4,5,6,7,8].all(a, [1,2,3,4,5,6,7,8].all(b, [1,2,3,4,5,6,7,8].all(c, [1,2,3,4,5,6,7,8].all(d, [1,2,3,4,5,6,7,8].all(e, a+b+c+d+e > queue)))))": "cost limit exceeded",
	} {
		s := newStage(t)
		s.deploy(shop(rule(condition, "scaleUp")))
		s.kpi("queue", 0)
		s.pass(3 * time.Minute)
		s.want(condition, 1, 1)
		if got := s.now1().Now; !strings.Contains(got, why) {
			t.Errorf("explained as %q, want %q", got, why)
		}
	}
	s := newStage(t)
	_, err := s.m.Deploy(s.acme(), smi.Deploy{Manifest: shop(rule("queu > 4", "scaleUp"))})
	if !fault.Has(err, fault.Malformed) || !strings.Contains(err.Error(), "undeclared reference to 'queu'; there are queue, web.instances.size") {
		t.Errorf("an unknown KPI: %v", err)
	}
}

// Rules that want to and fro with every look are held by their cool-downs.
func TestFlapping(t *testing.T) {
	s := newStage(t)
	s.deploy(shop(rule("queue > 4", "scaleUp") + "  - {name: shrink, every: 10s, condition: queue < 2, do: {action: scaleDown, component: web}}\n"))
	high := false
	s.measured["queue"] = func(at time.Time) ([]monitor.Series, error) {
		high = !high
		return []monitor.Series{{Points: []monitor.Point{{At: at, Value: map[bool]float64{true: 9, false: 1}[high]}}}}, nil
	}
	s.pass(30 * time.Minute)
	if n := len(s.said("ScaledUp")) + len(s.said("ScaledDown")); n > 30 {
		t.Errorf("%d changes in 30 minutes:\n%s", n, strings.Join(s.said(""), "\n"))
	}
	if d, _ := s.size(); d < 1 || d > 4 {
		t.Errorf("%d replicas", d)
	}
}

// Without room nothing is decided that cannot be, and it is when there is room.
func TestNoRoomToGrow(t *testing.T) {
	s := newStage(t)
	s.vmi.room = 2
	s.deploy(shop(rule("queue > 4", "scaleUp, by: 3")))
	s.kpi("queue", 9)
	s.pass(5 * time.Minute)
	s.want("room for one more", 2, 2)
	if said := s.said("NotScaled"); len(said) != 1 || !strings.Contains(said[0], "web stays at 2, though grow wants it from 2 to 4") || !strings.Contains(said[0], "no room") {
		t.Errorf("said %q", said)
	}
	s.vmi.room = 3
	s.pass(2 * time.Minute)
	s.want("room for another", 3, 3)
}

// A size by hand counts as a change, and holds for good where the rules are paused.
func TestByHand(t *testing.T) {
	s := newStage(t)
	s.deploy(shop(rule("queue < 4", "scaleDown")))
	s.kpi("queue", 0)
	s.pass(time.Minute)
	if _, err := s.m.Scale(s.acme(), "", "shop", "web", 4); err != nil {
		t.Fatal(err)
	}
	s.pass(150 * time.Second)
	s.want("within the cool-down", 4, 4)
	if c := s.now1(); c.Last == nil || c.Last.Kind != "byHand" || !strings.Contains(c.Now, "within the cool-down of 3m") {
		t.Errorf("told as %+v", c)
	}
	if _, err := s.m.SetRules(s.acme(), "", "shop", "web", false); err != nil {
		t.Fatal(err)
	}
	s.pass(20 * time.Minute)
	s.want("paused", 4, 4)
	if c := s.now1(); !c.Paused || c.Now != "stays at 4: its rules are paused" {
		t.Errorf("told as %+v", c)
	}
	s.restart()
	s.pass(time.Minute)
	s.want("paused, also after a restart", 4, 4)
	if _, err := s.m.SetRules(s.acme(), "", "shop", "web", true); err != nil {
		t.Fatal(err)
	}
	s.pass(time.Minute)
	s.want("resumed", 3, 3)
	if _, err := s.m.SetRules(s.acme(), "", "shop", "db", true); !fault.Has(err, fault.NotFound) {
		t.Errorf("no such component: %v", err)
	}
	if _, err := s.m.SetRules(as(t.Context(), identity.Auditor, ""), "acme", "shop", "web", true); !fault.Has(err, fault.Denied) {
		t.Errorf("an auditor: %v", err)
	}
	if _, err := s.m.Rules(as(t.Context(), identity.Provider, "other"), "acme", "shop"); !fault.Has(err, fault.NotFound) {
		t.Errorf("another customer: %v", err)
	}
}

// At the hours of a schedule its bounds hold, at once.
func TestSchedule(t *testing.T) {
	s := newStage(t) // begins at 8:00 on a Monday
	s.deploy(shop(`    schedules:
      - {name: office, days: [mon], from: "08:10", to: "08:30", min: 3, max: 4}
`))
	s.pass(5 * time.Minute)
	s.want("before", 1, 1)
	s.pass(10 * time.Minute)
	s.want("at its hours", 3, 3)
	s.pass(20 * time.Minute)
	s.want("afterwards nothing takes them away", 3, 3)
}

const resize = "    cooldown: {up: 1m, down: 3m}\nkpis:\n  - {name: use, query: use}\nrules:\n  - {name: fatter, every: 10s, condition: use > 0.9, do: {action: resize, component: web, cpu: 2, memory: 256MiB}}\n"

func (s *stage) hardware() (list []string) {
	s.vmi.with(func() {
		for _, id := range slices.Sorted(maps.Keys(s.vmi.vees)) {
			if v := s.vmi.vees[id]; v.State != vee.Destroyed {
				list = append(list, fmt.Sprintf("%s %s %d %s", id, v.Descriptor.Name, v.Descriptor.VCPUs, v.Descriptor.Memory))
			}
		}
	})
	return list
}

func TestResize(t *testing.T) {
	s := newStage(t)
	s.deploy(shop(resize))
	s.pass(30 * time.Second)
	before := s.web().Replicas[0].VEE
	s.kpi("use", 0.95)
	s.pass(time.Minute)
	if list := s.hardware(); len(list) != 1 || list[0] != string(before)+" web-1 2 256MiB" {
		t.Errorf("live: %q", list)
	}
	if said := s.said("Resized"); len(said) != 1 || !strings.Contains(said[0], "web to 2 vCPUs and 256MiB each: fatter: use > 0.9 holds with use = 0.95") {
		t.Errorf("said %q", said)
	}
	// New replicas are as large, and so they stay when the service is redeployed.
	if _, err := s.m.Scale(s.acme(), "", "shop", "web", 2); err != nil {
		t.Fatal(err)
	}
	s.deploy(strings.Replace(shop(resize), "max: 4", "max: 5", 1))
	s.pass(time.Minute)
	if list := s.hardware(); len(list) != 2 || !strings.HasSuffix(list[1], "web-2 2 256MiB") || !strings.HasPrefix(list[0], string(before)) {
		t.Errorf("with another: %q", list)
	}
}

// Where a guest that runs cannot be resized, its replicas are replaced, one by one.
func TestResizeByReplacement(t *testing.T) {
	s := newStage(t)
	s.vmi.rigid = true
	s.deploy(strings.Replace(shop(resize), "initial: 1", "initial: 2", 1))
	s.pass(30 * time.Second)
	before := s.hardware()
	s.kpi("use", 0.95)
	least := 2
	for range 90 {
		s.pass(time.Second)
		_, ready := s.size()
		least = min(least, ready)
	}
	list := s.hardware()
	if len(list) != 2 || !strings.HasSuffix(list[0], " 2 256MiB") || !strings.HasSuffix(list[1], " 2 256MiB") || slices.Contains(before, list[0]) {
		t.Errorf("from %q to %q:\n%s", before, list, strings.Join(s.said(""), "\n"))
	}
	if least < 2 {
		t.Errorf("only %d served meanwhile", least)
	}
}

const watched = `    performance:
      - {name: quick, kpi: latency, window: 1h, range: {max: 200, unit: ms}, percentage: 95}
    update: {watch: 1m, patience: 2m}
kpis:
  - {name: latency, query: latency}
`

// An update goes replica by replica, and is undone when a KPI leaves its range with the first.
func TestUpdateIsUndone(t *testing.T) {
	s := newStage(t)
	text := strings.Replace(shop(watched), "initial: 1", "initial: 3", 1)
	s.deploy(text)
	s.kpi("latency", 150)
	s.pass(30 * time.Second)
	before := s.hardware()
	s.deploy(strings.Replace(text, "web:1", "web:2", 1))
	most := 0
	for range 40 {
		s.pass(time.Second)
		if n := len(s.hardware()); n > most {
			if most = n; n == 4 {
				s.kpi("latency", 350)
			}
		}
	}
	s.pass(time.Minute)
	if most != 4 || !slices.Equal(s.hardware(), before) {
		t.Errorf("at most %d, from %q to %q:\n%s", most, before, s.hardware(), strings.Join(s.said(""), "\n"))
	}
	got, err := s.m.Get(s.acme(), "", "shop")
	if err != nil || got.Phase != smi.Ready || got.Revision != 3 || !strings.Contains(got.Undone, "revision 2 was undone: web: latency is 350 since there is a new replica, above the promised 200 ms") {
		t.Errorf("%+v, %v", got, err)
	}
	text2, err := s.m.Manifest(s.acme(), "", "shop")
	if err != nil || text2 != text {
		t.Errorf("the manifest is %q, %v", text2, err)
	}
	if len(s.said("UpdateUndone")) != 1 {
		t.Errorf("said %q", s.said(""))
	}
	// With the KPI in its range it goes through, also over a restart.
	s.kpi("latency", 150)
	s.deploy(strings.Replace(text, "web:1", "web:2", 1))
	s.pass(70 * time.Second)
	s.restart()
	s.pass(4 * time.Minute)
	got, err = s.m.Get(s.acme(), "", "shop")
	if err != nil || got.Phase != smi.Ready || got.Revision != 4 || got.Undone != "" || got.Components[0].Replicas[0].Revision != 4 {
		t.Errorf("%+v, %v\n%s", got, err, strings.Join(s.said(""), "\n"))
	}
}

// A change of the firewall alone replaces nobody.
func TestFirewallChangesInPlace(t *testing.T) {
	s := newStage(t)
	text := strings.Replace(shop(""), "initial: 1", "initial: 2", 1)
	s.deploy(text)
	s.pass(30 * time.Second)
	before := s.hardware()
	s.deploy(text + "    firewall:\n      - {action: allow, protocol: tcp, ports: \"80\"}\n")
	s.pass(30 * time.Second)
	if list := s.hardware(); !slices.Equal(list, before) {
		t.Errorf("from %q to %q", before, list)
	}
	s.vmi.with(func() {
		for _, v := range s.vmi.vees {
			if len(v.Descriptor.Firewall) != 1 || v.Descriptor.Firewall[0].First != 80 {
				t.Errorf("%s has the rules %v", v.Descriptor.Name, v.Descriptor.Firewall)
			}
		}
	})
	if got, err := s.m.Get(s.acme(), "", "shop"); err != nil || got.Phase != smi.Ready {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestReplay(t *testing.T) {
	s := newStage(t)
	s.deploy(shop(array))
	s.pass(30 * time.Second)
	var samples []smi.Sample
	for i := range 60 {
		samples = append(samples, smi.Sample{KPI: "load", AtMS: s.now.Add(time.Duration(i) * 10 * time.Second).UnixMilli(), Value: 25})
	}
	check := func(name string, r smi.Replayed, err error, want ...string) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		var changes []string
		for _, d := range r.Decisions {
			if d.Kind != "hold" {
				changes = append(changes, fmt.Sprintf("%s %s to %d", d.At.Sub(r.From), d.Kind, d.Replicas))
			}
			if d.Why == "" {
				t.Errorf("%s: without a reason: %+v", name, d)
			}
		}
		if !slices.Equal(changes, want) {
			t.Errorf("%s: %q, want %q", name, changes, want)
		}
	}
	r, err := s.m.Replay(s.acme(), "", "shop", smi.Replay{Samples: samples, BootMS: 20_000})
	check("samples", r, err, "1m0s scaleUp to 2", "3m0s scaleUp to 3")
	r, err = s.m.Replay(s.acme(), "", "shop", smi.Replay{Samples: samples, Manifest: strings.Replace(shop(array), "quota: 10", "quota: 30", 1)})
	check("other rules", r, err)
	s.kpi("load", 25)
	r, err = s.m.Replay(s.acme(), "", "shop", smi.Replay{From: s.now.Add(-time.Hour), To: s.now.Add(-50 * time.Minute), BootMS: 20_000})
	check("recorded", r, err, "1m0s scaleUp to 2", "3m0s scaleUp to 3")
	s.want("nothing was changed", 1, 1)
	for name, c := range map[string]struct {
		r    smi.Replay
		code fault.Code
	}{
		"no time":   {smi.Replay{}, fault.Malformed},
		"too long":  {smi.Replay{From: s.now.Add(-1000 * time.Hour), To: s.now}, fault.Malformed},
		"backwards": {smi.Replay{From: s.now, To: s.now.Add(-time.Hour)}, fault.Malformed},
		"no rules":  {smi.Replay{Samples: samples, Manifest: shop("")}, fault.WrongState},
		"bad rules": {smi.Replay{Samples: samples, Manifest: shop(rule("a >", "scaleUp"))}, fault.Malformed},
	} {
		if _, err := s.m.Replay(s.acme(), "", "shop", c.r); !fault.Has(err, c.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
	delete(s.measured, "load")
	if _, err := s.m.Replay(s.acme(), "", "shop", smi.Replay{From: s.now.Add(-time.Hour), To: s.now}); !fault.Has(err, fault.NotFound) {
		t.Errorf("nothing measured: %v", err)
	}
}

var _ vmi.Service = (*fakeVMI)(nil)
