package van

import (
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"

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
	inNamespace(t, func() {
		b, err := EnsureBridge("rsvtest0")
		if err != nil {
			t.Fatal(err)
		}
		a, c := vee.ID("alpha.aaaaaaaaaa"), vee.ID("alpha.cccccccccc")
		for range 2 {
			for _, id := range []vee.ID{a, c} {
				for i := range 2 {
					if _, err := b.Plug(id, i); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		taps := func() int {
			n := 0
			links, _ := netlink.LinkList()
			for _, l := range links {
				if l.Type() == "tuntap" {
					n++
				}
			}
			return n
		}
		if n := taps(); n != 4 {
			t.Errorf("%d TAPs, want 4", n)
		}
		if err := b.Sweep([]vee.ID{a}); err != nil || taps() != 2 {
			t.Errorf("after sweep: %d TAPs, %v; want 2", taps(), err)
		}
		for range 2 {
			if err := b.Unplug(a); err != nil || taps() != 0 {
				t.Errorf("after unplug: %d TAPs, %v; want 0", taps(), err)
			}
		}
	})
}

func TestEnsureBridgeRefusesAnotherKindOfLink(t *testing.T) {
	inNamespace(t, func() {
		if _, err := EnsureBridge("lo"); err == nil {
			t.Error("the loopback device was taken for a bridge")
		}
	})
}

func TestNamesFitTheKernelAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 2000 {
		id, err := vee.NewID("alpha", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			n := TapName(id, i)
			if len(n) != 15 || seen[n] {
				t.Fatalf("TAP name %q: %d characters, seen %v", n, len(n), seen[n])
			}
			seen[n] = true
			if _, err := net.ParseMAC(MAC(id, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
}
