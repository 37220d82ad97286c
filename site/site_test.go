package site

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// running is a site in this process, over its real store, on a port of the loopback
// device.
type running struct {
	cfg  Config
	stop func() error
	log  *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func config(t *testing.T) Config {
	t.Helper()
	return Config{Dir: t.TempDir(), Name: "alpha", Listen: freePort(t), VEENetwork: netip.MustParsePrefix("10.80.128.0/17"), Version: "test"}
}

// start runs a site until the test ends or stop is called.
func start(t *testing.T, cfg Config) *running {
	t.Helper()
	r := &running{cfg: cfg, log: &syncBuffer{}}
	r.cfg.Log = slog.New(slog.NewTextHandler(r.log, nil))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, r.cfg) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error("the site ended with:", err)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(cfg.Dir, "admin-token")); err == nil {
			if _, err = r.admin(t).Site(t.Context()); err == nil {
				return r
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the site does not come up:\n" + r.log.String())
		}
	}
}

func (r *running) client(t *testing.T, token string) *httpapi.Client {
	t.Helper()
	bundle, err := os.ReadFile(filepath.Join(r.cfg.Dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	conf, err := identity.BundleTLS(bundle, r.cfg.Name, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}, Timeout: 10 * time.Second}
	t.Cleanup(c.CloseIdleConnections)
	return &httpapi.Client{Base: "https://" + r.cfg.Listen, HTTP: c, Token: token}
}

func (r *running) operator(t *testing.T) *httpapi.Client {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.cfg.Dir, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	return r.client(t, strings.TrimSpace(string(b)))
}

func (r *running) admin(t *testing.T) admin.Service { return admin.NewClient(r.operator(t)) }

func TestASiteComesUpKeepsItsIdentityAndStopsCleanly(t *testing.T) {
	cfg := config(t)
	r := start(t, cfg)
	first, err := r.admin(t).Site(t.Context())
	if err != nil || first.Name != "alpha" || first.Generation != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	ca, _ := os.ReadFile(filepath.Join(cfg.Dir, "ca.pem"))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	again := start(t, cfg)
	if after, _ := os.ReadFile(filepath.Join(cfg.Dir, "ca.pem")); !bytes.Equal(ca, after) {
		t.Error("the site's authority changed at its second start")
	}
	if _, err := again.admin(t).Site(t.Context()); err != nil {
		t.Error("the first start's token is refused at the second:", err)
	}
	for _, secret := range []string{"admin-token", unsealFile, sealedFile, "identity/key.pem"} {
		if st, err := os.Stat(filepath.Join(cfg.Dir, secret)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", secret, st.Mode(), err)
		}
	}
	token, _ := os.ReadFile(filepath.Join(cfg.Dir, "admin-token"))
	if _, secret, _ := strings.Cut(strings.TrimSpace(string(token)), "."); strings.Contains(r.log.String()+again.log.String(), secret) {
		t.Error("the operator's token stands in the log")
	}
}

func TestTwoProcessesOnOneDirectory(t *testing.T) {
	cfg := config(t)
	r := start(t, cfg)
	second := cfg
	second.Listen, second.Log = freePort(t), slog.New(slog.NewTextHandler(io.Discard, nil))
	err := Run(t.Context(), second)
	if !fault.Has(err, fault.InUse) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("the second process: %v; want in-use, naming process %d", err, os.Getpid())
	}
	if _, err := r.admin(t).Site(t.Context()); err != nil {
		t.Error("the first one was disturbed:", err)
	}
}

func TestAPortThatIsTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg := config(t)
	cfg.Listen, cfg.Log = ln.Addr().String(), slog.New(slog.NewTextHandler(io.Discard, nil))
	err = Run(t.Context(), cfg)
	if !fault.Has(err, fault.Unavailable) || !strings.Contains(err.Error(), cfg.Listen) || !strings.Contains(fault.From(err).NextStep(), "--listen") {
		t.Errorf("%v; next: %s", err, fault.From(err).NextStep())
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "store")); err == nil {
		t.Error("a site that could not listen has made its store")
	}
}

// Every operation of the OpenAPI document, asked by nobody, by a stranger's token and, where it
// changes something, by an auditor.
func TestNothingAnswersWithoutIdentityAndAuditorsChangeNothing(t *testing.T) {
	r := start(t, config(t))
	made, err := r.admin(t).CreateToken(t.Context(), admin.NewToken{Name: "audit", Role: identity.Auditor})
	if err != nil {
		t.Fatal(err)
	}
	hc := r.operator(t)
	var doc struct {
		OpenAPI string                                `json:"openapi"`
		Paths   map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := hc.Call(t.Context(), "GET", "/openapi.json", nil, nil, &doc); err != nil || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Fatalf("OpenAPI document: version %q, %v", doc.OpenAPI, err)
	}
	ask := func(method, path, token string) int {
		req, _ := http.NewRequest(method, hc.Base+path, strings.NewReader("{}"))
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := hc.HTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	n := 0
	for path, methods := range doc.Paths {
		for method := range methods {
			method = strings.ToUpper(method)
			at := strings.NewReplacer("{id}", "alpha.aaaaaaaaaa", "{name}", "x", "{customer}", "x", "{component}", "x", "{group}", "x", "{key}", "x").Replace(path)
			n++
			if path == vhi.JoinPath || path == border.JoinPath || path == admin.JoinPath {
				if got := ask(method, at, ""); got < 400 {
					t.Errorf("%s %s without a token: %d", method, path, got)
				}
				continue
			}
			for _, token := range []string{"", "rsv_admin.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"} {
				if got := ask(method, at, token); got != http.StatusUnauthorized {
					t.Errorf("%s %s by %q: %d, want 401", method, path, token, got)
				}
			}
			if asks := strings.HasSuffix(path, "/plan") || strings.HasSuffix(path, "/find"); method != http.MethodGet && !asks {
				if got := ask(method, at, made.Secret); got != http.StatusForbidden && got != http.StatusUnprocessableEntity && got != http.StatusBadRequest && got != http.StatusNotFound {
					t.Errorf("%s %s by an auditor: %d, want 403", method, path, got)
				}
			}
		}
	}
	if n < 25 {
		t.Errorf("the document has only %d operations", n)
	}
	for _, path := range []string{"/v2/", "/openapi.json", "/", "/vmi/v1/vees/alpha.aaaaaaaaaa/console"} {
		if got := ask("GET", path, ""); got != http.StatusUnauthorized {
			t.Errorf("GET %s by nobody: %d, want 401", path, got)
		}
	}
	if conn, err := net.Dial("tcp", r.cfg.Listen); err == nil {
		fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if bytes.Contains(answer, []byte("200")) {
			t.Errorf("plain HTTP was answered: %q", answer)
		}
	}
}

func TestProvidersSeeTheirOwnCustomerOnly(t *testing.T) {
	r := start(t, config(t))
	made, err := r.admin(t).CreateToken(t.Context(), admin.NewToken{Name: "acme", Role: identity.Provider, Customer: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	acme := smi.NewClient(r.client(t, made.Secret))
	if list, err := acme.List(t.Context(), ""); err != nil || len(list) != 0 {
		t.Errorf("its own list: %v, %v", list, err)
	}
	if list, err := acme.List(t.Context(), "globex"); err == nil && len(list) > 0 {
		t.Errorf("another customer's list: %v", list)
	}
	if err := admin.NewClient(r.client(t, made.Secret)).RevokeToken(t.Context(), "admin"); !fault.Has(err, fault.Denied) {
		t.Errorf("a provider revoked the operator's token: %v", err)
	}
}

// A host joins once with its token; a second machine with the same token is refused.
func TestAHostJoinsOnceAndIsWhoItSaysItIs(t *testing.T) {
	r := start(t, config(t))
	inv, err := r.admin(t).InviteHost(t.Context(), admin.NewInvite{Host: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	pin, _, err := identity.ParseJoinToken(identity.Secret(inv.Token))
	if err != nil {
		t.Fatal(err)
	}
	anonymous := func(conf *tls.Config) vhi.Manager {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}}
		t.Cleanup(c.CloseIdleConnections)
		return vhi.NewManagerClient(&httpapi.Client{Base: "https://" + r.cfg.Listen, HTTP: c})
	}
	join := func(name string) (*identity.Keypair, error) {
		keys, err := identity.OpenKeypair(t.TempDir(), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := keys.CSR()
		if err != nil {
			t.Fatal(err)
		}
		reply, err := anonymous(identity.PinnedTLS(pin, time.Now)).Join(t.Context(), vhi.JoinRequest{Token: inv.Token, Host: name, CSR: csr})
		if err != nil {
			return nil, err
		}
		return keys, keys.Install(reply.Certificate, reply.Bundle)
	}
	if _, err := join("h2"); !fault.Has(err, fault.Denied) && !fault.Has(err, fault.TokenInvalid) {
		t.Errorf("another name: %v, want it refused", err)
	}
	inv, err = r.admin(t).InviteHost(t.Context(), admin.NewInvite{Host: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := join("h1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := join("h1"); !fault.Has(err, fault.TokenInvalid) {
		t.Errorf("the token a second time: %v, want token-invalid", err)
	}
	site, err := identity.SiteID("alpha")
	if err != nil {
		t.Fatal(err)
	}
	m := anonymous(keys.ClientTLS(site))
	if _, err := m.Renew(t.Context(), vhi.Renewal{Report: vhi.HostReport{Host: "h1", Incarnation: "a", Seq: 1, Address: "127.0.0.1:1"}}); err != nil {
		t.Errorf("its renewal: %v", err)
	}
	if _, err := m.Renew(t.Context(), vhi.Renewal{Report: vhi.HostReport{Host: "h9", Incarnation: "a", Seq: 1}}); !fault.Has(err, fault.Denied) {
		t.Errorf("a renewal in another's name: %v, want access-denied", err)
	}
	if err := smi.NewClient(&httpapi.Client{Base: "https://" + r.cfg.Listen, HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: keys.ClientTLS(site), ForceAttemptHTTP2: true}}}).
		Delete(t.Context(), "", "web"); !fault.Has(err, fault.Denied) {
		t.Errorf("a host deletes a service: %v, want access-denied", err)
	}
}

// A record of truth that is full refuses what writes, says what to do, goes on answering,
// and works again after compaction.
func TestAFullStoreSaysSoAndRecovers(t *testing.T) {
	cfg := config(t)
	cfg.StoreQuota = 4 << 20
	r := start(t, cfg)
	a := r.admin(t)
	var err error
	n := 0
	for ; n < 20000 && err == nil; n++ {
		_, err = a.CreateToken(t.Context(), admin.NewToken{Name: fmt.Sprintf("t%d", n), Role: identity.Auditor})
		if err == nil {
			err = a.RevokeToken(t.Context(), fmt.Sprintf("t%d", n))
		}
	}
	if !fault.Has(err, fault.StoreFull) || !strings.Contains(fault.From(err).NextStep(), "reservoir site compact") {
		t.Fatalf("after %d tokens: %v; want store-full and its next step", n, err)
	}
	st, err := a.Site(t.Context())
	if err != nil || st.Store.Alarm != "full" {
		t.Errorf("a full site: %+v, %v; want it to answer, and the alarm shown", st.Store, err)
	}
	if c, err := a.Compact(t.Context()); err != nil || c.Alarm != "" || c.After >= c.Before {
		t.Fatalf("compact: %+v, %v", c, err)
	}
	if _, err := a.CreateToken(t.Context(), admin.NewToken{Name: "after", Role: identity.Auditor}); err != nil {
		t.Error("after compaction:", err)
	}
}

// What was answered under an Idempotency-Key is known after a restart too.
func TestACallThatIsRepeatedAfterARestart(t *testing.T) {
	cfg := config(t)
	ctx := httpapi.WithKey(t.Context(), "quota-of-acme")
	limits := func(n int) vmi.SetQuota { return vmi.SetQuota{Customer: "acme", Limits: vmi.Limits{VEEs: &n}} }
	r := start(t, cfg)
	if q, err := vmi.NewClient(r.operator(t)).SetQuota(ctx, limits(3)); err != nil || q.Version != 1 {
		t.Fatalf("%+v, %v", q, err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	again := vmi.NewClient(start(t, cfg).operator(t))
	if q, err := again.SetQuota(ctx, limits(3)); err != nil || q.Version != 1 {
		t.Errorf("repeated: %+v, %v; want the first answer", q, err)
	}
	if _, err := again.SetQuota(ctx, limits(4)); !fault.Has(err, fault.Conflict) {
		t.Errorf("another call under the key: %v", err)
	}
	if q, err := again.SetQuota(t.Context(), limits(4)); err != nil || q.Version != 2 {
		t.Errorf("without a key: %+v, %v", q, err)
	}
}
