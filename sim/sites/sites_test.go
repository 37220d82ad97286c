package sites

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/sim"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) { l.t.Logf("%s", bytes.TrimSpace(b)); return len(b), nil }

// stage of sites, in a bubble of its own.
func stage(t *testing.T, hosts int, names []string, f func(*scene)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		u, err := New(t.TempDir(), hosts, slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelInfo})), names...)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		time.Sleep(10 * time.Second)
		s := &scene{Union: u, t: t}
		u.Hook = s.hook
		f(s)
	})
}

type scene struct {
	*Union
	t *testing.T

	mu     sync.Mutex
	cutOff func(Crossing) bool // nil: nothing is
}

// hook of the union: what is cut gets nowhere.
func (s *scene) hook(c Crossing) error {
	s.mu.Lock()
	off := s.cutOff
	s.mu.Unlock()
	if off != nil && off(c) {
		return fault.New(fault.Unavailable, "%s does not reach %s", c.From, c.To)
	}
	return nil
}

// strike the first crossing of a phase: it is held while the trouble begins, and lost.
func (s *scene) strike(phase string) (hit chan struct{}) {
	hit = make(chan struct{})
	var once sync.Once
	s.Hook = func(c Crossing) error {
		when := "before "
		if c.After {
			when = "after "
		}
		if when+c.What == phase && (c.What != "call" || c.From == "alpha") {
			mine := false
			once.Do(func() { mine = true })
			if mine {
				close(hit)
				time.Sleep(100 * time.Millisecond) // in which the trouble begins
				return fault.New(fault.Unavailable, "cut %s", phase)
			}
		}
		return s.hook(c)
	}
	return hit
}

// deploy a VEE of alpha's, there.
func (s *scene) deploy(restart vee.RestartPolicy) vee.ID {
	s.t.Helper()
	return s.deployAs("web-1", restart)
}

func (s *scene) deployAs(name string, restart vee.RestartPolicy, disks ...vee.Disk) vee.ID {
	s.t.Helper()
	a := s.Sites["alpha"]
	out, err := a.m.InitializeVEEs(a.As(), vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: vee.Descriptor{
		Name: name, Customer: "acme", GroupID: "shop", VCPUs: 1, Memory: 64 * vee.MiB, Restart: restart, Disks: disks}}}})
	if err != nil {
		s.t.Fatal(err)
	}
	id := out.VEEs[0].ID
	if _, err := a.m.SubmitVEEs(a.As(), []vee.ID{id}); err != nil {
		s.t.Fatal(err)
	}
	s.until("it runs", func() bool { return s.get(id).State == vee.Active && s.places(id) == 1 })
	return id
}

func (s *scene) get(id vee.ID) vmi.VEE {
	s.t.Helper()
	a := s.Sites["alpha"]
	v, err := a.Manager().GetVEE(a.As(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

func (s *scene) migrate(id vee.ID, to string) vmi.Migration {
	s.t.Helper()
	a := s.Sites["alpha"]
	m, err := a.Manager().Migrate(a.As(), vmi.Migrate{VEE: id, To: to})
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

func (s *scene) until(what string, ok func() bool) {
	s.t.Helper()
	for range 1800 {
		if ok() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	for name, x := range s.Sites {
		if m := x.Manager(); m != nil {
			list, _ := m.ListVEEs(x.As(), vmi.Filter{})
			for _, v := range list {
				s.t.Logf("site %s: %s %s %s on %s, epoch %s, custody %+v, move %+v, error %q", name, v.ID, v.State, v.Phase, v.Host, v.Epoch, v.Custody, v.Move, v.Error)
			}
			moves, _ := m.ListMigrations(x.As())
			s.t.Logf("site %s: migrations %+v", name, moves)
		}
		for _, h := range x.Hosts {
			if r, up := h.report(); up {
				for _, v := range r.VEEs {
					s.t.Logf("host %s: %+v, move %+v, guest %s", h.full(), v, v.Move, h.Condition(v.VEE))
				}
			}
		}
	}
	s.t.Fatalf("not in three minutes: %s", what)
}

// places at which the VEE runs.
func (s *scene) places(id vee.ID) (n int) {
	for _, x := range s.Sites {
		for _, h := range x.Hosts {
			if h.Runs(id) {
				n++
			}
		}
	}
	return n
}

// at is the site whose host runs the VEE.
func (s *scene) at(id vee.ID) string {
	for name, x := range s.Sites {
		for _, h := range x.Hosts {
			if h.Runs(id) {
				return name
			}
		}
	}
	return ""
}

// settled: it runs at exactly one place, both logs know where, and nothing is left elsewhere.
func (s *scene) settled(id vee.ID) {
	s.t.Helper()
	s.until("it has settled", func() bool {
		a := s.Sites["alpha"]
		if m, err := a.Manager().GetMigration(a.As(), string(id)); err == nil && m.State == vmi.MigrationRunning {
			return false
		}
		v := s.get(id)
		if s.places(id) != 1 || v.State != vee.Active || v.Phase != vee.PhaseRunning {
			return false
		}
		at := s.at(id)
		if at == "alpha" && v.Host[0] == '@' || at != "alpha" && v.Host != "@"+at {
			return false
		}
		for name, x := range s.Sites {
			for _, h := range x.Hosts {
				if c := h.Condition(id); c != hypervisor.Absent && !h.Runs(id) {
					return false
				}
			}
			if name == "alpha" {
				continue
			}
			there, err := x.Manager().GetVEE(x.As(), id)
			if here := err == nil && there.State != vee.Destroyed; here != (at == name) {
				return false
			}
		}
		return true
	})
}

// There, to a third site, and back: by the primary's order alone.
func TestThereAndBack(t *testing.T) {
	stage(t, 2, []string{"alpha", "beta", "gamma"}, func(s *scene) {
		id := s.deploy(vee.RestartInPlace)
		for _, to := range []string{"@beta", "@gamma", "h1", "beta", "h2"} {
			m := s.migrate(id, to)
			s.until("it has come to "+to, func() bool {
				return s.get(id).Host == m.To && s.places(id) == 1
			})
			s.settled(id)
			if got, err := s.Sites["alpha"].m.GetMigration(s.Sites["alpha"].As(), m.ID); err != nil || got.State != vmi.MigrationDone || got.DowntimeMS == 0 || got.Took.MemoryBytes == 0 {
				t.Errorf("to %s: %+v, %v", to, got, err)
			}
			if v := s.get(id); v.Restarts != 0 {
				t.Errorf("to %s: %d restarts", to, v.Restarts)
			}
		}
	})
}

// never twice, looked at all the time until the test ends.
func (s *scene) never(id vee.ID) (end func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if n := s.places(id); n > 1 {
				s.t.Errorf("%s: it runs at %d places", time.Now().Format(time.TimeOnly), n)
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() { close(stop); <-done }
}

// trouble strikes once, in the middle of a migration, and is over after some time.
type trouble struct {
	name  string
	begin func(s *scene, from, to *Site)
	end   func(s *scene, from, to *Site)
}

// cuts of links: who reaches whom no longer.
func cut(s *scene, off func(c Crossing) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cutOff = off
}

var troubles = []trouble{
	{"the call is lost", nil, nil},
	{"source's agent killed", func(_ *scene, from, _ *Site) { from.Hosts[0].Stop() }, func(s *scene, from, _ *Site) { s.must(from.Hosts[0].Start()) }},
	{"destination's agent killed", func(_ *scene, _, to *Site) { to.Hosts[0].Stop() }, func(s *scene, _, to *Site) { s.must(to.Hosts[0].Start()) }},
	{"both agents killed", func(_ *scene, from, to *Site) { from.Hosts[0].Stop(); to.Hosts[0].Stop() },
		func(s *scene, from, to *Site) { s.must(from.Hosts[0].Start()); s.must(to.Hosts[0].Start()) }},
	{"source's control plane killed", func(_ *scene, from, _ *Site) { from.Stop() }, func(s *scene, from, _ *Site) { s.must(from.Start()) }},
	{"destination's control plane killed", func(_ *scene, _, to *Site) { to.Stop() }, func(s *scene, _, to *Site) { s.must(to.Start()) }},
	{"link between the sites cut", func(s *scene, _, _ *Site) { cut(s, between) }, func(s *scene, _, _ *Site) { cut(s, nil) }},
	{"source's proxy restarted", func(s *scene, from, _ *Site) { cut(s, between); from.Proxy(false) }, func(s *scene, from, _ *Site) { cut(s, nil); from.Proxy(true) }},
	{"destination's proxy restarted", func(s *scene, _, to *Site) { cut(s, between); to.Proxy(false) }, func(s *scene, _, to *Site) { cut(s, nil); to.Proxy(true) }},
	{"control planes apart", func(s *scene, _, _ *Site) { cut(s, func(c Crossing) bool { return c.What == "call" }) }, func(s *scene, _, _ *Site) { cut(s, nil) }},
	{"destination's certificate expired", func(s *scene, _, _ *Site) { cut(s, func(c Crossing) bool { return between(c) && c.What != "call" }) }, func(s *scene, _, _ *Site) { cut(s, nil) }},
	{"source cut off from its site", func(s *scene, from, _ *Site) { cut(s, local(from)) }, func(s *scene, _, _ *Site) { cut(s, nil) }},
	{"destination cut off from its site", func(s *scene, _, to *Site) { cut(s, local(to)) }, func(s *scene, _, _ *Site) { cut(s, nil) }},
	{"revoked by the source", func(_ *scene, from, to *Site) { from.Revoke(to.Name, true) }, func(_ *scene, from, to *Site) { from.Revoke(to.Name, false) }},
	{"revoked by the destination", func(_ *scene, from, to *Site) { to.Revoke(from.Name, true) }, func(_ *scene, from, to *Site) { to.Revoke(from.Name, false) }},
}

func between(c Crossing) bool {
	a, _, _ := strings.Cut(c.From, "/")
	b, _, _ := strings.Cut(c.To, "/")
	return a != b
}

func local(s *Site) func(Crossing) bool {
	return func(c Crossing) bool {
		return (c.What == "assign" || c.What == "renew") && (strings.HasPrefix(c.From, s.Name+"/") || strings.HasPrefix(c.To, s.Name+"/"))
	}
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// Each phase of a migration between sites, in either direction, and everything that may go
// wrong in it: in the end the VEE runs where it ran all the time or has come to, once, and
// both logs know that.
func TestCrossingCutAtEachPhase(t *testing.T) {
	for _, way := range [][2]string{{"alpha", "beta"}, {"beta", "alpha"}} {
		for _, phase := range []string{"before call", "after call", "before open", "after open", "before stream", "after stream", "before give", "after give"} {
			for _, x := range troubles {
				t.Run(way[0]+" to "+way[1]+", "+phase+", "+x.name, func(t *testing.T) {
					t.Parallel()
					stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
						id := s.deploy(vee.RestartInPlace)
						to := map[string]string{"alpha": "h1", "beta": "@beta"}
						if way[0] == "beta" {
							s.migrate(id, "@beta")
							s.settled(id)
						}
						defer s.never(id)()
						hit := s.strike(phase)
						s.migrate(id, to[way[1]])
						<-hit
						from, dest := s.Sites[way[0]], s.Sites[way[1]]
						if x.begin != nil {
							x.begin(s, from, dest)
							time.Sleep(25 * time.Second) // longer than a host may be silent
							x.end(s, from, dest)
						}
						s.settled(id)
						if v := s.get(id); v.Restarts != 0 {
							t.Errorf("%d restarts", v.Restarts)
						}
						s.booksAgree()
					})
				})
			}
		}
	}
}

// A site is left: what clients reach goes first, the rest by size, at most two at a time; what
// cannot go is told, and why.
func TestEvacuation(t *testing.T) {
	stage(t, 2, []string{"alpha", "beta", "gamma"}, func(s *scene) {
		a := s.Sites["alpha"]
		in := vmi.Initialize{Model: vmi.TwoPhase}
		for name, mib := range map[string]vee.Bytes{"big": 512, "small": 64, "front": 256, "paused": 64, "leased": 64} {
			in.VEEs = append(in.VEEs, vmi.InitializeVEE{Descriptor: vee.Descriptor{Name: name, Customer: "acme", GroupID: "shop", VCPUs: 1, Memory: mib * vee.MiB, Tags: []string{name}}})
		}
		out, err := a.m.InitializeVEEs(a.As(), in)
		s.must(err)
		ids := map[string]vee.ID{}
		for _, v := range out.VEEs {
			ids[v.Descriptor.Name] = v.ID
			_, err := a.m.SubmitVEEs(a.As(), []vee.ID{v.ID})
			s.must(err)
			s.until("it runs", func() bool { return s.places(v.ID) == 1 })
		}
		_, err = a.m.PutAccessPoint(a.As(), vmi.AccessPoint{Name: "web", Customer: "acme", GroupID: "shop", Tag: "front", Port: 80, Scheme: "tcp"})
		s.must(err)
		_, err = a.m.UpdateState(a.As(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{ids["paused"]}}, Action: vee.Pause, Wait: true})
		s.must(err)

		short, err := a.m.PlanEvacuation(a.As(), vmi.Evacuate{To: "beta", DeadlineMS: 3000})
		s.must(err)
		if len(short.Steps) != 2 || short.Steps[0].Name != "front" || len(short.Stays) != 3 {
			t.Errorf("in three seconds: %+v, stays %+v", short.Steps, short.Stays)
		}
		for name, e := range map[string]vmi.Evacuate{"unknown site": {To: "delta"}, "unknown host": {Host: "h9", To: "beta"}} {
			if _, err := a.m.Evacuate(a.As(), e); !fault.Has(err, fault.NotFound) {
				t.Errorf("%s: %v", name, err)
			}
		}
		p, err := a.m.Evacuate(a.As(), vmi.Evacuate{To: "beta", DeadlineMS: 600_000})
		s.must(err)
		if len(p.Steps) != 4 || p.Steps[0].Name != "front" || p.Steps[3].Name != "big" || len(p.Stays) != 1 || p.Stays[0].Name != "paused" {
			t.Errorf("plan %+v, stays %+v", p.Steps, p.Stays)
		}
		s.until("the plan has ended", func() bool {
			now, err := a.m.GetReconfiguration(a.As())
			return err == nil && now.State != vmi.ReconfigurationRunning
		})
		for name, id := range ids {
			want := "beta"
			if name == "paused" {
				want = ""
			}
			if at := s.at(id); at != want {
				t.Errorf("%s runs at %q", name, at)
			}
		}
		for _, h := range a.Hosts {
			if got, err := a.m.GetHost(a.As(), h.Name); err != nil || got.State != vmi.HostDraining {
				t.Errorf("host %s is %s", h.Name, got.State)
			}
		}
	})
}

// A partner that dies in the middle: what has not gone stays where it is, the rest is told of,
// and goes when the partner is back in time.
func TestEvacuationInterrupted(t *testing.T) {
	stage(t, 1, []string{"alpha", "beta"}, func(s *scene) {
		a, b := s.Sites["alpha"], s.Sites["beta"]
		var ids []vee.ID
		for range 3 {
			ids = append(ids, s.deployAs(fmt.Sprintf("web-%d", len(ids)), vee.RestartInPlace))
		}
		a.Hosts[0].Latency = func(op sim.Op) time.Duration {
			if op == sim.Copy {
				return 3 * time.Second
			}
			return 0
		}
		_, err := a.m.Evacuate(a.As(), vmi.Evacuate{To: "beta", DeadlineMS: 600_000})
		s.must(err)
		time.Sleep(4 * time.Second) // the first have gone
		cut(s, between)
		time.Sleep(time.Minute)
		cut(s, nil)
		s.until("everything has gone", func() bool {
			for _, id := range ids {
				if !b.Hosts[0].Runs(id) || s.places(id) != 1 {
					return false
				}
			}
			return true
		})
		for _, id := range ids {
			s.settled(id)
		}
	})
}
