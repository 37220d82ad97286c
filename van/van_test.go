package van

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inNamespace runs f in a network namespace of its own. It needs root.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run make test as root (make check leaves it out)")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(err)
		}
	}()
	f()
}

func TestPlugIsIdempotentAndSweepLeavesOnlyWhatIsKept(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	a, c := vee.ID("alpha.aaaaaaaaaa"), vee.ID("alpha.cccccccccc")
	for range 2 {
		for _, id := range []vee.ID{a, c} {
			for i := range 2 {
				if tap, err := h.net.Plug(id, i); err != nil || tap != plan.TapName(id, i) {
					t.Fatal(tap, err)
				}
			}
		}
	}
	taps := func() int {
		n := 0
		must(t, h.ns.do(func() error {
			links, err := netlink.LinkList()
			for _, l := range links {
				if l.Type() == "tuntap" {
					n++
				}
			}
			return err
		}))
		return n
	}
	if n := taps(); n != 4 {
		t.Errorf("%d TAPs, want 4", n)
	}
	if err := h.net.Sweep([]vee.ID{a}); err != nil || taps() != 2 {
		t.Errorf("after sweep: %d TAPs, %v; want 2", taps(), err)
	}
	for range 2 {
		if err := h.net.Unplug(a); err != nil || taps() != 0 {
			t.Errorf("after unplug: %d TAPs, %v; want 0", taps(), err)
		}
	}
}

func TestOpenRefusesABridgeThatIsNone(t *testing.T) {
	inNamespace(t, func() {
		for _, name := range []string{"lo", "rv000001"} {
			if n, err := Open(Config{Host: "h1", Bridge: name}); err == nil {
				t.Errorf("%s was taken for the public networks' bridge: %v", name, n.Close())
			}
		}
	})
}

func TestApplyRefusesWhatCannotBe(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	s := testSegment(1, testPort(1, 1, h))
	twin := s
	twin.ID = "alpha.shop.twin"
	bad := s
	bad.MTU = 9000
	for what, segments := range map[string][]plan.Segment{"two of one VNI": {s, twin}, "an MTU that no device has": {bad}} {
		if err := h.net.Apply(segments); !fault.Has(err, fault.Malformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, h.net.Apply([]plan.Segment{s}))
	h.settled()
}
