package balance

import (
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

func TestLifetimeEndsBeforeTheLease(t *testing.T) {
	now := time.Unix(100, 0)
	for left, want := range map[time.Duration]int{
		-time.Second: 0, 0: 0, 2 * time.Second: 0, 2250 * time.Millisecond: 1, 4 * time.Second: 2, 10 * time.Second: 8,
	} {
		if got := lifetime(now.Add(left), now); got != want {
			t.Errorf("%v before the end: %d s, want %d", left, got, want)
		}
	}
}

var floating = netip.MustParseAddr("10.77.0.200")

// here reports whether this machine has the floating address.
func here(t *testing.T) bool {
	t.Helper()
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	must(t, err)
	for _, a := range addrs {
		if a.IP.String() == floating.String() {
			return true
		}
	}
	return false
}

// An address under a lease is there while the lease is prolonged; a process that stands still
// loses it to the kernel before the lease is over; one that ends lets go of it.
func TestAnAddressUnderALease(t *testing.T) {
	s := newStage(t)
	web := s.backend("a")
	var until atomic.Pointer[time.Time]
	extend := func(d time.Duration) { at := time.Now().Add(d); until.Store(&at) }
	extend(time.Minute)
	leased := func() *Balancer {
		return New(Config{Address: floating, First: 20000, Last: 20009, Every: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
			Lease: func() time.Time { return *until.Load() }})
	}
	b := leased()
	at, err := b.Set(t.Context(), plan.Point{Key: "g/web", Port: 20003, Backends: []plan.Backend{{VEE: "a", Address: web.at, Ready: true}}})
	must(t, err)
	if at != "10.77.0.200:20003" && at != "10.77.0.200:20000" {
		t.Errorf("it is at %s", at)
	}
	s.eventually("it serves", func() bool { return s.ask("tcp", at) == "a" })
	extend(4 * time.Second)
	s.eventually("a short lifetime is set", func() bool {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
		must(t, err)
		for _, a := range addrs {
			if a.IP.String() == floating.String() {
				return a.ValidLft > 0 && a.ValidLft <= 4
			}
		}
		return false
	})
	b.stop() // it prolongs nothing any more, as a process that hangs
	s.eventually("the kernel has taken it away", func() bool {
		now := time.Now()
		is := here(t)
		if is && now.After(*until.Load()) {
			t.Fatal("the address outlives the lease")
		}
		return !is
	})
	extend(-time.Second)
	if _, err := b.Set(t.Context(), plan.Point{Key: "g/other"}); err == nil {
		t.Error("a point without a lease")
	}
	b.Close()

	extend(time.Minute)
	next := leased()
	s.eventually("the next one has it", func() bool { return here(t) })
	must(t, next.Clear())
	next.Close()
	if here(t) {
		t.Error("it is there after its end")
	}
}
