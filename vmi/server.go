package vmi

import (
	"context"
	"io"
	"net/http"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// Who may: whose VEEs a provider or a partner sees is decided by the Service, object by
// object. Partners are among commanders and followers alone.
var (
	writers    = []identity.Role{identity.Operator, identity.Provider, identity.SiteRole}
	readers    = []identity.Role{identity.Operator, identity.Provider, identity.Auditor, identity.SiteRole}
	commanders = append(slices.Clip(writers), identity.Partner)
	followers  = append(slices.Clip(readers), identity.Partner)
	operators  = []identity.Role{identity.Operator, identity.SiteRole}
	overseers  = []identity.Role{identity.Operator, identity.Auditor, identity.SiteRole}
)

func parseID(s string) (vee.ID, error) {
	id, err := vee.ParseID(s)
	if err != nil {
		return "", fault.New(fault.Malformed, "%w", err)
	}
	return id, nil
}

// idInput and nameInput are the whole input of an operation; where there is more, the
// fields are spelled out, since the library does not look into embedded private types.
type idInput struct {
	ID string `path:"id" doc:"SITE.xxxxxxxxxx"`
}

type nameInput struct {
	Name string `path:"name"`
}

type pointInput struct {
	Group string `path:"group"`
	Name  string `path:"name"`
}

type idsBody struct {
	IDs []vee.ID `json:"ids" minItems:"1" maxItems:"1000"`
}

type stateBody struct {
	State HostState `json:"state" enum:"on,draining"`
}

// concerns notes the VEEs of a call for the audit.
func concerns(ctx context.Context, ids []vee.ID) {
	for _, id := range ids {
		httpapi.Concerns(ctx, string(id))
	}
}

// Register serves svc under /vmi/v1/. InitializeVEEs and UpdateState are Unkeyed: the Service
// keeps their receipts in the same write as what they change.
func Register(s *httpapi.Server, svc Service) {
	registerStorage(s, svc)
	registerCollections(s, svc)
	registerVEEs(s, svc)
	registerAccessPoints(s, svc)
	registerNetworks(s, svc)
	registerReach(s, svc)
	registerHosts(s, svc)
	registerAccounting(s, svc)
	registerMonitoring(s, svc)
	registerQuotas(s, svc)
	registerReservations(s, svc)
	registerMigrations(s, svc)
	registerReconfigurations(s, svc)
	registerOwnership(s, svc)
}

func registerCollections(s *httpapi.Server, svc Service) {
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vmi/v1/vees", Summary: "InitializeVEEs: describe VEEs and get their identifiers", Roles: commanders, Status: http.StatusCreated, Unkeyed: true},
		func(ctx context.Context, in *struct {
			Key  string `header:"Idempotency-Key" maxLength:"128" doc:"a call repeated under the same key returns the first one's result"`
			Body Initialize
		}) (Initialized, error) {
			in.Body.IdempotencyKey = in.Key
			out, err := svc.InitializeVEEs(ctx, in.Body)
			for _, v := range out.VEEs {
				httpapi.Concerns(ctx, string(v.ID))
			}
			return out, err
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vmi/v1/plan", Summary: "Where InitializeVEEs would place, without doing it", Roles: readers},
		func(ctx context.Context, in *struct{ Body Initialize }) ([]Placement, error) {
			return svc.Plan(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vmi/v1/submit", Summary: "SubmitVEEs: deploy and activate", Roles: writers},
		func(ctx context.Context, in *struct{ Body idsBody }) ([]Outcome, error) {
			concerns(ctx, in.Body.IDs)
			return svc.SubmitVEEs(ctx, in.Body.IDs)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vmi/v1/state", Summary: "UpdateState: one action on a list or a set of VEEs", Roles: commanders, Unkeyed: true},
		func(ctx context.Context, in *struct {
			Key  string `header:"Idempotency-Key" maxLength:"128" doc:"a call repeated under the same key returns the first one's result"`
			Body UpdateState
		}) ([]Outcome, error) {
			in.Body.IdempotencyKey = in.Key
			httpapi.Concerns(ctx, string(in.Body.Action))
			concerns(ctx, in.Body.IDs)
			return svc.UpdateState(ctx, in.Body)
		})
}

func registerVEEs(s *httpapi.Server, svc Service) {
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/vmi/v1/vees", Summary: "List VEEs", Roles: followers},
		func(ctx context.Context, in *struct{ Filter }) ([]VEE, error) { return svc.ListVEEs(ctx, in.Filter) })
	httpapi.RegisterStream(s, httpapi.Op{Method: "GET", Path: "/vmi/v1/watch/vees", Summary: "Every VEE as it is, one \"synced\", then every change", Roles: followers},
		func(ctx context.Context, in *struct{ Filter }) (<-chan Change, error) {
			return svc.WatchVEEs(ctx, in.Filter)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/vmi/v1/vees/{id}", Summary: "One VEE", Roles: followers},
		func(ctx context.Context, in *idInput) (VEE, error) {
			id, err := parseID(in.ID)
			if err != nil {
				return VEE{}, err
			}
			return svc.GetVEE(ctx, id)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vmi/v1/vees/{id}/tell", Summary: "Pass a command to the agent in the guest", Roles: commanders},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body guest.Command
		}) (guest.Reply, error) {
			id, err := parseID(in.ID)
			if err != nil {
				return guest.Reply{}, err
			}
			return svc.Tell(ctx, id, in.Body)
		})
	s.HandleUpgrade("GET /vmi/v1/vees/{id}/console", commanders, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, err := parseID(r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		return svc.Console(r.Context(), id)
	})
}

func registerAccessPoints(s *httpapi.Server, svc Service) {
	const path = "/vmi/v1/groups/{group}/access-points/{name}"
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: path, Summary: "Make or change an access point", Roles: commanders},
		func(ctx context.Context, in *struct {
			Group string `path:"group"`
			Name  string `path:"name"`
			Body  AccessPoint
		}) (AccessPoint, error) {
			if in.Body.GroupID != in.Group || in.Body.Name != in.Name {
				return AccessPoint{}, fault.New(fault.Malformed, "the path names access point %s/%s, the body %s/%s", in.Group, in.Name, in.Body.GroupID, in.Body.Name)
			}
			return svc.PutAccessPoint(ctx, in.Body)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: path, Summary: "Remove an access point", Roles: commanders},
		func(ctx context.Context, in *pointInput) error { return svc.DeleteAccessPoint(ctx, in.Group, in.Name) })
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/vmi/v1/access-points", Summary: "List access points", Roles: readers},
		func(ctx context.Context, in *struct {
			Group string `query:"group" doc:"only those of this group"`
		}) ([]AccessPoint, error) {
			return svc.ListAccessPoints(ctx, in.Group)
		})
}

func registerHosts(s *httpapi.Server, svc Service) {
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/vmi/v1/hosts", Summary: "List hosts", Roles: overseers},
		func(ctx context.Context, _ *httpapi.Empty) ([]Host, error) { return svc.ListHosts(ctx) })
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/vmi/v1/hosts/{name}", Summary: "One host", Roles: overseers},
		func(ctx context.Context, in *nameInput) (Host, error) { return svc.GetHost(ctx, in.Name) })
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: "/vmi/v1/hosts/{name}/state", Summary: "Let a host take new VEEs, or not", Roles: operators},
		func(ctx context.Context, in *struct {
			Name string `path:"name"`
			Body stateBody
		}) (Host, error) {
			return svc.SetHostState(ctx, in.Name, in.Body.State)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: "/vmi/v1/hosts/{name}", Summary: "Forget a host that runs no VEE", Roles: operators},
		func(ctx context.Context, in *nameInput) error { return svc.RemoveHost(ctx, in.Name) })
}
