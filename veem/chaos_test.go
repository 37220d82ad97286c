package veem

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var (
	chaosSeed  = flag.Uint64("chaos.seed", 0, "run the random fault test with this seed alone")
	chaosSeeds = flag.Int("chaos.seeds", 30, "run it with so many seeds")
)

// TestChaos does what callers do while calls and their answers are lost, late, doubled and
// out of order, writes fail, some of them after they have happened, guests crash, hosts are
// cut off, forget everything or restart, and the manager is killed. When the faults stop,
// every VEE must become as it was last asked to be, and nothing else may be left. At every
// instant: no VEE twice, no address twice, no host over its capacity (fakeSite.check).
func TestChaos(t *testing.T) {
	if *chaosSeed != 0 {
		chaos(t, *chaosSeed)
		return
	}
	for seed := uint64(1); seed <= uint64(*chaosSeeds); seed++ {
		chaos(t, seed)
	}
}

func chaos(t *testing.T, seed uint64) {
	t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
		inSite(t, 3, func(s *fakeSite) {
			c := &chaotic{s: s, rng: rand.New(rand.NewPCG(seed, 0)), wanted: map[vee.ID]vee.State{}}
			c.begin()
			for range 150 {
				c.act()
				time.Sleep(time.Duration(c.rng.IntN(800)) * time.Millisecond)
			}
			c.end()
			time.Sleep(5 * time.Minute)
			c.check()
		})
		if t.Failed() {
			t.Logf("again with: go test ./veem -run TestChaos -chaos.seed=%d", seed)
		}
	})
}

type chaotic struct {
	s      *fakeSite
	rng    *rand.Rand
	n      int
	all    []vee.ID
	wanted map[vee.ID]vee.State // last accepted wish; "" when it is not known whether it was
}

func (c *chaotic) begin() {
	for _, h := range c.s.hosts {
		h.set(func() { h.chaos = 0.1 })
	}
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 1))
	var mu sync.Mutex
	c.s.store.mu.Lock()
	c.s.store.fault = func([]Op) (before, after error) {
		mu.Lock()
		defer mu.Unlock()
		switch rng.IntN(40) {
		case 0:
			return fault.New(fault.Unavailable, "no leader"), nil
		case 1:
			return nil, fault.New(fault.Timeout, "no answer")
		}
		return nil, nil
	}
	c.s.store.mu.Unlock()
}

func (c *chaotic) end() {
	c.s.store.mu.Lock()
	c.s.store.fault = nil
	c.s.store.mu.Unlock()
	for _, h := range c.s.hosts {
		h.set(func() { h.chaos, h.down, h.failSave = 0, false, false })
	}
}

func (c *chaotic) some() vee.ID {
	if len(c.all) == 0 {
		return "alpha.zzzzzzzzzz"
	}
	return c.all[c.rng.IntN(len(c.all))]
}

func (c *chaotic) host() *fakeHost { return c.s.hosts[c.rng.IntN(len(c.s.hosts))] }

func (c *chaotic) act() {
	s := c.s
	switch k := c.rng.IntN(100); {
	case k < 15:
		c.initialize()
	case k < 40:
		id := c.some()
		outs, err := s.m.SubmitVEEs(s.operator(), []vee.ID{id})
		c.note(id, vee.Active, outs, err)
	case k < 65:
		id, a := c.some(), vee.Actions[c.rng.IntN(len(vee.Actions)-c.rng.IntN(2))]
		outs, err := s.m.UpdateState(s.operator(), vmi.UpdateState{Collection: vmi.Collection{IDs: []vee.ID{id}}, Action: a})
		to := map[vee.Action]vee.State{vee.Activate: vee.Active, vee.Pause: vee.Paused, vee.Suspend: vee.Suspended, vee.Shutdown: vee.Defined, vee.Destroy: vee.Destroyed}[a]
		c.note(id, to, outs, err)
	case k < 72: // a guest crashes
		h := c.host()
		h.set(func() {
			for _, g := range h.guests {
				if g.now == vhi.Running && c.rng.IntN(2) == 0 {
					g.now, g.ready = vhi.Failed, false
				}
			}
		})
	case k < 80: // a host is cut off, or back
		h := c.host()
		h.set(func() { h.down = !h.down })
	case k < 84: // an agent restarts
		h := c.host()
		h.set(func() { h.incarnation++; h.seq = 0 })
	case k < 85: // a host loses its disks
		h := c.host()
		h.set(func() { clear(h.guests) })
	case k < 88:
		h := c.host()
		h.set(func() { h.failSave = !h.failSave })
	case k < 92: // the manager is killed
		s.stop()
		s.start()
	case k < 94:
		state := []vmi.HostState{vmi.HostOn, vmi.HostDraining}[c.rng.IntN(2)]
		_, _ = s.m.SetHostState(s.operator(), c.host().name, state)
	default:
		time.Sleep(time.Duration(c.rng.IntN(20)) * time.Second)
	}
}

func (c *chaotic) initialize() {
	s := c.s
	in := vmi.Initialize{Model: []vmi.Model{vmi.TwoPhase, vmi.BestEffort}[c.rng.IntN(2)], HoldMS: 30_000, IdempotencyKey: fmt.Sprint("call-", c.n)}
	for range 1 + c.rng.IntN(3) {
		c.n++
		d := web(c.n)
		d.VCPUs = 1 + c.rng.IntN(2)
		d.Restart = []vee.RestartPolicy{vee.RestartInPlace, vee.RestartNever}[c.rng.IntN(2)]
		in.VEEs = append(in.VEEs, vmi.InitializeVEE{Descriptor: d})
	}
	if c.rng.IntN(3) == 0 {
		in.Rules = []vmi.PlacementRule{{Kind: "anti-affinity", Tag: "web", Soft: true}}
	}
	for { // until the answer is known, as a Service Manager does
		out, err := s.m.InitializeVEEs(s.operator(), in)
		switch {
		case err == nil:
			for _, id := range ids(out.VEEs) {
				c.all = append(c.all, id)
				c.wanted[id] = vee.Defined
			}
			return
		case fault.Has(err, fault.NoResources):
			return
		case !fault.Has(err, fault.Unavailable) && !fault.Has(err, fault.Timeout):
			s.t.Errorf("initialize: %v", err)
			return
		}
	}
}

func (c *chaotic) note(id vee.ID, to vee.State, outs []vmi.Outcome, err error) {
	switch {
	case err != nil && !fault.Has(err, fault.Unavailable) && !fault.Has(err, fault.Timeout):
		c.s.t.Errorf("%s of %s: %v", to, id, err)
	case err != nil && c.wanted[id] != vee.Destroyed:
		c.wanted[id] = ""
	case err == nil && outs[0].OK:
		c.wanted[id] = to
	}
}

// check the site after a time without faults.
func (c *chaotic) check() {
	s := c.s
	list, err := s.m.ListVEEs(s.operator(), vmi.Filter{Destroyed: true})
	if err != nil {
		s.t.Fatal(err)
	}
	if len(list) != len(c.all) {
		s.t.Errorf("%d VEEs, %d were made", len(list), len(c.all))
	}
	owner := map[vee.ID]string{}
	addresses := map[string]vee.ID{}
	for _, v := range list {
		if w := c.wanted[v.ID]; w != "" && v.Target != w && v.State != vee.Initial && v.Error == "" {
			s.t.Errorf("VEE %s should be %s: %+v", v.ID, w, v)
		}
		if v.State == vee.Destroyed {
			continue
		}
		a := v.Descriptor.NICs[0].Address
		if other := addresses[a]; other != "" {
			s.t.Errorf("VEEs %s and %s both have %s", v.ID, other, a)
		}
		addresses[a] = v.ID
		if v.State == vee.Initial && v.Host == "" {
			continue // no room
		}
		if v.State != v.Target {
			s.t.Errorf("VEE %s is stuck: %+v", v.ID, v)
		}
		if v.Host == "" {
			continue
		}
		owner[v.ID] = v.Host
		if is, want := s.host(v.Host).power(v.ID), powers[v.State]; is != want && !(want == vhi.Stopped && (is == vhi.Absent || is == vhi.Failed)) {
			s.t.Errorf("VEE %s is %s (%s), and on its host %s", v.ID, v.State, v.Phase, is)
		}
	}
	for _, h := range s.hosts {
		for id := range h.guests {
			if is := h.power(id); is != vhi.Absent && owner[id] != h.name {
				s.t.Errorf("host %s has VEE %s (%s), which nobody owns there", h.name, id, is)
			}
		}
		host, err := s.m.GetHost(s.operator(), h.name)
		if err != nil || !host.Alive || !host.Used.Fits(host.Capacity) {
			s.t.Errorf("host %+v, %v", host, err)
		}
	}
}
