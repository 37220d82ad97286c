package ownership

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/vee"
)

// encoder writes what distinguishes one world from another. Times are written as ages, and
// ages beyond the last comparison that the core makes are one and the same: two worlds with
// the same bytes have the same future.
type encoder struct {
	m *model
	w *world
	b []byte
}

func (e *encoder) num(ns ...int) {
	for _, n := range ns {
		e.b = append(e.b, byte(n))
	}
}

func (e *encoder) flag(f bool) {
	if f {
		e.num(1)
	} else {
		e.num(0)
	}
}

func (e *encoder) epoch(x vee.Epoch) { e.num(int(x.Generation), int(x.Term), int(x.Hop)) }

// age of t on a clock that shows now; limit stands for all that is older still.
func (e *encoder) age(now, t, limit Time) {
	e.num(int(max(-1, min(now-t, limit))))
}

func (e *encoder) name(s string) { e.num(int(e.m.index(s))) }

var stateNumber = map[HoldState]int{Free: 0, Held: 1, Given: 2, Offered: 3, "": 4}
var wordNumber = map[Word]int{Own: 0, Export: 1, Seal: 2, Not: 3}

func (e *encoder) hold(k Hold) {
	e.epoch(k.Epoch)
	e.num(stateNumber[k.State])
	e.epoch(k.Taken)
	e.name(k.To)
	e.num(int(k.Door))
}

// nonce: one that is too old to be fresh, or of a leader that is gone, is like none.
func (e *encoder) nonce(n Nonce) {
	t := e.m.p.Timings
	if e.w.now-n.Issued > t.EchoAge || n.Leader == 0 {
		e.num(0)
		return
	}
	e.num(int(n.Generation), int(n.Leader))
	e.flag(n.Silent)
	e.age(e.w.now, n.Issued, t.EchoAge)
}

func (e *encoder) verdicts(vs []Verdict) {
	e.num(len(vs))
	for _, v := range vs {
		e.num(wordNumber[v.Word], int(v.Door))
		e.epoch(v.Epoch)
	}
}

func (e *encoder) reports(rs []Holding) {
	e.num(len(rs))
	for _, r := range rs {
		e.epoch(r.Epoch)
		e.num(stateNumber[r.State], int(r.Door))
		e.name(r.To)
	}
}

func (e *encoder) boot(host string, b uint64) { // only whether it is still the same
	i := e.m.index(host)
	e.flag(i >= 0 && e.w.hosts[i].Guard.Boot == b)
}

func (e *encoder) host(i int8) {
	t := e.m.p.Timings
	h, now := e.w.hosts[i], e.w.clock(i)
	e.flag(e.w.off[i])
	e.num(int(e.w.link[i]), int(e.w.lag[i]), int(h.Disk.Generation), int(h.Disk.Witnesses.Config), len(h.Disk.Holds), len(h.seals))
	for _, k := range h.Disk.Holds {
		e.hold(k)
	}
	for _, k := range h.seals {
		e.hold(k)
	}
	e.num(len(h.Guard.Guests))
	for _, g := range h.Guard.Guests {
		e.flag(g.Running)
	}
	if e.m.hosts[i][0] != 'w' {
		e.age(h.Guard.Deadline, now, t.Lease+1)
	}
	e.nonce(h.echo)
	if e.m.words {
		e.age(now, h.heard, t.LostAfter)
	}
	if e.m.words && now-h.asked <= t.WordGood {
		e.age(now, h.asked, t.WordGood)
		e.num(len(h.words))
		for _, w := range h.words {
			e.name(w)
		}
	} else {
		e.num(255)
	}
	e.verdicts(h.export)
}

func (e *encoder) record(r Record) {
	e.epoch(r.Epoch)
	e.name(r.Host)
	e.epoch(r.Taken)
	e.flag(r.Sealing)
	e.epoch(r.Next)
	e.num(len(r.Away), r.Heard, int(r.AwayDoor))
	e.epoch(r.AwayEpoch)
}

func (e *encoder) log(l *Log) {
	if l == nil {
		e.num(255)
		return
	}
	e.num(int(l.Generation), int(l.Leader), len(l.Witnesses))
	e.flag(l.Restored)
	for _, m := range l.Members {
		e.name(m.Host)
		e.num(int(m.Witnesses))
		e.flag(m.Awaited)
		e.flag(m.Fenced)
	}
	e.num(len(l.Records))
	for _, r := range l.Records {
		e.record(r)
	}
}

// leader: of a deposed one nothing counts but that it is there. What it has seen of hosts
// it uses for commits alone, and the log refuses them.
func (e *encoder) leader(l *leader, deposed bool) {
	if l == nil {
		e.num(255)
		return
	}
	t := e.m.p.Timings
	e.flag(l.alive)
	e.num(int(l.ctl.Leader), int(l.ctl.Generation), int(l.log))
	if !e.m.p.keeps(ruleRead) {
		e.log(l.memory)
	}
	if !l.alive || deposed {
		return
	}
	e.age(e.w.now, l.ctl.start, t.GiveAway)
	for i := range e.m.hosts {
		v := l.ctl.view(e.m.hosts[i])
		e.flag(v.seen)
		if v.seen {
			e.age(e.w.now, v.fresh, t.Window+t.GiveAway)
			if v.current(e.m.p, e.w.now) {
				e.age(e.w.now, v.since, t.Steady)
			}
		}
		e.reports(v.holds)
	}
}

func (e *encoder) renew(r Renew) {
	e.name(r.Host)
	e.boot(r.Host, r.Boot)
	e.num(int(r.Witnesses))
	e.age(e.w.clock(e.m.index(r.Host)), r.Sent, e.m.p.Lease)
	e.nonce(r.Echo)
	e.reports(r.Holds)
	for _, h := range r.Holds {
		e.flag(h.Running)
	}
}

func (e *encoder) parcel(p parcel) {
	t := e.m.p.Timings
	e.num(int(p.to))
	now := e.w.clock(min(p.to, int8(len(e.m.hosts)-1)))
	switch m := p.msg.(type) {
	case Answer:
		e.num(1, int(m.Generation), int(m.Witnesses.Config))
		e.boot(m.Host, m.Boot)
		e.flag(m.Vouch)
		e.age(now, m.Sent, t.Lease)
		e.nonce(m.Nonce)
		e.verdicts(m.Verdicts)
	case Lost:
		e.num(2)
		e.boot(m.Host, m.Boot)
		e.name(m.Witness)
		e.age(now, m.Asked, t.WordGood+1)
	case Ticket:
		e.num(3, int(m.Door))
		e.name(m.From)
		e.epoch(m.Epoch)
	case Void:
		e.num(4)
		e.epoch(m.Epoch)
	case Renew:
		e.num(5)
		e.renew(m)
	case ReadLog:
		e.num(6)
		e.flag(m.Fresh)
		e.flag(m.Turned)
		e.message(m.For)
	case Commit:
		e.num(7, int(m.Leader), int(m.Generation))
		e.flag(m.NewM != nil)
		if m.NewM != nil {
			e.name(m.NewM.Host)
			e.num(int(m.NewM.Witnesses))
			e.flag(m.NewM.Awaited)
		}
		e.record(m.Old)
		e.record(m.New)
		e.message(m.For.For)
	default:
		e.message(m.(Message))
	}
}

func (e *encoder) message(m Message) {
	switch m := m.(type) {
	case nil:
		e.num(0)
	case Renew:
		e.renew(m)
	case Query:
		e.num(8, len(m.From), int(m.From[0]))
		e.epoch(m.Epoch)
	case Status:
		e.num(9, int(m.From[0]))
		e.epoch(m.Epoch)
		e.flag(m.Taken)
	}
}

// encode w; canonical in the order of the bag.
func (m *model) encode(w *world, b []byte) []byte {
	e := encoder{m, w, b[:0]}
	e.num(int(w.turn))
	for i := range m.hosts {
		e.host(int8(i))
	}
	for _, l := range w.logs {
		e.log(l)
	}
	e.log(w.saved)
	for i, l := range w.leaders {
		e.leader(l, i%2 == 1)
	}
	l := w.left
	for _, n := range []int8{l.link, l.late, l.crash, l.guest, l.elect, l.outage, l.hop, l.drift, l.backup, l.term, l.away} {
		e.num(int(n))
	}
	start := len(e.b)
	if w.packed == 1 {
		e.parcel(w.bag[0])
	} else if w.packed > 1 {
		var parts [][]byte
		for _, p := range w.bag[:w.packed] {
			at := len(e.b)
			e.parcel(p)
			parts = append(parts, slices.Clone(e.b[at:]))
		}
		e.b = e.b[:start]
		slices.SortFunc(parts, bytes.Compare)
		for _, p := range parts {
			e.b = append(append(e.b, p...), 254)
		}
	}
	return e.b
}

// seen is a hash-compacted set: 64 bits a state. With n states the chance that any two are
// taken for one is below n²/2⁶⁵: for ten million, one in 370,000.
type seen struct {
	table []uint64
	n     int
}

func (s *seen) add(h uint64) bool {
	if h == 0 {
		h = 1
	}
	if s.n*4 >= len(s.table)*3 {
		old := s.table
		s.table = make([]uint64, max(1<<16, 2*len(old)))
		for _, o := range old {
			if o != 0 {
				s.put(o)
			}
		}
	}
	if !s.put(h) {
		return false
	}
	s.n++
	return true
}

func (s *seen) put(h uint64) bool {
	for i := h & uint64(len(s.table)-1); ; i = (i + 1) & uint64(len(s.table)-1) {
		switch s.table[i] {
		case h:
			return false
		case 0:
			s.table[i] = h
			return true
		}
	}
}

// result of an exploration.
type result struct {
	states, moves, calm int
	depth               int
	stopped             bool // the limit was reached: not all was explored
	wrong               string
	trace               []string
}

// explore breadth first, so that the first counterexample is a shortest one. limit is the
// number of states to stop at, 0 for none; every calm'th state is also continued without
// faults (0: none).
func (m *model) explore(limit, calm int) result {
	type origin struct {
		parent uint32
		nth    uint16
	}
	type node struct {
		w  world
		id uint32
	}
	seed := maphash.MakeSeed()
	var (
		visited, live seen
		origins       []origin
		res           result
		buf           []byte
	)
	start := m.start()
	origins = append(origins, origin{})
	level := []node{{start, 0}}
	buf = m.encode(&start, buf)
	visited.add(maphash.Bytes(seed, buf))
	fail := func(id uint32, why string) result {
		var path []uint16
		for ; id != 0; id = origins[id].parent {
			path = append(path, origins[id].nth)
		}
		slices.Reverse(path)
		res.states, res.wrong, res.trace = visited.n, why, m.replay(start, path)
		return res
	}
	for len(level) > 0 {
		var next []node
		for i := range level {
			at := &level[i]
			nth := uint16(0)
			bad, badID := "", uint32(0)
			m.successors(&at.w, func(_ move, n *world) {
				nth++
				res.moves++
				if bad != "" {
					return
				}
				buf = m.encode(n, buf)
				h := maphash.Bytes(seed, buf)
				if !visited.add(h) {
					return
				}
				id := uint32(len(origins))
				origins = append(origins, origin{at.id, nth - 1})
				if k, _ := m.running(n); k > 1 {
					bad, badID = "the VEE runs twice", id
					return
				}
				if calm > 0 && h%uint64(calm) == 0 {
					res.calm++
					if why := m.settles(*n, &live, seed); why != "" {
						bad, badID = why, id
						return
					}
				}
				next = append(next, node{*n, id})
			})
			if bad != "" {
				return fail(badID, bad)
			}
			if limit > 0 && visited.n >= limit {
				res.states, res.stopped = visited.n, true
				return res
			}
		}
		level = next
		res.depth++
	}
	res.states = visited.n
	return res
}

// replay a path into words.
func (m *model) replay(w world, path []uint16) []string {
	out := []string{m.describe(&w)}
	for _, nth := range path {
		var i uint16
		var to world
		var mv move
		m.successors(&w, func(v move, n *world) {
			if i == nth {
				to, mv = *n, v
			}
			i++
		})
		w = to
		if mv.what == "turn" && mv.how == "silent" {
			mv.how = "says nothing"
		}
		out = append(out, fmt.Sprintf("%-44s %s", m.say(mv), m.describe(&w)))
	}
	return out
}

func (m *model) say(mv move) string {
	name := func(i int8) string {
		if int(i) < len(m.hosts) {
			return m.hosts[i]
		}
		return fmt.Sprint(i)
	}
	s := mv.what
	switch mv.what {
	case "renews":
		s = fmt.Sprintf("%s renews with leader %d", name(mv.a), mv.b)
	case "turn", "power on", "power off", "agent crashes", "guest dies", "asks witnesses", "link", "link up", "tick, slow clock":
		s = name(mv.a) + ": " + mv.what
	case "asks witnesses, late word of", "gives to":
		s = name(mv.a) + " " + mv.what + " " + name(mv.b)
	case "considers":
		s = fmt.Sprintf("leader %d considers %s", mv.a, name(mv.b))
	}
	if mv.how != "" {
		s += ", " + mv.how
	}
	return s
}

func (m *model) describe(w *world) string {
	var b strings.Builder
	fmt.Fprintf(&b, "t=%d", w.now-zero)
	for i := range m.hosts {
		h := w.hosts[i]
		k := h.Hold(theVEE)
		fmt.Fprintf(&b, " | %s", m.hosts[i])
		if w.off[i] {
			b.WriteString(" off")
		}
		if m.hosts[i][0] != 'w' {
			fmt.Fprintf(&b, " %s@%s", k.State, k.Epoch)
			if h.Running(theVEE) {
				b.WriteString(" RUNS")
			}
		}
		fmt.Fprintf(&b, " lease %d", max(0, h.Guard.Deadline-w.clock(int8(i))))
	}
	for _, l := range w.logs {
		if l == nil {
			continue
		}
		r := l.Record(theVEE)
		fmt.Fprintf(&b, " | log %s leader %d: %s@%s", l.Site, l.Leader, r.Host, r.Epoch)
		if r.Sealing {
			fmt.Fprintf(&b, " sealing %s", r.Next)
		}
		if r.Away != "" {
			fmt.Fprintf(&b, " away %s@%s", r.Away, r.AwayEpoch)
		}
	}
	return b.String()
}

// settles continues w without faults: everything is switched on and reachable, what was
// under way is lost. In bounded time exactly one guest must run, and a guest that runs now
// with a lease left must go on. It returns what went wrong.
func (m *model) settles(w world, live *seen, seed maphash.Seed) string {
	n, owner := m.running(&w)
	if n == 1 && w.hosts[owner].Guard.Deadline-w.clock(owner) <= 0 {
		owner = -1
	}
	w.bag, w.packed = [maxBag]parcel{}, 0
	w.left = budget{}
	w.turn = 0
	w.lag = [maxNodes]int8{}
	for i := range m.hosts {
		w.link[i] = linkUp
		if w.off[i] {
			w.off[i] = false
			m.host(&w, int8(i), Booted{})
		}
	}
	for l := int8(0); l < 4; l += 2 {
		if m.ghost && l == 2 { // a log that was replaced is switched off in the end
			w.leaders[2] = nil
		}
		if w.leaders[l] != nil && !w.leaders[l].alive {
			m.elect(&w, l, false)
		}
		w.leaders[l+1] = nil
	}
	var path []uint64
	var buf []byte
	for range 40 {
		buf = m.encode(&w, buf)
		h := maphash.Bytes(seed, append(buf, byte(owner+1)))
		if !live.add(h) {
			return "" // from here on it has been seen to end well
		}
		path = append(path, h)
		for range 5 { // renewals, before a tick is over
			for i := range m.hosts {
				m.roundTrip(&w, int8(i), 2*m.siteOf(int8(i)), "")
			}
		}
		m.settle(&w)
		if n, at := m.running(&w); owner >= 0 && (n != 1 || at != owner) {
			return fmt.Sprintf("without another fault, %s loses the guest that it runs", m.hosts[owner])
		}
		m.tick(&w)
		if n, at := m.running(&w); n > 1 {
			return "the VEE runs twice"
		} else if n == 1 && len(path) > int(2*tickTimings.Steady) && m.recorded(&w, at) {
			return ""
		}
	}
	if m.unknown && m.inDoubt(&w) {
		return ""
	}
	return "without another fault, nobody runs the VEE\n" + m.describe(&w)
}

// recorded: the log of a host's site says that the VEE is there.
func (m *model) recorded(w *world, at int8) bool {
	return w.logs[m.siteOf(at)].Record(theVEE).Host == m.hosts[at]
}

// settle is what shells and leaders do of themselves in a tick.
func (m *model) settle(w *world) {
	m.repeatTickets(w)
	m.considerAll(w)
	m.askPartners(w)
}

func (m *model) repeatTickets(w *world) {
	for i := range m.hosts {
		if k := w.hosts[i].Hold(theVEE); k.State == Given && !w.off[i] {
			m.post(w, int8(i), m.host(w, int8(i), Give{VEE: theVEE, To: k.To, Foreign: k.Foreign}), "")
		}
	}
}

func (m *model) considerAll(w *world) {
	for i := range m.hosts {
		l := 2 * m.siteOf(int8(i))
		if m.hosts[i][0] == 'w' || !w.leaders[l].alive {
			continue
		}
		log := w.logs[w.leaders[l].log]
		if rec := log.Record(theVEE); rec.Host != "" && rec.Away == "" {
			m.refreshSteady(w, l)
			sent, _ := m.control(w, l, Consider{VEE: theVEE, Target: m.hosts[i], Log: *log}, "")
			m.postSites(w, sent, "")
		}
	}
}

func (m *model) askPartners(w *world) {
	for s := range m.sites {
		log := w.logs[s]
		if rec := log.Record(theVEE); rec.Away != "" && rec.Host != "" {
			m.postSites(w, []Send{{To: rec.Away, Message: Query{VEE: theVEE, Epoch: rec.AwayEpoch, From: log.Site, To: rec.Away}}}, "")
		}
	}
}

// inDoubt: the end that is documented as "unknown, for a person": a restored log says that
// the VEE is at a partner, which does not have it.
func (m *model) inDoubt(w *world) bool {
	for i := range m.sites {
		if l := w.logs[i]; l != nil && l.Record(theVEE).Away != "" {
			return true
		}
	}
	return false
}
