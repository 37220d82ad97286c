// Package placement decides which host takes a VEE: given hosts and requests it answers
// with choices and, for every host that was refused, why. It is pure: no I/O, no clock, no
// goroutine, and the same input gives the same answer.
//
// What it does not do: it never moves a VEE that has a place.
package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

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
	Name  string // for Why
	Label Label
	Needs vee.Resources
	// Driver that the host must have; empty: any, but at least one.
	Driver string
}

// Choice for one request. Host is empty where there is none; Why says, for people, what
// spoke for the host, or what against each of them.
type Choice struct {
	Host    string
	Why     string
	Refused []Refusal // in the order of the hosts
}

// Refusal of a host for a request.
type Refusal struct {
	Host string
	Why  string
}

// Place with policy p.
func (p Policy) Place(hosts []Host, requests []Request, rules []Rule) []Choice {
	return Place(hosts, requests, rules, p)
}

// Place chooses a host for every request for which there is one, in a good order for all
// of them; the answer is in the order of the requests. Hosts and requests are not changed.
//
// The order matters to a greedy placement: it tries the large before the small, and when
// that leaves somebody without a place, some other orders, keeping the best.
func Place(hosts []Host, requests []Request, rules []Rule, policy Policy) []Choice {
	bundles := bundle(requests, rules)
	slices.SortStableFunc(bundles, func(a, b []int) int {
		return cmp.Compare(weight(requests, b), weight(requests, a))
	})
	var best []Choice
	for try := range 1 + min(len(bundles)-1, retries) {
		choices := newBoard(hosts, rules, policy).place(requests, rotate(bundles, try))
		if best == nil || placed(choices) > placed(best) {
			best = choices
		}
		if placed(best) == len(requests) {
			break
		}
	}
	return best
}

// retries with another order, each beginning with a bundle further down.
const retries = 8

func rotate(bundles [][]int, n int) [][]int {
	return slices.Concat(bundles[n:n+1], bundles[:n], bundles[n+1:])
}

func placed(choices []Choice) (n int) {
	for _, c := range choices {
		if c.Host != "" {
			n++
		}
	}
	return n
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

func weight(requests []Request, bundle []int) (w float64) {
	for _, i := range bundle {
		n := requests[i].Needs
		w += float64(n.MilliCPU)/1000 + float64(n.Memory)/float64(vee.GiB) + float64(n.Disk)/float64(100*vee.GiB)
	}
	return w
}

// board is the hosts with what has been placed on them so far.
type board struct {
	hosts  []Host
	rules  []Rule
	policy Policy
}

func newBoard(hosts []Host, rules []Rule, policy Policy) *board {
	b := &board{hosts: slices.Clone(hosts), rules: rules, policy: policy}
	for i := range b.hosts {
		b.hosts[i].VEEs = slices.Clip(b.hosts[i].VEEs) // so that append copies
	}
	return b
}

func (b *board) place(requests []Request, bundles [][]int) []Choice {
	choices := make([]Choice, len(requests))
	for _, members := range bundles {
		qs := make([]Request, len(members))
		for k, i := range members {
			qs[k] = requests[i]
		}
		c := b.choose(qs)
		for _, i := range members {
			choices[i] = c
		}
	}
	return choices
}

// choose a host for all of qs together, and put them there.
func (b *board) choose(qs []Request) Choice {
	best, bestScore := -1, score{}
	var refused []Refusal
	for i := range b.hosts {
		s, why := b.rate(i, qs)
		switch {
		case why != "":
			refused = append(refused, Refusal{b.hosts[i].Name, why})
		case best < 0 || s.better(bestScore):
			best, bestScore = i, s
		}
	}
	if best < 0 {
		return Choice{Why: explain(qs, refused), Refused: refused}
	}
	h := &b.hosts[best]
	for _, q := range qs {
		h.Used = h.Used.Plus(q.Needs)
		h.VEEs = append(h.VEEs, q.Label)
	}
	return Choice{Host: h.Name, Why: b.praise(*h, bestScore), Refused: refused}
}

// score of a host; the smaller is better, in the order of the fields.
type score struct {
	broken int     // soft rules
	full   float64 // by policy
	kin    int     // VEEs of the same group there: a tie goes to another host
}

func (s score) better(o score) bool {
	return cmp.Or(cmp.Compare(s.broken, o.broken), cmp.Compare(s.full, o.full), cmp.Compare(s.kin, o.kin)) < 0
}

// rate host i for qs together, or say why not.
func (b *board) rate(i int, qs []Request) (score, string) {
	h, s := b.hosts[i], score{}
	if h.Closed != "" {
		return s, h.Closed
	}
	var needs vee.Resources
	for k, q := range qs {
		if why := driver(h, q.Driver); why != "" {
			return s, why
		}
		for _, r := range b.rules {
			if !q.Label.in(r) {
				continue
			}
			if why := b.breaks(i, q, qs[:k], r); why != "" && !r.Soft {
				return s, why
			} else if why != "" {
				s.broken++
			}
		}
		needs = needs.Plus(q.Needs)
	}
	if why := shortage(needs, h.Capacity.Minus(h.Used)); why != "" {
		return s, why
	}
	s.full = fullness(h.Used.Plus(needs), h.Capacity)
	if b.policy == Pack {
		s.full = -s.full
	}
	for _, l := range h.VEEs {
		if l.Group == qs[0].Label.Group {
			s.kin++
		}
	}
	return s, ""
}

func driver(h Host, want string) string {
	switch {
	case len(h.Drivers) == 0:
		return "it has no hypervisor"
	case want != "" && !slices.Contains(h.Drivers, want):
		return fmt.Sprintf("it has no hypervisor %q (it has %s)", want, strings.Join(h.Drivers, ", "))
	}
	return ""
}

// breaks says why q on host i, beside the others of its bundle, would break r.
func (b *board) breaks(i int, q Request, beside []Request, r Rule) string {
	switch r.Kind {
	case AntiAffinity:
		for _, l := range b.hosts[i].VEEs {
			if l.in(r) {
				return fmt.Sprintf("it has a VEE tagged %q already, and they must be on distinct hosts", r.Tag)
			}
		}
		for _, o := range beside {
			if o.Label.in(r) {
				return fmt.Sprintf("VEEs tagged %q must be on distinct hosts, but another rule binds %s and %s together", r.Tag, o.Name, q.Name)
			}
		}
	case Affinity:
		for j, h := range b.hosts {
			if j == i {
				continue
			}
			for _, l := range h.VEEs {
				if l.in(r) {
					return fmt.Sprintf("VEEs tagged %q must be together, and one is on %s", r.Tag, h.Name)
				}
			}
		}
	}
	return ""
}

// shortage in words, or "".
func shortage(needs, free vee.Resources) string {
	var short []string
	if needs.MilliCPU > free.MilliCPU {
		short = append(short, fmt.Sprintf("%s needed and %s free", cpus(needs.MilliCPU), cpus(max(0, free.MilliCPU))))
	}
	if needs.Memory > free.Memory {
		short = append(short, fmt.Sprintf("%v memory needed and %v free", needs.Memory, max(0, free.Memory)))
	}
	if needs.Disk > free.Disk {
		short = append(short, fmt.Sprintf("%v disk needed and %v free", needs.Disk, max(0, free.Disk)))
	}
	return strings.Join(short, ", ")
}

func cpus(milli int64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", float64(milli)/1000), "0"), ".") + " vCPU"
}

// fullness is the fraction in use of the scarcest dimension.
func fullness(used, capacity vee.Resources) (f float64) {
	for _, d := range [][2]int64{{used.MilliCPU, capacity.MilliCPU}, {int64(used.Memory), int64(capacity.Memory)}, {int64(used.Disk), int64(capacity.Disk)}} {
		if d[1] > 0 {
			f = max(f, float64(d[0])/float64(d[1]))
		}
	}
	return f
}

func (b *board) praise(h Host, s score) string {
	free := h.Capacity.Minus(h.Used)
	how := "the emptiest that can take it"
	if b.policy == Pack {
		how = "the fullest that can take it"
	}
	why := fmt.Sprintf("%s: %s, %v memory, %v disk stay free", how, cpus(free.MilliCPU), free.Memory, free.Disk)
	if s.broken > 0 {
		why += fmt.Sprintf("; %d soft rules not kept", s.broken)
	}
	return why
}

// explain why no host takes qs: every reason once, with the hosts that gave it.
func explain(qs []Request, refused []Refusal) string {
	if len(refused) == 0 {
		return "the site has no host"
	}
	var order []string
	by := map[string][]string{}
	for _, r := range refused {
		if by[r.Why] == nil {
			order = append(order, r.Why)
		}
		by[r.Why] = append(by[r.Why], r.Host)
	}
	for i, why := range order {
		order[i] = summary(by[why]) + ": " + why
	}
	text := "no host takes it: " + strings.Join(order, "; ")
	if len(qs) > 1 {
		text = fmt.Sprintf("no host takes the %d VEEs that a rule binds together: %s", len(qs), strings.Join(order, "; "))
	}
	return text
}

func summary(hosts []string) string {
	if len(hosts) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(hosts[:2], ", "), len(hosts)-2)
	}
	return strings.Join(hosts, ", ")
}
