package smi

import (
	"context"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
)

// decide is the body that lets rules decide or pauses them.
type decide struct {
	On bool `json:"on"`
}

// RegisterElasticity serves e on s.
func RegisterElasticity(s *httpapi.Server, e Elasticity) {
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/smi/v1/services/{name}/rules", Summary: "The rules by which a service changes its size, and what they have decided", Roles: readers},
		func(ctx context.Context, in *named) (Rules, error) { return e.Rules(ctx, in.Customer, in.Name) })
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: "/smi/v1/services/{name}/components/{component}/rules", Summary: "Let the rules of a component decide, or pause them", Roles: writers},
		func(ctx context.Context, in *struct {
			Name      string `path:"name" maxLength:"32"`
			Customer  string `query:"customer" doc:"empty: the caller's own"`
			Component string `path:"component" maxLength:"32"`
			Body      decide
		}) (Rules, error) {
			return e.SetRules(ctx, in.Customer, in.Name, in.Component, in.Body.On)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/smi/v1/services/{name}/rules/replay", Summary: "What the rules would have decided on measurements; changes nothing", Roles: readers},
		func(ctx context.Context, in *struct {
			Name     string `path:"name" maxLength:"32"`
			Customer string `query:"customer" doc:"empty: the caller's own"`
			Body     Replay
		}) (Replayed, error) {
			return e.Replay(ctx, in.Customer, in.Name, in.Body)
		})
}

type elasticClient struct{ c *httpapi.Client }

// NewElasticityClient speaks over HTTP to who serves an Elasticity.
func NewElasticityClient(c *httpapi.Client) Elasticity { return elasticClient{c} }

func (c elasticClient) Rules(ctx context.Context, customer, name string) (r Rules, err error) {
	err = c.c.Call(ctx, http.MethodGet, serviceURL(name, "/rules"), query("customer", customer), nil, &r)
	return r, err
}

func (c elasticClient) SetRules(ctx context.Context, customer, name, component string, on bool) (r Rules, err error) {
	path := serviceURL(name, "/components/"+url.PathEscape(component)+"/rules")
	err = c.c.Call(ctx, http.MethodPut, path, query("customer", customer), decide{on}, &r)
	return r, err
}

func (c elasticClient) Replay(ctx context.Context, customer, name string, p Replay) (r Replayed, err error) {
	err = c.c.Call(ctx, http.MethodPost, serviceURL(name, "/rules/replay"), query("customer", customer), p, &r)
	return r, err
}
