package balance

import (
	"hash/fnv"
	"net/netip"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// Slots that a hash or a weight is spread over: enough that a share is right to a few
// percent with a dozen backends, and few enough to be written at every change.
const slotCount = 128

// spread lays out the backends in the slots that the kernel goes through: in turn, or by a
// hash of the client's address modulo their number. connections under way of each backend
// matter to LeastConnections alone. No backends: no slots.
func spread(a plan.Algorithm, backends []netip.AddrPort, connections []int) []netip.AddrPort {
	switch {
	case len(backends) == 0:
		return nil
	case a == plan.SourceHash:
		return rendezvous(backends)
	case a == plan.LeastConnections:
		return weighted(backends, connections)
	}
	return backends
}

// rendezvous gives each slot to the backend whose hash with it is highest (Thaler and
// Ravishankar 1998): a backend that goes takes along its own slots alone.
func rendezvous(backends []netip.AddrPort) []netip.AddrPort {
	slots := make([]netip.AddrPort, slotCount)
	for i := range slots {
		var best uint64
		for _, b := range backends {
			h := fnv.New64a()
			text, _ := b.MarshalBinary()
			h.Write(append(text, byte(i)))
			if s := mix(h.Sum64()); s >= best {
				best, slots[i] = s, b
			}
		}
	}
	return slots
}

// mix is the finaliser of SplitMix64: FNV alone hardly changes the upper bits when the last
// byte does.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// weighted gives backends slots in inverse proportion to the connections that they have,
// evenly mixed (smooth weighted round robin).
func weighted(backends []netip.AddrPort, connections []int) []netip.AddrPort {
	weight := make([]float64, len(backends))
	total := 0.0
	for i := range backends {
		weight[i] = 1 / float64(1+connections[i])
		total += weight[i]
	}
	slots := make([]netip.AddrPort, slotCount)
	credit := make([]float64, len(backends))
	for s := range slots {
		best := 0
		for i := range backends {
			if credit[i] += weight[i]; credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= total
		slots[s] = backends[best]
	}
	return slots
}
