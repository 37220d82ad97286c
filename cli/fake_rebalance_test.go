package cli

import (
	"context"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// The fake drains at once, and has one plan, which is done as soon as it is applied.
func (f fakeVEEM) DrainHost(ctx context.Context, name string, d vmi.Drain) (vmi.Host, error) {
	h, err := f.SetHostState(ctx, name, vmi.HostDraining)
	if err != nil {
		return h, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.hosts {
		if p := &f.hosts[i]; p.Name == name {
			p.State, p.Leaving, p.Drained = vmi.HostDraining, true, true
			if d.Off {
				p.State, p.Alive = vmi.HostOff, false
			}
			h = *p
		}
	}
	return h, nil
}

func (f fakeVEEM) PlanRebalance(_ context.Context, r vmi.Rebalance) (vmi.Reconfiguration, error) {
	if r.Policy == "" {
		return vmi.Reconfiguration{}, fault.New(fault.Malformed, "policy: this site has none of its own: name one").Try("reservoir site rebalance --policy balance")
	}
	return vmi.Reconfiguration{Cause: "rebalance", Policy: r.Policy, State: vmi.ReconfigurationPlanned, Before: 1.25, After: .75, Attempt: 1,
		Steps: []vmi.ReconfigureStep{{VEE: "alpha.aaaaaaaaaa", Name: "db-1", From: "h1", To: "h2", EndMS: 2500},
			{VEE: "alpha.bbbbbbbbbb", Name: "db-2", From: "h3", To: "h1", After: []int{0}, StartMS: 2500, EndMS: 4500}},
		Stays: []vmi.ReconfigureRemain{{VEE: "alpha.cccccccccc", Name: "db-3", Host: "h2", Why: "it is PAUSED"}}}, nil
}

func (f fakeVEEM) Rebalance(ctx context.Context, r vmi.Rebalance) (vmi.Reconfiguration, error) {
	p, err := f.PlanRebalance(ctx, r)
	p.ID, p.State = "p1", vmi.ReconfigurationRunning
	return p, err
}

func (f fakeVEEM) PlanEvacuation(_ context.Context, e vmi.Evacuate) (vmi.Reconfiguration, error) {
	if e.To != "" && e.To != "beta" {
		return vmi.Reconfiguration{}, fault.New(fault.NotFound, "site %q is no partner that lends to this one", e.To).Try("reservoir federation list")
	}
	return vmi.Reconfiguration{Cause: "evacuation", State: vmi.ReconfigurationPlanned, Attempt: 1, Evacuation: &e,
		Steps: []vmi.ReconfigureStep{{VEE: "alpha.aaaaaaaaaa", Name: "db-1", From: "h1", To: "@beta", EndMS: 2500}},
		Stays: []vmi.ReconfigureRemain{{VEE: "alpha.cccccccccc", Name: "db-3", Host: "h2", Why: "it does not fit: it would come through in 14s, and the deadline is in 10s"}}}, nil
}

func (f fakeVEEM) Evacuate(ctx context.Context, e vmi.Evacuate) (vmi.Reconfiguration, error) {
	p, err := f.PlanEvacuation(ctx, e)
	p.ID, p.State = "p1", vmi.ReconfigurationRunning
	return p, err
}

func (f fakeVEEM) GetReconfiguration(ctx context.Context) (vmi.Reconfiguration, error) {
	p, err := f.PlanRebalance(ctx, vmi.Rebalance{Policy: "balance"})
	p.ID, p.State = "p1", vmi.ReconfigurationDone
	for i := range p.Steps {
		p.Steps[i].State = "done"
	}
	return p, err
}

func (f fakeVEEM) StopReconfiguration(context.Context) (vmi.Reconfiguration, error) {
	return vmi.Reconfiguration{}, fault.New(fault.WrongState, "no plan is being applied")
}
