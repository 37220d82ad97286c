package wire

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/monitor"
)

// site remembers what it was told.
type site struct {
	host   string
	report monitor.Report
	change monitor.ProbeChange
	of     monitor.Ref
}

var probe = monitor.SourceProbe{Source: "h1", SeenMS: 7, Status: monitor.Status{
	Probe: monitor.Probe{
		Ref: monitor.Ref{Name: "cpu", VEE: "alpha.x"}, Kind: monitor.VEEKind, Settings: monitor.Settings{On: true, EveryMS: 10_000},
		Fields: monitor.Dictionary{{Name: "vee_cpu_seconds_total", Type: monitor.Counter, Unit: "seconds"}},
	},
	Now: monitor.Settings{On: true, EveryMS: 40_000}, Slowed: "because", Collected: 9, Sent: 8, LastError: "no",
}}

var orders = monitor.Orders{Version: "1", Orders: []monitor.Order{{Ref: probe.Ref, Settings: probe.Now}}, Regulation: monitor.Regulation{Stretch: 4, Why: "much"}}

func (s *site) Report(ctx context.Context, r monitor.Report) (monitor.Orders, error) {
	s.host, s.report = identity.From(ctx).Host, r
	return orders, nil
}

func (s *site) Probes(context.Context) ([]monitor.SourceProbe, error) {
	return []monitor.SourceProbe{probe}, nil
}

func (s *site) SetProbe(_ context.Context, source string, r monitor.Ref, c monitor.ProbeChange) (monitor.SourceProbe, error) {
	if source != "h1" {
		return monitor.SourceProbe{}, fault.New(fault.NotFound, "no source %s", source)
	}
	s.of, s.change = r, c
	return probe, nil
}

// TestThereAndBack sends everything through the client and the server.
func TestThereAndBack(t *testing.T) {
	svc := &site{}
	api := httpapi.NewServer("test", "1", slog.New(slog.DiscardHandler))
	Register(api, svc)
	caller := identity.Caller{Role: identity.HostRole, Host: "h1"}
	srv := httptest.NewServer(api.Handler(func(*http.Request) (identity.Caller, error) { return caller, nil }))
	defer srv.Close()
	c := NewClient(&httpapi.Client{Base: srv.URL, HTTP: srv.Client()})

	r := monitor.Report{Incarnation: "a", Orders: "0", Probes: []monitor.Status{probe.Status}, Lost: map[monitor.Reason]int{monitor.Lost: 3}, Measurements: []monitor.Reported{
		{VEE: "alpha.x", Kind: monitor.KPIKind, AtMS: 5, Values: []monitor.Value{{Field: "queue_size", Labels: `q="a"`, Value: 1.5}}},
	}}
	if got, err := c.Report(t.Context(), r); err != nil || !reflect.DeepEqual(got, orders) {
		t.Errorf("orders %+v, %v", got, err)
	}
	if svc.host != "h1" || !reflect.DeepEqual(svc.report, r) {
		t.Errorf("of %q: %+v", svc.host, svc.report)
	}
	if _, err := c.Probes(t.Context()); !fault.Has(err, fault.Denied) {
		t.Errorf("a host asks for all probes: %v", err)
	}
	caller = identity.Caller{Role: identity.Provider, Customer: "acme"}
	if got, err := c.Probes(t.Context()); err != nil || !reflect.DeepEqual(got, []monitor.SourceProbe{probe}) {
		t.Errorf("probes %+v, %v", got, err)
	}
	off, every := false, int64(5000)
	change := monitor.ProbeChange{On: &off, EveryMS: &every}
	if got, err := c.SetProbe(t.Context(), "h1", probe.Ref, change); err != nil || !reflect.DeepEqual(got, probe) || svc.of != probe.Ref || !reflect.DeepEqual(svc.change, change) {
		t.Errorf("set %+v %+v, %v", svc.of, svc.change, err)
	}
	if _, err := c.SetProbe(t.Context(), "h/2", probe.Ref, change); !fault.Has(err, fault.NotFound) {
		t.Errorf("set of nobody: %v", err)
	}
	if _, err := c.Report(t.Context(), r); !fault.Has(err, fault.Denied) {
		t.Errorf("a provider reports: %v", err)
	}
}
