package veem

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func TestLifeOfAVEE(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		out, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, web(1)))
		if err != nil {
			t.Fatal(err)
		}
		v := out.VEEs[0]
		n := v.Descriptor.NICs[0]
		if v.State != vee.Defined || v.Host == "" || v.ReservedUntil == nil || v.Epoch != (vee.Epoch{Generation: 1, Term: 1}) ||
			n.Address != "10.80.128.1/16" || n.Gateway != "10.80.0.1" || n.MAC != "02:52:0a:50:80:01" || v.Descriptor.Disks[0].Size != vee.GiB {
			t.Fatalf("initialized: %+v", v)
		}
		before := time.Now()
		s.submit(v.ID)
		synctest.Wait()
		if a := s.host(v.Host).guests[v.ID]; a == nil || time.Since(before) != 0 {
			t.Fatal("the host was not told at once")
		}
		v = s.untilThat(v.ID, "ready", func(v vmi.VEE) bool { return v.GuestReady })
		if v.State != vee.Active || v.Phase != vee.PhaseRunning {
			t.Errorf("running: %+v", v)
		}
		if n := s.store.writes["vee/"+string(v.ID)]; n > 5 {
			t.Errorf("%d writes for a deployment: want at most 5", n)
		}
		for _, step := range []struct {
			do   vee.Action
			want vee.State
			is   vhi.Power
		}{
			{vee.Pause, vee.Paused, vhi.Paused}, {vee.Activate, vee.Active, vhi.Running}, {vee.Suspend, vee.Suspended, vhi.Suspended},
			{vee.Activate, vee.Active, vhi.Running}, {vee.Shutdown, vee.Defined, vhi.Stopped}, {vee.Activate, vee.Active, vhi.Running},
			{vee.Pause, vee.Paused, vhi.Paused}, {vee.Suspend, vee.Suspended, vhi.Suspended}, {vee.Shutdown, vee.Defined, vhi.Stopped},
		} {
			if o := s.act(step.do, v.ID)[0]; !o.OK {
				t.Fatalf("%s: %+v", step.do, o)
			}
			if v := s.get(v.ID); v.State != step.want || s.host(v.Host).power(v.ID) != step.is {
				t.Fatalf("after %s: %s, on its host %s", step.do, v.State, s.host(v.Host).power(v.ID))
			}
		}
		if o := s.act(vee.Pause, v.ID)[0]; o.OK || o.Code != string(fault.WrongState) || !strings.Contains(o.Detail, "PAUSE is not possible in state DEFINED") {
			t.Errorf("PAUSE of a defined one: %+v", o)
		}
		if o := s.act(vee.Destroy, v.ID)[0]; !o.OK || s.host(v.Host).power(v.ID) != vhi.Absent {
			t.Errorf("destroy: %+v", o)
		}
		if o := s.act(vee.Destroy, v.ID)[0]; !o.OK {
			t.Errorf("destroyed again: %+v", o)
		}
		if list, _ := s.m.ListVEEs(s.operator(), vmi.Filter{}); len(list) != 0 {
			t.Errorf("still listed: %+v", list)
		}
		if list, _ := s.m.ListVEEs(s.operator(), vmi.Filter{Destroyed: true}); len(list) != 1 {
			t.Errorf("no tombstone: %+v", list)
		}
		time.Sleep(time.Hour + time.Second)
		if _, err := s.m.GetVEE(s.operator(), v.ID); !fault.Has(err, fault.NotFound) {
			t.Errorf("tombstone after an hour: %v", err)
		}
	})
}

func TestTwoPhaseIsAllOrNone(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		in := initialize(vmi.TwoPhase, web(1))
		in.VEEs[0].Count = 9 // 8 have room
		_, err := s.m.InitializeVEEs(s.operator(), in)
		if !fault.Has(err, fault.NoResources) || !strings.Contains(err.Error(), "vCPU needed") {
			t.Errorf("nine: %v", err)
		}
		if hosts, _ := s.m.ListHosts(s.operator()); hosts[0].Used != (vee.Resources{}) || hosts[0].VEEs != 0 {
			t.Errorf("something stayed: %+v", hosts)
		}
		in.VEEs[0].Count = 8
		out, err := s.m.InitializeVEEs(s.operator(), in)
		if err != nil {
			t.Fatal(err)
		}
		if v := out.VEEs[7]; v.Descriptor.Name != "web-1-8" || v.Host == "" {
			t.Errorf("the eighth: %+v", v)
		}
		plan, err := s.m.Plan(s.operator(), initialize(vmi.TwoPhase, web(99)))
		if err != nil || plan[0].Host != "" || !strings.Contains(plan[0].Why, "1 vCPU needed and 0 vCPU free") {
			t.Errorf("plan: %+v, %v", plan, err)
		}
	})
}

func TestReservationExpires(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		in := initialize(vmi.TwoPhase, web(1))
		in.VEEs[0].Count, in.HoldMS = 4, 60_000
		out, err := s.m.InitializeVEEs(s.operator(), in)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		if v := s.get(out.VEEs[0].ID); v.Host == "" {
			t.Fatal("gave up its place too early")
		}
		s.stop() // the hour is kept by the record, not by a process
		s.start()
		time.Sleep(2 * time.Second)
		v := s.get(out.VEEs[0].ID)
		if v.Host != "" || v.State != vee.Defined || v.ReservedUntil != nil {
			t.Fatalf("after its time: %+v", v)
		}
		if h, _ := s.m.GetHost(s.operator(), "h1"); h.Used != (vee.Resources{}) {
			t.Errorf("still used: %+v", h.Used)
		}
		// Somebody else takes the room; the submit then says so, and works when there is some.
		other := web(9)
		other.VCPUs = 4
		big, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, other))
		if err != nil {
			t.Fatal(err)
		}
		outs, err := s.m.SubmitVEEs(s.operator(), []vee.ID{v.ID})
		if err != nil || outs[0].OK || outs[0].Code != string(fault.NoResources) {
			t.Errorf("submit without room: %+v, %v", outs, err)
		}
		s.act(vee.Destroy, big.VEEs[0].ID)
		s.submit(v.ID)
		s.until(v.ID, vee.Active)
	})
}

func TestBestEffortWaitsForRoom(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		running := s.deploy(4)
		d := web(9)
		out, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.BestEffort, d))
		if err != nil {
			t.Fatal(err)
		}
		id := out.VEEs[0].ID
		if out.VEEs[0].State != vee.Initial {
			t.Fatalf("initialized: %+v", out.VEEs[0])
		}
		outs, err := s.m.SubmitVEEs(s.operator(), []vee.ID{id})
		if err != nil || !outs[0].OK || outs[0].Detail != "will be deployed" {
			t.Errorf("submit: %+v, %v", outs, err)
		}
		time.Sleep(time.Minute)
		if v := s.get(id); v.State != vee.Initial || !strings.Contains(v.Error, "1 vCPU needed and 0 vCPU free") || s.events.count("NoPlace") != 1 {
			t.Errorf("waiting: %+v, %d events", v, s.events.count("NoPlace"))
		}
		s.act(vee.Suspend, running[0])
		synctest.Wait()
		if v := s.get(id); v.Host == "" {
			t.Errorf("not placed at once when there was room: %+v", v)
		}
		s.until(id, vee.Active)
		if o := s.act(vee.Activate, running[0])[0]; o.OK || o.Code != string(fault.NoResources) {
			t.Errorf("woken without room: %+v", o)
		}
		unsubmitted, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.BestEffort, web(10)))
		if err != nil {
			t.Fatal(err)
		}
		s.act(vee.Destroy, running[1])
		s.until(unsubmitted.VEEs[0].ID, vee.Defined)
		time.Sleep(time.Hour)
		if v := s.get(unsubmitted.VEEs[0].ID); v.State != vee.Defined || v.Host == "" {
			t.Errorf("without a submit: %+v", v)
		}
	})
}

func TestAntiAffinityHoldsAcrossCalls(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		in := initialize(vmi.TwoPhase, web(1))
		in.Rules = []vmi.PlacementRule{{Kind: "anti-affinity", Tag: "web"}}
		a, err := s.m.InitializeVEEs(s.operator(), in)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, web(2))) // the rule is known from the first call
		if err != nil || a.VEEs[0].Host == b.VEEs[0].Host {
			t.Fatalf("second: %v, %+v", err, b)
		}
		if _, err = s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, web(3))); !fault.Has(err, fault.NoResources) || !strings.Contains(err.Error(), "distinct hosts") {
			t.Errorf("third: %v", err)
		}
	})
}

func TestIdempotency(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		in := initialize(vmi.TwoPhase, web(1), web(2))
		in.IdempotencyKey = "call-1"
		first, err := s.m.InitializeVEEs(s.operator(), in)
		if err != nil {
			t.Fatal(err)
		}
		s.stop()
		s.start()
		again, err := s.manager().InitializeVEEs(s.operator(), in)
		if err != nil || !slices.Equal(ids(first.VEEs), ids(again.VEEs)) {
			t.Errorf("the same call again: %v, %v, %v", ids(first.VEEs), ids(again.VEEs), err)
		}
		other := initialize(vmi.TwoPhase, web(3))
		other.IdempotencyKey = "call-1"
		if _, err := s.m.InitializeVEEs(s.operator(), other); !fault.Has(err, fault.Conflict) {
			t.Errorf("another call under the key: %v", err)
		}
		if _, err := s.m.InitializeVEEs(s.provider("acme"), other); err != nil {
			t.Errorf("another caller's key: %v", err)
		}
		s.submit(ids(first.VEEs)...)
		s.submit(ids(first.VEEs)...)
		s.until(first.VEEs[0].ID, vee.Active)
		u := vmi.UpdateState{Collection: vmi.Collection{IDs: ids(first.VEEs)[:1]}, Action: vee.Pause, Wait: true, IdempotencyKey: "pause-1"}
		for range 2 {
			if outs, err := s.m.UpdateState(s.operator(), u); err != nil || !outs[0].OK {
				t.Errorf("pause: %+v, %v", outs, err)
			}
		}
		time.Sleep(25 * time.Hour)
		s.m.ledger.read(func(st *state) {
			if n := len(st.receipts.rows); n != 0 {
				t.Errorf("%d receipts after a day", n)
			}
		})
	})
}

func TestOrderedListWaits(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		vs := s.deploy(3)
		outs, err := s.m.UpdateState(s.operator(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{vs[0], "alpha.zzzzzzzzzz", vs[1], vs[2]}, Ordered: true}, Action: vee.Shutdown})
		if err != nil || !outs[0].OK || outs[1].OK || outs[1].Code != string(fault.NotFound) || !outs[2].OK || !outs[3].OK {
			t.Errorf("outcomes: %+v, %v", outs, err)
		}
		stopped := time.Time{}
		for _, id := range vs {
			v := s.get(id)
			if v.State != vee.Defined || !v.Changed.After(stopped) {
				t.Errorf("VEE %s changed at %v to %s; the one before at %v", id, v.Changed, v.State, stopped)
			}
			stopped = v.Changed
		}
		start := time.Now()
		if outs, err = s.m.UpdateState(s.operator(), vmi.UpdateState{Collection: vmi.Collection{IDs: vs}, Action: vee.Activate}); err != nil || !outs[2].OK || time.Since(start) != 0 {
			t.Errorf("a set without waiting: %+v, %v after %v", outs, err, time.Since(start))
		}
	})
}

func TestFailedSaveRunsOn(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		id := s.deploy(1)[0]
		h := s.hosts[0]
		h.set(func() { h.failSave = true })
		o := s.act(vee.Suspend, id)[0]
		if o.OK || !strings.Contains(o.Detail, "no space left") || !strings.Contains(o.Detail, "stays ACTIVE") {
			t.Errorf("outcome: %+v", o)
		}
		time.Sleep(time.Minute)
		v := s.get(id)
		if v.State != vee.Active || v.Target != vee.Active || !strings.Contains(v.Error, "no space left") || h.power(id) != vhi.Running {
			t.Errorf("afterwards: %+v", v)
		}
		h.set(func() { h.failSave = false })
		if o := s.act(vee.Suspend, id)[0]; !o.OK || s.get(id).Error != "" {
			t.Errorf("again: %+v, error %q", o, s.get(id).Error)
		}
	})
}

func TestGuestExits(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		never := web(2)
		never.Restart = vee.RestartNever
		out, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, web(1), never))
		if err != nil {
			t.Fatal(err)
		}
		a, b := out.VEEs[0].ID, out.VEEs[1].ID
		s.submit(a, b)
		s.until(a, vee.Active)
		s.until(b, vee.Active)
		h := s.hosts[0]
		h.set(func() {
			for _, g := range h.guests {
				g.now, g.ready = vhi.Failed, false
			}
		})
		v := s.untilThat(a, "restarted", func(v vmi.VEE) bool { return v.Restarts == 1 && v.State == vee.Active })
		synctest.Wait() // events come after what they tell of
		if v.Target != vee.Active || s.events.count("GuestRestarted") != 1 {
			t.Errorf("restarted: %+v", v)
		}
		v = s.untilThat(b, "failed", func(v vmi.VEE) bool { return v.Phase == vee.PhaseFailed })
		time.Sleep(time.Minute)
		if v = s.get(b); v.Phase != vee.PhaseFailed || v.State != vee.Defined || v.Target != vee.Defined || v.Error == "" || s.events.count("GuestExited") != 1 {
			t.Errorf("failed: %+v", v)
		}
		if o := s.act(vee.Activate, b)[0]; !o.OK || s.get(b).Error != "" {
			t.Errorf("activated again: %+v, %+v", o, s.get(b))
		}
	})
}

func TestHostLostAndBack(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		id := s.deploy(1)[0]
		if _, err := s.m.PutAccessPoint(s.operator(), vmi.AccessPoint{Name: "web", Customer: "acme", GroupID: "shop", Tag: "web", Port: 80}); err != nil {
			t.Fatal(err)
		}
		h := s.host(s.get(id).Host)
		h.set(func() { h.down = true })
		time.Sleep(25 * time.Second)
		v := s.get(id)
		if v.Phase != vee.PhaseUnknown || v.State != vee.Active || v.Host != h.name || s.events.count("HostLost") != 1 || len(s.points.get("shop/web")) != 0 {
			t.Errorf("lost: %+v, backends %v", v, s.points.get("shop/web"))
		}
		if host, _ := s.m.GetHost(s.operator(), h.name); host.Alive || host.VEEs != 1 {
			t.Errorf("host: %+v", host)
		}
		if err := s.m.RemoveHost(s.operator(), h.name); !fault.Has(err, fault.InUse) {
			t.Errorf("removed: %v", err)
		}
		writes := s.store.writes["vee/"+string(id)]
		time.Sleep(time.Hour)
		if s.store.writes["vee/"+string(id)] != writes {
			t.Error("written while nothing happened")
		}
		h.set(func() { h.down = false })
		time.Sleep(6 * time.Second)
		if v := s.get(id); v.Phase != vee.PhaseRunning || !v.GuestReady || len(s.points.get("shop/web")) != 1 {
			t.Errorf("back: %+v", v)
		}
		// It will not come back this time: destroying waits for it, until somebody says so.
		h.set(func() { h.down = true })
		time.Sleep(25 * time.Second)
		if _, err := s.m.UpdateState(s.operator(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: vee.Destroy}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if v := s.get(id); v.State == vee.Destroyed {
			t.Errorf("destroyed without its host's word: %+v", v)
		}
		if err := s.m.RemoveHost(s.operator(), h.name); err != nil {
			t.Fatal(err)
		}
		s.until(id, vee.Destroyed)
		// Let in again, it is told to remove what it still runs.
		h.set(func() { h.down = false })
		time.Sleep(10 * time.Second)
		if _, err := s.m.GetHost(s.operator(), h.name); !fault.Has(err, fault.NotFound) || h.power(id) != vhi.Running {
			t.Errorf("a removed host was let in: %v", err)
		}
		if err := s.m.HostJoined(context.Background(), h.name); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if h.power(id) != vhi.Absent || s.events.count("Reaped") != 1 {
			t.Errorf("still there: %s, %d reaped", h.power(id), s.events.count("Reaped"))
		}
	})
}

// TestGone: a host that has forgotten a VEE.
func TestGone(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		never, kept := web(2), web(3)
		never.Restart = vee.RestartNever
		out, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, web(1), never, kept))
		if err != nil {
			t.Fatal(err)
		}
		vs := ids(out.VEEs)
		s.submit(vs...)
		for _, id := range vs {
			s.until(id, vee.Active)
		}
		s.act(vee.Suspend, vs[2])
		h := s.hosts[0]
		h.set(func() { clear(h.guests) })
		s.untilThat(vs[0], "restarted", func(v vmi.VEE) bool { return v.State == vee.Active && h.power(vs[0]) == vhi.Running })
		time.Sleep(10 * time.Second)
		if s.events.count("Unknown") != 3 {
			t.Errorf("%d were unknown", s.events.count("Unknown"))
		}
		for _, id := range vs[1:] {
			if v := s.get(id); v.State != vee.Defined || v.Phase != vee.PhaseFailed || v.Error == "" || h.power(id) == vhi.Running {
				t.Errorf("%+v", v)
			}
		}
		if o := s.act(vee.Destroy, vs...); !o[0].OK || !o[1].OK || !o[2].OK {
			t.Errorf("destroy: %+v", o)
		}
	})
}

func TestReapOnlyOwnGeneration(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		h := s.hosts[0]
		stray := func(id vee.ID, g uint64) {
			h.set(func() {
				h.guests[id] = &fakeGuest{now: vhi.Running, want: vhi.Assignment{VEE: id, Epoch: vee.Epoch{Generation: g, Term: 3}, Seq: 9, Power: vhi.Running}}
			})
		}
		stray("alpha.aaaaaaaaaa", 1)
		time.Sleep(10 * time.Second)
		if h.power("alpha.aaaaaaaaaa") != vhi.Absent || h.guests["alpha.aaaaaaaaaa"].want.Epoch != (vee.Epoch{Generation: 1, Term: 4}) {
			t.Errorf("not reaped: %+v", h.guests["alpha.aaaaaaaaaa"].want)
		}
		keep := s.deploy(1)[0]
		// The record is restored from a backup: what it does not know is not its to kill.
		s.stop()
		s.store.gen = 2
		stray("alpha.bbbbbbbbbb", 1)
		s.start()
		time.Sleep(time.Minute)
		if h.power("alpha.bbbbbbbbbb") != vhi.Running || s.events.count("Unowned") != 1 {
			t.Errorf("a VEE of generation 1 was reaped by generation 2 (%d events)", s.events.count("Unowned"))
		}
		if v := s.get(keep); v.Phase != vee.PhaseRunning || h.guests[keep].want.Epoch.Generation != 2 {
			t.Errorf("known VEE: %+v, host has %v", v, h.guests[keep].want.Epoch)
		}
		// An older copy of the record is started: it has no say.
		s.stop()
		s.store.gen = 1
		s.start()
		stray("alpha.cccccccccc", 1)
		time.Sleep(time.Minute)
		if h.power("alpha.cccccccccc") != vhi.Running || h.power(keep) != vhi.Running {
			t.Error("an old copy of the record was obeyed")
		}
		if host, _ := s.m.GetHost(s.operator(), "h1"); host.Alive {
			t.Error("an old copy of the record vouches for a host")
		}
	})
}

func TestAccessPoints(t *testing.T) {
	inSite(t, 2, func(s *fakeSite) {
		vs := s.deploy(2)
		a, err := s.m.PutAccessPoint(s.provider("acme"), vmi.AccessPoint{Name: "web", GroupID: "shop", Tag: "web", Port: 80, Scheme: "http"})
		if err != nil || a.Address == "" || a.Customer != "acme" {
			t.Fatalf("put: %+v, %v", a, err)
		}
		for _, id := range vs {
			s.untilThat(id, "ready", func(v vmi.VEE) bool { return v.GuestReady })
		}
		synctest.Wait()
		want := []netip.AddrPort{netip.MustParseAddrPort("10.80.128.1:80"), netip.MustParseAddrPort("10.80.128.2:80")}
		if got := s.points.get("shop/web"); !slices.Equal(got, want) {
			t.Errorf("backends %v, want %v", got, want)
		}
		if again, err := s.m.PutAccessPoint(s.provider("acme"), vmi.AccessPoint{Name: "web", GroupID: "shop", Tag: "web", Port: 80, Scheme: "http"}); err != nil || again.Address != a.Address || again.Backends != 2 {
			t.Errorf("put again: %+v, %v", again, err)
		}
		for _, ctx := range []string{"evil"} {
			if _, err := s.m.PutAccessPoint(s.provider(ctx), vmi.AccessPoint{Name: "web", GroupID: "shop", Port: 80}); !fault.Has(err, fault.Denied) {
				t.Errorf("taken over: %v", err)
			}
			if err := s.m.DeleteAccessPoint(s.provider(ctx), "shop", "web"); !fault.Has(err, fault.Denied) {
				t.Errorf("deleted: %v", err)
			}
			if list, err := s.m.ListAccessPoints(s.provider(ctx), ""); len(list) != 0 || err != nil {
				t.Errorf("seen: %+v, %v", list, err)
			}
		}
		drained, err := s.m.PutAccessPoint(s.provider("acme"), vmi.AccessPoint{Name: "web", GroupID: "shop", Tag: "web", Port: 80, Scheme: "http", Draining: vs[:1]})
		if err != nil || drained.Backends != 1 || len(drained.Serving) != 2 || !drained.Serving[0].Draining || drained.Serving[0].Connections != 1 || drained.Serving[0].VEE != vs[0] {
			t.Errorf("with one being drained: %+v, %v", drained, err)
		}
		s.m.BackendChanged("shop/web", plan.BackendState{Backend: plan.Backend{VEE: vs[1]}, Why: "answers /health with 500"})
		if s.events.count("BackendIll") != 1 {
			t.Error("no event says that a backend is ill")
		}
		s.act(vee.Pause, vs[0])
		if got := s.points.get("shop/web"); !slices.Equal(got, want[1:]) {
			t.Errorf("with one paused: %v", got)
		}
		s.stop()
		_ = s.points.Remove("shop/web")
		s.points.swept = nil
		s.start()
		time.Sleep(10 * time.Second)
		if !slices.Equal(s.points.swept, []int{1}) {
			t.Errorf("after a restart the balancer was swept %v times, want once, when it knew the one point", s.points.swept)
		}
		if list, _ := s.m.ListAccessPoints(s.operator(), "shop"); len(list) != 1 || list[0].Address != a.Address || list[0].Backends != 1 || len(s.points.get("shop/web")) != 1 {
			t.Errorf("after a restart: %+v, %v", list, s.points.get("shop/web"))
		}
		if err := s.m.DeleteAccessPoint(s.provider("acme"), "shop", "web"); err != nil || s.points.get("shop/web") != nil {
			t.Errorf("delete: %v", err)
		}
		if err := s.m.DeleteAccessPoint(s.provider("acme"), "shop", "web"); !fault.Has(err, fault.NotFound) {
			t.Errorf("delete again: %v", err)
		}
	})
}

func TestWatch(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		old := s.deploy(1)[0]
		ch, err := s.m.WatchVEEs(s.provider("acme"), vmi.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		if c := <-ch; c.VEE == nil || c.VEE.ID != old {
			t.Errorf("first: %+v", c)
		}
		if c := <-ch; !c.Synced {
			t.Errorf("second: %+v", c)
		}
		foreign := web(1)
		foreign.Customer, foreign.GroupID = "other", "theirs"
		if _, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, foreign)); err != nil {
			t.Fatal(err)
		}
		s.act(vee.Destroy, old) // nobody reads: the watcher must not hold this up
		var last vmi.Change
		for c := range ch {
			if c.VEE != nil && c.VEE.Descriptor.Customer != "acme" {
				t.Errorf("sees %+v", c.VEE)
			}
			if last = c; c.Purged != "" {
				break
			}
		}
		if last.Purged != old {
			t.Errorf("last: %+v", last)
		}
		s.stop()
		for range ch {
		}
	})
}

func TestDenied(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		id := s.deploy(1)[0]
		evil := s.provider("evil")
		if _, err := s.m.GetVEE(evil, id); !fault.Has(err, fault.Denied) {
			t.Errorf("get: %v", err)
		}
		if list, err := s.m.ListVEEs(evil, vmi.Filter{Destroyed: true}); err != nil || len(list) != 0 {
			t.Errorf("list: %+v, %v", list, err)
		}
		if outs, err := s.m.SubmitVEEs(evil, []vee.ID{id}); err != nil || outs[0].Code != string(fault.Denied) {
			t.Errorf("submit: %+v, %v", outs, err)
		}
		if outs, err := s.m.UpdateState(evil, vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: vee.Destroy}); err != nil || outs[0].Code != string(fault.Denied) {
			t.Errorf("destroy: %+v, %v", outs, err)
		}
		if _, err := s.m.Console(evil, id); !fault.Has(err, fault.Denied) {
			t.Errorf("console: %v", err)
		}
		if _, err := s.m.InitializeVEEs(evil, initialize(vmi.BestEffort, web(5))); !fault.Has(err, fault.Denied) {
			t.Errorf("initialize for acme: %v", err)
		}
		if _, err := s.m.ListHosts(evil); !fault.Has(err, fault.Denied) {
			t.Errorf("hosts: %v", err)
		}
		if _, err := s.m.ListVEEs(context.Background(), vmi.Filter{}); !fault.Has(err, fault.Denied) {
			t.Errorf("nobody lists: %v", err)
		}
		if _, err := s.m.Renew(evil, vhi.Renewal{Report: vhi.HostReport{Host: "h1"}}); !fault.Has(err, fault.Denied) {
			t.Errorf("renew: %v", err)
		}
		foreign := vee.ID("beta.aaaaaaaaaa")
		if _, err := s.m.GetVEE(s.operator(), foreign); !fault.Has(err, fault.NotFound) {
			t.Errorf("foreign: %v", err)
		}
		if outs, _ := s.m.SubmitVEEs(s.operator(), []vee.ID{foreign}); outs[0].Code != string(fault.NotFound) {
			t.Errorf("submit foreign: %+v", outs)
		}
		c, err := s.m.Console(s.provider("acme"), id)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

func TestStoreFull(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		id := s.deploy(1)[0]
		full := fault.New(fault.StoreFull, "write: the site's record of truth has reached its quota")
		s.store.mu.Lock()
		s.store.fault = func([]Op) (error, error) { return full, nil }
		s.store.mu.Unlock()
		if _, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, web(2))); !fault.Has(err, fault.StoreFull) || fault.From(err).NextStep() == "" {
			t.Errorf("initialize: %v", err)
		}
		if _, err := s.m.UpdateState(s.operator(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: vee.Pause}); !fault.Has(err, fault.StoreFull) {
			t.Errorf("pause: %v", err)
		}
		time.Sleep(time.Minute)
		if v := s.get(id); v.State != vee.Active || v.Target != vee.Active {
			t.Errorf("the rest does not go on: %+v", v)
		}
		s.store.mu.Lock()
		s.store.fault = nil
		s.store.mu.Unlock()
		if o := s.act(vee.Pause, id)[0]; !o.OK {
			t.Errorf("with room again: %+v", o)
		}
	})
}

// TestLargeCall makes more VEEs than one transaction takes, and cuts it off in the middle.
func TestLargeCall(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		in := initialize(vmi.BestEffort, web(1))
		in.VEEs[0].Count, in.IdempotencyKey = 1000, "big"
		n := 0
		s.store.mu.Lock()
		s.store.fault = func([]Op) (error, error) {
			if n++; n > 4 {
				return fault.New(fault.Unavailable, "no leader"), nil
			}
			return nil, nil
		}
		s.store.mu.Unlock()
		if _, err := s.m.InitializeVEEs(s.operator(), in); !fault.Has(err, fault.Unavailable) {
			t.Fatalf("cut off: %v", err)
		}
		s.stop()
		if len(s.store.rows) < 300 {
			t.Fatalf("%d rows: nothing was cut off", len(s.store.rows))
		}
		s.store.fault = nil
		s.start()
		if list, _ := s.m.ListVEEs(s.operator(), vmi.Filter{}); len(list) != 0 {
			t.Fatalf("%d VEEs of a call that failed", len(list))
		}
		out, err := s.m.InitializeVEEs(s.operator(), in)
		if err != nil || len(out.VEEs) != 1000 {
			t.Fatalf("%d VEEs, %v", len(out.VEEs), err)
		}
		seen := map[string]bool{}
		for _, v := range out.VEEs {
			seen[v.Descriptor.NICs[0].Address] = true
		}
		if len(seen) != 1000 {
			t.Errorf("%d addresses", len(seen))
		}
		s.store.mu.Lock()
		defer s.store.mu.Unlock()
		s.m.ledger.read(func(st *state) {
			if got, want := st.receipts.versions["operator/op/big"], s.store.rows["vee-call/operator/op/big"].Version; got != want {
				t.Errorf("memory has version %d of the receipt, the store %d", got, want)
			}
		})
	})
}

// TestUnknownOutcome: a write that failed and has happened after all.
func TestUnknownOutcome(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		in := initialize(vmi.TwoPhase, web(1))
		in.IdempotencyKey = "k"
		s.store.mu.Lock()
		s.store.fault = func([]Op) (error, error) { return nil, fault.New(fault.Timeout, "no answer in time") }
		s.store.mu.Unlock()
		if _, err := s.m.InitializeVEEs(s.operator(), in); !fault.Has(err, fault.Timeout) {
			t.Fatal(err)
		}
		s.store.mu.Lock()
		s.store.fault = nil
		s.store.mu.Unlock()
		out, err := s.m.InitializeVEEs(s.operator(), in)
		list, _ := s.m.ListVEEs(s.operator(), vmi.Filter{})
		if err != nil || len(out.VEEs) != 1 || len(list) != 1 {
			t.Fatalf("again: %+v, %v, %d records", out, err, len(list))
		}
		s.submit(out.VEEs[0].ID)
		s.until(out.VEEs[0].ID, vee.Active)
	})
}

// TestRenewalsDoNotWrite: an idle site costs its store nothing.
func TestRenewalsDoNotWrite(t *testing.T) {
	inSite(t, 3, func(s *fakeSite) {
		s.deploy(3)
		time.Sleep(time.Minute)
		rev, assigns := s.store.rev, s.hosts[0].assigns
		time.Sleep(30 * time.Minute)
		if s.store.rev != rev || s.hosts[0].assigns != assigns {
			t.Errorf("%d writes and %d assignments in an idle half hour", s.store.rev-rev, s.hosts[0].assigns-assigns)
		}
	})
}

func TestMalformed(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		for want, change := range map[string]func(*vmi.Initialize, *vee.Descriptor){
			"model":                             func(in *vmi.Initialize, _ *vee.Descriptor) { in.Model = "THREEPHASE" },
			"holdMs":                            func(in *vmi.Initialize, _ *vee.Descriptor) { in.HoldMS = -1 },
			"vees[0].count":                     func(in *vmi.Initialize, _ *vee.Descriptor) { in.VEEs[0].Count = 1001 },
			"rules[0].kind":                     func(in *vmi.Initialize, _ *vee.Descriptor) { in.Rules = []vmi.PlacementRule{{Kind: "near"}} },
			"rules[0].tag":                      func(in *vmi.Initialize, _ *vee.Descriptor) { in.Rules = []vmi.PlacementRule{{Kind: "affinity"}} },
			"vees[0].descriptor.name":           func(_ *vmi.Initialize, d *vee.Descriptor) { d.Name = "Web 1" },
			"vees[0].descriptor.customer":       func(_ *vmi.Initialize, d *vee.Descriptor) { d.Customer = "../x" },
			"vees[0].descriptor.vcpus":          func(_ *vmi.Initialize, d *vee.Descriptor) { d.VCPUs = 257 },
			"vees[0].descriptor.memoryBytes":    func(_ *vmi.Initialize, d *vee.Descriptor) { d.Memory = -1 },
			"vees[0].descriptor.memoryMaxBytes": func(_ *vmi.Initialize, d *vee.Descriptor) { d.MemoryMax = 1 },
			"vees[0].descriptor.cpu.limitMHz":   func(_ *vmi.Initialize, d *vee.Descriptor) { d.CPU = vee.CPUShare{ReservationMHz: 2, LimitMHz: 1} },
			"vees[0].descriptor.restart":        func(_ *vmi.Initialize, d *vee.Descriptor) { d.Restart = "maybe" },
			"vees[0].descriptor.tags[0]":        func(_ *vmi.Initialize, d *vee.Descriptor) { d.Tags = []string{""} },
			"vees[0].descriptor.ports[0]":       func(_ *vmi.Initialize, d *vee.Descriptor) { d.Ports = []int{70000} },
			"vees[0].descriptor.context":        func(_ *vmi.Initialize, d *vee.Descriptor) { d.Context = map[string]string{"../etc": ""} },
			"nics[0].network":                   func(_ *vmi.Initialize, d *vee.Descriptor) { d.NICs = []vee.NIC{{Network: "mars"}} },
			"vees[0].descriptor.nics[0].address": func(_ *vmi.Initialize, d *vee.Descriptor) {
				d.NICs = []vee.NIC{{Network: "net", Address: "10.80.0.1/16"}}
			},
			"vees[0].descriptor.disks[0].name":     func(_ *vmi.Initialize, d *vee.Descriptor) { d.Disks = []vee.Disk{{Name: "a/b"}} },
			"vees[0].descriptor.disks[1].name":     func(_ *vmi.Initialize, d *vee.Descriptor) { d.Disks = append(d.Disks, d.Disks[0]) },
			"vees[0].descriptor.disks[0].image":    func(_ *vmi.Initialize, d *vee.Descriptor) { d.Disks = []vee.Disk{{Name: "a", Image: "nothing"}} },
			"vees[0].descriptor.disks[0].target":   func(_ *vmi.Initialize, d *vee.Descriptor) { d.Disks = []vee.Disk{{Name: "a", Target: "/dev/sda"}} },
			"blank disk needs a size":              func(_ *vmi.Initialize, d *vee.Descriptor) { d.Disks = []vee.Disk{{Name: "a"}} },
			"CD-ROM needs one":                     func(_ *vmi.Initialize, d *vee.Descriptor) { d.Disks = []vee.Disk{{Name: "a", CDROM: true, Size: 1}} },
			"a disk cannot be smaller":             func(_ *vmi.Initialize, d *vee.Descriptor) { d.Disks[0].Size = vee.MiB },
			"vees[0].descriptor.disks[0].sizeByte": func(_ *vmi.Initialize, d *vee.Descriptor) { d.Disks[0].Size = 1 << 62 },
			"two of the VEEs are called":           func(in *vmi.Initialize, _ *vee.Descriptor) { in.VEEs = append(in.VEEs, in.VEEs[0]) },
		} {
			d := web(1)
			in := initialize(vmi.TwoPhase, d)
			change(&in, &d)
			in.VEEs[0].Descriptor = d
			_, err := s.m.InitializeVEEs(s.operator(), in)
			if !fault.Has(err, fault.Malformed) || !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%s: got %v", want, err)
			}
		}
		raw := web(1)
		raw.Raw = map[string]string{"qemu": "-monitor stdio"}
		if _, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, raw)); !fault.Has(err, fault.Denied) {
			t.Errorf("raw data: %v", err)
		}
		s.deploy(1)
		if _, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, web(1))); !fault.Has(err, fault.Exists) {
			t.Errorf("a name that is taken: %v", err)
		}
	})
}
