package ownership

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// seconds are the default timings, in seconds.
func seconds() Timings { return DefaultTimings().Scale(1 / float64(time.Second)) }

// stage plays a script on the world of the exhaustive check, with the default timings: a
// second is a tick, hosts renew every five, and leaders consider the VEE all the time.
type stage struct {
	m   *model
	w   world
	out bytes.Buffer
	ran map[string]int
}

func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(&s.out, "%4ds  "+format+"\n", append([]any{int(s.w.now - zero)}, args...)...)
}

// tell writes down what changes who runs the VEE.
func (s *stage) tell(who string, a Action) {
	switch a := a.(type) {
	case Persist:
		for _, k := range a.Disk.Holds {
			line := fmt.Sprintf("%s: on disk: %s at %s", who, k.State, k.Epoch)
			if k.State == Given {
				line += " to " + k.To
			}
			s.say("%s", line)
		}
	case Stop:
		s.say("%s: %s", who, map[bool]string{true: "ends the guest's process", false: "stops the guest"}[a.Kill])
	case Run:
		s.say("%s: RUNS the guest at %s", who, a.Epoch)
	case Send:
		switch msg := a.Message.(type) {
		case Ticket:
			s.say("%s: ticket %s to %s", who, msg.Epoch, msg.To)
		case Void:
			s.say("%s: ticket %s is void", who, msg.Epoch)
		case Lost:
			if s.ran[who+"lost"] == 0 {
				s.say("%s: has lost the control plane", who)
			}
			s.ran[who+"lost"]++
		}
	case Commit:
		switch n := a.New; {
		case a.NewM != nil:
			s.say("%s: %s has reported", who, a.NewM.Host)
		case n.Sealing:
			s.say("%s: %s at %s; seal below %s", who, n.Host, n.Epoch, n.Next)
		case n.Away != "" && n.Host != "":
			s.say("%s: %s at %s; custody may be at %s with %s", who, n.Host, n.Epoch, n.Away, n.AwayEpoch)
		case n.Away != "":
			s.say("%s: in custody of %s", who, n.Away)
		case n.Host == "":
			s.say("%s: not here, and never below %s", who, n.Epoch)
		default:
			s.say("%s: %s at %s", who, n.Host, n.Epoch)
		}
	}
}

func (s *stage) run(seconds int) error {
	for range seconds {
		if s.w.now%s.m.p.Renew == 0 {
			for i := range int8(len(s.m.hosts)) {
				s.turn(i)
			}
			s.m.repeatTickets(&s.w)
		}
		s.m.considerAll(&s.w)
		s.m.tick(&s.w)
		if n, _ := s.m.running(&s.w); n > 1 {
			return fmt.Errorf("after %d s the VEE runs %d times", s.w.now-zero, n)
		}
	}
	return nil
}

func (s *stage) turn(i int8) {
	l := 2 * s.m.siteOf(i)
	heard := s.w.hosts[i].echo
	switch s.w.link[i] {
	case linkUp:
		s.m.roundTrip(&s.w, i, l, "")
	case linkOneWay:
		s.m.roundTrip(&s.w, i, l, "lost")
	}
	if s.w.hosts[i].echo == heard && s.w.link[i] != linkCut {
		s.m.askWitnesses(&s.w, i, -1)
	}
}

// do a line of the script.
func (s *stage) do(line string) error {
	f := strings.Fields(line)
	host := func(i int) int8 {
		if i < len(f) {
			return s.m.index(f[i])
		}
		return -1
	}
	h := host(1)
	if ofHost := strings.Contains(" cut cut-from-control one-way join power-off power-on crash-agent give give-late ", " "+f[0]+" "); ofHost && h < 0 {
		return fmt.Errorf("%q: which host?", line)
	}
	w := &s.w
	switch f[0] {
	case "wait":
		n, err := strconv.Atoi(strings.TrimSuffix(f[1], "s"))
		if err != nil {
			return err
		}
		return s.run(n)
	case "cut":
		w.link[h] = linkCut
	case "cut-from-control":
		w.link[h] = linkNoControl
	case "one-way":
		w.link[h] = linkOneWay
	case "join":
		w.link[h] = linkUp
	case "power-off":
		w.off[h] = true
		n := *w.hosts[h]
		n.Guard.Guests = nil
		w.hosts[h] = &n
	case "power-on":
		w.off[h] = false
		s.m.host(w, h, Booted{})
	case "crash-agent":
		s.m.host(w, h, AgentStarted{})
	case "give", "give-late":
		how := ""
		if f[0] == "give-late" {
			how = "late"
		}
		to := host(2)
		s.m.post(w, h, s.m.host(w, h, Give{VEE: theVEE, To: f[2], Foreign: s.m.siteOf(h) != s.m.siteOf(to)}), how)
	case "deliver":
		s.m.deliver(w, w.unpack(0))
	case "control":
		switch f[1] {
		case "down":
			w.leaders[0] = &leader{}
		case "up", "elect":
			s.m.elect(w, 0, false)
		}
	case "custody":
		s.m.control(w, 0, SendAway{VEE: theVEE, Site: f[1], Door: w.logs[1].Generation, Log: *w.logs[0]}, "")
	case "ask-partner":
		s.m.askPartners(w)
	case "backup":
		w.saved = w.logs[0]
	case "restore":
		log := Restore(*w.saved, w.logs[0].Generation+1)
		w.logs[0] = &log
		w.leaders[0] = &leader{ctl: NewControl(log, w.now), alive: true}
	default:
		return fmt.Errorf("%q: unknown command", line)
	}
	return nil
}

// TestTranscripts plays testdata/*.txt: the first line names the hosts, lines with ">" are
// commands, the others are what the core did.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(want)), "\n")
			var s *stage
			var got bytes.Buffer
			for _, line := range lines {
				switch {
				case strings.HasPrefix(line, "#"):
					fmt.Fprintln(&got, line)
				case strings.HasPrefix(line, "hosts "):
					c := config{hosts: strings.Fields(line)[1:]}
					if strings.Contains(line, " b") {
						c.sites = ab
					}
					s = &stage{m: newModel(c, Protocol{Timings: seconds()}), ran: map[string]int{}}
					s.w = s.m.start()
					s.m.tell = s.tell
					fmt.Fprintln(&got, line)
				case strings.HasPrefix(line, "> "):
					fmt.Fprintln(&got, line)
					if err := s.do(strings.TrimPrefix(line, "> ")); err != nil {
						t.Fatal(err)
					}
					got.Write(s.out.Bytes())
					s.out.Reset()
				}
			}
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != string(want) {
				t.Errorf("%s is not what happens (-update rewrites it); now:\n%s", file, got.String())
			}
		})
	}
}
