package scale

import (
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/placement/model"
)

// peers are the hosts' agents: a dvms.Node each, and what the shell of one needs.
type peers struct {
	*world
	p     dvms.Protocol
	over  dvms.Overlay
	node  []dvms.Node
	tick  []time.Duration // by host: when its next Tick is scheduled; 0: none is
	watch []bool          // by host: its monitor looks again
	plans map[dvms.ID]planned
}

type planned struct {
	problem
	plan model.Plan
}

// gather the hosts into an overlay.
func (w *world) gather() {
	w.name, w.number = make([]string, w.Hosts), make(map[string]int32, w.Hosts)
	for h := range w.Hosts {
		w.name[h] = fmt.Sprintf("h%d", h)
		w.number[w.name[h]] = int32(h)
	}
	s := &peers{world: w, p: dvms.DefaultProtocol(w.Algorithm == Locality), node: make([]dvms.Node, w.Hosts),
		tick: make([]time.Duration, w.Hosts), watch: make([]bool, w.Hosts), plans: map[dvms.ID]planned{}}
	for h := range s.node {
		s.node[h].Host = w.name[h]
	}
	if w.Algorithm == Ring {
		s.over = ring(w.name)
	} else {
		s.over = newNear(w)
	}
	w.peers = s
}

// ring of hosts by a hash of their names, as Chord's.
func ring(names []string) dvms.Ring {
	key := func(name string) uint64 {
		h := fnv.New64a()
		h.Write([]byte(name))
		x := h.Sum64() * 0x9E3779B97F4A7C15 // FNV alone keeps names of one length in order
		return x ^ x>>29
	}
	keys := make(map[string]uint64, len(names))
	for _, n := range names {
		keys[n] = key(n)
	}
	sorted := slices.SortedFunc(slices.Values(names), func(a, b string) int {
		switch ka, kb := keys[a], keys[b]; {
		case ka < kb:
			return -1
		case ka > kb:
			return 1
		}
		return 0
	})
	return dvms.NewRing(sorted)
}

// near is dvms.Nearest over numbers: of ten thousands of hosts it looks at those of one site.
type near struct {
	w     *world
	sites [][]int32
}

func newNear(w *world) *near {
	n := &near{w: w, sites: make([][]int32, w.Sites)}
	for h, s := range w.site {
		n.sites[s] = append(n.sites[s], int32(h))
	}
	return n
}

// Next nearest host: of the own site first.
func (n *near) Next(self string, members, tried []string) string {
	me := n.w.number[self]
	own := int(n.w.site[me])
	if name := n.nearest(me, n.sites[own], members, tried); name != "" {
		return name
	}
	best, least := "", math.Inf(1)
	for s, hosts := range n.sites {
		if s == own {
			continue
		}
		if name := n.nearest(me, hosts, members, tried); name != "" {
			if d := n.w.distance(me, n.w.number[name]); d < least {
				best, least = name, d
			}
		}
	}
	return best
}

func (n *near) nearest(me int32, hosts []int32, members, tried []string) string {
	best, least := int32(-1), math.Inf(1)
	for _, h := range hosts {
		if d := n.w.distance(me, h); d < least && h != me && !slices.Contains(members, n.w.name[h]) && !slices.Contains(tried, n.w.name[h]) {
			best, least = h, d
		}
	}
	if best < 0 {
		return ""
	}
	return n.w.name[best]
}

// distance between hosts: seconds of round-trip time.
func (w *world) distance(a, b int32) float64 {
	dx, dy := float64(w.x[a]-w.x[b]), float64(w.y[a]-w.y[b])
	return math.Sqrt(dx*dx + dy*dy)
}

// alarm: a host has just got too much. Its monitor sees it when it looks next, and says so
// again as long as it is so.
func (s *peers) alarm(h int32) {
	if s.watch[h] {
		return
	}
	s.watch[h] = true
	phase := time.Duration(h) * s.Monitor / time.Duration(s.Hosts)
	now := s.now()
	next := (now-phase)/s.Monitor*s.Monitor + phase
	for next <= now {
		next += s.Monitor
	}
	s.sim.After(next-now, "", func() { s.look(h) })
}

func (s *peers) look(h int32) {
	if s.watch[h] = s.world.over(h); !s.watch[h] {
		return
	}
	if !s.node[h].In() {
		s.step(h, dvms.Violated{Reason: dvms.Overloaded})
	}
	s.sim.After(s.Monitor, "", func() { s.look(h) })
}

func (s *peers) step(h int32, e dvms.Event) {
	n, actions := s.node[h].Step(s.p, s.over, s.now(), e)
	s.node[h] = n
	for _, a := range actions {
		s.act(h, a)
	}
	s.wake(h)
}

// wake the host at its deadline.
func (s *peers) wake(h int32) {
	at, due := s.node[h].Deadline(s.p)
	if !due || s.tick[h] != 0 && s.tick[h] <= at {
		return
	}
	s.tick[h] = at
	s.sim.After(at-s.now(), "", func() {
		if s.tick[h] != at {
			return
		}
		s.tick[h] = 0
		if d, ok := s.node[h].Deadline(s.p); ok && d <= s.now() {
			s.step(h, dvms.Tick{})
			return
		}
		s.wake(h)
	})
}

func (s *peers) act(h int32, a dvms.Action) {
	switch a := a.(type) {
	case dvms.Send:
		s.result.Messages++
		to := s.number[a.To]
		delay := time.Duration(s.distance(h, to) / 2 * float64(time.Second))
		s.sim.After(max(50*time.Microsecond, delay), "", func() { s.step(to, a.Message) })
	case dvms.Solve:
		s.solve(h, a.Partition)
	case dvms.Apply:
		id := a.Partition.ID
		todo := s.plans[id]
		delete(s.plans, id)
		s.result.Messages += 2 * len(todo.plan.Actions)
		s.result.Partitions.Add(float64(len(a.Partition.Members)))
		s.carryOut(todo.problem, todo.plan, func() { s.step(h, dvms.Applied{ID: id}) })
	case dvms.Escalate:
		s.result.Help++
	}
}

// solve a partition's problem: the leader asks the members what they have, and computes.
func (s *peers) solve(h int32, p dvms.Partition) {
	hosts := make([]int32, len(p.Members))
	vees, far := 0, 0.
	for i, m := range p.Members {
		hosts[i] = s.number[m]
		vees += len(s.on[hosts[i]])
		far = max(far, s.distance(h, hosts[i]))
	}
	s.result.Messages += 2 * (len(hosts) - 1)
	s.result.Solves++
	s.sim.After(time.Duration(far*float64(time.Second)), "", func() {
		todo := s.problem(hosts)
		outcome := dvms.NoWay
		switch {
		case !slices.ContainsFunc(hosts, s.world.over):
			outcome = dvms.Nothing
		case s.room(hosts):
			if plan, ok := todo.plan(s.Seed); ok {
				outcome = dvms.Planned
				s.plans[p.ID] = planned{todo, plan}
			}
		}
		s.sim.After(s.pace(vees), "", func() {
			s.step(h, dvms.Solved{ID: p.ID, Version: p.Version, Outcome: outcome})
		})
	})
}

// room: together the hosts have as much as they need; whether it fits is for the solver.
func (w *world) room(hosts []int32) bool {
	sum := 0
	for _, h := range hosts {
		sum += int(w.used[h])
	}
	return sum <= len(hosts)*w.HostCPU
}
