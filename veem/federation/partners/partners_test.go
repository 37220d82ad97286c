package partners

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/veem/federation/agreement"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// aSite is a site's part that partners see, at a port of the loopback interface.
type aSite struct {
	*Registry
	name    string
	ca      *identity.CA
	keys    *identity.Keypair
	store   *store.Store
	address string

	mu     sync.Mutex
	ahead  time.Duration // of its clock
	cut    bool          // nobody reaches it
	stall  chan struct{} // not nil: calls wait for it
	events []Event
	lies   lies
	stop   func()
	can    []peer.Capability
}

func (s *aSite) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.ahead)
}

func (s *aSite) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *aSite) record(e Event) { s.set(func() { s.events = append(s.events, e) }) }

// told reports whether an event with that reason, and those words in it, was recorded.
func (s *aSite) told(reason, words string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.events, func(e Event) bool { return e.Reason == reason && strings.Contains(e.Message, words) })
}

// world of sites, by the address that their proxies would have.
type world struct {
	mu    sync.Mutex
	sites map[string]*aSite
}

func (w *world) dial(ctx context.Context, _ string, b peer.Border) (net.Conn, error) {
	w.mu.Lock()
	s := w.sites[b.Relay]
	w.mu.Unlock()
	if s == nil {
		return nil, fault.New(fault.Unavailable, "reach the proxy at tcp://%s: nobody is there", b.Relay)
	}
	s.mu.Lock()
	cut := s.cut
	s.mu.Unlock()
	if cut {
		return nil, fault.New(fault.Unavailable, "reach the proxy at tcp://%s: connection refused", b.Relay)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", b.Relay)
}

var quick = Timing{Hello: 20 * time.Millisecond, Wait: 2 * time.Second, Dial: 2 * time.Second, Call: 2 * time.Second}

// site starts one.
func (w *world) site(t *testing.T, name string, change ...func(*aSite, *Config)) *aSite {
	t.Helper()
	s := &aSite{name: name, store: store.InMemory(slog.New(slog.DiscardHandler), nil), can: []peer.Capability{peer.CanPlace, peer.CanPublish}}
	t.Cleanup(func() { s.store.Close() })
	var err error
	dir := t.TempDir()
	if s.ca, err = identity.NewCA(name, s.now, nil); err != nil {
		t.Fatal(err)
	}
	if s.keys, err = identity.OpenKeypair(filepath.Join(dir, "id"), s.now); err != nil {
		t.Fatal(err)
	}
	if err := s.certify(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = ln.Addr().String()
	trust := identity.NewTrust(s.now)
	cfg := Config{Site: name, Version: "1", Capabilities: s.can, CA: s.ca, Keys: s.keys, Trust: trust, Store: s.store,
		Border: func() peer.Border { return peer.Border{Relay: s.address} }, Dial: w.dial, Recertify: s.certify,
		Timing: quick, Record: s.record, Now: s.now, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(s, &cfg)
	}
	if s.Registry, err = Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	api := httpapi.NewServer("test", "1", cfg.Log)
	peer.RegisterHost(api, s.Registry)
	peer.Register(api, served{Registry: s.Registry, lies: &s.lies})
	handler := api.Handler(trust.Caller, peer.AcceptPath)
	l := &httpapi.Listener{Log: cfg.Log, TLS: s.keys.FederationTLS(trust, s.Strangers, nil), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		stall := s.stall
		s.mu.Unlock()
		if stall != nil {
			select {
			case <-stall:
			case <-r.Context().Done():
				return
			}
		}
		handler.ServeHTTP(rw, r)
	})}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Serve(ctx, ln) })
	wg.Go(func() { _ = s.Run(ctx) })
	s.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(s.stop)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sites == nil {
		w.sites = map[string]*aSite{}
	}
	w.sites[s.address] = s
	return s
}

// served is what a partner is served: trust, agreements, and something to offer.
type served struct {
	*Registry
	lies *lies
	peer.Networks
	peer.Moves
	peer.Books
	peer.Gauges
	peer.Cooperation
}

func (s served) Attributes(context.Context) (peer.Attributes, error) {
	s.lies.mu.Lock()
	defer s.lies.mu.Unlock()
	if s.lies.offer != nil {
		return *s.lies.offer, nil
	}
	return peer.Attributes{Site: s.cfg.Site, At: s.cfg.Now(), GoodMS: 60_000, State: peer.State{Hosts: 1}}, nil
}

func (s served) WatchAttributes(ctx context.Context) (<-chan peer.Attributes, error) {
	ch := make(chan peer.Attributes, 1)
	a, _ := s.Attributes(ctx)
	ch <- a
	go func() { <-ctx.Done(); close(ch) }()
	return ch, nil
}

// lies that a site tells of itself.
type lies struct {
	mu    sync.Mutex
	offer *peer.Attributes
}

func (l *lies) tell(a peer.Attributes) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.offer = &a
}

func (s *aSite) certify() error {
	id, err := identity.SiteID(s.name)
	if err != nil {
		return err
	}
	csr, err := s.keys.CSR()
	if err != nil {
		return err
	}
	chain, err := s.ca.Issue(csr, id)
	if err != nil {
		return err
	}
	return s.keys.Install(chain, s.ca.Bundle())
}

// eventually waits for what goroutines bring about.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within half a minute: %s", what)
		}
	}
}

func (s *aSite) reaches(other string) bool {
	p, err := s.Partner(other)
	return err == nil && p.Down == nil
}

// befriended are two sites that are partners and reach each other.
func befriended(t *testing.T, change ...func(*aSite, *Config)) (w *world, alpha, beta *aSite) {
	t.Helper()
	w = &world{}
	alpha, beta = w.site(t, "alpha", change...), w.site(t, "beta", change...)
	join(t, alpha, beta)
	return w, alpha, beta
}

func join(t *testing.T, alpha, beta *aSite) {
	t.Helper()
	inv, err := alpha.Invite(t.Context(), beta.name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := beta.AcceptToken(t.Context(), inv.Token); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both reach each other", func() bool { return alpha.reaches(beta.name) && beta.reaches(alpha.name) })
}

func terms(lender, borrower string, now time.Time) peer.Terms {
	t, err := agreement.Parse([]byte(`{lend: true, until: 2100-01-01, notice: 1h, ceiling: {vees: 2, vcpus: 2, memory: 1GiB}, types: [{name: s, vcpus: 1, memory: 1GiB}], currency: EUR, prices: {vee: 0.1}}`), lender, borrower, now)
	if err != nil {
		panic(err)
	}
	return t
}

func TestBecomePartners(t *testing.T) {
	_, alpha, beta := befriended(t)
	p, err := alpha.Partner("beta")
	if err != nil || Fingerprint(p.Bundle) != beta.ca.Fingerprint() || p.Hello.Border.Relay != beta.address {
		t.Errorf("alpha knows %+v, %v", p, err)
	}
	h, err := p.Site.Hello(t.Context(), alpha.hello("beta"))
	if err != nil || h.Site != "beta" || !h.Can(peer.CanPlace) {
		t.Errorf("beta says %+v, %v", h, err)
	}
	if got := alpha.Partners(); len(got) != 1 || got[0].Name != "beta" {
		t.Errorf("partners %+v", got)
	}
	if _, err := alpha.Partner("gamma"); !fault.Has(err, fault.NotFound) {
		t.Error(err)
	}
	eventually(t, "what the other has to offer is known", func() bool {
		a, age, ok := alpha.Offer("beta")
		return ok && a.State.Hosts == 1 && age < time.Minute
	})
	if a, err := alpha.Ask(t.Context(), "beta"); err != nil || a.Site != "beta" {
		t.Errorf("asked, beta offers %+v, %v", a, err)
	}
}

// TestInvitations: what is wrong with a token is told, and a used one is of use to nobody
// else, but to the same site again.
func TestInvitations(t *testing.T) {
	w := &world{}
	alpha, beta, gamma := w.site(t, "alpha"), w.site(t, "beta"), w.site(t, "gamma")
	ctx := t.Context()
	open, err := alpha.Invite(ctx, "", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // an answer may be lost
		if _, err := beta.AcceptToken(ctx, open.Token); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := gamma.AcceptToken(ctx, open.Token); !fault.Has(err, fault.TokenInvalid) {
		t.Errorf("a used token: %v", err)
	}
	named, err := alpha.Invite(ctx, "delta", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gamma.AcceptToken(ctx, named.Token); !fault.Has(err, fault.Denied) || !strings.Contains(err.Error(), "delta") {
		t.Errorf("another's token: %v", err)
	}
	if _, err := alpha.AcceptToken(ctx, named.Token); !fault.Has(err, fault.Malformed) {
		t.Errorf("its own token: %v", err)
	}
	for _, text := range []string{"", "rsvf_", "rsvf_!!", named.Token[:60], strings.Repeat("x", 5000)} {
		if _, err := gamma.AcceptToken(ctx, text); !fault.Has(err, fault.TokenInvalid) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	// A token that leads to somebody else than who made it.
	x, err := parseToken(named.Token)
	if err != nil {
		t.Fatal(err)
	}
	x.Border.Relay = beta.address
	if _, err := gamma.AcceptToken(ctx, x.String()); err == nil || !strings.Contains(err.Error(), "fingerprint") && !strings.Contains(err.Error(), "handshake") {
		t.Errorf("a token that leads elsewhere: %v", err)
	}
	short, err := alpha.Invite(ctx, "gamma", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	alpha.set(func() { alpha.ahead = 2 * time.Minute })
	if _, err := gamma.AcceptToken(ctx, short.Token); !fault.Has(err, fault.TokenInvalid) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired token: %v", err)
	}
	if len(gamma.Partners()) != 0 || len(gamma.Borders()) != 0 {
		t.Errorf("gamma keeps %v", gamma.Borders())
	}
}

// TestStrangersAreCutAtTheHandshake unless somebody is expected, and then have one call.
func TestStrangersAreCutAtTheHandshake(t *testing.T) {
	w, alpha, beta := befriended(t)
	gamma := w.site(t, "gamma")
	if alpha.set(func() { alpha.ahead = 2 * time.Hour }); alpha.Strangers() {
		t.Fatal("an invitation is open after its time")
	}
	alpha.set(func() { alpha.ahead = 0 })
	nobody := &http.Transport{TLSClientConfig: identity.PinnedTLS(beta.ca.Fingerprint(), time.Now), ForceAttemptHTTP2: true, DisableKeepAlives: true}
	get := func() error {
		c := &httpapi.Client{Base: "https://" + beta.address, HTTP: &http.Client{Transport: nobody}}
		_, err := peer.NewClient(c).Bundle(t.Context())
		return err
	}
	if err := get(); err == nil || fault.Has(err, fault.Unauthenticated) {
		t.Errorf("a stranger came past the handshake: %v", err)
	}
	if _, err := beta.Invite(t.Context(), "delta", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := get(); !fault.Has(err, fault.Unauthenticated) {
		t.Errorf("a stranger, while one is expected: %v", err)
	}
	// A certificate of a site that is no partner is no better.
	id, _ := identity.SiteID("beta")
	b, err := identity.ParseBundle("beta", mustBundle(t, beta).JWKS)
	if err != nil {
		t.Fatal(err)
	}
	knows := identity.NewTrust(time.Now)
	knows.Put(id, b)
	other := &http.Transport{TLSClientConfig: gamma.keys.PartnerTLS(knows, id), ForceAttemptHTTP2: true, DisableKeepAlives: true}
	if _, err := peer.NewClient(&httpapi.Client{Base: "https://" + beta.address, HTTP: &http.Client{Transport: other}}).Bundle(t.Context()); err == nil {
		t.Error("gamma is let in")
	}
}

func mustBundle(t *testing.T, s *aSite) peer.Bundle {
	t.Helper()
	b, err := s.ownBundle()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDownAndBack: two greetings without an answer, and calls fail at once, also those under
// way; one with an answer, and it is as before.
func TestDownAndBack(t *testing.T) {
	_, alpha, beta := befriended(t, func(_ *aSite, c *Config) { c.Timing.Wait = 100 * time.Millisecond })
	p, err := alpha.Partner("beta")
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	beta.set(func() { beta.stall = release })
	failed := make(chan error, 1)
	go func() { // under way while beta stalls
		_, err := p.Site.Bundle(t.Context())
		failed <- err
	}()
	eventually(t, "beta is down", func() bool { return !alpha.reaches("beta") })
	if err := <-failed; err == nil {
		t.Error("a call to a partner that stalls has an answer")
	}
	if _, err := p.Site.Bundle(t.Context()); !fault.Has(err, fault.Timeout) && !fault.Has(err, fault.Unavailable) || !strings.Contains(err.Error(), "site beta does not answer") {
		t.Errorf("while it is down: %v", err)
	}
	if !alpha.told("PartnerLost", "site beta does not answer") {
		t.Errorf("events %+v", alpha.events)
	}
	beta.set(func() { beta.stall = nil })
	close(release)
	eventually(t, "beta is back", func() bool { return alpha.reaches("beta") })
	if _, err := p.Site.Bundle(t.Context()); err != nil {
		t.Error(err)
	}
	beta.set(func() { beta.cut = true })
	beta.stop()
	eventually(t, "beta is gone", func() bool { return !alpha.reaches("beta") })
	if p, _ := alpha.Partner("beta"); !strings.Contains(p.Down.Error(), "tcp://"+beta.address) {
		t.Errorf("the reason does not name the address: %v", p.Down)
	}
}

func TestRevoked(t *testing.T) {
	_, alpha, beta := befriended(t)
	p, err := beta.Partner("alpha")
	if err != nil {
		t.Fatal(err)
	}
	offers, err := p.Site.WatchAttributes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-offers
	if err := alpha.Revoke(t.Context(), "beta", "stolen key"); err != nil {
		t.Fatal(err)
	}
	// beta's connection stands, and is of no use.
	if _, err := p.Site.Bundle(t.Context()); !fault.Has(err, fault.Denied) {
		t.Errorf("on an open connection: %v", err)
	}
	if _, err := alpha.Partner("beta"); !fault.Has(err, fault.NotFound) || !strings.Contains(err.Error(), "revoked") {
		t.Error(err)
	}
	eventually(t, "beta learns that it is refused", func() bool { return !beta.reaches("alpha") })
	if len(alpha.Borders()) != 0 || len(alpha.Partners()) != 0 {
		t.Error("alpha's proxy is told of a revoked partner")
	}
	join(t, alpha, beta) // by a new token
}

func TestLeave(t *testing.T) {
	_, alpha, beta := befriended(t)
	a, err := alpha.Propose(t.Context(), "beta", terms("alpha", "beta", alpha.now()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := beta.SignAgreement(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	if err := alpha.LeavePartner(t.Context(), "beta", false); !fault.Has(err, fault.InUse) {
		t.Errorf("with an agreement in force: %v", err)
	}
	if err := alpha.LeavePartner(t.Context(), "beta", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both have forgotten", func() bool { return len(alpha.Partners())+len(beta.Partners()) == 0 })
	join(t, alpha, beta)
	beta.set(func() { beta.cut = true })
	beta.stop()
	eventually(t, "beta is gone", func() bool { return !alpha.reaches("beta") })
	if _, err := alpha.EndOurs(t.Context(), a.ID, ""); err != nil {
		t.Fatal(err)
	}
	alpha.set(func() { alpha.ahead = 2 * time.Hour }) // notice is over
	if err := alpha.LeavePartner(t.Context(), "beta", false); !fault.Has(err, fault.Unavailable) {
		t.Errorf("a partner that is not reached: %v", err)
	}
	if err := alpha.LeavePartner(t.Context(), "beta", true); err != nil || len(alpha.Partners()) != 0 {
		t.Errorf("one-sided: %v", err)
	}
}

func TestAgreementIsSignedByBoth(t *testing.T) {
	_, alpha, beta := befriended(t)
	ctx := t.Context()
	a, err := alpha.Propose(ctx, "beta", terms("alpha", "beta", alpha.now()))
	if err != nil || a.Signed() {
		t.Fatalf("%+v, %v", a, err)
	}
	if got, err := beta.Agreement(a.ID); err != nil || got.State != ToSign || got.Partner != "alpha" {
		t.Fatalf("at beta %+v, %v", got, err)
	}
	if p, _ := beta.Partner("alpha"); len(p.Agreements) != 1 {
		t.Errorf("agreements %+v", p.Agreements)
	} else if _, err := p.Lends(beta.now()); !fault.Has(err, fault.NotFound) {
		t.Errorf("before it is signed: %v", err)
	}
	if a, err = beta.SignAgreement(ctx, a.ID); err != nil || !a.Signed() {
		t.Fatalf("%+v, %v", a, err)
	}
	got, err := alpha.Agreement(a.ID)
	if err != nil || got.State != InForce || !got.Signed() {
		t.Errorf("at alpha %+v, %v", got, err)
	}
	p, _ := beta.Partner("alpha")
	if _, err := p.Lends(beta.now()); err != nil {
		t.Error(err)
	}
	if _, err := p.Borrows(beta.now()); !fault.Has(err, fault.NotFound) {
		t.Errorf("the other way: %v", err)
	}
	if a, err = beta.EndOurs(ctx, a.ID, "moving house"); err != nil || a.End == nil {
		t.Fatal(err)
	}
	if got, _ := alpha.Agreement(a.ID); got.State != Ending || got.End.By != "beta" || got.Leave == nil {
		t.Errorf("ended: %+v", got)
	}
}

// TestForgedAgreements: nothing but what the caller itself has signed, about itself, is
// taken, and nothing that is over comes again.
func TestForgedAgreements(t *testing.T) {
	_, alpha, beta := befriended(t)
	ctx := t.Context()
	p, _ := beta.Partner("alpha")
	sign := func(x peer.Terms) peer.Agreement {
		text, err := agreement.Text(x)
		if err != nil {
			t.Fatal(err)
		}
		s, err := beta.keys.Sign(text)
		if err != nil {
			t.Fatal(err)
		}
		return peer.Agreement{Terms: x, Signatures: map[string]string{"beta": s, "alpha": s}}
	}
	good := terms("alpha", "beta", alpha.now())
	good.ID = "beta.aaaaaaaaaa"
	put := func(a peer.Agreement) error { _, err := p.Site.PutAgreement(ctx, a); return err }

	unsigned := sign(good)
	unsigned.Signatures = nil
	changed := sign(good)
	changed.Ceiling.VEEs = 1000
	foreign := sign(func() peer.Terms { x := good; x.Lender = "gamma"; return x }())
	theirs := sign(func() peer.Terms { x := good; x.ID = "alpha.bbbbbbbbbb"; return x }())
	senseless := sign(func() peer.Terms { x := good; x.Types = nil; return x }())
	past := sign(func() peer.Terms {
		x := good
		x.From, x.Until = x.From.AddDate(-2, 0, 0), x.From.AddDate(-1, 0, 0)
		return x
	}())
	for what, c := range map[string]struct {
		a    peer.Agreement
		code fault.Code
	}{
		"no signature": {unsigned, fault.Denied}, "another text": {changed, fault.Denied}, "between others": {foreign, fault.Denied},
		"never proposed": {theirs, fault.NotFound}, "senseless": {senseless, fault.Malformed}, "long over": {past, fault.WrongState},
	} {
		if err := put(c.a); !fault.Has(err, c.code) {
			t.Errorf("%s: %v, want %s", what, err, c.code)
		}
	}
	for range 2 { // may be repeated
		if err := put(sign(good)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := alpha.Agreement(good.ID)
	if err != nil || got.Signatures["alpha"] != "" {
		t.Errorf("alpha's signature is taken from beta: %+v, %v", got, err)
	}
	other := good
	other.Ceiling.VEEs = 3
	if err := put(sign(other)); !fault.Has(err, fault.Conflict) {
		t.Errorf("other terms: %v", err)
	}
	if _, err := alpha.SignAgreement(ctx, good.ID); err != nil {
		t.Fatal(err)
	}
	e := peer.End{Agreement: good.ID, By: "alpha", At: alpha.now().UTC()}
	if _, err := p.Site.EndAgreement(ctx, e); !fault.Has(err, fault.Denied) {
		t.Errorf("an end in alpha's name: %v", err)
	}
	e = peer.End{Agreement: good.ID, By: "beta", At: alpha.now().UTC().Add(-24 * time.Hour)}
	text, _ := agreement.EndText(e)
	if e.Signature, err = beta.keys.Sign(text); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Site.EndAgreement(ctx, e); err != nil {
		t.Fatal(err)
	}
	if got, _ := alpha.Agreement(good.ID); got.State != Ending || got.Leave.Before(alpha.now().Add(50*time.Minute)) {
		t.Errorf("an end that is dated back takes the notice away: %+v", got)
	}
	if err := put(sign(good)); !fault.Has(err, fault.WrongState) {
		t.Errorf("an ended one comes again: %v", err)
	}
}

// TestAgreementsAreBroughtLater: what was signed while the partner was away reaches it.
func TestAgreementsAreBroughtLater(t *testing.T) {
	_, alpha, beta := befriended(t, func(_ *aSite, c *Config) { c.Timing.Wait = 100 * time.Millisecond })
	release := make(chan struct{})
	beta.set(func() { beta.stall = release })
	eventually(t, "beta is down", func() bool { return !alpha.reaches("beta") })
	a, err := alpha.Propose(t.Context(), "beta", terms("beta", "alpha", alpha.now()))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := alpha.Agreement(a.ID); got.Told || got.State != Proposed {
		t.Errorf("%+v", got)
	}
	beta.set(func() { beta.stall = nil })
	close(release)
	eventually(t, "beta has it", func() bool { _, err := beta.Agreement(a.ID); return err == nil })
	eventually(t, "alpha knows that", func() bool { got, _ := alpha.Agreement(a.ID); return got.Told })
}

// TestClocks: a partner's clock that is off is measured, until it is so wrong that its
// certificate cannot be good, and then that is said.
func TestClocks(t *testing.T) {
	_, alpha, beta := befriended(t)
	beta.set(func() { beta.ahead = 10 * time.Minute })
	eventually(t, "the offset is known", func() bool {
		p, err := alpha.Partner("beta")
		return err == nil && (p.Offset-10*time.Minute).Abs() < time.Minute
	})
	p, _ := alpha.Partner("beta")
	if got := p.OurTime(beta.now()).Sub(alpha.now()).Abs(); got > time.Minute {
		t.Errorf("beta's times are %v off after correction", got)
	}
	beta.set(func() { beta.ahead = -90 * 24 * time.Hour })
	if err := beta.certify(); err == nil {
		beta.keys = nil
		t.Fatal("a certificate of the past is installed") // the CA's own is not good yet
	}
	eventually(t, "beta refuses alpha", func() bool { return !beta.reaches("alpha") })
	q, _ := beta.Partner("alpha")
	if !strings.Contains(q.Down.Error(), "clock") {
		t.Errorf("the reason does not speak of clocks: %v", q.Down)
	}
}

func TestExpiredCertificate(t *testing.T) {
	_, alpha, _ := befriended(t)
	// beta's process has slept through its renewal: by alpha's clock its certificate is over.
	alpha.set(func() { alpha.ahead = identity.CertLife + time.Hour })
	if err := alpha.certify(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "beta is refused", func() bool { return !alpha.reaches("beta") })
	p, _ := alpha.Partner("beta")
	if !strings.Contains(p.Down.Error(), "has expired on") {
		t.Errorf("the reason is not told: %v", p.Down)
	}
}

func TestRotation(t *testing.T) {
	_, alpha, beta := befriended(t)
	ctx := t.Context()
	old := alpha.ca.Fingerprint()
	r, err := alpha.Rotate(ctx, RotateBegin)
	if err != nil || r.Next == "" || r.Current != old {
		t.Fatalf("%+v, %v", r, err)
	}
	eventually(t, "beta holds the new bundle, and alpha knows", func() bool {
		p, _ := alpha.Partner("beta")
		return p.Hello.Holds == r.Sequence && beta.told("BundleFollowed", "alpha")
	})
	if r, err = alpha.Rotate(ctx, RotateOn); err != nil || r.Current != old {
		t.Errorf("it is activated before hosts can have it: %+v, %v", r, err)
	}
	alpha.set(func() { alpha.ahead = identity.CertLife + time.Minute })
	beta.set(func() { beta.ahead = identity.CertLife + time.Minute })
	if err := errors.Join(alpha.certify(), beta.certify()); err != nil {
		t.Fatal(err)
	}
	if r, err = alpha.Rotate(ctx, RotateOn); err != nil || r.Current == old || r.Next != "" || len(r.Retiring) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	eventually(t, "they reach each other under the new authority", func() bool { return beta.reaches("alpha") && alpha.reaches("beta") })
	alpha.set(func() { alpha.ahead = 2*identity.CertLife + 2*time.Hour })
	if r, err = alpha.Rotate(ctx, RotateOn); err != nil || len(r.Retiring) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestOlderPartner: what it lacks is refused by name, and everything else works.
func TestOlderPartner(t *testing.T) {
	_, alpha, beta := befriended(t, func(s *aSite, c *Config) {
		if s.name == "beta" {
			c.Version, c.Capabilities = "0.9", []peer.Capability{peer.CanPlace}
		}
	})
	p, err := alpha.Partner("beta")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Hello.Needs(peer.CanMove); !fault.Has(err, fault.Unsupported) || !strings.Contains(err.Error(), `site beta (version 0.9) lacks the capability "move"`) {
		t.Error(err)
	}
	found := alpha.Candidates(t.Context(), nil)
	if len(found) != 1 || !fault.Has(found[0].Silent, fault.Unsupported) {
		t.Errorf("the broker knows %+v", found)
	}
	a, err := alpha.Propose(t.Context(), "beta", terms("beta", "alpha", alpha.now()))
	if err != nil {
		t.Fatal(err)
	}
	if a, err = beta.SignAgreement(t.Context(), a.ID); err != nil || !a.Signed() {
		t.Errorf("%+v, %v", a, err)
	}
	checks, err := alpha.Preflight(t.Context(), "beta", "")
	if err != nil || !slices.ContainsFunc(checks, func(c Check) bool { return c.OK && strings.Contains(c.Detail, "version 0.9 lacks [attributes]") }) {
		t.Errorf("%+v, %v", checks, err)
	}
}

// TestLies: what cannot be so, or is another's, is not taken for what a partner has to offer.
func TestLies(t *testing.T) {
	_, alpha, beta := befriended(t)
	eventually(t, "the truth is known", func() bool {
		a, _, ok := alpha.Offer("beta")
		return ok && a.State.Hosts == 1
	})
	for what, a := range map[string]peer.Attributes{
		"another's": {Site: "gamma", GoodMS: 1000}, "for ever": {Site: "beta", GoodMS: 1 << 50}, "less than nothing": {Site: "beta", State: peer.State{Queue: -1}},
	} {
		beta.lies.tell(a)
		if _, err := alpha.Ask(t.Context(), "beta"); !fault.Has(err, fault.Denied) && !fault.Has(err, fault.Malformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if a, _, ok := alpha.Offer("beta"); !ok || a.State.Hosts != 1 {
		t.Errorf("the truth from before is forgotten: %+v", a)
	}
	old := peer.Attributes{Site: "beta", GoodMS: 1000, At: alpha.now().Add(-time.Hour), State: peer.State{Hosts: 99}}
	beta.lies.tell(old) // said before, and replayed
	if _, err := alpha.Ask(t.Context(), "beta"); err != nil {
		t.Fatal(err)
	}
	if a, _, _ := alpha.Offer("beta"); a.State.Hosts == 99 {
		t.Error("old attributes take the place of newer ones")
	}
}

// TestPreflightNamesWhatIsNotReached by protocol, address and port.
func TestPreflightNamesWhatIsNotReached(t *testing.T) {
	w, alpha, beta := befriended(t)
	gamma := w.site(t, "gamma")
	inv, err := alpha.Invite(t.Context(), "gamma", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if checks, err := gamma.Preflight(t.Context(), "", inv.Token); err != nil || slices.ContainsFunc(checks, func(c Check) bool { return !c.OK }) {
		t.Errorf("before it accepts: %+v, %v", checks, err)
	}
	beta.set(func() { beta.cut = true })
	checks, err := alpha.Preflight(t.Context(), "beta", "")
	if err != nil {
		t.Fatal(err)
	}
	if last := checks[len(checks)-1]; last.OK || last.Target != "tcp://"+beta.address || last.Next == "" {
		t.Errorf("%+v", last)
	}
}

// TestRestart: a site that is started anew knows its partners and agreements.
func TestRestart(t *testing.T) {
	_, alpha, _ := befriended(t)
	a, err := alpha.Propose(t.Context(), "beta", terms("alpha", "beta", alpha.now()))
	if err != nil {
		t.Fatal(err)
	}
	cfg := alpha.cfg
	cfg.Trust = identity.NewTrust(time.Now)
	again, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := again.Partner("beta"); err != nil || len(p.Agreements) != 1 || p.Agreements[0].ID != a.ID || p.Down == nil {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestForgedIntroductions: who introduces itself signs, with a key that its bundle vouches
// for, exactly what it says.
func TestForgedIntroductions(t *testing.T) {
	w := &world{}
	alpha, beta, gamma := w.site(t, "alpha"), w.site(t, "beta"), w.site(t, "gamma")
	inv, err := alpha.Invite(t.Context(), "", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := parseToken(inv.Token)
	if err != nil {
		t.Fatal(err)
	}
	in, err := beta.introduction("alpha")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	byGamma, _ := gamma.keys.Sign(text)
	byBeta, _ := beta.keys.Sign(text)
	accept := func(text []byte, signature string) error {
		_, err := alpha.Accept(t.Context(), peer.Acceptance{Token: tok.Secret, Introduction: text, Signature: signature})
		return err
	}
	if err := accept(text, byGamma); !fault.Has(err, fault.Denied) {
		t.Errorf("signed by another: %v", err)
	}
	if err := accept(bytes.Replace(text, []byte(beta.address), []byte("evil:1"), 1), byBeta); !fault.Has(err, fault.Denied) {
		t.Errorf("changed on the way: %v", err)
	}
	for _, junk := range []string{"", "{", "null", `{"hello":{"site":"alpha"}}`, `{"hello":{"site":"../x"}}`, `{"hello":{"site":"beta"}}`} {
		if err := accept([]byte(junk), byBeta); !fault.Has(err, fault.Malformed) && !fault.Has(err, fault.Denied) {
			t.Errorf("%q: %v", junk, err)
		}
	}
	if err := accept(text, byBeta); err != nil {
		t.Error(err)
	}
	// Another site that calls itself beta.
	w2 := &world{}
	impostor := w2.site(t, "beta")
	second, err := alpha.Invite(t.Context(), "", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w2.mu.Lock()
	w2.sites[alpha.address] = alpha
	w2.mu.Unlock()
	if _, err := impostor.AcceptToken(t.Context(), second.Token); !fault.Has(err, fault.Exists) {
		t.Errorf("a second beta: %v", err)
	}
}

func FuzzToken(f *testing.F) {
	f.Add(token{Site: "alpha", Border: peer.Border{Relay: "a:1"}, Fingerprint: strings.Repeat("A", 43), Secret: strings.Repeat("A", 43)}.String())
	f.Add("rsvf_e30")
	f.Fuzz(func(t *testing.T, text string) {
		if x, err := parseToken(text); err == nil {
			if again, err := parseToken(x.String()); err != nil || again != x {
				t.Errorf("%q: %+v, then %+v, %v", text, x, again, err)
			}
		}
	})
}

// FuzzAccept: whatever a stranger sends, nobody becomes a partner without a token.
func FuzzAccept(f *testing.F) {
	now := func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }
	ca, err := identity.NewCA("alpha", now, nil)
	if err != nil {
		f.Fatal(err)
	}
	keys, err := identity.OpenKeypair(filepath.Join(f.TempDir(), "id"), now)
	if err != nil {
		f.Fatal(err)
	}
	records := store.InMemory(slog.New(slog.DiscardHandler), nil)
	f.Cleanup(func() { records.Close() })
	r, err := Open(f.Context(), Config{Site: "alpha", CA: ca, Keys: keys, Trust: identity.NewTrust(now), Store: records,
		Border: func() peer.Border { return peer.Border{} }, Record: func(Event) {}, Now: now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("token", []byte(`{"hello":{"site":"beta"},"bundle":{"site":"beta","sequence":1,"jwks":"e30="}}`), "a..b")
	f.Fuzz(func(t *testing.T, token string, introduction []byte, signature string) {
		if _, err := r.Accept(t.Context(), peer.Acceptance{Token: token, Introduction: introduction, Signature: signature}); err == nil || len(r.Partners()) > 0 {
			t.Errorf("%q is a partner", introduction)
		}
	})
}
