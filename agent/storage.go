package agent

import (
	"context"
	"io"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

var _ vhi.Storage = (*agent)(nil)

// Disks implements vhi.Storage.
func (a *agent) Disks(ctx context.Context, id vee.ID) ([]vee.DiskInfo, error) {
	return a.tracker.Disks(ctx, id)
}

// ExportDisk implements vhi.Storage.
func (a *agent) ExportDisk(ctx context.Context, id vee.ID, disk, snapshot string) (io.ReadWriteCloser, error) {
	return a.tracker.ExportDisk(ctx, id, disk, snapshot)
}

// Checkpoint implements vhi.Storage.
func (a *agent) Checkpoint(ctx context.Context, id vee.ID, n int, from int64) (io.ReadWriteCloser, error) {
	return a.ves.ReadFrom(ctx, id, n, from)
}

// Snapshots implements vhi.Storage.
func (a *agent) Snapshots(ctx context.Context, id vee.ID) ([]vee.Snapshot, error) {
	return a.tracker.Snapshots(ctx, id)
}

// CreateSnapshot implements vhi.Storage.
func (a *agent) CreateSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string, memory bool) (vee.Snapshot, error) {
	return a.tracker.CreateSnapshot(ctx, id, e, name, memory)
}

// RestoreSnapshot implements vhi.Storage.
func (a *agent) RestoreSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error {
	return a.tracker.RestoreSnapshot(ctx, id, e, name)
}

// DeleteSnapshot implements vhi.Storage.
func (a *agent) DeleteSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error {
	return a.tracker.DeleteSnapshot(ctx, id, e, name)
}
