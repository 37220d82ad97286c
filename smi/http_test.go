package smi_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// recorder is a Manager that keeps what it was called with and answers with something of
// its own for each method.
type recorder struct {
	calls []any
	err   error
}

func (r *recorder) got(args ...any) error {
	r.calls = append(r.calls, args...)
	return r.err
}

var (
	at      = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	service = smi.Service{
		Name: "shop", Customer: "acme", ID: "alpha.s-aaaaaaaaaa", Version: 7, Revision: 2, Phase: smi.Deploying, Message: "web waits for db to be ready",
		Components: []smi.Component{{
			Name: "web", Min: 1, Max: 6, Desired: 2, Ready: 1, Order: 2, Waiting: "db to be ready",
			Replicas: []smi.Replica{{Number: 1, VEE: "alpha.aaaaaaaaaa", State: vee.Active, Phase: vee.PhaseProlog, Progress: &vee.Progress{Done: 1, Total: 2, Unit: "bytes"}, Revision: 2}},
		}},
		URLs: []smi.URL{{Component: "web", URL: "http://192.0.2.1:20000", Backends: 1}}, Created: at, Changed: at, NotInEffect: []string{"KPI load"},
	}
	plan  = smi.Plan{Name: "shop", Feasible: true, Steps: []smi.PlanStep{{Action: "create", Object: "vee web-1", Component: "web", Order: 2, Where: "h1", Why: "most room", Size: "1 vCPU, 128MiB"}}}
	usage = smi.ServiceUsage{Customer: "acme", Service: "shop", Total: account.Usage{ActiveMS: 5}, VEEs: []smi.VEEUsage{{
		VEE: "alpha.aaaaaaaaaa", Name: "web-1", From: at, Through: at.Add(5 * time.Millisecond), Ended: true,
		Intervals: account.Series{{FromMS: 1, ToMS: 6, Used: account.Usage{ActiveMS: 5}}}}}}
	ev = smi.Event{Seq: 3, At: at, Type: "warning", Reason: "NoResources", Object: "service/shop", Customer: "acme", Service: "shop", Message: "no room"}
)

func (r *recorder) Plan(_ context.Context, d smi.Deploy) (smi.Plan, error) { return plan, r.got(d) }
func (r *recorder) Deploy(_ context.Context, d smi.Deploy) (smi.Service, error) {
	return service, r.got(d)
}
func (r *recorder) Scale(_ context.Context, customer, name, component string, n int) (smi.Service, error) {
	return service, r.got(customer, name, component, n)
}
func (r *recorder) Get(_ context.Context, customer, name string) (smi.Service, error) {
	return service, r.got(customer, name)
}
func (r *recorder) List(_ context.Context, customer string) ([]smi.Service, error) {
	return []smi.Service{service}, r.got(customer)
}
func (r *recorder) Manifest(_ context.Context, customer, name string) (string, error) {
	return "service: shop\n", r.got(customer, name)
}
func (r *recorder) Usage(_ context.Context, customer, name string) (smi.ServiceUsage, error) {
	return usage, r.got(customer, name)
}
func (r *recorder) Delete(_ context.Context, customer, name string) error {
	return r.got(customer, name)
}
func (r *recorder) Sleep(_ context.Context, customer, name string) (smi.Service, error) {
	return service, r.got(customer, name)
}
func (r *recorder) Wake(_ context.Context, customer, name string) (smi.Service, error) {
	return service, r.got("wake", customer, name)
}
func (r *recorder) Watch(_ context.Context, customer, name string) (<-chan smi.Service, error) {
	return sent(service, smi.Service{Name: "shop", Customer: "acme", Phase: smi.Deleting, Created: at, Changed: at}), r.got(customer, name)
}
func (r *recorder) Events(_ context.Context, f smi.EventFilter) ([]smi.Event, error) {
	return nil, r.got(f)
}
func (r *recorder) WatchEvents(_ context.Context, f smi.EventFilter) (<-chan smi.Event, error) {
	return sent(ev, ev), r.got(f)
}

func sent[T any](list ...T) <-chan T {
	ch := make(chan T, len(list))
	for _, v := range list {
		ch <- v
	}
	close(ch)
	return ch
}

// serve r to a caller with a role and return its client.
func serve(t *testing.T, r smi.Manager, role identity.Role) smi.Manager {
	t.Helper()
	s := httpapi.NewServer("test", "1", slog.New(slog.DiscardHandler))
	smi.Register(s, r)
	web := httptest.NewServer(s.Handler(func(*http.Request) (identity.Caller, error) {
		return identity.Caller{ID: "test", Role: role, Customer: "acme"}, nil
	}))
	t.Cleanup(web.Close)
	return smi.NewClient(&httpapi.Client{Base: web.URL, HTTP: web.Client()})
}

// drain a watch.
func drain[T any](ch <-chan T, err error) ([]T, error) {
	if err != nil {
		return nil, err
	}
	var list []T
	for v := range ch {
		list = append(list, v)
	}
	return list, nil
}

func TestRoundTrip(t *testing.T) {
	ctx := t.Context()
	d := smi.Deploy{Name: "shop", Customer: "acme", Manifest: "<Envelope/>", File: "x.ovf", Images: map[string]string{"a": "b"}, Replace: true, BestEffort: true}
	keyed := d
	keyed.IdempotencyKey = "key 1"
	filter := smi.EventFilter{Customer: "acme", Object: "service/shop", Service: "shop", Since: 9, Limit: 5}
	for name, c := range map[string]struct {
		call func(smi.Manager) (any, error)
		args []any
		want any
	}{
		"Plan":     {func(m smi.Manager) (any, error) { return m.Plan(ctx, d) }, []any{d}, plan},
		"Deploy":   {func(m smi.Manager) (any, error) { return m.Deploy(ctx, keyed) }, []any{keyed}, service},
		"Scale":    {func(m smi.Manager) (any, error) { return m.Scale(ctx, "acme", "shop", "web", 0) }, []any{"acme", "shop", "web", 0}, service},
		"Get":      {func(m smi.Manager) (any, error) { return m.Get(ctx, "", "shop") }, []any{"", "shop"}, service},
		"List":     {func(m smi.Manager) (any, error) { return m.List(ctx, "acme") }, []any{"acme"}, []smi.Service{service}},
		"Manifest": {func(m smi.Manager) (any, error) { return m.Manifest(ctx, "acme", "shop") }, []any{"acme", "shop"}, "service: shop\n"},
		"Delete":   {func(m smi.Manager) (any, error) { return nil, m.Delete(ctx, "acme", "shop") }, []any{"acme", "shop"}, nil},
		"Sleep":    {func(m smi.Manager) (any, error) { return m.Sleep(ctx, "acme", "shop") }, []any{"acme", "shop"}, service},
		"Wake":     {func(m smi.Manager) (any, error) { return m.Wake(ctx, "acme", "shop") }, []any{"wake", "acme", "shop"}, service},
		"Watch": {func(m smi.Manager) (any, error) { return drain(m.Watch(ctx, "acme", "shop")) }, []any{"acme", "shop"},
			[]smi.Service{service, {Name: "shop", Customer: "acme", Phase: smi.Deleting, Created: at, Changed: at}}},
		"Events":      {func(m smi.Manager) (any, error) { return m.Events(ctx, filter) }, []any{filter}, []smi.Event{}},
		"WatchEvents": {func(m smi.Manager) (any, error) { return drain(m.WatchEvents(ctx, smi.EventFilter{})) }, []any{smi.EventFilter{}}, []smi.Event{ev, ev}},
	} {
		t.Run(name, func(t *testing.T) {
			r := &recorder{}
			m := serve(t, r, identity.Provider)
			got, err := c.call(m)
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("answer: %v, %+v\nwant %+v", err, got, c.want)
			}
			if !reflect.DeepEqual(r.calls, c.args) {
				t.Errorf("called with %+v\nwant %+v", r.calls, c.args)
			}
			r.err = fault.New(fault.NotFound, "service shop does not exist").Try("look again")
			_, err = c.call(m)
			var f *fault.Error
			if !errors.As(err, &f) || f.Code != fault.NotFound || f.Message != "service shop does not exist" || f.Next != "look again" {
				t.Errorf("error came as %+v", err)
			}
		})
	}
}

func TestRoles(t *testing.T) {
	ctx := t.Context()
	reads := map[string]func(smi.Manager) error{
		"get":    func(m smi.Manager) error { _, err := m.Get(ctx, "", "shop"); return err },
		"list":   func(m smi.Manager) error { _, err := m.List(ctx, ""); return err },
		"watch":  func(m smi.Manager) error { _, err := m.Watch(ctx, "", ""); return err },
		"events": func(m smi.Manager) error { _, err := m.Events(ctx, smi.EventFilter{}); return err },
	}
	writes := map[string]func(smi.Manager) error{
		"deploy": func(m smi.Manager) error { _, err := m.Deploy(ctx, smi.Deploy{}); return err },
		"plan":   func(m smi.Manager) error { _, err := m.Plan(ctx, smi.Deploy{}); return err },
		"scale":  func(m smi.Manager) error { _, err := m.Scale(ctx, "", "shop", "web", 1); return err },
		"delete": func(m smi.Manager) error { return m.Delete(ctx, "", "shop") },
		"sleep":  func(m smi.Manager) error { _, err := m.Sleep(ctx, "", "shop"); return err },
		"wake":   func(m smi.Manager) error { _, err := m.Wake(ctx, "", "shop"); return err },
	}
	for _, c := range []struct {
		role        identity.Role
		read, write bool
	}{
		{identity.Operator, true, true}, {identity.Provider, true, true}, {identity.SiteRole, true, true},
		{identity.Auditor, true, false}, {identity.Partner, false, false}, {identity.HostRole, false, false}, {"", false, false},
	} {
		m := serve(t, &recorder{}, c.role)
		check := func(calls map[string]func(smi.Manager) error, allowed bool) {
			for name, call := range calls {
				if err := call(m); allowed && err != nil || !allowed && !fault.Has(err, fault.Denied) {
					t.Errorf("%s as %q: %v", name, c.role, err)
				}
			}
		}
		check(reads, c.read)
		check(writes, c.write)
	}
}

func TestMalformedRequests(t *testing.T) {
	r := &recorder{}
	m := serve(t, r, identity.Operator)
	_, err := m.Scale(t.Context(), "", "shop", "web", -1)
	if !fault.Has(err, fault.Malformed) || !strings.Contains(err.Error(), "replicas") {
		t.Errorf("negative replicas: %v", err)
	}
	if _, err = m.Events(t.Context(), smi.EventFilter{Limit: 10_001}); !fault.Has(err, fault.Malformed) {
		t.Errorf("too many events: %v", err)
	}
	if len(r.calls) > 0 {
		t.Errorf("the manager was called: %v", r.calls)
	}
}
