package veem

import (
	"context"
	"io"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Disks and snapshots are where the VEE is, and its host alone knows of them: these calls
// go through to it, under the epoch that the manager has.

// holder is the host that has a VEE's disks. write: something is going to change.
func (m *Manager) holder(ctx context.Context, id vee.ID, what string, write bool) (record, vhi.Host, error) {
	caller := identity.From(ctx)
	if write {
		if err := mayCommand(caller); err != nil {
			return record{}, nil, err
		}
	}
	r, ok := m.ledger.vee(id)
	if err := visible(caller, id, r, ok); err != nil {
		return r, nil, err
	}
	switch {
	case r.State == vee.Destroyed || r.Target == vee.Destroyed:
		return r, nil, fault.New(fault.WrongState, "%s of VEE %s: it is destroyed", what, id)
	case !r.Assigned:
		return r, nil, fault.New(fault.WrongState, "%s of VEE %s: it has none before it is submitted (state %s)", what, id, r.State)
	case write && r.moving():
		return r, nil, fault.New(fault.WrongState, "%s of VEE %s: it is migrating", what, id).Try("wait until it has arrived, or cancel the migration")
	case write && r.State != r.Target:
		return r, nil, fault.New(fault.WrongState, "%s of VEE %s: it is on its way from %s to %s", what, id, r.State, r.Target).
			Try("wait until it has arrived: reservoir vee show %s", id)
	}
	h, err := m.client(r.Host)
	return r, h, err
}

// ListDisks: vmi.Service.
func (m *Manager) ListDisks(ctx context.Context, id vee.ID) ([]vee.DiskInfo, error) {
	_, h, err := m.holder(ctx, id, "disks", false)
	if err != nil {
		return nil, err
	}
	return h.Disks(ctx, id)
}

// ExportDisk: vmi.Service.
func (m *Manager) ExportDisk(ctx context.Context, id vee.ID, disk, snapshot string) (io.ReadWriteCloser, error) {
	_, h, err := m.holder(ctx, id, "export", true)
	if err != nil {
		return nil, err
	}
	return h.ExportDisk(ctx, id, disk, snapshot)
}

// CreateSnapshot: vmi.Service.
func (m *Manager) CreateSnapshot(ctx context.Context, id vee.ID, name string, memory bool) (vee.Snapshot, error) {
	r, h, err := m.holder(ctx, id, "snapshot", true)
	if err != nil {
		return vee.Snapshot{}, err
	}
	s, err := h.CreateSnapshot(ctx, id, r.Epoch, name, memory)
	if err == nil {
		m.record(about(&r, "Snapshot", "snapshot "+name+" takes "+s.Size.String()))
	}
	return s, err
}

// ListSnapshots: vmi.Service.
func (m *Manager) ListSnapshots(ctx context.Context, id vee.ID) ([]vee.Snapshot, error) {
	_, h, err := m.holder(ctx, id, "snapshots", false)
	if err != nil {
		return nil, err
	}
	return h.Snapshots(ctx, id)
}

// RestoreSnapshot: vmi.Service.
func (m *Manager) RestoreSnapshot(ctx context.Context, id vee.ID, name string) error {
	r, h, err := m.holder(ctx, id, "restore", true)
	if err != nil {
		return err
	}
	if r.Target != vee.Active && r.Target != vee.Defined {
		return fault.New(fault.WrongState, "restore of VEE %s: it is %s, and its memory would be another", id, r.State).
			Try("reservoir vee activate %s, or reservoir vee shutdown %s", id, id)
	}
	if err := h.RestoreSnapshot(ctx, id, r.Epoch, name); err != nil {
		return err
	}
	m.record(about(&r, "Restored", "as in snapshot "+name))
	return nil
}

// DeleteSnapshot: vmi.Service.
func (m *Manager) DeleteSnapshot(ctx context.Context, id vee.ID, name string) error {
	r, h, err := m.holder(ctx, id, "snapshot", true)
	if err != nil {
		return err
	}
	return h.DeleteSnapshot(ctx, id, r.Epoch, name)
}

// about r, an event that no change of its record shows.
func about(r *record, reason, message string) Event {
	return Event{Reason: reason, Object: "vee/" + string(r.ID), Customer: r.Descriptor.Customer, GroupID: r.Descriptor.GroupID,
		Message: r.Descriptor.Name + ": " + message}
}
