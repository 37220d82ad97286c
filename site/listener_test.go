package site

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// sender is a site's, as far as it is needed to send accounting information, and a server
// whose certificate is of the site's authority.
func sender(t *testing.T, h http.Handler, paths ...string) (send func(string) (vmi.AccountingListener, error), url string) {
	t.Helper()
	dir := t.TempDir()
	ca, err := identity.NewCA("alpha", time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := identity.OpenKeypair(filepath.Join(dir, "keys"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := keys.CSR()
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.SiteID("alpha")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Issue(csr, id, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.Install(chain, ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = keys.ServerTLS()
	srv.TLS.ClientAuth = tls.RequestClientCert
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s := &site{cfg: Config{Name: "alpha"}, ca: ca, keys: keys}
	for _, p := range paths {
		s.cfg.AccountingListeners = append(s.cfg.AccountingListeners, srv.URL+p)
	}
	return s.listener(), srv.URL
}

var aMessage = []vmi.AccountingMessage{{VEE: "alpha.aaaaaaaaaa", Customer: "acme", Seq: 3, FromMS: 1, ToMS: 2}}

// A listener gets the messages as JSON at the URL that was allowed, and sees the site's
// certificate.
func TestAccountingIsSentToAURL(t *testing.T) {
	type call struct {
		path, peer, token string
		messages          []vmi.AccountingMessage
	}
	calls := make(chan call, 1)
	send, url := sender(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := call{path: r.Method + " " + r.URL.Path, token: r.Header.Get("Authorization")}
		if certs := r.TLS.PeerCertificates; len(certs) > 0 && len(certs[0].URIs) > 0 {
			c.peer = certs[0].URIs[0].String()
		}
		var body struct{ Messages []vmi.AccountingMessage }
		_ = json.NewDecoder(r.Body).Decode(&body)
		c.messages = body.Messages
		calls <- c
		w.WriteHeader(http.StatusNoContent)
	}), "/bills")
	l, err := send(url + "/bills")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.ReceiveAccountingInformation(t.Context(), aMessage); err != nil {
		t.Fatal(err)
	}
	if c := <-calls; c.path != "POST /bills" || c.peer != "spiffe://alpha/site" || c.token != "" || len(c.messages) != 1 || c.messages[0] != aMessage[0] {
		t.Errorf("it heard %+v", c)
	}
	for _, other := range []string{url, url + "/", url + "/bills/", url + "/bills?x=1", "https://169.254.169.254/", strings.Replace(url, "https", "http", 1) + "/bills", ""} {
		if _, err := send(other); !fault.Has(err, fault.Denied) {
			t.Errorf("%q, which nobody allowed: %v", other, err)
		}
	}
	if nobody, _ := sender(t, http.NotFoundHandler()); nobody != nil {
		t.Error("a site that allows no URL has a sender")
	}
}

// Listeners that refuse, hang, redirect, or are somebody else: each is an error, soon enough,
// and nobody but the one that was allowed is spoken to.
func TestHostileListeners(t *testing.T) {
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/refuses", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) })
	mux.HandleFunc("/redirects", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/hangs", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	mux.HandleFunc("/babbles", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/talks", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `<html>thank you, {"code":"access-denied"}</html>`)
	})
	paths := []string{"/refuses", "/redirects", "/hangs", "/babbles", "/talks"}
	send, url := sender(t, mux, paths...)
	for _, path := range paths {
		patience := time.Minute
		if path == "/hangs" {
			patience = time.Second // the courier's own
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		l, err := send(url + path)
		if err != nil {
			t.Fatal(err)
		}
		if err = l.ReceiveAccountingInformation(ctx, aMessage); (path == "/talks") != (err == nil) {
			t.Errorf("%s: %v", path, err)
		}
		cancel()
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}

	// A certificate of another authority is not trusted.
	stranger := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	stranger.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	stranger.StartTLS()
	defer stranger.Close()
	dir := t.TempDir()
	ca, err := identity.NewCA("alpha", time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := identity.OpenKeypair(filepath.Join(dir, "k"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{cfg: Config{Name: "alpha", AccountingListeners: []string{stranger.URL + "/"}}, ca: ca, keys: keys}
	l, err := s.listener()(stranger.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	var unknown x509.UnknownAuthorityError
	if err := l.ReceiveAccountingInformation(t.Context(), aMessage); err == nil || !strings.Contains(err.Error(), unknown.Error()) && !strings.Contains(err.Error(), "certificate") || elsewhere.Load() != 0 {
		t.Errorf("a stranger was sent accounting information: %v", err)
	}
}

func TestWhatMayBeAListener(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://billing.example/usage": true, "https://10.0.0.5:8443/": true,
		"http://billing.example/": false, "https://": false, "https://u:p@h/": false, "https://h/?q": false, "https://h/#f": false, "ftp://h/": false, "nonsense": false, "": false,
	} {
		if err := checkListener(text); (err == nil) != ok || err != nil && !fault.Has(err, fault.Malformed) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
