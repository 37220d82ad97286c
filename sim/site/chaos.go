package site

import (
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/sim"
)

// Moment of a story: a command, and when it is given.
type Moment struct {
	At time.Duration
	Do string
}

// Story is a site and what befalls it, and then peace, in which all must get well.
type Story struct {
	Config
	Moments []Moment
}

// Random story of a seed: some minutes of faults, of each kind that there is, one after the
// other and at once.
func Random(seed uint64) Story {
	r := sim.New(seed, epoch).Stream("story")
	c := Config{Hosts: 3 + r.IntN(4), VEEs: 2 + r.IntN(6), Machines: r.IntN(2), Ring: r.IntN(2) == 0, Watchdog: r.IntN(2) == 0, Seed: seed}
	a := author{r: r, Story: Story{Config: c.defaults()}}
	until := 2*time.Minute + time.Duration(r.IntN(180))*time.Second
	for at := time.Duration(0); at < until; at += a.between(time.Second, 40*time.Second) {
		a.now = at
		a.harm()
	}
	slices.SortStableFunc(a.Moments, func(x, y Moment) int { return cmp.Compare(x.At, y.At) })
	return a.Story
}

// author of a random story.
type author struct {
	Story
	r   *rand.Rand
	now time.Duration
}

func (a *author) between(least, most time.Duration) time.Duration {
	return least + time.Duration(a.r.Int64N(int64((most-least)/time.Millisecond)))*time.Millisecond
}

func (a *author) host() string { return fmt.Sprintf("h%d", 1+a.r.IntN(a.Hosts)) }
func (a *author) vee() string  { return fmt.Sprintf("v%d", 1+a.r.IntN(a.VEEs)) }

// then a command is given, after a while.
func (a *author) then(after time.Duration, format string, args ...any) {
	a.Moments = append(a.Moments, Moment{a.now + after, fmt.Sprintf(format, args...)})
}

// pair of a command and what undoes it.
func (a *author) pair(do, undo string, least, most time.Duration) {
	a.then(0, "%s", do)
	a.then(a.between(least, most), "%s", undo)
}

// harm of one kind.
func (a *author) harm() {
	h, g := a.host(), a.host()
	for g == h {
		g = a.host()
	}
	switch a.r.IntN(22) {
	case 0, 1:
		a.pair("cut "+h, "join "+h, 5*time.Second, 150*time.Second)
	case 2:
		a.pair("cut "+h+" control", "join "+h+" control", 5*time.Second, 150*time.Second)
	case 3:
		a.pair("deafen "+h, "join "+h, 5*time.Second, 120*time.Second)
	case 4:
		a.pair("cut "+h+" "+g, "join "+h+" "+g, 5*time.Second, 120*time.Second)
	case 5:
		a.pair("power-off "+h, "power-on "+h, time.Second, 150*time.Second)
	case 6, 7:
		a.pair("crash-agent "+h, "start-agent "+h, 100*time.Millisecond, 60*time.Second)
	case 8:
		a.pair("pause-agent "+h, "resume-agent "+h, time.Second, 120*time.Second)
	case 9:
		a.pair("freeze "+h, "thaw "+h, time.Second, 120*time.Second)
	case 10:
		a.then(0, "kill %s", a.vee())
	case 11:
		a.pair("control down", "control up", time.Second, 120*time.Second)
	case 12: // a leader that does not know that it is deposed
		a.then(0, "control pause")
		a.then(a.between(time.Second, 20*time.Second), "control elect")
		a.then(a.between(21*time.Second, 90*time.Second), "control resume")
	case 13:
		a.pair("store down", "store up", time.Second, 60*time.Second)
	case 14:
		a.pair(fmt.Sprintf("network %d%% %dms", 1+a.r.IntN(20), 1+a.r.IntN(300)), "network 0% 1ms", 10*time.Second, 60*time.Second)
	case 15:
		a.pair(fmt.Sprintf("slow-disk %s %dms", h, 10+a.r.IntN(4000)), "slow-disk "+h+" 0s", 5*time.Second, 60*time.Second)
	case 16, 17:
		a.pair(fmt.Sprintf("load %s %d", a.vee(), 150+a.r.IntN(200)), fmt.Sprintf("load %s 60", a.vee()), 10*time.Second, 60*time.Second)
		if a.r.IntN(2) == 0 { // which the site's VEEM sees as well
			a.then(a.between(time.Second, 12*time.Second), "move %s %s", a.vee(), h)
		}
	case 18, 19:
		a.move(h)
	default:
		switch {
		case a.Watchdog && a.r.IntN(2) == 0:
			a.then(0, "hang %s", h)
		case a.r.IntN(2) == 0:
			a.pair("strand "+h, "rescue "+h, 10*time.Second, 150*time.Second)
		case a.r.IntN(3) == 0:
			a.then(0, "backup")
			a.then(a.between(time.Second, 60*time.Second), "restore")
		case a.r.IntN(2) == 0:
			a.then(0, "clock %s %g", h, 1+float64(a.r.IntN(19)-9)/10_000)
		default:
			a.pair("drain "+h, "undrain "+h, 10*time.Second, 90*time.Second)
		}
	}
}

// move a VEE, and harm that strikes when it has just gone, or not.
func (a *author) move(to string) {
	n := a.r.IntN(a.VEEs)
	a.then(0, "move v%d %s", n+1, to)
	if a.r.IntN(2) == 0 {
		a.pair("tickets lost", "tickets kept", time.Second, 60*time.Second)
	}
	a.now += a.between(4*time.Second, 8*time.Second)
	home := fmt.Sprintf("h%d", n%a.Hosts+1)
	switch a.r.IntN(3) {
	case 0:
		a.pair("power-off "+to, "power-on "+to, time.Second, 60*time.Second)
	case 1:
		a.pair("crash-agent "+home, "start-agent "+home, 100*time.Millisecond, 10*time.Second)
	}
}

// Play a story to its end and say what is wrong. What happens is written to out, if there is
// one; a command that cannot be done any more (to move what does not run) is passed over.
func (t Story) Play(out io.Writer) ([]string, error) { return t.play(out, "") }

func (t Story) play(out io.Writer, b bug) ([]string, error) {
	s, err := build(t.Config, out, b)
	if err != nil {
		return nil, err
	}
	for _, m := range t.Moments {
		if err := s.sim.Run(s.begin.Add(m.At)); err != nil {
			return nil, err
		}
		if err := s.Do(m.Do); err != nil {
			s.say("%v", err)
		}
		if len(s.wrong) > 0 {
			return s.wrong, nil
		}
	}
	if err := s.peace(); err != nil {
		return nil, err
	}
	return s.wrong, s.Settle()
}

// peace: whatever has been done to the site ends.
func (s *Site) peace() error {
	if s.out != nil {
		fmt.Fprintln(s.out, "> peace")
	}
	s.store.down, s.loseTickets = false, false
	if !s.boss.alive {
		s.elect()
	}
	for l := s.boss; l != nil; l = l.before {
		l.resume()
	}
	s.quality(usual)
	for _, h := range s.hosts {
		h.rescue()
		if err := s.cut([]string{h.name}, false, true); err != nil {
			return err
		}
		h.slow, h.drain = 0, false
		switch {
		case h.hung && h.on && s.Watchdog:
		case h.hung && h.on:
			h.powerOff()
			fallthrough
		default:
			h.powerOn()
			h.thaw()
			h.paused = h.hung
			h.drainLine()
			if !h.alive {
				_ = s.Do("start-agent " + h.name)
			}
		}
	}
	for _, v := range s.vees {
		v.load = s.Load
	}
	return nil
}
