// Package solve finds placements: for one VEE in microseconds, for a batch, by moving only
// what is broken, or better than they are by an objective; and it plans how to get there.
// It is pure: no I/O, no clock, and it returns when its work is done or the caller's stop
// says so.
//
// What it answers can be verified with package check, which shares no code with it.
package solve

import (
	"slices"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// board is a placement that VEEs enter and leave, with everything counted that the
// constraints ask for.
type board struct {
	m    *model.Model
	dims int

	at     []int32 // host of each VEE, None where it has none now
	guests [][]int32
	free   []int64   // host × dimension; below 0: overloaded
	need   []int64   // VEE × dimension: what it is to be allocated
	open   []bool    // by host: it takes VEEs
	mean   []float64 // by dimension: what a host has on average

	rules         // those that must hold
	wishes wishes // those that cost where they do not
}

// newBoard that is empty. Of the hard rules it has those that keep wants.
func newBoard(m *model.Model, keep func(i int, c model.Constraint) bool) *board {
	b := &board{m: m, dims: len(m.Dimensions), at: make([]int32, len(m.VEEs)), guests: make([][]int32, len(m.Hosts)),
		open: make([]bool, len(m.Hosts)), rules: newRules(m), wishes: wishes{rules: newRules(m)}}
	b.need, b.free = slices.Clone(m.Demands()), slices.Clone(m.Capacities())
	for v := range b.at {
		b.at[v] = model.None
	}
	for h := range m.Hosts {
		b.open[h] = !m.Hosts[h].Off && !m.Hosts[h].Draining
	}
	b.mean = make([]float64, b.dims)
	for d := range b.mean {
		for h := range m.Hosts {
			b.mean[d] += float64(m.Capacity(int32(h))[d]) / float64(len(m.Hosts))
		}
		b.mean[d] = max(b.mean[d], 1)
	}
	b.reserve()
	places := map[model.Scope][]int32{}
	for i, r := range m.Rules {
		if !r.Hard() {
			b.compile(&b.wishes.rules, i, r.Constraint, places)
			continue
		}
		if p, ok := r.Constraint.(model.Preserve); ok {
			for _, v := range p.VEEs {
				at := int(v)*b.dims + p.Dimension
				b.need[at] = max(b.need[at], p.Amount)
			}
		}
		if keep(i, r.Constraint) {
			b.compile(&b.rules, i, r.Constraint, places)
		}
	}
	return b
}

// reserve room for the guests that hosts have at the beginning and a few more, in one piece.
func (b *board) reserve() {
	const more = 2
	count := make([]int, len(b.m.Hosts))
	for v := range b.m.VEEs {
		if b.m.VEEs[v].State == model.Running {
			count[b.m.VEEs[v].Host]++
		}
	}
	all := make([]int32, len(b.m.VEEs)+more*len(b.m.Hosts))
	for h, n := range count {
		b.guests[h], all = all[:0:n+more], all[n+more:]
	}
}

func everyRule(int, model.Constraint) bool { return true }

func (b *board) demand(v int32) []int64 {
	return b.need[int(v)*b.dims : (int(v)+1)*b.dims]
}

func (b *board) room(h int32) []int64 { return b.free[int(h)*b.dims : (int(h)+1)*b.dims] }

// fits tells whether h has room for v; what v does not need may be overdrawn.
func (b *board) fits(v, h int32) bool {
	room := b.room(h)
	for d, n := range b.demand(v) {
		if n > room[d] && n > 0 {
			return false
		}
	}
	return true
}

// overloaded tells whether something is overdrawn at h.
func (b *board) overloaded(h int32) bool {
	return slices.ContainsFunc(b.room(h), func(f int64) bool { return f < 0 })
}

// allowed tells whether every rule lets v be on h; v itself counts for nothing.
func (b *board) allowed(v, h int32) bool { return b.forbids(v, h) < 0 }

// forbids is the first rule that keeps v off h; -1: none.
func (b *board) forbids(v, h int32) int32 {
	for _, i := range b.of[v] {
		if !b.rule[i].allows(b, v, h) {
			return i
		}
	}
	for _, i := range b.general {
		if !b.rule[i].allows(b, v, h) {
			return i
		}
	}
	return -1
}

// takes tells whether v may go to h as things are.
func (b *board) takes(v, h int32) bool { return b.open[h] && b.fits(v, h) && b.allowed(v, h) }

// enter puts v on h; it must have left where it was.
func (b *board) enter(v, h int32) {
	b.at[v] = h
	b.guests[h] = append(b.guests[h], v)
	b.occupy(v, h, 1)
}

func (b *board) leave(v int32) {
	h := b.at[v]
	b.at[v] = model.None
	g := b.guests[h]
	i := slices.Index(g, v)
	g[i] = g[len(g)-1]
	b.guests[h] = g[:len(g)-1]
	b.occupy(v, h, -1)
}

// occupy counts v on h once more (by 1) or once less (by -1): a VEE that moves is counted
// on two hosts.
func (b *board) occupy(v, h int32, by int32) {
	room := b.room(h)
	for d, n := range b.demand(v) {
		room[d] -= int64(by) * n
	}
	for _, i := range b.of[v] {
		b.rule[i].count(v, h, by)
	}
	for _, i := range b.general {
		b.rule[i].count(v, h, by)
	}
	b.wishes.count(b.m, v, h, by)
}

// fullness of h: the used share of its scarcest dimension; of a host without capacity 1.
func (b *board) fullness(h int32) (full float64) {
	room := b.room(h)
	for d, c := range b.m.Capacity(h) {
		if c > 0 {
			full = max(full, 1-float64(room[d])/float64(c))
		} else if room[d] < 0 {
			return 1
		}
	}
	return full
}
