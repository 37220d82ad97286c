package site

import (
	"time"

	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
)

// host is a machine with its agent, its guard and its guests.
type host struct {
	s         *Site
	name      string
	guestless bool
	room      int // per cent of a CPU

	// The machine. Its clock runs at rate, and does not stop while it is frozen.
	on, frozen bool
	rate       float64
	since      time.Time      // it runs at this rate
	behind     ownership.Time // what it showed then
	stranded   bool           // on the side of the network where the deposed leader is
	drain      bool
	boot       uint64

	// On its disk.
	disk   ownership.Disk
	number uint64 // of the last partition that it began
	kept   map[vee.ID]meter
	bills  []bill
	slow   time.Duration // a write takes so long

	// The agent. What happens while it is paused or writes waits in line.
	alive, paused, writing bool
	life                   int // of agents on this host, so that nobody waits for one that is gone
	line                   []func()
	core                   ownership.Host
	node                   dvms.Node
	answered               bool           // since the last renewal
	lost                   bool           // it has said that it has lost the control plane
	moves                  map[string]int // that run here, by plan
	plan                   []move         // that it has made as the leader of a partition
	meters                 map[vee.ID]*meter

	// The guard and its guests, which live on without the agent.
	armed    bool
	hung     bool // the guard is frozen, the guests are not
	deadline ownership.Time
	procs    map[vee.ID]*proc
}

// proc is a guest's process. data: the last write that it knows.
type proc struct {
	running bool
	data    int
	moved   bool // its memory went with a ticket: it is not to go on by itself
}

// now on the host's own clock.
func (h *host) now() ownership.Time {
	return h.behind + time.Duration(float64(h.s.sim.Now().Sub(h.since))*h.rate)
}

// real time in which so much passes on the host's clock.
func (h *host) real(d time.Duration) time.Duration {
	return max(0, time.Duration(float64(d)/h.rate)) + 1
}

// rumour of a new leader: for so long some still turn to the one before.
const rumour = 15 * time.Second

// powerOn the machine: the agent and the guard start, no guest does.
func (h *host) powerOn() {
	if h.on {
		return
	}
	h.on, h.frozen, h.hung = true, false, false
	h.boot++
	h.procs = map[vee.ID]*proc{}
	h.core = ownership.Host{ID: h.name, Disk: h.disk, Guard: ownership.Guard{Boot: h.boot - 1}}
	h.startAgent(ownership.Booted{})
	h.deadline = h.core.Guard.Deadline
	h.s.net.Down(h.name, false)
	if h.s.bug == bugAutostart {
		for _, k := range h.disk.Holds {
			if k.State == ownership.Held {
				h.act([]ownership.Action{ownership.Run{VEE: k.VEE, Epoch: k.Epoch}})
			}
		}
	}
}

func (h *host) powerOff() {
	if !h.on {
		return
	}
	for _, v := range h.s.vees {
		h.end(v.id, "")
	}
	h.stopAgent()
	h.on = false
	h.s.net.Down(h.name, true)
	for _, v := range h.s.vees { // what was not written is not known
		if m := h.meters[v.id]; m != nil {
			m.lost += m.is.Used.ActiveMS - h.kept[v.id].is.Used.ActiveMS
			m.is, m.cut = h.kept[v.id].is, h.kept[v.id].cut
		}
	}
	h.s.suspect(h)
}

// startAgent on what is on the disk and in the guard.
func (h *host) startAgent(first ownership.Event) {
	h.life++
	h.alive, h.paused, h.writing, h.line = true, h.hung, false, nil // without the guard it can do nothing
	g := h.core.Guard
	if _, boots := first.(ownership.Booted); !boots {
		g = ownership.Guard{Boot: h.boot, Armed: h.armed, Deadline: h.deadline}
		for _, v := range h.s.vees {
			if p := h.procs[v.id]; p != nil {
				g.Guests = append(g.Guests, ownership.Guest{VEE: v.id, Running: p.running})
			}
		}
	}
	h.core = ownership.Host{ID: h.name, Disk: h.disk, Guard: g}
	h.node, h.moves = dvms.Node{Host: h.name, Number: h.number}, map[string]int{}
	h.answered = true
	h.step(first)
	life := h.life
	h.s.sim.After(time.Duration(h.s.dice.Int64N(int64(h.s.p.Renew))), "", func() { h.beat(life) })
	if !h.guestless {
		h.s.sim.Every(monitorEvery, "", func() bool {
			if h.life == life {
				h.queue(h.monitor)
			}
			return h.life == life
		})
	}
}

// stopAgent kills it; what it was about to do it does not.
func (h *host) stopAgent() {
	h.life++
	h.alive, h.paused, h.writing, h.line = false, false, false, nil
}

// queue work for the agent. It waits while the agent is paused, frozen or writing, and is
// lost with it.
func (h *host) queue(do func()) {
	switch {
	case !h.alive:
	case h.paused || h.writing || h.frozen:
		h.line = append(h.line, do)
	default:
		do()
	}
}

// drainLine does what has waited.
func (h *host) drainLine() {
	for len(h.line) > 0 && h.alive && !h.paused && !h.writing && !h.frozen {
		do := h.line[0]
		h.line = h.line[1:]
		do()
	}
}

// beat is the agent's timer, every Timings.Renew.
func (h *host) beat(life int) {
	if h.life != life {
		return
	}
	h.queue(func() {
		missing := !h.answered
		h.answered = false
		h.step(ownership.RenewDue{})
		if missing {
			h.step(ownership.AskDue{})
		}
		for _, k := range h.core.Disk.Holds {
			if k.State == ownership.Given { // the ticket may have been lost
				h.impatient(k.VEE)
				h.step(ownership.Give{VEE: k.VEE, To: k.To, Foreign: k.Foreign})
			}
		}
		h.measure()
	})
	h.s.sim.After(h.real(h.s.p.Renew), "", func() { h.beat(life) })
}

// step of the host's part in the ownership protocol.
func (h *host) step(e ownership.Event) {
	h.queue(func() {
		if _, ok := e.(ownership.Answer); ok {
			h.answered, h.lost = true, false
		}
		before := h.core
		core, actions := h.core.Step(h.s.p, h.now(), e)
		h.core = core
		h.act(actions)
		if _, told := e.(ownership.Answer); told && changed(before, core) { // is told at once
			h.step(ownership.RenewDue{})
		}
	})
}

// changed holds are news for the control plane.
func changed(a, b ownership.Host) bool {
	for _, k := range b.Disk.Holds {
		if a.Hold(k.VEE) != k || a.Running(k.VEE) != b.Running(k.VEE) {
			return true
		}
	}
	return false
}

// act carries actions out, in order; a slow disk holds up what follows a write.
func (h *host) act(actions []ownership.Action) {
	for i, a := range actions {
		switch a := a.(type) {
		case ownership.Persist:
			if h.slow > 0 {
				h.write(a.Disk, actions[i+1:])
				return
			}
			h.wrote(a.Disk)
		case ownership.Send:
			h.post(a)
		case ownership.Stop:
			h.stop(a)
		case ownership.Extend:
			h.extend(a.Until)
		case ownership.Run:
			h.run(a)
		}
	}
	h.armed = h.core.Guard.Armed
}

func (h *host) write(d ownership.Disk, then []ownership.Action) {
	h.writing = true
	life := h.life
	h.s.sim.After(h.slow, "", func() {
		if h.life != life {
			return
		}
		h.wrote(d)
		h.writing = false
		h.act(then)
		h.drainLine()
	})
}

func (h *host) wrote(d ownership.Disk) {
	for _, k := range d.Holds {
		was := ownership.Host{Disk: h.disk}.Hold(k.VEE)
		if was != k {
			to := ""
			if k.To != "" {
				to = " to " + k.To
			}
			h.s.say("%s: on disk: %s %s%s at %s", h.name, k.VEE, k.State, to, k.Epoch)
		}
	}
	if h.s.bug != bugDisk {
		h.disk = d
	}
}

// post a message of the ownership protocol.
func (h *host) post(a ownership.Send) {
	s := h.s
	switch m := a.Message.(type) {
	case ownership.Renew:
		boss := s.boss
		switch {
		case boss.before == nil:
		case h.stranded:
			s.sim.After(s.latency(), "", func() { boss.before.event(m) })
			return
		case s.sim.Now().Sub(boss.since) < rumour && h.s.dice.IntN(3) > 0:
			boss = boss.before
		}
		s.net.Send(h.name, control, "renew", func() { boss.event(m) })
		return
	case ownership.Lost:
		if !h.lost {
			s.say("%s: has lost the control plane, and says so", h.name)
		}
		h.lost = true
	case ownership.Ticket:
		if s.loseTickets {
			s.say("%s: the ticket %s of %s is lost", h.name, m.Epoch, m.VEE)
			return
		}
	case ownership.Void:
		if s.loseTickets {
			s.say("%s: the word that the ticket %s of %s is void is lost", h.name, m.Epoch, m.VEE)
			return
		}
		s.say("%s: the ticket %s of %s is void", h.name, m.Epoch, m.VEE)
	}
	if to := s.host(a.To); to == h {
		h.step(a.Message)
	} else if to != nil {
		s.net.Send(h.name, a.To, "", func() { to.step(a.Message) })
	}
}

// stop a guest, or end its process.
func (h *host) stop(a ownership.Stop) {
	p := h.procs[a.VEE]
	switch {
	case p == nil:
	case a.Kill:
		h.end(a.VEE, h.name+": ends "+string(a.VEE))
	default:
		v := h.s.guest(a.VEE)
		next := h.core.Hold(a.VEE).Epoch // the ticket's: the state is ahead of the actions
		v.data[next] = p.data
		if h.s.bug == bugCopyEarly {
			v.data[next] = max(0, p.data-2)
		}
		h.count(a.VEE, false)
		p.running, p.moved = false, true
		h.s.say("%s: stops %s for %s", h.name, a.VEE, next)
	}
}

// run a guest. The guard takes no process when its deadline has passed.
func (h *host) run(a ownership.Run) {
	if h.expired() && h.s.bug != bugAutostart {
		h.s.say("%s: the guard does not take %s: the lease is over", h.name, a.VEE)
		h.gone(a.VEE)
		return
	}
	v := h.s.guest(a.VEE)
	p := h.procs[a.VEE]
	data, moved := v.data[a.Epoch]
	switch {
	case p == nil && moved: // what came with the ticket, once
		p = &proc{data: data}
		delete(v.data, a.Epoch)
	case p == nil:
		p = &proc{data: v.disk}
	}
	if p.moved && moved { // it comes back from where it went: what was left here is old
		p.data = data
		delete(v.data, a.Epoch)
	}
	h.procs[a.VEE] = p
	if !p.running {
		p.running, p.moved = true, false
		h.count(a.VEE, true)
		h.s.say("%s: RUNS %s at %s", h.name, a.VEE, a.Epoch)
	}
}

// end a guest's process, whoever did it; why is said when it is not empty.
func (h *host) end(id vee.ID, why string) {
	if p := h.procs[id]; p != nil {
		h.count(id, false)
		delete(h.procs, id)
		if why != "" {
			h.s.say("%s", why)
		}
	}
}

// gone: the agent notices that a process has ended, if there is not another one by then.
func (h *host) gone(id vee.ID) {
	h.queue(func() {
		if h.procs[id] == nil {
			h.step(ownership.GuestGone{VEE: id})
		}
	})
}

// expired: the guard kills, or has killed.
func (h *host) expired() bool { return h.armed && h.now() >= h.deadline }

// extend the guard's deadline, and be there when it passes. What is over is over: a guard that
// is told of a new deadline when the old one has just passed kills first.
func (h *host) extend(until ownership.Time) {
	h.enforce()
	if until <= h.deadline {
		return
	}
	h.deadline = until
	h.watch(h.boot, until)
}

// watch is the guard's timer for a deadline. The clock may not run as it did when it was set.
func (h *host) watch(boot uint64, until ownership.Time) {
	h.s.sim.After(h.real(until-h.now())+h.delay(), "", func() {
		switch {
		case !h.on || h.boot != boot || h.frozen || h.deadline != until:
		case h.now() < until:
			h.watch(boot, until)
		default:
			h.enforce()
		}
	})
}

// delay of the guard: it is quick, and not at once.
func (h *host) delay() time.Duration {
	return time.Duration(h.s.dice.Int64N(int64(h.s.p.KillTime) * 9 / 10))
}

// enforce the deadline: the guard kills.
func (h *host) enforce() {
	if !h.expired() || h.hung || h.s.bug == bugGuard {
		return
	}
	for _, v := range h.s.vees {
		if h.procs[v.id] != nil {
			h.end(v.id, h.name+": the guard ENDS "+string(v.id)+": nobody vouches for it any more")
			h.gone(v.id)
		}
	}
}
