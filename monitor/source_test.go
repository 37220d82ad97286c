package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// uplink is a site that can be away.
type uplink struct {
	mu      sync.Mutex
	away    error
	orders  Orders
	reports []Report
}

func (u *uplink) Report(_ context.Context, r Report) (Orders, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.away != nil {
		return Orders{}, u.away
	}
	u.reports = append(u.reports, r)
	o := u.orders
	u.orders.Tell = false
	if o.Version == r.Orders {
		o.Orders, o.Same = nil, true
	}
	return o, nil
}

func (u *uplink) set(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

// values of a field that have arrived, in their order.
func (u *uplink) values(field string) (all []float64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, r := range u.reports {
		for _, m := range r.Measurements {
			for _, v := range m.Values {
				if v.Field == field {
					all = append(all, v.Value)
				}
			}
		}
	}
	return all
}

func (u *uplink) lost() map[Reason]int {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := map[Reason]int{}
	for _, r := range u.reports {
		for why, n := range r.Lost {
			all[why] += n
		}
	}
	return all
}

// onSource runs f beside a source, in a time of its own.
func onSource(t *testing.T, cfg SourceConfig, f func(t *testing.T, s *Source, u *uplink)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		u := &uplink{}
		cfg.Uplink, cfg.Incarnation, cfg.Now, cfg.Log = u, "one", time.Now, slog.New(slog.DiscardHandler)
		s := NewSource(cfg)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		f(t, s, u)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// wait until just after d.
func wait(d time.Duration) {
	time.Sleep(d + time.Millisecond)
	synctest.Wait()
}

func probeOf(name string, every time.Duration) Probe {
	return Probe{Ref: Ref{Name: name}, Kind: HostKind, Settings: Settings{On: true, EveryMS: every.Milliseconds()}}
}

// counting collects 0, 1, 2, …
func counting(field string) Collect {
	n := -1.0
	return func(context.Context) ([]Value, error) {
		n++
		return []Value{{Field: field, Value: n}}, nil
	}
}

func TestRateAndControl(t *testing.T) {
	onSource(t, SourceConfig{}, func(t *testing.T, s *Source, u *uplink) {
		s.Add(probeOf("cpu", 10*time.Second), counting("host_a"))
		s.Add(probeOf("stuck", 5*time.Second), func(ctx context.Context) ([]Value, error) {
			<-ctx.Done()
			return []Value{{Field: "host_b", Value: 1}}, ctx.Err()
		})
		wait(62 * time.Second)
		if got := u.values("host_a"); !slices.Equal(got, []float64{0, 1, 2, 3, 4, 5, 6}) {
			t.Errorf("every 10s for 62s: %v", got)
		}
		order := func(version string, settings Settings) {
			u.set(func() {
				u.orders = Orders{Version: version, Orders: []Order{{Ref{Name: "cpu"}, settings}}}
				u.reports = nil
			})
			wait(7 * time.Second) // a report goes out every five seconds at least
			u.set(func() { u.reports = nil })
		}
		order("off", Settings{EveryMS: 10_000})
		wait(time.Minute)
		if got := u.values("host_a"); len(got) > 0 {
			t.Errorf("switched off it sends %v", got)
		}
		order("fast", Settings{On: true, EveryMS: 1000})
		wait(30 * time.Second)
		if got := u.values("host_a"); len(got) < 29 || len(got) > 31 {
			t.Errorf("every second for 30s: %d", len(got))
		}
		order("nonsense", Settings{On: true, EveryMS: 1})
		wait(30 * time.Second)
		if got := u.values("host_a"); len(got) != 3 {
			t.Errorf("after an order that makes no sense, as at first, every 10s for 30s: %v", got)
		}
		if p := s.Probes(); len(p) != 2 || p[1].LastError == "" || p[0].LastError != "" {
			t.Errorf("probes %+v", p)
		}
	})
}

func TestStrategies(t *testing.T) {
	at := time.Unix(0, 0)
	for _, c := range []struct {
		s    Settings
		want []float64
	}{
		{Settings{}, []float64{1, 1, 5, 5, 9, 1}},
		{Settings{Send: Always}, []float64{1, 1, 5, 5, 9, 1}},
		{Settings{Send: Changed}, []float64{1, 5, 9, 1}},
		{Settings{Send: Above, High: 5}, []float64{9}},
		{Settings{Send: Below, Low: 5}, []float64{1, 1, 1}},
		{Settings{Send: Inside, Low: 2, High: 5}, []float64{5, 5}},
		{Settings{Send: Outside, Low: 2, High: 5}, []float64{1, 1, 9, 1}},
	} {
		r := ran{settings: c.s}
		var got []float64
		for i, v := range []float64{1, 1, 5, 5, 9, 1} {
			for _, sent := range r.filter(at.Add(time.Duration(i)*time.Second), []Value{{Field: "a", Value: v}}) {
				got = append(got, sent.Value)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v sends %v, want %v", c.s, got, c.want)
		}
	}
	r := ran{settings: Settings{Send: Changed}}
	n := 0
	for i := range 600 {
		n += len(r.filter(at.Add(time.Duration(i)*time.Second), []Value{{Field: "a", Value: 1}, {Field: "a", Labels: `x="1"`, Value: 1}}))
	}
	if n != 10 {
		t.Errorf("two values that never change were sent %d times in ten minutes: want each once in two minutes", n)
	}
}

func TestSettingsCheck(t *testing.T) {
	for _, s := range []Settings{{EveryMS: -1}, {EveryMS: 99}, {EveryMS: (25 * time.Hour).Milliseconds()}, {Send: "never"}, {Send: Inside, Low: 2, High: 1}, {Low: math.NaN()}} {
		if s.check() == nil {
			t.Errorf("%+v is taken", s)
		}
	}
	never := When("never")
	if _, err := (ProbeChange{Send: &never}).Apply(Settings{}); err == nil {
		t.Error("a change to nonsense is taken")
	}
	if got, err := (ProbeChange{On: new(true), EveryMS: new(int64(500))}).Apply(Settings{Send: Changed}); err != nil || got != (Settings{On: true, EveryMS: 500, Send: Changed}) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestEvents: a probe that is pushed to sends each event, or the newest in its interval.
func TestEvents(t *testing.T) {
	onSource(t, SourceConfig{}, func(t *testing.T, s *Source, u *uplink) {
		each := Ref{Name: "each", VEE: "alpha.a"}
		s.Add(Probe{Ref: each, Kind: KPIKind, Settings: Settings{On: true}}, nil)
		thin := Ref{Name: "thin", VEE: "alpha.a"}
		s.Add(Probe{Ref: thin, Kind: KPIKind, Settings: Settings{On: true, EveryMS: 10_000}}, nil)
		off := Ref{Name: "off", VEE: "alpha.a"}
		s.Add(Probe{Ref: off, Kind: KPIKind}, nil)
		for i := range 30 {
			v := float64(i)
			s.Event(each, time.Now(), Value{Field: "each", Value: v}, Value{Field: "bad", Value: math.NaN()})
			s.Event(thin, time.Now(), Value{Field: "thin", Value: v})
			s.Event(off, time.Now(), Value{Field: "off", Value: v})
			s.Event(Ref{Name: "nobody"}, time.Now(), Value{Field: "nobody", Value: v})
			wait(time.Second)
		}
		wait(15 * time.Second)
		if got := u.values("each"); len(got) != 30 {
			t.Errorf("each: %v", got)
		}
		got := u.values("thin")
		if len(got) < 3 || len(got) > 4 || got[len(got)-1] != 29 {
			t.Errorf("the newest in 10s: %v", got)
		}
		if len(u.values("off")) > 0 || len(u.values("nobody")) > 0 || len(u.values("bad")) > 0 {
			t.Error("what is off, not there or no number was sent")
		}
		if u.lost()[NotFinite] != 30 {
			t.Errorf("lost %v", u.lost())
		}
	})
}

// TestSiteAway: what is measured meanwhile arrives once the site is back, each once and in
// order; what is too much for memory is counted.
func TestSiteAway(t *testing.T) {
	onSource(t, SourceConfig{}, func(t *testing.T, s *Source, u *uplink) {
		s.Add(probeOf("cpu", time.Second), counting("host_a"))
		wait(5 * time.Second)
		u.set(func() { u.away = errors.New("no route") })
		wait(10 * time.Minute)
		u.set(func() { u.away = nil })
		wait(20 * time.Second)
		got := u.values("host_a")
		for i, v := range got {
			if v != float64(i) {
				t.Fatalf("value %d is %v", i, v)
			}
		}
		if len(got) < 615 || len(u.lost()) > 0 {
			t.Errorf("%d values in 625s, lost %v", len(got), u.lost())
		}

		flood := make([]Value, 1000)
		for i := range flood {
			flood[i] = Value{Field: fmt.Sprint("host_f", i), Value: 1}
		}
		u.set(func() { u.away, u.reports = errors.New("no route"), nil })
		s.Add(probeOf("flood", time.Second), func(context.Context) ([]Value, error) { return flood, nil })
		wait(5 * time.Minute)
		s.Remove(Ref{Name: "flood"})
		u.set(func() { u.away = nil })
		wait(time.Minute)
		lost, came := u.lost()[Lost], 0
		for i := range flood {
			came += len(u.values(fmt.Sprint("host_f", i)))
		}
		if lost < 150_000 || came < 90_000 || came > maxBuffered {
			t.Errorf("of 300,000 values %d came and %d were lost", came, lost)
		}
	})
}

// TestTold: probes are told when they change and once a minute, in pieces, and again to a
// site that has forgotten them.
func TestTold(t *testing.T) {
	onSource(t, SourceConfig{}, func(t *testing.T, s *Source, u *uplink) {
		told := func() (n int) {
			u.set(func() {
				for _, r := range u.reports {
					n += len(r.Probes)
					if len(r.Probes) > maxTold {
						t.Errorf("%d probes in one report", len(r.Probes))
					}
				}
				u.reports = nil
			})
			return n
		}
		for i := range 1200 {
			s.Add(Probe{Ref: Ref{Name: "kpi", VEE: vee.ID(fmt.Sprintf("alpha.%d", i))}, Kind: KPIKind, Settings: Settings{On: true}}, nil)
		}
		wait(5 * time.Second)
		if n := told(); n != 1200 {
			t.Errorf("%d were told, of 1200", n)
		}
		wait(40 * time.Second)
		if n := told(); n != 0 {
			t.Errorf("%d were told though nothing has changed", n)
		}
		s.Remove(Ref{Name: "kpi", VEE: "alpha.7"})
		wait(2 * time.Second)
		gone := 0
		u.set(func() {
			for _, r := range u.reports {
				gone += len(r.Gone)
			}
			u.orders.Tell = true
		})
		wait(8 * time.Second)
		if n := told(); gone != 1 || n < 1199 {
			t.Errorf("%d were gone; %d were told to a site that asked for all", gone, n)
		}
	})
}

func TestRegulator(t *testing.T) {
	r := Regulator{Limits: Limits{ValuesPerSecond: 100, Load: 2}}
	for i, c := range []struct {
		values  int
		load    float64
		stretch float64
	}{
		{900, 1, 0}, {1000, 1, 0}, {4000, 1, 4}, {1000, 1, 4}, // at the limit it stays
		{500, 3, 8},                           // load: half the rate
		{400, 1, 8}, {400, 1, 8}, {400, 1, 4}, // three calm looks: twice the rate
		{900, 1, 4}, // no room for more
		{300, 1, 4}, {300, 1, 4}, {300, 1, 2},
		{300, 1, 2}, {300, 1, 2}, {300, 1, 0}, // and it is over
		{100_000_000, 1, maxStretch},
	} {
		got := r.Step(Seen{Values: c.values, Elapsed: 10 * time.Second, Load: c.load})
		if got.Stretch != c.stretch || (got.Why == "") != (c.stretch == 0) {
			t.Errorf("look %d: %+v, want %v", i, got, c.stretch)
		}
	}
	if x := (Regulation{Stretch: 16}); x.Of(KPIKind) != 4 || x.Of(VEEKind) != 16 || (Regulation{}).Of(VEEKind) != 1 {
		t.Error("KPIs are not spared")
	}
}

// TestRegulated: a source slows down when it, its machine or its site has too much, and says
// so; afterwards it is as fast as before.
func TestRegulated(t *testing.T) {
	load := 0.5
	var mu sync.Mutex
	cfg := SourceConfig{Limits: Limits{Load: 2}, Load: func() float64 { mu.Lock(); defer mu.Unlock(); return load }}
	onSource(t, cfg, func(t *testing.T, s *Source, u *uplink) {
		rate := func() int {
			u.set(func() { u.reports = nil })
			wait(2 * time.Minute)
			return len(u.values("host_a"))
		}
		s.Add(probeOf("cpu", time.Second), counting("host_a"))
		if n := rate(); n < 118 {
			t.Errorf("%d in two minutes", n)
		}
		mu.Lock()
		load = 3
		mu.Unlock()
		wait(30 * time.Second)
		if p := s.Probes()[0]; !strings.Contains(p.Slowed, "load 3.00") || p.Now.EveryMS < 2000 || p.Settings.EveryMS != 1000 {
			t.Errorf("under load: %+v", p)
		}
		if n := rate(); n > 40 {
			t.Errorf("under load: %d in two minutes", n)
		}
		mu.Lock()
		load = 0.5
		mu.Unlock()
		wait(10 * time.Minute)
		if n := rate(); n < 118 || s.Probes()[0].Slowed != "" {
			t.Errorf("after the load: %d in two minutes, %+v", n, s.Probes()[0])
		}
		u.set(func() { u.orders.Regulation = Regulation{Stretch: 10, Why: "the site has much to do"} })
		wait(10 * time.Second)
		if n := rate(); n > 13 || s.Probes()[0].Slowed != "the site has much to do" {
			t.Errorf("slowed by the site: %d in two minutes, %+v", n, s.Probes()[0])
		}
	})
}
