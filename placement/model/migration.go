package model

import (
	"math"
	"slices"
	"time"
)

// Migration says how long live migrations take, and how many there may be at once. There are
// three ways to say how they get on with each other:
//
//   - Slots is 0: any number at once, each as if it were alone (BtrPlace).
//   - Slots: so many at a host, each with its part of the link, used or not.
//   - Shared: a plan gives each migration of a link's bandwidth what is best, and the sum
//     never exceeds the link (mVM: Kherbache, Madelaine, Hermenier, "Scheduling Live
//     Migration of Virtual Machines", IEEE TCC 2017). Slots may bound their number besides.
type Migration struct {
	MiBs  float64 // in a second that a host's link sends, and receives; 0: migrations take Least
	Slots int
	Least time.Duration
	// Allocation is how long it takes to change what a VEE may use.
	Allocation time.Duration

	Shared bool
	Links  []Link // besides those of the hosts; they matter only where they are Shared
}

// Link between some hosts and all others, such as the uplink of a rack. Each way it has its
// bandwidth.
type Link struct {
	Hosts []int32
	MiBs  float64 // in a second; 0: no bound
}

// Duration of a migration of v with the bandwidth that every migration has: the share of a
// slot, or all of the link.
func (g Migration) Duration(v *VEE) time.Duration {
	if g.Shared {
		return g.At(v, g.MiBs)
	}
	return g.At(v, g.MiBs/float64(max(1, g.Slots)))
}

// At is the duration of a migration of v that sends so many MiB in a second; 0: Least. First
// goes the memory, then what has been dirtied meanwhile, which is no more than is hot, and so
// on in ever shorter rounds: memory / bandwidth + dirtied / (bandwidth − dirty rate). A VEE
// that dirties its memory faster than nine tenths of that can be copied is slowed down to it,
// as hypervisors do.
func (g Migration) At(v *VEE, mibs float64) time.Duration {
	if !(mibs > 0) || v.MemoryMiB == 0 {
		return g.Least
	}
	memory, rate := float64(v.MemoryMiB), min(v.DirtyMiBs, .9*mibs)
	hot := memory
	if v.HotMiB > 0 {
		hot = min(hot, float64(v.HotMiB))
	}
	seconds := memory / mibs
	seconds += min(hot, rate*seconds) / (mibs - rate)
	return max(g.Least, time.Duration(min(seconds, math.MaxInt64/4e9)*float64(time.Second)))
}

// Network is what migrations cross on their way: the link of the host that they leave, that
// of the one that they come to, and those shared by hosts of which only one is among them.
// Each direction of a link is one of its own.
type Network struct {
	capacity []float64 // MiB in a second; 0: no bound
	of       [][]int32 // by host: Links that it shares
	hosts    int
}

// Network of the model's hosts.
func (m *Model) Network() *Network {
	n := &Network{of: make([][]int32, len(m.Hosts)), hosts: len(m.Hosts)}
	for h := range m.Hosts {
		c := m.Hosts[h].LinkMiBs
		if c == 0 {
			c = m.Migration.MiBs
		}
		n.capacity = append(n.capacity, c, c)
	}
	for i, l := range m.Migration.Links {
		n.capacity = append(n.capacity, l.MiBs, l.MiBs)
		for h := range set(l.Hosts) {
			n.of[h] = append(n.of[h], int32(i))
		}
	}
	return n
}

// Directions that there are of links: Path and Capacity name them by number.
func (n *Network) Directions() int { return len(n.capacity) }

// Capacity of a direction, in MiB in a second.
func (n *Network) Capacity(direction int32) float64 { return n.capacity[direction] }

// Path of what is sent from a host to another: the directions with a bound, appended to path.
func (n *Network) Path(from, to int32, path []int32) []int32 {
	add := func(direction int32) {
		if n.capacity[direction] > 0 {
			path = append(path, direction)
		}
	}
	add(2 * from)
	add(2*to + 1)
	base := int32(2 * n.hosts)
	for _, l := range n.of[from] {
		if !slices.Contains(n.of[to], l) {
			add(base + 2*l)
		}
	}
	for _, l := range n.of[to] {
		if !slices.Contains(n.of[from], l) {
			add(base + 2*l + 1)
		}
	}
	return path
}
