package site

import (
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/vee"
)

// meter of a VEE at a host: a reading, and up to where it has been made intervals of.
type meter struct {
	is, cut account.Meter
	running bool

	// The world's knowledge, not the host's, ms: since when it runs, and what power cuts took.
	begun, lost int64
}

// bill is a piece of usage on its way to the control plane, which keeps it once.
type bill struct {
	vee  vee.ID
	used account.Interval
}

func (s *Site) ms() int64 { return s.sim.Now().UnixMilli() }

// advance the meter to now.
func (m *meter) advance(ms int64) {
	rate := account.Rate{}
	if m.running {
		rate = account.RateOf(vee.Active, vee.Descriptor{})
	}
	m.is = m.is.To(ms, rate)
}

// count: a guest begins to run here, or ends.
func (h *host) count(id vee.ID, running bool) {
	m := h.meters[id]
	if m == nil {
		m = &meter{is: account.Meter{AtMS: h.s.ms()}}
		m.cut = m.is
		h.meters[id], h.kept[id] = m, *m
	}
	if m.running == running {
		return
	}
	if m.running {
		h.s.guest(id).ran[h.name] += time.Duration(h.s.ms()-m.begun) * time.Millisecond
	}
	m.advance(h.s.ms())
	m.running, m.begun = running, h.s.ms()
	h.s.note(id, h.name, running)
	if h.s.bug == bugMeter && running {
		m.is.Used.ActiveMS += 30_000
	}
}

// measure what has been used, write it down and send what has not been acknowledged.
func (h *host) measure() {
	for _, v := range h.s.vees {
		m := h.meters[v.id]
		if m == nil {
			continue
		}
		m.advance(h.s.ms())
		if i := (account.Interval{FromMS: m.cut.AtMS, ToMS: m.is.AtMS, Used: m.is.Used.Minus(m.cut.Used)}); i.ToMS > i.FromMS {
			h.bills = append(h.bills, bill{v.id, i})
		}
		m.cut = m.is
		h.kept[v.id] = *m
	}
	bills, s, boss := h.bills, h.s, h.s.boss
	if len(bills) == 0 {
		return
	}
	if s.bug == bugForget {
		h.bills = nil
	}
	s.net.Send(h.name, control, "usage", func() { boss.queue(func() { boss.keep(h, bills) }) })
}

// keep what a host has sent, and acknowledge it.
func (l *leader) keep(h *host, bills []bill) {
	s := l.s
	s.sim.After(s.latency(), "", func() {
		if s.store.down || s.store.log.Leader != l.ctl.Leader {
			return
		}
		for _, b := range bills {
			at := stint{b.vee, h.name}
			series, ok := s.store.used[at].Add(b.used)
			if !ok {
				s.fail("the usage of %s at %s from %d to %d overlaps what is known", b.vee, h.name, b.used.FromMS, b.used.ToMS)
			}
			s.store.used[at] = series
		}
		s.net.Send(control, h.name, "usage kept", func() {
			h.queue(func() { // it has grown at its end alone
				if n := len(bills); len(h.bills) >= n && h.bills[0] == bills[0] {
					h.bills = h.bills[n:]
				}
			})
		})
	})
}

// audit the accounts against what the world knows: nobody pays for what did not run, and all
// that ran is there but for what power cuts took, and the last seconds.
func (s *Site) audit() {
	for _, h := range s.hosts {
		for _, v := range s.vees {
			ran, m := v.ran[h.name], h.meters[v.id]
			if m == nil {
				continue
			}
			if m.running {
				ran += time.Duration(s.ms()-m.begun) * time.Millisecond
			}
			kept := time.Duration(s.store.used[stint{v.id, h.name}].Total().ActiveMS) * time.Millisecond
			if kept > ran {
				s.fail("%s ran %v at %s, and is billed for %v", v.id, ran, h.name, kept)
			}
			if lost := ran - kept; lost > s.settle()+time.Duration(m.lost)*time.Millisecond {
				s.fail("%s ran %v at %s, of which %v are in no account; power cuts took %d ms", v.id, ran, h.name, lost, m.lost)
			}
		}
	}
}

// settle is how long after the last fault everything is known everywhere.
func (s *Site) settle() time.Duration { return 3 * s.p.Renew }
