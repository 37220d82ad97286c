package vmi

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// MigrationState is what became of a live migration.
type MigrationState string

// States. A VEE whose migration failed or was cancelled runs where it was.
const (
	MigrationRunning   MigrationState = "running"
	MigrationDone      MigrationState = "done"
	MigrationFailed    MigrationState = "failed"
	MigrationCancelled MigrationState = "cancelled"
)

// Migrate is the parameter of Migrate.
type Migrate struct {
	VEE          vee.ID    `json:"vee"`
	To           string    `json:"to,omitempty" doc:"host; empty: the placement chooses"`
	Bandwidth    vee.Bytes `json:"bandwidthBytes,omitempty" minimum:"0" doc:"limit per second; 0: none"`
	Cold         bool      `json:"cold,omitempty" doc:"it goes stopped or suspended, as it is; one that runs is shut down for it, and boots there"`
	AutoConverge bool      `json:"autoConverge,omitempty" doc:"slow the guest down if it changes memory faster than it can be sent"`
	DeadlineMS   int64     `json:"deadlineMs,omitempty" minimum:"0" doc:"cancelled when it has not come to its commit point by then, ms; 0: never"`
}

// Migration is one live migration of a VEE between two hosts of the site. The last one of
// each VEE is kept as long as the VEE's record.
type Migration struct {
	ID           string         `json:"id"`
	VEE          vee.ID         `json:"vee"`
	Name         string         `json:"name"`
	From         string         `json:"from"`
	To           string         `json:"to"`
	State        MigrationState `json:"state"`
	Cold         vhi.Power      `json:"cold,omitempty" doc:"it goes over in this power, stopped or suspended; empty: while it runs"`
	By           string         `json:"by,omitempty" doc:"why its hosts move it by themselves; empty: the site does"`
	Stage        vhi.MoveStage  `json:"stage,omitempty"` // observed
	Cancelling   bool           `json:"cancelling,omitempty"`
	Bandwidth    vee.Bytes      `json:"bandwidthBytes,omitempty"`
	AutoConverge bool           `json:"autoConverge,omitempty"`
	Started      time.Time      `json:"started"`
	Ended        *time.Time     `json:"ended,omitempty"`
	Deadline     *time.Time     `json:"deadline,omitempty"`
	// Of the stage: bytes in all, left, and (memory) changed per second. When it is done,
	// Total is what went over.
	Total     vee.Bytes `json:"totalBytes,omitempty"`
	Left      vee.Bytes `json:"leftBytes,omitempty"`
	DirtyRate vee.Bytes `json:"dirtyBytesPerSecond,omitempty"`
	// DowntimeMS is predicted while it runs; when it is done, how long the vCPUs stood still.
	DowntimeMS int64           `json:"downtimeMs,omitempty"`
	Took       vhi.MoveFigures `json:"took,omitzero" doc:"of one that is done: bytes that went over, and the time of each stage"`
	Error      string          `json:"error,omitempty"`
	Code       string          `json:"code,omitempty"`
}

// Migrations move running VEEs between hosts. Hosts are the site's own affair: operators
// migrate, auditors look.
type Migrations interface {
	// Migrate begins one and returns. Errors: WrongState (not ACTIVE, or on its way
	// already), NoResources (the host has no room, cannot, or breaks a placement rule),
	// NotFound, Denied.
	Migrate(ctx context.Context, r Migrate) (Migration, error)
	// ListMigrations, the newest first.
	ListMigrations(ctx context.Context) ([]Migration, error)
	// GetMigration by its own identifier or by its VEE's.
	GetMigration(ctx context.Context, id string) (Migration, error)
	// CancelMigration has it undone unless it has come to its commit point; what became of
	// it is seen by GetMigration. Errors: WrongState (it has ended), NotFound.
	CancelMigration(ctx context.Context, id string) (Migration, error)
	// LimitMigration sets the most that one may take per second, also while it is under way;
	// 0: no limit. Errors: WrongState (it has ended), NotFound, Malformed.
	LimitMigration(ctx context.Context, id string, bandwidth vee.Bytes) (Migration, error)
}

const migrationsPath = "/vmi/v1/migrations"

func registerMigrations(s *httpapi.Server, svc Migrations) {
	type input struct {
		ID string `path:"id"`
	}
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: migrationsPath, Summary: "Move a running VEE to another host", Roles: operators, Status: http.StatusAccepted},
		func(ctx context.Context, in *struct{ Body Migrate }) (Migration, error) {
			httpapi.Concerns(ctx, string(in.Body.VEE))
			return svc.Migrate(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: migrationsPath, Summary: "List migrations", Roles: overseers},
		func(ctx context.Context, _ *httpapi.Empty) ([]Migration, error) { return svc.ListMigrations(ctx) })
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: migrationsPath + "/{id}", Summary: "How far a migration is", Roles: overseers},
		func(ctx context.Context, in *input) (Migration, error) { return svc.GetMigration(ctx, in.ID) })
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: migrationsPath + "/{id}/cancel", Summary: "Cancel a migration before its commit point", Roles: operators, Status: http.StatusAccepted},
		func(ctx context.Context, in *input) (Migration, error) { return svc.CancelMigration(ctx, in.ID) })
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: migrationsPath + "/{id}/limit", Summary: "Limit the bandwidth of a migration, also of one under way", Roles: operators},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body migrationLimit
		}) (Migration, error) {
			return svc.LimitMigration(ctx, in.ID, in.Body.Bandwidth)
		})
}

type migrationLimit struct {
	Bandwidth vee.Bytes `json:"bandwidthBytes" minimum:"0" doc:"per second; 0: none"`
}

func (c client) Migrate(ctx context.Context, r Migrate) (out Migration, err error) {
	err = c.c.Call(ctx, http.MethodPost, migrationsPath, nil, r, &out)
	return out, err
}

func (c client) ListMigrations(ctx context.Context) (out []Migration, err error) {
	err = c.c.Call(ctx, http.MethodGet, migrationsPath, nil, nil, &out)
	return out, err
}

func (c client) GetMigration(ctx context.Context, id string) (out Migration, err error) {
	err = c.c.Call(ctx, http.MethodGet, migrationsPath+"/"+url.PathEscape(id), nil, nil, &out)
	return out, err
}

func (c client) CancelMigration(ctx context.Context, id string) (out Migration, err error) {
	err = c.c.Call(ctx, http.MethodPost, migrationsPath+"/"+url.PathEscape(id)+"/cancel", nil, nil, &out)
	return out, err
}

func (c client) LimitMigration(ctx context.Context, id string, bandwidth vee.Bytes) (out Migration, err error) {
	err = c.c.Call(ctx, http.MethodPut, migrationsPath+"/"+url.PathEscape(id)+"/limit", nil, migrationLimit{bandwidth}, &out)
	return out, err
}
