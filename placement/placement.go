// Package placement is the first placement of VEEs in a manager's own terms: given hosts and
// requests it answers with choices, and says in words what spoke for a host or what against
// all of them. The engine below it (model, solve) does the work. It is pure: no I/O, no
// clock, no goroutine, and the same input gives the same answer.
//
// What it does not do: it never moves a VEE that has a place.
package placement

import (
	"fmt"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Policy prefers one host among those that can take a VEE.
type Policy string

// Policies. Balance evens out how full the hosts are; Pack fills them one after the other.
const (
	Balance Policy = "balance"
	Pack    Policy = "pack"
)

// Kind of a rule.
type Kind string

// Kinds: on one host, on distinct hosts (BtrPlace's Gather and Spread).
const (
	Affinity     Kind = "affinity"
	AntiAffinity Kind = "anti-affinity"
)

// Rule holds between the VEEs of one group that carry Tag. A soft one is kept where it is
// possible.
type Rule struct {
	Group string
	Kind  Kind
	Tag   string
	Soft  bool
}

// Label is what rules see of a VEE. Group is opaque; groups of different customers must
// have different names.
type Label struct {
	Group string
	Tags  []string
}

func (l Label) in(r Rule) bool { return l.Group == r.Group && slices.Contains(l.Tags, r.Tag) }

// Host as it is before the placement.
type Host struct {
	Name string
	// Closed says why the host takes no VEE ("it is draining"); empty: it does.
	Closed   string
	Capacity vee.Resources
	Used     vee.Resources
	Drivers  []string // hypervisors that it has
	VEEs     []Label  // placed there
}

// Request for a place.
type Request struct {
	Name  string
	Label Label
	Needs vee.Resources
	// Driver that the host must have; empty: any, but at least one.
	Driver string
	// Barred hosts may not take it, and why, in words.
	Barred map[string]string
}

// Choice for one request. Host is empty where there is none; Why says, for people, what
// spoke for the host, or what against each of them.
type Choice struct {
	Host string
	Why  string
}

// Place with policy p.
func (p Policy) Place(hosts []Host, requests []Request, rules []Rule) []Choice {
	return Place(hosts, requests, rules, p)
}

// Place chooses a host for every request for which there is one; the answer is in the order
// of the requests. Hosts and requests are not changed. Soft rules are kept where that costs
// nobody its place.
func Place(hosts []Host, requests []Request, rules []Rule, policy Policy) []Choice {
	f := &first{hosts: hosts, requests: requests, rules: rules, policy: policy, bundles: bundle(requests, rules)}
	f.solve()
	choices := make([]Choice, len(requests))
	for k, members := range f.bundles {
		c := f.choice(k)
		for _, i := range members {
			choices[i] = c
		}
	}
	return choices
}

// bundle gathers requests that hard affinity binds to one host: indices into requests.
func bundle(requests []Request, rules []Rule) [][]int {
	first := make([]int, len(requests)) // representative of each request's bundle
	for i := range first {
		first[i] = i
	}
	for _, r := range rules {
		if r.Kind != Affinity || r.Soft {
			continue
		}
		to := -1
		for i, q := range requests {
			switch {
			case !q.Label.in(r):
			case to < 0:
				to = first[i]
			default:
				for j, from := 0, first[i]; j < len(first); j++ {
					if first[j] == from {
						first[j] = to
					}
				}
			}
		}
	}
	var bundles [][]int
	at := map[int]int{}
	for i, f := range first {
		k, known := at[f]
		if !known {
			k = len(bundles)
			at[f] = k
			bundles = append(bundles, nil)
		}
		bundles[k] = append(bundles[k], i)
	}
	return bundles
}

// first placement under way. A bundle is one VEE to the engine.
type first struct {
	hosts    []Host
	requests []Request
	rules    []Rule
	policy   Policy
	bundles  [][]int

	at     []int32 // host of each bundle, or model.None
	last   *setting
	broken []int // by bundle: soft rules that are not kept
}

// setting is the model of one attempt.
type setting struct {
	m       *model.Model
	placer  *solve.Placer
	bundles []int32        // VEE of each bundle
	rule    []Rule         // by the model's rule; those that want a driver have Kind ""
	drivers map[int]string // by the model's rule: the driver that it wants
}

// solve first with soft rules as if they were hard, then without them for those that found
// no place, and all without them if that places more.
func (f *first) solve() {
	nowhere := slices.Repeat([]int32{model.None}, len(f.bundles))
	f.at = f.attempt(true, nowhere)
	if slices.ContainsFunc(f.rules, func(r Rule) bool { return r.Soft }) && slices.Contains(f.at, model.None) {
		f.at = f.attempt(false, f.at)
		if slices.Contains(f.at, model.None) {
			if other := f.attempt(false, nowhere); placed(other) > placed(f.at) {
				f.at = other
			}
		}
	}
	f.last = f.setting(false, f.at)
	f.broken = f.countBroken()
}

func placed(at []int32) (n int) {
	for _, h := range at {
		if h != model.None {
			n++
		}
	}
	return n
}

// attempt to place those that fixed has no host for.
func (f *first) attempt(soft bool, fixed []int32) []int32 {
	s := f.setting(soft, fixed)
	at := slices.Clone(fixed)
	var open []int32
	var which []int
	for k, v := range s.bundles {
		if at[k] == model.None && f.contradiction(k) == "" {
			open, which = append(open, v), append(which, k)
		}
	}
	for i, h := range s.placer.Batch(open) {
		at[which[i]] = h
	}
	return at
}

// dimensions of the model. Amounts in KiB hold the largest disks (model.MaxAmount).
var dimensions = []model.Dimension{"cpu_milli", "memory_kib", "disk_kib"}

// amounts of r, rounded up.
func amounts(r vee.Resources) []int64 {
	kib := func(b vee.Bytes) int64 { return (int64(b) + 1023) / 1024 }
	return []int64{r.MilliCPU, kib(r.Memory), kib(r.Disk)}
}

// setting of the model: hosts with what is used there as one VEE, the VEEs there that rules
// name, the bundles. soft rules are in it as if they were hard, or not at all.
func (f *first) setting(soft bool, at []int32) *setting {
	s := &setting{m: model.New(dimensions...), drivers: map[int]string{}}
	members := make([][]int32, len(f.rules))
	for i, h := range f.hosts {
		capacity := []int64{h.Capacity.MilliCPU, int64(h.Capacity.Memory) / 1024, int64(h.Capacity.Disk) / 1024}
		s.m.AddHost(model.Host{Name: h.Name, Draining: h.Closed != "" || len(h.Drivers) == 0, Hypervisors: h.Drivers}, capacity...)
		s.m.AddVEE(model.VEE{State: model.Running, Host: int32(i)}, amounts(h.Used)...)
		for _, l := range h.VEEs {
			v := model.None
			for k, r := range f.rules {
				if l.in(r) && v == model.None {
					v = s.m.AddVEE(model.VEE{State: model.Running, Host: int32(i)})
				}
				if l.in(r) {
					members[k] = append(members[k], v)
				}
			}
		}
	}
	for k, bundle := range f.bundles {
		x := model.VEE{Name: f.requests[bundle[0]].Name}
		if at[k] != model.None {
			x.State, x.Host = model.Running, at[k]
		}
		var needs vee.Resources
		for _, i := range bundle {
			needs = needs.Plus(f.requests[i].Needs)
		}
		v := s.m.AddVEE(x, amounts(needs)...)
		s.bundles = append(s.bundles, v)
		for j, r := range f.rules {
			if slices.ContainsFunc(bundle, func(i int) bool { return f.requests[i].Label.in(r) }) {
				members[j] = append(members[j], v)
			}
		}
		if barred := f.barred(k); len(barred) > 0 {
			s.require(Rule{}, model.Ban{VEEs: []int32{v}, Hosts: barred})
		}
		for _, i := range bundle {
			if d := f.requests[i].Driver; d != "" {
				s.drivers[len(s.rule)] = d
				s.require(Rule{}, model.Hypervised{VEEs: []int32{v}, Hypervisor: d})
			}
		}
	}
	for k, r := range f.rules {
		if (!r.Soft || soft) && len(members[k]) > 1 {
			s.require(r, r.constraint(members[k]))
		}
	}
	policy := solve.Balance
	if f.policy == Pack {
		policy = solve.Pack
	}
	s.placer = solve.NewPlacer(s.m, policy)
	return s
}

// barred hosts of bundle k.
func (f *first) barred(k int) (hosts []int32) {
	for h := range f.hosts {
		if f.bar(k, int32(h)) != "" {
			hosts = append(hosts, int32(h))
		}
	}
	return hosts
}

// bar of host h for bundle k, in words; "": there is none.
func (f *first) bar(k int, h int32) string {
	for _, i := range f.bundles[k] {
		if why := f.requests[i].Barred[f.hosts[h].Name]; why != "" {
			return why
		}
	}
	return ""
}

func (s *setting) require(r Rule, c model.Constraint) {
	s.rule = append(s.rule, r)
	s.m.Require(c)
}

func (r Rule) constraint(vees []int32) model.OnPlacement {
	if r.Kind == Affinity {
		return model.Gather{VEEs: vees}
	}
	return model.Spread{VEEs: vees}
}

// contradiction between rules that makes a bundle impossible anywhere, or "".
func (f *first) contradiction(k int) string {
	for _, r := range f.rules {
		var apart []string
		for _, i := range f.bundles[k] {
			if q := f.requests[i]; r.Kind == AntiAffinity && !r.Soft && q.Label.in(r) {
				apart = append(apart, q.Name)
			}
		}
		if len(apart) > 1 {
			return fmt.Sprintf("VEEs tagged %q must be on distinct hosts, but another rule binds %s and %s together", r.Tag, apart[0], apart[1])
		}
	}
	return ""
}

// countBroken soft rules for each bundle that has a place.
func (f *first) countBroken() []int {
	broken := make([]int, len(f.bundles))
	s := f.setting(true, f.at)
	now := model.Begin(s.m)
	for i, r := range s.rule {
		c, ok := s.m.Rules[i].Constraint.(model.OnPlacement)
		if !ok || !r.Soft || c.Check(s.m, now) == nil {
			continue
		}
		for k, v := range s.bundles {
			if slices.Contains(c.About().VEEs, v) {
				broken[k]++
			}
		}
	}
	return broken
}

// choice for bundle k, in words.
func (f *first) choice(k int) Choice {
	if h := f.at[k]; h != model.None {
		return Choice{Host: f.hosts[h].Name, Why: f.praise(h, f.broken[k])}
	}
	return Choice{Why: f.explain(k)}
}

func (f *first) praise(h int32, broken int) string {
	used := f.hosts[h].Used
	for k, bundle := range f.bundles {
		for _, i := range bundle {
			if f.at[k] == h {
				used = used.Plus(f.requests[i].Needs)
			}
		}
	}
	free, how := f.hosts[h].Capacity.Minus(used), "the emptiest that can take it"
	if f.policy == Pack {
		how = "the fullest that can take it"
	}
	why := fmt.Sprintf("%s: %s, %v memory, %v disk stay free", how, cpus(free.MilliCPU), free.Memory, free.Disk)
	if broken > 0 {
		why += fmt.Sprintf("; %d soft rules not kept", broken)
	}
	return why
}

// explain why no host takes bundle k: every reason once, with the hosts that gave it.
func (f *first) explain(k int) string {
	if len(f.hosts) == 0 {
		return "the site has no host"
	}
	which := "it"
	if n := len(f.bundles[k]); n > 1 {
		which = fmt.Sprintf("the %d VEEs that a rule binds together", n)
	}
	if why := f.contradiction(k); why != "" {
		return fmt.Sprintf("no host takes %s: %s", which, why)
	}
	var order []string
	by := map[string][]string{}
	for h := range f.hosts {
		why := f.refusal(k, int32(h))
		if by[why] == nil {
			order = append(order, why)
		}
		by[why] = append(by[why], f.hosts[h].Name)
	}
	for i, why := range order {
		order[i] = summary(by[why]) + ": " + why
	}
	return fmt.Sprintf("no host takes %s: %s", which, strings.Join(order, "; "))
}

// refusal of host h for bundle k, in words.
func (f *first) refusal(k int, h int32) string {
	host := f.hosts[h]
	switch {
	case host.Closed != "":
		return host.Closed
	case len(host.Drivers) == 0:
		return "it has no hypervisor"
	}
	if why := f.bar(k, h); why != "" {
		return why
	}
	v := f.last.bundles[k]
	w := f.last.placer.Why(v, h)
	if w.Rule >= 0 {
		r := f.last.rule[w.Rule]
		switch r.Kind {
		case AntiAffinity:
			return fmt.Sprintf("it has a VEE tagged %q already, and they must be on distinct hosts", r.Tag)
		case Affinity:
			for _, o := range f.last.m.Rules[w.Rule].Constraint.About().VEEs {
				if at := f.last.placer.At(o); at != model.None && at != h {
					return fmt.Sprintf("VEEs tagged %q must be together, and one is on %s", r.Tag, f.hosts[at].Name)
				}
			}
		default:
			return fmt.Sprintf("it has no hypervisor %q (it has %s)", f.last.drivers[w.Rule], strings.Join(host.Drivers, ", "))
		}
	}
	needs, capacity := f.last.m.Demand(v), f.last.m.Capacity(h)
	var short []string
	for d := range dimensions {
		if w.Short[d] > 0 {
			free := min(capacity[d], max(0, needs[d]-w.Short[d]))
			short = append(short, fmt.Sprintf("%s needed and %s free", quantity(d, needs[d]), quantity(d, free)))
		}
	}
	return strings.Join(short, ", ")
}

// quantity of a dimension, for people.
func quantity(d int, n int64) string {
	switch d {
	case 0:
		return cpus(n)
	case 1:
		return fmt.Sprintf("%v memory", vee.Bytes(n)*vee.KiB)
	}
	return fmt.Sprintf("%v disk", vee.Bytes(n)*vee.KiB)
}

func cpus(milli int64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", float64(milli)/1000), "0"), ".") + " vCPU"
}

func summary(hosts []string) string {
	if len(hosts) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(hosts[:2], ", "), len(hosts)-2)
	}
	return strings.Join(hosts, ", ")
}
