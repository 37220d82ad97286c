package veem

import (
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/rebalance"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (s *fakeSite) drain(host string, d vmi.Drain) {
	s.t.Helper()
	if _, err := s.manager().DrainHost(s.operator(), host, d); err != nil {
		s.t.Fatal(err)
	}
}

// untilHost is as wanted, which it must be within ten minutes.
func (s *fakeSite) untilHost(name, what string, ok func(vmi.Host) bool) {
	s.t.Helper()
	var h vmi.Host
	var err error
	for range 6000 {
		if h, err = s.manager().GetHost(s.operator(), name); err == nil && ok(h) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.t.Fatalf("host %s is not %s: %+v, %v", name, what, h, err)
}

func drained(h vmi.Host) bool { return h.Drained }

func (s *fakeSite) plan() vmi.Reconfiguration {
	s.t.Helper()
	r, err := s.manager().GetReconfiguration(s.operator())
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// on counts the VEEs that run at each host.
func (s *fakeSite) on() map[string]int {
	n := map[string]int{}
	list, _ := s.manager().ListVEEs(s.operator(), vmi.Filter{})
	for _, v := range list {
		if v.State == vee.Active {
			n[v.Host]++
		}
	}
	return n
}

func TestDrain(t *testing.T) {
	inSite(t, 3, func(s *fakeSite) {
		all := s.deploy(6)
		s.drain("h1", vmi.Drain{})
		s.untilHost("h1", "drained", drained)
		if n := s.on(); n["h1"] != 0 || n["h2"] != 3 || n["h3"] != 3 {
			t.Errorf("after the drain: %v", n)
		}
		for _, id := range all {
			if v := s.get(id); v.Restarts != 0 || v.State != vee.Active {
				t.Errorf("VEE %s is %s after %d restarts", id, v.State, v.Restarts)
			}
		}
		if r := s.plan(); r.Cause != "drain" || len(r.Steps) != 2 {
			t.Errorf("the plan was %+v", r)
		}
		s.untilThat(all[0], "anywhere", func(vmi.VEE) bool { return s.plan().State == vmi.ReconfigurationDone })
		if s.events.count("Drained") != 1 || s.events.count("Reconfigured") != 1 {
			t.Errorf("events: %d Drained, %d Reconfigured", s.events.count("Drained"), s.events.count("Reconfigured"))
		}
		for _, h := range s.hosts {
			if h.atMost > atOnce {
				t.Errorf("%d migrations to host %s at once", h.atMost, h.name)
			}
		}
		if _, err := s.m.SetHostState(s.operator(), "h1", vmi.HostOn); err != nil {
			t.Fatal(err)
		}
		s.untilHost("h1", "on", func(h vmi.Host) bool { return h.State == vmi.HostOn && !h.Leaving })
	})
}

// VEEs without another place are waited for, or suspended where that was asked for.
func TestDrainWithoutRoom(t *testing.T) {
	for _, suspend := range []bool{false, true} {
		inSite(t, 2, func(s *fakeSite) {
			s.deploy(6) // of 4 at each host
			s.drain("h1", vmi.Drain{Suspend: suspend})
			if suspend {
				s.untilHost("h1", "drained", drained)
				list, _ := s.m.ListVEEs(s.operator(), vmi.Filter{State: vee.Suspended})
				if len(list) != 2 || s.on()["h2"] != 4 {
					t.Errorf("%d VEEs suspended, %v run", len(list), s.on())
				}
				return
			}
			time.Sleep(time.Minute)
			if n := s.on(); n["h2"] != 4 || n["h1"] != 2 {
				t.Errorf("%v run", n)
			}
			r := s.plan()
			if len(r.Stays) != 2 || !strings.Contains(r.Stays[0].Why, "no host takes") {
				t.Errorf("who waits: %+v", r.Stays)
			}
			list, _ := s.m.ListVEEs(s.operator(), vmi.Filter{Host: "h2"})
			s.act(vee.Destroy, list[0].ID, list[1].ID) // room for those that wait
			s.untilHost("h1", "drained", drained)
		})
	}
}

// A rule that binds VEEs together does not keep them where they are, and one that keeps
// them apart holds on the way.
func TestDrainKeepsRules(t *testing.T) {
	for _, kind := range []string{"affinity", "anti-affinity"} {
		inSite(t, 3, func(s *fakeSite) {
			in := initialize(vmi.TwoPhase, web(1), web(2))
			in.Rules = []vmi.PlacementRule{{Kind: kind, Tag: "web"}}
			out, err := s.m.InitializeVEEs(s.operator(), in)
			if err != nil {
				t.Fatal(err)
			}
			s.submit(ids(out.VEEs)...)
			for _, v := range out.VEEs {
				s.until(v.ID, vee.Active)
			}
			from := s.get(out.VEEs[0].ID).Host
			s.drain(from, vmi.Drain{})
			s.untilHost(from, "drained", drained)
			if a, b := s.get(out.VEEs[0].ID).Host, s.get(out.VEEs[1].ID).Host; (a == b) != (kind == "affinity") {
				t.Errorf("%s: on hosts %s and %s", kind, a, b)
			}
		})
	}
}

// Off: the host's agent is told to end once, and nobody takes it for lost.
func TestHostOff(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		s.deploy(6)
		s.drain("h1", vmi.Drain{Off: true})
		s.untilHost("h1", "off", func(h vmi.Host) bool { return h.State == vmi.HostOff && !h.Alive })
		time.Sleep(time.Minute)
		if h := s.host("h1"); h.powerOffs != 1 || s.events.count("HostLost") != 0 || s.events.count("HostOff") != 1 {
			t.Errorf("told to end %d times; events: %d HostLost, %d HostOff", h.powerOffs, s.events.count("HostLost"), s.events.count("HostOff"))
		}
		if n := s.on(); n["h2"] != 4 || n["h1"] != 0 {
			t.Errorf("%v run", n)
		}
		s.host("h1").set(func() { s.host("h1").down = false }) // somebody switches it on
		s.untilHost("h1", "heard again", func(h vmi.Host) bool { return h.Alive })
		time.Sleep(time.Minute)
		if h := s.host("h1"); h.powerOffs != 1 {
			t.Errorf("told to end %d times", h.powerOffs)
		}
	})
}

// While a plan is applied its destination vanishes, a migration fails, or the manager is
// killed: in the end the host is drained, and nothing ever runs twice (fakeSite.check).
func TestDrainWithFaults(t *testing.T) {
	for name, hurt := range map[string]func(*fakeSite){
		"host vanishes":   func(s *fakeSite) { s.host("h2").set(func() { s.host("h2").down = true }) },
		"migrations fail": func(s *fakeSite) { s.host("h2").set(func() { s.host("h2").failMoves = "no space left on device" }) },
		"manager killed": func(s *fakeSite) {
			s.stop()
			s.start()
		},
		"host is drained as well": func(s *fakeSite) { s.drain("h2", vmi.Drain{}) },
	} {
		t.Run(name, func(t *testing.T) {
			inSite(t, 4, func(s *fakeSite) {
				all := s.deploy(8)
				for _, h := range s.hosts {
					h.set(func() { h.slow = 5 * time.Second })
				}
				s.drain("h1", vmi.Drain{})
				s.untilThat(all[0], "on its way", func(vmi.VEE) bool {
					list, _ := s.manager().ListMigrations(s.operator())
					return len(list) > 0
				})
				hurt(s)
				s.untilHost("h1", "drained", drained)
				n := 0
				for _, h := range s.hosts {
					for _, g := range h.guests {
						if g.now == vhi.Running {
							n++
						}
					}
				}
				if n != len(all) {
					t.Errorf("%d of %d guests run", n, len(all))
				}
			})
		})
	}
}

func TestRebalance(t *testing.T) {
	inSite(t, 3, func(s *fakeSite) {
		all := s.deploy(6)
		s.drain("h1", vmi.Drain{})
		s.untilHost("h1", "drained", drained)
		if _, err := s.m.SetHostState(s.operator(), "h1", vmi.HostOn); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := s.on(); n["h1"] != 0 {
			t.Fatalf("a site without a policy moved VEEs: %v", n)
		}
		if _, err := s.m.PlanRebalance(s.operator(), vmi.Rebalance{}); !fault.Has(err, fault.Malformed) {
			t.Errorf("without a policy: %v", err)
		}
		p, err := s.m.PlanRebalance(s.operator(), vmi.Rebalance{Policy: "balance"})
		if err != nil || p.State != vmi.ReconfigurationPlanned || len(p.Steps) == 0 || p.After >= p.Before {
			t.Fatalf("planned: %+v, %v", p, err)
		}
		time.Sleep(time.Minute)
		if n := s.on(); n["h1"] != 0 {
			t.Fatalf("planning moved VEEs: %v", n)
		}
		time.Sleep(10 * time.Minute) // those that have moved have had their rest
		if _, err := s.m.Rebalance(s.operator(), vmi.Rebalance{Policy: "balance"}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.m.Rebalance(s.operator(), vmi.Rebalance{Policy: "balance"}); !fault.Has(err, fault.InUse) {
			t.Errorf("two at a time: %v", err)
		}
		s.untilThat(all[0], "rebalanced", func(vmi.VEE) bool { return s.plan().State == vmi.ReconfigurationDone })
		if n := s.on(); n["h1"] != 2 || n["h2"] != 2 || n["h3"] != 2 {
			t.Errorf("after the rebalance: %v", n)
		}
		time.Sleep(10 * time.Minute)
		if r, err := s.m.Rebalance(s.operator(), vmi.Rebalance{Policy: "consolidate"}); err != nil || r.Attempt != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		s.untilThat(all[0], "consolidated", func(vmi.VEE) bool { return s.plan().State == vmi.ReconfigurationDone })
		if n := s.on(); len(n) != 2 {
			t.Errorf("consolidated on %v", n)
		}
	})
}

// Where the site's links are known, a plan gives each migration its part, and that is what
// hosts are told.
func TestRebalanceSharesLinks(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		s.stop()
		s.cfg.Rebalancing.Link = 64 * vee.MiB
		s.start()
		all := s.deploy(2)
		p, err := s.m.Rebalance(s.operator(), vmi.Rebalance{Policy: "consolidate"})
		if err != nil || len(p.Steps) != 1 {
			t.Fatalf("%+v, %v", p, err)
		}
		if b := p.Steps[0].Bandwidth; b <= 0 || b > 64*vee.MiB {
			t.Errorf("held to %v of 64 MiB a second", b)
		}
		s.untilThat(all[0], "consolidated", func(vmi.VEE) bool { return s.plan().State == vmi.ReconfigurationDone })
		done, err := s.m.ListMigrations(s.operator())
		if err != nil || len(done) != 1 || done[0].Bandwidth != p.Steps[0].Bandwidth {
			t.Errorf("migrations %+v, %v: want one, held to %v", done, err, p.Steps[0].Bandwidth)
		}
	})
}

// A site with a policy moves by itself, and then no more: nothing churns.
func TestPolicyDoesNotChurn(t *testing.T) {
	for _, policy := range rebalance.Policies {
		inSite(t, 3, func(s *fakeSite) {
			s.stop()
			s.cfg.Rebalancing.Policy = policy
			s.start()
			s.deploy(5)
			time.Sleep(3 * time.Hour)
			plans := s.events.count("Reconfiguring")
			if policy == rebalance.Consolidate && len(s.on()) != 2 {
				t.Errorf("%s: %v", policy, s.on())
			}
			time.Sleep(10 * time.Hour)
			if n := s.events.count("Reconfiguring"); n != plans || n > 2 {
				t.Errorf("%s: %d plans in three hours, %d in thirteen", policy, plans, n)
			}
		})
	}
}

func TestStopReconfiguration(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		s.deploy(4)
		for _, h := range s.hosts {
			h.set(func() { h.slow = 5 * time.Second })
		}
		if _, err := s.m.StopReconfiguration(s.operator()); !fault.Has(err, fault.WrongState) {
			t.Errorf("nothing to stop: %v", err)
		}
		r, err := s.m.Rebalance(s.operator(), vmi.Rebalance{Policy: "consolidate"})
		if err != nil || len(r.Steps) != 2 {
			t.Fatalf("%+v, %v", r, err)
		}
		if r, err = s.m.StopReconfiguration(s.operator()); err != nil || r.State != vmi.ReconfigurationStopped || r.Note != "by op" {
			t.Errorf("stopped: %+v, %v", r, err)
		}
		time.Sleep(10 * time.Minute)
		if again := s.plan(); again.ID != r.ID || again.State != vmi.ReconfigurationStopped {
			t.Errorf("it went on: %+v", again)
		}
	})
}

func TestReconfigureDenied(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		acme := s.provider("acme")
		_, e1 := s.m.DrainHost(acme, "h1", vmi.Drain{})
		_, e2 := s.m.PlanRebalance(acme, vmi.Rebalance{Policy: "balance"})
		_, e3 := s.m.Rebalance(acme, vmi.Rebalance{Policy: "balance"})
		_, e4 := s.m.GetReconfiguration(acme)
		_, e5 := s.m.StopReconfiguration(acme)
		for i, err := range []error{e1, e2, e3, e4, e5} {
			if !fault.Has(err, fault.Denied) {
				t.Errorf("call %d: %v", i, err)
			}
		}
		if _, err := s.m.DrainHost(s.operator(), "nowhere", vmi.Drain{}); !fault.Has(err, fault.NotFound) {
			t.Errorf("a host that there is not: %v", err)
		}
		if _, err := s.m.Rebalance(s.operator(), vmi.Rebalance{Policy: "feng-shui"}); !fault.Has(err, fault.Malformed) {
			t.Errorf("a policy that there is not: %v", err)
		}
	})
}
