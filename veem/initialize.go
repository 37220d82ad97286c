package veem

import (
	"context"
	"fmt"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// InitializeVEEs: vmi.Service. Everything happens in one write: identifiers, addresses,
// places and the receipt, or nothing.
func (m *Manager) InitializeVEEs(ctx context.Context, in vmi.Initialize) (vmi.Initialized, error) {
	caller := identity.From(ctx)
	if err := mayCommand(caller); err != nil {
		return vmi.Initialized{}, err
	}
	key, hash, err := receiptOf(caller, in.IdempotencyKey, in)
	if err != nil {
		return vmi.Initialized{}, err
	}
	if out, done, err := m.answered(caller, key, hash); done || err != nil {
		return out, err
	}
	wanted, err := m.describe(ctx, caller, in)
	if err != nil {
		return vmi.Initialized{}, err
	}
	if err := m.ready(ctx); err != nil {
		return vmi.Initialized{}, err
	}
	var made []record
	err = m.ledger.do(ctx, func(t *tx) error {
		made = nil
		old, err := t.receipts.get(key).of(hash)
		if err != nil || old.IDs != nil { // the same call overtook this one
			return err
		}
		if made, err = m.initialize(t, caller, in, wanted); err != nil {
			return err
		}
		kept := receipt{At: t.now, Request: hash}
		for i := range made {
			t.putVEE(made[i])
			made[i], _ = t.vee(made[i].ID)
			kept.IDs = append(kept.IDs, made[i].ID)
		}
		if key != "" {
			put(t, &t.receipts, key, &kept)
		}
		return nil
	})
	if err != nil {
		return vmi.Initialized{}, fmt.Errorf("initialize %d VEEs: %w", len(wanted), err)
	}
	if made, err = m.reserveAway(ctx, made); err != nil {
		return vmi.Initialized{}, fmt.Errorf("initialize %d VEEs: %w", len(wanted), err)
	}
	if made == nil {
		out, _, err := m.answered(caller, key, hash)
		return out, err
	}
	var out vmi.Initialized
	for _, r := range made {
		out.VEEs = append(out.VEEs, m.told(caller, r.VEE))
	}
	return out, nil
}

// answered returns the result of the same call made before, as its VEEs are now. Of those
// whose record was dropped, only the identifier is left.
func (m *Manager) answered(caller identity.Caller, key string, hash []byte) (out vmi.Initialized, done bool, err error) {
	if key == "" {
		return out, false, nil
	}
	var found []record
	m.ledger.read(func(s *state) {
		var old receipt
		if old, err = s.receipts.rows[key].of(hash); err != nil {
			return
		}
		for _, id := range old.IDs {
			r := record{VEE: vmi.VEE{ID: id, Site: m.cfg.Site, State: vee.Destroyed, Target: vee.Destroyed, Phase: vee.PhaseDone}}
			if p := s.vees.rows[string(id)]; p != nil {
				r = *p
			}
			found, done = append(found, r), true
		}
	})
	for _, r := range found {
		out.VEEs = append(out.VEEs, m.told(caller, m.show(r)))
	}
	return out, done, err
}

// Plan: vmi.Service.
func (m *Manager) Plan(ctx context.Context, in vmi.Initialize) ([]vmi.Placement, error) {
	caller := identity.From(ctx)
	if err := mayRead(caller); err != nil {
		return nil, err
	}
	wanted, err := m.describe(ctx, caller, in)
	if err != nil {
		return nil, err
	}
	if err := m.ready(ctx); err != nil {
		return nil, err
	}
	var out []vmi.Placement
	err = m.ledger.do(ctx, func(t *tx) error {
		out = nil
		rs := m.scoped(in, wanted, "plan")
		if err := admit(t, grown(rs)); err != nil {
			return err
		}
		for i, c := range m.choose(t, rs) {
			out = append(out, vmi.Placement{Name: wanted[i].Name, Host: c.Host, Why: c.Why})
		}
		return nil
	})
	return out, err
}

// scoped makes records of descriptors, without what the manager generates.
func (m *Manager) scoped(in vmi.Initialize, wanted []vee.Descriptor, call string) []record {
	rs := make([]record, len(wanted))
	for i, d := range wanted {
		scope := d.Customer + "/" + d.GroupID
		if d.GroupID == "" {
			scope = "call/" + call
		}
		rs[i] = record{Scope: scope, Seq: 1, VEE: vmi.VEE{
			Descriptor: d, Rules: in.Rules, Site: m.cfg.Site, Epoch: vee.Epoch{Generation: m.gen, Term: 1},
			State: vee.Initial, Target: vee.Defined, Phase: vee.PhasePending,
		}}
	}
	return rs
}

// initialize makes the records: identifiers, addresses, and for TWOPHASE places.
func (m *Manager) initialize(t *tx, caller identity.Caller, in vmi.Initialize, wanted []vee.Descriptor) ([]record, error) {
	if caller.Is(identity.Partner) {
		r, err := m.lodge(t, caller, in, wanted)
		return []record{r}, err
	}
	first, err := m.newID()
	if err != nil {
		return nil, err
	}
	rs := m.scoped(in, wanted, string(first))
	if err := unique(t, rs); err != nil {
		return nil, err
	}
	if err := admit(t, grown(rs)); err != nil {
		return nil, err
	}
	for i := range rs {
		rs[i].ID = first
		if i > 0 {
			if rs[i].ID, err = m.newID(); err != nil {
				return nil, err
			}
		}
	}
	if err := m.fill(t, rs); err != nil {
		return nil, err
	}
	if in.Model == vmi.BestEffort {
		return rs, nil
	}
	until := t.now.Add(m.hold(in))
	for i, c := range m.choose(t, rs) {
		if c.Host == "" {
			return nil, fault.New(fault.NoResources, "VEE %q: %s", rs[i].Descriptor.Name, c.Why)
		}
		rs[i].reserve(c)
		rs[i].ReservedUntil = &until
	}
	return rs, nil
}

// hold is how long a reservation lasts that nobody commits.
func (m *Manager) hold(in vmi.Initialize) time.Duration {
	if in.HoldMS > 0 {
		return time.Duration(in.HoldMS) * time.Millisecond
	}
	return m.cfg.Timing.Hold
}

func (m *Manager) newID() (vee.ID, error) {
	m.randomMu.Lock()
	defer m.randomMu.Unlock()
	return vee.NewID(m.cfg.Site, m.cfg.Random)
}

// unique checks that names are not taken in their group.
func unique(t *tx, rs []record) error {
	taken := map[[2]string]vee.ID{}
	for _, r := range t.vees.all() {
		if r.State != vee.Destroyed {
			taken[[2]string{r.Scope, r.Descriptor.Name}] = r.ID
		}
	}
	for _, r := range rs {
		key := [2]string{r.Scope, r.Descriptor.Name}
		switch id, there := taken[key]; {
		case there && id != "":
			return fault.New(fault.Exists, "group %q has a VEE %q already: %s", r.Descriptor.GroupID, r.Descriptor.Name, id)
		case there:
			return fault.New(fault.Malformed, "two of the VEEs are called %q: names are unique within a group", r.Descriptor.Name)
		}
		taken[key] = ""
	}
	return nil
}
