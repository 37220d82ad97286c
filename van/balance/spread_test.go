package balance

import (
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

func addresses(n int) (list []netip.AddrPort) {
	for i := range n {
		list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80))
	}
	return list
}

func shares(slots []netip.AddrPort) map[netip.AddrPort]int {
	m := map[netip.AddrPort]int{}
	for _, s := range slots {
		m[s]++
	}
	return m
}

func TestSlotsAreBackendsAndBackendsHaveSlots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := addresses(rapid.IntRange(0, 30).Draw(t, "backends"))
		load := rapid.SliceOfN(rapid.IntRange(0, 3), len(list), len(list)).Draw(t, "load")
		for _, a := range []plan.Algorithm{"", plan.RoundRobin, plan.SourceHash, plan.LeastConnections} {
			slots := spread(a, list, load)
			if (len(slots) == 0) != (len(list) == 0) {
				t.Fatalf("%s: %d slots for %d backends", a, len(slots), len(list))
			}
			share := shares(slots)
			for s := range share {
				found := false
				for _, b := range list {
					found = found || b == s
				}
				if !found {
					t.Fatalf("%s: %v is no backend", a, s)
				}
			}
			if a == plan.LeastConnections && len(share) != len(list) {
				t.Fatalf("%d of %d backends get connections", len(share), len(list))
			}
		}
	})
}

func TestABackendThatGoesTakesItsOwnSlotsAlong(t *testing.T) {
	list := addresses(8)
	before, after := spread(plan.SourceHash, list, nil), spread(plan.SourceHash, list[1:], nil)
	for i := range before {
		if before[i] != list[0] && before[i] != after[i] {
			t.Errorf("slot %d moved from %v to %v", i, before[i], after[i])
		}
	}
	for b, n := range shares(before) {
		if n < slotCount/8/3 || n > slotCount/8*3 {
			t.Errorf("%v has %d of %d slots", b, n, slotCount)
		}
	}
}

func TestTheBusyGetLess(t *testing.T) {
	list := addresses(2)
	share := shares(spread(plan.LeastConnections, list, []int{3, 0})) // weights 1/4 and 1
	if share[list[0]] < 23 || share[list[0]] > 28 {
		t.Errorf("shares %v, want a fifth of %d for the one with three connections", share, slotCount)
	}
}

func TestHealth(t *testing.T) {
	ill := errors.New("refused")
	h := health{}.after(ill)
	if h.well {
		t.Error("well before it ever was")
	}
	if h = h.after(nil); !h.well {
		t.Error("not well after a check that passed")
	}
	for i := 1; i < failures; i++ {
		if h = h.after(ill); !h.well {
			t.Errorf("ill after %d failures", i)
		}
	}
	if h = h.after(ill); h.well || h.why != "refused" || !h.once {
		t.Errorf("after %d failures: %+v", failures, h)
	}
}

func TestTheKeyOfATarget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := target{netip.AddrPortFrom(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address"))), rapid.Uint16().Draw(t, "port")), rapid.Bool().Draw(t, "udp")}
		if got, ok := targetOf(want.key()); !ok || got != want {
			t.Fatalf("%v became %v", want, got)
		}
	})
	if _, ok := targetOf([]byte("short")); ok {
		t.Error("a key of another shape was taken")
	}
}
