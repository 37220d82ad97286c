package rebalance

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/vee"
)

func size(n int64) vee.Resources {
	return vee.Resources{MilliCPU: 1000 * n, Memory: vee.Bytes(n) * vee.GiB, Disk: vee.Bytes(n) * vee.GiB}
}

func host(name string, n int64) Host {
	return Host{Name: name, Capacity: size(n), Drivers: []string{"qemu"}}
}

func at(name, host string, n int64, tags ...string) VEE {
	return VEE{ID: vee.ID("alpha." + name), Name: name, Host: host, Uses: size(n), Copy: vee.Bytes(n) * vee.GiB, Label: placement.Label{Group: "g", Tags: tags}}
}

var options = Options{PerMove: .01, Gain: .05, Slots: 2, Bandwidth: 100 * vee.MiB, Least: time.Second}

// text of a plan: "a: h1 > h2, …; b stays".
func text(p Plan) string {
	var parts []string
	for _, s := range p.Steps {
		parts = append(parts, fmt.Sprintf("%s: %s > %s", s.Name, s.From, s.To))
	}
	for _, s := range p.Stays {
		parts = append(parts, s.Name+" stays")
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

func TestMake(t *testing.T) {
	leave := func(h Host) Host { h.Leave, h.Closed = true, "it is draining"; return h }
	closed := func(h Host) Host { h.Closed = "it does not answer"; return h }
	priced := func(h Host, p float64) Host { h.Price = p; return h }
	stuck := func(v VEE) VEE { v.Stuck = "it is PAUSED"; return v }
	resting := func(v VEE) VEE { v.Resting = true; return v }
	going := func(v VEE, to string) VEE { v.To = to; return v }
	apart := placement.Rule{Group: "g", Kind: placement.AntiAffinity, Tag: "w"}
	soft := apart
	soft.Soft = true
	for name, c := range map[string]struct {
		site   Site
		policy Policy
		want   string
	}{
		"nothing to do":               {Site{[]Host{host("h1", 4), host("h2", 4)}, []VEE{at("a", "h1", 2), at("b", "h1", 2)}, nil}, None, ""},
		"a host is left":              {Site{[]Host{leave(host("h1", 4)), host("h2", 4)}, []VEE{at("a", "h1", 2), at("b", "h1", 2)}, nil}, None, "a: h1 > h2, b: h1 > h2"},
		"no room for all":             {Site{[]Host{leave(host("h1", 4)), host("h2", 2)}, []VEE{at("a", "h1", 2), at("b", "h1", 2)}, nil}, None, "a: h1 > h2, b stays"},
		"one gives way":               {Site{[]Host{leave(host("h1", 4)), host("h2", 4), host("h3", 2)}, []VEE{at("a", "h1", 4), at("b", "h2", 1)}, nil}, None, "a: h1 > h2, b: h2 > h3"},
		"what cannot move stays":      {Site{[]Host{leave(host("h1", 4)), host("h2", 4)}, []VEE{stuck(at("a", "h1", 2)), at("b", "h1", 2)}, nil}, None, "a stays, b: h1 > h2"},
		"closed hosts take nothing":   {Site{[]Host{leave(host("h1", 4)), closed(host("h2", 4))}, []VEE{at("a", "h1", 2)}, nil}, None, "a stays"},
		"closed hosts keep theirs":    {Site{[]Host{closed(host("h1", 4)), host("h2", 4)}, []VEE{at("a", "h1", 2)}, nil}, None, ""},
		"on its way counts twice":     {Site{[]Host{leave(host("h1", 4)), host("h2", 4), host("h3", 2)}, []VEE{going(at("a", "h3", 2), "h2"), at("b", "h1", 3)}, nil}, None, "b stays"},
		"apart":                       {Site{[]Host{leave(host("h1", 4)), host("h2", 8), host("h3", 2)}, []VEE{at("a", "h1", 1, "w"), at("b", "h2", 1, "w")}, []placement.Rule{apart}}, None, "a: h1 > h3"},
		"apart where possible":        {Site{[]Host{leave(host("h1", 4)), host("h2", 8)}, []VEE{at("a", "h1", 1, "w"), at("b", "h2", 1, "w")}, []placement.Rule{soft}}, None, "a: h1 > h2"},
		"balance":                     {Site{[]Host{host("h1", 4), host("h2", 4)}, []VEE{at("a", "h1", 2), at("b", "h1", 2)}, nil}, Balance, "b: h1 > h2"},
		"balance gains too little":    {Site{[]Host{host("h1", 400), host("h2", 400)}, []VEE{at("a", "h1", 100), at("b", "h2", 100), at("c", "h1", 2)}, nil}, Balance, ""},
		"who has moved rests":         {Site{[]Host{host("h1", 4), host("h2", 4)}, []VEE{resting(at("a", "h1", 2)), resting(at("b", "h1", 2))}, nil}, Balance, ""},
		"who rests leaves":            {Site{[]Host{leave(host("h1", 4)), host("h2", 4)}, []VEE{resting(at("a", "h1", 2))}, nil}, Balance, "a: h1 > h2"},
		"consolidate":                 {Site{[]Host{host("h1", 4), host("h2", 4)}, []VEE{at("a", "h1", 2), at("b", "h1", 1), at("c", "h2", 1)}, nil}, Consolidate, "c: h2 > h1"},
		"cost":                        {Site{[]Host{priced(host("h1", 4), 5), priced(host("h2", 4), 1)}, []VEE{at("a", "h1", 2)}, nil}, Cost, "a: h1 > h2"},
		"an overloaded host":          {Site{[]Host{host("h1", 2), host("h2", 4)}, []VEE{at("a", "h1", 2), at("b", "h1", 1)}, nil}, None, "b: h1 > h2"},
		"overloaded by what is stuck": {Site{[]Host{host("h1", 2), host("h2", 4)}, []VEE{stuck(at("a", "h1", 3))}, nil}, None, ""},
		"no VEE at all":               {Site{[]Host{leave(host("h1", 2))}, nil, nil}, Balance, ""},
		"no host at all":              {Site{}, Balance, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := options
			o.Policy = c.policy
			p, err := Make(c.site, o)
			if err != nil {
				t.Fatal(err)
			}
			got := text(p)
			if alt := strings.NewReplacer("a:", "b:", "b:", "a:", "a stays", "b stays", "b stays", "a stays").Replace(c.want); got != c.want && got != sorted(alt) {
				t.Errorf("plan %q, want %q", got, c.want)
			}
			for _, s := range p.Stays {
				if s.Why == "" {
					t.Errorf("%s stays without a reason", s.Name)
				}
			}
		})
	}
}

func sorted(s string) string {
	parts := strings.Split(s, ", ")
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// world applies plans as a site does, with what may go wrong.
type world struct {
	t    *rapid.T
	site Site
}

func (w *world) vee(id vee.ID) *VEE {
	for i := range w.site.VEEs {
		if w.site.VEEs[i].ID == id {
			return &w.site.VEEs[i]
		}
	}
	return nil
}

// check what must hold at every instant.
func (w *world) check() {
	used, moving := map[string]vee.Resources{}, map[string]int{}
	tagged := map[string]vee.ID{}
	for _, v := range w.site.VEEs {
		for _, h := range []string{v.Host, v.To} {
			if h == "" {
				continue
			}
			used[h] = used[h].Plus(v.Uses)
			if v.To != "" {
				moving[h]++
			}
			if len(v.Label.Tags) > 0 {
				if o, taken := tagged[h]; taken && o != v.ID {
					w.t.Fatalf("%s and %s are both at %s", o, v.ID, h)
				}
				tagged[h] = v.ID
			}
		}
	}
	for _, h := range w.site.Hosts {
		if !used[h.Name].Fits(h.Capacity) {
			w.t.Fatalf("host %s has %+v and is used %+v", h.Name, h.Capacity, used[h.Name])
		}
		if moving[h.Name] > options.Slots {
			w.t.Fatalf("%d migrations at host %s", moving[h.Name], h.Name)
		}
	}
}

// TestPlansAreApplied draws sites and applies plans to them, while migrations end in any
// order, some fail and hosts close. Whatever happens, nothing is ever overloaded, and when
// nothing goes wrong the plan comes to its end.
func TestPlansAreApplied(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t}
		n := rapid.IntRange(1, 6).Draw(t, "hosts")
		for i := range n {
			h := host(fmt.Sprint("h", i), rapid.Int64Range(2, 8).Draw(t, "capacity"))
			if h.Leave = rapid.IntRange(0, 3).Draw(t, "leave") == 0; h.Leave {
				h.Closed = "it is draining"
			}
			w.site.Hosts = append(w.site.Hosts, h)
		}
		free := map[string]int64{}
		for _, h := range w.site.Hosts {
			free[h.Name] = h.Capacity.MilliCPU / 1000
		}
		tagged := map[string]bool{}
		for i := range rapid.IntRange(0, 14).Draw(t, "vees") {
			h := rapid.SampledFrom(w.site.Hosts).Draw(t, "at").Name
			need := rapid.Int64Range(1, 4).Draw(t, "needs")
			if need > free[h] {
				continue
			}
			free[h] -= need
			v := at(fmt.Sprint("v", i), h, need)
			if !tagged[h] && rapid.IntRange(0, 4).Draw(t, "tagged") == 0 {
				tagged[h] = true
				v.Label.Tags = []string{"w"}
			}
			w.site.VEEs = append(w.site.VEEs, v)
		}
		w.site.Rules = []placement.Rule{{Group: "g", Kind: placement.AntiAffinity, Tag: "w"}}
		o := options
		o.Policy = rapid.SampledFrom([]Policy{None, Balance, Consolidate, Cost}).Draw(t, "policy")
		faults := rapid.Bool().Draw(t, "faults")
		w.apply(o, faults)
	})
}

func (w *world) apply(o Options, faults bool) {
	now := time.Unix(0, 0)
	plan, err := Make(w.site, o)
	if err != nil {
		w.t.Fatal(err)
	}
	for range 10 * (1 + len(plan.Steps)) {
		w.check()
		now = now.Add(time.Second)
		p := Next(plan.Steps, w.site, time.Unix(0, 0))
		if again := Next(plan.Steps, w.site, time.Unix(0, 0)); fmt.Sprint(p) != fmt.Sprint(again) {
			w.t.Fatalf("asked twice: %+v and %+v", p, again)
		}
		switch {
		case p.Stop != "" && !faults:
			w.t.Fatalf("stopped without a reason: %s", p.Stop)
		case p.Stop != "":
			return
		case p.Done:
			w.left(plan)
			return
		}
		for _, i := range p.Begin {
			if v := w.vee(plan.Steps[i].VEE); v.Host != plan.Steps[i].From {
				w.t.Fatalf("step %d of %+v begins on %s", i, plan.Steps, v.Host)
			}
			w.vee(plan.Steps[i].VEE).To = plan.Steps[i].To
			w.check()
		}
		w.endOne(plan, now, faults)
	}
	w.t.Fatalf("the plan does not come to its end: %+v", plan.Steps)
}

// endOne migration, well or not, or let a host vanish.
func (w *world) endOne(plan Plan, now time.Time, faults bool) {
	var moving []*VEE
	for i := range w.site.VEEs {
		if w.site.VEEs[i].To != "" {
			moving = append(moving, &w.site.VEEs[i])
		}
	}
	if len(moving) == 0 {
		w.t.Fatalf("nothing runs and nothing begins: %+v", plan.Steps)
	}
	v := rapid.SampledFrom(moving).Draw(w.t, "ends")
	switch fault := rapid.IntRange(0, 9).Draw(w.t, "fault"); {
	case faults && fault == 0:
		v.FailedTo, v.Failed, v.FailedBegan, v.To = v.To, "no space left on device", now, ""
	case faults && fault == 1:
		h := &w.site.Hosts[rapid.IntRange(0, len(w.site.Hosts)-1).Draw(w.t, "closes")]
		h.Closed = "it does not answer"
	default:
		v.Host, v.To = v.To, ""
	}
}

// left: hosts that were to be left have only those that the plan says stay.
func (w *world) left(plan Plan) {
	for _, h := range w.site.Hosts {
		for _, v := range w.site.VEEs {
			if h.Leave && v.Host == h.Name && !slices.ContainsFunc(plan.Stays, func(s Stay) bool { return s.VEE == v.ID }) {
				w.t.Fatalf("VEE %s is still on %s", v.ID, h.Name)
			}
		}
	}
}

// TestItSettles: whatever the policy, a site that is planned for again and again, while a VEE
// comes or goes now and then, is left alone after a plan or two: nothing churns.
func TestItSettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := options
		o.Policy = rapid.SampledFrom(Policies).Draw(t, "policy")
		var s Site
		for i := range rapid.IntRange(2, 4).Draw(t, "hosts") {
			h := host(fmt.Sprint("h", i), 12)
			h.Price = float64(1 + rapid.IntRange(0, 3).Draw(t, "price"))
			s.Hosts = append(s.Hosts, h)
		}
		arrive := func() {
			h := rapid.SampledFrom(s.Hosts).Draw(t, "at").Name
			v := at(fmt.Sprint("v", len(s.VEEs)), h, rapid.Int64Range(1, 3).Draw(t, "needs"))
			used := v.Uses
			for _, w := range s.VEEs {
				if w.Host == h {
					used = used.Plus(w.Uses)
				}
			}
			if used.Fits(size(12)) {
				s.VEEs = append(s.VEEs, v)
			}
		}
		for range rapid.IntRange(2, 10).Draw(t, "vees") {
			arrive()
		}
		for range rapid.IntRange(1, 2).Draw(t, "changes") {
			const enough = 3 // plans
			for n := 0; ; n++ {
				p, err := Make(s, o)
				if err != nil {
					t.Fatal(err)
				}
				if len(p.Steps) == 0 {
					break
				}
				if n == enough {
					t.Fatalf("plan %d by %s still moves %s: score %g to %g", n+1, o.Policy, text(p), p.Before, p.After)
				}
				if p.After > p.Before*(1-o.Gain)+1e-9 {
					t.Fatalf("a plan that gains less than it must: score %g to %g", p.Before, p.After)
				}
				for _, step := range p.Steps {
					for i := range s.VEEs {
						if s.VEEs[i].ID == step.VEE {
							s.VEEs[i].Host = step.To
						}
					}
				}
			}
			arrive()
		}
	})
}

func TestNext(t *testing.T) {
	began := time.Unix(100, 0)
	steps := []Step{{VEE: "alpha.a", Name: "a", From: "h1", To: "h2"}, {VEE: "alpha.b", Name: "b", From: "h2", To: "h1", After: []int{0}},
		{VEE: "alpha.a", Name: "a", From: "h2", To: "h3", After: []int{0, 1}}}
	base := func() Site {
		return Site{Hosts: []Host{host("h1", 4), host("h2", 4), host("h3", 4)}, VEEs: []VEE{at("a", "h1", 1), at("b", "h2", 1)}}
	}
	for name, c := range map[string]struct {
		change func(*Site)
		states string
		begin  []int
		stop   string
	}{
		"at the beginning":        {func(*Site) {}, "waiting waiting waiting", []int{0}, ""},
		"under way":               {func(s *Site) { s.VEEs[0].To = "h2" }, "running waiting waiting", nil, ""},
		"the first is done":       {func(s *Site) { s.VEEs[0].Host = "h2" }, "done waiting waiting", []int{1}, ""},
		"the second runs":         {func(s *Site) { s.VEEs[0].Host, s.VEEs[1].To = "h2", "h1" }, "done running waiting", nil, ""},
		"the last":                {func(s *Site) { s.VEEs[0].Host, s.VEEs[1].Host = "h2", "h1" }, "done done waiting", []int{2}, ""},
		"all done":                {func(s *Site) { s.VEEs[0].Host, s.VEEs[1].Host = "h3", "h1" }, "done done done", nil, ""},
		"one is gone":             {func(s *Site) { s.VEEs = s.VEEs[1:] }, "done waiting done", []int{1}, ""},
		"one failed":              {func(s *Site) { s.VEEs[0].FailedTo, s.VEEs[0].Failed, s.VEEs[0].FailedBegan = "h2", "why", began }, "failed waiting waiting", nil, "did not come to host h2: why"},
		"one failed long ago":     {func(s *Site) { s.VEEs[0].FailedTo, s.VEEs[0].FailedBegan = "h2", began.Add(-1) }, "waiting waiting waiting", []int{0}, ""},
		"one was stopped":         {func(s *Site) { s.VEEs[0].Stuck = "it is DEFINED" }, "waiting waiting waiting", nil, "it is DEFINED"},
		"moved by somebody":       {func(s *Site) { s.VEEs[1].Host = "h3" }, "waiting waiting waiting", nil, "is on host h3"},
		"being moved by somebody": {func(s *Site) { s.VEEs[0].To = "h3" }, "waiting waiting waiting", nil, "on its way to host h3"},
		"a host vanished":         {func(s *Site) { s.Hosts = s.Hosts[:2] }, "waiting waiting waiting", nil, "host h3 is no part"},
		"a host closed later on":  {func(s *Site) { s.VEEs[0].To, s.Hosts[2].Closed = "h2", "it is draining" }, "running waiting waiting", nil, "host h3 takes no VEE"},
	} {
		s := base()
		c.change(&s)
		p := Next(steps, s, began)
		if got := strings.Trim(fmt.Sprint(p.States), "[]"); got != c.states || !slices.Equal(p.Begin, c.begin) || !strings.Contains(p.Stop, c.stop) || (p.Stop == "") != (c.stop == "") || p.Done != (c.states == "done done done") {
			t.Errorf("%s: %+v, want %s, begin %v, stop %q", name, p, c.states, c.begin, c.stop)
		}
	}
}
