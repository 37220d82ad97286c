package peer_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/account/settlement"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// echo keeps what it was called with and answers with something of every field.
type echo struct {
	peer.Site // what is tested elsewhere
	calls     []any
}

var (
	at        = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	greeting  = peer.Hello{Site: "alpha", Version: "1.2", Capabilities: []peer.Capability{peer.CanMove}, BundleSequence: 3, Holds: 2, Border: peer.Border{Relay: "r:1", Tunnel: "t:2", Key: "k"}, Received: at, Sent: at}
	agreement = peer.Agreement{Terms: peer.Terms{ID: "alpha.aaaaaaaaaa", Lender: "beta", Borrower: "alpha", From: at, Until: at.AddDate(1, 0, 0), Types: []peer.InstanceType{{Name: "s", VCPUs: 1, Memory: 1}}, Currency: "EUR", Prices: map[billing.Meter]money.Amount{billing.VCPUs: money.Of(1, 3)}}, Signatures: map[string]string{"alpha": "a..b"}}
	end       = peer.End{Agreement: "alpha.aaaaaaaaaa", By: "alpha", At: at, Reason: "done", Signature: "a..b"}
	offer     = peer.Attributes{Site: "beta", At: at, GoodMS: 5, Seq: 6, Characteristics: peer.Characteristics{Hypervisors: []string{"qemu"}, Location: peer.Location{Country: "SE"}}, State: peer.State{Hosts: 2, HeatWanted: 0.5, FreeByType: map[string]int{"s": 1}}}
	page      = peer.Page{Lines: []settlement.Line{{VEE: "alpha.aaaaaaaaaa", Interval: account.Interval{FromMS: 1, ToMS: 2}, OutMS: 1}}, Next: "7", ThroughMS: 5}
)

func (e *echo) got(args ...any) { e.calls = append(e.calls, args...) }

func (e *echo) Hello(_ context.Context, h peer.Hello) (peer.Hello, error) {
	e.got(h)
	return greeting, nil
}
func (e *echo) Bundle(context.Context) (peer.Bundle, error) {
	return peer.Bundle{Site: "beta", Sequence: 4, JWKS: []byte(`{}`)}, nil
}
func (e *echo) Leave(context.Context) error { e.got("leave"); return nil }
func (e *echo) PutAgreement(_ context.Context, a peer.Agreement) (peer.Agreement, error) {
	e.got(a)
	return agreement, nil
}
func (e *echo) EndAgreement(_ context.Context, x peer.End) (peer.Agreement, error) {
	e.got(x)
	return agreement, nil
}
func (e *echo) Attributes(context.Context) (peer.Attributes, error) { return offer, nil }
func (e *echo) WatchAttributes(context.Context) (<-chan peer.Attributes, error) {
	ch := make(chan peer.Attributes, 1)
	ch <- offer
	close(ch)
	return ch, nil
}
func (e *echo) PutNetwork(_ context.Context, n peer.Network) error { e.got(n); return nil }
func (e *echo) RemoveNetwork(_ context.Context, id string) error   { e.got(id); return nil }
func (e *echo) PutMove(_ context.Context, o peer.MoveOrder) (vmi.VEE, error) {
	e.got(o)
	return vmi.VEE{ID: o.VEE}, nil
}
func (e *echo) Lines(_ context.Context, q peer.LinesAsked) (peer.Page, error) {
	e.got(q)
	return page, nil
}
func (e *echo) Measurements(_ context.Context, ids []vee.ID) (<-chan vmi.MonitoringEvent, error) {
	e.got(ids)
	ch := make(chan vmi.MonitoringEvent, 1)
	ch <- vmi.MonitoringEvent{FQN: "a.b", Type: vmi.Agent, Value: 1}
	close(ch)
	return ch, nil
}

func serve(t *testing.T, svc peer.Site, c identity.Caller) (peer.Site, *httptest.Server) {
	t.Helper()
	s := httpapi.NewServer("test", "1", slog.New(slog.DiscardHandler))
	peer.Register(s, svc)
	srv := httptest.NewServer(s.Handler(func(*http.Request) (identity.Caller, error) { return c, nil }))
	t.Cleanup(srv.Close)
	return peer.NewClient(&httpapi.Client{Base: srv.URL, HTTP: srv.Client()}), srv
}

// call every operation once.
func call(ctx context.Context, s peer.Site) (out []any, errs []error) {
	add := func(v any, err error) { out, errs = append(out, v), append(errs, err) }
	h, err := s.Hello(ctx, greeting)
	add(h, err)
	b, err := s.Bundle(ctx)
	add(b, err)
	add(nil, s.Leave(ctx))
	a, err := s.PutAgreement(ctx, agreement)
	add(a, err)
	a, err = s.EndAgreement(ctx, end)
	add(a, err)
	o, err := s.Attributes(ctx)
	add(o, err)
	watch, err := s.WatchAttributes(ctx)
	var told []peer.Attributes
	if err == nil {
		for o := range watch {
			told = append(told, o)
		}
	}
	add(told, err)
	add(nil, s.RemoveNetwork(ctx, "alpha.shop.back"))
	p, err := s.Lines(ctx, peer.LinesAsked{Agreement: "alpha.aaaaaaaaaa", Period: "2026-11", After: "3"})
	add(p, err)
	events, err := s.Measurements(ctx, []vee.ID{"alpha.aaaaaaaaaa", "alpha.aaaaaaaaab"})
	var measured []vmi.MonitoringEvent
	if err == nil {
		for m := range events {
			measured = append(measured, m)
		}
	}
	add(measured, err)
	return out, errs
}

func TestLocalAndRemoteAlike(t *testing.T) {
	local, behind := &echo{}, &echo{}
	remote, _ := serve(t, behind, identity.Caller{Role: identity.Partner, Site: "alpha"})
	want, _ := call(t.Context(), local)
	got, errs := call(t.Context(), remote)
	for i, err := range errs {
		if err != nil || !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("%d: got %+v, %v, want %+v", i, got[i], err, want[i])
		}
	}
	if !reflect.DeepEqual(behind.calls, local.calls) {
		t.Errorf("calls arrived as\n%+v, want\n%+v", behind.calls, local.calls)
	}
}

// TestOnlyPartners: nobody else may say anything, not even the site's own operator.
func TestOnlyPartners(t *testing.T) {
	for _, role := range []identity.Role{identity.Operator, identity.Provider, identity.Auditor, identity.SiteRole, identity.HostRole, identity.PartnerHost, ""} {
		svc := &echo{}
		remote, _ := serve(t, svc, identity.Caller{Role: role, Site: "alpha"})
		_, errs := call(t.Context(), remote)
		for i, err := range errs {
			if !fault.Has(err, fault.Denied) {
				t.Errorf("role %q, call %d: %v", role, i, err)
			}
		}
		if svc.calls != nil {
			t.Errorf("role %q: %v arrived", role, svc.calls)
		}
	}
}

// TestSpeaksForItselfAlone: a site cannot greet in another's name.
func TestSpeaksForItselfAlone(t *testing.T) {
	remote, _ := serve(t, &echo{}, identity.Caller{Role: identity.Partner, Site: "gamma"})
	if _, err := remote.Hello(t.Context(), greeting); !fault.Has(err, fault.Denied) {
		t.Error(err)
	}
}

// TestNewerPeers: a greeting may have words that this version does not know; the terms of an
// agreement may not.
func TestNewerPeers(t *testing.T) {
	_, srv := serve(t, &echo{}, identity.Caller{Role: identity.Partner, Site: "alpha"})
	post := func(method, path, body string) int {
		r, _ := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		resp, err := srv.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := post("POST", "/federation/v1/hello", `{"site":"alpha","capabilities":["place","fly"],"bundleSequence":1,"border":{"relay":"r:1","sail":true},"mood":"good"}`); code != 200 {
		t.Errorf("a newer greeting: %d", code)
	}
	if code := post("PUT", "/federation/v1/agreements/alpha.aaaaaaaaaa", `{"id":"alpha.aaaaaaaaaa","mood":"good"}`); code < 400 || code >= 500 {
		t.Errorf("unknown terms: %d", code)
	}
}

func TestNeeds(t *testing.T) {
	if err := greeting.Needs(peer.CanMove); err != nil {
		t.Error(err)
	}
	if err := greeting.Needs(peer.CanPlace); !fault.Has(err, fault.Unsupported) || !strings.Contains(err.Error(), `"place"`) {
		t.Error(err)
	}
}
