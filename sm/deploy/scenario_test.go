package deploy

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// bench is a world in which everything that is asked for happens at once, as far as there
// is room, and in which the script is what goes wrong.
type bench struct {
	t      *testing.T
	out    bytes.Buffer
	goal   Goal
	state  State
	w      World
	room   int
	made   int
	calls  map[int][]vee.ID // answered ones, by idempotency key
	nonet  bool             // no network can be made
	rigid  bool             // no VEE can be resized while it runs
	undone func(*bench)     // the goal that an Undo goes back to
	lose   int              // answers of so many calls do not arrive
	mute   bool             // nothing is printed
}

func newBench(t *testing.T) *bench {
	return &bench{t: t, room: 100, calls: map[int][]vee.ID{}, goal: Goal{Revision: 1}, w: World{
		VEEs: map[vee.ID]vmi.VEE{}, AccessPoints: map[string]vmi.AccessPoint{}, Networks: map[string]vmi.Network{}, Troubles: map[string]Trouble{},
		Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}}
}

func (b *bench) printf(format string, args ...any) {
	if !b.mute {
		fmt.Fprintf(&b.out, format+"\n", args...)
	}
}

// step does one step and reports whether the service is gone.
func (b *bench) step() (Step, bool) {
	step := Next(b.goal, b.state, b.w)
	b.state = step.State
	for _, e := range step.Events {
		b.printf("event %s: %s", e.Reason, e.Message)
	}
	for _, a := range step.Actions {
		if b.do(a) {
			return step, true
		}
	}
	return step, false
}

// settle does steps until one has no actions and changes nothing.
func (b *bench) settle() {
	for range 50 {
		before := fmt.Sprint(b.state)
		step, gone := b.step()
		if gone {
			return
		}
		if len(step.Actions) == 0 && before == fmt.Sprint(b.state) {
			b.printf("%s", strings.TrimSuffix(fmt.Sprintf("%s: %s", b.state.Phase, b.state.Message), ": "))
			if !step.Wake.IsZero() {
				b.printf("wakes in %s", step.Wake.Sub(b.w.Now))
			}
			return
		}
	}
	b.t.Fatalf("no rest after 50 steps:\n%s", b.out.String())
}

// do reports whether the service is gone.
func (b *bench) do(a Action) (gone bool) {
	var names []string
	for _, l := range a.Slots {
		names = append(names, l.Name())
	}
	for _, id := range a.VEEs {
		names = append(names, b.w.VEEs[id].Descriptor.Name)
	}
	list := strings.Join(names, " ")
	switch a.Kind {
	case Initialize:
		b.printf("initialize #%d %s %s", a.Call, a.Slots[0].Model, list)
		b.initialize(a)
	case PutAccessPoint:
		b.printf("put access point %s%s", a.Access.Name, b.draining(a.Access))
		a.Access.Address, a.Access.Backends = "192.0.2.1:20000", 1
		a.Access.Serving = b.w.AccessPoints[a.Access.Name].Serving
		b.w.AccessPoints[a.Access.Name] = a.Access
	case DeleteAccessPoint:
		b.printf("delete access point %s", a.Access.Name)
		delete(b.w.AccessPoints, a.Access.Name)
	case PutNetwork:
		b.printf("put network %s", a.Network.Name)
		if b.nonet {
			b.printf("  refused")
			b.w.Troubles[Networks] = Trouble{Message: "network " + a.Network.Name + ": refused", Until: b.w.Now.Add(time.Minute)}
			return false
		}
		b.w.Networks[a.Network.Name] = a.Network
		delete(b.w.Troubles, Networks)
	case Adjust:
		b.printf("adjust %s to %d vCPUs, firewall %q", list, a.Slots[0].Fit.VCPUs, a.Slots[0].Fit.Firewall)
		if b.rigid && a.Slots[0].Resized {
			b.printf("  not while they run")
			b.state = b.state.Adjusted(nil, a.Slots)
		} else {
			b.state = b.state.Adjusted(a.Slots, nil)
		}
	case Undo:
		b.printf("undo: %s", a.Why)
		b.goal.Undo = false
		b.undone(b)
	case DeleteNetwork:
		b.printf("delete network %s", a.Network.Name)
		delete(b.w.Networks, a.Network.Name)
	case Finish:
		b.printf("finish")
		return true
	default:
		b.printf("%s %s", a.Kind, list)
		for _, l := range a.Slots {
			b.act(l.VEE, a.Kind)
		}
		for _, id := range a.VEEs {
			b.act(id, a.Kind)
		}
	}
	return false
}

func (b *bench) draining(a vmi.AccessPoint) (text string) {
	for _, id := range a.Draining {
		text += ", draining " + b.w.VEEs[id].Descriptor.Name
	}
	return text
}

func (b *bench) live() (n int) {
	for _, v := range b.w.VEEs {
		if v.State != vee.Destroyed {
			n++
		}
	}
	return n
}

func (b *bench) initialize(a Action) {
	ids, again := b.calls[a.Call]
	placed := b.live()+len(a.Slots) <= b.room
	if !again && !placed && a.Slots[0].Model == vmi.TwoPhase {
		b.printf("  refused: no room")
		b.state = b.state.Refused(a.Call, true)
		for _, l := range a.Slots {
			b.w.Troubles[l.Component] = Trouble{Message: l.Component + ": no room", Until: b.w.Now.Add(time.Minute), Stuck: b.state.Limit[l.Component] == 0}
		}
		return
	}
	if !again {
		for _, l := range a.Slots {
			b.made++
			v := vmi.VEE{ID: vee.ID(fmt.Sprintf("v%d", b.made)), State: vee.Initial, Target: vee.Defined, Descriptor: vee.Descriptor{Name: l.Name()}}
			if placed {
				v.State = vee.Defined
			}
			b.w.VEEs[v.ID] = v
			ids = append(ids, v.ID)
		}
		b.calls[a.Call] = ids
	}
	if b.lose > 0 {
		b.lose--
		b.printf("  the answer is lost")
		return
	}
	b.state = b.state.Initialized(a.Call, ids)
	for _, l := range a.Slots {
		delete(b.w.Troubles, l.Component)
	}
}

func (b *bench) act(id vee.ID, k Kind) {
	v := b.w.VEEs[id]
	switch k {
	case Submit:
		v.Submitted, v.Target = true, vee.Active
		if v.State == vee.Defined {
			v.State, v.Phase = vee.Active, vee.PhaseBoot
		}
	case Shutdown:
		v.Target, v.State = vee.Defined, vee.Defined
	case Destroy:
		v.Target, v.State = vee.Destroyed, vee.Destroyed
		clear(b.w.Troubles)
	}
	b.w.VEEs[id] = v
}

// named is the live VEE of that name.
func (b *bench) named(name string) vmi.VEE {
	for _, id := range slices.Sorted(maps.Keys(b.w.VEEs)) {
		if v := b.w.VEEs[id]; v.Descriptor.Name == name && v.State != vee.Destroyed {
			return v
		}
	}
	b.t.Fatalf("no VEE %s:\n%s", name, b.out.String())
	return vmi.VEE{}
}

func (b *bench) component(name string) *Component {
	for i := range b.goal.Components {
		if b.goal.Components[i].Name == name {
			return &b.goal.Components[i]
		}
	}
	b.goal.Components = append(b.goal.Components, Component{Name: name})
	return &b.goal.Components[len(b.goal.Components)-1]
}

// run obeys one line of a script.
func (b *bench) run(line string) {
	f := strings.Fields(line)
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			b.t.Fatal(err)
		}
		return n
	}
	span := func(s string) time.Duration {
		d, err := time.ParseDuration(s)
		if err != nil {
			b.t.Fatal(err)
		}
		return d
	}
	change := func(set func(*vmi.VEE)) {
		for _, name := range f[1:] {
			v := b.named(name)
			set(&v)
			b.w.VEEs[v.ID] = v
		}
	}
	switch f[0] {
	case "backends": // ACCESS-POINT NUMBER
		a := b.w.AccessPoints[f[1]]
		a.Backends = number(f[2])
		b.w.AccessPoints[f[1]] = a
	case "connections": // ACCESS-POINT REPLICA NUMBER
		a := b.w.AccessPoints[f[1]]
		a.Serving = []vmi.Backend{{VEE: b.named(f[2]).ID, Connections: number(f[3])}}
		b.w.AccessPoints[f[1]] = a
	case "component": // NAME REPLICAS [key=value…]
		c := b.component(f[1])
		c.Desired = number(f[2])
		for _, o := range f[3:] {
			key, value, _ := strings.Cut(o, "=")
			switch key {
			case "spec":
				c.Spec = value
			case "group":
				c.Group = number(value)
			case "wait":
				c.WaitForGuest = true
			case "startDelay":
				c.StartDelay = span(value)
			case "stopDelay":
				c.StopDelay = span(value)
			case "drain":
				c.Drain = span(value)
			case "watch":
				c.Watch = span(value)
			case "patience":
				c.Patience = span(value)
			case "vcpus":
				c.Fit.VCPUs = number(value)
			case "firewall":
				c.Fit.Firewall = value
			case "port":
				c.Ports = []Port{{Number: number(value), Scheme: "http"}}
			default:
				b.t.Fatalf("unknown option %q", o)
			}
		}
		b.state.Settled = false
	case "rigid":
		b.rigid = true
	case "undo": // from now on an update may be undone, which leads back to what is wanted now
		goal := b.goal
		goal.Components = slices.Clone(goal.Components)
		b.goal.Undo = true
		b.undone = func(b *bench) { b.goal = goal }
	case "object": // COMPONENT WORDS: to its new replicas
		b.w.Objections = map[string]string{f[1]: strings.Join(f[2:], " ")}
	case "drop":
		b.goal.Components = slices.DeleteFunc(b.goal.Components, func(c Component) bool { return c.Name == f[1] })
		b.state.Settled = false
	case "network": // NAME…: those that there should be
		b.goal.Networks = nil
		for _, name := range f[1:] {
			b.goal.Networks = append(b.goal.Networks, Network{Name: name})
		}
		b.state.Settled = false
	case "refuse": // networks, or not any more
		b.nonet = !b.nonet
	case "on": // NETWORK REPLICA…
		for _, name := range f[2:] {
			v := b.named(name)
			v.Descriptor.NICs = append(v.Descriptor.NICs, vee.NIC{Network: f[1]})
			b.w.VEEs[v.ID] = v
		}
	case "besteffort":
		b.goal.BestEffort = true
	case "room":
		b.room = number(f[1])
	case "lose":
		b.lose = number(f[1])
	case "forget": // an operator's or a crash's doing: the record knows nothing of what it made
		b.state.Slots = nil
	case "after":
		b.w.Now = b.w.Now.Add(span(f[1]))
	case "ready":
		change(func(v *vmi.VEE) {
			v.State, v.GuestReady, v.GuestSeen, v.Phase = vee.Active, true, true, vee.PhaseRunning
		})
	case "idle":
		change(func(v *vmi.VEE) { v.GuestIdle = true })
	case "busy":
		change(func(v *vmi.VEE) { v.GuestIdle = false })
	case "failure": // of a guest to set itself up
		change(func(v *vmi.VEE) { v.GuestFailure = "apt-get install: no such package" })
	case "nextboot":
		change(func(v *vmi.VEE) { v.NextBoot = []string{"2 vCPUs"} })
	case "stopped":
		change(func(v *vmi.VEE) {
			v.State, v.Target, v.GuestReady, v.Phase = vee.Defined, vee.Defined, false, vee.PhaseStopped
		})
	case "failed":
		change(func(v *vmi.VEE) { v.Phase, v.GuestReady, v.Error = vee.PhaseFailed, false, "kernel panic" })
	case "unknown":
		change(func(v *vmi.VEE) { v.Phase, v.GuestReady, v.Host = vee.PhaseUnknown, false, "h1" })
	case "placed":
		change(func(v *vmi.VEE) { v.State, v.Phase = vee.Active, vee.PhaseBoot })
	case "destroyed":
		change(func(v *vmi.VEE) { v.State, v.Target = vee.Destroyed, vee.Destroyed })
	case "delete":
		b.goal.Deleting = true
	case "next":
		b.settle()
	case "step":
		b.step()
	default:
		b.t.Fatalf("unknown command %q", line)
	}
}

// TestScenarios replays the scripts in testdata: lines with "$ " are what happens, the
// lines below each are what the core does about it.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios: ", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			b := newBench(t)
			for line := range strings.Lines(string(want)) {
				line = strings.TrimRight(line, "\n")
				switch command, isCommand := strings.CutPrefix(line, "$ "); {
				case isCommand:
					b.printf("%s", line)
					b.run(command)
				case strings.HasPrefix(line, "#") || line == "":
					b.printf("%s", line)
				}
			}
			if *update {
				if err := os.WriteFile(file, b.out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(want, b.out.Bytes()) {
				t.Errorf("transcript differs (go test -update rewrites it); now:\n%s", b.out.String())
			}
		})
	}
}
