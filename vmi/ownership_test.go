package vmi_test

import (
	"context"
	"reflect"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (r *recorder) ArmHost(_ context.Context, name string, armed bool) (vmi.Host, error) {
	return vmi.Host{Name: name, HA: vmi.HostHA{Degraded: "no watchdog", Disarmed: !armed, Fenced: true, Witness: true}}, r.got("ArmHost", name, armed)
}

func (r *recorder) ClaimVEE(_ context.Context, id vee.ID, c vmi.Claim) (vmi.VEE, error) {
	return vmi.VEE{ID: id, Host: "h2"}, r.got("ClaimVEE", id, c)
}

func TestOwnershipOverTheNetwork(t *testing.T) {
	calls := func(s vmi.Ownership) (results []any) {
		add := func(result any, err error) {
			if err != nil {
				t.Errorf("call %d: %v", len(results), err)
			}
			results = append(results, result)
		}
		add(s.ArmHost(t.Context(), "h1", false))
		add(s.ArmHost(t.Context(), "h1", true))
		add(s.ClaimVEE(t.Context(), id, vmi.Claim{Fenced: true}))
		return results
	}
	near, far := &recorder{}, &recorder{}
	client, _ := serve(t, far, identity.Operator)
	want, got := calls(near), calls(client)
	if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(far.calls, near.calls) {
		t.Errorf("answers %+v\nwant %+v\ncalls %+v\nwant %+v", got, want, far.calls, near.calls)
	}
	provider, _ := serve(t, far, identity.Provider)
	if _, err := provider.ClaimVEE(t.Context(), id, vmi.Claim{Fenced: true}); !fault.Has(err, fault.Denied) {
		t.Errorf("a provider claims a VEE: %v", err)
	}
}
