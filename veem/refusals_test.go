package veem

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// fakeShelf is a host on which every disk and every snapshot is there.
type fakeShelf struct{}

func (fakeShelf) Disks(context.Context, vee.ID) ([]vee.DiskInfo, error) {
	return []vee.DiskInfo{{Name: "root"}}, nil
}
func (fakeShelf) ExportDisk(context.Context, vee.ID, string, string) (io.ReadWriteCloser, error) {
	return nopCloser{&bytes.Buffer{}}, nil
}
func (fakeShelf) Checkpoint(context.Context, vee.ID, int, int64) (io.ReadWriteCloser, error) {
	return nopCloser{&bytes.Buffer{}}, nil
}
func (fakeShelf) Snapshots(context.Context, vee.ID) ([]vee.Snapshot, error) { return nil, nil }
func (fakeShelf) CreateSnapshot(context.Context, vee.ID, vee.Epoch, string, bool) (vee.Snapshot, error) {
	return vee.Snapshot{}, nil
}
func (fakeShelf) RestoreSnapshot(context.Context, vee.ID, vee.Epoch, string) error { return nil }
func (fakeShelf) DeleteSnapshot(context.Context, vee.ID, vee.Epoch, string) error  { return nil }

// method of the VMI that is about one VEE, as its error or its outcome's code.
type method struct {
	name string
	call func(ctx context.Context, m *Manager, id vee.ID) fault.Code
}

func codeOf(err error) fault.Code {
	if err == nil {
		return ""
	}
	return fault.From(err).Code
}

func codeOfFirst(outs []vmi.Outcome, err error) fault.Code {
	if err != nil {
		return codeOf(err)
	}
	return fault.Code(outs[0].Code)
}

func methodsOnAVEE() []method {
	memory := 2 * vee.GiB
	ms := []method{
		{"GetVEE", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			_, err := m.GetVEE(ctx, id)
			return codeOf(err)
		}},
		{"ListDisks", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			_, err := m.ListDisks(ctx, id)
			return codeOf(err)
		}},
		{"ListSnapshots", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			_, err := m.ListSnapshots(ctx, id)
			return codeOf(err)
		}},
		{"SubmitVEEs", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			return codeOfFirst(m.SubmitVEEs(ctx, []vee.ID{id}))
		}},
		{"UpdateVEEs", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			return codeOfFirst(m.UpdateVEEs(ctx, []vmi.VEEUpdate{{ID: id, Memory: &memory}}))
		}},
		{"Console", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			_, err := m.Console(ctx, id)
			return codeOf(err)
		}},
		{"Tell", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			_, err := m.Tell(ctx, id, guest.Command{Type: "ready"})
			return codeOf(err)
		}},
		{"ExportDisk", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			_, err := m.ExportDisk(ctx, id, "root", "")
			return codeOf(err)
		}},
		{"CreateSnapshot", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			_, err := m.CreateSnapshot(ctx, id, "one", false)
			return codeOf(err)
		}},
		{"RestoreSnapshot", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			return codeOf(m.RestoreSnapshot(ctx, id, "one"))
		}},
		{"DeleteSnapshot", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			return codeOf(m.DeleteSnapshot(ctx, id, "one"))
		}},
		{"Register", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			return codeOf(m.RegisterAccountingInformationListener(ctx, vmi.AccountingRegistration{IDs: []vee.ID{id}, IntervalMS: 60_000}))
		}},
		{"Deregister", func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			return codeOf(m.DeregisterAccountingInformationListener(ctx, []vee.ID{id}))
		}},
	}
	for _, a := range vee.Actions {
		ms = append(ms, method{string(a), func(ctx context.Context, m *Manager, id vee.ID) fault.Code {
			return codeOfFirst(m.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: a, Wait: true}))
		}})
	}
	return ms
}

// Every method, of a VEE that there is not, of another site's, of another customer's, and
// called by those who may not.
func TestUnknownAndForeign(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		everybody := listeners{}
		for _, c := range []identity.Caller{identity.From(s.operator()), identity.From(s.provider("evil")), identity.From(s.provider("acme"))} {
			everybody[c] = &bookkeeper{}
		}
		s.stop()
		s.more = everybody
		s.start()
		id := s.deploy(1)[0]
		s.hosts[0].Storage = fakeShelf{}
		auditor := identity.With(context.Background(), identity.Caller{ID: "a", Role: identity.Auditor})
		reads := []string{"GetVEE", "ListDisks", "ListSnapshots"}
		for _, m := range methodsOnAVEE() {
			for who, c := range map[string]struct {
				ctx  context.Context
				id   vee.ID
				want fault.Code
			}{
				"unknown":            {s.operator(), "alpha.zzzzzzzzzz", fault.NotFound},
				"of another site":    {s.operator(), "beta.aaaaaaaaaa", fault.NotFound},
				"another customer's": {s.provider("evil"), id, fault.Denied},
				"nobody":             {context.Background(), id, fault.Denied},
				"partner":            {identity.With(context.Background(), identity.Caller{ID: "p", Role: identity.Partner}), id, fault.Denied},
			} {
				if got := m.call(c.ctx, s.m, c.id); got != c.want {
					t.Errorf("%s, %s: %q, want %q", m.name, who, got, c.want)
				}
			}
			if got := m.call(auditor, s.m, id); slices.Contains(reads, m.name) != (got == "") || got != "" && got != fault.Denied {
				t.Errorf("%s by an auditor: %q", m.name, got)
			}
		}
		for _, who := range []string{"unknown", "evil"} {
			if _, err := s.m.GetMigration(s.operator(), who); !fault.Has(err, fault.NotFound) {
				t.Errorf("migration %s: %v", who, err)
			}
			if _, err := s.m.LimitMigration(s.operator(), who, vee.MiB); !fault.Has(err, fault.NotFound) {
				t.Errorf("limit a migration that is not: %v", err)
			}
			if _, err := s.m.CancelMigration(s.operator(), who); !fault.Has(err, fault.NotFound) {
				t.Errorf("cancel migration %s: %v", who, err)
			}
		}
		if _, err := s.m.Migrate(s.provider("acme"), vmi.Migrate{VEE: id}); !fault.Has(err, fault.Denied) {
			t.Errorf("migrated by its provider: %v", err)
		}
		if v := s.get(id); v.State != vee.Active || v.Target != vee.Active || v.Descriptor.Memory != vee.GiB {
			t.Errorf("it was changed: %+v", v)
		}
	})
}

type listeners = map[identity.Caller]vmi.AccountingListener

// Every method that is no action, in every state: "" is done.
func TestMethodsInEveryState(t *testing.T) {
	const ok, no = fault.Code(""), fault.WrongState
	table := map[string][]fault.Code{ // INITIAL DEFINED ACTIVE PAUSED SUSPENDED DESTROYED
		"GetVEE":          {ok, ok, ok, ok, ok, ok},
		"SubmitVEEs":      {ok, ok, no, no, no, no},
		"UpdateVEEs":      {ok, ok, ok, ok, ok, no},
		"Console":         {no, no, ok, ok, ok, no},
		"Tell":            {no, no, ok, ok, ok, no},
		"ListDisks":       {no, no, ok, ok, ok, no},
		"ListSnapshots":   {no, no, ok, ok, ok, no},
		"ExportDisk":      {no, no, ok, ok, ok, no},
		"CreateSnapshot":  {no, no, ok, ok, ok, no},
		"RestoreSnapshot": {no, no, ok, no, no, no},
		"DeleteSnapshot":  {no, no, ok, ok, ok, no},
	}
	inSite(t, 1, func(s *fakeSite) {
		s.hosts[0].Storage = fakeShelf{}
		n := 0
		for _, m := range methodsOnAVEE() {
			want, here := table[m.name]
			if !here {
				continue
			}
			for i, state := range vee.States {
				n++
				id := s.inState(state, n)
				if got := m.call(s.operator(), s.m, id); got != want[i] {
					t.Errorf("%s of a %s one: %q, want %q", m.name, state, got, want[i])
				}
				s.act(vee.Destroy, id)
			}
		}
		for _, state := range vee.States { // there is no other host
			n++
			id := s.inState(state, n)
			want := fault.WrongState
			if state == vee.Active {
				want = fault.NoResources
			}
			if _, err := s.m.Migrate(s.operator(), vmi.Migrate{VEE: id}); !fault.Has(err, want) {
				t.Errorf("Migrate of a %s one: %v, want %s", state, err, want)
			}
			s.act(vee.Destroy, id)
		}
	})
}

// A collection some of which cannot: each has its outcome. A list goes on with the next one
// when the one before has failed, and not sooner; a set is done at once.
func TestACollectionOfWhichSomeFail(t *testing.T) {
	inSite(t, 4, func(s *fakeSite) { // a VEE on each host
		var full, fine []vee.ID
		for _, id := range s.deploy(4) {
			if h := s.get(id).Host; h == "h1" || h == "h2" {
				full = append(full, id)
			} else {
				fine = append(fine, id)
			}
		}
		if len(full) != 2 || len(fine) != 2 {
			t.Fatalf("on h1 and h2 %v, on the others %v", full, fine)
		}
		for i, h := range s.hosts {
			h.set(func() { h.failSave = i < 2; h.slow = time.Second })
		}
		some := []vee.ID{full[0], fine[0], "alpha.zzzzzzzzzz", full[1], fine[1]}
		want := []bool{false, true, false, false, true}
		suspend := func(ordered bool) (took time.Duration) {
			t.Helper()
			start := time.Now()
			outs, err := s.m.UpdateState(s.operator(), vmi.UpdateState{Collection: vmi.Collection{IDs: some, Ordered: ordered}, Action: vee.Suspend, Wait: true})
			if err != nil || len(outs) != len(some) {
				t.Fatalf("%+v, %v", outs, err)
			}
			for i, o := range outs {
				if o.ID != some[i] || o.OK != want[i] || !o.OK && o.Detail == "" {
					t.Errorf("ordered %v: outcome %d is %+v, want ok %v", ordered, i, o, want[i])
				}
			}
			took = time.Since(start)
			for i, id := range some {
				if id == "alpha.zzzzzzzzzz" {
					continue
				}
				state := vee.Active
				if want[i] {
					state = vee.Suspended
				}
				if v := s.get(id); v.State != state {
					t.Errorf("ordered %v: VEE %d is %s, want %s", ordered, i, v.State, state)
				}
			}
			if ordered && !s.get(fine[1]).Changed.After(s.get(fine[0]).Changed) {
				t.Error("the last of the list was done before the one before it")
			}
			return took
		}
		list := suspend(true)
		s.act(vee.Activate, fine...)
		set := suspend(false)
		if set >= list { // in virtual time
			t.Errorf("a set took %v, a list %v", set, list)
		}
	})
}
