package solve

import (
	"math/bits"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// index finds the emptiest (or fullest) host that takes a VEE: a binary tree over the hosts
// in which each node knows the best fullness below it and, for each dimension, the most
// room below it. A search opens nodes best first and passes over those without room.
type index struct {
	b      *board
	policy Policy
	leaves int
	rank   []float32 // by node: the least fullness below it, or minus the most
	most   []int64   // node × dimension: room; less than nothing below closed hosts
	queue  []node    // of the search, kept for the next
}

type node struct {
	rank float32
	at   int32
}

func newIndex(b *board, p Policy) *index {
	x := &index{b: b, policy: p, leaves: 1}
	for x.leaves < len(b.m.Hosts) {
		x.leaves *= 2
	}
	x.rank = make([]float32, 2*x.leaves)
	x.most = make([]int64, 2*x.leaves*b.dims)
	for i := range x.leaves {
		x.leaf(i)
	}
	for i := x.leaves - 1; i > 0; i-- {
		x.join(i)
	}
	return x
}

const closed = -1 << 62

func (x *index) leaf(h int) {
	i := x.leaves + h
	if h >= len(x.b.m.Hosts) || !x.b.open[h] {
		x.rank[i] = 3 // behind all others
		for d := range x.b.dims {
			x.most[i*x.b.dims+d] = closed
		}
		return
	}
	x.rank[i] = float32(x.b.fullness(int32(h)))
	if x.policy == Pack {
		x.rank[i] = -x.rank[i]
	}
	copy(x.most[i*x.b.dims:(i+1)*x.b.dims], x.b.room(int32(h)))
}

func (x *index) join(i int) {
	n := x.b.dims
	x.rank[i] = min(x.rank[2*i], x.rank[2*i+1])
	a, b, c := x.most[2*i*n:(2*i+1)*n], x.most[(2*i+1)*n:(2*i+2)*n], x.most[i*n:(i+1)*n]
	for d := range c {
		c[d] = max(a[d], b[d])
	}
}

// update what is known of h after VEEs came or went.
func (x *index) update(h int32) {
	x.leaf(int(h))
	for i := (x.leaves + int(h)) / 2; i > 0; i /= 2 {
		x.join(i)
	}
}

// find the host that the policy prefers among those that take v, or None; one where every
// wish is heeded before all others.
func (x *index) find(v int32) int32 {
	if x.b.wants(v) {
		if h := x.search(v, true); h != model.None {
			return h
		}
	}
	return x.search(v, false)
}

func (x *index) search(v int32, heed bool) int32 {
	q := x.queue[:0]
	defer func() { x.queue = q }()
	if x.leaves > 0 && x.room(1, v) {
		q = append(q, node{x.rank[1], 1})
	}
	for len(q) > 0 {
		top := q[0]
		last := len(q) - 1
		q[0] = q[last]
		q = q[:last]
		sink(q)
		if i := int(top.at); i >= x.leaves {
			if h := int32(i - x.leaves); x.b.open[h] && x.b.allowed(v, h) && (!heed || x.b.heed(v, h)) {
				return h
			}
			continue
		}
		for _, child := range [2]int32{2 * top.at, 2*top.at + 1} {
			if x.room(int(child), v) {
				q = append(q, node{x.rank[child], child})
				swim(q)
			}
		}
	}
	return model.None
}

// room tells whether some host below node i may have what v needs.
func (x *index) room(i int, v int32) bool {
	most := x.most[i*x.b.dims : (i+1)*x.b.dims]
	for d, n := range x.b.demand(v) {
		if n > most[d] && (n > 0 || most[d] == closed) {
			return false
		}
	}
	return i < x.leaves || i-x.leaves < len(x.b.m.Hosts)
}

// before orders nodes: the better rank, then what is nearer to a host (so that many equals
// cost no more than one), then the first.
func before(a, b node) bool {
	if a.rank != b.rank {
		return a.rank < b.rank
	}
	if d, e := bits.Len32(uint32(a.at)), bits.Len32(uint32(b.at)); d != e {
		return d > e
	}
	return a.at < b.at
}

// sink and swim keep q a heap.
func sink(q []node) {
	for i := 0; ; {
		c := 2*i + 1
		if c >= len(q) {
			return
		}
		if c+1 < len(q) && before(q[c+1], q[c]) {
			c++
		}
		if !before(q[c], q[i]) {
			return
		}
		q[i], q[c] = q[c], q[i]
		i = c
	}
}

func swim(q []node) {
	for i := len(q) - 1; i > 0; {
		p := (i - 1) / 2
		if !before(q[i], q[p]) {
			return
		}
		q[i], q[p] = q[p], q[i]
		i = p
	}
}
