package sites

import (
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor/sim"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// away deploys a VEE of alpha's that runs at beta.
func (s *scene) away(name string, restart vee.RestartPolicy, disks ...vee.Disk) vee.ID {
	s.t.Helper()
	id := s.deployAs(name, restart, disks...)
	s.migrate(id, "beta")
	s.settled(id)
	if s.at(id) != "beta" {
		s.t.Fatalf("VEE %s runs at %q", name, s.at(id))
	}
	return id
}

// end the agreement under which alpha's VEEs are at beta.
func (s *scene) end(by string) {
	s.End("beta", "alpha", by)
	for _, x := range s.Sites {
		if m := x.Manager(); m != nil {
			m.PartnersChanged()
		}
	}
}

// Whichever site ends the agreement, its VEEs come home by themselves while they run, and
// nothing goes there any more.
func TestVEEsLeaveInTheirNotice(t *testing.T) {
	for _, by := range []string{"alpha", "beta"} {
		t.Run("ended by "+by, func(t *testing.T) {
			stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
				ids := []vee.ID{s.away("web-1", vee.RestartInPlace), s.away("web-2", vee.RestartNever)}
				s.end(by)
				time.Sleep(time.Second)
				a := s.Sites["alpha"]
				plan, err := a.m.Plan(a.As(), vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: vee.Descriptor{
					Name: "more", Customer: "acme", GroupID: "shop", VCPUs: 1, Memory: vee.GiB, Where: vee.Where{Sites: []string{"beta"}}}}}})
				if err != nil || plan[0].Host != "" || !strings.Contains(plan[0].Why, "was ended by site "+by) {
					t.Errorf("a new one: %+v, %v", plan, err)
				}
				s.until("they have left", func() bool { return s.at(ids[0]) == "alpha" && s.at(ids[1]) == "alpha" })
				for _, id := range ids {
					s.settled(id)
					if m, err := a.m.GetMigration(a.As(), string(id)); err != nil || m.State != vmi.MigrationDone || m.From != "@beta" {
						t.Errorf("it did not come live: %+v, %v", m, err)
					}
				}
				time.Sleep(2 * time.Minute)
				for _, id := range ids {
					s.settled(id)
				}
			})
		})
	}
}

// What does not run leaves too, with what it has.
func TestVEEsThatRestLeaveTheirNotice(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		asleep, off := s.away("web-1", vee.RestartInPlace), s.away("web-2", vee.RestartNever)
		s.act(asleep, vee.Suspend)
		s.act(off, vee.Shutdown)
		s.end("beta")
		s.until("they have left", func() bool {
			a, _ := s.holds(asleep)
			b, _ := s.holds(off)
			return a == "alpha" && b == "alpha"
		})
		if at := s.lies(asleep, vee.Suspended); at != "alpha" {
			t.Errorf("suspended at %q", at)
		}
		if at := s.lies(off, vee.Defined); at != "alpha" {
			t.Errorf("stopped at %q", at)
		}
	})
}

// Without room at home they go to another partner.
func TestVEEsLeaveForAThirdSite(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta", "gamma"}, func(s *scene) {
		id := s.away("web-1", vee.RestartInPlace)
		a := s.Sites["alpha"]
		_, err := a.m.SetHostState(a.As(), "h1", vmi.HostDraining)
		s.must(err)
		s.end("beta")
		s.until("it has left", func() bool { return s.at(id) == "gamma" })
		s.settled(id)
	})
}

// What cannot go while it runs is started anew elsewhere in the second half of the notice; what
// may not be is stopped by the lender at the end, told with the reason, and kept for a while.
// The managers of both sites are killed again and again meanwhile.
func TestVEEsThatCannotLeaveLive(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		again, never := s.away("web-1", vee.RestartInPlace), s.away("web-2", vee.RestartNever)
		data := s.away("db-1", vee.RestartInPlace, vee.Disk{Name: "data", Size: vee.GiB, Persistent: true})
		a, b := s.Sites["alpha"], s.Sites["beta"]
		a.Proxy(false) // no VEE comes through
		s.end("beta")
		for range 12 {
			time.Sleep(10 * time.Second)
			for _, x := range []*Site{a, b} {
				x.Stop()
				s.must(x.Start())
			}
			for _, id := range []vee.ID{again, never, data} {
				if n := s.places(id); n > 1 {
					t.Fatalf("VEE %s runs at %d places", id, n)
				}
			}
		}
		s.until("one was started anew at home", func() bool { return s.at(again) == "alpha" })
		s.settled(again)
		for _, id := range []vee.ID{never, data} { // data: nothing is left behind
			s.until("the others were stopped", func() bool {
				v := s.get(id)
				return s.places(id) == 0 && v.State == vee.Defined && strings.Contains(v.Error, "its disks stay there until")
			})
		}
		there, err := b.Manager().GetVEE(b.As(), never)
		if err != nil || there.Evicted == nil || there.State != vee.Defined || !strings.Contains(there.Evicted.Why, "was ended by site beta (we part)") {
			t.Errorf("at the lender: %+v, %v", there, err)
		}
		outs, err := a.Manager().UpdateState(a.As(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{never}}, Action: vee.Activate})
		s.must(err)
		time.Sleep(time.Minute)
		if s.places(never) != 0 {
			t.Errorf("it runs again: %+v", outs)
		}
	})
}

// Parted before the notice is over: the lender stops what is there by its own clock, and its
// own site starts it elsewhere when it knows of that, and not before.
func TestPartedDuringTheNotice(t *testing.T) {
	for name, clock := range map[string]time.Duration{"clocks agree": 0, "the borrower's is slow": -20 * time.Second, "the borrower's is fast": 20 * time.Second} {
		t.Run(name, func(t *testing.T) {
			stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
				id := s.away("web-1", vee.RestartInPlace)
				a, b := s.Sites["alpha"], s.Sites["beta"]
				a.Clock = clock
				b.Hosts[0].Latency = func(op sim.Op) time.Duration {
					if op == sim.Copy {
						return time.Minute
					}
					return 0
				}
				s.end("alpha")
				time.Sleep(5 * time.Second)
				cut(s, between)
				time.Sleep(50 * time.Second)
				if !b.Hosts[0].Runs(id) {
					t.Error("it was stopped before its time")
				}
				s.until("the lender has stopped it", func() bool { return s.places(id) == 0 })
				if v := s.get(id); v.State == vee.Active && v.Phase == vee.PhaseRunning {
					t.Errorf("its own site guesses: %+v", v)
				}
				time.Sleep(10 * time.Minute)
				if n := s.places(id); n != 0 {
					t.Errorf("it runs at %d places, though nobody knows", n)
				}
				cut(s, nil)
				s.until("it was started at home", func() bool { return s.at(id) == "alpha" })
				s.settled(id)
			})
		})
	}
}

// Both agreements of two sites that lend to each other end at once: each takes its own home.
func TestBothEndAtOnce(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		id := s.away("web-1", vee.RestartInPlace)
		b := s.Sites["beta"]
		out, err := b.m.InitializeVEEs(b.As(), vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: vee.Descriptor{
			Name: "db", Customer: "bolt", GroupID: "db", VCPUs: 1, Memory: 64 * vee.MiB, Where: vee.Where{Sites: []string{"alpha"}}}}}})
		s.must(err)
		other := out.VEEs[0].ID
		_, err = b.m.SubmitVEEs(b.As(), []vee.ID{other})
		s.must(err)
		s.until("beta's runs at alpha", func() bool { return s.at(other) == "alpha" })
		s.End("alpha", "beta", "alpha")
		s.end("beta")
		s.until("alpha's has come home", func() bool { return s.at(id) == "alpha" })
		s.settled(id)
		s.until("beta's was stopped: it may run at alpha alone", func() bool { return s.places(other) == 0 })
		v, err := b.m.GetVEE(b.As(), other)
		s.must(err)
		s.until("it says why", func() bool {
			v, err = b.m.GetVEE(b.As(), other)
			return err == nil && strings.Contains(v.Error, "it may run at alpha alone") || strings.Contains(v.Error, "was ended by")
		})
		if _, err := b.m.InitializeVEEs(b.As(), vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: vee.Descriptor{
			Name: "db2", Customer: "bolt", GroupID: "db", VCPUs: 1, Memory: 64 * vee.MiB, Where: vee.Where{Sites: []string{"alpha"}}}}}}); !fault.Has(err, fault.NoResources) {
			t.Errorf("a new one: %v", err)
		}
	})
}

// What was stopped and has no other place keeps its disks at the lender, says why it stands
// still, and goes on there when the sites agree again.
func TestEvictedUntilTheyAgreeAgain(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		a, b := s.Sites["alpha"], s.Sites["beta"]
		out, err := a.m.InitializeVEEs(a.As(), vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: vee.Descriptor{
			Name: "web", Customer: "acme", GroupID: "shop", VCPUs: 1, Memory: 64 * vee.MiB, Where: vee.Where{Sites: []string{"beta"}}}}}})
		s.must(err)
		id := out.VEEs[0].ID
		_, err = a.m.SubmitVEEs(a.As(), []vee.ID{id})
		s.must(err)
		s.until("it runs", func() bool { return s.at(id) == "beta" })
		s.end("beta")
		s.until("it was stopped", func() bool { return s.places(id) == 0 })
		time.Sleep(time.Hour)
		there, err := b.m.GetVEE(b.As(), id)
		if v := s.get(id); err != nil || there.Evicted == nil || there.State != vee.Defined || v.Host != "@beta" || !strings.Contains(v.Error, "its disks stay there until") {
			t.Errorf("here %+v\nthere %+v, %v", v, there, err)
		}
		s.Renew("beta", "alpha")
		s.until("it goes on", func() bool { return s.at(id) == "beta" && s.get(id).Error == "" })
		s.settled(id)
	})
}
