package solve

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// Options of a search.
type Options struct {
	Seed uint64
	// Stop tells, when it is asked, that the caller's time is over; nil: never.
	Stop func() bool
	// Iterations bounds the search; 0: in proportion to the model.
	Iterations int
}

func (o Options) stopped() bool { return o.Stop != nil && o.Stop() }

// Target of a reconfiguration: where every VEE is to be, and which hosts are on.
type Target struct {
	State []model.State // of each VEE
	At    []int32       // host of each VEE that is to run, None for others
	On    []bool        // by host
}

// NoPlace is the error when VEEs have no place.
type NoPlace struct {
	Conflict Conflict
	text     string
}

func (e *NoPlace) Error() string { return e.text }

// ErrStopped is the error when the time was over before there was an answer.
var ErrStopped = errors.New("stopped before a placement was found: give it more time")

// Repair m: find a placement in which every rule holds, moving what is broken and what is
// in its way, and nothing else.
func Repair(m *model.Model, o Options) (Target, error) {
	r, err := newRepair(m, o, everyRule)
	if err != nil {
		return Target{}, err
	}
	r.breakUp()
	if err := r.settle(); err != nil {
		return Target{}, err
	}
	return r.target(), nil
}

type repair struct {
	*board
	options Options
	random  *rand.Rand
	index   *index
	state   []model.State // wanted, by VEE
	on      []bool        // wanted, by host
	rooted  []bool        // by VEE: it must not move

	queue  []int32         // VEEs without a place
	failed map[int32]int32 // by VEE: how often it found none
	was    map[int32]int32 // by VEE that has been taken away: where it was first
	kept   bool            // the board is a Placer's: VEEs that do not run yet keep their place
}

func newRepair(m *model.Model, o Options, keep func(int, model.Constraint) bool) (*repair, error) {
	b := newBoard(m, keep)
	r := &repair{board: b, options: o, random: rand.New(rand.NewPCG(o.Seed, 1)),
		state: make([]model.State, len(m.VEEs)), on: make([]bool, len(m.Hosts)), rooted: b.pin(),
		failed: map[int32]int32{}, was: map[int32]int32{}}
	for v := range m.VEEs {
		r.state[v] = m.VEEs[v].State
	}
	for h := range m.Hosts {
		r.on[h] = !m.Hosts[h].Off
	}
	for _, rule := range m.Rules {
		if !rule.Hard() {
			continue
		}
		switch c := rule.Constraint.(type) {
		case model.InState:
			for _, v := range c.VEEs {
				r.state[v] = c.State
			}
		case model.Power:
			for _, h := range c.Hosts {
				r.on[h] = c.On
			}
		}
	}
	r.powerDown()
	for h := range m.Hosts {
		if m.Hosts[h].Off && r.on[h] {
			r.open[h] = !m.Hosts[h].Draining && !r.quarantined(int32(h))
		}
		r.open[h] = r.open[h] && r.on[h]
	}
	for v := range m.VEEs {
		x := &m.VEEs[v]
		if err := r.reachable(x, r.state[v]); err != nil {
			return nil, err
		}
		if x.State == model.Running && r.state[v] == model.Running {
			r.enter(int32(v), x.Host)
		} else if r.state[v] == model.Running {
			r.queue = append(r.queue, int32(v))
		}
	}
	return r, nil
}

// reachable tells whether there is a way for v to a state.
func (r *repair) reachable(v *model.VEE, s model.State) error {
	if v.State == model.Killed && s != model.Killed ||
		s == model.Ready && v.State == model.Sleeping || s == model.Sleeping && v.State == model.Ready {
		return fmt.Errorf("VEE %s is %v and cannot become %v: change the rule that wants it", v.Name, v.State, s)
	}
	return nil
}

func (r *repair) quarantined(h int32) bool {
	for _, rule := range r.m.Rules {
		if c, ok := rule.Constraint.(model.Quarantine); ok && rule.Hard() && slices.Contains(c.Hosts, h) {
			return true
		}
	}
	return false
}

// powerDown switches off the hosts with the fewest VEEs where more than MaxOnline are on.
func (r *repair) powerDown() {
	guests := make([]int, len(r.m.Hosts))
	for v := range r.m.VEEs {
		if h := r.m.VEEs[v].Host; h != model.None {
			guests[h]++
			if r.rooted[v] {
				guests[h] = len(r.m.VEEs)
			}
		}
	}
	for _, rule := range r.m.Rules {
		c, ok := rule.Constraint.(model.MaxOnline)
		if !ok || !rule.Hard() {
			continue
		}
		var on []int32
		for _, h := range c.Hosts {
			if r.on[h] {
				on = append(on, h)
			}
		}
		slices.SortStableFunc(on, func(a, b int32) int { return cmp.Compare(guests[a], guests[b]) })
		for _, h := range on[:max(0, len(on)-max(0, c.Max))] {
			r.on[h] = false
		}
	}
}

// pin VEEs where a rule keeps them, and close the hosts in quarantine: by VEE, whether it
// must not move.
func (b *board) pin() []bool {
	rooted := make([]bool, len(b.m.VEEs))
	running := func(v int) bool { return b.m.VEEs[v].State == model.Running }
	for _, rule := range b.m.Rules {
		if !rule.Hard() {
			continue
		}
		switch c := rule.Constraint.(type) {
		case model.Root:
			for _, v := range c.VEEs {
				rooted[v] = rooted[v] || running(int(v))
			}
		case model.Quarantine:
			in := mark(len(b.m.Hosts), c.Hosts)
			for _, h := range c.Hosts {
				b.open[h] = false
			}
			for v := range rooted {
				rooted[v] = rooted[v] || running(v) && in[b.m.VEEs[v].Host]
			}
		}
	}
	return rooted
}

// fixed tells whether v stays where it is, whatever is in its way.
func (r *repair) fixed(v int32) bool {
	return int(v) < len(r.rooted) && r.rooted[v] || r.kept && r.m.VEEs[v].State != model.Running
}

// breakUp takes away what cannot stay, wherever it is.
func (r *repair) breakUp() {
	for v, h := range r.at {
		if h != model.None {
			r.evict(int32(v))
		}
	}
	for h := range int32(len(r.m.Hosts)) {
		r.unload(h)
	}
}

// evict v if it cannot stay: a rule does not allow it where it is, or its host closes.
func (r *repair) evict(v int32) {
	h := r.at[v]
	if r.fixed(v) {
		return
	}
	stays := r.on[h] && !r.m.Hosts[h].Draining
	if stays && len(r.of[v])+len(r.general) > 0 {
		r.leave(v)
		stays = r.allowed(v, h)
		r.enter(v, h)
	}
	if !stays {
		r.takeAway(v)
	}
}

// unload h until it is not overloaded, of those VEEs first that cost least to move.
func (r *repair) unload(h int32) {
	for r.overloaded(h) {
		v := r.cheapest(h)
		if v == model.None {
			return
		}
		r.takeAway(v)
	}
}

// takeAway v from its host and let it wait for another.
func (r *repair) takeAway(v int32) {
	r.remove(v)
	r.queue = append(r.queue, v)
}

// cheapest VEE to move away from overloaded h: of those that end the overload alone the one
// that migrates fastest; if there is none, the one that helps most for its time.
func (r *repair) cheapest(h int32) int32 {
	best, bestCost := model.None, 0.
	for _, v := range r.guests[h] {
		if r.fixed(v) {
			continue
		}
		helps, excess := 0., 0.
		for d, f := range r.room(h) {
			if f < 0 {
				excess += float64(-f) / r.mean[d]
				helps += float64(min(-f, r.demand(v)[d])) / r.mean[d]
			}
		}
		if helps == 0 {
			continue
		}
		cost := 1 + r.m.Migration.Duration(&r.m.VEEs[v]).Seconds()
		if helps < excess {
			cost *= 2 * excess / helps
		}
		if best == model.None || cost < bestCost {
			best, bestCost = v, cost
		}
	}
	return best
}

// settle gives every VEE of the queue a place, or says what keeps all from having one.
func (r *repair) settle() error {
	r.index = newIndex(r.board, Balance)
	if err := r.house(); err != nil {
		return err
	}
	for h := range int32(len(r.m.Hosts)) {
		if err := r.holds(h); err != nil {
			return err
		}
	}
	return r.contradiction()
}

// holds tells of a host that has stayed overloaded, or closes and is not empty.
func (r *repair) holds(h int32) error {
	if g := r.guests[h]; len(g) > 0 && (!r.on[h] || r.m.Hosts[h].Draining) {
		return fmt.Errorf("VEE %s must not move, but its host %s is to be left: drop one of the two rules", r.m.VEEs[g[0]].Name, r.m.Hosts[h].Name)
	}
	if r.overloaded(h) {
		return fmt.Errorf("host %s has more than it has room for, and none of its VEEs may move: drop a rule that keeps them there", r.m.Hosts[h].Name)
	}
	return nil
}

// house the queue. A VEE that finds no place drives out others where that does least harm,
// and those join the queue; how often a VEE has failed makes it dearer to drive out, so that
// two do not chase each other for ever.
func (r *repair) house() error {
	slices.SortStableFunc(r.queue, func(v, w int32) int { return cmp.Compare(r.size(w), r.size(v)) })
	budget := r.options.Iterations
	if budget == 0 {
		budget = 1000 + 20*len(r.m.VEEs)
	}
	for n := 0; len(r.queue) > 0; n++ {
		v := r.queue[0]
		if n%16 == 0 && r.options.stopped() {
			return ErrStopped
		}
		if h := r.home(v); h != model.None {
			r.put(v, h)
			r.queue = r.queue[1:]
			continue
		}
		if h := r.index.find(v); h != model.None {
			r.put(v, h)
			r.queue = r.queue[1:]
			continue
		}
		if r.wake(v) {
			continue
		}
		r.failed[v]++
		if n > budget || !r.driveOut(v) {
			return r.noPlace(v)
		}
	}
	return nil
}

// contradiction tells of a rule that no move can keep: another rule stands against it.
func (r *repair) contradiction() error {
	for _, rule := range r.m.Rules {
		if !rule.Hard() {
			continue
		}
		switch c := rule.Constraint.(type) {
		case model.InState:
			for _, v := range c.VEEs {
				if r.state[v] != c.State {
					return broken(c, "another wants VEE %s %v", r.m.VEEs[v].Name, r.state[v])
				}
			}
		case model.Power:
			for _, h := range c.Hosts {
				if r.on[h] != c.On {
					return broken(c, "host %s is not to be so", r.m.Hosts[h].Name)
				}
			}
		case model.MaxOnline:
			on := 0
			for _, h := range c.Hosts {
				if r.on[h] {
					on++
				}
			}
			if on > c.Max {
				return broken(c, "%d hosts must be on", on)
			}
		case model.MinPlaces:
			if n := len(veeSet(c.VEEs)); c.Min > n {
				return broken(c, "there are no more than %d VEEs", n)
			}
		}
	}
	for v, s := range r.state {
		if h := r.m.VEEs[v].Host; s == model.Sleeping && !r.on[h] && !r.m.Hosts[h].Off {
			return fmt.Errorf("host %s is to be switched off, but VEE %s sleeps there: resume or kill it first", r.m.Hosts[h].Name, r.m.VEEs[v].Name)
		}
	}
	for v := range r.at {
		if err := r.lawful(int32(v)); err != nil {
			return err
		}
	}
	return nil
}

func broken(c model.Constraint, format string, args ...any) error {
	return fmt.Errorf("the rule %v cannot be kept beside the others: "+format+": drop one of them", append([]any{c}, args...)...)
}

// lawful tells of a rule that v breaks where it has stayed.
func (r *repair) lawful(v int32) error {
	h := r.at[v]
	if h == model.None || len(r.of[v])+len(r.general) == 0 {
		return nil
	}
	r.leave(v)
	i := r.forbids(v, h)
	r.enter(v, h)
	if i >= 0 {
		return broken(r.m.Rules[r.source[i]].Constraint, "VEE %s is on host %s and must stay", r.m.VEEs[v].Name, r.m.Hosts[h].Name)
	}
	return nil
}

// home is where v runs now, if it may stay there after all.
func (r *repair) home(v int32) int32 {
	if x := &r.m.VEEs[v]; x.State == model.Running && r.takes(v, x.Host) {
		return x.Host
	}
	return model.None
}

func (r *repair) put(v, h int32) {
	r.enter(v, h)
	r.index.update(h)
}

func (r *repair) remove(v int32) {
	h := r.at[v]
	if _, known := r.was[v]; !known {
		r.was[v] = h
	}
	r.leave(v)
	if r.index != nil {
		r.index.update(h)
	}
}

// wake a host that is off and would take v, if no rule wants it off.
func (r *repair) wake(v int32) bool {
	if r.kept {
		return false
	}
	for h := range int32(len(r.m.Hosts)) {
		if r.on[h] || r.m.Hosts[h].Draining || !r.fits(v, h) || !r.allowed(v, h) || !r.mayWake(h) {
			continue
		}
		r.on[h], r.open[h] = true, true
		r.index.update(h)
		return true
	}
	return false
}

func (r *repair) mayWake(h int32) bool {
	for _, rule := range r.m.Rules {
		if !rule.Hard() {
			continue
		}
		switch c := rule.Constraint.(type) {
		case model.Power:
			if !c.On && slices.Contains(c.Hosts, h) {
				return false
			}
		case model.Quarantine:
			if slices.Contains(c.Hosts, h) {
				return false
			}
		case model.MaxOnline:
			n := 0
			for _, g := range c.Hosts {
				if r.on[g] {
					n++
				}
			}
			if slices.Contains(c.Hosts, h) && n >= c.Max {
				return false
			}
		}
	}
	return true
}

// looks is how many hosts driveOut looks at.
const looks = 96

// driveOut others, so that v has a place, and put it there.
func (r *repair) driveOut(v int32) bool {
	var best []int32
	host, least := model.None, 0.
	hosts := len(r.m.Hosts)
	start, seen := r.random.IntN(max(1, hosts)), 0
	for i := 0; i < hosts && seen < looks; i++ {
		h := int32((start + i) % hosts)
		out, cost, ok := r.inTheWay(v, h)
		if !ok {
			continue
		}
		seen++
		if host == model.None || cost < least {
			host, least, best = h, cost, out
		}
	}
	if host == model.None {
		return false
	}
	for _, w := range best {
		r.remove(w)
	}
	if !r.takes(v, host) { // rules that depend on each other: leave it for later
		r.queue = append(append(r.queue[1:], best...), v)
		return true
	}
	r.put(v, host)
	r.queue = append(r.queue[1:], best...)
	return true
}

// inTheWay of v on h are those that would have to leave for it, and how dear they are.
func (r *repair) inTheWay(v, h int32) (out []int32, cost float64, ok bool) {
	if !r.open[h] {
		return nil, 0, false
	}
	for _, rules := range [2][]int32{r.of[v], r.general} {
		for _, i := range rules {
			if r.rule[i].allows(r.board, v, h) {
				continue
			}
			who, ok := r.rule[i].blockers(r.board, v, h)
			if !ok {
				return nil, 0, false
			}
			for _, w := range who {
				if !slices.Contains(out, w) {
					out = append(out, w)
				}
			}
		}
	}
	short := make([]int64, r.dims)
	lacking := func() (all float64) {
		for d, n := range r.demand(v) {
			short[d] = 0
			if n > 0 {
				short[d] = n - r.room(h)[d]
			}
			for _, w := range out {
				if r.at[w] == h {
					short[d] -= r.demand(w)[d]
				}
			}
			all += float64(max(0, short[d])) / r.mean[d]
		}
		return all
	}
	for lack := lacking(); lack > 0; lack = lacking() {
		w, worth := model.None, 0.
		for _, x := range r.guests[h] {
			if r.fixed(x) || slices.Contains(out, x) {
				continue
			}
			helps := 0.
			for d, n := range r.demand(x) {
				helps += float64(max(0, min(short[d], n))) / r.mean[d]
			}
			if q := helps / r.price(x); q > worth {
				w, worth = x, q
			}
		}
		if w == model.None {
			return nil, 0, false
		}
		out = append(out, w)
	}
	for _, w := range out {
		if r.fixed(w) {
			return nil, 0, false
		}
		cost += r.price(w)
	}
	return out, cost + .01*r.random.Float64(), true
}

// price of driving w out: more for one that is at home, is large or has failed often.
func (r *repair) price(w int32) float64 {
	p := .1 + r.size(w) + float64(r.failed[w])
	if r.m.VEEs[w].Host == r.at[w] {
		p++
	}
	return p
}

// noPlace for v: why.
func (r *repair) noPlace(v int32) error {
	p := &Placer{b: r.board, index: r.index}
	c, ok := p.Explain(v)
	if !ok {
		return fmt.Errorf("no placement found for VEE %s and those it shares rules with: loosen a rule, add a host or allow more iterations", r.m.VEEs[v].Name)
	}
	return &NoPlace{Conflict: c, text: p.String(c)}
}

func (r *repair) target() Target { return Target{State: r.state, At: r.at, On: r.on} }
