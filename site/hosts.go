package site

import (
	"context"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// hosts is the site as its hosts see it: the VEE Manager takes their reports, the site's
// authority lets them join.
type hosts struct {
	*veem.Manager
	s *site
}

// Join implements vhi.Manager.
func (h hosts) Join(ctx context.Context, r vhi.JoinRequest) (vhi.JoinReply, error) {
	if !vee.ValidName(r.Host) {
		return vhi.JoinReply{}, fault.New(fault.Malformed, "host name %q: want a DNS label such as \"h1\"", r.Host)
	}
	inv, err := h.s.invitations.Redeem(ctx, identity.Secret(r.Token), r.CSR)
	if err != nil {
		return vhi.JoinReply{}, err
	}
	if inv.Proxy {
		return vhi.JoinReply{}, fault.New(fault.Denied, "the invitation is for the site's proxy, not for host %q", r.Host).
			Try("reservoir host invite %s", r.Host)
	}
	if inv.Host != "" && inv.Host != r.Host {
		return vhi.JoinReply{}, fault.New(fault.Denied, "the invitation is for host %q, not for %q", inv.Host, r.Host).
			Try("reservoir host invite %s", r.Host)
	}
	if err := h.s.veem.HostJoined(ctx, r.Host); err != nil {
		return vhi.JoinReply{}, err
	}
	return h.s.certifyHost(r.Host, r.CSR)
}

// RenewCertificate implements vhi.Manager.
func (h hosts) RenewCertificate(ctx context.Context, csr []byte) (vhi.JoinReply, error) {
	return h.s.certifyHost(identity.From(ctx).Host, csr)
}

func (s *site) certifyHost(name string, csr []byte) (vhi.JoinReply, error) {
	id, err := identity.HostID(s.cfg.Name, name)
	if err != nil {
		return vhi.JoinReply{}, err
	}
	chain, err := s.ca.Issue(csr, id)
	if err != nil {
		return vhi.JoinReply{}, err
	}
	return vhi.JoinReply{Site: s.cfg.Name, Certificate: chain, Bundle: s.ca.Bundle()}, nil
}
