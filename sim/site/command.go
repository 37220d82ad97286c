package site

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/sim"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Command is a word that does something to a site.
type Command struct {
	Use   string // "cut HOST [HOST]": capitals are names, brackets what may be left out
	Short string
	do    func(s *Site, args []string) error
}

// Commands that scripts are made of, in the order of the documentation.
func Commands() []Command {
	return []Command{
		{"wait DURATION", "let time pass", func(s *Site, a []string) error {
			d, err := time.ParseDuration(a[0])
			if err != nil {
				return err
			}
			return s.Run(d)
		}},
		{"settle", "let time pass until all should be well again, and check that it is", func(s *Site, _ []string) error { return s.Settle() }},

		{"cut HOST [HOST]", "cut a host off, or its links with another host or with control", func(s *Site, a []string) error { return s.cut(a, true, true) }},
		{"join HOST [HOST]", "undo that", func(s *Site, a []string) error { return s.cut(a, false, true) }},
		{"deafen HOST [HOST]", "nothing reaches the host any more; what it sends does", func(s *Site, a []string) error { return s.cut(a, true, false) }},
		{"network LOSS DELAY", "share of messages lost, and their delay: network 20% 100ms", (*Site).network},
		{"tickets lost|kept", "whether what hosts say to each other about a VEE that is handed over arrives", func(s *Site, a []string) error {
			s.loseTickets = a[0] == "lost"
			return nil
		}},

		{"power-off HOST", "the machine loses power", onHost(func(h *host) { h.powerOff() })},
		{"power-on HOST", "and has it again", onHost(func(h *host) { h.powerOn() })},
		{"freeze HOST", "the whole machine stands still: agent, guard and guests; its clock goes on", onHost((*host).freeze)},
		{"thaw HOST", "and goes on", onHost((*host).thaw)},
		{"hang HOST", "agent and guard stand still, the guests go on", onHost((*host).hang)},
		{"clock HOST RATE", "the host's clock runs at that rate: clock h1 0.999", func(s *Site, a []string) error {
			h, err := s.named(a[0])
			if err != nil {
				return err
			}
			rate, err := strconv.ParseFloat(a[1], 64)
			if err != nil || rate <= 0 {
				return fmt.Errorf("clock rate %q: want a number above 0", a[1])
			}
			h.setClock(rate)
			return nil
		}},
		{"slow-disk HOST DURATION", "each write takes that long; 0s: none does", func(s *Site, a []string) error {
			h, err := s.named(a[0])
			if err != nil {
				return err
			}
			h.slow, err = time.ParseDuration(a[1])
			return err
		}},

		{"crash-agent HOST", "the agent dies; guard and guests do not", onHost(func(h *host) {
			if h.on {
				h.stopAgent()
			}
		})},
		{"start-agent HOST", "a new one finds what is there", onHost(func(h *host) {
			if h.on && !h.alive {
				h.startAgent(ownership.AgentStarted{})
			}
		})},
		{"pause-agent HOST", "SIGSTOP: what it is told waits", onHost(func(h *host) { h.paused = h.alive })},
		{"resume-agent HOST", "SIGCONT", onHost(func(h *host) { h.paused = h.hung; h.drainLine() })},
		{"kill VEE", "the guest's process ends by itself", func(s *Site, a []string) error {
			v := s.guest(vee.ID(a[0]))
			if v == nil {
				return fmt.Errorf("there is no VEE %s", a[0])
			}
			if h := s.on(v.id); h != nil {
				h.end(v.id, h.name+": "+a[0]+" dies")
				h.gone(v.id)
			}
			return nil
		}},

		{"control down|up|pause|resume|elect", "the control plane's leader: none, one again, one that stands still, another one", (*Site).control},
		{"strand HOST", "the network splits: the leader is deposed and goes on beside this host, cut off from the store and all others", (*Site).strand},
		{"rescue HOST", "that is over", onHost(func(h *host) { h.rescue() })},
		{"store down|up", "the log has no majority", func(s *Site, a []string) error { s.store.down = a[0] == "down"; return nil }},
		{"backup", "of the log", func(s *Site, _ []string) error { log := s.store.log; s.store.copy = &log; return nil }},
		{"restore", "the log from its backup, in a new generation", (*Site).restore},
		{"fence HOST", "a person has seen to it that the machine is off", (*Site).fence},

		{"load VEE PERCENT", "what a VEE needs of a CPU", func(s *Site, a []string) error {
			v, n, err := s.guest(vee.ID(a[0])), 0, error(nil)
			if n, err = strconv.Atoi(strings.TrimSuffix(a[1], "%")); v == nil || err != nil {
				return fmt.Errorf("load %s %s: want a VEE and per cent", a[0], a[1])
			}
			v.load = n
			return nil
		}},
		{"drain HOST", "it is to be emptied", onHost(func(h *host) { h.drain = true })},
		{"undrain HOST", "and used again", onHost(func(h *host) { h.drain = false })},
		{"move VEE HOST", "the site's VEEM wants a VEE elsewhere", (*Site).move},

		{"expect VEE HOST|elsewhere|nowhere", "where a VEE runs; elsewhere: not where it began", (*Site).expect},
		{"expect-running NUMBER", "of VEEs", func(s *Site, a []string) error {
			if n, err := strconv.Atoi(a[0]); err != nil || n != s.Running() {
				return fmt.Errorf("%d VEEs run, not %s", s.Running(), a[0])
			}
			return nil
		}},
	}
}

// find the command of a line.
func find(line string) (c Command, args []string, err error) {
	f := strings.Fields(line)
	if len(f) == 0 {
		return c, nil, errors.New("an empty line")
	}
	for _, c := range Commands() {
		words := strings.Fields(c.Use)
		if words[0] != f[0] {
			continue
		}
		if n := len(f); n > len(words) || n < len(words)-strings.Count(c.Use, "[") {
			return c, nil, fmt.Errorf("%q: want %s", line, c.Use)
		}
		return c, f[1:], nil
	}
	return c, nil, fmt.Errorf("%q: there is no command %s", line, f[0])
}

// CheckCommand says what is wrong with a line before it is run: no such command, or not so
// many words.
func CheckCommand(line string) error {
	_, _, err := find(line)
	return err
}

// Do a command, in words. Error: there is no such command, or what it names is not there, or
// something expected is not so.
func (s *Site) Do(line string) error {
	c, args, err := find(line)
	if err != nil {
		return err
	}
	if s.out != nil {
		fmt.Fprintf(s.out, "> %s\n", line)
	}
	switch word, _, _ := strings.Cut(c.Use, " "); word {
	case "wait", "settle", "expect", "expect-running":
	default:
		s.marks = append(s.marks, Mark{s.now(), line})
	}
	if err := c.do(s, args); err != nil {
		return fmt.Errorf("%q: %w", line, err)
	}
	return nil
}

func onHost(do func(*host)) func(*Site, []string) error {
	return func(s *Site, a []string) error {
		h, err := s.named(a[0])
		if err == nil {
			do(h)
		}
		return err
	}
}

func (s *Site) named(name string) (*host, error) {
	if h := s.host(name); h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("there is no host %s", name)
}

// cut links of a host, one or both ways, with one other or all.
func (s *Site) cut(a []string, cut, both bool) error {
	h, err := s.named(a[0])
	if err != nil {
		return err
	}
	others := []string{control}
	for _, o := range s.hosts {
		if o != h {
			others = append(others, o.name)
		}
	}
	if len(a) > 1 {
		if !slices.Contains(others, a[1]) {
			return fmt.Errorf("there is no %s", a[1])
		}
		others = a[1:]
	}
	for _, o := range others {
		s.net.Cut(o, h.name, cut)
		if both {
			s.net.Cut(h.name, o, cut)
		}
	}
	if cut {
		s.suspect(h)
	}
	return nil
}

func (s *Site) network(a []string) error {
	loss, err := strconv.ParseFloat(strings.TrimSuffix(a[0], "%"), 64)
	if err != nil || loss < 0 || loss > 100 {
		return fmt.Errorf("loss of %s: want 0%% to 100%%", a[0])
	}
	delay, err := time.ParseDuration(a[1])
	if err != nil {
		return err
	}
	s.quality(sim.Link{Delay: delay, Jitter: usual.Jitter + delay/2, Loss: loss / 100})
	return nil
}

// quality of all links.
func (s *Site) quality(l sim.Link) {
	names := []string{control}
	for _, h := range s.hosts {
		names = append(names, h.name)
	}
	for _, a := range names {
		for _, b := range names {
			s.net.Set(a, b, l)
		}
	}
}

func (h *host) freeze() {
	if h.on {
		h.frozen = true
		h.s.net.Down(h.name, true)
		h.s.suspect(h)
	}
}

// thaw: the guard looks at its clock before anybody else does anything.
func (h *host) thaw() {
	if h.frozen {
		h.enforce()
		h.frozen = false
		h.s.net.Down(h.name, false)
		h.drainLine()
	}
}

// hang the guard and the agent. The watchdog, where there is one, resets the machine as long
// after the proof that the guard's deadline rests on as it should, and not before its own time.
func (h *host) hang() {
	if !h.on || h.hung {
		return
	}
	h.hung, h.paused = true, true
	boot, left := h.boot, h.deadline-h.s.p.Lease+h.s.p.Watchdog-h.now()
	h.s.sim.After(max(10*time.Second, h.real(left)), "", func() {
		if h.s.Watchdog && h.on && h.boot == boot && h.hung {
			h.s.say("%s: the watchdog resets the machine", h.name)
			h.powerOff()
			h.s.sim.After(30*time.Second, "", h.powerOn)
		}
	})
}

// setClock: from now on it runs at another rate. It does not jump.
func (h *host) setClock(rate float64) {
	h.behind = h.now()
	h.since = h.s.sim.Now()
	h.rate = rate
}

func (s *Site) control(a []string) error {
	switch a[0] {
	case "down":
		s.boss.alive = false
	case "pause":
		s.boss.paused = true
	case "resume":
		for l := s.boss; l != nil; l = l.before {
			l.resume()
		}
	case "up", "elect":
		s.elect()
	default:
		return fmt.Errorf("control %s: want down, up, pause, resume or elect", a[0])
	}
	return nil
}

// strand a host on the small side of a split network, with the leader, which is deposed.
func (s *Site) strand(a []string) error {
	h, err := s.named(a[0])
	if err != nil {
		return err
	}
	if err := s.cut(a[:1], true, true); err != nil {
		return err
	}
	s.boss.cut = true
	s.elect()
	h.stranded = true
	return nil
}

func (h *host) rescue() {
	if h.stranded {
		h.stranded = false
		for l := h.s.boss; l != nil; l = l.before {
			l.cut = false
		}
		_ = h.s.cut([]string{h.name}, false, true)
	}
}

func (s *Site) restore([]string) error {
	if s.store.copy == nil {
		return fmt.Errorf("there is no backup")
	}
	s.store.log = ownership.Restore(*s.store.copy, s.store.log.Generation+1)
	s.boss.alive = false
	s.boss = s.lead()
	return nil
}

func (s *Site) fence(a []string) error {
	h, err := s.named(a[0])
	if err != nil {
		return err
	}
	if h.on {
		return fmt.Errorf("%s is on: fence says that somebody has seen that it is off", a[0])
	}
	for _, m := range s.store.log.Members {
		if m.Host == h.name {
			fenced := m
			fenced.Fenced = true
			s.boss.commit(ownership.Commit{Leader: s.store.log.Leader, Generation: s.store.log.Generation, OldM: &m, NewM: &fenced})
		}
	}
	return nil
}

func (s *Site) move(a []string) error {
	to, err := s.named(a[1])
	if err != nil {
		return err
	}
	h := s.on(vee.ID(a[0]))
	if h == nil {
		return fmt.Errorf("%s runs nowhere", a[0])
	}
	s.net.Send(control, h.name, "", func() {
		h.queue(func() {
			h.migrate(vee.ID(a[0]), to, nil, func(failed bool) {
				if failed {
					s.say("%s: %s does not move to %s", h.name, a[0], to.name)
				}
			})
		})
	})
	return nil
}

func (s *Site) expect(a []string) error {
	v := s.guest(vee.ID(a[0]))
	if v == nil {
		return fmt.Errorf("there is no VEE %s", a[0])
	}
	where := "nowhere"
	if h := s.on(v.id); h != nil {
		where = h.name
	}
	if where == a[1] || a[1] == "elsewhere" && where != "nowhere" && where != s.home(v) {
		return nil
	}
	return fmt.Errorf("%s runs %s", a[0], where)
}

// home is where a VEE was when the site began.
func (s *Site) home(v *guest) string { return s.hosts[slices.Index(s.vees, v)%s.Hosts].name }
