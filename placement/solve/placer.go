package solve

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// Policy prefers one host among those that can take a VEE.
type Policy uint8

// Policies: Balance takes the emptiest host, Pack the fullest. Among equals the first in
// the model.
const (
	Balance Policy = iota
	Pack
)

// Placer places VEEs one by one on a model's hosts. An index over the hosts finds the
// policy's choice without looking at all of them.
type Placer struct {
	b      *board
	index  *index
	rooted []bool // by VEE: a rule keeps it where it is
}

// NewPlacer over m, which must be valid and keep its hosts and rules. VEEs may be added to
// the model later: those that run count where they are, the others can be placed then.
func NewPlacer(m *model.Model, p Policy) *Placer {
	b := newBoard(m, everyRule)
	rooted := b.pin()
	for v := range m.VEEs {
		if m.VEEs[v].State == model.Running {
			b.enter(int32(v), m.VEEs[v].Host)
		}
	}
	return &Placer{b: b, index: newIndex(b, p), rooted: rooted}
}

// Place VEE v, which has no host, on the host that the policy prefers, and count it there.
// It answers model.None where no host takes it: see Explain.
func (p *Placer) Place(v int32) int32 {
	p.grow()
	h := p.index.find(v)
	if h != model.None {
		p.b.enter(v, h)
		p.index.update(h)
	}
	return h
}

// Remove VEE v from its host.
func (p *Placer) Remove(v int32) {
	p.grow()
	if h := p.b.at[v]; h != model.None {
		p.b.leave(v)
		p.index.update(h)
	}
}

// At is where v is, or model.None.
func (p *Placer) At(v int32) int32 {
	p.grow()
	return p.b.at[v]
}

// grow to the VEEs that the model has by now. They are named by no rule.
func (p *Placer) grow() {
	for v := len(p.b.at); v < len(p.b.m.VEEs); v++ {
		p.b.at = append(p.b.at, model.None)
		p.b.of, p.b.wishes.of = append(p.b.of, nil), append(p.b.wishes.of, nil)
		p.b.need = append(p.b.need, p.b.m.Demand(int32(v))...)
		if x := &p.b.m.VEEs[v]; x.State == model.Running {
			p.b.enter(int32(v), x.Host)
			p.index.update(x.Host)
		}
	}
}

// Batch places all of vees, the largest first, and when one finds no place, again with it
// at the head, some times. The answer has a host for each of vees, in their order; None for
// those that have none in the best attempt.
func (p *Placer) Batch(vees []int32) []int32 {
	p.grow()
	order := slices.Clone(vees)
	slices.SortStableFunc(order, func(v, w int32) int { return cmp.Compare(p.b.size(w), p.b.size(v)) })
	var best []int32
	most := -1
	for range 8 {
		placed, failed := 0, -1
		for i, v := range order {
			if p.Place(v) != model.None {
				placed++
			} else if failed < 0 {
				failed = i
			}
		}
		if placed > most {
			most, best = placed, nil
			for _, v := range vees {
				best = append(best, p.At(v))
			}
		}
		for _, v := range order {
			p.Remove(v)
		}
		if failed <= 0 {
			break
		}
		v := order[failed]
		order = append([]int32{v}, slices.Delete(order, failed, failed+1)...)
	}
	for i, v := range vees {
		if best[i] != model.None {
			p.b.enter(v, best[i])
			p.index.update(best[i])
		}
	}
	return best
}

// size of v: the largest of its shares of what an average host has.
func (b *board) size(v int32) (size float64) {
	for d, n := range b.demand(v) {
		size = max(size, float64(n)/b.mean[d])
	}
	return size
}

// Verdict on a host for a VEE.
type Verdict struct {
	Host int32
	// Rule that excludes the host, as an index into the model's rules; -1: none does.
	Rule int
	// Short has the dimensions that the host lacks room in, by how much.
	Short map[int]int64
	// Closed hosts are off or draining.
	Closed bool
	// Full is the used share of the host's scarcest dimension, by which policies choose.
	Full float64
}

// Fits tells whether nothing speaks against the host.
func (w Verdict) Fits() bool { return w.Rule < 0 && len(w.Short) == 0 && !w.Closed }

// Why host h takes VEE v, which has no host, or does not.
func (p *Placer) Why(v, h int32) Verdict {
	p.grow()
	b := p.b
	w := Verdict{Host: h, Rule: -1, Closed: !b.open[h], Full: b.fullness(h)}
	if i := b.forbids(v, h); i >= 0 {
		w.Rule = b.source[i]
	}
	for d, n := range b.demand(v) {
		if f := b.room(h)[d]; n > f && n > 0 {
			if w.Short == nil {
				w.Short = map[int]int64{}
			}
			w.Short[d] = n - max(0, f)
		}
	}
	return w
}

// Text of a verdict for people.
func (p *Placer) Text(w Verdict) string {
	m := p.b.m
	host := &m.Hosts[w.Host]
	var against []string
	switch {
	case host.Draining:
		against = append(against, "it is draining")
	case w.Closed:
		against = append(against, "it is off")
	}
	if w.Rule >= 0 {
		against = append(against, fmt.Sprintf("rule %d, %v", w.Rule, m.Rules[w.Rule].Constraint))
	}
	for d := range m.Dimensions {
		if n := w.Short[d]; n > 0 {
			against = append(against, fmt.Sprintf("it lacks %d of %s", n, m.Dimensions[d]))
		}
	}
	if len(against) == 0 {
		return fmt.Sprintf("%s takes it, %.0f %% full", host.Name, 100*w.Full)
	}
	return fmt.Sprintf("%s does not take it: %s", host.Name, strings.Join(against, "; "))
}

// Conflict says why a VEE has no place.
type Conflict struct {
	VEE int32
	// Reasons is a smallest set that excludes every host between them: drop one, and some
	// host is left.
	Reasons []Reason
	// Nearest is the host with the least against it, and what would have to change there.
	Nearest Verdict
}

// Reason that excludes hosts: a rule of the model, what is scarce, or that hosts are off or
// draining.
type Reason struct {
	Rule      int // -1: none
	Dimension int // -1: none
	Hosts     int // how many it excludes
}

// Explain why VEE v has no place now; false: it has one, or the model has no host.
func (p *Placer) Explain(v int32) (Conflict, bool) {
	p.grow()
	m := p.b.m
	reasons := map[Reason][]int32{}
	add := func(r Reason, h int32) {
		if of := reasons[r]; len(of) == 0 || of[len(of)-1] != h { // a rule may be compiled to several
			reasons[r] = append(of, h)
		}
	}
	c := Conflict{VEE: v}
	least := math.Inf(1)
	for h := range int32(len(m.Hosts)) {
		w := p.Why(v, h)
		if w.Fits() {
			return c, false
		}
		against := 0.
		if w.Closed {
			add(Reason{Rule: -1, Dimension: -1}, h)
			against += 2
		}
		for _, i := range slices.Concat(p.b.of[v], p.b.general) {
			if !p.b.rule[i].allows(p.b, v, h) {
				add(Reason{Rule: p.b.source[i], Dimension: -1}, h)
				against += 2
			}
		}
		for d, n := range w.Short {
			add(Reason{Rule: -1, Dimension: d}, h)
			against += float64(n) / float64(max(1, m.Capacity(h)[d]))
		}
		if against < least {
			least, c.Nearest = against, w
		}
	}
	c.Reasons = cover(reasons, len(m.Hosts))
	return c, len(m.Hosts) > 0
}

// cover is a set of reasons that excludes all of n hosts and from which none can be left
// out: the one that excludes most of what is left, again and again, then what became
// superfluous is dropped.
func cover(reasons map[Reason][]int32, n int) (set []Reason) {
	left := make([]int, n) // by host: reasons in the set
	all := make([]Reason, 0, len(reasons))
	for r := range reasons {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Dimension, b.Dimension))
	})
	for covered := 0; covered < n; {
		best, most := Reason{}, 0
		for _, r := range all {
			gain := 0
			for _, h := range reasons[r] {
				if left[h] == 0 {
					gain++
				}
			}
			if gain > most {
				best, most = r, gain
			}
		}
		for _, h := range reasons[best] {
			left[h]++
		}
		covered += most
		set = append(set, best)
	}
	set = slices.DeleteFunc(set, func(r Reason) bool {
		for _, h := range reasons[r] {
			if left[h] == 1 {
				return false
			}
		}
		for _, h := range reasons[r] {
			left[h]--
		}
		return true
	})
	for i := range set {
		set[i].Hosts = len(reasons[set[i]])
	}
	return set
}

// String of a conflict, for people.
func (p *Placer) String(c Conflict) string {
	var because []string
	m := p.b.m
	for _, r := range c.Reasons {
		what := "they are off or draining"
		if r.Rule >= 0 {
			what = fmt.Sprintf("rule %d, %v", r.Rule, m.Rules[r.Rule].Constraint)
		} else if r.Dimension >= 0 {
			what = fmt.Sprintf("too little %s", m.Dimensions[r.Dimension])
		}
		because = append(because, fmt.Sprintf("%d hosts: %s", r.Hosts, what))
	}
	return fmt.Sprintf("no host takes %s: %s. The nearest: %s", m.VEEs[c.VEE].Name, strings.Join(because, "; "), p.Text(c.Nearest))
}
