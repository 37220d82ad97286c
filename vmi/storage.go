package vmi

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// AtNextBoot begins the detail of an outcome of UpdateVEEs that the guest, where it runs,
// has not got: more follows it where that is not because it does not run.
const AtNextBoot = "applied at next boot"

// VEEUpdate names the fields of one VEE's descriptor that change; nil ones stay.
type VEEUpdate struct {
	ID      vee.ID        `json:"id"`
	Version uint64        `json:"version,omitempty" doc:"change only this version of the VEE; 0: any"`
	Memory  *vee.Bytes    `json:"memoryBytes,omitempty" doc:"beyond the declared range at the next boot"`
	VCPUs   *int          `json:"vcpus,omitempty"`
	CPU     *vee.CPUShare `json:"cpu,omitempty"`
	Tags    *[]string     `json:"tags,omitempty"`
	// Firewall replaces all rules, at once and also of a guest that runs.
	Firewall *[]vee.FirewallRule `json:"firewall,omitempty"`
	// Disks that grow: name to virtual size, bytes.
	Disks map[string]vee.Bytes `json:"disks,omitempty"`
	// Context replaces all of the descriptor's. Only of a VEE that was not submitted yet:
	// what a guest has read cannot be unread.
	Context map[string]string `json:"context,omitempty"`
}

// Storage is the part of the VMI about what VEEs are made of while they live (seed 5, use
// cases 2.2.4 to 2.2.6 and 2.2.9): changes of the descriptor, disks and snapshots.
type Storage interface {
	// UpdateVEEs changes descriptors, and waits for what the guests that run make of it.
	// The detail of each outcome says what was applied live, what is at the next boot and
	// why, or why it is refused: Malformed, Conflict (version), NoResources, QuotaExceeded,
	// WrongState, NotFound, Denied.
	UpdateVEEs(ctx context.Context, us []VEEUpdate) ([]Outcome, error)

	// ListDisks of a VEE that is on a host.
	ListDisks(ctx context.Context, id vee.ID) ([]vee.DiskInfo, error)
	// ExportDisk gives a disk out as a qcow2 file that needs no other; vhi.OpenExport reads
	// the stream. It must not be in use, unless a snapshot of it is named. Errors:
	// WrongState, NotFound, DiskFull.
	ExportDisk(ctx context.Context, id vee.ID, disk, snapshot string) (io.ReadWriteCloser, error)

	// CreateSnapshot of the disks, and of the memory of a VEE that runs or is suspended.
	// One that runs stands still meanwhile. Errors: Exists, WrongState, DiskFull.
	CreateSnapshot(ctx context.Context, id vee.ID, name string, memory bool) (vee.Snapshot, error)
	// ListSnapshots of a VEE, oldest first.
	ListSnapshots(ctx context.Context, id vee.ID) ([]vee.Snapshot, error)
	// RestoreSnapshot gives up what the VEE is now. One that should run then goes on from the
	// snapshot's memory, or boots from its disks. Errors: NotFound, DiskFull.
	RestoreSnapshot(ctx context.Context, id vee.ID, name string) error
	// DeleteSnapshot; of one that is not there it does nothing.
	DeleteSnapshot(ctx context.Context, id vee.ID, name string) error
}

type updatesBody struct {
	Updates []VEEUpdate `json:"updates" minItems:"1" maxItems:"1000"`
}

type snapshotBody struct {
	Memory bool `json:"memory,omitempty" doc:"with the memory of a VEE that runs or is suspended"`
}

type snapshotInput struct {
	ID   string `path:"id" doc:"SITE.xxxxxxxxxx"`
	Name string `path:"name" maxLength:"32"`
}

func registerStorage(s *httpapi.Server, svc Service) {
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vmi/v1/update", Summary: "UpdateVEEs: change memory, vCPUs, CPU share, tags and disks", Roles: commanders},
		func(ctx context.Context, in *struct{ Body updatesBody }) ([]Outcome, error) {
			for _, u := range in.Body.Updates {
				httpapi.Concerns(ctx, string(u.ID))
			}
			return svc.UpdateVEEs(ctx, in.Body.Updates)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/vmi/v1/vees/{id}/disks", Summary: "The disks of a VEE", Roles: followers},
		func(ctx context.Context, in *idInput) ([]vee.DiskInfo, error) {
			id, err := parseID(in.ID)
			if err != nil {
				return nil, err
			}
			return svc.ListDisks(ctx, id)
		})
	s.HandleUpgrade("GET /vmi/v1/vees/{id}/disks/{disk}/export", commanders, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, err := parseID(r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		return svc.ExportDisk(r.Context(), id, r.PathValue("disk"), r.URL.Query().Get("snapshot"))
	})
	const path = "/vmi/v1/vees/{id}/snapshots"
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: path, Summary: "The snapshots of a VEE", Roles: followers},
		func(ctx context.Context, in *idInput) ([]vee.Snapshot, error) {
			id, err := parseID(in.ID)
			if err != nil {
				return nil, err
			}
			return svc.ListSnapshots(ctx, id)
		})
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: path + "/{name}", Summary: "Take a snapshot", Roles: commanders},
		func(ctx context.Context, in *struct {
			ID   string `path:"id" doc:"SITE.xxxxxxxxxx"`
			Name string `path:"name" maxLength:"32"`
			Body snapshotBody
		}) (vee.Snapshot, error) {
			id, err := parseID(in.ID)
			if err != nil {
				return vee.Snapshot{}, err
			}
			return svc.CreateSnapshot(ctx, id, in.Name, in.Body.Memory)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: path + "/{name}/restore", Summary: "Restore a snapshot", Roles: commanders},
		func(ctx context.Context, in *snapshotInput) error {
			id, err := parseID(in.ID)
			if err != nil {
				return err
			}
			return svc.RestoreSnapshot(ctx, id, in.Name)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: path + "/{name}", Summary: "Delete a snapshot", Roles: commanders},
		func(ctx context.Context, in *snapshotInput) error {
			id, err := parseID(in.ID)
			if err != nil {
				return err
			}
			return svc.DeleteSnapshot(ctx, id, in.Name)
		})
}

func (c client) UpdateVEEs(ctx context.Context, us []VEEUpdate) (out []Outcome, err error) {
	err = c.c.Call(ctx, http.MethodPost, "/vmi/v1/update", nil, updatesBody{us}, &out)
	return out, err
}

func (c client) ListDisks(ctx context.Context, id vee.ID) (out []vee.DiskInfo, err error) {
	err = c.c.Call(ctx, http.MethodGet, veePath(id, "/disks"), nil, nil, &out)
	return out, err
}

func (c client) ExportDisk(ctx context.Context, id vee.ID, disk, snapshot string) (io.ReadWriteCloser, error) {
	path := veePath(id, "/disks/"+url.PathEscape(disk)+"/export")
	if snapshot != "" {
		path += "?" + url.Values{"snapshot": {snapshot}}.Encode()
	}
	return c.c.Upgrade(ctx, path)
}

func snapshotPath(id vee.ID, name string) string {
	return veePath(id, "/snapshots/"+url.PathEscape(name))
}

func (c client) CreateSnapshot(ctx context.Context, id vee.ID, name string, memory bool) (out vee.Snapshot, err error) {
	err = c.c.Call(ctx, http.MethodPut, snapshotPath(id, name), nil, snapshotBody{memory}, &out)
	return out, err
}

func (c client) ListSnapshots(ctx context.Context, id vee.ID) (out []vee.Snapshot, err error) {
	err = c.c.Call(ctx, http.MethodGet, veePath(id, "/snapshots"), nil, nil, &out)
	return out, err
}

func (c client) RestoreSnapshot(ctx context.Context, id vee.ID, name string) error {
	return c.c.Call(ctx, http.MethodPost, snapshotPath(id, name)+"/restore", nil, nil, nil)
}

func (c client) DeleteSnapshot(ctx context.Context, id vee.ID, name string) error {
	return c.c.Call(ctx, http.MethodDelete, snapshotPath(id, name), nil, nil, nil)
}
