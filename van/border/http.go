package border

import (
	"context"
	"net/http"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// JoinPath is the only operation that a proxy may call without a certificate: its one-time
// token is the proof.
const JoinPath = "/border/v1/join"

const (
	configPath      = "/border/v1/config"
	statusPath      = "/border/v1/status"
	announcePath    = "/border/v1/announcement"
	certificatePath = "/border/v1/certificate"
	invitesPath     = "/border/v1/invites"
)

type csr struct {
	CSR []byte `json:"csr"`
}

// RegisterProxy serves p to its site.
func RegisterProxy(s *httpapi.Server, p Proxy) {
	site := []identity.Role{identity.SiteRole}
	httpapi.RegisterNoBody(s, httpapi.Op{Method: http.MethodPut, Path: configPath, Summary: "Put all that this proxy is to do", Roles: site},
		func(ctx context.Context, in *struct{ Body Config }) error { return p.Put(ctx, in.Body) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: statusPath, Summary: "How this proxy is", Roles: site},
		func(ctx context.Context, _ *httpapi.Empty) (ProxyStatus, error) { return p.Status(ctx) })
}

// RegisterManager serves m to the site's proxy. JoinPath must be open to anonymous callers.
func RegisterManager(s *httpapi.Server, m Manager) {
	proxy := []identity.Role{identity.ProxyRole}
	httpapi.RegisterOpen(s, httpapi.Op{Method: http.MethodPost, Path: JoinPath, Summary: "Become the site's proxy, with a one-time token"},
		func(ctx context.Context, in *struct{ Body ProxyJoin }) (ProxyCertificate, error) {
			return m.JoinProxy(ctx, in.Body)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: http.MethodPost, Path: announcePath, Summary: "Say where the site's proxy is, and what it holds", Roles: proxy},
		func(ctx context.Context, in *struct{ Body Presence }) error { return m.Announce(ctx, in.Body) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: certificatePath, Summary: "Renew the proxy's certificate before it expires", Roles: proxy},
		func(ctx context.Context, in *struct{ Body csr }) (ProxyCertificate, error) {
			return m.RenewProxy(ctx, in.Body.CSR)
		})
}

type proxyClient struct{ c *httpapi.Client }

// NewProxyClient speaks to a site's proxy.
func NewProxyClient(c *httpapi.Client) Proxy { return proxyClient{c} }

func (p proxyClient) Put(ctx context.Context, c Config) error {
	return p.c.Call(ctx, http.MethodPut, configPath, nil, c, nil)
}

func (p proxyClient) Status(ctx context.Context) (out ProxyStatus, err error) {
	err = p.c.Call(ctx, http.MethodGet, statusPath, nil, nil, &out)
	return out, err
}

type managerClient struct{ c *httpapi.Client }

// NewManagerClient speaks to the proxy's site.
func NewManagerClient(c *httpapi.Client) Manager { return managerClient{c} }

func (m managerClient) JoinProxy(ctx context.Context, r ProxyJoin) (out ProxyCertificate, err error) {
	err = m.c.Call(ctx, http.MethodPost, JoinPath, nil, r, &out)
	return out, err
}

func (m managerClient) Announce(ctx context.Context, a Presence) error {
	return m.c.Call(ctx, http.MethodPost, announcePath, nil, a, nil)
}

func (m managerClient) RenewProxy(ctx context.Context, request []byte) (out ProxyCertificate, err error) {
	err = m.c.Call(ctx, http.MethodPost, certificatePath, nil, csr{request}, &out)
	return out, err
}

// RegisterKeeper serves k to the site's operators.
func RegisterKeeper(s *httpapi.Server, k Keeper) {
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: invitesPath, Summary: "Make a one-time token with which a machine may become the site's proxy",
		Roles: []identity.Role{identity.Operator}, Status: http.StatusCreated, Unkeyed: true},
		func(ctx context.Context, _ *httpapi.Empty) (ProxyInvite, error) {
			httpapi.Concerns(ctx, "proxy")
			return k.InviteProxy(ctx)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: statusPath, Summary: "How the site's proxy is", Roles: []identity.Role{identity.Operator, identity.Auditor}},
		func(ctx context.Context, _ *httpapi.Empty) (ProxyStatus, error) { return k.ShowProxy(ctx) })
}

type keeperClient struct{ c *httpapi.Client }

// NewKeeperClient speaks to a site.
func NewKeeperClient(c *httpapi.Client) Keeper { return keeperClient{c} }

func (k keeperClient) InviteProxy(ctx context.Context) (out ProxyInvite, err error) {
	err = k.c.Call(ctx, http.MethodPost, invitesPath, nil, nil, &out)
	return out, err
}

func (k keeperClient) ShowProxy(ctx context.Context) (out ProxyStatus, err error) {
	err = k.c.Call(ctx, http.MethodGet, statusPath, nil, nil, &out)
	return out, err
}
