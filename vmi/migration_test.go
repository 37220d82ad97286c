package vmi_test

import (
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var someMigration = vmi.Migration{ID: "m1", VEE: id, Name: "web-1", From: "h1", To: "h2", State: vmi.MigrationRunning, Stage: vhi.MoveMemory,
	Bandwidth: 1 << 20, AutoConverge: true, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Deadline: &until,
	Total: 256 << 20, Left: 1 << 20, DirtyRate: 4096, DowntimeMS: 12}

func (r *recorder) Migrate(_ context.Context, in vmi.Migrate) (vmi.Migration, error) {
	return someMigration, r.got("Migrate", in)
}

func (r *recorder) ListMigrations(context.Context) ([]vmi.Migration, error) {
	return []vmi.Migration{someMigration}, r.got("ListMigrations")
}

func (r *recorder) GetMigration(_ context.Context, id string) (vmi.Migration, error) {
	return someMigration, r.got("GetMigration", id)
}

func (r *recorder) CancelMigration(_ context.Context, id string) (vmi.Migration, error) {
	return someMigration, r.got("CancelMigration", id)
}

func (r *recorder) LimitMigration(_ context.Context, id string, bandwidth vee.Bytes) (vmi.Migration, error) {
	return someMigration, r.got("LimitMigration", id, bandwidth)
}

func migrations(ctx context.Context, s vmi.Migrations) (results []any, errs []error) {
	add := func(result any, err error) { results, errs = append(results, result), append(errs, err) }
	add(s.Migrate(ctx, vmi.Migrate{VEE: id, To: "h2", Bandwidth: 1 << 20, AutoConverge: true, DeadlineMS: 5000}))
	add(s.ListMigrations(ctx))
	add(s.GetMigration(ctx, "m1"))
	add(s.CancelMigration(ctx, "m1"))
	add(s.LimitMigration(ctx, "m1", 5<<20))
	return results, errs
}

func TestMigrationsOverTheNetwork(t *testing.T) {
	near, far := &recorder{}, &recorder{}
	client, _ := serve(t, far, identity.Operator)
	want, _ := migrations(t.Context(), near)
	got, errs := migrations(t.Context(), client)
	for i, err := range errs {
		if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(far.calls, near.calls) {
		t.Errorf("answers %+v\nwant %+v\ncalls %+v\nwant %+v", got, want, far.calls, near.calls)
	}
}
