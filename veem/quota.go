package veem

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// quotaRecord is a customer's limits as they are stored.
type quotaRecord struct {
	Customer string     `json:"customer"`
	Version  uint64     `json:"version"`
	Limits   vmi.Limits `json:"limits"`
}

// held is what each customer's VEEs take together.
func held(all iter.Seq2[string, *record]) map[string]vmi.Holdings {
	sums := map[string]vmi.Holdings{}
	for _, r := range all {
		if r.State != vee.Destroyed {
			sums[r.Descriptor.Customer] = sums[r.Descriptor.Customer].Plus(vmi.HoldingsOf(r.Descriptor))
		}
	}
	return sums
}

// grown is what rs would add to what their customers have.
func grown(rs []record) map[string]vmi.Holdings {
	more := map[string]vmi.Holdings{}
	for i := range rs {
		d := rs[i].Descriptor
		more[d.Customer] = more[d.Customer].Plus(vmi.HoldingsOf(d))
	}
	return more
}

// admit refuses what would bring a customer over its quota: more is what each would have in
// addition, in the dimensions in which it grows. It runs in the same change as what it
// admits, so that nobody comes in between.
func admit(t *tx, more map[string]vmi.Holdings) error {
	limited := false
	for c := range more {
		limited = limited || t.quotas.get(c) != nil
	}
	if !limited {
		return nil
	}
	used := held(t.vees.all())
	for _, c := range slices.Sorted(maps.Keys(more)) {
		if q := t.quotas.get(c); q != nil {
			if err := q.admit(used[c], more[c]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (q *quotaRecord) admit(used, more vmi.Holdings) error {
	plain := func(n int64) string { return fmt.Sprint(n) }
	size := func(n int64) string { return vee.Bytes(n).String() }
	limit := func(what string, max *int64, used, more int64, text func(int64) string) error {
		if max == nil || more <= 0 || used+more <= *max {
			return nil
		}
		return fault.New(fault.QuotaExceeded, "the quota of customer %q is %s %s: %s used, %s more asked for", q.Customer, text(*max), what, text(used), text(more)).
			Try("delete what is not needed, or ask the site's operator for more: reservoir site quota show %s", q.Customer)
	}
	number := func(n *int) *int64 {
		if n == nil {
			return nil
		}
		x := int64(*n)
		return &x
	}
	l := q.Limits
	return cmp.Or(
		limit("VEEs", number(l.VEEs), int64(used.VEEs), int64(more.VEEs), plain),
		limit("vCPUs", number(l.VCPUs), int64(used.VCPUs), int64(more.VCPUs), plain),
		limit("of memory", (*int64)(l.Memory), int64(used.Memory), int64(more.Memory), size),
		limit("of disk", (*int64)(l.Disk), int64(used.Disk), int64(more.Disk), size),
	)
}

// SetQuota: vmi.Service.
func (m *Manager) SetQuota(ctx context.Context, in vmi.SetQuota) (vmi.Quota, error) {
	if err := mayRule(ctx); err != nil {
		return vmi.Quota{}, err
	}
	if err := checkQuota(in); err != nil {
		return vmi.Quota{}, err
	}
	err := m.ledger.do(ctx, func(t *tx) error {
		n := quotaRecord{Customer: in.Customer, Version: 1, Limits: in.Limits}
		old := t.quotas.get(in.Customer)
		if old != nil {
			n.Version = old.Version + 1
		}
		if in.Version != 0 && in.Version != n.Version-1 {
			return fault.New(fault.Conflict, "the quota of customer %q has version %d and not %d", in.Customer, n.Version-1, in.Version)
		}
		put(t, &t.quotas, in.Customer, &n)
		return nil
	})
	if err != nil {
		return vmi.Quota{}, err
	}
	return m.GetQuota(ctx, in.Customer)
}

func checkQuota(in vmi.SetQuota) error {
	l := in.Limits
	switch {
	case !vee.ValidName(in.Customer):
		return malformed("customer", "%q: want a DNS label such as \"acme\"", in.Customer)
	case l.VEEs != nil && *l.VEEs < 0:
		return malformed("limits.vees", "%d: want 0 or more", *l.VEEs)
	case l.VCPUs != nil && *l.VCPUs < 0:
		return malformed("limits.vcpus", "%d: want 0 or more", *l.VCPUs)
	case l.Memory != nil && *l.Memory < 0:
		return malformed("limits.memoryBytes", "%d: want 0 or more", *l.Memory)
	case l.Disk != nil && *l.Disk < 0:
		return malformed("limits.diskBytes", "%d: want 0 or more", *l.Disk)
	}
	return nil
}

func mayRule(ctx context.Context) error {
	if c := identity.From(ctx); !c.Is(identity.Operator, identity.SiteRole) {
		return fault.New(fault.Denied, "role %q may not change quotas", c.Role)
	}
	return nil
}

// GetQuota: vmi.Service.
func (m *Manager) GetQuota(ctx context.Context, customer string) (vmi.Quota, error) {
	c := identity.From(ctx)
	if err := mayRead(c); err != nil {
		return vmi.Quota{}, err
	}
	if !c.Sees(customer) {
		return vmi.Quota{}, fault.New(fault.Denied, "%q is not %s's customer", customer, orElse(c.ID, "the caller"))
	}
	for _, q := range m.quotas() {
		if q.Customer == customer {
			return q, nil
		}
	}
	return vmi.Quota{Customer: customer}, nil
}

// ListQuotas: vmi.Service.
func (m *Manager) ListQuotas(ctx context.Context) ([]vmi.Quota, error) {
	if c := identity.From(ctx); !c.Is(identity.Operator, identity.Auditor, identity.SiteRole) {
		return nil, fault.New(fault.Denied, "role %q may not see all quotas", c.Role).Try("see your own: reservoir site quota show CUSTOMER")
	}
	return m.quotas(), nil
}

func (m *Manager) quotas() []vmi.Quota {
	all := map[string]vmi.Quota{}
	m.ledger.read(func(s *state) {
		for c, used := range held(maps.All(s.vees.rows)) {
			all[c] = vmi.Quota{Customer: c, Used: used}
		}
		for c, q := range s.quotas.rows {
			all[c] = vmi.Quota{Customer: c, Version: q.Version, Limits: q.Limits, Used: all[c].Used}
		}
	})
	list := slices.Collect(maps.Values(all))
	slices.SortFunc(list, func(a, b vmi.Quota) int { return strings.Compare(a.Customer, b.Customer) })
	return list
}

// DeleteQuota: vmi.Service.
func (m *Manager) DeleteQuota(ctx context.Context, customer string) error {
	if err := mayRule(ctx); err != nil {
		return err
	}
	return m.ledger.do(ctx, func(t *tx) error {
		if t.quotas.get(customer) == nil {
			return fault.New(fault.NotFound, "customer %q has no quota", customer).Try("reservoir site quota list")
		}
		put(t, &t.quotas, customer, nil)
		return nil
	})
}
