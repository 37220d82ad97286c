// Package join brings a process into its site with a one-time token: a host, a VAN proxy, or a
// further member of the control plane. The token has the fingerprint of the site's authority in
// it, so that the site proves itself before the token is shown to anybody.
package join

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// Way to a site.
type Way struct {
	Sites []string // host:port of the members of its control plane; any of them will do
	Token string
	Log   *slog.Logger
}

// Papers are what a site gives to who has joined.
type Papers struct {
	Site        string
	Certificate []byte // chain, PEM
	Bundle      []byte // PEM
}

// Identity in a process's directory, and whether it is good: of a site, and not expired.
func Identity(dir string) (keys *identity.Keypair, good bool, err error) {
	if keys, err = identity.OpenKeypair(filepath.Join(dir, "identity"), time.Now); err != nil {
		return nil, false, err
	}
	return keys, keys.Ready() && time.Now().Before(keys.Expires()), nil
}

// Bounds of the pauses between two attempts, and how long one may take.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = 5 * time.Second
	patience   = 20 * time.Second
)

// Site with the token: ask shows it and a request for a certificate, and what it is given is
// installed in keys. It is asked again while the site does not answer or is busy with another
// member; an answer that was lost is no harm, since the key is the same, and so the token good.
func Site(ctx context.Context, keys *identity.Keypair, w Way, ask func(ctx context.Context, site *httpapi.Client, csr []byte) (Papers, error)) error {
	pin, _, err := identity.ParseJoinToken(identity.Secret(w.Token))
	if err != nil {
		return err
	}
	csr, err := keys.CSR()
	if err != nil {
		return err
	}
	site := &httpapi.Client{Base: "https://" + w.Sites[0], HTTP: &http.Client{
		Transport: httpapi.NewMembers(identity.PinnedTLS(pin, time.Now), w.Sites...).Transport(), Timeout: patience,
	}}
	defer site.HTTP.CloseIdleConnections()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		p, err := ask(ctx, site, csr)
		if err == nil {
			w.Log.Info("joined", "site", p.Site)
			return keys.Install(p.Certificate, p.Bundle)
		}
		if !fault.Has(err, fault.Unavailable) && !fault.Has(err, fault.Timeout) && !fault.Has(err, fault.Conflict) {
			return fmt.Errorf("join the site at %s: %w", w.Sites[0], err)
		}
		w.Log.Warn("the site does not let this in yet; trying again", "site", w.Sites, "err", err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("join the site at %s: %w", w.Sites[0], err)
		case <-time.After(pause):
		}
	}
}
