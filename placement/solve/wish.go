package solve

import "github.com/reservoir-cloud/reservoir/placement/model"

// wishes are the soft rules about where VEEs are. Those about states, power or the plan are
// nothing that a placement could heed.
type wishes struct {
	rules
	discontent float64 // the sum of what is lost, with a slope; see lost
}

// count VEE v on host h once more or once less, as in rule.
func (w *wishes) count(m *model.Model, v, h, by int32) {
	if len(w.rule) == 0 {
		return
	}
	for _, about := range [2][]int32{w.of[v], w.general} {
		for _, i := range about {
			weight, r := m.Rules[w.source[i]].Weight, w.rule[i]
			w.discontent -= weight * lost(r.broken())
			r.count(v, h, by)
			w.discontent += weight * lost(r.broken())
		}
	}
}

// lost share of a rule's weight. A rule is kept or broken, but the search is drawn to break
// it less.
func lost(broken float64) float64 {
	if broken <= 0 {
		return 0
	}
	return .5 + .5*broken/(1+broken)
}

// cost of the wishes that are broken, each once, as the model weighs them.
func (w *wishes) cost(m *model.Model) (sum float64) {
	last := -1
	for i, r := range w.rule {
		if r.broken() > 0 && w.source[i] != last { // a rule may be compiled to several
			last = w.source[i]
			sum += m.Rules[last].Weight
		}
	}
	return sum
}

// heed tells whether no wish speaks against v on h.
func (b *board) heed(v, h int32) bool {
	w := &b.wishes
	if len(w.rule) == 0 {
		return true
	}
	for _, about := range [2][]int32{w.of[v], w.general} {
		for _, i := range about {
			if !w.rule[i].allows(b, v, h) {
				return false
			}
		}
	}
	return true
}

// wants tells whether some wish is about v.
func (b *board) wants(v int32) bool {
	return len(b.wishes.rule) > 0 && len(b.wishes.of[v])+len(b.wishes.general) > 0
}
