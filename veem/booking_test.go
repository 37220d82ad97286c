package veem

import (
	"strings"
	"sync"
	"testing"

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
