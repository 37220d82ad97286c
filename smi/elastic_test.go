package smi_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/smi"
)

// scaled is an Elasticity that keeps what it was called with.
type scaled struct{ recorder }

var (
	load  = 2.5
	ruled = smi.Rules{Service: "shop", Customer: "acme", KPIs: []smi.KPI{{Name: "load", Query: "sum(load)", Value: &load, At: at}, {Name: "queue", Query: "queue", Problem: "3 series"}},
		Components: []smi.ElasticComponent{{Name: "web", Desired: 2, Ready: 1, Min: 1, Max: 4, By: "the manifest", Now: "stays at 2", Looked: at,
			Rules: []smi.ElasticRule{{Name: "grow", Kind: "rule", Text: "when load > 2: 1 more", EveryMS: 1000}},
			Last:  &smi.ElasticDecision{At: at, Component: "web", Kind: "scaleUp", Rule: "grow", Replicas: 2, Why: "from 1 to 2"}}}}
	replayed = smi.Replayed{From: at, To: at, Samples: 1, Decisions: []smi.ElasticDecision{{At: at, Component: "web", Kind: "hold", Replicas: 1, Ready: 1, Why: "stays at 1"}}}
)

func (r *scaled) Rules(_ context.Context, customer, name string) (smi.Rules, error) {
	return ruled, r.got(customer, name)
}
func (r *scaled) SetRules(_ context.Context, customer, name, component string, on bool) (smi.Rules, error) {
	return ruled, r.got(customer, name, component, on)
}
func (r *scaled) Replay(_ context.Context, customer, name string, p smi.Replay) (smi.Replayed, error) {
	return replayed, r.got(customer, name, p)
}

func TestElasticityOverHTTP(t *testing.T) {
	serve := func(r *scaled, role identity.Role) smi.Elasticity {
		api := httpapi.NewServer("test", "1", nil)
		smi.RegisterElasticity(api, r)
		web := httptest.NewServer(api.Handler(func(*http.Request) (identity.Caller, error) { return identity.Caller{ID: "ann", Role: role}, nil }))
		t.Cleanup(web.Close)
		return smi.NewElasticityClient(&httpapi.Client{Base: web.URL, HTTP: web.Client()})
	}
	ctx := t.Context()
	replay := smi.Replay{Samples: []smi.Sample{{KPI: "load", AtMS: 5, Value: -1.5}}, From: at, To: at, BootMS: 7, LeaveMS: 8, Manifest: "service: a", File: "a.yaml"}
	calls := map[string]struct {
		call  func(e smi.Elasticity) (any, error)
		args  []any
		want  any
		write bool
	}{
		"rules":  {func(e smi.Elasticity) (any, error) { return e.Rules(ctx, "acme", "shop") }, []any{"acme", "shop"}, ruled, false},
		"set":    {func(e smi.Elasticity) (any, error) { return e.SetRules(ctx, "", "shop", "web", false) }, []any{"", "shop", "web", false}, ruled, true},
		"replay": {func(e smi.Elasticity) (any, error) { return e.Replay(ctx, "acme", "shop", replay) }, []any{"acme", "shop", replay}, replayed, false},
	}
	for name, c := range calls {
		r := &scaled{}
		got, err := c.call(serve(r, identity.Provider))
		if err != nil || !reflect.DeepEqual(got, c.want) || !reflect.DeepEqual(r.calls, c.args) {
			t.Errorf("%s: %+v, %v, called with %+v", name, got, err, r.calls)
		}
		for role, may := range map[identity.Role]bool{identity.Operator: true, identity.SiteRole: true, identity.Auditor: !c.write, identity.Partner: false, identity.HostRole: false} {
			if _, err := c.call(serve(&scaled{}, role)); may != (err == nil) || err != nil && !fault.Has(err, fault.Denied) {
				t.Errorf("%s as %s: %v", name, role, err)
			}
		}
	}
	r := &scaled{}
	if _, err := serve(r, identity.Provider).Replay(ctx, "", "shop", smi.Replay{BootMS: -1}); !fault.Has(err, fault.Malformed) || len(r.calls) > 0 {
		t.Errorf("a negative time: %v, %v", err, r.calls)
	}
}
