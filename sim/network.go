package sim

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Link from one node to another, as messages find it.
type Link struct {
	Delay   time.Duration // at least
	Jitter  time.Duration // so much more at most, evenly spread; later messages may overtake
	Loss    float64       // share of messages that are lost, 0 to 1
	Twice   float64       // share of messages that come a second time
	Ordered bool          // none overtakes another, as in a TCP connection
}

// Network between nodes, which are known by their names. A node is there and up until it is
// told otherwise. A message is lost when its link is cut, or one of its nodes down, when it
// is sent, when it would arrive, or at any time in between.
type Network struct {
	sim   *Sim
	usual Link
	links map[pair]*state
	sides []map[string]int  // of all partitions, the last one is in force; 0: a node that is not named; nil: whole
	downs map[string]uint64 // how often a node went down or up; odd: it is down
}

type pair struct{ from, to string }

// state of a link in use.
type state struct {
	Link
	random *rand.Rand
	last   time.Time // arrival of the message before
	cut    bool
	cuts   uint64
}

// NewNetwork whose links are as usual, unless they are set.
func NewNetwork(s *Sim, usual Link) *Network {
	return &Network{sim: s, usual: usual, links: map[pair]*state{}, sides: []map[string]int{nil}, downs: map[string]uint64{}}
}

func (n *Network) link(from, to string) *state {
	p := pair{from, to}
	if n.links[p] == nil {
		n.links[p] = &state{Link: n.usual, random: n.sim.Stream("network " + from + " " + to)}
	}
	return n.links[p]
}

// Set what the link is like, in that direction, from now on.
func (n *Network) Set(from, to string, l Link) { n.link(from, to).Link = l }

// Cut the link in that direction, or mend it.
func (n *Network) Cut(from, to string, cut bool) {
	if l := n.link(from, to); l.cut != cut {
		l.cut = cut
		l.cuts++
	}
}

// Partition the nodes: messages pass within a side, and not between sides. Nodes that are not
// named make a side of their own. It takes the place of a partition before.
func (n *Network) Partition(sides ...[]string) {
	of := map[string]int{}
	for i, side := range sides {
		for _, node := range side {
			of[node] = i + 1
		}
	}
	n.sides = append(n.sides, of)
}

// Heal the partition.
func (n *Network) Heal() { n.sides = append(n.sides, nil) }

// Down takes a node off the network, or back. What was on its way to or from it is lost.
func (n *Network) Down(node string, down bool) {
	if down != (n.downs[node]%2 == 1) {
		n.downs[node]++
	}
}

// Reaches reports whether a message could pass now.
func (n *Network) Reaches(from, to string) bool {
	return !n.link(from, to).cut && !n.parted(from, to, len(n.sides)-1) && n.downs[from]%2 == 0 && n.downs[to]%2 == 0
}

// parted reports whether a partition, that one or a later one, came between two nodes.
func (n *Network) parted(from, to string, since int) bool {
	return slices.ContainsFunc(n.sides[since:], func(side map[string]int) bool { return side[from] != side[to] })
}

// Send a message: deliver is called when it arrives, never before Send returns, and possibly
// never or twice. What says it for people.
func (n *Network) Send(from, to, what string, deliver func()) {
	l := n.link(from, to)
	// As many numbers are drawn for each message whatever becomes of it, so that what one
	// link is set to does not change the fate of the messages that follow.
	lost, twice := l.random.Float64() < l.Loss, l.random.Float64() < l.Twice
	jitter := [2]float64{l.random.Float64(), l.random.Float64()}
	if lost || !n.Reaches(from, to) {
		return
	}
	copies := 1
	if twice {
		copies = 2
	}
	for i := range copies {
		at := n.sim.Now().Add(l.Delay + time.Duration(jitter[i]*float64(l.Jitter)))
		if l.Ordered && at.Before(l.last) {
			at = l.last
		}
		l.last = at
		before, since := n.changes(from, to), len(n.sides)-1
		n.sim.At(at, from+" → "+to+": "+what, func() {
			if before == n.changes(from, to) && !n.parted(from, to, since) {
				deliver()
			}
		})
	}
}

// changes that there were of a link and its two nodes.
func (n *Network) changes(from, to string) [3]uint64 {
	return [3]uint64{n.link(from, to).cuts, n.downs[from], n.downs[to]}
}
