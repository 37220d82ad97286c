package dnt

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// nearest is the overlay of package dvms over the members that are not doubted: by distance,
// and those of which none is known yet after the others, as successors on a ring of hashed
// names. So a site whose hosts have only just met each other works, and its hosts do not all
// turn to the same one.
type nearest []Member

// Next implements dvms.Overlay.
func (n nearest) Next(self string, members, tried []string) string {
	best, found := Member{}, false
	for _, m := range n {
		if m.Doubted || m.Host == self || slices.Contains(members, m.Host) || slices.Contains(tried, m.Host) {
			continue
		}
		if !found || closer(self, m, best) {
			best, found = m, true
		}
	}
	return best.Host
}

// closer reports whether self turns to a before b.
func closer(self string, a, b Member) bool {
	switch {
	case a.Far != b.Far:
		return b.Far
	case a.Far:
		return after(self, a.Host) < after(self, b.Host)
	}
	return cmp.Or(cmp.Compare(a.Distance, b.Distance), cmp.Compare(a.Host, b.Host)) < 0
}

// after is how far after self a host is on the ring.
func after(self, host string) uint64 { return place(host) - place(self) }

func place(host string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(host))
	x := h.Sum64() * 0x9E3779B97F4A7C15 // FNV alone keeps names of one length in order
	return x ^ x>>29
}
