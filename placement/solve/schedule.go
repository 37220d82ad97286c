package solve

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// Schedule plans how to get from where m is to a target: what can begin begins, whatever
// waits for room begins when that room has been left. Where all wait for each other, one
// takes a bypass over a third host; where there is none, one sleeps on the way.
//
// Where migrations share links, the plan is the one that ends first of those that begin with
// the shortest actions and with those on the busiest links.
//
// An error means that the rules on plans (Deadline, NoDelay, Sync, …) or continuous ones
// leave no way that this finds.
func Schedule(m *model.Model, t Target) (model.Plan, error) {
	best, err := newSchedule(m, t, false).run()
	if !m.Migration.Shared {
		return best, err
	}
	other, otherErr := newSchedule(m, t, true).run()
	if err != nil || otherErr == nil && cmp.Or(cmp.Compare(other.Makespan(), best.Makespan()), cmp.Compare(other.SumOfEnds(), best.SumOfEnds())) < 0 {
		return other, otherErr
	}
	return best, nil
}

// longest plan: so long that nobody would carry it out, and that times cannot overflow.
const longest = math.MaxInt64 / 4 * time.Nanosecond

func (s *schedule) run() (model.Plan, error) {
	for len(s.waiting)+len(s.running) > 0 {
		for s.beginAll() {
		}
		if len(s.running) > 0 {
			s.endNext()
			if s.now > longest {
				return model.Plan{}, fmt.Errorf("plan the reconfiguration: it takes longer than %d years: give migrations more bandwidth", int(longest.Hours()/24/365))
			}
			continue
		}
		if len(s.waiting) > 0 && !s.bypass() && !s.sleep() {
			a := s.waiting[0]
			return model.Plan{}, fmt.Errorf("plan the reconfiguration: %s and %d more wait for each other: loosen a rule on the plan or a continuous one", s.m.Describe(a), len(s.waiting)-1)
		}
	}
	p := model.Plan{Actions: s.done}
	for _, r := range s.m.Rules {
		if c, ok := r.Constraint.(model.OnPlan); ok && r.Hard() {
			if err := c.CheckPlan(s.m, p); err != nil {
				return model.Plan{}, fmt.Errorf("plan the reconfiguration: the plan found breaks a rule: %w", err)
			}
		}
	}
	return p, nil
}

type schedule struct {
	*board // with the continuous rules; who moves is counted at both ends
	target Target
	binds  func(rule int32) bool // whether a rule of the board counts; nil: all do
	now    time.Duration

	waiting []model.Action // in order of preference
	running []int          // indices into done
	done    []model.Action

	on       []bool            // by host
	moving   []int             // by host: migrations from or to it
	traffic  *traffic          // nil: migrations do not share links
	leftBy   [][]int32         // by host: the actions that left room there
	movedAt  [][]int32         // by host: the migrations from or to it, where they share slots
	inOrder  bool              // a rule is about all VEEs or hosts: what begins comes after all that has ended
	bootedBy []int32           // by host: the action that booted it, or -1
	actions  map[int32][]int32 // by VEE: what is done to it
	detours  map[int32]int     // by VEE
	before   []gate
	finished map[int32]bool // VEEs with nothing left to do
}

// gate holds back what is done to VEEs until nothing is left to do to others.
type gate struct {
	first, then map[int32]bool
	together    bool // instead: they begin at one instant
	single      bool // instead: one at a time
}

func newSchedule(m *model.Model, t Target, busiest bool) *schedule {
	now := sync.OnceValue(func() *model.Snapshot { return model.Begin(m) })
	s := emptySchedule(newBoard(m, func(_ int, c model.Constraint) bool { return binding(m, c, now) }), t)
	s.inOrder = len(s.general) > 0
	for _, r := range m.Rules {
		if c, ok := r.Constraint.(model.MaxOnline); ok && r.Hard() && c.Continuous {
			s.inOrder = true
		}
	}
	for h := range m.Hosts {
		s.open[h] = !m.Hosts[h].Draining
		switch {
		case t.On[h] && !s.on[h]:
			s.wait(model.Action{Kind: model.BootHost, VEE: model.None, From: model.None, To: int32(h)})
		case !t.On[h] && s.on[h]:
			s.wait(model.Action{Kind: model.ShutdownHost, VEE: model.None, From: int32(h), To: model.None})
		}
	}
	for i := range m.VEEs {
		v := int32(i)
		x := &m.VEEs[v]
		if x.State == model.Running {
			s.enterAs(v, x.Host)
		}
		s.plan(v, x)
	}
	s.prepare(busiest)
	return s
}

// binding tells whether c must hold at every instant: it says so, and holds at the beginning.
func binding(m *model.Model, c model.Constraint, now func() *model.Snapshot) bool {
	p, ok := c.(model.OnPlacement)
	return ok && model.Continuous(c) && p.Check(m, now()) == nil
}

// emptySchedule in which nothing waits, over b as it is.
func emptySchedule(b *board, t Target) *schedule {
	s := &schedule{board: b, target: t, on: make([]bool, len(b.m.Hosts)), moving: make([]int, len(b.m.Hosts)),
		leftBy: make([][]int32, len(b.m.Hosts)), movedAt: make([][]int32, len(b.m.Hosts)), bootedBy: make([]int32, len(b.m.Hosts)),
		actions: map[int32][]int32{}, detours: map[int32]int{}, finished: map[int32]bool{}}
	for h := range b.m.Hosts {
		s.on[h], s.bootedBy[h] = !b.m.Hosts[h].Off, -1
	}
	if b.m.Migration.Shared {
		s.traffic = newTraffic(b.m)
	}
	return s
}

// prepare what waits: the gates that hold it back, and its order. First comes what a rule
// wants early, then what makes room; of those the shortest, or the migrations over the
// busiest links.
func (s *schedule) prepare(busiest bool) {
	s.gates()
	due := s.due()
	length := func(a model.Action) time.Duration {
		if a.Kind == model.Migrate {
			return s.m.Migration.Duration(&s.m.VEEs[a.VEE])
		}
		return s.m.Duration(a)
	}
	load := func(model.Action) float64 { return 0 }
	if busiest && s.traffic != nil {
		load = s.traffic.load(s.waiting)
	}
	slices.SortStableFunc(s.waiting, func(a, b model.Action) int {
		return cmp.Or(cmp.Compare(due(a), due(b)), cmp.Compare(urgency(a.Kind), urgency(b.Kind)),
			cmp.Compare(load(b), load(a)), cmp.Compare(length(a), length(b)))
	})
}

// due is when an action must have begun (NoDelay) or ended (Deadline).
func (s *schedule) due() func(model.Action) time.Duration {
	by := map[int32]time.Duration{}
	earlier := func(vees []int32, at time.Duration) {
		for _, v := range vees {
			if old, known := by[v]; !known || at < old {
				by[v] = at
			}
		}
	}
	for _, r := range s.m.Rules {
		if !r.Hard() {
			continue
		}
		switch c := r.Constraint.(type) {
		case model.NoDelay:
			earlier(c.VEEs, 0)
		case model.Deadline:
			earlier(c.VEEs, max(0, c.By))
		}
	}
	return func(a model.Action) time.Duration {
		if at, known := by[a.VEE]; known && a.VEE != model.None {
			return at
		}
		return math.MaxInt64
	}
}

// permits v on h by the rules that count.
func (s *schedule) permits(v, h int32) bool {
	if s.binds == nil {
		return s.allowed(v, h)
	}
	for _, rules := range [2][]int32{s.of[v], s.general} {
		for _, i := range rules {
			if s.binds(i) && !s.rule[i].allows(s.board, v, h) {
				return false
			}
		}
	}
	return true
}

// enterAs puts v on h with what it has there now, which may be less than it is to have.
func (s *schedule) enterAs(v, h int32) {
	s.enter(v, h)
	room := s.room(h)
	for d, n := range s.demand(v) {
		room[d] += n - s.m.Demand(v)[d]
	}
}

func (s *schedule) wait(a model.Action) { s.waiting = append(s.waiting, a) }

// plan the action that v needs, if any.
func (s *schedule) plan(v int32, x *model.VEE) {
	to, a := s.target.At[v], model.Action{VEE: v, From: x.Host, To: model.None}
	switch {
	case x.State == s.target.State[v] && x.State != model.Running:
		return
	case s.target.State[v] == model.Running && x.State == model.Ready:
		a.Kind, a.To = model.StartVEE, to
	case s.target.State[v] == model.Running && x.State == model.Sleeping:
		a.Kind, a.To = model.Resume, to
	case s.target.State[v] == model.Running && x.Host != to:
		a.Kind, a.To = model.Migrate, to
		if x.Clonable && x.Start+x.Stop < s.m.Migration.Duration(x) {
			a.Kind = model.Relocate
		}
	case s.target.State[v] == model.Running:
		if slices.Equal(s.demand(v), s.m.Demand(v)) {
			return
		}
		a.Kind, a.To = model.Allocate, to
	case s.target.State[v] == model.Ready:
		a.Kind = model.StopVEE
	case s.target.State[v] == model.Sleeping:
		a.Kind = model.Suspend
	default:
		a.Kind = model.KillVEE
	}
	s.wait(a)
}

// urgency of actions: first those that make room, last those that only take it.
func urgency(k model.Kind) int {
	switch k {
	case model.StopVEE, model.KillVEE, model.Suspend, model.BootHost:
		return 0
	case model.Migrate, model.Relocate:
		return 1
	case model.Allocate:
		return 2
	case model.ShutdownHost:
		return 4
	default:
		return 3
	}
}

// gates of the rules on plans.
func (s *schedule) gates() {
	acts := map[int32]bool{}
	for _, a := range s.waiting {
		if a.VEE != model.None {
			acts[a.VEE] = true
		}
	}
	set := func(vees ...int32) map[int32]bool {
		in := map[int32]bool{}
		for _, v := range vees {
			if acts[v] {
				in[v] = true
			}
		}
		return in
	}
	for _, r := range s.m.Rules {
		if !r.Hard() {
			continue
		}
		switch c := r.Constraint.(type) {
		case model.Precedence:
			s.before = append(s.before, gate{first: set(c.Before...), then: set(c.After...)})
		case model.Seq:
			for i := range c.VEEs {
				s.before = append(s.before, gate{first: set(c.VEEs[:i]...), then: set(c.VEEs[i])})
			}
		case model.Serialize:
			s.before = append(s.before, gate{first: set(c.VEEs...), single: true})
		case model.Sync:
			s.before = append(s.before, gate{first: set(c.VEEs...), together: true})
		}
	}
}

// beginAll that can begin now; true if something did.
func (s *schedule) beginAll() (any bool) {
	var still []model.Action
	for i, a := range s.waiting {
		if !s.can(a) || !s.gateOpen(a, s.waiting[i:], still) {
			still = append(still, a)
			continue
		}
		s.begin(a)
		any = true
	}
	s.waiting = still
	return any
}

func (s *schedule) can(a model.Action) bool {
	if a.VEE == model.None {
		return a.Kind == model.BootHost && s.mayBoot(a.To) || a.Kind == model.ShutdownHost && s.empty(a.From)
	}
	switch a.Kind {
	case model.StopVEE, model.KillVEE, model.Suspend:
		return true
	case model.Allocate:
		room := s.room(a.To)
		for d, n := range s.demand(a.VEE) {
			if more := n - s.m.Demand(a.VEE)[d]; more > 0 && more > room[d] || n > 0 && room[d] < 0 {
				return false
			}
		}
		return true
	}
	if !s.on[a.To] || !s.open[a.To] || !s.fits(a.VEE, a.To) || !s.permits(a.VEE, a.To) {
		return false
	}
	if a.Kind != model.Migrate {
		return true
	}
	slots := s.m.Migration.Slots
	if slots > 0 && max(s.moving[a.From], s.moving[a.To]) >= slots {
		return false
	}
	if s.traffic == nil {
		return true
	}
	_, ok := s.rate(a)
	return ok
}

// mayBoot tells whether no continuous MaxOnline stands against one host more.
func (s *schedule) mayBoot(h int32) bool {
	for _, r := range s.m.Rules {
		c, ok := r.Constraint.(model.MaxOnline)
		if !ok || !r.Hard() || !c.Continuous || !slices.Contains(c.Hosts, h) {
			continue
		}
		n := 1
		for _, g := range c.Hosts {
			if s.on[g] {
				n++
			}
		}
		for _, i := range s.running {
			if a := s.done[i]; a.Kind == model.BootHost && slices.Contains(c.Hosts, a.To) {
				n++
			}
		}
		if n > c.Max {
			return false
		}
	}
	return true
}

func (s *schedule) empty(h int32) bool {
	if len(s.guests[h]) > 0 || s.moving[h] > 0 {
		return false
	}
	for _, a := range s.waiting {
		if a.VEE != model.None && (a.From == h || a.To == h) {
			return false
		}
	}
	for _, i := range s.running {
		if a := s.done[i]; a.VEE != model.None && (a.From == h || a.To == h) {
			return false
		}
	}
	return true
}

// gateOpen tells whether the rules on plans let a begin; later are those that wait behind
// it, still those that wait before it.
func (s *schedule) gateOpen(a model.Action, later, still []model.Action) bool {
	for _, g := range s.before {
		switch {
		case a.VEE == model.None:
		case g.single && g.first[a.VEE]:
			for _, i := range s.running {
				if b := s.done[i]; b.VEE != model.None && g.first[b.VEE] {
					return false
				}
			}
		case g.together && g.first[a.VEE]:
			if !s.canAll(slices.DeleteFunc(slices.Concat(later, still), func(b model.Action) bool { return b.VEE == model.None || !g.first[b.VEE] })) {
				return false
			}
		case g.then[a.VEE]:
			for v := range g.first {
				if !s.finished[v] {
					return false
				}
			}
		}
	}
	return true
}

// canAll tells whether all of these can begin at once: that there is room for the second when
// the first has taken its own.
func (s *schedule) canAll(all []model.Action) bool {
	var taken []model.Action
	take := func(a model.Action, by int) {
		switch a.Kind {
		case model.StartVEE, model.Resume, model.Relocate, model.Migrate:
			s.occupy(a.VEE, a.To, int32(by))
		}
		if a.Kind == model.Migrate {
			s.moving[a.From] += by
			s.moving[a.To] += by
			if s.traffic != nil {
				s.traffic.take(a, float64(by)*a.MiBs)
			}
		}
	}
	ok := true
	for _, a := range all {
		if ok = s.can(a); !ok {
			break
		}
		if a.Kind == model.Migrate && s.traffic != nil {
			a.MiBs, _ = s.rate(a)
		}
		take(a, 1)
		taken = append(taken, a)
	}
	for _, a := range taken {
		take(a, -1)
	}
	return ok
}

// begin a: it takes room where it goes.
func (s *schedule) begin(a model.Action) {
	i := int32(len(s.done))
	a.Start = s.now
	shared := a.Kind == model.Migrate && s.traffic != nil
	if shared {
		a.MiBs, _ = s.rate(a)
	}
	a.End = s.now + s.m.Duration(a)
	a.After = s.after(a)
	if shared {
		s.traffic.begin(a)
	}
	if a.VEE == model.None {
		if a.Kind == model.ShutdownHost {
			s.on[a.From] = false
		} else {
			s.bootedBy[a.To] = i
		}
	} else {
		s.actions[a.VEE] = append(s.actions[a.VEE], i)
		switch a.Kind {
		case model.StartVEE, model.Resume:
			s.enter(a.VEE, a.To)
		case model.Migrate, model.Relocate:
			s.occupy(a.VEE, a.To, 1)
			s.moving[a.From]++
			s.moving[a.To]++
		case model.Allocate:
			s.allot(a.VEE, a.To)
		}
	}
	s.done = append(s.done, a)
	s.running = append(s.running, int(i))
}

// allot v on h all that it is to have there.
func (s *schedule) allot(v, h int32) {
	room := s.room(h)
	for d, n := range s.demand(v) {
		room[d] -= n - s.m.Demand(v)[d]
	}
}

// after are the actions that a comes after, whatever the clock says: those before on
// its VEE, the boot of its host, those that left its host, those on VEEs that share a rule.
func (s *schedule) after(a model.Action) (after []int32) {
	add := func(i int32) {
		if i >= 0 && s.done[i].End <= s.now && !slices.Contains(after, i) {
			after = append(after, i)
		}
	}
	if s.inOrder {
		for i := range s.done {
			add(int32(i))
		}
		return after
	}
	h := a.To
	if a.Kind == model.ShutdownHost {
		h = a.From
	}
	addAll := func(v int32) {
		for _, i := range s.actions[v] {
			add(i)
		}
	}
	if h != model.None {
		add(s.bootedBy[h])
		for _, i := range s.leftBy[h] {
			add(i)
		}
	}
	if a.VEE == model.None {
		return after
	}
	if a.Kind == model.Migrate {
		for _, i := range slices.Concat(s.movedAt[a.From], s.movedAt[a.To]) {
			add(i)
		}
		if s.traffic != nil {
			for _, d := range s.traffic.path(a.From, a.To) {
				for _, i := range s.traffic.sent[d] {
					add(i)
				}
			}
		}
	}
	addAll(a.VEE)
	for _, r := range s.of[a.VEE] {
		for _, w := range s.m.Rules[s.source[r]].Constraint.About().VEEs {
			addAll(w)
		}
	}
	for _, g := range s.before {
		if g.then[a.VEE] || g.single && g.first[a.VEE] {
			for v := range g.first {
				addAll(v)
			}
		}
	}
	slices.Sort(after)
	return after
}

// endNext lets the time pass to the next end of an action.
func (s *schedule) endNext() {
	next := s.done[s.running[0]].End
	for _, i := range s.running {
		next = min(next, s.done[i].End)
	}
	s.now = next
	var still []int
	for _, i := range s.running {
		if s.done[i].End > next {
			still = append(still, i)
			continue
		}
		s.end(int32(i))
	}
	s.running = still
}

func (s *schedule) end(i int32) {
	a := s.done[i]
	switch a.Kind {
	case model.BootHost:
		s.on[a.To] = true
	case model.Migrate, model.Relocate:
		s.release(a.VEE)
		s.at[a.VEE] = a.To
		s.guests[a.To] = append(s.guests[a.To], a.VEE)
		s.moving[a.From]--
		s.moving[a.To]--
		s.leftBy[a.From] = append(s.leftBy[a.From], i)
		if a.Kind == model.Migrate && s.traffic != nil {
			s.traffic.end(i, a)
		}
		if a.Kind == model.Migrate && s.m.Migration.Slots > 0 {
			s.movedAt[a.From], s.movedAt[a.To] = append(s.movedAt[a.From], i), append(s.movedAt[a.To], i)
		}
	case model.Resume:
		s.leftBy[a.From] = append(s.leftBy[a.From], i)
	case model.StopVEE, model.KillVEE, model.Suspend:
		if s.at[a.VEE] != model.None {
			s.release(a.VEE)
		}
		if a.From != model.None {
			s.leftBy[a.From] = append(s.leftBy[a.From], i)
		}
	}
	if a.VEE != model.None {
		s.finished[a.VEE] = true
		for _, b := range s.waiting {
			if b.VEE == a.VEE {
				delete(s.finished, a.VEE)
			}
		}
	}
}

// release what v has where it is: until its first move what it had at the beginning.
func (s *schedule) release(v int32) {
	h := s.at[v]
	s.leave(v)
	if h == s.m.VEEs[v].Host && s.detours[v] == 0 && s.m.VEEs[v].State == model.Running {
		room := s.room(h)
		for d, n := range s.demand(v) {
			room[d] -= n - s.m.Demand(v)[d]
		}
	}
}

// bypass sends a VEE that waits for room to a third host, from where it goes on.
func (s *schedule) bypass() bool {
	for i, a := range s.waiting {
		if a.Kind != model.Migrate && a.Kind != model.Relocate || s.detours[a.VEE] > 0 {
			continue
		}
		for h := range int32(len(s.m.Hosts)) {
			via := a
			via.To = h
			if h == a.From || h == a.To || !s.target.On[h] || !s.can(via) || !s.gateOpen(via, nil, nil) {
				continue
			}
			s.waiting[i].From = h
			s.begin(via)
			s.waiting[i].Kind = model.Migrate
			s.detour(a.VEE)
			return true
		}
	}
	return false
}

// detour of v has begun: what it frees at its first host is settled when that ends.
func (s *schedule) detour(v int32) {
	s.finishNow()
	s.detours[v]++
}

// finishNow lets everything that runs end.
func (s *schedule) finishNow() {
	for len(s.running) > 0 {
		s.endNext()
	}
}

// sleep suspends a VEE that waits for room until there is some.
func (s *schedule) sleep() bool {
	for i, a := range s.waiting {
		if a.Kind != model.Migrate && a.Kind != model.Relocate {
			continue
		}
		down := model.Action{Kind: model.Suspend, VEE: a.VEE, From: a.From, To: model.None}
		if !s.gateOpen(down, nil, nil) {
			continue
		}
		s.waiting[i] = model.Action{Kind: model.Resume, VEE: a.VEE, From: a.From, To: a.To}
		s.begin(down)
		s.detour(a.VEE)
		return true
	}
	return false
}
