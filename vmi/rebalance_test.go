package vmi_test

import (
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var somePlan = vmi.Reconfiguration{ID: "p1", Cause: "drain", Policy: "balance", State: vmi.ReconfigurationRunning, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Ended: &until,
	Before: 2, After: 1, Steps: []vmi.ReconfigureStep{{VEE: id, Name: "web-1", From: "h1", To: "h2", After: []int{0}, StartMS: 1, EndMS: 2, State: "running", Bandwidth: 1 << 20}},
	Stays: []vmi.ReconfigureRemain{{VEE: id, Name: "web-2", Host: "h1", Why: "it is PAUSED"}}, Note: "so", Attempt: 2}

func (r *recorder) DrainHost(_ context.Context, name string, d vmi.Drain) (vmi.Host, error) {
	return vmi.Host{Name: name, Leaving: true, Drained: true, Price: 1.5}, r.got("DrainHost", name, d)
}

func (r *recorder) PlanRebalance(_ context.Context, in vmi.Rebalance) (vmi.Reconfiguration, error) {
	return somePlan, r.got("PlanRebalance", in)
}

func (r *recorder) Rebalance(_ context.Context, in vmi.Rebalance) (vmi.Reconfiguration, error) {
	return somePlan, r.got("Rebalance", in)
}

func (r *recorder) PlanEvacuation(_ context.Context, in vmi.Evacuate) (vmi.Reconfiguration, error) {
	return somePlan, r.got("PlanEvacuation", in)
}

func (r *recorder) Evacuate(_ context.Context, in vmi.Evacuate) (vmi.Reconfiguration, error) {
	return somePlan, r.got("Evacuate", in)
}

func (r *recorder) GetReconfiguration(context.Context) (vmi.Reconfiguration, error) {
	return somePlan, r.got("GetReconfiguration")
}

func (r *recorder) StopReconfiguration(context.Context) (vmi.Reconfiguration, error) {
	return somePlan, r.got("StopReconfiguration")
}

func TestReconfigurationsOverTheNetwork(t *testing.T) {
	calls := func(s vmi.Reconfigurations) (results []any) {
		add := func(result any, err error) {
			if err != nil {
				t.Errorf("call %d: %v", len(results), err)
			}
			results = append(results, result)
		}
		add(s.DrainHost(t.Context(), "h1", vmi.Drain{Suspend: true, Off: true}))
		add(s.PlanRebalance(t.Context(), vmi.Rebalance{Policy: "cost"}))
		add(s.Rebalance(t.Context(), vmi.Rebalance{}))
		add(s.PlanEvacuation(t.Context(), vmi.Evacuate{To: "beta"}))
		add(s.Evacuate(t.Context(), vmi.Evacuate{Host: "h1", To: "beta", DeadlineMS: 1000}))
		add(s.GetReconfiguration(t.Context()))
		add(s.StopReconfiguration(t.Context()))
		return results
	}
	near, far := &recorder{}, &recorder{}
	client, _ := serve(t, far, identity.Operator)
	want, got := calls(near), calls(client)
	if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(far.calls, near.calls) {
		t.Errorf("answers %+v\nwant %+v\ncalls %+v\nwant %+v", got, want, far.calls, near.calls)
	}
}
