package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// joined is the host's identity: the one on disk, or a new one for the join token. A join
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
		why := "has not joined a site yet"
		if keys.Ready() {
			why = fmt.Sprintf("has a certificate that expired on %s", keys.Expires().Format(time.DateTime))
		}
		return nil, fault.New(fault.Unauthenticated, "host %s %s", cfg.Name, why).
			Try("on the site: reservoir host invite %s; here: reservoir host --join TOKEN", cfg.Name)
	}
	token := identity.Secret(cfg.JoinToken)
	pin, _, err := identity.ParseJoinToken(token)
	if err != nil {
		return nil, err
	}
	csr, err := keys.CSR()
	if err != nil {
		return nil, err
	}
	c := &httpapi.Client{Base: "https://" + cfg.Sites[0], HTTP: &http.Client{
		Transport: httpapi.NewMembers(identity.PinnedTLS(pin, time.Now), cfg.Sites...).Transport(), Timeout: 20 * time.Second,
	}}
	defer c.HTTP.CloseIdleConnections()
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		r, err := vhi.NewManagerClient(c).Join(ctx, vhi.JoinRequest{Token: cfg.JoinToken, Host: cfg.Name, CSR: csr})
		if err == nil {
			cfg.Log.Info("joined", "site", r.Site, "host", cfg.Name)
			return keys, keys.Install(r.Certificate, r.Bundle)
		}
		if !fault.Has(err, fault.Unavailable) && !fault.Has(err, fault.Timeout) {
			return nil, fmt.Errorf("join site at %s: %w", cfg.Sites[0], err)
		}
		cfg.Log.Warn("the site does not answer yet; trying again", "site", cfg.Sites, "err", err)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("join site at %s: %w", cfg.Sites[0], err)
		case <-time.After(pause):
		}
	}
}

func generationFile(dir string) string { return filepath.Join(dir, "generation.json") }

func writeGeneration(dir string, g uint64) error {
	return durable.WriteJSON(generationFile(dir), g, 0o600)
}

func readGeneration(dir string) (g uint64, err error) {
	err = durable.ReadJSON(generationFile(dir), &g)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return g, err
}
