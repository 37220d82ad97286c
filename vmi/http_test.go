package vmi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vmi"
)

const id = vee.ID("alpha.aaaaaaaaaa")

// recorder is a Service that keeps what it was called with and answers with something of
// its own for each method.
type recorder struct {
	vmi.Storage
	calls []any
	err   error
}

func (r *recorder) got(args ...any) error {
	r.calls = append(r.calls, args...)
	return r.err
}

var (
	until   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	someVEE = vmi.VEE{ID: id, Version: 7, State: vee.Active, Target: vee.Paused, Phase: vee.PhaseRunning, Site: "alpha",
		Descriptor: vee.Descriptor{Name: "web-1", VCPUs: 1, Memory: vee.GiB}, Epoch: vee.Epoch{Generation: 1, Term: 2, Hop: 3}, ReservedUntil: &until}
	outcomes  = []vmi.Outcome{{ID: id, OK: true, Detail: "being deployed"}, {ID: id, Code: string(fault.WrongState)}}
	point     = vmi.AccessPoint{Name: "web", GroupID: "acme/shop", Port: 80, Address: "10.0.0.1:20000", Backends: 2}
	someHost  = vmi.Host{Name: "h1", State: vmi.HostDraining, Alive: true, Capacity: vee.Resources{MilliCPU: 4000}}
	placement = []vmi.Placement{{Name: "web-1", Host: "h1", Why: "most room"}}
)

func (r *recorder) InitializeVEEs(_ context.Context, in vmi.Initialize) (vmi.Initialized, error) {
	return vmi.Initialized{VEEs: []vmi.VEE{someVEE}}, r.got(in)
}
func (r *recorder) Plan(_ context.Context, in vmi.Initialize) ([]vmi.Placement, error) {
	return placement, r.got(in)
}
func (r *recorder) SubmitVEEs(_ context.Context, ids []vee.ID) ([]vmi.Outcome, error) {
	return outcomes, r.got(ids)
}
func (r *recorder) UpdateState(_ context.Context, in vmi.UpdateState) ([]vmi.Outcome, error) {
	return outcomes, r.got(in)
}
func (r *recorder) GetVEE(_ context.Context, id vee.ID) (vmi.VEE, error) { return someVEE, r.got(id) }
func (r *recorder) ListVEEs(_ context.Context, f vmi.Filter) ([]vmi.VEE, error) {
	return []vmi.VEE{someVEE}, r.got(f)
}
func (r *recorder) WatchVEEs(ctx context.Context, f vmi.Filter) (<-chan vmi.Change, error) {
	ch := make(chan vmi.Change, 3)
	ch <- vmi.Change{VEE: &someVEE}
	ch <- vmi.Change{Synced: true}
	ch <- vmi.Change{Purged: id}
	close(ch)
	return ch, r.got(f)
}
func (r *recorder) Connect(_ context.Context, id vee.ID, port uint16) (io.ReadWriteCloser, error) {
	return nil, r.got(id, port)
}
func (r *recorder) Capture(_ context.Context, id vee.ID, nic int) (io.ReadWriteCloser, error) {
	return nil, r.got(id, nic)
}
func (r *recorder) Console(_ context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	if err := r.got(id); err != nil {
		return nil, err
	}
	a, b := net.Pipe()
	go func() {
		defer b.Close()
		buf := make([]byte, 64)
		n, _ := b.Read(buf)
		fmt.Fprintf(b, "echo %s", buf[:n])
	}()
	return a, nil
}
func (r *recorder) Tell(_ context.Context, id vee.ID, c guest.Command) (guest.Reply, error) {
	return guest.Reply{Type: "reply", ID: c.ID, OK: true}, r.got(id, c)
}
func (r *recorder) PutAccessPoint(_ context.Context, a vmi.AccessPoint) (vmi.AccessPoint, error) {
	return point, r.got(a)
}
func (r *recorder) DeleteAccessPoint(_ context.Context, group, name string) error {
	return r.got(group, name)
}
func (r *recorder) ListAccessPoints(_ context.Context, group string) ([]vmi.AccessPoint, error) {
	return []vmi.AccessPoint{point}, r.got(group)
}
func (r *recorder) ListHosts(context.Context) ([]vmi.Host, error) {
	return []vmi.Host{someHost}, r.got()
}
func (r *recorder) GetHost(_ context.Context, name string) (vmi.Host, error) {
	return someHost, r.got(name)
}
func (r *recorder) SetHostState(_ context.Context, name string, s vmi.HostState) (vmi.Host, error) {
	return someHost, r.got(name, s)
}
func (r *recorder) RemoveHost(_ context.Context, name string) error { return r.got(name) }

// serve puts svc behind HTTP for callers of the given role.
func serve(t *testing.T, svc vmi.Service, role identity.Role) (vmi.Service, *httptest.Server) {
	t.Helper()
	s := httpapi.NewServer("test", "1", slog.New(slog.DiscardHandler))
	vmi.Register(s, svc)
	srv := httptest.NewServer(s.Handler(func(r *http.Request) (identity.Caller, error) {
		return identity.Caller{ID: "test", Role: role}, nil
	}))
	t.Cleanup(srv.Close)
	return vmi.NewClient(&httpapi.Client{Base: srv.URL, HTTP: srv.Client()}), srv
}

// call runs every method that answers once, in a fixed order, and returns its results.
func call(ctx context.Context, s vmi.Service) (results []any, errs []error) {
	init := vmi.Initialize{Model: vmi.TwoPhase, HoldMS: 1000, IdempotencyKey: "k1",
		VEEs:  []vmi.InitializeVEE{{Descriptor: someVEE.Descriptor, Count: 2}},
		Rules: []vmi.PlacementRule{{Kind: "anti-affinity", Scope: "host", Tag: "web", Soft: true}}}
	add := func(v any, err error) { results, errs = append(results, v), append(errs, err) }
	v1, err := s.InitializeVEEs(ctx, init)
	add(v1, err)
	init.IdempotencyKey = ""
	v2, err := s.Plan(ctx, init)
	add(v2, err)
	v3, err := s.SubmitVEEs(ctx, []vee.ID{id})
	add(v3, err)
	v4, err := s.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}, Ordered: true}, Action: vee.Suspend, Wait: true, IdempotencyKey: "k2"})
	add(v4, err)
	v5, err := s.GetVEE(ctx, id)
	add(v5, err)
	v6, err := s.ListVEEs(ctx, vmi.Filter{Customer: "acme", GroupID: "g/1 &", Host: "h1", State: vee.Active, Destroyed: true})
	add(v6, err)
	v7, err := s.Tell(ctx, id, guest.Command{Type: "burn-cpu", ID: "x", Seconds: 1.5, Amount: 2})
	add(v7, err)
	v8, err := s.PutAccessPoint(ctx, point)
	add(v8, err)
	add(nil, s.DeleteAccessPoint(ctx, "acme/shop", "web"))
	v10, err := s.ListAccessPoints(ctx, "acme/shop")
	add(v10, err)
	v11, err := s.ListHosts(ctx)
	add(v11, err)
	v12, err := s.GetHost(ctx, "h1")
	add(v12, err)
	v13, err := s.SetHostState(ctx, "h1", vmi.HostDraining)
	add(v13, err)
	add(nil, s.RemoveHost(ctx, "h1"))
	return results, errs
}

// TestLocalAndRemoteAlike calls every method on a service and on the same one behind HTTP:
// it must be called alike and answer alike.
func TestLocalAndRemoteAlike(t *testing.T) {
	local, behind := &recorder{}, &recorder{}
	remote, _ := serve(t, behind, identity.Operator)
	want, _ := call(t.Context(), local)
	got, errs := call(t.Context(), remote)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("result %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
	if !reflect.DeepEqual(behind.calls, local.calls) {
		t.Errorf("calls arrived as\n%+v, want\n%+v", behind.calls, local.calls)
	}
}

func TestFaultsArrive(t *testing.T) {
	remote, _ := serve(t, &recorder{err: fault.New(fault.NoResources, "place 3 VEEs: no room").Try("add a host")}, identity.SiteRole)
	_, errs := call(t.Context(), remote)
	for i, err := range errs {
		f := fault.From(err)
		if f.Code != fault.NoResources || f.Message != "place 3 VEEs: no room" || f.NextStep() != "add a host" {
			t.Errorf("error %d: %+v", i, f)
		}
	}
	if _, err := remote.Console(t.Context(), id); !fault.Has(err, fault.NoResources) {
		t.Errorf("console: %v", err)
	}
}

func TestWatch(t *testing.T) {
	remote, _ := serve(t, &recorder{}, identity.Auditor)
	ch, err := remote.WatchVEEs(t.Context(), vmi.Filter{GroupID: "g"})
	if err != nil {
		t.Fatal(err)
	}
	var got []vmi.Change
	for c := range ch {
		got = append(got, c)
	}
	if len(got) != 3 || got[0].VEE.ID != id || !got[1].Synced || got[2].Purged != id {
		t.Errorf("got %+v", got)
	}
}

func TestConsole(t *testing.T) {
	remote, srv := serve(t, &recorder{}, identity.Provider)
	c, err := remote.Console(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); string(b) != "echo hello" {
		t.Errorf("console said %q, %v", b, err)
	}
	resp, err := srv.Client().Get(srv.URL + "/vmi/v1/vees/" + string(id) + "/console")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 400 || !strings.Contains(string(b), "reservoir vee console") {
		t.Errorf("without an upgrade: %s %s", resp.Status, b)
	}
}

// TestRoles is the table of who may do what, by the order of call.
func TestRoles(t *testing.T) {
	const methods = 14
	may := map[identity.Role]string{
		identity.Operator: "xxxxxxxxxxxxxx",
		identity.SiteRole: "xxxxxxxxxxxxxx",
		identity.Provider: "xxxxxxxxxx....",
		identity.Auditor:  ".x..xx...xxx..",
		identity.Partner:  "x..xxxxxx.....",
		identity.HostRole: "..............",
		"":                "..............",
		"admin":           "..............",
	}
	for role, want := range may {
		remote, _ := serve(t, &recorder{}, role)
		_, errs := call(t.Context(), remote)
		var got strings.Builder
		for _, err := range errs {
			switch {
			case err == nil:
				got.WriteByte('x')
			case fault.Has(err, fault.Denied):
				got.WriteByte('.')
			default:
				t.Errorf("role %q: %v", role, err)
			}
		}
		if got.String() != want || len(want) != methods {
			t.Errorf("role %q may\n%s, want\n%s", role, got.String(), want)
		}
		_, err := remote.Console(t.Context(), id)
		if may := want[0] == 'x'; may != (err == nil) {
			t.Errorf("role %q: console: %v", role, err)
		}
	}
}

func TestMalformedInput(t *testing.T) {
	svc := &recorder{}
	remote, srv := serve(t, svc, identity.Operator)
	for _, c := range []struct{ method, path, body, want string }{
		{"POST", "/vmi/v1/vees", `{"model":"THREEPHASE","vees":[{"descriptor":{"name":"a","vcpus":1,"memoryBytes":1}}]}`, "model"},
		{"POST", "/vmi/v1/vees", `{"model":"TWOPHASE","vees":[]}`, "vees"},
		{"POST", "/vmi/v1/vees", `{"model":`, ""},
		{"POST", "/vmi/v1/state", `{"ids":["` + string(id) + `"],"action":"EXPLODE"}`, "action"},
		{"PUT", "/vmi/v1/groups/g/access-points/web", `{"name":"other","groupID":"g","port":80,"backends":0}`, "other"},
		{"PUT", "/vmi/v1/groups/g/access-points/web", `{"name":"web","groupID":"g","port":70000,"backends":0}`, "port"},
		{"PUT", "/vmi/v1/hosts/h1/state", `{"state":"broken"}`, "state"},
		{"GET", "/vmi/v1/vees/nonsense", "", "nonsense"},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), c.method, srv.URL+c.path, strings.NewReader(c.body))
		req.Header.Set("Content-Type", "application/json")
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode < 400 || resp.StatusCode >= 500 || !strings.Contains(string(b), c.want) || !strings.Contains(string(b), `"code":"malformed"`) {
			t.Errorf("%s %s %s: %s\n%s", c.method, c.path, c.body, resp.Status, b)
		}
	}
	if _, err := remote.Console(t.Context(), "nonsense"); !fault.Has(err, fault.Malformed) {
		t.Errorf("console of nonsense: %v", err)
	}
	if len(svc.calls) != 0 {
		t.Errorf("malformed calls went through: %+v", svc.calls)
	}
}
