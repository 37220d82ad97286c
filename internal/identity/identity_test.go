package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// clock that a test sets. The zero value shows start.
type clock struct {
	mu     sync.Mutex
	passed time.Duration
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return start.Add(c.passed)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passed += d
}

func newCA(t *testing.T, site string, now func() time.Time) *CA {
	t.Helper()
	ca, err := NewCA(site, now, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func id(t *testing.T, text string) spiffeid.ID {
	t.Helper()
	id, err := spiffeid.FromString(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// newKeypair has a certificate of ca for the path of an ID.
func newKeypair(t *testing.T, ca *CA, path string, now func() time.Time) *Keypair {
	t.Helper()
	k, err := OpenKeypair(filepath.Join(t.TempDir(), "id"), now)
	if err != nil {
		t.Fatal(err)
	}
	certify(t, k, ca, path)
	return k
}

func certify(t *testing.T, k *Keypair, ca *CA, path string) {
	t.Helper()
	csr, err := k.CSR()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Issue(csr, id(t, "spiffe://"+ca.Site()+path))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Install(chain, ca.Bundle()); err != nil {
		t.Fatal(err)
	}
}

func TestNamesOfSites(t *testing.T) {
	for _, site := range []string{"", "Alpha", "spiffe://alpha/host/x", "a/b", "ä"} {
		if _, err := NewCA(site, time.Now, nil); !fault.Has(err, fault.Malformed) {
			t.Errorf("site %q: %v", site, err)
		}
	}
}

func TestAChangeThatIsNotKeptIsNone(t *testing.T) {
	ca, err := NewCA("alpha", time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	ca.keep = func(Secret) error { return errors.New("disk full") }
	if err := ca.Announce(); err == nil || ca.Rotation().Next != "" {
		t.Errorf("announced, and not kept: %v", err)
	}
}

func TestIssueTakesOnlyTheKey(t *testing.T) {
	var c clock
	ca := newCA(t, "alpha", c.now)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		URIs:     []*url.URL{id(t, "spiffe://alpha/site").URL()},
		DNSNames: []string{"bank.example"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	chain, err := ca.Issue(csr, id(t, "spiffe://alpha/host/h1"), "h1.lan", "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	certs, err := parseCertificates(chain)
	if err != nil || len(certs) != 2 {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	leaf := certs[0]
	got, err := x509svid.IDFromCert(leaf)
	if err != nil || got.String() != "spiffe://alpha/host/h1" {
		t.Errorf("ID %s, %v", got, err)
	}
	if !slices.Equal(leaf.DNSNames, []string{"h1.lan"}) || len(leaf.IPAddresses) != 1 || leaf.IsCA {
		t.Errorf("names %v, addresses %v, CA %v", leaf.DNSNames, leaf.IPAddresses, leaf.IsCA)
	}
	if !leaf.NotBefore.Before(start.Add(-skew / 2)) {
		t.Errorf("not good before %s: a clock that is behind would refuse it", leaf.NotBefore)
	}

	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaDER, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	if err != nil {
		t.Fatal(err)
	}
	forged := slices.Clone(der)
	forged[len(forged)-1] ^= 1
	for name, bad := range map[string][]byte{
		"empty":           nil,
		"not PEM":         der,
		"other PEM":       ca.Bundle(),
		"truncated":       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der[:40]}),
		"forged":          pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}),
		"unsupported key": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: rsaDER}),
	} {
		if _, err := ca.Issue(bad, id(t, "spiffe://alpha/host/h1")); !fault.Has(err, fault.Malformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, other := range []string{"spiffe://beta/host/h1", "spiffe://alpha"} {
		if _, err := ca.Issue(csr, id(t, other)); !fault.Has(err, fault.Denied) {
			t.Errorf("%s: %v", other, err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", "a/b", "a b", "..", ".", "ä", "a%2Fb"} {
		if id, err := HostID("alpha", name); !fault.Has(err, fault.Malformed) {
			t.Errorf("host %q: %v, %v", name, id, err)
		}
	}
	host, err := HostID("alpha", "rack-1_h.2")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := callerOf("alpha", host); err != nil || c.Host != "rack-1_h.2" || c.Role != HostRole {
		t.Errorf("%+v, %v", c, err)
	}
	for _, none := range []string{
		"spiffe://beta/site", "spiffe://beta/host/h1", "spiffe://alpha", "spiffe://alpha/host",
		"spiffe://alpha/site/x", "spiffe://alpha/host/a/b", "spiffe://alpha/operator/x", "spiffe://alpha/provider",
	} {
		if c, err := callerOf("alpha", id(t, none)); !fault.Has(err, fault.Denied) || c != (Caller{}) {
			t.Errorf("%s is %+v, %v", none, c, err)
		}
	}
}

func TestKeypairOnDisk(t *testing.T) {
	var c clock
	ca := newCA(t, "alpha", c.now)
	dir := filepath.Join(t.TempDir(), "id")
	k, err := OpenKeypair(dir, c.now)
	if err != nil {
		t.Fatal(err)
	}
	if k.Ready() || !k.ID().IsZero() || k.Site() != "" {
		t.Error("a new key has a certificate")
	}
	// A start that was cut short before the certificate came keeps the key.
	again, err := OpenKeypair(dir, c.now)
	if err != nil || !samePublicKey(again.key.Public(), k.key.Public()) {
		t.Fatalf("the key changed: %v", err)
	}
	certify(t, k, ca, "/host/h1")

	for name, mode := range map[string]os.FileMode{".": 0o700, "key.pem": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	c.advance(2 * CertLife) // also a process that slept too long knows who it is
	again, err = OpenKeypair(dir, c.now)
	if err != nil || again.ID() != id(t, "spiffe://alpha/host/h1") || again.Site() != "alpha" || !again.Expires().Equal(k.Expires()) {
		t.Errorf("%v, %v", again.ID(), err)
	}

	csr, err := k.CSR()
	if err != nil {
		t.Fatal(err)
	}
	renamed, err := ca.Issue(csr, id(t, "spiffe://alpha/host/h2"))
	if err != nil {
		t.Fatal(err)
	}
	good, err := ca.Issue(csr, id(t, "spiffe://alpha/host/h1"))
	if err != nil {
		t.Fatal(err)
	}
	stranger := newKeypair(t, ca, "/host/h1", c.now)
	strangerChain, err := os.ReadFile(filepath.Join(stranger.dir, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	before := k.Expires()
	for name, bad := range map[string][2][]byte{
		"another name":   {renamed, ca.Bundle()},
		"another key":    {strangerChain, ca.Bundle()},
		"another bundle": {good, newCA(t, "alpha", c.now).Bundle()},
		"no bundle":      {good, nil},
		"no certificate": {nil, ca.Bundle()},
	} {
		if err := k.Install(bad[0], bad[1]); err == nil {
			t.Errorf("%s was installed", name)
		}
	}
	if !k.Expires().Equal(before) {
		t.Error("a refused certificate is in use")
	}
	if err := k.Install(good, ca.Bundle()); err != nil || !k.Expires().After(before) {
		t.Errorf("renewal: %v", err)
	}

	if err := os.Remove(filepath.Join(dir, "key.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeypair(dir, c.now); err == nil {
		t.Error("a lost key was replaced under its certificate")
	}
}

// serve answers with what the Authenticator says of each request.
func serve(t *testing.T, k *Keypair, a *Authenticator) (url string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{
		TLSConfig: k.ServerTLS(),
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := a.Caller(r)
			if err != nil {
				http.Error(w, string(fault.From(err).Code), fault.From(err).Status())
				return
			}
			fmt.Fprintf(w, "%s %s %s%s %s", c.ID, c.Role, c.Customer, c.Host, r.Proto)
		}),
	}
	var served sync.WaitGroup
	served.Go(func() { s.ServeTLS(listener, "", "") })
	t.Cleanup(func() {
		s.Close()
		served.Wait()
	})
	return "https://" + listener.Addr().String()
}

// get returns the answer, or "refused: …" where there is no connection.
func get(t *testing.T, url string, c *tls.Config, token string) string {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", token)
	}
	resp, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		return "refused: " + err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestWhoMayTalkToWhom(t *testing.T) {
	var c clock
	ca := newCA(t, "alpha", c.now)
	site := newKeypair(t, ca, "/site", c.now)
	host := newKeypair(t, ca, "/host/h1", c.now)
	removed := newKeypair(t, ca, "/host/removed", c.now)
	odd := newKeypair(t, ca, "/else", c.now)
	tokens := NewTokens(&memory[TokenRecord]{}, c.now)
	_, token, err := tokens.Create(t.Context(), "ann", Provider, "acme", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	siteURL := serve(t, site, &Authenticator{Site: "alpha", Tokens: tokens, Admit: func(_ context.Context, c Caller) error {
		if c.Host == "removed" {
			return fault.New(fault.Denied, "host removed was removed")
		}
		return nil
	}})
	hostURL := serve(t, host, &Authenticator{Site: "alpha"})
	siteID, hostID := site.ID(), host.ID()

	// Other authorities: of another site, and one that claims the same name.
	beta, fake := newCA(t, "beta", c.now), newCA(t, "alpha", c.now)
	foreign, forged := newKeypair(t, beta, "/host/h1", c.now), newKeypair(t, fake, "/host/h1", c.now)
	for _, k := range []*Keypair{foreign, forged} { // they trust us, we do not trust them
		k.current.bundle = host.current.bundle
	}
	fakeSite := serve(t, newKeypair(t, fake, "/site", c.now), &Authenticator{Site: "alpha"})
	bundle, err := BundleTLS(ca.Bundle(), "alpha", c.now)
	if err != nil {
		t.Fatal(err)
	}
	bearer := "Bearer " + token.Reveal()

	for _, tt := range []struct {
		name   string
		url    string
		config *tls.Config
		token  string
		want   string // what the answer contains
	}{
		{"host calls site", siteURL, host.ClientTLS(siteID), "", "spiffe://alpha/host/h1 host h1"},
		{"site calls host", hostURL, site.ClientTLS(hostID), "", "spiffe://alpha/site site"},
		{"person calls site", siteURL, bundle, bearer, "ann provider acme"},
		{"a token goes before a certificate", siteURL, host.ClientTLS(siteID), bearer, "ann provider acme"},
		{"first call of a host", siteURL, PinnedTLS(ca.Fingerprint(), c.now), "", "unauthenticated"},
		{"no proof", siteURL, bundle, "", "unauthenticated"},
		{"bad token", siteURL, bundle, bearer[:len(bearer)-2] + "Aw", "token-invalid"},
		{"bad token with a good certificate", siteURL, host.ClientTLS(siteID), "Bearer rsv_x", "token-invalid"},
		{"another scheme", siteURL, bundle, "Digest YTpi", "unauthenticated"},
		{"token as a password", siteURL, bundle, "Basic " + base64.StdEncoding.EncodeToString([]byte("anybody:"+token.Reveal())), "ann provider acme"},
		{"another password", siteURL, bundle, "Basic YTpi", "token-invalid"},
		{"a token is nothing to a host", hostURL, site.ClientTLS(hostID), bearer, "unauthenticated"},
		{"identity without a role", siteURL, odd.ClientTLS(siteID), "", "access-denied"},
		{"removed host", siteURL, removed.ClientTLS(siteID), "", "access-denied"},
		{"host of another site", siteURL, foreign.ClientTLS(siteID), "", "refused: "},
		{"forged host", siteURL, forged.ClientTLS(siteID), "", "refused: "},
		{"site that is a host", hostURL, host.ClientTLS(siteID), "", "the peer is spiffe://alpha/host/h1, not spiffe://alpha/site"},
		{"host that is another", hostURL, site.ClientTLS(removed.ID()), "", "not spiffe://alpha/host/removed"},
		{"person reaches a host in place of the site", hostURL, bundle, bearer, "refused: "},
		{"forged site", fakeSite, host.ClientTLS(siteID), "", "the peer is not known to be spiffe://alpha/site"},
		{"forged site, person", fakeSite, bundle, bearer, "the peer is not known to be"},
		{"forged site, first call", fakeSite, PinnedTLS(ca.Fingerprint(), c.now), "", "the fingerprint of its authority differs"},
		{"host in place of the site, first call", hostURL, PinnedTLS(ca.Fingerprint(), c.now), "", "not spiffe://alpha/site"},
	} {
		if got := get(t, tt.url, tt.config, tt.token); !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}

	c.advance(CertLife + time.Minute)
	if got := get(t, siteURL, host.ClientTLS(siteID), ""); !strings.Contains(got, "expired") {
		t.Errorf("expired certificates: %q", got)
	}
	certify(t, site, ca, "/site") // rotation while the server runs
	if got := get(t, siteURL, host.ClientTLS(siteID), ""); !strings.HasPrefix(got, "refused: ") {
		t.Errorf("expired certificate of the client: %q", got)
	}
	certify(t, host, ca, "/host/h1")
	if got := get(t, siteURL, host.ClientTLS(siteID), ""); !strings.HasPrefix(got, "spiffe://alpha/host/h1 host h1") {
		t.Errorf("after the renewal: %q", got)
	}
}

func TestServerSpeaksBothHTTPs(t *testing.T) {
	k := newKeypair(t, newCA(t, "alpha", time.Now), "/site", time.Now)
	url := serve(t, k, &Authenticator{Site: "alpha"})
	c := k.ClientTLS(k.ID())
	if got := get(t, url, c, ""); !strings.HasSuffix(got, "HTTP/2.0") {
		t.Error(got)
	}
	c.NextProtos = []string{"http/1.1"}
	tr := &http.Transport{TLSClientConfig: c, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(true)
	defer tr.CloseIdleConnections()
	r, err := (&http.Client{Transport: tr}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.ProtoMajor != 1 || r.StatusCode != http.StatusOK {
		t.Errorf("%s, %s", r.Proto, r.Status)
	}
}

func TestUnencryptedConnectionProvesNothing(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer rsv_x")
	if _, err := (&Authenticator{Site: "alpha"}).Caller(r); !fault.Has(err, fault.Unauthenticated) {
		t.Error(err)
	}
}

func TestKeepFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t, "alpha", time.Now)
		k := newKeypair(t, ca, "/host/h1", time.Now)
		ctx, cancel := context.WithTimeout(t.Context(), 3*CertLife)
		defer cancel()
		calls, renewed := 0, 0
		k.KeepFresh(ctx, slog.New(slog.DiscardHandler), func(_ context.Context, csr []byte) ([]byte, []byte, error) {
			calls++
			if calls%3 != 0 { // two attempts of three fail
				return nil, nil, io.ErrUnexpectedEOF
			}
			renewed++
			if left := time.Until(k.Expires()); left < CertLife/4 || left > CertLife/2 {
				t.Errorf("renewed with %s left", left)
			}
			chain, err := ca.Issue(csr, k.ID())
			return chain, ca.Bundle(), err
		})
		if renewed != 4 || time.Until(k.Expires()) < CertLife/4 {
			t.Errorf("renewed %d times, good until %s", renewed, k.Expires())
		}
	})
}
