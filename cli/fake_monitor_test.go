package cli

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/promapi"
	"github.com/reservoir-cloud/reservoir/monitor/wire"
)

// fakeMonitoring has two probes and two replicas with queues.
type fakeMonitoring struct {
	*fake
	probes []monitor.SourceProbe
}

func registerFakeMonitoring(s *httpapi.Server, f *fake) {
	cpu := monitor.Probe{
		Ref: monitor.Ref{Name: "cpu"}, Kind: monitor.HostKind, Settings: monitor.Settings{On: true, EveryMS: 10_000},
		Fields: monitor.Dictionary{
			{Name: "host_cpu_seconds_total", Type: monitor.Counter, Unit: "seconds", Help: "busy, of all CPUs"}, {Name: "host_load", Type: monitor.Gauge},
		},
	}
	kpi := monitor.Probe{Ref: monitor.Ref{Name: "kpi", VEE: "alpha.aaaaaaaaaa"}, Kind: monitor.KPIKind, Settings: monitor.Settings{On: true}}
	seen := f.ago(3*time.Second - time.Hour).UnixMilli() // as round as the other ages
	m := &fakeMonitoring{fake: f, probes: []monitor.SourceProbe{
		{Source: "h1", SeenMS: seen, Status: monitor.Status{Probe: cpu, Now: cpu.Settings, Collected: 40, Sent: 38, LastMS: f.ago(-time.Hour).UnixMilli()}},
		{Source: "h1", SeenMS: seen, Status: monitor.Status{Probe: kpi, Now: kpi.Settings, LastError: "no agent answers in the guest"}},
	}}
	wire.Register(s, m)
	s.HandleStock(promapi.Prefix+"/", promapi.Handler(m, func(context.Context) (monitor.Scope, error) { return monitor.Scope{}, nil }, time.Now))
}

func (m *fakeMonitoring) Report(context.Context, monitor.Report) (monitor.Orders, error) {
	return monitor.Orders{}, fault.New(fault.Denied, "this is no host")
}

func (m *fakeMonitoring) Probes(context.Context) ([]monitor.SourceProbe, error) {
	return m.probes, nil
}

func (m *fakeMonitoring) SetProbe(_ context.Context, source string, r monitor.Ref, c monitor.ProbeChange) (monitor.SourceProbe, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.probes {
		if p.Source == source && p.Ref == r {
			s, err := c.Apply(p.Settings)
			p.Ordered = &s
			return p, err
		}
	}
	return monitor.SourceProbe{}, notThere("probe", r.String())
}

func (m *fakeMonitoring) LabelNames(context.Context, monitor.Selection) ([]string, bool, error) {
	return nil, false, nil
}

func (m *fakeMonitoring) LabelValues(context.Context, string, monitor.Selection) ([]string, bool, error) {
	return nil, false, nil
}

func (m *fakeMonitoring) Series(context.Context, monitor.Selection) ([]map[string]string, bool, error) {
	return nil, false, nil
}

func (m *fakeMonitoring) Querier(monitor.Scope) monitor.Querier { return m }

func (m *fakeMonitoring) Query(_ context.Context, expr string, at time.Time) ([]monitor.Series, error) {
	return m.ask(expr, at, at, time.Second)
}

func (m *fakeMonitoring) QueryRange(_ context.Context, expr string, from, to time.Time, step time.Duration) ([]monitor.Series, error) {
	return m.ask(expr, from, to, step)
}

// ask knows queues that grow by a job every minute, the second one from half the time on.
func (m *fakeMonitoring) ask(expr string, from, to time.Time, step time.Duration) ([]monitor.Series, error) {
	switch expr {
	case "nothing":
		return nil, nil
	case "queue_size":
	case `count by (__name__) ({__name__!=""})`:
		return []monitor.Series{{Labels: map[string]string{"__name__": "queue_size"}, Points: []monitor.Point{{At: to, Value: 2}}}}, nil
	default:
		return nil, fault.New(fault.Malformed, "query %q: 1:1: parse error", expr)
	}
	queue := func(replica string, from time.Time) monitor.Series {
		s := monitor.Series{Labels: map[string]string{"__name__": "queue_size", "customer": "acme", "service": "web", "component": "web", "replica": replica, "site": "alpha", "vee": "alpha." + replica}}
		for t := from; !t.After(to); t = t.Add(step) {
			s.Points = append(s.Points, monitor.Point{At: t, Value: 3 + t.Sub(from).Minutes()})
		}
		return s
	}
	return []monitor.Series{queue("0", from), queue("1", from.Add(to.Sub(from)/2))}, nil
}
