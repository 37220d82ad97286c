package van

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

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

// backend answers each connection with its name.
func backend(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, name)
			c.Close()
		}
	}()
	return netip.MustParseAddrPort(ln.Addr().String())
}

// silentBackend never answers a connection attempt: its backlog of one is full.
func silentBackend(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	for {
		c, err := net.DialTimeout("tcp", at.String(), 100*time.Millisecond)
		if err != nil {
			return at
		}
		t.Cleanup(func() { c.Close() })
	}
}

func ask(t *testing.T, addr string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return "refused"
	}
	defer c.Close()
	s, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "reset"
	}
	return s[:len(s)-1]
}

func TestBalancerSpreadsPassesOverTheDeadAndFollowsChanges(t *testing.T) {
	ctx := context.Background()
	b := NewBalancer(netip.MustParseAddr("127.0.0.1"), 20000, 29999, slog.New(slog.NewTextHandler(io.Discard, nil)))
	defer b.Close()
	one, two := backend(t, "one"), backend(t, "two")
	addr, err := b.Set(ctx, "web", "", []netip.AddrPort{one, two})
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for range 10 {
		count[ask(t, addr)]++
	}
	if count["one"] != 5 || count["two"] != 5 {
		t.Errorf("spread %v, want five each", count)
	}
	dead := netip.MustParseAddrPort("127.0.0.1:1")
	if again, err := b.Set(ctx, "web", addr, []netip.AddrPort{dead, two}); err != nil || again != addr {
		t.Fatalf("second Set: %s, %v; want the same address %s", again, err, addr)
	}
	for range 4 {
		if got := ask(t, addr); got != "two" {
			t.Errorf("with a dead backend: %s, want two", got)
		}
	}
	silent := silentBackend(t)
	if _, err := b.Set(ctx, "web", addr, []netip.AddrPort{silent, two}); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if got := ask(t, addr); got != "two" {
			t.Errorf("with a silent backend: %s, want two", got)
		}
	}
	if _, err := b.Set(ctx, "web", addr, nil); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, addr); got != "reset" {
		t.Errorf("without a backend: %s, want a reset", got)
	}
	b.Remove("web")
	if got := ask(t, addr); got != "refused" {
		t.Errorf("after Remove: %s", got)
	}
}

func TestBalancerTakesAnotherPortWhenItsOwnIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	b := NewBalancer(netip.MustParseAddr("127.0.0.1"), 20000, 29999, slog.New(slog.NewTextHandler(io.Discard, nil)))
	defer b.Close()
	addr, err := b.Set(context.Background(), "web", taken.Addr().String(), nil)
	if err != nil || addr == taken.Addr().String() {
		t.Errorf("got %s, %v; want another port", addr, err)
	}
}
