package site

import (
	"cmp"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
)

// control is the network's name for wherever the control plane runs.
const control = "control"

// store is the site's record of truth: a linearisable log. Down: it has no majority.
type store struct {
	log  ownership.Log
	used map[stint]account.Series
	down bool
	copy *ownership.Log // a backup
}

// stint of a VEE at a host, in the accounts.
type stint struct {
	vee  vee.ID
	host string
}

// leader of the control plane. Paused: it does not know that it is, nor that another leads.
type leader struct {
	s             *Site
	ctl           ownership.Control
	alive, paused bool
	cut           bool // from the store's majority
	line          []func()
	before        *leader // that it has deposed, and which may not know
	began         ownership.Log
	since         time.Time
	heard         map[string]time.Time
	tries         int
}

// lead: somebody new leads, who has just written so into the log.
func (s *Site) lead() *leader {
	l := &leader{s: s, ctl: ownership.NewControl(s.store.log, s.sim.Now().Sub(epoch)), alive: true, began: s.store.log, since: s.sim.Now(), heard: map[string]time.Time{}}
	s.sim.Every(time.Second, "", func() bool {
		if l.alive {
			l.queue(l.consider)
		}
		return l.alive
	})
	return l
}

func (l *leader) queue(do func()) {
	switch {
	case !l.alive:
	case l.paused:
		l.line = append(l.line, do)
	default:
		do()
	}
}

func (l *leader) resume() {
	l.paused = false
	for len(l.line) > 0 && l.alive && !l.paused {
		do := l.line[0]
		l.line = l.line[1:]
		do()
	}
}

// event for the leader's part in the ownership protocol.
func (l *leader) event(e ownership.Event) {
	l.queue(func() {
		if r, ok := e.(ownership.Renew); ok {
			l.heard[r.Host] = l.s.sim.Now()
		}
		ctl, actions := l.ctl.Step(l.s.p, l.s.sim.Now().Sub(epoch), e)
		l.ctl = ctl
		for _, a := range actions {
			switch a := a.(type) {
			case ownership.Send:
				h := l.s.host(a.To)
				switch {
				case h == nil:
				case h.stranded && l == l.s.boss.before:
					l.s.sim.After(l.s.latency(), "", func() { h.step(a.Message) })
				default:
					l.s.net.Send(control, a.To, "answer", func() { h.step(a.Message) })
				}
			case ownership.ReadLog:
				l.read(func(log ownership.Log) { l.event(ownership.ReadDone{Of: a, Log: log}) })
			case ownership.Commit:
				l.commit(a)
			}
		}
	})
}

// latency of the store.
func (s *Site) latency() time.Duration {
	return time.Millisecond + time.Duration(s.dice.Int64N(int64(20*time.Millisecond)))
}

// read the log; what it says is true at some time between now and the answer.
func (l *leader) read(then func(ownership.Log)) {
	s := l.s
	s.sim.After(s.latency(), "", func() {
		log := s.store.log
		switch {
		case s.bug == bugStaleRead && l != s.boss:
			log = l.began
		case s.store.down, l.cut:
			return
		}
		s.sim.After(s.latency(), "", func() { l.queue(func() { then(log) }) })
	})
}

// commit reaches the store also when the leader dies meanwhile.
func (l *leader) commit(c ownership.Commit) {
	s := l.s
	s.sim.After(s.latency(), "", func() {
		if s.store.down || l.cut {
			return
		}
		log, ok := s.store.log.Apply(c)
		if ok {
			s.store.log = log
			s.tell(c)
		}
		if c.For.For != nil {
			l.read(func(log ownership.Log) { l.event(ownership.ReadDone{Of: c.For, Log: log}) })
		}
	})
}

// tell what a commit has changed.
func (s *Site) tell(c ownership.Commit) {
	if c.NewM != nil {
		return
	}
	switch n := c.New; {
	case n.Sealing:
		s.say("log: %s at %s, %s; to be given away as %s", n.VEE, n.Host, n.Epoch, n.Next)
	default:
		s.say("log: %s at %s, %s", n.VEE, n.Host, n.Epoch)
	}
}

// consider every VEE: is its host gone, and who could have it?
func (l *leader) consider() {
	l.read(func(log ownership.Log) {
		to := l.candidates(log)
		if len(to) == 0 {
			return
		}
		l.tries++
		for i, r := range log.Records {
			l.event(ownership.Consider{VEE: r.VEE, Target: to[(i+l.tries)%len(to)], Log: log})
		}
	})
}

// candidates for a VEE: hosts that have been heard of, those with the most room first, and
// of them the half that has more.
func (l *leader) candidates(log ownership.Log) []string {
	s := l.s
	room := map[string]int{}
	var names []string
	for _, h := range s.hosts {
		if !h.guestless && !h.drain && s.sim.Now().Sub(l.heard[h.name]) <= s.p.Window {
			names = append(names, h.name)
			room[h.name] = h.room
		}
	}
	for _, r := range log.Records {
		if v := s.guest(r.VEE); v != nil {
			room[r.Host] -= v.load
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(room[b], room[a]) })
	return names[:(len(names)+1)/2]
}

// elect a new leader. The old one may be paused, or slow to notice.
func (s *Site) elect() {
	s.store.log = s.store.log.Elect()
	old := s.boss
	s.boss = s.lead()
	s.boss.before = old
}
