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
	r, err := newRepair(m, o)
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

	queue  []int32 // VEEs without a place
	failed []int32 // by VEE: how often it found none
}

func newRepair(m *model.Model, o Options) (*repair, error) {
	r := &repair{board: newBoard(m, everyRule), options: o, random: rand.New(rand.NewPCG(o.Seed, 1)),
		state: make([]model.State, len(m.VEEs)), on: make([]bool, len(m.Hosts)),
		rooted: make([]bool, len(m.VEEs)), failed: make([]int32, len(m.VEEs))}
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
		case model.Root:
			for _, v := range c.VEEs {
				r.rooted[v] = m.VEEs[v].State == model.Running
			}
		case model.Quarantine:
			for _, h := range c.Hosts {
				r.open[h] = false
			}
			for v := range m.VEEs {
				if m.VEEs[v].State == model.Running && slices.Contains(c.Hosts, m.VEEs[v].Host) {
					r.rooted[v] = true
				}
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

// breakUp takes away what cannot stay: VEEs that a rule does not allow where they are, on
// hosts that close, and as many as overload theirs, those first that cost least to move.
func (r *repair) breakUp() {
	for v := range r.m.VEEs {
		h := r.at[v]
		if h == model.None || r.rooted[v] {
			continue
		}
		stays := r.on[h] && !r.m.Hosts[h].Draining
		if stays && len(r.of[v])+len(r.general) > 0 {
			r.leave(int32(v))
			if stays = r.allowed(int32(v), h); stays {
				r.enter(int32(v), h)
				continue
			}
			r.queue = append(r.queue, int32(v))
		} else if !stays {
			r.leave(int32(v))
			r.queue = append(r.queue, int32(v))
		}
	}
	for h := range int32(len(r.m.Hosts)) {
		for r.overloaded(h) {
			v := r.cheapest(h)
			if v == model.None {
				break
			}
			r.leave(v)
			r.queue = append(r.queue, v)
		}
	}
}

// cheapest VEE to move away from overloaded h: of those that end the overload alone the one
// that migrates fastest; if there is none, the one that helps most for its time.
func (r *repair) cheapest(h int32) int32 {
	best, bestCost := model.None, 0.
	for _, v := range r.guests[h] {
		if r.rooted[v] {
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

// settle gives every VEE of the queue a place. One that finds none drives out others where
// that does least harm, and those join the queue; how often a VEE has failed makes it
// dearer to drive out, so that two do not chase each other for ever.
func (r *repair) settle() error {
	for v := range r.m.VEEs {
		if h := r.at[v]; h != model.None && r.rooted[v] && (!r.on[h] || r.m.Hosts[h].Draining) {
			return fmt.Errorf("VEE %s must not move, but its host %s is to be left: drop one of the two rules", r.m.VEEs[v].Name, r.m.Hosts[h].Name)
		}
	}
	r.index = newIndex(r.board, Balance)
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
	for h := range int32(len(r.m.Hosts)) {
		if r.overloaded(h) {
			return fmt.Errorf("host %s has more than it has room for, and none of its VEEs may move: drop a rule that keeps them there", r.m.Hosts[h].Name)
		}
	}
	return r.contradiction()
}

// contradiction tells of a rule that no move can keep: another rule stands against it.
func (r *repair) contradiction() error {
	broken := func(c model.Constraint, format string, args ...any) error {
		return fmt.Errorf("the rule %v cannot be kept beside the others: "+format+": drop one of them", append([]any{c}, args...)...)
	}
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
			if c.Min > len(c.VEEs) {
				return broken(c, "there are no more than %d VEEs", len(c.VEEs))
			}
		}
	}
	for v, s := range r.state {
		if h := r.m.VEEs[v].Host; s == model.Sleeping && !r.on[h] && !r.m.Hosts[h].Off {
			return fmt.Errorf("host %s is to be switched off, but VEE %s sleeps there: resume or kill it first", r.m.Hosts[h].Name, r.m.VEEs[v].Name)
		}
	}
	for v, h := range r.at {
		if h == model.None || len(r.of[v])+len(r.general) == 0 {
			continue
		}
		r.leave(int32(v))
		i := r.forbids(int32(v), h)
		r.enter(int32(v), h)
		if i >= 0 {
			return broken(r.m.Rules[r.source[i]].Constraint, "VEE %s is on host %s and must stay", r.m.VEEs[v].Name, r.m.Hosts[h].Name)
		}
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
	r.leave(v)
	r.index.update(h)
}

// wake a host that is off and would take v, if no rule wants it off.
func (r *repair) wake(v int32) bool {
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
	start, seen := r.random.IntN(hosts), 0
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
			if r.rules[i].allows(r.board, v, h) {
				continue
			}
			who, ok := r.rules[i].blockers(r.board, v, h)
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
			if r.rooted[x] || slices.Contains(out, x) {
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
		if r.rooted[w] {
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
