package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func bundleOf(t *testing.T, ca *CA) *spiffebundle.Bundle {
	t.Helper()
	text, err := ca.SPIFFEBundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseBundle(ca.Site(), text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSignatures: a signature holds for its text, its signer and a time after it was made,
// also when the certificate has expired since.
func TestSignatures(t *testing.T) {
	var c clock
	alpha, beta := newCA(t, "alpha", c.now), newCA(t, "beta", c.now)
	k, other := newKeypair(t, alpha, "/site", c.now), newKeypair(t, beta, "/site", c.now)
	host := newKeypair(t, alpha, "/host/h1", c.now)
	text := []byte(`{"a":1}`)
	s, err := k.Sign(text)
	if err != nil {
		t.Fatal(err)
	}
	by, trust := id(t, "spiffe://alpha/site"), bundleOf(t, alpha)
	if err := VerifySignature(text, s, by, trust, c.now()); err != nil {
		t.Error(err)
	}
	if err := VerifySignature(text, s, by, trust, c.now().Add(2*CertLife)); err != nil {
		t.Errorf("after the certificate has expired: %v", err)
	}
	byBeta, _ := other.Sign(text)
	byHost, _ := host.Sign(text)
	head, tail, _ := strings.Cut(s, "..")
	for what, c := range map[string]struct {
		text, signature string
		at              time.Time
	}{
		"another text":        {`{"a":2}`, s, c.now()},
		"another site's":      {string(text), byBeta, c.now()},
		"a host's":            {string(text), byHost, c.now()},
		"from the future":     {string(text), s, c.now().Add(-2 * time.Hour)},
		"none":                {string(text), "", c.now()},
		"cut":                 {string(text), head + "..", c.now()},
		"another's head":      {string(text), strings.SplitN(byHost, "..", 2)[0] + ".." + tail, c.now()},
		"with its text":       {string(text), head + ".e30." + tail, c.now()},
		"without algorithm":   {string(text), "eyJhbGciOiJub25lIn0..", c.now()},
		"longer than allowed": {string(text), s + strings.Repeat("A", maxSignature), c.now()},
	} {
		if err := VerifySignature([]byte(c.text), c.signature, by, trust, c.at); !fault.Has(err, fault.Denied) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzVerifySignature(f *testing.F) {
	f.Add("eyJhbGciOiJFUzI1NiJ9..AAAA", []byte("x"))
	var c clock
	ca, err := NewCA("alpha", c.now, nil)
	if err != nil {
		f.Fatal(err)
	}
	by, err := SiteID("alpha")
	if err != nil {
		f.Fatal(err)
	}
	b := ca.SPIFFEBundle()
	f.Fuzz(func(t *testing.T, signature string, text []byte) {
		if VerifySignature(text, signature, by, b, c.now()) == nil {
			t.Errorf("%q is taken for a signature", signature)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	var c clock
	ca, err := NewCA("alpha", c.now, nil)
	if err != nil {
		f.Fatal(err)
	}
	text, err := ca.SPIFFEBundle().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"keys":[]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if b, err := ParseBundle("alpha", text); err == nil && len(b.X509Authorities()) == 0 {
			t.Error("a bundle without an authority")
		}
	})
}

func TestParseBundle(t *testing.T) {
	var c clock
	text, err := newCA(t, "alpha", c.now).SPIFFEBundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil || doc["spiffe_sequence"] != 1.0 {
		t.Errorf("%s, %v", text, err)
	}
	for site, bad := range map[string]string{"Alpha": string(text), "alpha": `{"keys":[]}`, "beta": `nonsense`} {
		if _, err := ParseBundle(site, []byte(bad)); !fault.Has(err, fault.Malformed) {
			t.Errorf("%s: %v", site, err)
		}
	}
	if _, err := ParseBundle("alpha", make([]byte, maxBundle+1)); !fault.Has(err, fault.TooLarge) {
		t.Error(err)
	}
}

// TestVerifyNamesTheCause: which clock, which end of a life.
func TestVerifyNamesTheCause(t *testing.T) {
	var c clock
	alpha, namesake := newCA(t, "alpha", c.now), newCA(t, "alpha", c.now)
	k := newKeypair(t, alpha, "/site", c.now)
	certs := k.get()
	chain := certs.tls.Leaf
	by, b := id(t, "spiffe://alpha/site"), bundleOf(t, alpha)
	all := []*struct {
		at   time.Time
		b    *spiffebundle.Bundle
		want string
	}{
		{c.now().Add(CertLife + time.Second), b, "has expired on 2026-03-08T12:00:00Z (the clock here says 2026-03-08T12:00:01Z)"},
		{c.now().Add(-skew - time.Second), b, "one of the two clocks is wrong"},
		{c.now(), bundleOf(t, namesake), "does not verify by the authorities"},
	}
	for _, x := range all {
		if err := Verify(certsOf(chain, alpha), by, x.b, x.at); !fault.Has(err, fault.Denied) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%v, want %q", err, x.want)
		}
	}
	if err := Verify(certsOf(chain, alpha), id(t, "spiffe://alpha/host/h1"), b, c.now()); err == nil {
		t.Error("the site is taken for a host")
	}
	if err := Verify(nil, by, b, c.now()); !fault.Has(err, fault.Unauthenticated) {
		t.Error(err)
	}
}

// TestMeeting: at a host, its own site's processes are who they were, a host of another site
// is let in while it is expected and not a call longer, and no authority speaks for another's
// site.
func TestMeeting(t *testing.T) {
	var c clock
	alpha, beta := newCA(t, "alpha", c.now), newCA(t, "beta", c.now)
	h1 := newKeypair(t, alpha, "/host/h1", c.now)
	trust := NewTrust(c.now)
	a := &Authenticator{Site: "alpha", Trust: trust}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{TLSConfig: h1.MeetingTLS(trust), ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, err := a.Caller(r)
		if err != nil {
			http.Error(w, string(fault.From(err).Code), http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(string(caller.Role) + " " + caller.Site + " " + caller.Host))
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.ServeTLS(ln, "", "") }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	to := id(t, "spiffe://alpha/host/h1")
	ours := newKeypair(t, alpha, "/site", c.now)
	call := func(client *http.Client) string {
		resp, err := client.Get("https://" + ln.Addr().String())
		if err != nil {
			return "no handshake"
		}
		defer resp.Body.Close()
		b := make([]byte, 64)
		n, _ := resp.Body.Read(b)
		return strings.TrimSpace(string(b[:n]))
	}
	own := &http.Client{Transport: &http.Transport{TLSClientConfig: ours.ClientTLS(to), ForceAttemptHTTP2: true}}
	t.Cleanup(own.CloseIdleConnections)
	if got := call(own); got != "site" {
		t.Errorf("its own site is %q", got)
	}
	theirs := newKeypair(t, beta, "/host/h3", c.now)
	knows := NewTrust(c.now)
	knows.Put(to, bundleOf(t, alpha))
	foreign := &http.Client{Transport: &http.Transport{TLSClientConfig: theirs.PartnerTLS(knows, to), ForceAttemptHTTP2: true}}
	t.Cleanup(foreign.CloseIdleConnections)
	if got := call(foreign); got != "no handshake" {
		t.Errorf("one who is not expected is %q", got)
	}
	from := id(t, "spiffe://beta/host/h3")
	trust.Put(from, bundleOf(t, beta))
	if got := call(foreign); got != "partner-host beta h3" {
		t.Errorf("one who is expected is %q", got)
	}
	trust.Remove(from)
	if got := call(foreign); got != "access-denied" {
		t.Errorf("no longer expected, on an open connection, it is %q", got)
	}
	trust.Put(from, bundleOf(t, beta))
	other := newKeypair(t, beta, "/host/h4", c.now)
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: other.PartnerTLS(knows, to), DisableKeepAlives: true, ForceAttemptHTTP2: true}}
	if got := call(stranger); got != "no handshake" {
		t.Errorf("another host of that site is %q", got)
	}
	// beta's authority has signed a certificate in alpha's name.
	impostor := &CA{site: "alpha", now: c.now, authority: authority{current: beta.current}}
	forged := forge(t, impostor, c.now)
	evil := &http.Client{Transport: &http.Transport{TLSClientConfig: forged, DisableKeepAlives: true, ForceAttemptHTTP2: true}}
	if got := call(evil); got != "no handshake" {
		t.Errorf("alpha's site by beta's authority is %q", got)
	}
}

// TestRotationIsKept: announced, active, retired, each as a start finds it.
func TestRotationIsKept(t *testing.T) {
	var c clock
	var kept Secret
	keep := func(text Secret) error { kept = text; return nil }
	if _, err := NewCA("alpha", c.now, keep); err != nil {
		t.Fatal(err)
	}
	open := func() *CA {
		t.Helper()
		ca, err := ParseCA(kept, "alpha", c.now, keep)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	ca := open()
	old := ca.Fingerprint()
	k := newKeypair(t, ca, "/host/h1", c.now)
	if err := ca.Activate(); !fault.Has(err, fault.WrongState) {
		t.Errorf("nothing is announced: %v", err)
	}
	for range 2 {
		if err := ca.Announce(); err != nil {
			t.Fatal(err)
		}
	}
	r := open().Rotation()
	if r.Next != ca.Rotation().Next || r.Sequence != 2 || r.Current != old || r.Next == "" {
		t.Errorf("announced: %+v", r)
	}
	ca = open()
	if err := ca.Activate(); err != nil {
		t.Fatal(err)
	}
	certs := k.get()
	check := func(ca *CA, what string) {
		t.Helper()
		got := ca.Rotation()
		if got.Current != r.Next || got.Next != "" || len(got.Retiring) != 1 || got.Sequence != 3 {
			t.Errorf("%s: %+v", what, got)
		}
		if err := Verify(certsOf(certs.leaf, nil), id(t, "spiffe://alpha/host/h1"), bundleOf(t, ca), c.now()); err != nil {
			t.Errorf("%s: a certificate from before: %v", what, err)
		}
		fresh := newKeypair(t, ca, "/host/h2", c.now)
		if err := Verify(certsOf(fresh.get().leaf, nil), id(t, "spiffe://alpha/host/h2"), bundleOf(t, ca), c.now()); err != nil {
			t.Errorf("%s: a new certificate: %v", what, err)
		}
	}
	check(ca, "active")
	check(open(), "active, after a start")
	c.advance(CertLife + 2*skew)
	ca = open()
	if err := ca.Retire(); err != nil {
		t.Fatal(err)
	}
	if got := open().Rotation(); len(got.Retiring) != 0 || got.Sequence != 4 {
		t.Errorf("retired: %+v", got)
	}
}

// certsOf is a chain: a leaf, and its authority's certificate where one is given.
func certsOf(leaf *x509.Certificate, ca *CA) []*x509.Certificate {
	if ca == nil {
		return []*x509.Certificate{leaf}
	}
	return []*x509.Certificate{leaf, ca.current.cert}
}

// forge is the TLS of a client that claims to be the CA's site, signed by whatever key the CA
// has.
func forge(t *testing.T, ca *CA, now func() time.Time) *tls.Config {
	t.Helper()
	k, err := OpenKeypair(filepath.Join(t.TempDir(), "id"), now)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := k.CSR()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Issue(csr, id(t, "spiffe://alpha/site"))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := parseCertificates(chain)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, //nolint:gosec // the test's client asks nobody who it speaks to
		Certificates: []tls.Certificate{{PrivateKey: k.key, Certificate: [][]byte{certs[0].Raw, certs[1].Raw}}}}
}
