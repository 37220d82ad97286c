package hub

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/vee"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// stage is a hub over what a site would be: who has which VEE, and what is kept.
type stage struct {
	mu       sync.Mutex
	host     map[vee.ID]string // where VEEs are; those not in it are gone
	customer map[vee.ID]string
	stored   []monitor.Measurement
	ended    []monitor.Subject
	kept     map[string]KeptOrder
	now      time.Time
}

func newStage() *stage {
	return &stage{now: start, kept: map[string]KeptOrder{},
		host:     map[vee.ID]string{"alpha.a": "h1", "alpha.b": "h2", "alpha.c": "h1"},
		customer: map[vee.ID]string{"alpha.a": "acme", "alpha.b": "acme", "alpha.c": "rival"}}
}

func (s *stage) Append(_ context.Context, ms []monitor.Measurement) (r monitor.Receipt, err error) {
	s.stored = append(s.stored, ms...)
	for _, m := range ms {
		r.Stored += len(m.Values)
	}
	return r, nil
}

func (s *stage) End(_ context.Context, of monitor.Subject, _ time.Time) error {
	s.ended = append(s.ended, of)
	return nil
}

func (s *stage) Values(context.Context, string) ([]KeptOrder, error) {
	return slices.Collect(maps.Values(s.kept)), nil
}

func (s *stage) Put(_ context.Context, key string, o KeptOrder) (uint64, error) {
	s.kept[key] = o
	return 1, nil
}

func (s *stage) Delete(_ context.Context, key string, _ uint64) error {
	delete(s.kept, key)
	return nil
}

func (s *stage) whose(id vee.ID) (monitor.Subject, bool) {
	_, there := s.host[id]
	return monitor.VEESubject("alpha", id, s.customer[id], "group", ""), there
}

func (s *stage) hub(t *testing.T, limits monitor.Limits) *Hub {
	t.Helper()
	h, err := New(t.Context(), Config{Site: "alpha", Sink: s, Keeper: s, Limits: limits, Whose: s.whose, Log: slog.New(slog.DiscardHandler),
		Owner: func(host string, id vee.ID) (monitor.Subject, bool) {
			of, _ := s.whose(id)
			return of, s.host[id] == host
		},
		Now: func() time.Time { s.mu.Lock(); defer s.mu.Unlock(); return s.now }})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func as(t *testing.T, c identity.Caller) context.Context { return identity.With(t.Context(), c) }

func host(name string) identity.Caller { return identity.Caller{Role: identity.HostRole, Host: name} }

func report(t *testing.T, h *Hub, from string, r monitor.Report) monitor.Orders {
	t.Helper()
	o, err := h.Report(as(t, host(from)), r)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func of(id vee.ID, kind monitor.Kind, field string) monitor.Reported {
	return monitor.Reported{VEE: id, Kind: kind, AtMS: start.UnixMilli(), Values: []monitor.Value{{Field: field, Value: 1}}}
}

// TestWhose: a host is believed about itself and the VEEs that are on it, and about nothing
// else; what its guests say is under their own names.
func TestWhose(t *testing.T) {
	s := newStage()
	h := s.hub(t, monitor.Limits{})
	report(t, h, "h1", monitor.Report{Lost: map[monitor.Reason]int{monitor.Lost: 5, monitor.Late: -3}, Measurements: []monitor.Reported{
		of("", monitor.HostKind, "host_load"), of("alpha.a", monitor.VEEKind, "vee_cpu"), of("alpha.a", monitor.KPIKind, "queue_size"), of("alpha.c", monitor.KPIKind, "queue_size"),
		of("alpha.b", monitor.KPIKind, "queue_size"),   // is at h2
		of("alpha.x", monitor.VEEKind, "vee_cpu"),      // is nowhere
		of("alpha.a", monitor.HostKind, "host_load"),   // is no host
		of("", monitor.KPIKind, "queue_size"),          // nobody's
		of("alpha.a", monitor.DerivedKind, "ratio"),    // not a host's to say
		of("alpha.a", monitor.SiteKind, "site_series"), // nor this
	}})
	var got []string
	for _, m := range s.stored {
		got = append(got, m.Subject.Customer+m.Subject.Host+"/"+string(m.Subject.VEE)+"/"+m.Values[0].Field)
	}
	want := []string{"h1//host_load", "acme/alpha.a/vee_cpu", "acme/alpha.a/queue_size", "rival/alpha.c/queue_size"}
	if !slices.Equal(got, want) {
		t.Errorf("stored %v", got)
	}
	if total := h.Total(); total.Stored != 4 || total.Refused[monitor.Foreign] != 6 || total.Refused[monitor.Lost] != 5 || total.Refused[monitor.Late] != 0 {
		t.Errorf("total %+v", total)
	}
	for _, c := range []identity.Caller{{}, {Role: identity.Operator}, {Role: identity.Provider, Customer: "acme"}} {
		if _, err := h.Report(as(t, c), monitor.Report{}); !fault.Has(err, fault.Denied) {
			t.Errorf("%+v reports: %v", c, err)
		}
	}
}

func probes() []monitor.Status {
	var all []monitor.Status
	for _, ref := range []monitor.Ref{{Name: "cpu"}, {Name: "cpu", VEE: "alpha.a"}, {Name: "cpu", VEE: "alpha.c"}} {
		p := monitor.Probe{Ref: ref, Kind: monitor.VEEKind, Settings: monitor.Settings{On: true, EveryMS: 10_000}, Fields: monitor.Dictionary{{Name: "vee_cpu", Type: monitor.Counter}}}
		all = append(all, monitor.Status{Probe: p, Now: p.Settings})
	}
	return all
}

// TestOrders: what is ordered gets to the source with its next answer, once; it outlives both
// processes, goes with a VEE that moves, and is forgotten with one that is gone.
func TestOrders(t *testing.T) {
	s := newStage()
	h := s.hub(t, monitor.Limits{})
	operator := as(t, identity.Caller{Role: identity.Operator})
	first := report(t, h, "h1", monitor.Report{Incarnation: "1", Probes: probes()})
	if !first.Tell || len(first.Orders) > 0 {
		t.Errorf("first answer %+v", first)
	}
	if again := report(t, h, "h1", monitor.Report{Incarnation: "1", Orders: first.Version}); again.Tell || !again.Same {
		t.Errorf("nothing is new: %+v", again)
	}
	every := int64(2000)
	got, err := h.SetProbe(operator, "h1", monitor.Ref{Name: "cpu", VEE: "alpha.a"}, monitor.ProbeChange{EveryMS: &every})
	if err != nil || got.Ordered == nil || got.Ordered.EveryMS != 2000 || !got.Ordered.On {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := h.SetProbe(operator, "h1", monitor.Ref{Name: "cpu"}, monitor.ProbeChange{On: new(false)}); err != nil {
		t.Fatal(err)
	}
	o := report(t, h, "h1", monitor.Report{Incarnation: "1", Orders: first.Version})
	if len(o.Orders) != 2 || o.Orders[0].VEE != "" || o.Orders[0].Settings.On || o.Orders[1].Settings.EveryMS != 2000 {
		t.Errorf("orders %+v", o)
	}
	h = s.hub(t, monitor.Limits{}) // the site is started again
	if o2 := report(t, h, "h1", monitor.Report{Incarnation: "1", Orders: o.Version}); !o2.Same || !o2.Tell {
		t.Errorf("after a restart of the site: %+v", o2)
	}
	if o3 := report(t, h, "h1", monitor.Report{Incarnation: "2"}); len(o3.Orders) != 2 {
		t.Errorf("after a restart of the host: %+v", o3)
	}
	s.host["alpha.a"] = "h2"
	if o := report(t, h, "h2", monitor.Report{Incarnation: "1"}); len(o.Orders) != 1 || o.Orders[0].VEE != "alpha.a" {
		t.Errorf("the VEE has moved: %+v", o)
	}
	if o := report(t, h, "h1", monitor.Report{Incarnation: "2", Probes: probes()[:1]}); len(o.Orders) != 1 || o.Orders[0].VEE != "" {
		t.Errorf("where it has left: %+v", o)
	}
	delete(s.host, "alpha.a")
	if _, err := h.SetProbe(operator, "h1", monitor.Ref{Name: "cpu"}, monitor.ProbeChange{On: new(true)}); err != nil || len(s.kept) != 1 {
		t.Errorf("kept %v, %v", s.kept, err)
	}
}

// TestProbesIsolated: a provider sees and sets the probes of its own VEEs.
func TestProbesIsolated(t *testing.T) {
	s := newStage()
	h := s.hub(t, monitor.Limits{})
	report(t, h, "h1", monitor.Report{Incarnation: "1", Probes: probes()})
	for _, c := range []struct {
		caller identity.Caller
		want   []string
	}{
		{identity.Caller{Role: identity.Operator}, []string{"h1/cpu", "h1/cpu@alpha.a", "h1/cpu@alpha.c"}},
		{identity.Caller{Role: identity.Provider, Customer: "acme"}, []string{"h1/cpu@alpha.a"}},
		{identity.Caller{Role: identity.Provider, Customer: "rival"}, []string{"h1/cpu@alpha.c"}},
		{identity.Caller{Role: identity.Provider, Customer: "other"}, nil},
		{identity.Caller{}, nil},
	} {
		all, err := h.Probes(as(t, c.caller))
		var got []string
		for _, p := range all {
			got = append(got, p.ID())
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%+v sees %v, %v", c.caller, got, err)
		}
		_, err = h.SetProbe(as(t, c.caller), "h1", monitor.Ref{Name: "cpu", VEE: "alpha.c"}, monitor.ProbeChange{On: new(true)})
		if may := slices.Contains(c.want, "h1/cpu@alpha.c"); may != (err == nil) || err != nil && !fault.Has(err, fault.NotFound) {
			t.Errorf("%+v sets the probe of rival: %v", c.caller, err)
		}
	}
	report(t, h, "h1", monitor.Report{Incarnation: "1", Gone: []monitor.Ref{{Name: "cpu"}}})
	if all, _ := h.Probes(as(t, identity.Caller{Role: identity.Operator})); len(all) != 2 {
		t.Errorf("one is gone: %d are left", len(all))
	}
	if _, err := h.SetProbe(as(t, identity.Caller{Role: identity.Operator}), "h1", monitor.Ref{Name: "cpu", VEE: "alpha.a"}, monitor.ProbeChange{EveryMS: new(int64(1))}); !fault.Has(err, fault.Malformed) {
		t.Errorf("every millisecond: %v", err)
	}
}

// TestEnded: the series of a VEE that is gone are ended, once; those of one that moved go on.
func TestEnded(t *testing.T) {
	s := newStage()
	h := s.hub(t, monitor.Limits{})
	report(t, h, "h1", monitor.Report{Measurements: []monitor.Reported{of("alpha.a", monitor.KPIKind, "x"), of("alpha.c", monitor.KPIKind, "x")}})
	s.host["alpha.a"] = "h2"
	delete(s.host, "alpha.c")
	h.end(t.Context())
	h.end(t.Context())
	if len(s.ended) != 1 || s.ended[0].VEE != "alpha.c" {
		t.Errorf("ended %+v", s.ended)
	}
}

// TestFlood: more than the site wants to take slows all sources down, and they are told why.
func TestFlood(t *testing.T) {
	s := newStage()
	h := s.hub(t, monitor.Limits{ValuesPerSecond: 10})
	for range 300 {
		report(t, h, "h1", monitor.Report{Measurements: []monitor.Reported{of("", monitor.HostKind, "host_load")}})
	}
	s.mu.Lock()
	s.now = s.now.Add(10 * time.Second)
	s.mu.Unlock()
	h.regulate(h.cfg.Now())
	if o := report(t, h, "h2", monitor.Report{}); o.Regulation.Stretch != 3 || o.Regulation.Why == "" {
		t.Errorf("%+v", o.Regulation)
	}
	for range 9 {
		s.mu.Lock()
		s.now = s.now.Add(10 * time.Second)
		s.mu.Unlock()
		h.regulate(h.cfg.Now())
	}
	if o := report(t, h, "h2", monitor.Report{}); o.Regulation != (monitor.Regulation{}) {
		t.Errorf("after 90 calm seconds: %+v", o.Regulation)
	}
}
