package solve

import (
	"slices"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// rule is a constraint in the form that the search needs: told of VEEs that come and go,
// it answers at once whether one may be on a host.
type rule interface {
	// count VEE v on host h once more (by 1) or once less (by -1).
	count(v, h int32, by int32)
	// allows v on h; where v is now (b.at) counts for nothing.
	allows(b *board, v, h int32) bool
	// blockers are the VEEs that would have to go for v to be allowed on h; false: that
	// would not help.
	blockers(b *board, v, h int32) ([]int32, bool)
	// broken is by how much the rule does not hold, in its own measure; 0: it holds.
	broken() float64
}

// rules in that form, and whom they are about.
type rules struct {
	rule    []rule
	source  []int     // by rule: its index in the model
	of      [][]int32 // by VEE: the rules that name it
	general []int32   // rules about all VEEs
}

func newRules(m *model.Model) rules { return rules{of: make([][]int32, len(m.VEEs))} }

// compile constraint i of the model into a set. Those that are no matter of where VEEs are have none:
// the rest of the package knows them by type.
func (b *board) compile(set *rules, i int, c model.Constraint, places map[model.Scope][]int32) {
	where := func(s model.Scope) []int32 {
		if places[s] == nil {
			places[s] = placesOf(b.m, s)
		}
		return places[s]
	}
	add := func(r rule, about []int32) {
		k := int32(len(set.rule))
		set.rule, set.source = append(set.rule, r), append(set.source, i)
		if about == nil {
			set.general = append(set.general, k)
		}
		for _, v := range about {
			if n := len(set.of[v]); n == 0 || set.of[v][n-1] != k {
				set.of[v] = append(set.of[v], k)
			}
		}
	}
	hosts := len(b.m.Hosts)
	switch c := c.(type) {
	case model.Fence:
		add(only(mark(hosts, c.Hosts)), c.VEEs)
	case model.Ban:
		add(except(mark(hosts, c.Hosts)), c.VEEs)
	case model.Unary:
		may := make([]bool, hosts)
		for h := range may {
			may[h] = len(c.About().VEEs) > 0 && c.Allows(b.m, c.About().VEEs[0], int32(h))
		}
		add(only(may), c.About().VEEs)
	case model.Spread:
		add(&apart{place: where(c.Scope), vees: c.VEEs, in: map[int32]int32{}}, c.VEEs)
	case model.Gather:
		add(&together{place: where(c.Scope), vees: c.VEEs, in: map[int32]int32{}}, c.VEEs)
	case model.Among:
		add(&together{place: groups(hosts, c.Groups), vees: c.VEEs, in: map[int32]int32{}}, c.VEEs)
	case model.SplitAmong:
		place := groups(hosts, c.Groups)
		for _, set := range c.Sets {
			add(&together{place: place, vees: set, in: map[int32]int32{}}, set)
		}
		add(newDivided(place, c.Sets), c.About().VEEs)
	case model.Split:
		add(newDivided(where(model.OnHost), c.Groups), c.About().VEEs)
	case model.Lonely:
		add(&lonely{member: mark(len(b.m.VEEs), c.VEEs), members: make([]int32, hosts), strangers: make([]int32, hosts)}, nil)
	case model.Overbook:
		for _, h := range c.Hosts {
			add(&limit{in: mark(hosts, []int32{h}), amount: func(v int32) int64 { return b.m.Promised(v)[c.Dimension] }, max: c.Limit(b.m, h)}, nil)
		}
	case model.ResourceCapacity:
		add(&limit{in: mark(hosts, c.Hosts), amount: func(v int32) int64 { return b.demand(v)[c.Dimension] }, max: c.Max}, nil)
	case model.RunningCapacity:
		add(&limit{in: mark(hosts, c.Hosts), amount: func(int32) int64 { return 1 }, max: int64(c.Max)}, nil)
	case model.MinPlaces:
		add(&scattered{place: where(c.Scope), of: len(veeSet(c.VEEs)), min: c.Min, in: map[int32]int32{}}, c.VEEs)
	case model.Near:
		add(&near{place: where(c.Scope), needs: veeSet(c.VEEs), gives: veeSet(c.On), needing: map[int32]int32{}, giving: map[int32]int32{}}, c.About().VEEs)
	}
}

// placesOf all hosts in a scope, as numbers.
func placesOf(m *model.Model, s model.Scope) []int32 {
	number, place := map[string]int32{}, make([]int32, len(m.Hosts))
	for h := range place {
		if s == model.OnHost {
			place[h] = int32(h)
			continue
		}
		name := m.Where(int32(h), s)
		n, known := number[name]
		if !known {
			n = int32(len(number))
			number[name] = n
		}
		place[h] = n
	}
	return place
}

func mark(n int, of []int32) []bool {
	in := make([]bool, n)
	for _, i := range of {
		in[i] = true
	}
	return in
}

func veeSet(of []int32) map[int32]bool {
	s := make(map[int32]bool, len(of))
	for _, v := range of {
		s[v] = true
	}
	return s
}

// groups of hosts as places; -1: in none.
func groups(hosts int, of [][]int32) []int32 {
	place := make([]int32, hosts)
	for h := range place {
		place[h] = -1
	}
	for g, group := range of {
		for _, h := range group {
			place[h] = int32(g)
		}
	}
	return place
}

// own is 1 if v is now in place p.
func own(b *board, place []int32, v, p int32) int32 {
	if at := b.at[v]; at != model.None && place[at] == p {
		return 1
	}
	return 0
}

// unary rules allow some hosts, whatever else is there.
type unary struct {
	may   []bool
	wrong int32 // VEEs on other hosts
}

func (r *unary) count(_, h int32, by int32) {
	if !r.may[h] {
		r.wrong += by
	}
}
func (r *unary) allows(_ *board, _, h int32) bool            { return r.may[h] }
func (*unary) blockers(*board, int32, int32) ([]int32, bool) { return nil, false }
func (r *unary) broken() float64                             { return float64(r.wrong) }
func only(hosts []bool) rule                                 { return &unary{may: hosts} }
func except(hosts []bool) rule {
	for h := range hosts {
		hosts[h] = !hosts[h]
	}
	return &unary{may: hosts}
}

// apart keeps VEEs in distinct places (Spread).
type apart struct {
	place []int32
	vees  []int32
	in    map[int32]int32 // by place: VEEs there
	mates int32           // VEEs that are not the first in their place
}

func (r *apart) count(_, h int32, by int32) {
	p := r.place[h]
	was := r.in[p]
	r.in[p] = was + by
	r.mates += max(0, was+by-1) - max(0, was-1)
}
func (r *apart) broken() float64 { return float64(r.mates) }
func (r *apart) allows(b *board, v, h int32) bool {
	p := r.place[h]
	n := r.in[p]
	return n == 0 || n == own(b, r.place, v, p)
}
func (r *apart) blockers(b *board, v, h int32) (out []int32, ok bool) {
	for _, w := range r.vees {
		if at := b.at[w]; w != v && at != model.None && r.place[at] == r.place[h] {
			out = append(out, w)
		}
	}
	return out, true
}

// together keeps VEEs in one place (Gather, Among); a host in place -1 takes none.
type together struct {
	place []int32
	vees  []int32
	in    map[int32]int32 // by place: VEEs there; no entry where there are none
}

func (r *together) count(_, h int32, by int32) {
	p := r.place[h]
	if r.in[p] += by; r.in[p] == 0 {
		delete(r.in, p)
	}
}
func (r *together) broken() float64 { return float64(max(0, len(r.in)-1) + int(r.in[-1])) }
func (r *together) allows(_ *board, _, h int32) bool {
	p := r.place[h]
	if p < 0 {
		return false
	}
	for q := range r.in { // v itself too: it must not be in two places while it moves
		if q != p {
			return false
		}
	}
	return true
}
func (r *together) blockers(b *board, v, h int32) (out []int32, ok bool) {
	for _, w := range r.vees {
		if at := b.at[w]; w != v && at != model.None && r.place[at] != r.place[h] {
			out = append(out, w)
		}
	}
	return out, r.place[h] >= 0
}

// divided keeps the VEEs of distinct sets in distinct places (Split, SplitAmong).
type divided struct {
	place []int32
	set   map[int32]int32 // by VEE
	in    map[[2]int32]int32
	sets  map[int32]int32 // by place: sets there
	mates int32           // sets that are not the first in their place
}

func newDivided(place []int32, sets [][]int32) *divided {
	r := &divided{place: place, set: map[int32]int32{}, in: map[[2]int32]int32{}, sets: map[int32]int32{}}
	for s, vees := range sets {
		for _, v := range vees {
			r.set[v] = int32(s)
		}
	}
	return r
}

func (r *divided) count(v, h int32, by int32) {
	k := [2]int32{r.place[h], r.set[v]}
	was, sets := r.in[k], r.sets[k[0]]
	r.in[k] += by
	switch {
	case was == 0:
		r.sets[k[0]]++
	case was+by == 0:
		r.sets[k[0]]--
	}
	r.mates += max(0, r.sets[k[0]]-1) - max(0, sets-1)
}
func (r *divided) broken() float64 { return float64(r.mates) }
func (r *divided) allows(b *board, v, h int32) bool {
	p := r.place[h]
	others := r.sets[p]
	if r.in[[2]int32{p, r.set[v]}] > 0 {
		others--
	}
	return others == 0
}
func (r *divided) blockers(b *board, v, h int32) (out []int32, ok bool) {
	for w, s := range r.set {
		if at := b.at[w]; s != r.set[v] && at != model.None && r.place[at] == r.place[h] {
			out = append(out, w)
		}
	}
	slices.Sort(out)
	return out, true
}

// lonely keeps strangers off the hosts of its members.
type lonely struct {
	member             []bool
	members, strangers []int32 // by host
	disturbed          int32   // hosts with both
}

func (r *lonely) is(v int32) bool { return int(v) < len(r.member) && r.member[v] }
func (r *lonely) count(v, h int32, by int32) {
	r.disturbed -= min(r.members[h], r.strangers[h], 1)
	if r.is(v) {
		r.members[h] += by
	} else {
		r.strangers[h] += by
	}
	r.disturbed += min(r.members[h], r.strangers[h], 1)
}
func (r *lonely) broken() float64 { return float64(r.disturbed) }
func (r *lonely) allows(_ *board, v, h int32) bool {
	if r.is(v) {
		return r.strangers[h] == 0
	}
	return r.members[h] == 0
}
func (r *lonely) blockers(b *board, v, h int32) (out []int32, ok bool) {
	for _, w := range b.guests[h] {
		if r.is(w) != r.is(v) {
			out = append(out, w)
		}
	}
	return out, true
}

// limit caps an amount on some hosts together (RunningCapacity, ResourceCapacity, Overbook).
type limit struct {
	in     []bool
	amount func(v int32) int64
	max    int64
	sum    int64
}

func (r *limit) count(v, h int32, by int32) {
	if r.in[h] {
		r.sum += int64(by) * r.amount(v)
	}
}
func (r *limit) broken() float64 {
	return float64(max(0, r.sum-r.max)) / float64(max(1, r.max))
}
func (r *limit) allows(b *board, v, h int32) bool {
	if !r.in[h] {
		return true
	}
	// A VEE that moves within the hosts is there twice for a while: no allowance for it.
	return r.amount(v) == 0 || r.sum+r.amount(v) <= r.max
}
func (r *limit) blockers(b *board, v, h int32) (out []int32, ok bool) {
	over := r.sum + r.amount(v) - r.max
	for g, in := range r.in {
		for _, w := range b.guests[g] {
			if in && over > 0 && w != v && r.amount(w) > 0 {
				out = append(out, w)
				over -= r.amount(w)
			}
		}
	}
	return out, over <= 0
}

// scattered keeps VEEs in a number of places at least (MinPlaces).
type scattered struct {
	place   []int32
	of, min int
	in      map[int32]int32
	placed  int32
}

func (r *scattered) count(_, h int32, by int32) {
	p := r.place[h]
	r.placed += by
	if r.in[p] += by; r.in[p] == 0 {
		delete(r.in, p)
	}
}
func (r *scattered) broken() float64 {
	return float64(max(0, r.min-len(r.in)-(r.of-int(r.placed))))
}
func (r *scattered) allows(b *board, v, h int32) bool {
	places, placed := len(r.in), int(r.placed)
	if at := b.at[v]; at != model.None {
		placed--
		if r.in[r.place[at]] == 1 {
			places--
		}
	}
	if n := r.in[r.place[h]]; n == 0 || n == own(b, r.place, v, r.place[h]) {
		places++
	}
	return places+r.of-placed-1 >= r.min
}
func (r *scattered) blockers(*board, int32, int32) ([]int32, bool) { return nil, false }

// near keeps what needs others in places where there are such (Near).
type near struct {
	place           []int32
	needs, gives    map[int32]bool
	needing, giving map[int32]int32 // by place
}

func (r *near) count(v, h int32, by int32) {
	p := r.place[h]
	if r.needs[v] {
		if r.needing[p] += by; r.needing[p] == 0 {
			delete(r.needing, p)
		}
	}
	if r.gives[v] {
		r.giving[p] += by
	}
}
func (r *near) broken() (alone float64) {
	for p := range r.needing {
		if r.giving[p] == 0 {
			alone++
		}
	}
	return alone
}
func (r *near) allows(b *board, v, h int32) bool {
	p := r.place[h]
	giving := func(q int32) int32 {
		n := r.giving[q]
		if r.gives[v] {
			n -= own(b, r.place, v, q)
			if q == p {
				n++
			}
		}
		return n
	}
	if r.needs[v] && giving(p) == 0 {
		return false
	}
	if !r.gives[v] {
		return true
	}
	for q, n := range r.needing {
		if r.needs[v] {
			n -= own(b, r.place, v, q)
		}
		if n > 0 && giving(q) == 0 {
			return false
		}
	}
	return true
}
func (r *near) blockers(*board, int32, int32) ([]int32, bool) { return nil, false }
