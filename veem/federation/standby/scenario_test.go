package standby

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// world of some sites that are partners of each other, where any call and any write may fail.
type world struct {
	t     *testing.T
	sites map[string]*site
	now   time.Time

	mu    sync.Mutex
	fails int // so many more calls and writes succeed; negative: all do
	cut   map[string]bool
}

// chance is an error when it is this call's or write's turn to fail, once.
func (w *world) chance() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fails--; w.fails == 0 {
		return fault.New(fault.Unavailable, "it is cut here")
	}
	return nil
}

// site with the managers that it stands on played.
type site struct {
	w       *world
	name    string
	dir     string
	store   *store.Store
	shelf   *Shelf
	shipper *Shipper
	caches  map[string]*image.Cache
	server  *httptest.Server

	services []Service
	newest   map[vee.ID]*vee.Checkpoint
	content  map[vee.ID][]byte
	read     int // bytes of checkpoints that were read of it
	lodging  vee.Bytes
	disk     vee.Bytes // of the agreement's ceiling; 0: there is none
	// agreedSilence is that of its agreements after which it is promoted.
	agreedSilence time.Duration
	given         map[string]peer.Promotion
	adopted       []Adoption
	taken         []string
	yielded       map[string]string
	events        []Event
}

func newWorld(t *testing.T, names ...string) *world {
	w := &world{t: t, sites: map[string]*site{}, now: noon, fails: -1, cut: map[string]bool{}}
	for _, n := range names {
		s := &site{w: w, name: n, dir: t.TempDir(), caches: map[string]*image.Cache{}, newest: map[vee.ID]*vee.Checkpoint{}, content: map[vee.ID][]byte{},
			disk: vee.MiB, given: map[string]peer.Promotion{}, yielded: map[string]string{}}
		s.store = store.InMemory(slog.New(slog.DiscardHandler), func(bool) error { return w.chance() })
		t.Cleanup(func() { _ = s.store.Close() })
		s.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if err := w.chance(); err != nil {
				panic(http.ErrAbortHandler)
			}
			s.shipper.Registry(http.NotFoundHandler(), func(r *http.Request) string { return r.Header.Get("Site") }).ServeHTTP(rw, r)
		}))
		t.Cleanup(s.server.Close)
		w.sites[n] = s
		s.start()
	}
	return w
}

// start the site, anew: what was in memory is gone.
func (s *site) start() {
	s.w.mu.Lock()
	was := s.w.fails
	s.w.fails = -1
	s.w.mu.Unlock()
	for _, c := range s.caches {
		_ = c.Close()
	}
	clear(s.caches)
	var err error
	s.shelf, err = OpenShelf(s.w.t.Context(), ShelfConfig{Site: s.name, Dir: filepath.Join(s.dir, "standby"), Store: s.store, Partners: s, Blob: s.blob,
		Image: func(context.Context, string, string) error { return nil }, Lodging: func(string) vee.Bytes { return s.lodging }, Successor: s,
		Record: func(e Event) { s.events = append(s.events, e) }, Every: time.Second, Silent: time.Minute, Now: func() time.Time { return s.w.now }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.w.t.Fatal(err)
	}
	s.shipper = NewShipper(ShipperConfig{Site: s.name, Store: s.store, Partners: s, Services: func(context.Context) ([]Service, error) { return s.left(), nil },
		Checkpoint: func(_ context.Context, id vee.ID) *vee.Checkpoint { return s.newest[id] },
		Read: func(_ context.Context, id vee.ID, n int, from int64) (io.ReadWriteCloser, error) {
			if c := s.newest[id]; c == nil || c.N != n {
				return nil, fault.New(fault.NotFound, "checkpoint %d is not there any more", n)
			}
			return &counted{bytes.NewReader(s.content[id][from:]), s}, nil
		},
		GiveUp: func(_ context.Context, p peer.Promotion, at time.Time) error {
			if err := s.w.chance(); err != nil {
				return err
			}
			p.At = at
			s.given[p.Service] = p
			return nil
		},
		Record: func(e Event) { s.events = append(s.events, e) }, Every: time.Second, Late: time.Minute, Now: func() time.Time { return s.w.now }, Log: slog.New(slog.DiscardHandler)})
	s.w.mu.Lock()
	s.w.fails = was
	s.w.mu.Unlock()
}

// left are its services but those that it gave up.
func (s *site) left() []Service {
	return slices.DeleteFunc(slices.Clone(s.services), func(v Service) bool { _, gone := s.given[v.ID]; return gone })
}

type counted struct {
	*bytes.Reader
	s *site
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.s.read += n
	return n, err
}
func (c *counted) Write(p []byte) (int, error) { return len(p), nil }
func (c *counted) Close() error                { return nil }

func (s *site) blob(ctx context.Context, from, digest string, size vee.Bytes) (*os.File, error) {
	if s.w.apart(s.name, from) {
		return nil, fault.New(fault.Unavailable, "site %s does not answer", from)
	}
	if s.caches[from] == nil {
		c, err := image.OpenCache(filepath.Join(s.dir, "from-"+from), image.Remote{Base: s.w.sites[from].server.URL, HTTP: &http.Client{Transport: as(s.name)}},
			image.CacheOptions{Retries: 1, Wait: func(context.Context, int) error { return nil }})
		if err != nil {
			return nil, err
		}
		s.caches[from] = c
		s.w.t.Cleanup(func() { _ = c.Close() })
	}
	return s.caches[from].Blob(ctx, digest, size, nil)
}

// as a site.
type as string

func (a as) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Site", string(a))
	return http.DefaultTransport.RoundTrip(r)
}

func (w *world) apart(a, b string) bool { return w.cut[a+" "+b] || w.cut[b+" "+a] }

// Partner implements peer.Partners.
func (s *site) Partner(name string) (peer.Partner, error) {
	to := s.w.sites[name]
	if to == nil || to == s {
		return peer.Partner{}, fault.New(fault.NotFound, "no partner %q", name)
	}
	p := peer.Partner{Name: name, Site: wire{to: to, from: s}, Hello: peer.Hello{Site: name, Capabilities: []peer.Capability{peer.CanCooperate}}, Seen: s.w.now.Add(-time.Hour), Offset: time.Second}
	if s.w.apart(s.name, name) {
		p.Down = fault.New(fault.Unavailable, "site %s does not answer", name)
	}
	deal := func(lender, borrower string, disk vee.Bytes) {
		if disk > 0 {
			p.Agreements = append(p.Agreements, peer.Agreement{Terms: peer.Terms{ID: lender + ".deal", Lender: lender, Borrower: borrower, From: noon.Add(-time.Hour), Until: noon.AddDate(1, 0, 0), Ceiling: peer.Ceiling{Disk: disk}, PromoteMS: s.agreedSilence.Milliseconds()},
				Signatures: map[string]string{lender: "x", borrower: "y"}})
		}
	}
	deal(s.name, name, s.disk)
	deal(name, s.name, to.disk)
	return p, nil
}

// Partners implements peer.Partners.
func (s *site) Partners() (list []peer.Partner) {
	for _, n := range []string{"alpha", "beta", "gamma"} {
		if p, err := s.Partner(n); err == nil {
			list = append(list, p)
		}
	}
	return list
}

// Changed implements peer.Partners.
func (s *site) Changed() <-chan struct{} { return nil }

// wire from one site to another.
type wire struct {
	peer.Site // what is tested elsewhere
	from, to  *site
}

func call[T any](ctx context.Context, x wire, do func(context.Context) (T, error)) (out T, err error) {
	if x.from.w.apart(x.from.name, x.to.name) {
		return out, fault.New(fault.Unavailable, "site %s does not answer", x.to.name)
	}
	if err := x.from.w.chance(); err != nil {
		return out, err
	}
	out, err = do(identity.With(ctx, identity.Caller{ID: x.from.name, Role: identity.Partner, Site: x.from.name}))
	if lost := x.from.w.chance(); err == nil && lost != nil {
		return out, lost // the answer
	}
	return out, err
}

func (x wire) PutShipment(ctx context.Context, s peer.Shipment) (peer.Standing, error) {
	return call(ctx, x, func(ctx context.Context) (peer.Standing, error) { return x.to.shelf.PutShipment(ctx, s) })
}
func (x wire) DropShipments(ctx context.Context, but []string) error {
	_, err := call(ctx, x, func(ctx context.Context) (any, error) { return nil, x.to.shelf.DropShipments(ctx, but) })
	return err
}
func (x wire) Standings(ctx context.Context) ([]peer.Standing, error) {
	return call(ctx, x, x.to.shelf.Standings)
}
func (x wire) GaveWay(ctx context.Context, services []string) error {
	_, err := call(ctx, x, func(ctx context.Context) (any, error) { return nil, x.to.shelf.GaveWay(ctx, services) })
	return err
}
func (x wire) Succeeded(ctx context.Context, site string) ([]peer.Promotion, error) {
	return call(ctx, x, func(ctx context.Context) ([]peer.Promotion, error) { return x.to.shelf.Succeeded(ctx, site) })
}
func (x wire) PutImages(ctx context.Context, list []string) ([]string, error) {
	return call(ctx, x, func(ctx context.Context) ([]string, error) { return x.to.shelf.PutImages(ctx, list) })
}

// TakeOver implements Successor.
func (s *site) TakeOver(_ context.Context, from, service, customer string) (string, []vee.ID, error) {
	if err := s.w.chance(); err != nil {
		return "", nil, err
	}
	s.taken = append(s.taken, customer)
	return from + "/" + service, []vee.ID{"alpha.cccccccccc"}, nil
}

// Adopt implements Successor.
func (s *site) Adopt(_ context.Context, a Adoption) error {
	if err := s.w.chance(); err != nil {
		return err
	}
	if !slices.ContainsFunc(s.adopted, func(o Adoption) bool { return o.Group == a.Group }) {
		s.adopted = append(s.adopted, a)
	}
	return nil
}

// Yield implements Successor.
func (s *site) Yield(_ context.Context, group string, to peer.Promotion) error {
	s.yielded[group] = to.By
	return nil
}

// Seeds implements Successor.
func (s *site) Seeds(context.Context) (map[string]bool, error) {
	used := map[string]bool{}
	for _, a := range s.adopted {
		for _, x := range a.Seeds {
			used[x.Digest] = true
		}
	}
	return used, nil
}

// shop is a service of alpha's with two VEEs that are checkpointed and one that lodges at beta.
func (w *world) shop(standbys ...string) {
	a := w.sites["alpha"]
	a.services = []Service{{ID: "alpha.s-1", Customer: "acme", Name: "shop", Standbys: standbys, Images: []string{digestOf("1")}, Definition: []byte(`{"revision":1}`),
		Replicas: []Replica{{"db-1", "alpha.aaaaaaaaaa"}, {"web-1", "alpha.bbbbbbbbbb"}, {"web-2", "alpha.cccccccccc"}}}}
	w.checkpoint(1)
}

func (w *world) checkpoint(n int) {
	a := w.sites["alpha"]
	for _, id := range []vee.ID{"alpha.aaaaaaaaaa", "alpha.bbbbbbbbbb"} {
		c := bytes.Repeat([]byte(string(id)+" "+strings.Repeat("x", n)), 1000)
		sum := sha256.Sum256(c)
		a.content[id] = c
		a.newest[id] = &vee.Checkpoint{N: n, At: w.now, Size: vee.Bytes(len(c)), Digest: "sha256:" + hex.EncodeToString(sum[:])}
	}
}

// step of every site: what its loops would do at their next looks.
func (w *world) step() {
	w.now = w.now.Add(10 * time.Second)
	ctx := w.t.Context()
	for _, n := range []string{"alpha", "beta", "gamma"} {
		s := w.sites[n]
		if s == nil {
			continue
		}
		_ = s.shipper.round(ctx) // fails now and then: the next one is as good
		rows, err := s.shelf.rows.Values(ctx, "")
		if err != nil {
			continue
		}
		s.shelf.agreed(ctx, rows)
		for _, r := range rows {
			if s.shelf.begin(r) {
				if err := s.shelf.work(ctx, r); err != nil {
					s.shelf.problem(ctx, r, err)
				}
				s.shelf.end(r)
			}
		}
		_ = s.shelf.sweep(ctx)
	}
}

func (w *world) settle() {
	for range 6 {
		w.step()
	}
}

// shown is the service at its standby, as that shows it.
func (s *site) shown() Shown {
	s.w.t.Helper()
	list, err := s.shelf.List(s.w.t.Context())
	if err != nil || len(list) != 1 {
		s.w.t.Fatalf("at %s: %+v, %v", s.name, list, err)
	}
	return list[0]
}

func (s *site) reasons() (list []string) {
	for _, e := range s.events {
		list = append(list, e.Reason)
	}
	return list
}

func (s *site) promote(o Order) error {
	o.Site = "alpha"
	_, err := s.shelf.Promote(s.w.t.Context(), o)
	return err
}

func TestAServiceIsShipped(t *testing.T) {
	w := newWorld(t, "alpha", "beta")
	alpha, beta := w.sites["alpha"], w.sites["beta"]
	w.shop("beta")
	w.settle()
	got := beta.shown()
	if got.Number == 0 || got.Coming != 0 || got.VEEs != 2 || got.Name != "shop" {
		t.Fatalf("%+v", got)
	}
	read := alpha.read
	if read > 2*len(alpha.content["alpha.aaaaaaaaaa"])+100 {
		t.Errorf("%d bytes were read for %s", read, got.Size)
	}
	w.settle()
	if alpha.read != read {
		t.Error("what is there is sent again")
	}
	alpha.services[0].Definition = []byte(`{"revision":2}`) // an update: the checkpoints are there
	w.settle()
	if now := beta.shown(); now.Number <= got.Number || alpha.read != read {
		t.Errorf("after an update %+v, %d bytes", now, alpha.read-read)
	}
	w.checkpoint(2)
	w.settle()
	if files, _ := os.ReadDir(filepath.Join(beta.dir, "standby")); len(files) != 2 {
		t.Errorf("%d checkpoints are kept, want the newest 2", len(files))
	}
	w.cut["alpha beta"] = true
	w.checkpoint(3)
	w.settle()
	w.settle()
	if !slices.Contains(alpha.reasons(), "StandbyLate") {
		t.Errorf("nobody is told that the standby does not follow: %v", alpha.events)
	}
	if list, err := alpha.shipper.List(t.Context()); err != nil || len(list) != 1 || list[0].Number == list[0].Shipment || list[0].Problem == "" {
		t.Errorf("%+v, %v", list, err)
	}
	delete(w.cut, "alpha beta")
	w.settle()
	if !slices.Contains(alpha.reasons(), "StandbyFollows") {
		t.Errorf("nor that it does again: %v", alpha.events)
	}
	alpha.services = nil
	w.settle()
	if list, _ := beta.shelf.List(t.Context()); len(list) > 0 {
		t.Errorf("of a service that is gone: %+v", list)
	}
	if files, _ := os.ReadDir(filepath.Join(beta.dir, "standby")); len(files) > 0 {
		t.Errorf("and its checkpoints: %v", files)
	}
}

// TestCutAnywhere: whichever call or write fails, before or after it was done, and whoever is
// started anew then, the service is whole at its standby in the end, is gone on with by one
// order, once, and is given up by its old site before that is let in.
func TestCutAnywhere(t *testing.T) {
	for k := 1; ; k++ {
		w := newWorld(t, "alpha", "beta")
		alpha, beta := w.sites["alpha"], w.sites["beta"]
		w.fails = k
		crash := func() {
			if k%2 == 0 {
				alpha.start()
				beta.start()
			}
		}
		w.shop("beta")
		w.settle()
		crash()
		w.checkpoint(2)
		w.settle()
		if got := beta.shown(); got.Number == 0 || got.Coming != 0 || got.VEEs != 2 {
			t.Fatalf("cut %d: shipped %+v", k, got)
		}
		w.cut["alpha beta"] = true
		w.step()
		if err := beta.promote(Order{Fenced: true}); err != nil { // the operator tries again
			if err = beta.promote(Order{Fenced: true}); err != nil {
				t.Fatalf("cut %d: %v", k, err)
			}
		}
		crash()
		w.settle()
		if len(beta.adopted) != 1 || len(beta.adopted[0].Seeds) != 2 || beta.adopted[0].Customer != "alpha-acme" || len(alpha.given) != 0 {
			t.Fatalf("cut %d: adopted %+v, given up %v", k, beta.adopted, alpha.given)
		}
		delete(w.cut, "alpha beta")
		w.settle()
		if p := alpha.given["alpha.s-1"]; p.By != "beta" || len(alpha.given) != 1 || !p.At.Equal(beta.shown().Promoted.At.Add(-time.Second)) { // by alpha's clock
			t.Fatalf("cut %d: given up %+v", k, alpha.given)
		}
		if got := beta.shown(); !got.Done || !got.Known {
			t.Fatalf("cut %d: at the end %+v", k, got)
		}
		w.mu.Lock()
		over := w.fails > 0
		w.mu.Unlock()
		for _, s := range w.sites {
			for _, c := range s.caches {
				_ = c.Close()
			}
			s.server.Close()
		}
		if over {
			t.Logf("%d cuts", k-1)
			return
		}
	}
}

// TestTheDoor is shut to a site that has not given way, but for what it takes to do so.
func TestTheDoor(t *testing.T) {
	w := newWorld(t, "alpha", "beta")
	beta := w.sites["beta"]
	w.shop("beta")
	w.settle()
	ask := func(site, path string) int {
		rec := httptest.NewRecorder()
		h := beta.shelf.Door(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }),
			func(*http.Request) (identity.Caller, error) {
				return identity.Caller{Role: identity.Partner, Site: site}, nil
			})
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		return rec.Code
	}
	if c := ask("alpha", "/vmi/v1/vees"); c != http.StatusOK {
		t.Errorf("before: %d", c)
	}
	w.cut["alpha beta"] = true
	if err := beta.promote(Order{Fenced: true}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and after a restart
		for path, want := range map[string]int{"/vmi/v1/vees": http.StatusServiceUnavailable, "/federation/v1/networks": http.StatusServiceUnavailable, "/federation/v1/hello": http.StatusOK, "/federation/v1/shipments/gave-way": http.StatusOK} {
			if c := ask("alpha", path); c != want {
				t.Errorf("%s: %d, want %d", path, c, want)
			}
		}
		if c := ask("gamma", "/vmi/v1/vees"); c != http.StatusOK {
			t.Errorf("another site: %d", c)
		}
		beta.start()
	}
	delete(w.cut, "alpha beta")
	w.settle()
	if c := ask("alpha", "/vmi/v1/vees"); c != http.StatusOK {
		t.Errorf("after it gave way: %d", c)
	}
}

// TestTwoArePromoted, neither of which sees the other: when they do, the one that the service
// names first has it, and its old site gives it up to that one.
func TestTwoArePromoted(t *testing.T) {
	w := newWorld(t, "alpha", "beta", "gamma")
	alpha, beta, gamma := w.sites["alpha"], w.sites["beta"], w.sites["gamma"]
	w.shop("gamma", "beta")
	w.settle()
	for _, cut := range []string{"alpha beta", "alpha gamma", "beta gamma"} {
		w.cut[cut] = true
	}
	for _, s := range []*site{beta, gamma} {
		if err := s.promote(Order{Fenced: true}); err != nil {
			t.Fatal(err)
		}
	}
	w.settle()
	if len(beta.adopted) != 1 || len(gamma.adopted) != 1 {
		t.Fatal("one of them has not gone on with it")
	}
	delete(w.cut, "beta gamma")
	w.settle()
	if beta.yielded["alpha/alpha.s-1"] != "gamma" || len(gamma.yielded) != 0 || !slices.Contains(beta.reasons(), "PromotedTwice") {
		t.Errorf("beta yielded %v, gamma %v", beta.yielded, gamma.yielded)
	}
	delete(w.cut, "alpha beta")
	delete(w.cut, "alpha gamma")
	w.settle()
	if alpha.given["alpha.s-1"].By != "gamma" {
		t.Errorf("given up to %+v", alpha.given)
	}
}

func TestNoSecondPromotion(t *testing.T) {
	w := newWorld(t, "alpha", "beta", "gamma")
	w.shop("beta", "gamma")
	w.settle()
	w.cut["alpha beta"], w.cut["alpha gamma"] = true, true
	if err := w.sites["beta"].promote(Order{Fenced: true}); err != nil {
		t.Fatal(err)
	}
	if err := w.sites["gamma"].promote(Order{Fenced: true}); !fault.Has(err, fault.Conflict) || !strings.Contains(err.Error(), "site beta has gone on") {
		t.Errorf("another standby: %v", err)
	}
	if err := w.sites["beta"].promote(Order{Fenced: true}); err != nil {
		t.Errorf("the same again: %v", err)
	}
	w.settle()
	if len(w.sites["beta"].taken) != 1 || len(w.sites["beta"].adopted) != 1 {
		t.Errorf("done more than once: %v, %v", w.sites["beta"].taken, w.sites["beta"].adopted)
	}
}

// TestAnAgreementSaysSo: after so long a silence, as far as the site has listened.
func TestAnAgreementSaysSo(t *testing.T) {
	w := newWorld(t, "alpha", "beta")
	beta := w.sites["beta"]
	beta.agreedSilence = 5 * time.Minute
	w.shop("beta")
	w.settle()
	w.now = w.now.Add(time.Hour)
	w.settle()
	if beta.shown().Promoted != nil {
		t.Fatal("its partner answers")
	}
	w.cut["alpha beta"] = true
	beta.start() // who is silent since when is not known any more
	w.settle()
	if beta.shown().Promoted != nil {
		t.Fatal("too early")
	}
	w.now = w.now.Add(5 * time.Minute)
	w.settle()
	if got := beta.shown(); got.Promoted == nil || !got.Done {
		t.Errorf("%+v", got)
	}
}

func TestPromotionIsRefused(t *testing.T) {
	w := newWorld(t, "alpha", "beta")
	beta := w.sites["beta"]
	if err := beta.promote(Order{}); !fault.Has(err, fault.NotFound) {
		t.Errorf("nothing is here: %v", err)
	}
	w.shop("beta")
	w.settle()
	if err := beta.promote(Order{Fenced: true}); !fault.Has(err, fault.WrongState) || !strings.Contains(err.Error(), "answers") {
		t.Errorf("it is there: %v", err)
	}
	w.cut["alpha beta"] = true
	beta.shelf.cfg.Silent = 2 * time.Hour
	if err := beta.promote(Order{}); !fault.Has(err, fault.WrongState) || !strings.Contains(fault.From(err).Next, "--fenced") {
		t.Errorf("it was there just now: %v", err)
	}
	beta.shelf.cfg.Silent = time.Minute
	w.now = w.now.Add(time.Hour)
	if _, err := beta.shelf.Standings(identity.With(t.Context(), identity.Caller{Role: identity.Partner, Site: "alpha"})); err != nil {
		t.Fatal(err)
	}
	if err := beta.promote(Order{}); !fault.Has(err, fault.WrongState) {
		t.Errorf("it does not answer, and asks: %v", err)
	}
	if err := beta.promote(Order{Service: "other", Fenced: true}); !fault.Has(err, fault.NotFound) {
		t.Errorf("another service: %v", err)
	}
	if err := beta.promote(Order{Customer: "Not A Name", Fenced: true}); !fault.Has(err, fault.Malformed) {
		t.Errorf("no customer: %v", err)
	}
	if err := beta.promote(Order{Service: "shop", Customer: "acme", Fenced: true}); err != nil {
		t.Error(err)
	}
}

// TestShipmentsThatAreRefused: what is replayed, corrupted, of a stranger, or more than was agreed.
func TestShipmentsThatAreRefused(t *testing.T) {
	w := newWorld(t, "alpha", "beta")
	beta := w.sites["beta"]
	w.shop("beta")
	w.settle()
	ctx := identity.With(t.Context(), identity.Caller{ID: "alpha", Role: identity.Partner, Site: "alpha"})
	good := shipment(w.sites["alpha"].services[0], nil)
	good.Number = beta.shown().Number + 1
	bad := func(f func(*peer.Shipment)) peer.Shipment { s := good; f(&s); return s }
	part := peer.CheckpointPart{VEE: "alpha.aaaaaaaaaa", Name: "db-1", N: 9, Size: 10 * vee.MiB, Digest: digestOf("9")}
	for what, c := range map[string]struct {
		ctx  context.Context
		s    peer.Shipment
		code fault.Code
	}{
		"replayed":    {ctx, bad(func(s *peer.Shipment) { s.Number = 1 }), fault.StaleEpoch},
		"another one": {ctx, bad(func(s *peer.Shipment) { s.Number--; s.Images = nil }), fault.Conflict},
		"corrupted":   {ctx, bad(func(s *peer.Shipment) { s.Definition = []byte("else") }), fault.DigestMismatch},
		"not for us":  {ctx, bad(func(s *peer.Shipment) { s.Standbys = []string{"gamma"} }), fault.Malformed},
		"no number":   {ctx, bad(func(s *peer.Shipment) { s.Number = 0 }), fault.Malformed},
		"a strange path": {ctx, bad(func(s *peer.Shipment) {
			s.Parts = []peer.CheckpointPart{{VEE: "alpha.aaaaaaaaaa", Size: 1, Digest: "../../etc/passwd"}}
		}), fault.Malformed},
		"too much":      {ctx, bad(func(s *peer.Shipment) { s.Parts = []peer.CheckpointPart{part} }), fault.QuotaExceeded},
		"of nobody":     {t.Context(), good, fault.Denied},
		"an operator's": {identity.With(t.Context(), identity.Caller{ID: "o", Role: identity.Operator}), good, fault.Denied},
	} {
		if _, err := beta.shelf.PutShipment(c.ctx, c.s); !fault.Has(err, c.code) {
			t.Errorf("%s: %v", what, err)
		}
	}
	beta.disk = 0
	if _, err := beta.shelf.PutShipment(ctx, good); !fault.Has(err, fault.Denied) {
		t.Errorf("without an agreement: %v", err)
	}
	if _, err := beta.shelf.PutImages(ctx, nil); !fault.Has(err, fault.Denied) {
		t.Errorf("images without an agreement: %v", err)
	}
}

// TestTheCeiling: a standby that may not have so much is shown with why, and is not asked again and
// again; once more was agreed upon it follows.
func TestTheCeiling(t *testing.T) {
	w := newWorld(t, "alpha", "beta")
	alpha, beta := w.sites["alpha"], w.sites["beta"]
	beta.disk = vee.KiB
	w.shop("beta")
	w.settle()
	list, err := alpha.shipper.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Number != 0 || !strings.Contains(list[0].Problem, "agreement beta.deal has 1KiB") {
		t.Errorf("%+v, %v", list, err)
	}
	if all, _ := beta.shelf.List(t.Context()); len(all) > 0 {
		t.Errorf("kept all the same: %+v", all)
	}
	beta.disk = vee.MiB
	w.settle()
	if beta.shown().VEEs != 2 {
		t.Error("more was agreed upon, and it does not follow")
	}
}

// TestACheckpointThatIsNone: what does not have its digest is never kept, and what was whole
// before stays until another is.
func TestACheckpointThatIsNone(t *testing.T) {
	w := newWorld(t, "alpha", "beta")
	alpha, beta := w.sites["alpha"], w.sites["beta"]
	w.shop("beta")
	w.settle()
	before := beta.shown()
	w.checkpoint(2)
	alpha.content["alpha.aaaaaaaaaa"] = bytes.Repeat([]byte{0}, len(alpha.content["alpha.aaaaaaaaaa"]))
	w.settle()
	now := beta.shown()
	if now.Number != before.Number || now.Coming == 0 || now.Problem == "" || !slices.Contains(beta.reasons(), "StandbyFails") {
		t.Errorf("%+v, before %+v", now, before)
	}
	w.checkpoint(3)
	w.settle()
	if last := beta.shown(); last.Number <= before.Number || last.Problem != "" {
		t.Errorf("and after that: %+v", last)
	}
}

// TestAnotherSiteReadsNothing of what is offered to a standby.
func TestAnotherSiteReadsNothing(t *testing.T) {
	w := newWorld(t, "alpha", "beta", "gamma")
	w.shop("beta")
	w.settle()
	c := w.sites["alpha"].newest["alpha.aaaaaaaaaa"]
	if f, err := w.sites["gamma"].blob(t.Context(), "alpha", c.Digest, c.Size); !fault.Has(err, fault.NotFound) {
		t.Errorf("%v, %v", f, err)
	}
	if f, err := w.sites["beta"].shelf.Open(c.Digest); err != nil {
		t.Error(err)
	} else {
		_ = f.Close()
	}
	if _, err := w.sites["beta"].shelf.Open("sha256:../../x"); !fault.Has(err, fault.NotFound) {
		t.Error(err)
	}
}
