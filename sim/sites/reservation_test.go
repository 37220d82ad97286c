package sites

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// later asks for room for so many VEEs of a vCPU, from and until so long from now.
func later(at string, vees int, from, until time.Duration) vmi.Reserve {
	now := time.Now()
	return vmi.Reserve{At: at, Customer: "acme", VEEs: vees, VCPUs: 1, Memory: 64 * vee.MiB, From: now.Add(from), Until: now.Add(until)}
}

func under(id, name string) vmi.Initialize {
	return vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: vee.Descriptor{Name: name, Customer: "acme", GroupID: "shop",
		VCPUs: 1, Memory: 64 * vee.MiB, Where: vee.Where{Reservation: id}}}}}
}

func (s *scene) reservation(site, id string) vmi.Reservation {
	s.t.Helper()
	x := s.Sites[site]
	r, err := x.Manager().GetReservation(x.As(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// Capacity of a partner for a later time: nobody else gets it, VEEs under it do when it has
// begun, and it is given back at its end. Both managers are killed in between.
func TestReservedForLater(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		a, b := s.Sites["alpha"], s.Sites["beta"]
		r, err := a.m.Reserve(a.As(), later("beta", 3, time.Hour, 3*time.Hour))
		s.must(err)
		if r.State != vmi.ReservationReserved || r.PerHour != 3 || r.Agreement == "" {
			t.Errorf("reserved: %+v", r)
		}
		if there := s.reservation("beta", r.ID); there.State != vmi.ReservationReserved || there.HeldUntil != nil {
			t.Errorf("at the lender: %+v", there)
		}
		_, err = a.m.InitializeVEEs(a.As(), under(r.ID, "early"))
		if !fault.Has(err, fault.NoResources) || !strings.Contains(err.Error(), "begins on") {
			t.Errorf("before its time: %v", err)
		}
		for _, x := range []*Site{a, b} {
			x.Stop()
			s.must(x.Start())
		}
		time.Sleep(20 * time.Second)
		// beta's own VEEs would stay: one fits beside the three.
		own := func(name string) error {
			_, err := b.m.InitializeVEEs(b.As(), vmi.Initialize{Model: vmi.TwoPhase, HoldMS: 10 * 3_600_000, VEEs: []vmi.InitializeVEE{{Descriptor: vee.Descriptor{
				Name: name, Customer: "bolt", GroupID: "db", VCPUs: 1, Memory: 64 * vee.MiB, Where: vee.Where{Partners: vee.PartnersNever}}}}})
			return err
		}
		s.must(own("db-1"))
		if err := own("db-2"); !fault.Has(err, fault.NoResources) {
			t.Errorf("what is reserved was given away: %v", err)
		}
		if _, err := b.m.Reserve(b.As(), later("", 1, 2*time.Hour, 4*time.Hour)); !fault.Has(err, fault.NoResources) {
			t.Errorf("reserved twice: %v", err)
		}
		_, err = b.m.Reserve(b.As(), later("", 3, 4*time.Hour, 5*time.Hour)) // after it
		s.must(err)

		time.Sleep(time.Hour)
		s.until("it is active", func() bool {
			return s.reservation("beta", r.ID).State == vmi.ReservationActive && s.reservation("alpha", r.ID).State == vmi.ReservationActive
		})
		for i := range 3 {
			out, err := a.Manager().InitializeVEEs(a.As(), under(r.ID, fmt.Sprintf("web-%d", i+1)))
			s.must(err)
			id := out.VEEs[0].ID
			_, err = a.Manager().SubmitVEEs(a.As(), []vee.ID{id})
			s.must(err)
			s.until("it runs there", func() bool { return s.at(id) == "beta" })
		}
		if _, err := a.Manager().InitializeVEEs(a.As(), under(r.ID, "web-4")); !fault.Has(err, fault.NoResources) || !strings.Contains(err.Error(), "are placed") {
			t.Errorf("a fourth of three: %v", err)
		}
		if got := s.reservation("alpha", r.ID); got.Used != 3 {
			t.Errorf("used: %+v", got)
		}
		time.Sleep(2 * time.Hour)
		s.until("what has no room beside the next was stopped", func() bool {
			list, err := b.Manager().ListVEEs(b.As(), vmi.Filter{})
			s.must(err)
			for _, v := range list {
				if v.Custody != nil && v.State == vee.Active {
					return false
				}
			}
			return true
		})
		s.until("it has ended", func() bool {
			return s.reservation("beta", r.ID).State == vmi.ReservationEnded && s.reservation("alpha", r.ID).State == vmi.ReservationEnded
		})
	})
}

// What is not committed expires at both sites, what is not used too; what is cancelled, or loses
// its agreement, is given back.
func TestReservationsEndByThemselves(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		a, b := s.Sites["alpha"], s.Sites["beta"]
		lost := false
		s.Hook = func(c Crossing) error { // the answer to the first phase is lost, and all that follows
			if lost = lost || c.What == "call" && c.After && c.From == "alpha"; lost && c.What == "call" {
				return fault.New(fault.Unavailable, "cut")
			}
			return nil
		}
		if _, err := a.m.Reserve(a.As(), later("beta", 4, time.Hour, 2*time.Hour)); !fault.Has(err, fault.Unavailable) {
			t.Fatalf("without an answer: %v", err)
		}
		list, err := b.m.ListReservations(b.As())
		s.must(err)
		for _, r := range list {
			if r.State != vmi.ReservationHeld {
				t.Errorf("the first phase: %+v", r)
			}
		}
		time.Sleep(2 * time.Minute)
		s.Hook = s.hook
		list, err = b.m.ListReservations(b.As())
		s.must(err)
		for _, r := range list {
			if !r.State.Over() {
				t.Errorf("not committed: %+v", r)
			}
		}
		time.Sleep(time.Minute)

		in := later("beta", 4, time.Minute, 10*time.Hour)
		in.UseWithinMS = 600_000
		unused, err := a.Manager().Reserve(a.As(), in)
		s.must(err)
		time.Sleep(20 * time.Minute)
		s.until("it has expired", func() bool {
			return s.reservation("beta", unused.ID).State.Over() && s.reservation("alpha", unused.ID).State == vmi.ReservationExpired
		})
		if r := s.reservation("alpha", unused.ID); !strings.Contains(r.Note, "no VEE was placed under it") {
			t.Errorf("not used: %+v", r)
		}
		r, err := a.Manager().Reserve(a.As(), later("beta", 4, time.Hour, 2*time.Hour))
		s.must(err)
		cut(s, between)
		_, err = a.Manager().CancelReservation(a.As(), r.ID)
		s.must(err)
		time.Sleep(time.Minute)
		cut(s, nil)
		s.until("it was given back", func() bool { return s.reservation("beta", r.ID).State == vmi.ReservationCancelled })
		r, err = a.Manager().Reserve(a.As(), later("beta", 4, time.Hour, 2*time.Hour))
		s.must(err)
		s.end("beta")
		s.until("it went with its agreement", func() bool {
			return s.reservation("beta", r.ID).State == vmi.ReservationCancelled && s.reservation("alpha", r.ID).State == vmi.ReservationCancelled
		})
		if _, err := a.Manager().Reserve(a.As(), later("beta", 1, time.Hour, 2*time.Hour)); !fault.Has(err, fault.Denied) {
			t.Errorf("under an agreement that has ended: %v", err)
		}
	})
}

// Two that ask at the same time for the last of a ceiling: one gets it.
func TestReservationsRaceAtTheCeiling(t *testing.T) {
	stage(t, 4, []string{"alpha", "beta"}, func(s *scene) { // 16 vCPUs, of which 8 are agreed
		a := s.Sites["alpha"]
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won, refused int
		for range 4 {
			wg.Go(func() {
				_, err := a.m.Reserve(a.As(), later("beta", 5, time.Hour, 2*time.Hour))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won++
				case fault.Has(err, fault.QuotaExceeded) && strings.Contains(err.Error(), "ceiling"):
					refused++
				default:
					t.Errorf("refused without its cause: %v", err)
				}
			})
		}
		wg.Wait()
		if won != 1 || refused != 3 {
			t.Errorf("%d of 4 have it, %d were refused", won, refused)
		}
		if _, err := a.m.Reserve(a.As(), later("beta", 8, 3*time.Hour, 4*time.Hour)); err != nil {
			t.Errorf("at another time: %v", err)
		}
	})
}
