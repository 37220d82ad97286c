package admin

import (
	"context"
	"net/http"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/veem/federation/standby"
)

// Promotion orders this site to go on with services of a partner that is lost.
type Promotion struct {
	Service  string `json:"service,omitempty" doc:"its name or its ID; empty: all that were shipped here"`
	Customer string `json:"customer,omitempty" doc:"of this site, that they are to be of; empty: SITE-CUSTOMER"`
	Sure     bool   `json:"sure" doc:"the partner is lost for good"`
	Fenced   bool   `json:"fenced,omitempty" doc:"somebody has made sure that nothing of them runs there any more"`
}

// Cooperation is the operator's interface to what sites do for each other's services.
type Cooperation interface {
	// ListStandbys of this site's services, and what this site keeps as one.
	ListStandbys(ctx context.Context) ([]standby.Shown, error)
	// Promote this site over a partner's services. Errors: Malformed (not sure), NotFound,
	// WrongState (the partner answers, or did just now), Conflict (another standby has).
	Promote(ctx context.Context, site string, p Promotion) ([]standby.Shown, error)
	// ImagesElsewhere are images that partners have ahead, by digest, with the partners' names.
	ImagesElsewhere(ctx context.Context) (map[string][]string, error)
}

// RegisterCooperation serves c to the site's operators.
func RegisterCooperation(s *httpapi.Server, c Cooperation) {
	operators, overseers := []identity.Role{identity.Operator}, []identity.Role{identity.Operator, identity.Auditor}
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: prefix + "/standbys", Summary: "What standbys have of services, here and at partners", Roles: overseers},
		func(ctx context.Context, _ *httpapi.Empty) ([]standby.Shown, error) { return c.ListStandbys(ctx) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: prefix + "/images-elsewhere", Summary: "Images that partners have ahead", Roles: overseers},
		func(ctx context.Context, _ *httpapi.Empty) (map[string][]string, error) {
			return c.ImagesElsewhere(ctx)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: partnersPath + "/{name}/promote", Summary: "Go on with services of a partner that is lost", Roles: operators},
		func(ctx context.Context, in *struct {
			Name string `path:"name"`
			Body Promotion
		}) ([]standby.Shown, error) {
			httpapi.Concerns(ctx, "partner/"+in.Name)
			return c.Promote(ctx, in.Name, in.Body)
		})
}

// CooperationClient implements Cooperation over HTTP.
type CooperationClient struct{ c *httpapi.Client }

// NewCooperationClient speaks to the site that c calls.
func NewCooperationClient(c *httpapi.Client) *CooperationClient { return &CooperationClient{c} }

var _ Cooperation = (*CooperationClient)(nil)

// ListStandbys implements Cooperation.
func (c *CooperationClient) ListStandbys(ctx context.Context) ([]standby.Shown, error) {
	return ask[[]standby.Shown](ctx, c.c, http.MethodGet, prefix+"/standbys", nil)
}

// ImagesElsewhere implements Cooperation.
func (c *CooperationClient) ImagesElsewhere(ctx context.Context) (map[string][]string, error) {
	return ask[map[string][]string](ctx, c.c, http.MethodGet, prefix+"/images-elsewhere", nil)
}

// Promote implements Cooperation.
func (c *CooperationClient) Promote(ctx context.Context, site string, p Promotion) ([]standby.Shown, error) {
	return ask[[]standby.Shown](ctx, c.c, http.MethodPost, onePartner(site, "/promote"), p)
}
