package admin

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

const prefix = "/site/v1"

// Register serves a to the site's operators.
func Register(s *httpapi.Server, a Service) {
	operators := []identity.Role{identity.Operator}
	everybody := []identity.Role{identity.Operator, identity.Auditor, identity.Provider}

	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: prefix, Summary: "What this site is and how it is", Roles: everybody},
		func(ctx context.Context, _ *httpapi.Empty) (Site, error) { return a.Site(ctx) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: prefix + "/tokens", Summary: "Create an API token", Roles: operators, Status: http.StatusCreated, Unkeyed: true},
		func(ctx context.Context, in *struct{ Body NewToken }) (CreatedToken, error) {
			httpapi.Concerns(ctx, "token/"+in.Body.Name)
			return a.CreateToken(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: prefix + "/tokens", Summary: "List API tokens, without their secrets", Roles: []identity.Role{identity.Operator, identity.Auditor}},
		func(ctx context.Context, _ *httpapi.Empty) ([]identity.Token, error) { return a.ListTokens(ctx) })
	httpapi.RegisterNoBody(s, httpapi.Op{Method: http.MethodDelete, Path: prefix + "/tokens/{name}", Summary: "Revoke an API token", Roles: operators},
		func(ctx context.Context, in *struct {
			Name string `path:"name"`
		}) error {
			return a.RevokeToken(ctx, in.Name)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: prefix + "/invites", Summary: "Make a one-time token with which a host may join", Roles: operators, Status: http.StatusCreated, Unkeyed: true},
		func(ctx context.Context, in *struct{ Body NewInvite }) (Invite, error) {
			httpapi.Concerns(ctx, "host/"+in.Body.Host)
			return a.InviteHost(ctx, in.Body)
		})
	registerMembers(s, a)
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: prefix + "/compact", Summary: "Compact the store and clear its alarm", Roles: operators},
		func(ctx context.Context, _ *httpapi.Empty) (Compacted, error) { return a.Compact(ctx) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: prefix + "/audit", Summary: "Who has changed what, and who was refused", Roles: []identity.Role{identity.Operator, identity.Auditor}},
		func(ctx context.Context, in *audit.Filter) ([]audit.Entry, error) { return a.Audit(ctx, *in) })
}

// Client implements Service over HTTP.
type Client struct{ c *httpapi.Client }

// NewClient speaks to the site that c calls.
func NewClient(c *httpapi.Client) *Client { return &Client{c} }

var _ Service = (*Client)(nil)

// Site implements Service.
func (c *Client) Site(ctx context.Context) (out Site, err error) {
	err = c.c.Call(ctx, http.MethodGet, prefix, nil, nil, &out)
	return out, err
}

// CreateToken implements Service.
func (c *Client) CreateToken(ctx context.Context, r NewToken) (out CreatedToken, err error) {
	err = c.c.Call(ctx, http.MethodPost, prefix+"/tokens", nil, r, &out)
	return out, err
}

// ListTokens implements Service.
func (c *Client) ListTokens(ctx context.Context) (out []identity.Token, err error) {
	err = c.c.Call(ctx, http.MethodGet, prefix+"/tokens", nil, nil, &out)
	return out, err
}

// RevokeToken implements Service.
func (c *Client) RevokeToken(ctx context.Context, name string) error {
	return c.c.Call(ctx, http.MethodDelete, prefix+"/tokens/"+url.PathEscape(name), nil, nil, nil)
}

// InviteHost implements Service.
func (c *Client) InviteHost(ctx context.Context, r NewInvite) (out Invite, err error) {
	err = c.c.Call(ctx, http.MethodPost, prefix+"/invites", nil, r, &out)
	return out, err
}

// Compact implements Service.
func (c *Client) Compact(ctx context.Context) (out Compacted, err error) {
	err = c.c.Call(ctx, http.MethodPost, prefix+"/compact", nil, nil, &out)
	return out, err
}

// Audit implements Service.
func (c *Client) Audit(ctx context.Context, f audit.Filter) (out []audit.Entry, err error) {
	q := url.Values{}
	for k, v := range map[string]string{"by": f.By, "object": f.Object, "outcome": string(f.Outcome)} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if !f.Since.IsZero() {
		q.Set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	if f.After > 0 {
		q.Set("after", strconv.FormatUint(f.After, 10))
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	err = c.c.Call(ctx, http.MethodGet, prefix+"/audit", q, nil, &out)
	return out, err
}
