package dvms

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/sim"
)

// world of nodes over a simulated network. Each node has room for ten units of load; solving
// spreads what the members have, moving is taking it over one by one.
type world struct {
	sim           *sim.Sim
	net           *sim.Network
	p             Protocol
	over          Overlay
	names         []string
	nodes         map[string]*Node
	load          map[string]int
	down          map[string]bool
	moves         map[string]int // that run at a node now
	begun         map[ID]Time
	drain         map[string]Reason // hosts to be emptied, and why
	asked, merged int               // escalations, and partitions that another one absorbed

	say     func(format string, args ...any)
	written map[string]string // partition and version: what it said
	wrong   string
}

const room = 10

// longest that a partition may live: some rounds of all nodes, and all that there is moved.
const longest = 3 * time.Minute

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld(seed uint64, p Protocol, over Overlay, names []string, link sim.Link) *world {
	s := sim.New(seed, epoch)
	s.ShuffleTies()
	w := &world{sim: s, net: sim.NewNetwork(s, link), p: p, over: over, names: names, nodes: map[string]*Node{}, load: map[string]int{},
		down: map[string]bool{}, moves: map[string]int{}, begun: map[ID]Time{}, drain: map[string]Reason{}, written: map[string]string{}}
	for _, n := range names {
		w.nodes[n] = &Node{Host: n}
	}
	return w
}

func (w *world) now() Time { return w.sim.Now().Sub(epoch) }

func (w *world) fail(format string, args ...any) {
	if w.wrong == "" {
		w.wrong = fmt.Sprintf("%v: ", w.now()) + fmt.Sprintf(format, args...)
	}
}

func (w *world) step(host string, e Event) {
	if w.down[host] {
		return
	}
	old := *w.nodes[host]
	n, actions := old.Step(w.p, w.over, w.now(), e)
	*w.nodes[host] = n
	if w.say != nil {
		w.tell(old, n)
	}
	for _, a := range actions {
		w.act(host, a)
	}
	if n.Leads() {
		if _, known := w.begun[n.Part.ID]; !known {
			w.begun[n.Part.ID] = w.now()
		}
		if age := w.now() - w.begun[n.Part.ID]; age > longest {
			w.fail("%v is %v old", n.Part, age)
		}
	}
	if at, due := n.Deadline(w.p); due {
		w.sim.At(epoch.Add(at), "", func() {
			if d, ok := w.nodes[host].Deadline(w.p); ok && d <= w.now() {
				w.step(host, Tick{})
			}
		})
	}
}

func (w *world) act(host string, a Action) {
	switch a := a.(type) {
	case Send:
		if u, ok := a.Message.(Update); ok {
			w.oneWriter(u.Partition)
			if (u.Absorbed != ID{}) {
				w.merged++
			}
		}
		w.net.Send(host, a.To, "", func() { w.step(a.To, a.Message) })
	case Solve:
		w.sim.After(300*time.Millisecond, "", func() { w.solve(host, a.Partition) })
	case Apply:
		w.apply(host, a.Partition)
	case Escalate:
		w.asked++
		if w.say != nil {
			w.say("%s: %s asks the site for help", host, a.Partition.ID)
		}
	}
}

// oneWriter: no version of a partition is written twice.
func (w *world) oneWriter(p Partition) {
	key, text := fmt.Sprint(p.ID, p.Version), fmt.Sprint(p)
	if was, ok := w.written[key]; ok && was != text {
		w.fail("two partitions of one version:\n%s\n%s", was, text)
	}
	w.written[key] = text
}

// share is what each member is to have; nil: there is not enough room.
func (w *world) share(p Partition) map[string]int {
	all, places := 0, 0
	for _, m := range p.Members {
		all += w.load[m]
		if w.drain[m] == "" {
			places++
		}
	}
	if all > places*room {
		return nil
	}
	to := map[string]int{}
	for _, m := range p.Members {
		to[m] = min(w.load[m], room)
		if w.drain[m] != "" {
			to[m] = 0
		}
		all -= to[m]
	}
	for _, m := range p.Members {
		if w.drain[m] == "" {
			more := min(all, room-to[m])
			to[m], all = to[m]+more, all-more
		}
	}
	return to
}

func (w *world) violated(n string) bool { return w.load[n] > room || w.drain[n] != "" && w.load[n] > 0 }

func (w *world) solve(host string, p Partition) {
	o := Planned
	switch {
	case !slices.ContainsFunc(p.Members, w.violated):
		o = Nothing
	case w.share(p) == nil:
		o = NoWay
	}
	w.step(host, Solved{ID: p.ID, Version: p.Version, Outcome: o})
}

// apply moves one unit after the other; each needs the word of both ends when it begins.
func (w *world) apply(host string, p Partition) {
	for _, m := range p.Members {
		if !w.down[m] && !w.nodes[m].Allows(p.ID, p.Plan) && !w.nodes[m].gaveUp(p) {
			w.fail("%s applies %v, and %s does not know: %+v", host, p, m, w.nodes[m].Part)
		}
	}
	to := w.share(p)
	w.next(host, p, to)
}

// gaveUp: it confirmed, and is free by now (its leader was silent, or it was restarted).
func (n Node) gaveUp(p Partition) bool {
	return n.Part.ID != p.ID || n.Part.Version.Term > p.Version.Term
}

func (w *world) next(host string, p Partition, to map[string]int) {
	for _, a := range p.Members {
		for _, b := range p.Members {
			if to == nil || w.load[a] <= to[a] || w.load[b] >= to[b] {
				continue
			}
			if w.down[host] || w.down[a] || w.down[b] || !w.nodes[a].Allows(p.ID, p.Plan) || !w.nodes[b].Allows(p.ID, p.Plan) {
				w.step(host, Applied{ID: p.ID, Failed: true})
				return
			}
			w.move(a, b, func() { w.next(host, p, to) })
			return
		}
	}
	w.step(host, Applied{ID: p.ID, Failed: to == nil})
}

func (w *world) move(a, b string, then func()) {
	for _, n := range []string{a, b} {
		if w.moves[n]++; w.moves[n] > 1 {
			w.fail("two plans move VEEs at %s at once", n)
		}
		w.step(n, Reserved{By: true})
	}
	w.sim.After(time.Second, "", func() {
		if !w.down[a] && !w.down[b] && w.load[a] > 0 {
			w.load[a], w.load[b] = w.load[a]-1, w.load[b]+1
			if w.say != nil {
				w.say("a VEE moves from %s to %s: %d and %d", a, b, w.load[a], w.load[b])
			}
		}
		for _, n := range []string{a, b} {
			if w.moves[n]--; w.moves[n] == 0 {
				w.step(n, Reserved{})
			}
		}
		then()
	})
}

// monitor tells nodes of their load, every second.
func (w *world) monitor(n string) {
	was := false
	w.sim.Every(time.Second, "", func() bool {
		switch {
		case w.drain[n] != "" && w.load[n] > 0:
			w.step(n, Violated{w.drain[n]})
		case w.load[n] > room:
			w.step(n, Violated{Overloaded})
		case was:
			w.step(n, Calm{})
		}
		was = w.violated(n)
		return true
	})
}

func (w *world) crash(n string) {
	w.down[n] = true
	w.net.Down(n, true)
	for _, o := range w.names { // the others learn it after a while
		w.sim.After(3*time.Second, "", func() {
			if w.down[n] {
				w.step(o, Suspect{n})
			}
		})
	}
}

func (w *world) restart(n string) {
	if w.down[n] {
		w.down[n] = false
		w.net.Down(n, false)
		w.nodes[n] = &Node{Host: n, Number: w.nodes[n].Number, reserved: w.moves[n] > 0}
	}
}

// tell people what has changed of a node's partition.
func (w *world) tell(was, is Node) {
	switch {
	case !was.In() && !is.In():
	case was.In() && !is.In():
		w.say("%s: free again (%s)", is.Host, was.Part.ID)
	case is.Pledged && (!was.In() || was.Part.ID != is.Part.ID):
		w.say("%s: would join %s", is.Host, is.Part.ID)
	case !is.Pledged && is.Leads() && (was.Part.Version != is.Part.Version || was.Part.ID != is.Part.ID || !was.Leads()):
		w.say("%s: leads %s, %s, with %s, version %d.%d", is.Host, is.Part.ID, is.Part.State, strings.Join(is.Part.Members, " "), is.Part.Version.Term, is.Part.Version.Count)
	case !is.Leads() && (was.Part.ID != is.Part.ID || was.Pledged && !is.Pledged):
		w.say("%s: member of %s", is.Host, is.Part.ID)
	}
}

// overlays of both kinds over the same nodes.
func overlays(names []string, r *rand.Rand) map[string]func() (Protocol, Overlay) {
	near := make(Nearest, 0, len(names))
	for i, n := range names {
		near = append(near, Place{Node: n, Site: string(rune('a' + i*2/len(names))), Unknown: r.IntN(6) == 0,
			At: Coordinate{X: r.Float64(), Y: r.Float64(), Height: .01}})
	}
	return map[string]func() (Protocol, Overlay){
		"ring":     func() (Protocol, Overlay) { return DefaultProtocol(false), NewRing(names) },
		"locality": func() (Protocol, Overlay) { return DefaultProtocol(true), near },
	}
}
