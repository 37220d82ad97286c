package cli

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// The fake has one migration that is done as soon as it is asked for, and one under way.
var (
	fakeMigration = vmi.Migration{ID: "m1", Name: "web-1", From: "h1", To: "h2", State: vmi.MigrationDone, Stage: vhi.MoveTaken, DowntimeMS: 21,
		Took: vhi.MoveFigures{DiskBytes: 12 << 20, MemoryBytes: 200 << 20, PrepareMS: 310, DisksMS: 420, MemoryMS: 650, DowntimeMS: 21}}
	fakeUnderWay = vmi.Migration{ID: "m2", Name: "db-1", From: "h1", To: "h3", State: vmi.MigrationRunning, Stage: vhi.MoveMemory,
		Bandwidth: 50 << 20, Total: 256 << 20, Left: 64 << 20, DirtyRate: 8 << 20, DowntimeMS: 120}
)

func (f fakeVEEM) Migrate(_ context.Context, r vmi.Migrate) (vmi.Migration, error) {
	if r.To == "h1" {
		return vmi.Migration{}, fault.New(fault.WrongState, "VEE %s is on host h1 already", r.VEE)
	}
	return f.GetMigration(context.Background(), string(r.VEE))
}

func (f fakeVEEM) GetMigration(_ context.Context, id string) (vmi.Migration, error) {
	if id == "none" {
		return vmi.Migration{}, fault.New(fault.NotFound, "there is no migration none").Try("reservoir vee migrations")
	}
	m := fakeMigration
	if id == fakeUnderWay.ID {
		m = fakeUnderWay
	}
	m.Started = f.ago(5 * time.Minute)
	if m.State == vmi.MigrationDone {
		end := m.Started.Add(1412 * time.Millisecond)
		m.Ended = &end
	}
	return m, nil
}

func (f fakeVEEM) ListMigrations(ctx context.Context) ([]vmi.Migration, error) {
	done, _ := f.GetMigration(ctx, "m1")
	underWay, err := f.GetMigration(ctx, "m2")
	return []vmi.Migration{underWay, done}, err
}

func (f fakeVEEM) CancelMigration(ctx context.Context, id string) (vmi.Migration, error) {
	m, err := f.GetMigration(ctx, id)
	if err == nil && m.State == vmi.MigrationDone {
		return m, fault.New(fault.WrongState, "migration %s has ended: %s", id, m.State)
	}
	return m, err
}

func (f fakeVEEM) LimitMigration(ctx context.Context, id string, bandwidth vee.Bytes) (vmi.Migration, error) {
	m, err := f.CancelMigration(ctx, id)
	m.Bandwidth = bandwidth
	return m, err
}
