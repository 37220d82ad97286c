package tunnel

import (
	"testing"
)

func TestTwoSitesShareANetwork(t *testing.T) {
	l := newLab(t, "alpha", "beta")
	n := &network{id: "alpha.shop/back", vnis: map[string]uint32{"alpha": 5, "beta": 9}, tunnel: 3, net4: "10.1.0"}
	a, b := l.guest(n, l.sites[0], 1), l.guest(n, l.sites[1], 2)
	b.serve(7)
	a.serve(7)
	l.put(n)
	a.reaches(b, 1<<20)
	b.reaches(a, 1<<20)
}
