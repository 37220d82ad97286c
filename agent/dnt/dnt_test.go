package dnt

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// station is a host's agent as far as it gossips: its identity, its listener on loopback and
// its tracker. It can be stopped and started again.
type station struct {
	t       *testing.T
	name    string
	keys    *identity.Keypair
	dir     string
	address netip.AddrPort

	*Tracker
	stop func()

	mu      sync.Mutex
	doubted []string
}

func newStation(t *testing.T, ca *identity.CA, name string) *station {
	t.Helper()
	keys, err := identity.OpenKeypair(filepath.Join(t.TempDir(), "id"), time.Now)
	must(t, err)
	csr, err := keys.CSR()
	must(t, err)
	id, err := identity.HostID(ca.Site(), name)
	must(t, err)
	chain, err := ca.Issue(csr, id)
	must(t, err)
	must(t, keys.Install(chain, ca.Bundle()))
	s := &station{t: t, name: name, keys: keys, dir: t.TempDir()}
	t.Cleanup(func() {
		if s.stop != nil {
			s.stop()
		}
	})
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start it on the address that it had, if it had one.
func (s *station) start() {
	s.t.Helper()
	at := "127.0.0.1:0"
	if s.address.IsValid() {
		at = s.address.String()
	}
	ln, err := net.Listen("tcp", at)
	must(s.t, err)
	s.address = netip.MustParseAddrPort(ln.Addr().String())
	quiet := slog.New(slog.DiscardHandler)
	s.Tracker, err = Open(Config{
		Dir: s.dir, Host: s.name, Address: s.address, Underlay: netip.MustParseAddr("192.0.2.1"), Scale: 0.2,
		Dial: func(ctx context.Context, host, address, kind string) (net.Conn, error) {
			return peer.DialGossip(ctx, s.to(host, address), kind)
		},
		Doubted: func(host string) { s.mu.Lock(); defer s.mu.Unlock(); s.doubted = append(s.doubted, host) },
		Changed: func() {}, Log: quiet,
	})
	must(s.t, err)
	api := httpapi.NewServer("a host", "1", quiet)
	peer.RegisterGossip(api, s.Accept)
	auth := &identity.Authenticator{Site: s.keys.Site()}
	server := &httpapi.Listener{Handler: api.Handler(auth.Caller), TLS: s.keys.ServerTLS(), Log: quiet}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, f := range []func() error{
		func() error { return s.Run(ctx) },
		func() error { return server.Serve(ctx, ln) },
	} {
		wg.Go(func() {
			if err := f(); err != nil {
				s.t.Error(err)
			}
		})
	}
	s.stop = func() { cancel(); wg.Wait(); s.stop = nil }
}

func (s *station) there() (names []string) {
	for _, m := range s.Members() {
		if !m.Doubted {
			names = append(names, m.Host)
		}
	}
	return names
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}

// TestHostsFindEachOther over loopback and real TLS: by one that the site names, by what they
// have kept when there is no site, and a stranger does not.
func TestHostsFindEachOther(t *testing.T) {
	ca, err := identity.NewCA("alpha", time.Now, nil)
	must(t, err)
	a, b, c := newStation(t, ca, "a"), newStation(t, ca, "b"), newStation(t, ca, "c")
	all := []*station{a, b, c}
	for _, s := range all {
		s.start()
	}
	b.Meet([]vhi.Neighbour{{Host: "a", Address: a.address.String()}})
	c.Meet([]vhi.Neighbour{{Host: "a", Address: a.address.String()}, {Host: "c", Address: c.address.String()}})
	together := func() bool {
		return slices.Equal(a.there(), []string{"b", "c"}) && slices.Equal(b.there(), []string{"a", "c"}) && slices.Equal(c.there(), []string{"a", "b"})
	}
	eventually(t, "all three know each other", together)
	m, ok := c.Member("b")
	if !ok || m.Address != b.address.String() || m.Underlay != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("c knows of b: %+v", m)
	}
	eventually(t, "distances are known", func() bool {
		return !slices.ContainsFunc(a.Members(), func(m Member) bool { return m.Far })
	})
	eventually(t, "the addresses are on disk", func() bool {
		_, err := os.Stat(b.file())
		return err == nil
	})

	c.stop()
	eventually(t, "who is gone is doubted", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return slices.Contains(a.doubted, "c") && slices.Equal(a.there(), []string{"b"})
	})
	if a.Overlay().Next("a", []string{"b"}, nil) != "" {
		t.Error("who is doubted is asked")
	}
	c.start()
	eventually(t, "who is back is known again, by what is on disk", together)

	// All at once, with nobody to tell them.
	for _, s := range all {
		s.stop()
	}
	for _, s := range all {
		s.start()
	}
	eventually(t, "they find each other without the site", together)

	other, err := identity.NewCA("alpha", time.Now, nil)
	must(t, err)
	stranger := newStation(t, other, "d")
	stranger.start()
	stranger.Meet([]vhi.Neighbour{{Host: "a", Address: a.address.String()}})
	for range 3 {
		stranger.look()
	}
	if len(stranger.there()) != 0 || slices.Contains(a.there(), "d") {
		t.Errorf("a host of another authority is let in: it sees %v, a sees %v", stranger.there(), a.there())
	}
	if _, err = peer.DialGossip(t.Context(), c.to("b", a.address.String()), Packets); err == nil {
		t.Error("a was taken for b")
	}
}

// to speaks to a host at an address.
func (s *station) to(host, address string) *httpapi.Client {
	id, err := identity.HostID(s.keys.Site(), host)
	must(s.t, err)
	return &httpapi.Client{Base: "https://" + address, HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: s.keys.ClientTLS(id)}}}
}

func TestNearest(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	n := nearest{
		{Host: "b", Distance: ms(9)}, {Host: "c", Distance: ms(3)}, {Host: "d", Distance: ms(1), Doubted: true},
		{Host: "e", Far: true}, {Host: "f", Far: true},
	}
	var asked []string
	for next := n.Next("a", nil, nil); next != ""; next = n.Next("a", nil, asked) {
		asked = append(asked, next)
	}
	if !slices.Equal(asked[:2], []string{"c", "b"}) || len(asked) != 4 {
		t.Errorf("asked %v: want c and b by distance, then the two that none is known of", asked)
	}
	if got := n.Next("a", []string{"c"}, []string{"b"}); got != "e" && got != "f" {
		t.Errorf("outside c and b: %q", got)
	}
}

// TestEverybodyIsAskedOnce: whatever is known of the distances, the order has everybody who is
// there once, and without any distance it is a ring.
func TestEverybodyIsAskedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z][a-z0-9]{0,5}`), 1, 12, rapid.ID).Draw(t, "hosts")
		self, there := names[0], []string{}
		var n nearest
		for _, name := range names[1:] {
			m := Member{Host: name, Doubted: rapid.Bool().Draw(t, "doubted"), Far: rapid.Bool().Draw(t, "far"), Distance: time.Duration(rapid.IntRange(0, 3).Draw(t, "distance"))}
			n = append(n, m)
			if !m.Doubted {
				there = append(there, name)
			}
		}
		var asked []string
		for next := n.Next(self, nil, nil); next != ""; next = n.Next(self, nil, asked) {
			asked = append(asked, next)
		}
		slices.Sort(asked)
		slices.Sort(there)
		if !slices.Equal(asked, there) {
			t.Fatalf("asked %v of %v", asked, there)
		}
		for i := range n {
			n[i].Far, n[i].Doubted = true, false
		}
		// A ring: who follows the one that follows me is its next, unless that is me.
		if len(n) > 1 {
			first := n.Next(self, nil, nil)
			second := n.Next(self, []string{first}, nil)
			ring := append(slices.Clone(n), Member{Host: self, Far: true})
			if got := ring.Next(first, []string{self}, nil); got != second {
				t.Fatalf("after %s comes %s, after %s %s", self, second, first, got)
			}
		}
	})
}
