package post

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/border"
)

// member of a control plane: it hears of its proxy, and refuses everything else.
type member struct {
	name  string
	heard chan string
}

func (m member) Announce(context.Context, border.Presence) error { m.heard <- m.name; return nil }

func (member) JoinProxy(context.Context, border.ProxyJoin) (border.ProxyCertificate, error) {
	return border.ProxyCertificate{}, fault.New(fault.Denied, "not here")
}

func (member) RenewProxy(context.Context, []byte) (border.ProxyCertificate, error) {
	return border.ProxyCertificate{}, fault.New(fault.Denied, "not here")
}

// A proxy that was started with the address of one member of three speaks to the next when
// that is gone, and to the last when both are: the site has told it of them.
func TestTheControlPlaneIsFoundWhenMembersAreGone(t *testing.T) {
	defer goleak.VerifyNone(t)
	heard := make(chan string)
	roots := x509.NewCertPool()
	var servers []*httptest.Server
	held := border.Config{}
	for _, name := range []string{"m1", "m2", "m3"} {
		api := httpapi.NewServer("member "+name, "1", slog.New(slog.DiscardHandler))
		border.RegisterManager(api, member{name, heard})
		s := httptest.NewUnstartedServer(api.Handler(func(*http.Request) (identity.Caller, error) {
			return identity.Caller{ID: "proxy", Role: identity.ProxyRole}, nil
		}))
		s.EnableHTTP2 = true
		s.StartTLS()
		defer s.Close()
		roots.AddCert(s.Certificate())
		servers, held.Members = append(servers, s), append(held.Members, s.Listener.Addr().String())
	}
	if err := held.Check(); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Sites: held.Members[:1], Underlay: netip.MustParseAddr("10.0.0.2"), HAScale: 0.2, Log: slog.New(slog.DiscardHandler)}
	p := &post{cfg: cfg, changed: make(chan struct{}, 1)}
	p.members = httpapi.NewMembers(&tls.Config{RootCAs: roots, ServerName: "example.com"}, membersOf(cfg, border.Config{})...)
	transport := p.members.Transport()
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		p.announce(ctx, border.NewManagerClient(&httpapi.Client{Base: "https://" + cfg.Sites[0], HTTP: &http.Client{Transport: transport}}))
	})
	next := func(not ...string) string {
		t.Helper()
		for {
			select {
			case name := <-heard:
				gone := false
				for _, n := range not {
					gone = gone || n == name
				}
				if !gone {
					return name
				}
			case <-time.After(30 * time.Second):
				t.Fatal("the proxy speaks to nobody")
			}
		}
	}
	if first := next(); first != "m1" {
		t.Fatalf("it speaks to %s", first)
	}
	p.members.Set(membersOf(cfg, held)) // as Put does
	gone := []string{}
	for i := range 2 {
		servers[i].CloseClientConnections()
		servers[i].Listener.Close()
		gone = append(gone, []string{"m1", "m2"}[i])
		t.Logf("without %v it speaks to %s", gone, next(gone...))
	}
}

func TestAddressesOfTheProxy(t *testing.T) {
	good := func() Config {
		return Config{Dir: t.TempDir(), Sites: []string{"10.0.0.1:8440"}, Listen: "10.0.0.2:8442", Inside: "10.0.0.2:8444", Outside: "192.0.2.7:8443"}
	}
	c := good()
	if err := c.check(); err != nil || c.Underlay != netip.MustParseAddr("10.0.0.2") || c.Advertise != c.Outside {
		t.Errorf("%+v, %v", c, err)
	}
	for why, spoil := range map[string]func(*Config){
		"no site":             func(c *Config) { c.Sites = nil },
		"no port":             func(c *Config) { c.Inside = "10.0.0.2" },
		"every address":       func(c *Config) { c.Outside = "0.0.0.0:8443" },
		"two at one place":    func(c *Config) { c.Inside = c.Listen },
		"a port of the doors": func(c *Config) { c.Inside = "10.0.0.2:20000" },
	} {
		c := good()
		if spoil(&c); !fault.Has(c.check(), fault.Malformed) {
			t.Errorf("%s: %v", why, c.check())
		}
	}
}
