package peer

import (
	"context"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

const base = "/federation/v1"

// AcceptPath is the only operation that a stranger may call: its one-time token is the proof.
const AcceptPath = base + "/accept"

var partners = []identity.Role{identity.Partner}

// RegisterHost serves h's one operation, which must be open (httpapi.Server.Handler).
func RegisterHost(s *httpapi.Server, h Host) {
	httpapi.RegisterOpen(s, httpapi.Op{Method: "POST", Path: AcceptPath, Summary: "Become a partner by a one-time token"},
		func(ctx context.Context, in *struct{ Body Acceptance }) (Introduction, error) {
			return h.Accept(ctx, in.Body)
		})
}

// Register serves svc to partners under /federation/v1/.
func Register(s *httpapi.Server, svc Site) {
	registerTrust(s, svc)
	registerAgreements(s, svc)
	registerPublisher(s, svc)
	registerNetworks(s, svc)
	registerMoves(s, svc)
	registerBooks(s, svc)
	registerCooperation(s, svc)
	registerGauges(s, svc)
}

func registerTrust(s *httpapi.Server, svc Trust) {
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: base + "/hello", Summary: "Greet: capabilities, clock, way in", Roles: partners, Asks: true},
		func(ctx context.Context, in *struct{ Body Hello }) (Hello, error) {
			if c := identity.From(ctx); c.Site != in.Body.Site {
				return Hello{}, fault.New(fault.Denied, "site %s may not greet for site %q", c.Site, in.Body.Site)
			}
			return svc.Hello(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: base + "/bundle", Summary: "This site's trust bundle", Roles: partners},
		func(ctx context.Context, _ *httpapi.Empty) (Bundle, error) { return svc.Bundle(ctx) })
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: base + "/leave", Summary: "End the partnership", Roles: partners},
		func(ctx context.Context, _ *httpapi.Empty) error { return svc.Leave(ctx) })
}

func registerAgreements(s *httpapi.Server, svc Agreements) {
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: base + "/agreements/{id}", Summary: "Propose an agreement, or sign one", Roles: partners},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body Agreement
		}) (Agreement, error) {
			if in.Body.ID != in.ID {
				return Agreement{}, fault.New(fault.Malformed, "the path names agreement %s, the body %s", in.ID, in.Body.ID)
			}
			httpapi.Concerns(ctx, in.ID)
			return svc.PutAgreement(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: base + "/agreements/{id}/end", Summary: "End an agreement", Roles: partners},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body End
		}) (Agreement, error) {
			if in.Body.Agreement != in.ID {
				return Agreement{}, fault.New(fault.Malformed, "the path names agreement %s, the body %s", in.ID, in.Body.Agreement)
			}
			httpapi.Concerns(ctx, in.ID)
			return svc.EndAgreement(ctx, in.Body)
		})
}

func registerPublisher(s *httpapi.Server, svc Publisher) {
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: base + "/attributes", Summary: "What this site has to offer now", Roles: partners},
		func(ctx context.Context, _ *httpapi.Empty) (Attributes, error) { return svc.Attributes(ctx) })
	httpapi.RegisterStream(s, httpapi.Op{Method: "GET", Path: base + "/attributes/watch", Summary: "What this site has to offer, as it changes", Roles: partners},
		func(ctx context.Context, _ *httpapi.Empty) (<-chan Attributes, error) {
			return svc.WatchAttributes(ctx)
		})
}

func registerNetworks(s *httpapi.Server, svc Networks) {
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "PUT", Path: base + "/networks/{id}", Summary: "Share a network", Roles: partners},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body Network
		}) error {
			if in.Body.ID != in.ID {
				return fault.New(fault.Malformed, "the path names network %s, the body %s", in.ID, in.Body.ID)
			}
			httpapi.Concerns(ctx, in.ID)
			return svc.PutNetwork(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: base + "/networks", Summary: "The networks that the caller shares here, and their versions", Roles: partners},
		func(ctx context.Context, _ *httpapi.Empty) (map[string]uint64, error) { return svc.HeldNetworks(ctx) })
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: base + "/networks/{id}", Summary: "Share a network no longer", Roles: partners},
		func(ctx context.Context, in *struct {
			ID string `path:"id"`
		}) error {
			httpapi.Concerns(ctx, in.ID)
			return svc.RemoveNetwork(ctx, in.ID)
		})
}

func registerMoves(s *httpapi.Server, svc Moves) {
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: base + "/moves/{id}", Summary: "Receive a VEE that migrates live, or send one", Roles: partners},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body MoveOrder
		}) (vmi.VEE, error) {
			if string(in.Body.VEE) != in.ID {
				return vmi.VEE{}, fault.New(fault.Malformed, "the path names VEE %s, the order %s", in.ID, in.Body.VEE)
			}
			httpapi.Concerns(ctx, in.ID)
			return svc.PutMove(ctx, in.Body)
		})
}

func registerBooks(s *httpapi.Server, svc Books) {
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: base + "/books/{agreement}", Summary: "This site's book about VEEs under an agreement with the caller", Roles: partners},
		func(ctx context.Context, in *struct {
			Agreement string `path:"agreement"`
			Period    string `query:"period" doc:"a month: 2026-11"`
			After     string `query:"after" maxLength:"200" doc:"next of the page before"`
		}) (Page, error) {
			return svc.Lines(ctx, LinesAsked{in.Agreement, in.Period, in.After})
		})
}

func registerGauges(s *httpapi.Server, svc Gauges) {
	httpapi.RegisterStream(s, httpapi.Op{Method: "GET", Path: base + "/measurements", Summary: "Measurements of the caller's VEEs, as they are produced", Roles: partners},
		func(ctx context.Context, in *struct {
			VEEs []string `query:"vees" doc:"none: all of the caller's"`
		}) (<-chan vmi.MonitoringEvent, error) {
			var ids []vee.ID
			for _, text := range in.VEEs {
				id, err := vee.ParseID(text)
				if err != nil {
					return nil, fault.New(fault.Malformed, "%w", err)
				}
				ids = append(ids, id)
			}
			return svc.Measurements(ctx, ids)
		})
}
