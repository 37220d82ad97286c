package sm

import (
	"context"
	"math"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/manifest"
	"github.com/reservoir-cloud/reservoir/sm/rules"
	"github.com/reservoir-cloud/reservoir/sm/trade"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Trade says whether a deployment or a larger size is paid for. What it writes is written
// together with the service's record, or not at all.
type Trade interface {
	Admit(ctx context.Context, a trade.Admission) ([]store.Op, error)
	AffordScale(ctx context.Context, customer, component string, size vee.Descriptor, more int) error
}

var _ trade.Services = (*Manager)(nil)

// admit a proposal under its contract and its customer's budget.
func (m *Manager) admit(ctx context.Context, p *proposal, d smi.Deploy) ([]store.Op, error) {
	if m.cfg.Trade == nil {
		return nil, nil
	}
	a := trade.Admission{Deploy: d, ServiceID: p.rec.ID, Exists: p.exists, Quote: p.quote(), Desired: p.rec.Desired}
	if p.exists {
		a.Running = p.old.Desired
	}
	return m.cfg.Trade.Admit(ctx, a)
}

func (p *proposal) quote() trade.Quote {
	q := trade.Quote{Customer: p.rec.Customer, Service: p.rec.Name, Manifest: p.design.manifest, Sizes: map[string]vee.Descriptor{}}
	for i := range p.design.manifest.Components {
		c := &p.design.manifest.Components[i]
		q.Sizes[c.Name] = p.design.descriptor(c, 0, manifest.Owner{})
	}
	return q
}

// affordScale refuses more replicas than the service's customer has a budget for.
func (m *Manager) affordScale(ctx context.Context, rec record, d *design, component string, more int) error {
	c := d.manifest.Component(component)
	if m.cfg.Trade == nil || c == nil || more <= 0 {
		return nil
	}
	return m.cfg.Trade.AffordScale(ctx, rec.Customer, component, d.descriptor(c, 0, manifest.Owner{}), more)
}

// Quote implements trade.Services.
func (m *Manager) Quote(ctx context.Context, d smi.Deploy) (trade.Quote, error) {
	d.Offer = ""
	p, err := m.propose(ctx, d)
	if err != nil {
		return trade.Quote{}, err
	}
	return p.quote(), nil
}

// KPI implements trade.Services: the answer to its query, about the service's own replicas.
func (m *Manager) KPI(ctx context.Context, s smi.Service, k manifest.KPI) float64 {
	rec, _, err := m.records.Get(ctx, recordKey(s.Customer, s.Name))
	if m.cfg.Monitor == nil || err != nil || rec.ID != s.ID {
		return math.NaN()
	}
	ctx, cancel := context.WithTimeout(ctx, queryPatience)
	defer cancel()
	series, err := m.cfg.Monitor.Querier(scopeNow(rec)).Query(ctx, rules.QueryOf(k), m.cfg.Now())
	if err != nil {
		return math.NaN()
	}
	points, err := only(series)
	if err != nil || len(points) == 0 {
		return math.NaN()
	}
	return points[len(points)-1].Value
}

// Restart implements trade.Services: what runs is shut down, and then activated.
func (m *Manager) Restart(ctx context.Context, id vee.ID) error {
	ctx = m.asSite(ctx)
	for _, a := range []vee.Action{vee.Shutdown, vee.Activate} {
		out, err := m.cfg.VMI.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: a, Wait: a == vee.Shutdown})
		if err != nil {
			return err
		}
		// What does not run cannot be shut down, and need not be.
		if i := slices.IndexFunc(out, func(o vmi.Outcome) bool { return !o.OK }); i >= 0 && a == vee.Activate {
			return fault.New(fault.WrongState, "%s of VEE %s: %s", a, id, out[i].Detail)
		}
	}
	return nil
}

// Move implements trade.Services: to the host that the placement chooses.
func (m *Manager) Move(ctx context.Context, id vee.ID) error {
	_, err := m.cfg.VMI.Migrate(m.asSite(ctx), vmi.Migrate{VEE: id})
	return err
}
