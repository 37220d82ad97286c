package site

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/site/peer"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Lives of what an operator makes, where the request does not say.
const (
	inviteLife = time.Hour
	tokenLife  = 90 * 24 * time.Hour
	longest    = 10 * 365 * 24 * time.Hour
)

func life(ms int64, otherwise time.Duration) (time.Duration, error) {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case ms == 0:
		return otherwise, nil
	case ms < 0 || ms > longest.Milliseconds():
		return 0, fault.New(fault.Malformed, "a life of %d ms: want 1 ms to ten years", ms)
	}
	return d, nil
}

// Site implements admin.Service.
func (s *site) Site(ctx context.Context) (admin.Site, error) {
	out := admin.Site{
		Name: s.cfg.Name, Version: s.cfg.Version, Started: s.started, Address: s.cfg.Advertise,
		Generation: s.store.Generation(), Placement: s.cfg.Placement, Rebalance: string(s.cfg.Rebalance.Policy), VEENetwork: s.cfg.VEENetwork.String(), HAScale: s.cfg.HAScale,
		Store: admin.Store{Kind: "embedded"},
	}
	if len(s.cfg.EtcdEndpoints) > 0 {
		out.Store.Kind = "cluster"
	}
	vees, err := s.veem.ListVEEs(ctx, vmi.Filter{})
	if err != nil {
		return out, err
	}
	services, err := s.sm.List(ctx, "")
	if err != nil {
		return out, err
	}
	images, err := s.images.List(ctx)
	if err != nil {
		return out, err
	}
	out.VEEs, out.Services, out.Images = len(vees), len(services), len(images)
	if identity.From(ctx).Is(identity.Provider) {
		return out, nil // hosts and the store are the site's own affair
	}
	hosts, err := s.veem.ListHosts(ctx)
	if err != nil {
		return out, err
	}
	if s.member.several() {
		out.Members, out.Leader = len(s.addresses()), s.cfg.Member.Name
	}
	st, err := s.store.Status(ctx)
	if err != nil {
		return out, err
	}
	out.Hosts = len(hosts)
	out.Store.Size, out.Store.InUse, out.Store.Quota = vee.Bytes(st.Size), vee.Bytes(st.InUse), vee.Bytes(st.Quota)
	if st.Full {
		out.Store.Alarm = "full"
	}
	return out, nil
}

// CreateToken implements admin.Service.
func (s *site) CreateToken(ctx context.Context, r admin.NewToken) (admin.CreatedToken, error) {
	d, err := life(r.TTLMS, tokenLife)
	if err != nil {
		return admin.CreatedToken{}, err
	}
	t, secret, err := s.tokens.Create(ctx, r.Name, r.Role, r.Customer, d)
	if err != nil {
		return admin.CreatedToken{}, err
	}
	return admin.CreatedToken{Token: t, Secret: secret.Reveal()}, nil
}

// ListTokens implements admin.Service.
func (s *site) ListTokens(ctx context.Context) ([]identity.Token, error) { return s.tokens.List(ctx) }

// RevokeToken implements admin.Service.
func (s *site) RevokeToken(ctx context.Context, name string) error { return s.tokens.Revoke(ctx, name) }

// InviteHost implements admin.Service.
func (s *site) InviteHost(ctx context.Context, r admin.NewInvite) (admin.Invite, error) {
	if r.Host != "" && !vee.ValidName(r.Host) {
		return admin.Invite{}, fault.New(fault.Malformed, "host name %q: want a DNS label such as \"h1\"", r.Host)
	}
	d, err := life(r.TTLMS, inviteLife)
	if err != nil {
		return admin.Invite{}, err
	}
	token, err := s.invitations.Create(ctx, s.ca, r.Host, d)
	if err != nil {
		return admin.Invite{}, err
	}
	return admin.Invite{Token: token.Reveal(), Host: r.Host, Address: s.cfg.Advertise, Expires: time.Now().Add(d)}, nil
}

// Audit implements admin.Service.
func (s *site) Audit(_ context.Context, f audit.Filter) ([]audit.Entry, error) {
	return s.audit.List(f), nil
}

// Compact implements admin.Service.
func (s *site) Compact(ctx context.Context) (admin.Compacted, error) {
	before, err := s.store.Status(ctx)
	if err != nil {
		return admin.Compacted{}, err
	}
	after, err := s.store.Compact(ctx)
	if err != nil {
		return admin.Compacted{}, err
	}
	// Each member has a file of its own that shrinks.
	if err := s.eachMember(ctx, func(ctx context.Context, p peer.Member) error { return p.Defragment(ctx) }); err != nil {
		return admin.Compacted{}, err
	}
	out := admin.Compacted{Before: vee.Bytes(before.Size), After: vee.Bytes(after.Size)}
	if after.Full {
		out.Alarm = "full"
	}
	return out, nil
}
