package store

import (
	"crypto/tls"
	"log/slog"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// secured is an etcd elsewhere that lets in who has a certificate of the authority, and a
// client's settings with one.
func secured(t *testing.T, c *council) (endpoint string, client *tls.Config) {
	t.Helper()
	of := c.certified("etcd")
	ec := etcdConfig(Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	at := url.URL{Scheme: "https", Host: of.Cluster.Listen}
	ec.ListenClientUrls, ec.AdvertiseClientUrls = []url.URL{at}, []url.URL{at}
	ec.ClientTLSInfo = transport.TLSInfo{CertFile: of.Cluster.CertFile, KeyFile: of.Cluster.KeyFile, TrustedCAFile: of.Cluster.BundleFile, ClientCertAuth: true}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	mine := c.certified("site")
	info := transport.TLSInfo{CertFile: mine.Cluster.CertFile, KeyFile: mine.Cluster.KeyFile, TrustedCAFile: filepath.Join(filepath.Dir(mine.Dir), "bundle.pem")}
	if client, err = info.ClientConfig(); err != nil {
		t.Fatal(err)
	}
	return at.String(), client
}

// Several processes of a site on an etcd cluster elsewhere, over mutual TLS: one leads.
func TestTermsElsewhere(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	endpoint, client := secured(t, newCouncil(t))
	at := Config{Endpoints: []string{endpoint}, TLS: client, Logger: slog.New(slog.DiscardHandler)}
	first, second := open(t, at), open(t, at)
	one, err := first.Lead(ctx, "site", "m1", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if members, err := first.Members(ctx); err != nil || members != nil {
		t.Errorf("members of a cluster that is somebody else's: %v, %v", members, err)
	}
	next := make(chan *Term, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if two, err := second.Lead(ctx, "site", "m2", 2*time.Second); err == nil {
			next <- two
		}
		close(next)
	}()
	things := NewCollection[int](one.Store, "thing")
	if _, err := things.Put(ctx, "a", 1); err != nil {
		t.Fatal(err)
	}
	if err := one.Resign(ctx); err != nil {
		t.Error(err)
	}
	two := <-next
	<-done
	if two == nil {
		t.Fatal("nobody follows")
	}
	if _, err := things.Put(ctx, "a", 2); !fault.Has(err, fault.Unavailable) {
		t.Errorf("a deposed one writes: %v", err)
	}
	if _, err := NewCollection[int](two.Store, "thing").Put(ctx, "a", 3); err != nil {
		t.Error(err)
	}
	if err := two.Resign(ctx); err != nil {
		t.Error(err)
	}
	// Nobody without a certificate.
	bare := at
	bare.TLS = &tls.Config{RootCAs: client.RootCAs, MinVersion: tls.VersionTLS12}
	if s, err := Open(ctx, bare); err == nil {
		s.Close()
		t.Error("it let in who has no certificate")
	}
}
