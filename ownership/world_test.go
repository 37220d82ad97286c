package ownership

import (
	"fmt"
	"slices"
	"strings"

	"github.com/reservoir-cloud/reservoir/vee"
)

// The world of the exhaustive check: real Hosts, Controls and Logs, and between them a
// network and a fate that may do anything their budgets allow. One VEE; one unit of time is
// a tick, in which each host has a turn. docs/ownership.md argues why that is enough.

const (
	theVEE   = vee.ID("a.aaaaaaaaaa")
	maxNodes = 4
	maxBag   = 3
	zero     = 10_000 // where the clock stands when an exploration or a transcript begins
	warmUp   = 100    // ticks before it, in which everybody becomes current and steady
)

// tickTimings keep every inequality of Timings.Check as tightly as whole ticks allow, with
// one tick for drift.
var tickTimings = Timings{Renew: 1, EchoAge: 1, Window: 1, LostAfter: 3, WordGood: 1, Lease: 4, Watchdog: 4, GiveAway: 5, Steady: 5}

// fineTimings are the defaults in ticks of five seconds, so that a window has two renewals.
var fineTimings = Timings{Renew: 1, EchoAge: 1, Window: 2, LostAfter: 4, WordGood: 1, Lease: 5, Watchdog: 5, GiveAway: 6, Steady: 6}

// config of one exploration: who there is, and how much may go wrong.
type config struct {
	name   string
	hosts  []string // "a0", "a1", "b0", and witnesses without guests "w2": first letter is the site but w is site a
	sites  []string
	backup string // site of which a backup may be taken and restored
	ghost  bool   // the log that a restore replaces lives on beside it
	words  bool   // hosts ask witnesses
	budget budget
	lossy  bool   // any renewal and any answer may be lost, at no cost
	links  []link // kinds of cut that happen; nil: all
	joiner string // host that joined the site after the backup was taken
	// loyal hosts talk to one log only after a restore with a ghost: 0 the new, 1 the ghost.
	loyal    map[string]int8
	prologue func(*model, *world) // what has happened before the exploration begins
	timings  *Timings             // nil: tickTimings
	unknown  bool                 // "nobody runs, for a person to settle" is an end that the scenario allows
}

// budget is how often each kind of trouble may still happen.
type budget struct {
	link, late, crash, guest, elect, outage, hop, drift, backup, term, away int8
}

type link uint8

const (
	linkUp link = iota
	linkOneWay
	linkNoControl // reaches other hosts
	linkCut
)

var linkNames = []string{"up", "one-way", "no control plane", "cut off"}

// parcel is something under way: a message for a node, a read or a commit that a leader has
// begun and not finished.
type parcel struct {
	to  int8 // host; or leader, for messages to a control plane
	msg any  // Answer, Lost, Ticket, Void for hosts; Renew, Query, Status for leaders; ReadLog, Commit of leader to
}

type leader struct {
	ctl    Control
	log    int8 // which of the logs it reads
	alive  bool
	memory *Log // of a deposed leader, which it answers from where ruleRead is taken away
}

type world struct {
	now     Time
	turn    int8
	hosts   [maxNodes]*Host
	off     [maxNodes]bool
	link    [maxNodes]link
	lag     [maxNodes]int8 // ticks that the host's clock is behind
	logs    [2]*Log        // site a, and site b or the ghost of site a
	leaders [4]*leader     // leaders 2i and 2i+1 read log i; the even one is the newer
	saved   *Log
	bag     [maxBag]parcel
	packed  int8
	left    budget
}

// move says which of the things that could happen did.
type move struct {
	what string
	a, b int8
	how  string
}

type model struct {
	config
	p    Protocol
	tell func(who string, a Action) // of what people want to read, in transcripts
}

func newModel(c config, p Protocol) *model {
	if c.sites == nil {
		c.sites = []string{"a"}
	}
	if c.timings != nil {
		p.Timings = *c.timings
	}
	return &model{config: c, p: p}
}

func (m *model) siteOf(h int8) int8 {
	if m.hosts[h][0] == 'b' {
		return 1
	}
	return 0
}

func (m *model) index(host string) int8 {
	for i, n := range m.hosts {
		if n == host {
			return int8(i)
		}
	}
	return -1
}

func (m *model) siteIndex(site string) int8 {
	for i, n := range m.sites {
		if n == site {
			return int8(i)
		}
	}
	return -1
}

// start: the VEE runs on the first host, everybody is current and the witnesses steady.
func (m *model) start() world {
	w := world{now: zero - warmUp, left: m.budget}
	for s, site := range m.sites {
		l := Log{Site: site, Generation: 1, Leader: 1}
		set := WitnessSet{Config: 1}
		for i, h := range m.hosts {
			if m.siteOf(int8(i)) == int8(s) {
				l.Members = append(l.Members, Member{Host: h, Witnesses: 1})
				set.Members = append(set.Members, h)
			}
		}
		for len(set.Members) < 3 { // machines that the model does not move: always with the control plane
			name := fmt.Sprintf("steady%d", len(set.Members))
			set.Members = append(set.Members, name)
			l.Members = append(l.Members, Member{Host: name, Witnesses: 1})
		}
		l.Witnesses = []WitnessSet{set}
		if len(m.sites) > 1 {
			l.Partners = []string{m.sites[1-s]}
		}
		if s == 0 {
			e := vee.Epoch{Generation: 1, Term: 1}
			l.Records = []Record{{VEE: theVEE, Epoch: e, Host: m.hosts[0], Taken: e, Next: e}}
		}
		w.logs[s] = &l
		c := NewControl(l, w.now-100)
		for i, h := range m.hosts {
			if m.siteOf(int8(i)) == int8(s) {
				w.hosts[i] = &Host{ID: h, Disk: Disk{Generation: 1, Witnesses: set},
					Guard: Guard{Armed: true, Deadline: w.now}, heard: w.now}
				if m.joiner != "" {
					w.hosts[i].Disk.Members = m.hosts
				}
			}
		}
		w.leaders[2*s] = &leader{ctl: c, log: int8(s), alive: true}
	}
	for range warmUp {
		for i := range m.hosts {
			m.roundTrip(&w, int8(i), 2*m.siteOf(int8(i)), "")
		}
		m.tick(&w)
	}
	if m.prologue != nil {
		m.prologue(m, &w)
	}
	w.left = m.budget
	return w
}

// clock of a host.
func (w *world) clock(h int8) Time { return w.now - Time(w.lag[h]) }

// running counts the guests of the VEE whose vCPUs run, anywhere.
func (m *model) running(w *world) (n int, where int8) {
	where = -1
	for i := range m.hosts {
		if !w.off[i] && w.hosts[i].Running(theVEE) {
			n, where = n+1, int8(i)
		}
	}
	return n, where
}

func (m *model) tick(w *world) {
	w.now++
	w.turn = 0
	for i := range m.hosts {
		if h := w.hosts[i]; !w.off[i] && h.Guard.Expired(w.clock(int8(i))) && len(h.Guard.Guests) > 0 {
			n := *h
			n.Guard = n.Guard.Tick(w.clock(int8(i)))
			w.hosts[i] = &n
			if m.tell != nil {
				m.tell("guard "+h.ID, Stop{VEE: theVEE, Kill: true})
			}
		}
	}
}

// host takes a step and hands what it sends to deliver.
func (m *model) host(w *world, i int8, e Event) []Action {
	if w.off[i] {
		return nil
	}
	h, actions := w.hosts[i].Step(m.p, w.clock(i), e)
	w.hosts[i] = &h
	if m.tell != nil {
		for _, a := range actions {
			m.tell(h.ID, a)
		}
	}
	return actions
}

// control takes a step. Reads and commits happen at once, unless how is the name of the one
// that is to be left under way. It returns what is sent.
func (m *model) control(w *world, l int8, e Event, how string) (sent []Send, ok bool) {
	ld := w.leaders[l]
	if ld == nil || !ld.alive {
		return nil, true
	}
	c := ld.ctl
	c, todo := c.Step(m.p, w.now, e)
	w.leaders[l] = &leader{ctl: c, log: ld.log, alive: true, memory: ld.memory}
	for n := 0; len(todo) > 0; n++ {
		if n > 20 {
			panic("a renewal calls for commits without end")
		}
		a := todo[0]
		todo = todo[1:]
		switch a := a.(type) {
		case Send:
			sent = append(sent, a)
		case ReadLog:
			if how == "read late" {
				return sent, w.pack(parcel{l, a})
			}
			todo = append(todo, m.read(w, l, a)...)
		case Commit:
			if how == "commit late" {
				return sent, w.pack(parcel{l, a})
			}
			todo = append(todo, m.commit(w, l, a)...)
		}
	}
	return sent, true
}

func (m *model) read(w *world, l int8, r ReadLog) []Action {
	ld := w.leaders[l]
	log := *w.logs[ld.log]
	if v, ok := r.For.(Renew); ok && !m.p.keeps(ruleRead) && ld.memory != nil {
		log, v.Holds = *ld.memory, nil
		r.For = v
	}
	_, actions := ld.ctl.Step(m.p, w.now, ReadDone{Of: r, Log: log})
	return actions
}

func (m *model) commit(w *world, l int8, c Commit) []Action {
	ld := w.leaders[l]
	if log, ok := w.logs[ld.log].Apply(c); ok {
		w.logs[ld.log] = &log
		if m.tell != nil {
			m.tell("log "+log.Site, c)
		}
	}
	if c.For.For == nil {
		return nil
	}
	return m.read(w, l, c.For)
}

func (w *world) pack(p parcel) bool {
	if w.packed == maxBag {
		return false
	}
	w.bag[w.packed] = p
	w.packed++
	return true
}

func (w *world) unpack(i int8) parcel {
	p := w.bag[i]
	w.packed--
	w.bag[i] = w.bag[w.packed]
	w.bag[w.packed] = parcel{}
	return p
}

// roundTrip of a renewal. how: "" all at once; "lost" the answer is; "renew late",
// "read late", "answer late": that much is left under way.
func (m *model) roundTrip(w *world, i, l int8, how string) bool {
	if how == "" && w.leaders[l] != nil {
		m.refreshSteady(w, l)
	}
	for _, a := range m.host(w, i, RenewDue{}) {
		if how == "renew late" {
			return w.pack(parcel{l, a.(Send).Message})
		}
		sent, ok := m.control(w, l, a.(Send).Message, how)
		if !ok || how == "read late" && len(sent) > 0 {
			return false
		}
		for _, s := range sent {
			switch how {
			case "lost", "read late":
			case "answer late":
				return w.pack(parcel{i, s.Message})
			default:
				before := w.hosts[i].Hold(theVEE)
				m.host(w, i, s.Message)
				if w.hosts[i].Hold(theVEE) != before { // what has changed is told at once
					return m.roundTrip(w, i, l, "")
				}
			}
		}
		if how == "answer late" {
			return false
		}
	}
	return true
}

// refreshSteady keeps the machines that the model does not move in touch: they renew, and
// have sealed whatever is open.
func (m *model) refreshSteady(w *world, l int8) {
	log := w.logs[w.leaders[l].log]
	c := w.leaders[l].ctl
	if c.Leader != log.Leader || c.Generation != log.Generation {
		return
	}
	for _, mem := range log.Members {
		if strings.HasPrefix(mem.Host, "steady") {
			r := Renew{Host: mem.Host, Witnesses: 1, Echo: Nonce{Generation: c.Generation, Leader: c.Leader, Issued: w.now}}
			if rec := log.Record(theVEE); rec.Host != "" {
				r.Holds = []Holding{{VEE: theVEE, Epoch: rec.Next, State: Free}}
			}
			m.control(w, l, r, "")
		}
	}
}

// askWitnesses: a question and the words that come back at once; late: one word is left
// under way, that of the witness named.
func (m *model) askWitnesses(w *world, i, late int8) bool {
	delayed := late < 0
	for _, a := range m.host(w, i, AskDue{}) {
		s := a.(Send)
		to := m.index(s.To)
		if to < 0 || w.off[to] || w.link[to] == linkCut && to != i {
			continue
		}
		for _, r := range m.host(w, to, s.Message) {
			if to == late {
				delayed = w.pack(parcel{i, r.(Send).Message})
				continue
			}
			m.host(w, i, r.(Send).Message)
		}
	}
	return delayed
}

// post what a host sent to other hosts. how: "" arrives at once and so does what it calls
// forth; "late": the first is left under way; "lost"; "reply lost".
func (m *model) post(w *world, from int8, actions []Action, how string) bool {
	for _, a := range actions {
		s, ok := a.(Send)
		if !ok {
			continue
		}
		to := m.index(s.To)
		if how == "lost" || to < 0 {
			continue
		}
		if how == "late" {
			return w.pack(parcel{to, s.Message})
		}
		if w.off[to] {
			continue
		}
		next := ""
		if how == "reply lost" {
			next = "lost"
		}
		m.post(w, to, m.host(w, to, s.Message), next)
	}
	return true
}

// between control planes; the same words.
func (m *model) postSites(w *world, sent []Send, how string) bool {
	for _, s := range sent {
		to := 2 * m.siteIndex(s.To)
		if to < 0 || how == "lost" {
			continue
		}
		if how == "late" {
			return w.pack(parcel{to, s.Message})
		}
		back, _ := m.control(w, to, s.Message, "")
		next := ""
		switch how {
		case "reply lost":
			next = "lost"
		case "reply late":
			next = "late"
		}
		if !m.postSites(w, back, next) {
			return false
		}
	}
	return true
}

// deliver parcel i of the bag.
func (m *model) deliver(w *world, p parcel) {
	switch msg := p.msg.(type) {
	case Answer, Lost, Ticket, Void:
		m.post(w, p.to, m.host(w, p.to, msg), "")
	case ReadLog:
		if ld := w.leaders[p.to]; ld != nil && ld.alive {
			m.finish(w, p.to, m.read(w, p.to, msg))
		}
	case Commit: // under way to the store: the leader need not live to see it
		if n, ok := w.logs[p.to/2].Apply(msg); ok {
			w.logs[p.to/2] = &n
		}
	default: // Renew, Query, Status
		sent, _ := m.control(w, p.to, msg, "")
		m.route(w, sent)
	}
}

func (m *model) finish(w *world, l int8, todo []Action) {
	for len(todo) > 0 {
		a := todo[0]
		todo = todo[1:]
		switch a := a.(type) {
		case Send:
			m.route(w, []Send{a})
		case Commit:
			todo = append(todo, m.commit(w, l, a)...)
		}
	}
}

func (m *model) route(w *world, sent []Send) {
	for _, s := range sent {
		if to := m.index(s.To); to >= 0 {
			m.host(w, to, s.Message)
		} else {
			m.postSites(w, []Send{s}, "")
		}
	}
}

// successors of w, in an order that only depends on w.
func (m *model) successors(w *world, yield func(move, *world)) {
	try := func(mv move, f func(n *world) bool) {
		n := *w
		if f(&n) {
			yield(mv, &n)
		}
	}
	nh := int8(len(m.hosts))

	// What happens if nothing goes wrong: the next turn.
	if w.turn == nh {
		try(move{what: "tick"}, func(n *world) bool { m.tick(n); return true })
		if w.left.drift > 0 {
			for i := range nh {
				try(move{what: "tick, slow clock", a: i}, func(n *world) bool { n.lag[i]++; n.left.drift--; m.tick(n); return true })
			}
		}
	} else {
		m.turns(w, try)
	}

	// Fate strikes a host just before its turn: in between, it would change nothing that
	// another node can tell from a lost message.
	if i := w.turn; i < nh {
		m.fate(w, i, try)
	}
	for i := range nh {
		if !w.off[i] {
			m.handovers(w, i, try)
		}
	}
	for i := range w.packed {
		try(move{what: "deliver", a: i, how: fmt.Sprintf("%T", w.bag[i].msg)[len("ownership."):]}, func(n *world) bool { m.deliver(n, n.unpack(i)); return true })
		if w.left.late > 0 {
			try(move{what: "deliver, and once more later", a: i, how: fmt.Sprintf("%T", w.bag[i].msg)[len("ownership."):]}, func(n *world) bool { n.left.late--; m.deliver(n, n.bag[i]); return true })
		}
	}
	for l := range int8(len(w.leaders)) {
		m.governs(w, l, try)
	}
	if m.backup != "" {
		m.backups(w, try)
	}
}

// fate of host i: its links, its power, its agent, its guest.
func (m *model) fate(w *world, i int8, try func(move, func(*world) bool)) {
	if w.off[i] {
		try(move{what: "power on", a: i}, func(n *world) bool { n.off[i] = false; m.host(n, i, Booted{}); return true })
		return
	}
	if w.link[i] != linkUp {
		try(move{what: "link up", a: i}, func(n *world) bool { n.link[i] = linkUp; return true })
	} else if w.left.link > 0 {
		for _, to := range []link{linkOneWay, linkNoControl, linkCut} {
			if to == linkNoControl && !m.words || m.links != nil && !slices.Contains(m.links, to) {
				continue
			}
			try(move{what: "link", a: i, how: linkNames[to]}, func(n *world) bool { n.link[i] = to; n.left.link--; return true })
		}
	}
	if w.left.crash > 0 {
		try(move{what: "power off", a: i}, func(n *world) bool {
			n.left.crash--
			n.off[i] = true
			h := *n.hosts[i]
			h.Guard.Guests, h.seals = nil, nil
			n.hosts[i] = &h
			return true
		})
		try(move{what: "agent crashes", a: i}, func(n *world) bool { n.left.crash--; m.host(n, i, AgentStarted{}); return true })
	}
	if w.left.guest > 0 && w.hosts[i].Running(theVEE) {
		try(move{what: "guest dies", a: i}, func(n *world) bool { n.left.guest--; m.host(n, i, GuestGone{theVEE}); return true })
	}
}

// turns of the host whose turn it is.
func (m *model) turns(w *world, try func(move, func(*world) bool)) {
	i := w.turn
	next := func(n *world) { n.turn++ }
	if w.off[i] {
		try(move{what: "turn", a: i, how: "off"}, func(n *world) bool { next(n); return true })
		return
	}
	spoke := false
	if w.link[i] == linkUp || w.link[i] == linkOneWay {
		for l := range int8(len(w.leaders)) {
			ld := w.leaders[l]
			if ld == nil || !ld.alive || w.logs[ld.log].Site != m.sites[m.siteOf(i)] {
				continue
			}
			if only, ok := m.loyal[m.hosts[i]]; ok && w.logs[1] != nil && ld.log != only {
				continue
			}
			how := ""
			if w.link[i] == linkOneWay {
				how = "lost"
			} else {
				spoke = true
			}
			try(move{what: "renews", a: i, b: l, how: how}, func(n *world) bool { next(n); return m.roundTrip(n, i, l, how) })
			if m.lossy {
				try(move{what: "renews", a: i, b: l, how: "lost"}, func(n *world) bool { next(n); return m.roundTrip(n, i, l, "lost") })
			}
			if w.left.late > 0 {
				for _, how := range []string{"renew late", "read late", "answer late"} {
					try(move{what: "renews", a: i, b: l, how: how}, func(n *world) bool {
						next(n)
						n.left.late--
						return m.roundTrip(n, i, l, how)
					})
				}
			}
		}
	}
	if !spoke || m.lossy {
		try(move{what: "turn", a: i, how: "silent"}, func(n *world) bool { next(n); return true })
		if m.words && w.link[i] != linkCut {
			try(move{what: "asks witnesses", a: i}, func(n *world) bool { next(n); return m.askWitnesses(n, i, -1) })
			if w.left.late > 0 {
				for j := range int8(len(m.hosts)) {
					try(move{what: "asks witnesses, late word of", a: i, b: j}, func(n *world) bool {
						next(n)
						n.left.late--
						return m.askWitnesses(n, i, j)
					})
				}
			}
		}
	}
}

func (m *model) handovers(w *world, i int8, try func(move, func(*world) bool)) {
	k := w.hosts[i].Hold(theVEE)
	hows := []string{"", "lost"}
	if w.left.late > 0 {
		hows = []string{"", "lost", "late", "reply lost"}
	}
	for j := range int8(len(m.hosts)) {
		if j == i || m.hosts[j][0] == 'w' {
			continue
		}
		again := k.State == Given && k.To == m.hosts[j]
		foreign := m.siteOf(i) != m.siteOf(j)
		if !again && (k.State != Held || !w.hosts[i].Running(theVEE) || w.left.hop == 0) {
			continue
		}
		for _, how := range hows {
			if again && how != "" {
				continue
			}
			try(move{what: "gives to", a: i, b: j, how: how}, func(n *world) bool {
				if !again {
					n.left.hop--
				}
				if how == "late" || how == "reply lost" {
					n.left.late--
				}
				actions := m.host(n, i, Give{VEE: theVEE, To: m.hosts[j], Foreign: foreign})
				return len(actions) > 0 && m.post(n, i, actions, how)
			})
		}
	}
}

// governs: what a leader may do of itself, and what may befall it.
func (m *model) governs(w *world, l int8, try func(move, func(*world) bool)) {
	ld := w.leaders[l]
	if ld == nil {
		return
	}
	log := w.logs[ld.log]
	if !ld.alive {
		if l%2 == 0 {
			try(move{what: "control plane is back", a: l}, func(n *world) bool { m.elect(n, l, false); return true })
		}
		return
	}
	if l%2 == 0 && w.left.outage > 0 {
		try(move{what: "control plane down", a: l}, func(n *world) bool {
			n.left.outage--
			n.leaders[l] = &leader{ctl: Control{}, log: ld.log}
			return true
		})
	}
	if l%2 == 0 && w.left.elect > 0 {
		try(move{what: "election", a: l}, func(n *world) bool { n.left.elect--; m.elect(n, l, true); return true })
	}
	if l%2 == 1 {
		try(move{what: "deposed leader ends", a: l}, func(n *world) bool { n.leaders[l] = nil; return true })
	}
	rec := log.Record(theVEE)
	hows := []string{""}
	if w.left.late > 0 {
		hows = append(hows, "commit late")
	}
	for j := range int8(len(m.hosts)) {
		if m.hosts[j][0] == 'w' || log.Site != m.sites[m.siteOf(j)] || rec.Host == "" {
			continue
		}
		for _, how := range hows {
			try(move{what: "considers", a: l, b: j, how: how}, func(n *world) bool {
				before, packed := *n.logs[ld.log], n.packed
				opened := rec.Sealing
				m.refreshSteady(n, l)
				sent, ok := m.control(n, l, Consider{VEE: theVEE, Target: m.hosts[j], Log: *log}, how)
				if !ok || len(sent) == 0 && n.packed == packed && before.Record(theVEE) == n.logs[ld.log].Record(theVEE) {
					return false
				}
				if how != "" {
					n.left.late--
				}
				if !opened && len(sent) == 0 {
					if n.left.term == 0 {
						return false
					}
					n.left.term--
				}
				return m.postSites(n, sent, "")
			})
		}
	}
	if len(m.sites) < 2 || l%2 == 1 {
		return
	}
	if w.left.away > 0 && rec.Host != "" && rec.Away == "" {
		try(move{what: "opens custody", a: l}, func(n *world) bool {
			n.left.away--
			m.control(n, l, SendAway{VEE: theVEE, Site: log.Partners[0], Door: w.logs[1-ld.log].Generation, Log: *log}, "")
			return n.logs[ld.log].Record(theVEE) != rec
		})
	}
	if rec.Away != "" && rec.Host != "" {
		hows := []string{""}
		if w.left.late > 0 {
			hows = []string{"", "late", "reply late", "reply lost"}
		}
		for _, how := range hows {
			try(move{what: "asks partner", a: l, how: how}, func(n *world) bool {
				if how != "" {
					n.left.late--
				}
				return m.postSites(n, []Send{{To: rec.Away, Message: Query{VEE: theVEE, Epoch: rec.AwayEpoch, From: log.Site, To: rec.Away}}}, how)
			})
		}
	}
}

// elect a leader in place of l; with zombie the old one does not know.
func (m *model) elect(w *world, l int8, zombie bool) {
	old := w.leaders[l]
	zombie = zombie && old.alive
	for i := w.packed - 1; i >= 0; i-- { // reads that somebody has begun nobody else ends
		if _, ok := w.bag[i].msg.(ReadLog); ok && w.bag[i].to == l+1 && zombie {
			w.unpack(i)
		} else if ok && w.bag[i].to == l {
			if p := w.unpack(i); zombie {
				w.pack(parcel{l + 1, p.msg})
			}
		}
	}
	if zombie {
		w.leaders[l+1] = &leader{ctl: old.ctl, log: old.log, alive: true, memory: w.logs[old.log]}
	}
	log := w.logs[old.log].Elect()
	w.logs[old.log] = &log
	w.leaders[l] = &leader{ctl: NewControl(log, w.now), log: old.log, alive: true}
}

func (m *model) backups(w *world, try func(move, func(*world) bool)) {
	s := m.siteIndex(m.backup)
	if w.saved == nil {
		try(move{what: "backup"}, func(n *world) bool { n.saved = n.logs[s]; return true })
		return
	}
	if w.left.backup == 0 {
		return
	}
	try(move{what: "restore"}, func(n *world) bool {
		n.left.backup--
		saved := *w.saved
		saved.Members = slices.DeleteFunc(slices.Clone(saved.Members), func(h Member) bool { return h.Host == m.joiner })
		log := Restore(saved, w.logs[s].Generation+1)
		if m.ghost { // the old one and its leader live on, beside the new
			n.logs[1] = n.logs[s]
			n.leaders[2] = &leader{ctl: w.leaders[0].ctl, log: 1, alive: w.leaders[0].alive}
			n.leaders[3] = nil
			for i := range n.packed { // what was under way to it still is
				if n.bag[i].to == 0 {
					switch n.bag[i].msg.(type) {
					case Renew, ReadLog, Commit:
						n.bag[i].to = 2
					}
				}
			}
		} else {
			n.leaders[2*s+1] = nil
		}
		n.logs[s] = &log
		n.leaders[2*s] = &leader{ctl: NewControl(log, w.now), log: s, alive: true}
		return true
	})
}
