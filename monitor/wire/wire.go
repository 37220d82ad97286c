// Package wire is monitoring over HTTP: the reports of hosts, and what people ask and order
// of probes. Measurements themselves are queried over promapi.
package wire

import (
	"context"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/monitor"
)

const prefix = "/monitor/v1"

// Service is a site's monitoring.
type Service interface {
	monitor.Uplink // of the host that is the caller of ctx
	monitor.Control
}

// ProbeReport is a monitor.Report under a name of its own: a site's OpenAPI document knows
// the reports of a host about its VEEs by the other.
type ProbeReport monitor.Report

// Register serves svc.
func Register(s *httpapi.Server, svc Service) {
	readers := []identity.Role{identity.Operator, identity.Auditor, identity.Provider, identity.SiteRole}
	writers := []identity.Role{identity.Operator, identity.Provider, identity.SiteRole}

	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: prefix + "/reports", Summary: "What a host's probes have measured", Roles: []identity.Role{identity.HostRole}},
		func(ctx context.Context, in *struct{ Body ProbeReport }) (monitor.Orders, error) {
			return svc.Report(ctx, monitor.Report(in.Body))
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: prefix + "/probes", Summary: "Probes, their dictionaries and settings", Roles: readers},
		func(ctx context.Context, _ *httpapi.Empty) ([]monitor.SourceProbe, error) { return svc.Probes(ctx) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodPatch, Path: prefix + "/sources/{source}/probes/{probe}", Summary: "Switch a probe on or off, change its rate or what it sends", Roles: writers},
		func(ctx context.Context, in *struct {
			Source string `path:"source"`
			Probe  string `path:"probe" doc:"NAME, or NAME@VEE"`
			Body   monitor.ProbeChange
		}) (monitor.SourceProbe, error) {
			httpapi.Concerns(ctx, "probe/"+in.Source+"/"+in.Probe)
			return svc.SetProbe(ctx, in.Source, monitor.ParseRef(in.Probe), in.Body)
		})
}

// Client implements Service over HTTP.
type Client struct{ c *httpapi.Client }

// NewClient speaks to the site that c calls.
func NewClient(c *httpapi.Client) *Client { return &Client{c} }

var _ Service = (*Client)(nil)

// Report implements monitor.Uplink.
func (c *Client) Report(ctx context.Context, r monitor.Report) (out monitor.Orders, err error) {
	err = c.c.Call(ctx, http.MethodPost, prefix+"/reports", nil, r, &out)
	return out, err
}

// Probes implements monitor.Control.
func (c *Client) Probes(ctx context.Context) (out []monitor.SourceProbe, err error) {
	err = c.c.Call(ctx, http.MethodGet, prefix+"/probes", nil, nil, &out)
	return out, err
}

// SetProbe implements monitor.Control.
func (c *Client) SetProbe(ctx context.Context, source string, r monitor.Ref, change monitor.ProbeChange) (out monitor.SourceProbe, err error) {
	err = c.c.Call(ctx, http.MethodPatch, prefix+"/sources/"+url.PathEscape(source)+"/probes/"+url.PathEscape(r.String()), nil, change, &out)
	return out, err
}
