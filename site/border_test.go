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
	c, odd := compose("10.0.0.1:8440", borders, segments, []border.Route{{Ticket: "a b", To: "10.0.0.2:1"}, {Ticket: "ok", To: "10.0.0.3:1"}})
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if len(odd) != 4 {
		t.Errorf("left out: %v: want 4", odd)
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
		borders: func() map[string]peer.Border { return borders }, segments: func() []border.Segment { return nil }, wake: make(chan struct{}, 1)}
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
