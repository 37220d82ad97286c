package dvms

import (
	"math"
	"slices"
)

// Ring of nodes: the next of each is its successor.
type Ring struct {
	nodes []string
	at    map[string]int
}

// NewRing of nodes, in the order given. Sorted by a hash of their names they make a ring as
// Chord's, which has no locality at all.
func NewRing(nodes []string) Ring {
	r := Ring{nodes: slices.Clone(nodes), at: make(map[string]int, len(nodes))}
	for i, n := range nodes {
		r.at[n] = i
	}
	return r
}

// Next on the ring after self that is no member. Whom the problem passes on its way is for
// those to say, so tried is not looked at.
func (r Ring) Next(self string, members, _ []string) string {
	at := r.at[self]
	for i := 1; i < len(r.nodes); i++ {
		if n := r.nodes[(at+i)%len(r.nodes)]; !slices.Contains(members, n) {
			return n
		}
	}
	return ""
}

// Coordinate of Vivaldi: a place in the plane, and a height that every path adds; all in
// seconds of round-trip time (Dabek et al., "Vivaldi", SIGCOMM 2004).
type Coordinate struct{ X, Y, Height float64 }

// Distance in seconds of round-trip time.
func (c Coordinate) Distance(o Coordinate) float64 {
	return math.Hypot(c.X-o.X, c.Y-o.Y) + c.Height + o.Height
}

// Place of a node, as the membership knows it. Unknown: it has no coordinate yet.
type Place struct {
	Node    string
	Site    string
	At      Coordinate
	Unknown bool
}

// Nearest is the overlay by locality: own site first, then by Vivaldi distance. Nodes
// without a coordinate come after those of the same site that have one, by name.
type Nearest []Place

// Next nearest node to self.
func (n Nearest) Next(self string, members, tried []string) string {
	i := slices.IndexFunc(n, func(p Place) bool { return p.Node == self })
	if i < 0 {
		return ""
	}
	me, best, least := n[i], "", math.Inf(1)
	for _, p := range n {
		if p.Node == self {
			continue
		}
		d := 0.
		switch {
		case p.Unknown || me.Unknown:
			d = 1e6
		default:
			d = me.At.Distance(p.At)
		}
		if p.Site != me.Site {
			d += 1e9
		}
		if (d < least || d == least && p.Node < best) && !slices.Contains(members, p.Node) && !slices.Contains(tried, p.Node) {
			best, least = p.Node, d
		}
	}
	return best
}
