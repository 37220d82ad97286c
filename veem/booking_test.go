package veem

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/placement/overbook"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Where CPUs are booked by history, a host that declares 4 vCPUs of its 4 CPUs, of which a
// quarter is to stay free, takes three VEEs; a fourth when one of them has proved idle.
func TestBookingByHistory(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		var mu sync.Mutex
		needs := map[string]int64{}
		s.stop()
		s.cfg.Booking = func(m overbook.Machine) int64 {
			return overbook.Policy{Headroom: 0.25}.Capacity(m, func(id string) (int64, bool) {
				mu.Lock()
				defer mu.Unlock()
				n, known := needs[id]
				return n, known
			})
		}
		s.start()
		in := initialize(vmi.TwoPhase, web(1))
		in.VEEs[0].Count = 4
		in.VEEs[0].Descriptor.Memory = 128 * vee.MiB
		if _, err := s.m.InitializeVEEs(s.operator(), in); !fault.Has(err, fault.NoResources) || !strings.Contains(err.Error(), "vCPU needed") {
			t.Fatalf("four: %v", err)
		}
		in.VEEs[0].Count = 3
		out, err := s.m.InitializeVEEs(s.operator(), in)
		if err != nil {
			t.Fatal(err)
		}
		in = initialize(vmi.TwoPhase, web(2))
		in.VEEs[0].Descriptor.Memory = 128 * vee.MiB
		if _, err := s.m.InitializeVEEs(s.operator(), in); !fault.Has(err, fault.NoResources) {
			t.Errorf("one more: %v", err)
		}
		mu.Lock()
		needs[string(out.VEEs[0].ID)] = 0
		mu.Unlock()
		if _, err := s.m.InitializeVEEs(s.operator(), in); err != nil {
			t.Errorf("one more beside an idle one: %v", err)
		}
		in = initialize(vmi.TwoPhase, web(3))
		in.VEEs[0].Descriptor.Memory = 128 * vee.MiB
		if _, err := s.m.InitializeVEEs(s.operator(), in); !fault.Has(err, fault.NoResources) {
			t.Errorf("more than was declared: %v", err)
		}
	})
}

// Moving goes by the same capacity as admission: VEEs that were promised more than they have been
// seen to need stay where they are, though hosts declare more, and one that has proved idle makes
// room for others.
func TestMovingIsBookedByHistory(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		var mu sync.Mutex
		idle := false
		s.stop()
		s.cfg.Booking = func(m overbook.Machine) int64 {
			return overbook.Policy{Headroom: 0.25}.Capacity(m, func(string) (int64, bool) {
				mu.Lock()
				defer mu.Unlock()
				return 0, idle
			})
		}
		s.start()
		s.deploy(4) // two at each host; with a quarter to stay free, each takes a third
		r, err := s.m.PlanRebalance(s.operator(), vmi.Rebalance{Policy: "consolidate"})
		if err != nil || len(r.Steps) != 0 {
			t.Errorf("planned with hosts that take three of the four: %+v, %v", r.Steps, err)
		}
		s.drain("h1", vmi.Drain{})
		time.Sleep(10 * time.Minute)
		if n := s.on(); n["h1"] != 1 || n["h2"] != 3 {
			t.Errorf("drained as far as there is room for three: %v run", n)
		}
		if n := s.events.count("ReconfigurationStopped"); n != 0 {
			t.Errorf("%d plans did not hold what they promised", n)
		}
		mu.Lock()
		idle = true
		mu.Unlock()
		s.untilHost("h1", "drained", drained)
	})
}
