package cli

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// The fake has one migration, which is done as soon as it is asked for.
var fakeMigration = vmi.Migration{ID: "m1", From: "h1", To: "h2", State: vmi.MigrationDone, Stage: vhi.MoveTaken, DowntimeMS: 21}

func (f fakeVEEM) Migrate(_ context.Context, r vmi.Migrate) (vmi.Migration, error) {
	if r.To == "h1" {
		return vmi.Migration{}, fault.New(fault.WrongState, "VEE %s is on host h1 already", r.VEE)
	}
	return f.GetMigration(context.Background(), string(r.VEE))
}

func (f fakeVEEM) GetMigration(_ context.Context, id string) (vmi.Migration, error) {
	m := fakeMigration
	m.Name, m.Started = "web-1", f.born.Add(-time.Minute)
	if id == "none" {
		return m, fault.New(fault.NotFound, "there is no migration none").Try("reservoir vee migrations")
	}
	return m, nil
}

func (f fakeVEEM) ListMigrations(ctx context.Context) ([]vmi.Migration, error) {
	m, err := f.GetMigration(ctx, "m1")
	return []vmi.Migration{m}, err
}

func (f fakeVEEM) CancelMigration(ctx context.Context, id string) (vmi.Migration, error) {
	return f.GetMigration(ctx, id)
}
