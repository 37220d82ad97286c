package reassign

import (
	"cmp"
	"math"
	"slices"
)

// terrain is what the workers look up to find moves worth weighing; it does not change.
type terrain struct {
	problem *Problem
	within  []uint64  // VEE × host: a bit, where the VEE may be
	few     [][]int32 // by VEE: the hosts where it may be, if those are listed
	movable []int     // VEEs that may be elsewhere than at first
	family  [][]int32 // by service: its VEEs
	bySize  []int     // VEEs, the smallest first, by load and balance cost
	rank    []int     // of each VEE in bySize
	large   float64   // load and balance cost of a large VEE: nine of ten are smaller
}

// maxListed bounds the hosts in all lists of few.
const maxListed = 1 << 24

// newTerrain finds where each VEE may go at all: to hosts that would have room for it if
// nobody else had come. What is transient is held by all who begin at a host, wherever they
// are, so that most hosts have room for few of the others, and for large ones none.
func newTerrain(p *Problem) *terrain {
	t := &terrain{problem: p, within: make([]uint64, (p.VEEs*p.Hosts+63)/64), few: make([][]int32, p.VEEs),
		family: make([][]int32, p.Services), bySize: make([]int, p.VEEs), rank: make([]int, p.VEEs)}
	room := slices.Clone(p.Capacity)
	for v, h := range p.Initial {
		for r, d := range p.Demand[v*p.Resources : (v+1)*p.Resources] {
			if p.Transient[r] {
				room[int(h)*p.Resources+r] -= d
			}
		}
	}
	listed := 0
	size := make([]float64, p.VEEs)
	for v := range p.VEEs {
		demand := p.Demand[v*p.Resources : (v+1)*p.Resources]
		var hosts []int32
		for h := range p.Hosts {
			if h == int(p.Initial[v]) || under(demand, room[h*p.Resources:(h+1)*p.Resources]) {
				i := v*p.Hosts + h
				t.within[i/64] |= 1 << (i % 64)
				hosts = append(hosts, int32(h))
			}
		}
		if len(hosts) > 1 {
			t.movable = append(t.movable, v)
		}
		if len(hosts) < p.Hosts*3/4 && listed+len(hosts) <= maxListed {
			t.few[v] = slices.Clone(hosts)
			listed += len(hosts)
		}
		for r, d := range demand {
			size[v] += float64(d) * float64(p.LoadWeight[r])
		}
		for _, b := range p.Balances {
			size[v] += math.Abs(float64(demand[b.B])-float64(b.Target)*float64(demand[b.A])) * float64(b.Weight)
		}
		t.bySize[v] = v
		t.family[p.Service[v]] = append(t.family[p.Service[v]], int32(v))
	}
	slices.SortStableFunc(t.bySize, func(v, w int) int { return cmp.Compare(size[v], size[w]) })
	for i, v := range t.bySize {
		t.rank[v] = i
	}
	if p.VEEs > 0 {
		t.large = max(1, size[t.bySize[p.VEEs*9/10]])
	}
	return t
}

func under(demand, room []int64) bool {
	for r, x := range room {
		if demand[r] > x {
			return false
		}
	}
	return true
}

// reaches tells whether v may be on host h.
func (t *terrain) reaches(v, h int) bool {
	i := v*t.problem.Hosts + h
	return t.within[i/64]>>(i%64)&1 != 0
}
