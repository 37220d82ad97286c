package veem

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// powerFence of the fake hosts: what it switches off runs nothing.
type powerFence struct {
	s    *fakeSite
	fail error

	mu  sync.Mutex
	off []string
	at  []time.Time
}

func (*powerFence) Can(string) bool { return true }

func (f *powerFence) Fence(_ context.Context, host string) error {
	time.Sleep(3 * time.Second)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = append(f.at, time.Now())
	if f.fail != nil {
		return f.fail
	}
	f.off = append(f.off, host)
	f.s.host(host).set(func() {
		for _, g := range f.s.host(host).guests {
			g.now, g.want.Power = vhi.Absent, vhi.Absent
		}
	})
	return nil
}

func (f *powerFence) fenced() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.off)
}

// unguarded deploys a VEE to a host that has no guard; the others have one.
func (s *fakeSite) unguarded() (id vee.ID, host string) {
	for _, h := range s.hosts {
		h.set(func() { h.unguarded = true })
	}
	time.Sleep(10 * time.Second)
	id = s.deployElsewhere(1)[0]
	host = s.get(id).Host
	for _, h := range s.hosts {
		h.set(func() { h.unguarded = h.name == host })
	}
	time.Sleep(10 * time.Second)
	return id, host
}

// inFencedSite has hosts with a power fence.
func inFencedSite(t *testing.T, hosts int, f func(s *fakeSite, p *powerFence)) {
	inLeasedSite(t, hosts, func(s *fakeSite) {
		p := &powerFence{s: s}
		s.stop()
		s.cfg.Fencer = p
		s.start()
		time.Sleep(time.Minute)
		f(s, p)
	})
}

// A host without a guard is lost: it is switched off, and only then what it had is started
// elsewhere, sooner than a lease would let it.
func TestAPowerFence(t *testing.T) {
	inFencedSite(t, 4, func(s *fakeSite, p *powerFence) {
		id, old := s.unguarded()
		if h, _ := s.m.GetHost(s.operator(), old); !h.HA.PowerFence || h.HA.Degraded != "" {
			t.Errorf("with a power fence: %+v", h.HA)
		}
		s.host(old).set(func() { s.host(old).down = true })
		lost := time.Now()
		s.untilThat(id, "elsewhere", func(v vmi.VEE) bool { return v.Host != old && v.GuestReady })
		if took := time.Since(lost); took > 60*time.Second || !slices.Equal(p.fenced(), []string{old}) {
			t.Errorf("after %v, fenced %v", took, p.fenced())
		}
		if s.events.count("HostFenced") != 1 {
			t.Errorf("told: %d times", s.events.count("HostFenced"))
		}
	})
}

// A fence that fails is tried again, and says so; nothing is started meanwhile.
func TestAPowerFenceThatFails(t *testing.T) {
	inFencedSite(t, 4, func(s *fakeSite, p *powerFence) {
		id, old := s.unguarded()
		p.fail = errors.New("the power supply does not answer")
		s.host(old).set(func() { s.host(old).down = true })
		time.Sleep(5 * time.Minute)
		if v := s.get(id); v.Host != old || s.events.count("FenceFailed") < 2 || len(s.runsOn(id)) != 1 {
			t.Errorf("on %s, %d failures told, runs on %v", v.Host, s.events.count("FenceFailed"), s.runsOn(id))
		}
		p.mu.Lock()
		p.fail = nil
		p.mu.Unlock()
		s.untilThat(id, "elsewhere", func(v vmi.VEE) bool { return v.Host != old && v.GuestReady })
	})
}

// A control plane that hears nobody is cut off itself: it switches nobody off. Nor does it
// where nothing is to be rescued.
func TestNobodyIsFencedByWhoIsCutOff(t *testing.T) {
	inFencedSite(t, 4, func(s *fakeSite, p *powerFence) {
		s.deployElsewhere(2)
		for _, h := range s.hosts {
			h.set(func() { h.down = true })
		}
		time.Sleep(5 * time.Minute)
		if len(p.fenced()) != 0 {
			t.Errorf("fenced %v", p.fenced())
		}
		for _, h := range s.hosts {
			h.set(func() { h.down = false })
		}
		time.Sleep(time.Minute)
		for _, h := range s.hosts {
			if len(h.guests) == 0 {
				h.set(func() { h.down = true })
			}
		}
		time.Sleep(5 * time.Minute)
		if len(p.fenced()) != 0 {
			t.Errorf("empty hosts were fenced: %v", p.fenced())
		}
	})
}

// Many VEEs of a host that is lost start elsewhere, and no host has more than a few on their
// way up at once.
func TestNotAllAreStartedAtOnce(t *testing.T) {
	inLeasedSite(t, 3, func(s *fakeSite) {
		for _, h := range s.hosts[1:] {
			if _, err := s.m.SetHostState(s.operator(), h.name, vmi.HostDraining); err != nil {
				t.Fatal(err)
			}
		}
		ids := s.deployElsewhere(8)
		for _, h := range s.hosts[1:] {
			if _, err := s.m.SetHostState(s.operator(), h.name, vmi.HostOn); err != nil {
				t.Fatal(err)
			}
			h.set(func() { h.slow = 5 * time.Second })
		}
		s.hosts[0].set(func() { s.hosts[0].down = true })
		most := 0
		for range 3000 {
			time.Sleep(100 * time.Millisecond)
			starting, left := map[string]int{}, 0
			for _, id := range ids {
				r, _ := s.m.ledger.vee(id)
				if r.Lease.Given != nil {
					starting[r.Host]++
				}
				if r.Host == s.hosts[0].name || r.State != vee.Active {
					left++
				}
			}
			for _, n := range starting {
				most = max(most, n)
			}
			if left == 0 {
				break
			}
		}
		if most == 0 || most > startsAtOnce {
			t.Errorf("%d at once on one host, at most %d are meant", most, startsAtOnce)
		}
		for _, id := range ids {
			if on := s.runsOn(id); len(on) != 1 || on[0] == s.hosts[0].name {
				t.Errorf("%s runs on %v", id, on)
			}
		}
	})
}
