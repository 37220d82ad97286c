package veem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/guard"
	leases "github.com/reservoir-cloud/reservoir/agent/lease"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// fakeGuard is a guard in virtual time, with the real keeper of leases over it. Lock order:
// the fakes' one mutex, the keeper's, the guard's.
type fakeGuard struct {
	h      *fakeHost
	keeper *leases.Keeper
	began  time.Time

	mu    sync.Mutex
	s     guard.State
	dead  bool // it does not answer
	timer *time.Timer
}

// pid that no process has.
const noPID = 1 << 30

func newFakeGuard(s *fakeSite, h *fakeHost) *fakeGuard {
	g := &fakeGuard{h: h, began: time.Now(), s: guard.State{Boot: h.name, Armed: true}}
	g.timer = time.AfterFunc(time.Hour, g.ring)
	var err error
	g.keeper, err = leases.Open(leases.Config{Dir: s.t.TempDir(), Host: h.name, Guard: g, Timings: ownership.DefaultTimings(),
		Now: func() time.Duration { return time.Since(g.began) }, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Changed: h.nudge,
		Ask: func(_ context.Context, witness, _ string, a ownership.Ask) (ownership.Lost, bool) {
			w := s.host(witness)
			if h.net() != nil || w.net() != nil {
				return ownership.Lost{}, false
			}
			return w.guard.keeper.Asked(a)
		}})
	if err != nil {
		s.t.Fatal(err)
	}
	return g
}

func (g *fakeGuard) do(f func() error) (guard.State, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return guard.State{}, errors.New("connection refused")
	}
	g.s.Now = time.Since(g.began)
	if g.s.Expired() {
		g.s.Guests = nil
	}
	err := f()
	g.timer.Stop()
	if left := g.s.Deadline - g.s.Now; left > 0 {
		g.timer.Reset(left)
	}
	out := g.s
	out.Guests = append([]guard.Guest(nil), g.s.Guests...)
	return out, err
}

func (g *fakeGuard) ring() { _, _ = g.do(func() error { return nil }); g.h.nudge() }

func (g *fakeGuard) Show(context.Context) (guard.State, error) {
	return g.do(func() error { return nil })
}
func (g *fakeGuard) Extend(_ context.Context, until time.Duration) (guard.State, error) {
	return g.do(func() error { g.s.Deadline = max(g.s.Deadline, until); return nil })
}
func (g *fakeGuard) Arm(_ context.Context, armed bool) (guard.State, error) {
	return g.do(func() error { g.s.Armed = armed; return nil })
}
func (g *fakeGuard) Hold(_ context.Context, id string, pid int) (guard.State, error) {
	return g.do(func() error {
		if g.s.Expired() {
			return guard.ErrRefused
		}
		g.s.Guests = append(g.s.Guests, guard.Guest{VEE: id, PID: pid, Start: 1})
		return nil
	})
}
func (g *fakeGuard) Kill(_ context.Context, id string) (guard.State, error) {
	return g.do(func() error { g.drop(id); return nil })
}

func (g *fakeGuard) drop(id string) {
	var left []guard.Guest
	for _, x := range g.s.Guests {
		if x.VEE != id {
			left = append(left, x)
		}
	}
	g.s.Guests = left
}

func (g *fakeGuard) holds(id vee.ID) bool {
	s, _ := g.Show(context.Background())
	for _, x := range s.Guests {
		if x.VEE == string(id) {
			return true
		}
	}
	return false
}

func (g *fakeGuard) heed(ctx context.Context, r vhi.RenewalReply) {
	if g == nil || r.Lease == nil {
		return
	}
	if again, err := g.keeper.Heed(ctx, *r.Lease); err == nil && again {
		g.h.nudge()
	}
}

// lives: its guard has not ended it.
func (h *fakeHost) lives(id vee.ID, g *fakeGuest) bool {
	return h.guard == nil || !g.want.Leased || h.guard.holds(id)
}

// mayRun has the guest held before it runs.
func (h *fakeHost) mayRun(id vee.ID, g *fakeGuest) bool {
	if !g.want.Leased || h.guard.holds(id) {
		return true
	}
	ctx := context.Background()
	if err := h.guard.keeper.May(ctx, id, g.want.Epoch); err != nil {
		return false
	}
	return h.guard.keeper.Hold(ctx, id, noPID) == nil
}

// guarded: what runs of it is under guard, or can be put there.
func (h *fakeHost) guarded(id vee.ID, g *fakeGuest) bool {
	if h.guard == nil || !g.want.Leased {
		return false
	}
	return g.now != vhi.Running && g.now != vhi.Paused || h.guard.holds(id) || h.guard.keeper.Hold(context.Background(), id, noPID) == nil
}

// inLeasedSite is inSite with hosts that have guards.
func inLeasedSite(t *testing.T, hosts int, f func(s *fakeSite)) {
	inSite(t, 0, func(s *fakeSite) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(context.Background())
		defer func() { cancel(); wg.Wait() }()
		for i := range hosts {
			h := &fakeHost{s: s, mu: &mu, name: fmt.Sprintf("h%d", i+1), capacity: vee.Resources{MilliCPU: 8000, Memory: 8 * vee.GiB, Disk: 100 * vee.GiB},
				guests: map[vee.ID]*fakeGuest{}, segments: map[string]plan.Segment{}, changed: make(chan struct{}, 1), slow: 100 * time.Millisecond, rng: rand.New(rand.NewPCG(2, uint64(i)))}
			s.hosts = append(s.hosts, h)
		}
		for _, h := range s.hosts {
			h.guard = newFakeGuard(s, h)
			defer h.guard.timer.Stop()
			if err := s.m.HostJoined(context.Background(), h.name); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range s.hosts {
			wg.Go(func() { h.run(ctx) })
			wg.Go(func() { h.guard.keeper.Run(ctx) })
		}
		time.Sleep(30 * time.Second) // until all count by one set of witnesses
		f(s)
	})
}

// deployElsewhere deploys n VEEs that may be restarted elsewhere.
func (s *fakeSite) deployElsewhere(n int) []vee.ID {
	s.t.Helper()
	in := initialize(vmi.TwoPhase)
	for i := range n {
		d := web(i + 1)
		d.Restart = vee.RestartElse
		in.VEEs = append(in.VEEs, vmi.InitializeVEE{Descriptor: d})
	}
	out, err := s.m.InitializeVEEs(s.operator(), in)
	if err != nil {
		s.t.Fatal(err)
	}
	s.submit(ids(out.VEEs)...)
	for _, id := range ids(out.VEEs) {
		s.untilThat(id, "ready", func(v vmi.VEE) bool { return v.GuestReady })
	}
	return ids(out.VEEs)
}

// runsOn are the hosts on which a guest of the VEE runs.
func (s *fakeSite) runsOn(id vee.ID) (names []string) {
	for _, h := range s.hosts {
		unlock := h.lock()
		if g := h.guests[id]; g != nil && g.now == vhi.Running && h.lives(id, g) {
			names = append(names, h.name)
		}
		unlock()
	}
	return names
}

func TestAHostThatIsCutOffIsReplacedOnce(t *testing.T) {
	inLeasedSite(t, 3, func(s *fakeSite) {
		all := s.deployElsewhere(3)
		id := all[0]
		old := s.get(id).Host
		cut := time.Now()
		s.host(old).set(func() { s.host(old).down = true })
		var dead, again time.Duration
		for again == 0 && time.Since(cut) < 5*time.Minute {
			time.Sleep(100 * time.Millisecond)
			on := s.runsOn(id)
			switch {
			case len(on) == 0 && dead == 0:
				dead = time.Since(cut)
			case len(on) == 1 && on[0] != old:
				again = time.Since(cut)
			}
		}
		t.Logf("its guest was dead after %v, the other ran after %v", dead, again)
		if dead == 0 || dead > 31*time.Second {
			t.Errorf("its guest was dead after %v, want half a minute at most", dead)
		}
		if again < 60*time.Second || again > 90*time.Second {
			t.Errorf("it ran elsewhere after %v, want 60 to 90 s", again)
		}
		if n := s.events.count("GivenAway"); n == 0 {
			t.Error("no event tells of it")
		}
		s.host(old).set(func() { s.host(old).down = false })
		s.untilThat(id, "found", func(v vmi.VEE) bool { return v.Host != old && v.GuestReady })
		time.Sleep(time.Minute)
		if p := s.host(old).power(id); p != vhi.Absent {
			t.Errorf("it is %s on %s still", p, old)
		}
		for _, id := range all {
			if on := s.runsOn(id); len(on) != 1 || on[0] != s.get(id).Host {
				t.Errorf("VEE %s runs on %v, the record says %s", id, on, s.get(id).Host)
			}
		}
	})
}

// The control plane is gone for ten minutes: the witnesses say so to each other, nobody dies,
// and nobody is given away when it is back.
func TestNobodyDiesWhileTheControlPlaneIsDown(t *testing.T) {
	inLeasedSite(t, 3, func(s *fakeSite) {
		all := s.deployElsewhere(3)
		before := map[vee.ID]string{}
		for _, id := range all {
			before[id] = s.get(id).Host
		}
		s.stop()
		for range 600 {
			time.Sleep(time.Second)
			for _, id := range all {
				if on := s.runsOn(id); len(on) != 1 {
					t.Fatalf("VEE %s runs on %v", id, on)
				}
			}
		}
		s.start()
		time.Sleep(5 * time.Minute)
		for _, id := range all {
			if v := s.get(id); v.Host != before[id] || !v.GuestReady || v.Restarts != 0 {
				t.Errorf("%s is on %s after %d restarts, before on %s", v.Descriptor.Name, v.Host, v.Restarts, before[id])
			}
		}
	})
}

// A manager that has just started counts anew: what its predecessor had counted is nothing.
func TestANewManagerCountsAnew(t *testing.T) {
	inLeasedSite(t, 3, func(s *fakeSite) {
		id := s.deployElsewhere(1)[0]
		old := s.get(id).Host
		s.host(old).set(func() { s.host(old).down = true })
		time.Sleep(50 * time.Second)
		s.stop()
		s.start()
		time.Sleep(55 * time.Second)
		if v := s.get(id); v.Host != old {
			t.Fatalf("it was given to %s too early", v.Host)
		}
		s.untilThat(id, "elsewhere", func(v vmi.VEE) bool { return v.Host != old && v.GuestReady })
	})
}

// In maintenance a host's guests live on, whoever answers, and nothing of it is given away;
// neither before the host has said that its guard is armed again.
func TestMaintenance(t *testing.T) {
	inLeasedSite(t, 4, func(s *fakeSite) {
		id := s.deployElsewhere(1)[0]
		old := s.get(id).Host
		if _, err := s.m.ArmHost(s.operator(), old, false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		s.host(old).set(func() { s.host(old).down = true })
		time.Sleep(5 * time.Minute)
		if h, err := s.m.ArmHost(s.operator(), old, true); err != nil || h.HA.Disarmed {
			t.Fatal(h, err)
		}
		time.Sleep(5 * time.Minute)
		if v, on := s.get(id), s.runsOn(id); v.Host != old || len(on) != 1 {
			t.Fatalf("it is on %s by the record, and runs on %v", v.Host, on)
		}
		s.host(old).set(func() { s.host(old).down = false })
		time.Sleep(20 * time.Second)
		s.host(old).set(func() { s.host(old).down = true })
		s.untilThat(id, "elsewhere", func(v vmi.VEE) bool { return v.Host != old && v.GuestReady })
	})
}

// With two hosts there are too few witnesses: nobody is killed or given away, until a person
// says that a host is off.
func TestTwoHostsNeedAPerson(t *testing.T) {
	inLeasedSite(t, 2, func(s *fakeSite) {
		id := s.deployElsewhere(1)[0]
		old := s.get(id).Host
		if _, err := s.m.ClaimVEE(s.operator(), id, vmi.Claim{Fenced: true}); !fault.Has(err, fault.WrongState) {
			t.Errorf("a host that answers is said to be off: %v", err)
		}
		s.host(old).set(func() { s.host(old).down = true })
		time.Sleep(10 * time.Minute)
		if on := s.runsOn(id); len(on) != 1 || s.get(id).Host != old {
			t.Fatalf("it runs on %v, by the record on %s", on, s.get(id).Host)
		}
		if _, err := s.m.ClaimVEE(s.operator(), id, vmi.Claim{}); err == nil || !strings.Contains(fault.From(err).Next, "--i-fenced-it") {
			t.Errorf("an empty claim: %v", err)
		}
		s.host(old).set(func() { delete(s.host(old).guests, id) }) // switched off, with a new disk
		if _, err := s.host(old).guard.Kill(t.Context(), string(id)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.m.ClaimVEE(s.operator(), id, vmi.Claim{Fenced: true}); err != nil {
			t.Fatal(err)
		}
		s.untilThat(id, "elsewhere", func(v vmi.VEE) bool { return v.Host != old && v.GuestReady })
		s.host(old).set(func() { s.host(old).down = false })
		time.Sleep(time.Minute)
		if on := s.runsOn(id); len(on) != 1 || on[0] == old {
			t.Errorf("it runs on %v", on)
		}
		if h, err := s.m.GetHost(s.operator(), old); err != nil || h.HA.Fenced {
			t.Errorf("the host that is back: %+v, %v", h.HA, err)
		}
	})
}

// A VEE whose data are on its host alone is not started elsewhere without them.
func TestPersistentDisksStay(t *testing.T) {
	inLeasedSite(t, 3, func(s *fakeSite) {
		d := web(1)
		d.Restart = vee.RestartElse
		d.Disks = append(d.Disks, vee.Disk{Name: "data", Size: vee.GiB, Persistent: true})
		out, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.TwoPhase, d))
		if err != nil {
			t.Fatal(err)
		}
		id := out.VEEs[0].ID
		s.submit(id)
		old := s.until(id, vee.Active).Host
		s.host(old).set(func() { s.host(old).down = true })
		time.Sleep(5 * time.Minute)
		if v := s.get(id); v.Host != old || v.Phase != vee.PhaseUnknown {
			t.Errorf("it is %s on %s", v.Phase, v.Host)
		}
	})
}

// Hosts are cut off, managers restarted and messages lost, late and doubled at random: at no
// instant does a VEE run twice (fakeSite.check), and when the trouble is over each runs.
func TestOwnershipUnderChaos(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			inLeasedSite(t, 4, func(s *fakeSite) {
				random := rand.New(rand.NewPCG(seed, 8))
				all := s.deployElsewhere(5)
				for _, h := range s.hosts {
					h.set(func() { h.chaos = 0.05 })
				}
				for range 40 {
					h := s.hosts[random.IntN(len(s.hosts))]
					switch random.IntN(5) {
					case 0, 1:
						h.set(func() { h.down = !h.down })
					case 2:
						s.stop()
						time.Sleep(time.Duration(random.IntN(100)) * time.Second)
						s.start()
					case 3:
						h.guard.mu.Lock()
						h.guard.dead = !h.guard.dead
						h.guard.mu.Unlock()
					}
					time.Sleep(time.Duration(random.IntN(90)) * time.Second)
				}
				for _, h := range s.hosts {
					h.set(func() { h.chaos, h.down = 0, false })
					h.guard.mu.Lock()
					h.guard.dead = false
					h.guard.mu.Unlock()
				}
				time.Sleep(3 * time.Minute)
				for _, id := range all {
					v := s.untilThat(id, "ready", func(v vmi.VEE) bool { return v.GuestReady })
					if on := s.runsOn(id); len(on) != 1 || on[0] != v.Host {
						t.Errorf("VEE %s runs on %v, the record says %s", id, on, v.Host)
					}
				}
			})
		})
	}
}

// A site is lost and put back from a backup, after which a VEE had been given away: what runs
// is found where it is, nothing runs twice, and nothing is given away before every host has
// reported or was said to be off.
func TestRestore(t *testing.T) {
	inLeasedSite(t, 4, func(s *fakeSite) {
		all := s.deployElsewhere(4)
		s.store.mu.Lock()
		backup := maps.Clone(s.store.rows)
		s.store.mu.Unlock()
		moved := all[0]
		first := s.host(s.get(moved).Host)
		first.set(func() { first.down = true })
		now := s.untilThat(moved, "elsewhere", func(v vmi.VEE) bool { return v.Host != first.name && v.GuestReady }).Host
		first.set(func() { first.down = false })
		time.Sleep(time.Minute)
		before := map[vee.ID][]string{}
		for _, id := range all {
			before[id] = s.runsOn(id)
		}

		s.stop()
		s.store.mu.Lock()
		s.store.rows, s.store.gen = backup, 1000
		s.store.mu.Unlock()
		dead := s.host(s.hostWithout(first.name, now))
		dead.set(func() { dead.down = true })
		s.start()
		time.Sleep(3 * time.Minute)
		for _, id := range all {
			if on := s.runsOn(id); !slices.Equal(on, before[id]) && before[id][0] != dead.name {
				t.Errorf("in recovery VEE %s runs on %v, before on %v", id, on, before[id])
			}
		}
		if n := s.events.count("GivenAway"); n != 1 {
			t.Errorf("%d VEEs were given away in all, want the one before the backup was used", n)
		}
		if v := s.get(moved); v.Host != now {
			t.Errorf("the record says that it is on %s, and it runs on %s", v.Host, now)
		}
		dead.set(func() { dead.down = false })
		time.Sleep(3 * time.Minute)
		for _, id := range all {
			v := s.untilThat(id, "ready", func(v vmi.VEE) bool { return v.GuestReady })
			if on := s.runsOn(id); len(on) != 1 || on[0] != v.Host || v.Epoch.Generation != 1000 {
				t.Errorf("VEE %s runs on %v, the record says %s under %s", id, on, v.Host, v.Epoch)
			}
		}
	})
}

// hostWithout is a host other than these.
func (s *fakeSite) hostWithout(names ...string) string {
	for _, h := range s.hosts {
		if !slices.Contains(names, h.name) {
			return h.name
		}
	}
	return ""
}

// Eight VEEs of a host that dies do not start all at once where they go, and what has no room
// says so until there is.
func TestStartsElsewhereAreBounded(t *testing.T) {
	inLeasedSite(t, 3, func(s *fakeSite) {
		let := func(to vmi.HostState, hosts ...string) {
			for _, h := range hosts {
				if _, err := s.m.SetHostState(s.operator(), h, to); err != nil {
					t.Fatal(err)
				}
			}
		}
		let(vmi.HostDraining, "h2", "h3")
		all := s.deployElsewhere(8)
		let(vmi.HostOn, "h2")
		for _, h := range s.hosts {
			h.set(func() { h.slow = 3 * time.Second })
		}
		dead := s.host("h1")
		dead.set(func() { dead.down = true })
		h2 := s.host("h2")
		h2.set(func() { h2.capacity.MilliCPU = 7000 })
		most := 0
		for range 3000 {
			time.Sleep(100 * time.Millisecond)
			starting := 0
			s.m.ledger.read(func(st *state) {
				for _, r := range st.vees.rows {
					if r.Lease != nil && r.Lease.Given != nil {
						starting++
					}
				}
			})
			most = max(most, starting)
		}
		if most != startsAtOnce {
			t.Errorf("%d were starting at once, want %d", most, startsAtOnce)
		}
		here, waits := 0, 0
		for _, id := range all {
			switch v := s.get(id); {
			case v.Host == "h2" && v.GuestReady:
				here++
			case strings.Contains(v.Error, "cannot be started elsewhere"):
				waits++
			}
		}
		if here != 7 || waits != 1 {
			t.Errorf("%d run elsewhere and %d say what they wait for, want 7 and 1", here, waits)
		}
		let(vmi.HostOn, "h3")
		for _, id := range all {
			s.untilThat(id, "ready", func(v vmi.VEE) bool { return v.Host != "h1" && v.GuestReady && v.Error == "" })
		}
	})
}

// A VEE that came to a host before that had a guard gets its lease when the host has one, and
// is restarted elsewhere like any other from then on, and not before.
func TestALeaseForWhatWasThereBefore(t *testing.T) {
	inLeasedSite(t, 3, func(s *fakeSite) {
		for _, h := range s.hosts {
			h.set(func() { h.unguarded = true })
		}
		time.Sleep(10 * time.Second)
		id := s.deployElsewhere(1)[0]
		if r, _ := s.m.ledger.vee(id); r.Lease != nil || r.Offered {
			t.Fatalf("without a guard: %+v", r.Lease)
		}
		host := s.host(s.get(id).Host)
		for _, h := range s.hosts {
			h.set(func() { h.unguarded = false })
		}
		s.untilThat(id, "under lease", func(vmi.VEE) bool { r, _ := s.m.ledger.vee(id); return r.Lease != nil })
		if !host.guard.holds(id) {
			t.Fatal("the log counts on the end of a guest that nobody would end")
		}
		time.Sleep(10 * time.Second)
		if v := s.get(id); v.Restarts != 0 || v.State != vee.Active || len(s.runsOn(id)) != 1 {
			t.Errorf("it runs on %v: %+v", s.runsOn(id), v)
		}
		host.set(func() { host.down = true })
		s.untilThat(id, "elsewhere", func(v vmi.VEE) bool { return v.Host != host.name && v.GuestReady })
		if on := s.runsOn(id); len(on) != 1 || on[0] == host.name {
			t.Errorf("it runs on %v", on)
		}
	})
}
