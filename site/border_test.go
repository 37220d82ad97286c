package site

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/veem"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

const (
	aKey       = "Y1dGuzAbRve4EORIUxqmSioOjbYdqxP2mTFkMjgDrnk="
	anotherKey = "gGhA01TKjwsEpQ+6QwT3vVNncgqDwcHGRhlTfXM+dBs="
)

func spanning(id string, vni, tunnel uint32) border.Segment {
	return border.Segment{Tunnel: tunnel, Segment: plan.Segment{ID: id, Version: 1, VNI: vni, MTU: 1370, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}}}
}

// TestOnePartnersNonsenseCostsNobodyElse: a key that is another partner's, a network that
// cannot be, a ticket that is none, are left out.
func TestOnePartnersNonsenseCostsNobodyElse(t *testing.T) {
	borders := map[string]peer.Border{"beta": {Relay: "192.0.2.2:1", Tunnel: "192.0.2.2:1", Key: aKey}, "gamma": {Relay: "192.0.2.3:1", Key: aKey}, "delta": {Key: "what"}, "epsilon": {Key: anotherKey}}
	segments := []border.Segment{spanning("s/a", 1, 1), spanning("s/b", 2, 1), spanning("s/c", 3, 3)}
	c, odd := compose("10.0.0.1:8440", borders, segments, []border.Route{{Ticket: "a b", To: "10.0.0.2:1"}, {Ticket: "ok", To: "10.0.0.3:1"}},
		[]border.Door{{Port: border.FirstDoor, Segment: "s/b", To: netip.MustParseAddrPort("10.1.0.9:80")}})
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if len(odd) != 5 || len(c.Doors) != 0 {
		t.Errorf("left out: %v: want 5", odd)
	}
	keys := map[string]string{}
	for _, p := range c.Peers {
		keys[p.Site] = p.Key
	}
	if keys["beta"] != aKey || keys["gamma"] != "" || keys["delta"] != "" || keys["epsilon"] != anotherKey {
		t.Errorf("keys %v", keys)
	}
	if len(c.Segments) != 2 || c.Segments[1].ID != "s/c" {
		t.Errorf("networks %+v", c.Segments)
	}
	var tickets []string
	for _, r := range c.Routes {
		tickets = append(tickets, r.Ticket)
	}
	if slices.Sort(tickets); !slices.Equal(tickets, []string{"ok", "site", "site.beta", "site.gamma"}) {
		t.Errorf("tickets %v", tickets)
	}
}

// someProxy keeps what it was put.
type someProxy struct {
	mu   sync.Mutex
	puts []border.Config
	err  error
}

func (p *someProxy) Put(_ context.Context, c border.Config) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.puts = append(p.puts, c)
	}
	return p.err
}

func (p *someProxy) Status(context.Context) (border.ProxyStatus, error) {
	return border.ProxyStatus{}, errors.New("not asked")
}

func TestTheProxyIsToldWhatItDoesNotHold(t *testing.T) {
	p := &someProxy{}
	borders := map[string]peer.Border{}
	g := &gate{site: "alpha", control: "10.0.0.1:8440", dial: func(string) border.Proxy { return p }, log: slog.New(slog.DiscardHandler), now: time.Now,
		borders: func() map[string]peer.Border { return borders }, segments: func() []border.Segment { return nil }, doors: func() []veem.Door { return nil }, opened: func() {}, members: func() []string { return nil }, wake: make(chan struct{}, 1)}
	sync := func() {
		t.Helper()
		if err := g.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sync() // there is none yet
	if _, err := g.Pass(t.Context(), nil); !fault.Has(err, fault.Unavailable) {
		t.Errorf("routes at a site without a proxy: %v", err)
	}
	g.proxy = border.Presence{Address: "10.0.0.2:8442", Inside: "10.0.0.2:8444"}
	sync()
	sync()
	if len(p.puts) != 1 {
		t.Fatalf("%d puts of the same: want 1", len(p.puts))
	}
	borders["beta"] = peer.Border{Relay: "192.0.2.2:1", Key: aKey}
	sync()
	if inside, err := g.Pass(t.Context(), []border.Route{{Ticket: "m", To: "10.0.0.11:8441"}}); err != nil || inside != "10.0.0.2:8444" {
		t.Errorf("routes are put: %q, %v", inside, err)
	}
	if len(p.puts) != 3 || p.puts[1].Version <= p.puts[0].Version || p.puts[2].Version <= p.puts[1].Version || len(p.puts[2].Routes) != 3 {
		t.Errorf("puts: %+v", p.puts)
	}
	g.proxy.Holds = 0 // it was replaced by a new one
	p.err = fault.New(fault.Unavailable, "it does not answer")
	if err := g.sync(t.Context()); !fault.Has(err, fault.Unavailable) || g.failure() == nil {
		t.Errorf("a proxy that does not answer: %v", err)
	}
	p.err = nil
	sync()
	if len(p.puts) != 4 || p.puts[3].Version != p.puts[2].Version || g.failure() != nil {
		t.Errorf("what the new one was put: %+v, %v", p.puts[3:], g.failure())
	}
}

// Whoever is invited finds the way in: the proxy knows it before the invitation is told.
func TestAnInvitationWaitsForTheWayIn(t *testing.T) {
	p := &someProxy{}
	g := &gate{site: "alpha", dial: func(string) border.Proxy { return p }, log: slog.New(slog.DiscardHandler), now: time.Now,
		borders: func() map[string]peer.Border { return nil }, segments: func() []border.Segment { return nil }, doors: func() []veem.Door { return nil }, opened: func() {},
		members: func() []string { return nil }, wake: make(chan struct{}, 1), there: make(chan struct{}), leads: make(chan struct{})}
	if err := g.ready(t.Context()); err != nil {
		t.Errorf("a site without a proxy: %v", err)
	}
	g.proxy = border.Presence{Address: "10.0.0.2:8442", Inside: "10.0.0.2:8444"}
	if err := g.sync(t.Context()); err != nil || len(p.puts) != 1 || len(p.puts[0].Routes) != 0 {
		t.Fatalf("before anybody listens: %v, %+v", err, p.puts)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.ready(over); !fault.Has(err, fault.Unavailable) {
		t.Errorf("nobody listens: %v", err)
	}
	ready := make(chan error)
	go func() { ready <- g.ready(t.Context()) }()
	g.lead("10.0.0.1:40000")
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	if last := p.puts[len(p.puts)-1].Routes; len(last) != 1 || last[0].Ticket != border.SiteTicket || last[0].To != "10.0.0.1:40000" {
		t.Errorf("the proxy has routes %+v", last)
	}
}

// A door is open when it is told, keeps its port as long as somebody leads through it, and is
// another's after that; while the proxy does not answer those that are open are told.
func TestDoorsOfTheProxy(t *testing.T) {
	p := &someProxy{}
	to := func(last byte) veem.Door {
		return veem.Door{VEE: "alpha.aaaaaaaaaa", Port: 80, Segment: "g/back", To: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, last}), 80)}
	}
	wanted, news := []veem.Door{}, 0
	segment := border.Segment{Tunnel: 7, Segment: plan.Segment{ID: "g/back", Version: 1, VNI: 3, MTU: 1370, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}, Ports: []plan.Port{
		{VEE: "alpha.aaaaaaaaaa", MAC: "06:00:00:03:00:0a", Addresses: []netip.Addr{to(10).To.Addr()}, Host: "@beta"},
		{VEE: "alpha.bbbbbbbbbb", MAC: "06:00:00:03:00:0b", Addresses: []netip.Addr{to(11).To.Addr()}, Host: "h1"},
		{VEE: "alpha.proxyproxy", MAC: "06:00:00:03:00:fe", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.254")}, Host: plan.AtBorder}}}}
	g := &gate{site: "alpha", control: "10.0.0.1:8440", dial: func(string) border.Proxy { return p }, log: slog.New(slog.DiscardHandler), now: time.Now,
		borders: func() map[string]peer.Border { return nil }, segments: func() []border.Segment { return []border.Segment{segment} },
		doors: func() []veem.Door { return wanted }, opened: func() { news++ }, members: func() []string { return nil }, ways: map[veem.Door]*doorway{}, wake: make(chan struct{}, 1)}
	if _, err := g.Door(t.Context(), to(10)); !fault.Has(err, fault.Unavailable) {
		t.Errorf("a door at a site without a proxy: %v", err)
	}
	g.proxy = border.Presence{Address: "10.0.0.2:8442", Inside: "10.0.0.2:8444"}
	wanted = []veem.Door{to(10), to(11)}
	one, err := g.Door(t.Context(), to(10))
	if err != nil || one.Addr() != netip.MustParseAddr("10.0.0.2") || len(p.puts) != 1 || len(p.puts[0].Doors) != 1 || p.puts[0].Doors[0].Port != one.Port() || news != 1 {
		t.Fatalf("%v, %v; puts %+v", one, err, p.puts)
	}
	if again, err := g.Door(t.Context(), to(10)); err != nil || again != one || len(p.puts) != 1 {
		t.Errorf("asked again: %v, %v, %d puts", again, err, len(p.puts))
	}
	p.err = fault.New(fault.Unavailable, "it does not answer")
	if _, err := g.Door(t.Context(), to(11)); !fault.Has(err, fault.Unavailable) {
		t.Errorf("a new door while the proxy does not answer: %v", err)
	}
	if again, err := g.Door(t.Context(), to(10)); err != nil || again != one {
		t.Errorf("an open one while the proxy does not answer: %v, %v", again, err)
	}
	p.err = nil
	if err := g.sync(t.Context()); err != nil || news != 2 {
		t.Errorf("the proxy answers again: %v, told %d times", err, news)
	}
	two, err := g.Door(t.Context(), to(11))
	if err != nil || two == one {
		t.Errorf("the second door: %v, %v", two, err)
	}
	wanted = []veem.Door{to(11)}
	if err := g.sync(t.Context()); err != nil || len(p.puts[len(p.puts)-1].Doors) != 1 {
		t.Errorf("a door that nobody leads through: %v, %+v", err, p.puts[len(p.puts)-1].Doors)
	}
}
