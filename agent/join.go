package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/join"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// joined is the host's identity: the one on disk, or a new one for the join token.
func joined(ctx context.Context, cfg Config) (*identity.Keypair, error) {
	keys, good, err := join.Identity(cfg.Dir)
	if err != nil || good {
		return keys, err
	}
	if cfg.JoinToken == "" {
		why := "has not joined a site yet"
		if keys.Ready() {
			why = fmt.Sprintf("has a certificate that expired on %s", keys.Expires().Format(time.DateTime))
		}
		return nil, fault.New(fault.Unauthenticated, "host %s %s", cfg.Name, why).
			Try("on the site: reservoir host invite %s; here: reservoir host --join TOKEN", cfg.Name)
	}
	return keys, join.Site(ctx, keys, join.Way{Sites: cfg.Sites, Token: cfg.JoinToken, Log: cfg.Log},
		func(ctx context.Context, site *httpapi.Client, csr []byte) (join.Papers, error) {
			r, err := vhi.NewManagerClient(site).Join(ctx, vhi.JoinRequest{Token: cfg.JoinToken, Host: cfg.Name, CSR: csr})
			return join.Papers{Site: r.Site, Certificate: r.Certificate, Bundle: r.Bundle}, err
		})
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
