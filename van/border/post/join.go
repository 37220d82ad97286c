package post

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/border"
)

// joined is the proxy's identity: the one on disk, or a new one for the join token. A join
// whose answer was lost may be repeated with the same token, since the key is the same.
func joined(ctx context.Context, cfg Config) (*identity.Keypair, error) {
	keys, err := identity.OpenKeypair(filepath.Join(cfg.Dir, "identity"), time.Now)
	if err != nil {
		return nil, err
	}
	if keys.Ready() && time.Now().Before(keys.Expires()) {
		return keys, nil
	}
	if cfg.JoinToken == "" {
		return nil, fault.New(fault.Unauthenticated, "this proxy has no certificate that is good: it has not joined a site, or was off for too long").
			Try("on the site: reservoir site proxy invite; here: reservoir proxy --join TOKEN")
	}
	pin, _, err := identity.ParseJoinToken(identity.Secret(cfg.JoinToken))
	if err != nil {
		return nil, err
	}
	csr, err := keys.CSR()
	if err != nil {
		return nil, err
	}
	c := &httpapi.Client{Base: "https://" + cfg.Site, HTTP: &http.Client{
		Transport: &http.Transport{TLSClientConfig: identity.PinnedTLS(pin, time.Now), ForceAttemptHTTP2: true}, Timeout: 20 * time.Second,
	}}
	defer c.HTTP.CloseIdleConnections()
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		r, err := border.NewManagerClient(c).JoinProxy(ctx, border.ProxyJoin{Token: cfg.JoinToken, CSR: csr})
		if err == nil {
			cfg.Log.Info("joined", "site", r.Site)
			return keys, keys.Install(r.Certificate, r.Bundle)
		}
		if !fault.Has(err, fault.Unavailable) && !fault.Has(err, fault.Timeout) {
			return nil, fmt.Errorf("join site at %s: %w", cfg.Site, err)
		}
		cfg.Log.Warn("the site does not answer yet; trying again", "site", cfg.Site, "err", err)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("join site at %s: %w", cfg.Site, err)
		case <-time.After(pause):
		}
	}
}
