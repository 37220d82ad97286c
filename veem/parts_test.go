package veem

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func TestPool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := Network{Subnet: netip.PrefixFrom(netip.MustParseAddr("10.1.2.0"), rapid.IntRange(24, 30).Draw(t, "bits")), Gateway: netip.MustParseAddr("10.1.2.1")}
		if rapid.Bool().Draw(t, "bounded") {
			n.First = netip.MustParseAddr("10.1.2.2")
		}
		if err := n.check(); err != nil {
			t.Fatal(err)
		}
		p := &pool{net: n, taken: map[netip.Addr]string{}}
		room := 1<<(32-n.Subnet.Bits()) - 3 // without the network, the broadcast address and the gateway
		seen := map[netip.Addr]bool{}
		for range room {
			a, free := p.next()
			if !free || seen[a] || !n.Subnet.Contains(a) || a == n.Gateway || a == n.Subnet.Addr() || a.As4()[3] == byte(1<<(32-n.Subnet.Bits())-1) {
				t.Fatalf("address %d of %d: %v, free %v", len(seen), room, a, free)
			}
			seen[a], p.taken[a] = true, "somebody"
		}
		if a, free := p.next(); free {
			t.Fatalf("one more than there are: %v", a)
		}
		back := netip.MustParseAddr("10.1.2.2")
		delete(p.taken, back)
		if a, free := p.next(); !free || a != back {
			t.Fatalf("the one that came back: %v, %v", a, free)
		}
	})
}

func TestNetworksAreChecked(t *testing.T) {
	for _, n := range []Network{
		{}, {Subnet: netip.MustParsePrefix("10.0.0.0/31")}, {Subnet: netip.MustParsePrefix("fd00::/64")},
		{Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.1.1")},
		{Subnet: netip.MustParsePrefix("10.0.0.0/24"), First: netip.MustParseAddr("10.0.1.1")},
		{Subnet: netip.MustParsePrefix("10.0.0.0/24"), First: netip.MustParseAddr("10.0.0.9"), Last: netip.MustParseAddr("10.0.0.8")},
	} {
		if n.check() == nil {
			t.Errorf("%+v was taken", n)
		}
	}
}

func TestNetworkIsFull(t *testing.T) {
	inSite(t, 1, func(s *fakeSite) {
		s.m.cfg.Networks["net"] = Network{Subnet: netip.MustParsePrefix("10.80.0.0/29"), Gateway: netip.MustParseAddr("10.80.0.1")}
		in := initialize(vmi.BestEffort, web(1))
		in.VEEs[0].Count = 6
		if _, err := s.m.InitializeVEEs(s.operator(), in); !fault.Has(err, fault.NoResources) {
			t.Errorf("six of five: %v", err)
		}
		in.VEEs[0].Count = 5
		out, err := s.m.InitializeVEEs(s.operator(), in)
		if err != nil {
			t.Fatal(err)
		}
		s.act(vee.Destroy, out.VEEs[2].ID)
		again, err := s.m.InitializeVEEs(s.operator(), initialize(vmi.BestEffort, web(9)))
		if err != nil || again.VEEs[0].Descriptor.NICs[0].Address != out.VEEs[2].Descriptor.NICs[0].Address {
			t.Errorf("after one was destroyed: %+v, %v", again, err)
		}
	})
}

// TestQueue: a job never in parallel with itself, lanes beside each other, failures after
// growing pauses.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, runs := map[job]int{}, map[job][]time.Duration{}
		start := time.Now()
		q := newQueue(func(_ context.Context, j job) result {
			mu.Lock()
			runs[j] = append(runs[j], time.Since(start))
			if running[j]++; running[j] > 1 {
				t.Errorf("%v runs twice", j)
			}
			n := len(runs[j])
			mu.Unlock()
			switch j.name {
			case "hangs":
				time.Sleep(time.Hour)
			default:
				time.Sleep(time.Second)
			}
			mu.Lock()
			running[j]--
			mu.Unlock()
			return result{failed: j.name == "fails" && n < 4, lane: "b"}
		}, 10*time.Second, time.Now, false)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { q.run(ctx); close(done) }()
		for i := range laneWidth + 3 {
			q.add(job{hostJob, "hangs"}, "a")
			q.add(job{reapJob, fmt.Sprint(i)}, "b")
			q.add(job{veeJob, "twice"}, "b")
		}
		for i := range laneWidth {
			q.add(job{hostJob, fmt.Sprint("hangs", i)}, "a")
		}
		q.add(job{veeJob, "fails"}, "b")
		time.Sleep(500 * time.Millisecond)
		q.add(job{veeJob, "twice"}, "b") // while it runs: once more
		time.Sleep(10 * time.Minute)
		mu.Lock()
		if n := len(runs[job{veeJob, "twice"}]); n != 2 {
			t.Errorf("ran %d times, want 2", n)
		}
		if got, want := fmt.Sprint(runs[job{veeJob, "fails"}]), "[1s 12s 33s 1m14s]"; got != want {
			t.Errorf("failed at %s, want %s", got, want)
		}
		for i := range laneWidth + 3 {
			if at := runs[job{reapJob, fmt.Sprint(i)}]; len(at) != 1 || at[0] > 2*time.Second {
				t.Errorf("job %d ran at %v", i, at)
			}
		}
		mu.Unlock()
		cancel()
		<-done
	})
}

// TestOnTheSiteStore runs on real etcd: what one manager wrote, the next one has; a write
// behind its back is noticed.
func TestOnTheSiteStore(t *testing.T) {
	dir := t.TempDir()
	open := func() *store.Store {
		st, err := store.Open(t.Context(), store.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	var events eventLog
	s := &fakeSite{t: t}
	run := func(st *store.Store) (m *Manager, stop func()) {
		m, err := New(t.Context(), Config{Site: "alpha", Store: OnStore(st), Images: fakeImages{}, Recorder: &events, Balancer: &pointLog{now: map[string]plan.Point{}},
			Placer: placement.Balance, Log: slog.New(slog.DiscardHandler), Networks: map[string]Network{"net": {Subnet: netip.MustParsePrefix("10.80.0.0/16")}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = m.Run(ctx) }()
		return m, func() { cancel(); <-done }
	}
	st := open()
	m, stop := run(st)
	in := initialize(vmi.BestEffort, web(1))
	in.VEEs[0].Count, in.IdempotencyKey = 300, "k" // more than one transaction takes
	out, err := m.InitializeVEEs(s.operator(), in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.PutAccessPoint(s.operator(), vmi.AccessPoint{Name: "web", GroupID: "shop", Port: 80}); err != nil {
		t.Fatal(err)
	}
	if err := m.HostJoined(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	// A second writer, such as the manager of a machine that lost the lead.
	victim := out.VEEs[7].ID
	if err := store.NewCollection[map[string]any](st, kindVEE).Delete(t.Context(), string(victim), 0); err != nil {
		t.Fatal(err)
	}
	outs, err := m.SubmitVEEs(s.operator(), ids(out.VEEs)[5:9])
	if err != nil || !outs[0].OK || outs[2].Code != string(fault.NotFound) || !outs[3].OK {
		t.Errorf("after a change behind its back: %+v, %v", outs, err)
	}
	stop()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	st = open()
	m, stop = run(st)
	list, err := m.ListVEEs(s.operator(), vmi.Filter{})
	if err != nil || len(list) != 299 {
		t.Errorf("%d VEEs, %v", len(list), err)
	}
	again, err := m.InitializeVEEs(s.operator(), in)
	if err != nil || len(again.VEEs) != 300 || again.VEEs[0].ID != out.VEEs[0].ID || again.VEEs[7].State != vee.Destroyed {
		t.Errorf("the same call again: %d, %v", len(again.VEEs), err)
	}
	if v, err := m.GetVEE(s.operator(), out.VEEs[5].ID); err != nil || !v.Submitted {
		t.Errorf("submitted: %+v, %v", v, err)
	}
	if points, err := m.ListAccessPoints(s.operator(), ""); err != nil || len(points) != 1 || points[0].Address == "" {
		t.Errorf("access points: %+v, %v", points, err)
	}
	if hosts, err := m.ListHosts(s.operator()); err != nil || len(hosts) != 1 {
		t.Errorf("hosts: %+v, %v", hosts, err)
	}
	stop()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
}
