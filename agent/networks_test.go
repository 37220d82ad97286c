package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// fakePath is a data path that remembers what it was told.
type fakePath struct {
	noNetwork
	mu      sync.Mutex
	applied [][]plan.Segment
	plugged []string
	broken  error
	gate    chan struct{} // nil: open
	have    plan.HostPlan
}

func (p *fakePath) Apply(s []plan.Segment) error {
	if p.gate != nil {
		<-p.gate
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != nil {
		return p.broken
	}
	p.applied = append(p.applied, s)
	return nil
}

func (p *fakePath) last() []plan.Segment {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.applied) == 0 {
		return nil
	}
	return p.applied[len(p.applied)-1]
}

func (p *fakePath) Plug(id vee.ID, nic int) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plugged = append(p.plugged, plan.TapName(id, nic))
	return plan.TapName(id, nic), nil
}

func (p *fakePath) Show() (have, want plan.HostPlan, err error) {
	return p.have, plan.For("h1", netip.MustParseAddr("192.0.2.1"), "rsv0", p.last()), nil
}

const shopVEE = vee.ID("alpha.aaaaaaaaaa")

func segmentOf(id string, vni uint32, version uint64, ports ...plan.Port) plan.Segment {
	subnet := netip.MustParsePrefix("10.1.0.0/24")
	if ports == nil {
		ports = []plan.Port{}
	}
	return plan.Segment{ID: id, VNI: vni, Version: version, Subnets: []netip.Prefix{subnet}, Gateways: []netip.Addr{subnet.Addr().Next()}, MTU: 1370, Ports: ports}
}

func shopPort() plan.Port {
	return plan.Port{VEE: shopVEE, MAC: "06:00:00:01:00:40", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.64")}, Host: "h1"}
}

func opened(t *testing.T, dir string, p *fakePath) *networks {
	t.Helper()
	n, err := openNetworks(dir, "h1", p, noAnswers{}, func() {}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSegmentsAreKept(t *testing.T) {
	dir, p := t.TempDir(), &fakePath{}
	n := opened(t, dir, p)
	for _, s := range []plan.Segment{segmentOf("shop/back", 1, 5), segmentOf("shop//site", 2, 6), segmentOf("other/back", 3, 7)} {
		if err := n.put(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.put(segmentOf("shop/back", 1, 4)); err != nil { // late
		t.Fatal(err)
	}
	if err := errors.Join(n.remove("other/back"), n.remove("other/back")); err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{"shop/back": 5, "shop//site": 6}
	if got := n.versions(); !maps.Equal(got, want) {
		t.Errorf("in effect %v, want %v", got, want)
	}
	if err := n.put(segmentOf("shop/back", 1<<24, 9)); !fault.Has(err, fault.Malformed) {
		t.Errorf("a VNI that there cannot be: %v", err)
	}
	// Another agent on the same directory, a file of which is damaged and one cut off.
	for name, text := range map[string]string{"x.json": "{", ".y.json": "{}"} {
		if err := os.WriteFile(filepath.Join(dir, "segments", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := &fakePath{}
	n = opened(t, dir, again)
	if got := n.versions(); !maps.Equal(got, want) || len(again.last()) != 2 {
		t.Errorf("after a restart %v of %v, want %v", got, again.last(), want)
	}
}

// What could not be put into effect is not reported as if it were, and is tried again.
func TestSegmentsThatFail(t *testing.T) {
	p := &fakePath{broken: errors.New("no such device")}
	n := opened(t, t.TempDir(), p)
	if err := n.put(segmentOf("shop/back", 1, 5)); err == nil {
		t.Fatal("the failure is not told")
	}
	if v := n.versions(); len(v) != 0 {
		t.Errorf("in effect: %v", v)
	}
	p.broken = nil
	if err := n.put(segmentOf("shop/back", 1, 5)); err != nil || n.versions()["shop/back"] != 5 {
		t.Errorf("put again: %v, %v", n.versions(), err)
	}
}

// Puts that come together are few changes of the kernel.
func TestPutsTogether(t *testing.T) {
	p := &fakePath{}
	n := opened(t, t.TempDir(), p)
	p.gate = make(chan struct{})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := n.put(segmentOf("shop/"+string(rune('a'+i)), uint32(i+1), 1)); err != nil {
				t.Error(err)
			}
		})
	}
	for all := false; !all; time.Sleep(time.Millisecond) { // while the first has not come through
		n.mu.Lock()
		all = n.puts == 51
		n.mu.Unlock()
	}
	close(p.gate)
	wg.Wait()
	// The empty set at the start, whatever the first call took, and all the others at once.
	if len(p.last()) != 50 || len(p.applied) > 3 || len(n.versions()) != 50 {
		t.Errorf("%d networks by %d changes, %d in effect", len(p.last()), len(p.applied), len(n.versions()))
	}
}

// A NIC waits for its network, but not for ever.
func TestPlugWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakePath{}
		n := opened(t, t.TempDir(), p)
		if _, err := n.Plug(t.Context(), shopVEE, 0); !fault.Has(err, fault.Unavailable) {
			t.Errorf("the site never tells: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := n.Plug(ctx, shopVEE, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("nobody wants it any more: %v", err)
		}
		done := make(chan error, 1)
		go func() { _, err := n.Plug(t.Context(), shopVEE, 0); done <- err }()
		time.Sleep(time.Second)
		if err := n.put(segmentOf("shop/back", 1, 1)); err != nil { // without the port
			t.Fatal(err)
		}
		synctest.Wait()
		if len(p.plugged) != 0 {
			t.Error("plugged in before the site had told where")
		}
		if err := n.put(segmentOf("shop/back", 1, 2, shopPort())); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || len(p.plugged) != 1 {
			t.Errorf("plugged %v, %v", p.plugged, err)
		}
	})
}

func TestShowPlan(t *testing.T) {
	p := &fakePath{}
	n := opened(t, t.TempDir(), p)
	if _, err := n.show("shop/back", netip.Addr{}, "rsv0"); !fault.Has(err, fault.NotFound) {
		t.Errorf("of a network that is not here: %v", err)
	}
	if err := n.put(segmentOf("shop/back", 1, 2, shopPort())); err != nil {
		t.Fatal(err)
	}
	_, want, _ := p.Show()
	p.have = maps.Clone(want)
	missing := plan.Bridge{Name: plan.BridgeName(1)}
	delete(p.have, plan.KeyOf(missing))
	surplus := plan.Answer{VNI: 1, Addr: netip.MustParseAddr("10.1.0.99"), MAC: "06:00:00:01:00:63"}
	p.have[plan.KeyOf(surplus)] = surplus
	got, err := n.show("shop/back", netip.MustParseAddr("192.0.2.1"), "rsv0")
	if err != nil || got.Version != 2 || len(got.Entries) != len(want) || !slices.Equal(got.Missing, []string{missing.String()}) || !slices.Equal(got.Surplus, []string{surplus.String()}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestUnderlay(t *testing.T) {
	for advertise, want := range map[string]string{"192.0.2.7:8441": "192.0.2.7", "[2001:db8::7]:8441": "2001:db8::7", "0.0.0.0:8441": "127.0.0.1", "h1.example:8441": "127.0.0.1"} {
		if a, err := underlayOf(t.Context(), advertise, "127.0.0.1:8440"); err != nil || a.String() != want {
			t.Errorf("%s: %v, %v; want %s", advertise, a, err, want)
		}
	}
}
