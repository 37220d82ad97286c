package veem

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// chunk of a collection in one write: with the receipt it stays under MaxOps.
const chunk = 64

// reserve a place that was chosen.
func (r *record) reserve(c placement.Choice) {
	r.Host, r.Why, r.Holds = c.Host, c.Why, true
	r.State, r.Phase = vee.Defined, vee.PhaseStopped
}

// begin to run at its place, from where it may be restarted elsewhere if it wants that and
// the host can let go of it.
func (r *record) beginAt(h *hostRecord) {
	if !r.Assigned && h != nil && h.Guarded && r.wantsLease() {
		r.Lease = &lease{}
	}
	r.begin()
}

// begin to run at its place.
func (r *record) begin() {
	if !r.Assigned {
		r.Phase = vee.PhaseProlog
	}
	r.Submitted, r.Assigned, r.Holds, r.ReservedUntil = true, true, true, nil
	r.retarget(vee.Active)
}

// find the VEE that the caller of ctx names.
func find(caller identity.Caller, t *tx, id vee.ID) (record, error) {
	r, ok := t.vee(id)
	return r, visible(caller, id, r, ok)
}

func visible(caller identity.Caller, id vee.ID, r record, exists bool) error {
	switch {
	case !exists:
		return fault.New(fault.NotFound, "VEE %s is not known at this site", id)
	case !caller.Sees(r.Descriptor.Customer):
		return fault.New(fault.Denied, "VEE %s belongs to another customer", id)
	}
	return nil
}

// outcome of a change of one VEE.
func outcome(id vee.ID, detail string, err error) vmi.Outcome {
	if err == nil {
		return vmi.Outcome{ID: id, OK: true, Detail: detail}
	}
	f := fault.From(err)
	return vmi.Outcome{ID: id, Detail: f.Message, Code: string(f.Code)}
}

// SubmitVEEs: vmi.Service. Submitting again what is on its way is fine.
func (m *Manager) SubmitVEEs(ctx context.Context, ids []vee.ID) ([]vmi.Outcome, error) {
	caller := identity.From(ctx)
	if err := mayWrite(caller); err != nil {
		return nil, err
	}
	if err := m.ready(ctx); err != nil {
		return nil, err
	}
	var all []vmi.Outcome
	for part := range slices.Chunk(ids, chunk) {
		var outs []vmi.Outcome
		err := m.ledger.do(ctx, func(t *tx) error {
			outs = nil
			for _, id := range part {
				detail, err := m.submit(caller, t, id)
				outs = append(outs, outcome(id, detail, err))
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("submit VEEs: %w", err)
		}
		all = append(all, outs...)
	}
	return all, nil
}

func (m *Manager) submit(caller identity.Caller, t *tx, id vee.ID) (detail string, err error) {
	r, err := find(caller, t, id)
	switch {
	case err != nil:
		return "", err
	case r.Target == vee.Destroyed || r.State != vee.Initial && r.State != vee.Defined:
		return "", fault.New(fault.WrongState, "VEE %s cannot be submitted in state %s (target %s)", id, r.State, r.Target)
	case r.State == vee.Initial:
		r.Submitted, r.Target = true, vee.Active
		t.putVEE(r)
		return "will be deployed", nil
	case r.Target == vee.Active:
		return "being deployed", nil
	}
	if err := m.activate(t, r); err != nil {
		return "", err
	}
	return "being deployed", nil
}

// activate a VEE that has, or had, a place: there must be room for it again.
func (m *Manager) activate(t *tx, r record) error {
	switch {
	case r.Host == "":
		c := m.choose(t, []record{r})[0]
		if c.Host == "" {
			return fault.New(fault.NoResources, "VEE %s: %s", r.ID, c.Why)
		}
		r.reserve(c)
	case !r.Holds:
		needs := r.Descriptor.Resources()
		for _, h := range m.board(t) {
			if free := h.Capacity.Minus(h.Used).Plus(r.usage()); h.Name == r.Host && !needs.Fits(free) {
				return fault.New(fault.NoResources, "VEE %s: its disks are on host %s, which has no room for it now", r.ID, h.Name)
			}
		}
	}
	r.beginAt(t.hosts.get(r.Host))
	t.putVEE(r)
	return nil
}

// UpdateState: vmi.Service.
func (m *Manager) UpdateState(ctx context.Context, u vmi.UpdateState) ([]vmi.Outcome, error) {
	caller := identity.From(ctx)
	if err := mayCommand(caller); err != nil {
		return nil, err
	}
	if u.Custody != nil && !caller.Is(identity.Partner) {
		return nil, malformed("custody", "only another site's VEE Manager has it to say")
	}
	if !slices.Contains(vee.Actions, u.Action) {
		return nil, fault.New(fault.Malformed, "action %q: want one of %v", u.Action, vee.Actions)
	}
	key, hash, err := receiptOf(caller, u.IdempotencyKey, u)
	if err != nil {
		return nil, err
	}
	if err := m.ready(ctx); err != nil {
		return nil, err
	}
	if u.Together {
		outs, seqs, err := m.switchAll(ctx, caller, u, key, hash)
		if err != nil {
			return nil, fmt.Errorf("%s %d VEEs together: %w", u.Action, len(u.IDs), err)
		}
		if u.Wait {
			m.awaitAll(ctx, outs, seqs)
		}
		return outs, nil
	}
	if caller.Is(identity.Partner) && u.Action == vee.Activate {
		if err := m.imported(ctx, caller.Site, u.IDs); err != nil {
			return nil, err
		}
	}
	step := chunk
	if u.Ordered {
		step = 1
	}
	var all []vmi.Outcome
	for part := range slices.Chunk(u.IDs, step) {
		outs, seqs, err := m.order(ctx, caller, part, u, key, hash)
		if err != nil {
			return nil, fmt.Errorf("%s %d VEEs: %w", u.Action, len(part), err)
		}
		if u.Ordered || u.Wait {
			m.awaitAll(ctx, outs, seqs)
		}
		all = append(all, outs...)
	}
	return all, nil
}

// order one action for some VEEs in one write, together with its receipt. seqs are those of
// the assignments that it led to.
func (m *Manager) order(ctx context.Context, caller identity.Caller, ids []vee.ID, u vmi.UpdateState, key string, hash []byte) (outs []vmi.Outcome, seqs []uint64, err error) {
	err = m.ledger.do(ctx, func(t *tx) error {
		outs, seqs = nil, nil
		old, err := t.receipts.get(key).of(hash)
		if err != nil {
			return err
		}
		kept := receipt{At: t.now, Request: hash, Outcomes: map[vee.ID]vmi.Outcome{}, Seqs: map[vee.ID]uint64{}}
		for id, o := range old.Outcomes {
			kept.Outcomes[id], kept.Seqs[id] = o, old.Seqs[id]
		}
		for _, id := range ids {
			if _, done := kept.Outcomes[id]; !done {
				seq, err := m.applyTo(caller, t, id, u)
				kept.Outcomes[id], kept.Seqs[id] = outcome(id, "", err), seq
			}
			outs, seqs = append(outs, kept.Outcomes[id]), append(seqs, kept.Seqs[id])
		}
		if key != "" {
			put(t, &t.receipts, key, &kept)
		}
		return nil
	})
	return outs, seqs, err
}

// applyTo one VEE what u asks for, if it still has the version that u names.
func (m *Manager) applyTo(caller identity.Caller, t *tx, id vee.ID, u vmi.UpdateState) (seq uint64, err error) {
	if want, named := u.Versions[id]; named {
		r, err := find(caller, t, id)
		if err != nil {
			return 0, err
		}
		if r.Version != want {
			return 0, fault.New(fault.Conflict, "VEE %s has version %d and not %d", id, r.Version, want)
		}
	}
	if caller.Is(identity.Partner) {
		return m.obey(caller, t, id, u)
	}
	return m.apply(caller, t, id, u.Action)
}

// apply an action to one VEE. What is possible depends on what was asked for last: an
// action that is under way can be overtaken by the next one.
func (m *Manager) apply(caller identity.Caller, t *tx, id vee.ID, a vee.Action) (seq uint64, err error) {
	r, err := find(caller, t, id)
	if err != nil {
		return 0, err
	}
	from := r.Target
	if r.State == vee.Initial && r.Target != vee.Destroyed {
		from = vee.Initial
	}
	to, err := from.After(a)
	if err != nil {
		return 0, fault.New(fault.WrongState, "VEE %s: %w", id, err)
	}
	switch {
	case from == vee.Destroyed:
		return r.Seq, nil
	case r.Withdraw && (to == vee.Suspended || to == vee.Paused):
		return 0, fault.New(fault.WrongState, "VEE %s: %s is not possible while it is placed anew", id, a)
	case to == vee.Suspended && r.State == vee.Defined:
		return 0, fault.New(fault.WrongState, "VEE %s: SUSPEND is not possible before it has started", id)
	case to == vee.Active:
		if err := m.activate(t, r); err != nil {
			return 0, err
		}
		r, _ = t.vee(id)
		return r.Seq, nil
	case to == vee.Destroyed && !r.Assigned:
		r.destroyReserved()
	default:
		r.retarget(to)
	}
	t.putVEE(r)
	return r.Seq, nil
}

// awaitAll waits until each VEE has reached its state or failed, and corrects outs.
func (m *Manager) awaitAll(ctx context.Context, outs []vmi.Outcome, seqs []uint64) {
	m.each(len(outs), func(i int) {
		if outs[i].OK {
			outs[i] = m.await(ctx, outs[i].ID, seqs[i])
		}
	})
}

// await the end of the action that led to assignment seq of a VEE.
func (m *Manager) await(ctx context.Context, id vee.ID, seq uint64) vmi.Outcome {
	w := m.hub.watch(id)
	defer m.hub.leave(w)
	for {
		r, ok := m.ledger.vee(id)
		switch {
		case ok && r.State == vee.Destroyed && r.Freed > 0:
			return outcome(id, fmt.Sprintf("%s, %s of disk reclaimed", vee.Destroyed, r.Freed), nil)
		case !ok || r.State == vee.Destroyed:
			return outcome(id, string(vee.Destroyed), nil)
		case r.Seq > seq && r.Failure != "":
			return vmi.Outcome{ID: id, Detail: fmt.Sprintf("VEE %s stays %s: %s", id, r.State, r.Failure), Code: orElse(r.FailureCode, string(fault.WrongState))}
		case r.State == r.Target && r.Settled && r.Switch == "":
			return outcome(id, string(r.State), nil)
		case r.Seq > seq && r.Target != vee.Destroyed:
			return outcome(id, "", fault.New(fault.Conflict, "VEE %s: another action has overtaken this one", id))
		case m.cfg.Stepped:
			return outcome(id, "", fault.New(fault.Timeout, "VEE %s: it is not waited for where the manager is stepped", id))
		}
		select {
		case <-w.signal:
			w.take()
		case <-m.hub.closed:
			return outcome(id, "", errStopped())
		case <-ctx.Done():
			return outcome(id, "", fault.New(fault.Timeout, "VEE %s is still %s, phase %s", id, r.State, r.Phase))
		}
	}
}

// receiptOf is the key and the digest of a call's receipt; no key, no receipt. Keys of one
// caller do not meet those of another.
func receiptOf(c identity.Caller, key string, call any) (string, []byte, error) {
	if key == "" {
		return "", nil, nil
	}
	b, err := json.Marshal(call)
	if err != nil {
		return "", nil, fault.New(fault.Malformed, "encode the call: %w", err)
	}
	sum := sha256.Sum256(b)
	return c.Scope() + "/" + key, sum[:], nil
}

// of the same call made before: what it answered; the zero receipt if there is none.
func (r *receipt) of(hash []byte) (receipt, error) {
	switch {
	case r == nil:
		return receipt{}, nil
	case !bytes.Equal(r.Request, hash):
		return receipt{}, fault.New(fault.Conflict, "this Idempotency-Key was used for another call").Try("use a key of its own for each call")
	}
	return *r, nil
}

// mayCommand VEEs: those who may change what is the site's, and partners what is theirs.
func mayCommand(c identity.Caller) error {
	if c.Is(identity.Partner) {
		return nil
	}
	return mayWrite(c)
}

func mayWrite(c identity.Caller) error {
	if c.Is(identity.Operator, identity.Provider, identity.SiteRole) {
		return nil
	}
	return fault.New(fault.Denied, "role %q may not change VEEs", c.Role)
}

// reach the host that has a VEE.
func (m *Manager) reach(ctx context.Context, id vee.ID, what string) (string, error) {
	caller := identity.From(ctx)
	if err := mayCommand(caller); err != nil {
		return "", err
	}
	r, ok := m.ledger.vee(id)
	if err := visible(caller, id, r, ok); err != nil {
		return "", err
	}
	if !r.Assigned {
		return "", fault.New(fault.WrongState, "%s of VEE %s: it is on no host (state %s)", what, id, r.State)
	}
	return r.Host, nil
}

// Console: vmi.Service.
func (m *Manager) Console(ctx context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	host, err := m.reach(ctx, id, "console")
	if err != nil {
		return nil, err
	}
	c, err := m.client(host)
	if err != nil {
		return nil, err
	}
	return c.Console(ctx, id)
}

// Tell: vmi.Service.
func (m *Manager) Tell(ctx context.Context, id vee.ID, cmd guest.Command) (guest.Reply, error) {
	host, err := m.reach(ctx, id, "guest command")
	if err != nil {
		return guest.Reply{}, err
	}
	c, err := m.client(host)
	if err != nil {
		return guest.Reply{}, err
	}
	return c.Tell(ctx, id, cmd)
}
