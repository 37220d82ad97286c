package vhi

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// JoinPath is the only operation that a host may call without a certificate: its one-time
// token is the proof.
const JoinPath = "/vhi/v1/join"

var siteOnly, hostOnly = []identity.Role{identity.SiteRole}, []identity.Role{identity.HostRole}

type veePath struct {
	ID string `path:"id"`
}

func (p veePath) id() (vee.ID, error) {
	id, err := vee.ParseID(p.ID)
	if err != nil {
		return "", fault.New(fault.Malformed, "%w", err)
	}
	return id, nil
}

// RegisterHost serves h to the site.
func RegisterHost(s *httpapi.Server, h Host) {
	registerStorage(s, h)
	registerNetworks(s, h)
	registerReach(s, h)
	registerMachine(s, h)
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: "/vhi/v1/vees/{id}", Summary: "Assign a VEE to this host, with the power it should have", Roles: siteOnly},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body Assignment
		}) (Report, error) {
			id, err := veePath{in.ID}.id()
			if err != nil {
				return Report{}, err
			}
			if in.Body.VEE != id {
				return Report{}, fault.New(fault.Malformed, "the path names VEE %s, the assignment %s", id, in.Body.VEE)
			}
			return h.Assign(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: "/vhi/v1/report", Summary: "What this host has and runs", Roles: siteOnly},
		func(ctx context.Context, _ *httpapi.Empty) (HostReport, error) { return h.Report(ctx) })
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vhi/v1/vees/{id}/tell", Summary: "Pass a command to the agent in the guest", Roles: siteOnly},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body guest.Command
		}) (guest.Reply, error) {
			id, err := veePath{in.ID}.id()
			if err != nil {
				return guest.Reply{}, err
			}
			return h.Tell(ctx, id, in.Body)
		})
	s.HandleUpgrade("GET /vhi/v1/vees/{id}/console", siteOnly, func(r *http.Request) (io.ReadWriteCloser, error) {
		id, err := veePath{r.PathValue("id")}.id()
		if err != nil {
			return nil, err
		}
		return h.Console(r.Context(), id)
	})
}

// RegisterManager serves m to the hosts. JoinPath must be open to anonymous callers.
func RegisterManager(s *httpapi.Server, m Manager) {
	httpapi.RegisterOpen(s, httpapi.Op{Method: "POST", Path: JoinPath, Summary: "Join a site as a host, with a one-time token"},
		func(ctx context.Context, in *struct{ Body JoinRequest }) (JoinReply, error) {
			return m.Join(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vhi/v1/renew", Summary: "Report what this host has and runs, and stay current", Roles: hostOnly},
		func(ctx context.Context, in *struct{ Body Renewal }) (RenewalReply, error) {
			if c := identity.From(ctx); c.Host != in.Body.Report.Host {
				return RenewalReply{}, fault.New(fault.Denied, "host %q may not report for host %q", c.Host, in.Body.Report.Host)
			}
			return m.Renew(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vhi/v1/certificate", Summary: "Renew this host's certificate before it expires", Roles: hostOnly},
		func(ctx context.Context, in *struct {
			Body struct {
				CSR []byte `json:"csr"`
			}
		}) (JoinReply, error) {
			return m.RenewCertificate(ctx, in.Body.CSR)
		})
}

type hostClient struct{ c *httpapi.Client }

// NewHostClient speaks to a host's agent.
func NewHostClient(c *httpapi.Client) Host { return hostClient{c} }

func veeURL(id vee.ID, sub string) string { return "/vhi/v1/vees/" + url.PathEscape(string(id)) + sub }

func (h hostClient) Assign(ctx context.Context, a Assignment) (r Report, err error) {
	err = h.c.Call(ctx, http.MethodPut, veeURL(a.VEE, ""), nil, a, &r)
	return r, err
}

func (h hostClient) Report(ctx context.Context) (r HostReport, err error) {
	err = h.c.Call(ctx, http.MethodGet, "/vhi/v1/report", nil, nil, &r)
	return r, err
}

func (h hostClient) Tell(ctx context.Context, id vee.ID, c guest.Command) (r guest.Reply, err error) {
	err = h.c.Call(ctx, http.MethodPost, veeURL(id, "/tell"), nil, c, &r)
	return r, err
}

func (h hostClient) Console(ctx context.Context, id vee.ID) (io.ReadWriteCloser, error) {
	return h.c.Upgrade(ctx, veeURL(id, "/console"))
}

type managerClient struct{ c *httpapi.Client }

// NewManagerClient speaks to a site's VEE Manager.
func NewManagerClient(c *httpapi.Client) Manager { return managerClient{c} }

func (m managerClient) Join(ctx context.Context, r JoinRequest) (out JoinReply, err error) {
	err = m.c.Call(ctx, http.MethodPost, JoinPath, nil, r, &out)
	return out, err
}

func (m managerClient) Renew(ctx context.Context, r Renewal) (out RenewalReply, err error) {
	err = m.c.Call(ctx, http.MethodPost, "/vhi/v1/renew", nil, r, &out)
	return out, err
}

func (m managerClient) RenewCertificate(ctx context.Context, csr []byte) (out JoinReply, err error) {
	err = m.c.Call(ctx, http.MethodPost, "/vhi/v1/certificate", nil, map[string][]byte{"csr": csr}, &out)
	return out, err
}
