package sm

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/sm/trade"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// How services' usage comes here (seed 5, section 2.7.3): the Service Manager is an
// accounting listener of its VEE Manager. A service's worker opens an account for each new
// VEE and registers for it; both are repeated after a restart and change nothing then. What
// the VEE Manager sends is added to the accounts, which stay when the service has gone.

// usageInterval is how often the VEE Manager tells what a VEE has used.
const usageInterval = 5 * time.Minute

// keepUsage of a VEE that is gone.
const keepUsage = 400 * 24 * time.Hour

// usageKey can be told from a message alone.
func usageKey(customer, service string, id vee.ID) string {
	return fmt.Sprintf("%s/%s/%s", customer, service, id)
}

// Identity that the manager's own calls to the VMI are made with.
func (m *Manager) Identity() identity.Caller {
	return identity.Caller{ID: "sm." + m.cfg.Site, Role: identity.SiteRole}
}

// account for the VEEs of the service that this process has not seen yet.
func (w *worker) account(ctx context.Context, rec record, vees map[vee.ID]vmi.VEE) error {
	if len(w.accounted) > len(vees) {
		maps.DeleteFunc(w.accounted, func(id vee.ID, _ bool) bool { _, there := vees[id]; return !there })
	}
	var fresh, open []vee.ID
	for id := range vees {
		if !w.accounted[id] {
			fresh = append(fresh, id)
		}
	}
	slices.Sort(fresh)
	for _, id := range fresh {
		u, err := w.m.openAccount(ctx, rec, vees[id])
		if err != nil {
			return err
		}
		if u.Ended {
			w.accounted[id] = true
			continue
		}
		open = append(open, id)
	}
	for part := range slices.Chunk(open, maxRegistered) {
		r := vmi.AccountingRegistration{IDs: part, IntervalMS: w.m.cfg.AccountingInterval.Milliseconds()}
		if err := w.m.cfg.VMI.RegisterAccountingInformationListener(ctx, r); err != nil {
			return fmt.Errorf("listen to what %d VEEs of service %s use: %w", len(part), w.key, err)
		}
		for _, id := range part {
			w.accounted[id] = true
		}
	}
	return nil
}

// maxRegistered VEEs in one call.
const maxRegistered = 1000

// openAccount of a VEE, or find the one that there is.
func (m *Manager) openAccount(ctx context.Context, rec record, v vmi.VEE) (trade.Account, error) {
	u := trade.Account{Customer: rec.Customer, Service: rec.Name, ServiceID: rec.ID, VEE: v.ID, Name: v.Descriptor.Name}
	if rec.Adopted != nil {
		u.SinceMS = rec.Adopted.At.UnixMilli()
	}
	key := usageKey(rec.Customer, rec.ID, v.ID)
	_, err := m.usages.Create(ctx, key, u)
	if fault.Has(err, fault.Exists) {
		u, _, err = m.usages.Get(ctx, key)
	}
	return u, err
}

// ReceiveAccountingInformation adds to the accounts: vmi.AccountingListener. Messages that
// come again are known, and those of VEEs that are no service's are passed over. Errors:
// Malformed, and those of the store, after which the sender tries again.
func (m *Manager) ReceiveAccountingInformation(ctx context.Context, messages []vmi.AccountingMessage) error {
	for part := range slices.Chunk(messages, store.MaxOps) {
		for {
			err := m.addUsage(ctx, part)
			if err == nil {
				break
			}
			if !fault.Has(err, fault.Conflict) {
				return err
			}
		}
	}
	return nil
}

// addUsage of at most store.MaxOps messages, all or none.
func (m *Manager) addUsage(ctx context.Context, messages []vmi.AccountingMessage) error {
	type row struct {
		trade.Account
		version uint64
	}
	rows := map[string]row{}
	for _, msg := range messages {
		i := account.Interval{FromMS: msg.FromMS, ToMS: msg.ToMS, Used: msg.Used}
		if !i.Valid() {
			return fault.New(fault.Malformed, "message %d about VEE %s: it ends before it begins, or has used less than nothing", msg.Seq, msg.VEE)
		}
		key := usageKey(msg.Customer, msg.GroupID, msg.VEE)
		r, read := rows[key]
		if !read {
			var err error
			if r.Account, r.version, err = m.usages.Get(ctx, key); fault.Has(err, fault.NotFound) {
				continue
			} else if err != nil {
				return err
			}
		}
		if !r.Add(i) {
			m.cfg.Log.Warn("what a VEE has used does not go with what is known", "vee", msg.VEE, "from", msg.FromMS, "to", msg.ToMS)
		}
		r.Ended = r.Ended || msg.Final
		rows[key] = r
	}
	var ops []store.Op
	for key, r := range rows {
		ops = append(ops, m.usages.OpUpdate(key, r.Account, r.version))
	}
	if len(ops) == 0 {
		return nil
	}
	_, err := m.cfg.Store.Txn(ctx, ops...)
	return err
}

// Usage of the VEEs of a service, and of services that had its name before: smi.Manager.
func (m *Manager) Usage(ctx context.Context, customer, name string) (smi.ServiceUsage, error) {
	out := smi.ServiceUsage{Customer: owner(ctx, customer), Service: name, VEEs: []smi.VEEUsage{}}
	missing := fault.New(fault.NotFound, "nothing is known of what service %s of customer %s has used", name, out.Customer).
		Try("see what there is: reservoir service list")
	if !identity.From(ctx).Sees(out.Customer) || !vee.ValidName(name) || !vee.ValidName(out.Customer) {
		return out, missing
	}
	list, err := m.usages.Values(ctx, out.Customer+"/")
	if err != nil {
		return out, err
	}
	for _, u := range list {
		if u.Service != name {
			continue
		}
		v := smi.VEEUsage{VEE: u.VEE, Name: u.Name, ServiceID: u.ServiceID, Ended: u.Ended, Site: u.Site, Intervals: u.Intervals, Total: u.Intervals.Total()}
		if n := len(u.Intervals); n > 0 {
			v.From, v.Through = time.UnixMilli(u.Intervals[0].FromMS).UTC(), time.UnixMilli(u.Intervals[n-1].ToMS).UTC()
		}
		out.VEEs, out.Total = append(out.VEEs, v), out.Total.Plus(v.Total)
	}
	if len(out.VEEs) == 0 {
		return out, missing
	}
	slices.SortFunc(out.VEEs, func(a, b smi.VEEUsage) int {
		return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Name, b.Name), cmp.Compare(a.VEE, b.VEE))
	})
	return out, nil
}

// forgettable is an account of a VEE that is long gone; twice as long where some of it is on no
// invoice, as it never is at a site that issues none.
func forgettable(u trade.Account, now time.Time) bool {
	n := len(u.Intervals)
	if n == 0 {
		return true
	}
	keep := keepUsage
	if !u.Settled() {
		keep *= 2
	}
	return u.Intervals[n-1].ToMS <= now.Add(-keep).UnixMilli()
}

// forgetUsage of what has been gone for long, once a day.
func (m *Manager) forgetUsage(ctx context.Context) {
	for ctx.Err() == nil {
		list, err := m.usages.List(ctx, "")
		if err != nil && ctx.Err() == nil {
			m.cfg.Log.Warn("look for old accounts of usage", "err", err)
		}
		for _, u := range list {
			if !u.Value.Ended || !forgettable(u.Value, m.cfg.Now()) {
				continue
			}
			if err := m.usages.Delete(ctx, u.Key, u.Version); err != nil && !fault.Has(err, fault.NotFound) && !fault.Has(err, fault.Conflict) {
				m.cfg.Log.Warn("drop an old account of usage", "vee", u.Value.VEE, "err", err)
			}
		}
		pause(ctx, 24*time.Hour)
	}
}
