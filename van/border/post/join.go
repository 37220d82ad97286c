package post

import (
	"context"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/join"
	"github.com/reservoir-cloud/reservoir/van/border"
)

// joined is the proxy's identity: the one on disk, or a new one for the join token.
func joined(ctx context.Context, cfg Config) (*identity.Keypair, error) {
	keys, good, err := join.Identity(cfg.Dir)
	if err != nil || good {
		return keys, err
	}
	if cfg.JoinToken == "" {
		return nil, fault.New(fault.Unauthenticated, "this proxy has no certificate that is good: it has not joined a site, or was off for too long").
			Try("on the site: reservoir site proxy invite; here: reservoir proxy --join TOKEN")
	}
	return keys, join.Site(ctx, keys, join.Way{Sites: cfg.Sites, Token: cfg.JoinToken, Log: cfg.Log},
		func(ctx context.Context, site *httpapi.Client, csr []byte) (join.Papers, error) {
			r, err := border.NewManagerClient(site).JoinProxy(ctx, border.ProxyJoin{Token: cfg.JoinToken, CSR: csr})
			return join.Papers{Site: r.Site, Certificate: r.Certificate, Bundle: r.Bundle}, err
		})
}

// membersOf the site's control plane: those that the site put, before those of the
// configuration, of which none may be left.
func membersOf(cfg Config, held border.Config) []string {
	all := slices.Clone(held.Members)
	for _, a := range cfg.Sites {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}
