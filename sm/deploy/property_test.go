package deploy

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// TestConverges lets everything happen in any order, a step at a time, and then nothing any
// more: the service is as desired, with no VEE too many, however it came there.
func TestConverges(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		b := newBench(t)
		b.mute = true
		b.goal.BestEffort = rapid.Bool().Draw(r, "best effort")
		b.run("component db 1 spec=a group=0 wait startDelay=2s")
		b.run("component web 2 spec=a group=1 port=80 stopDelay=1s")
		for range rapid.IntRange(1, 40).Draw(r, "events") {
			b.random(r)
			before := ids(b)
			b.step()
			b.check(r, before)
		}
		b.rest(r)
	})
}

func ids(b *bench) map[vee.ID]bool {
	m := map[vee.ID]bool{}
	for id := range b.w.VEEs {
		m[id] = true
	}
	return m
}

// random event, followed by nothing.
func (b *bench) random(r *rapid.T) {
	live := func() string {
		var names []string
		for _, id := range slices.Sorted(maps.Keys(b.w.VEEs)) {
			if v := b.w.VEEs[id]; v.State != vee.Destroyed {
				names = append(names, v.Descriptor.Name)
			}
		}
		if len(names) == 0 {
			return ""
		}
		return rapid.SampledFrom(names).Draw(r, "vee")
	}
	what := rapid.SampledFrom([]string{"ready", "ready", "ready", "destroyed", "idle", "unknown", "scale", "respec", "drop", "add", "room", "lose", "after", "forget", "refit", "rigid", "undo", "failure", "none"}).Draw(r, "event")
	switch what {
	case "ready", "destroyed", "idle", "unknown":
		if name := live(); name != "" && (what != "ready" || b.named(name).Submitted) {
			b.run(what + " " + name)
		}
	case "scale":
		b.run(fmt.Sprintf("component web %d", rapid.IntRange(0, 4).Draw(r, "size")))
	case "respec":
		b.run("component db 1 spec=" + rapid.SampledFrom([]string{"a", "b"}).Draw(r, "spec"))
	case "refit":
		b.run(fmt.Sprintf("component web %d vcpus=%d firewall=%s", b.component("web").Desired, rapid.IntRange(1, 2).Draw(r, "vcpus"), rapid.SampledFrom([]string{"x", "y"}).Draw(r, "firewall")))
	case "rigid", "undo":
		b.run(what)
	case "failure":
		if name := live(); name != "" {
			b.run("failure " + name)
		}
	case "drop":
		b.run("drop extra")
	case "add":
		b.run("component extra 1 spec=c group=1")
	case "room":
		b.run(fmt.Sprintf("room %d", rapid.IntRange(0, 6).Draw(r, "room")))
	case "lose", "forget":
		b.run(map[string]string{"lose": "lose 1", "forget": "forget"}[what])
	case "after":
		b.run("after 30s")
	}
}

// check what holds after every step.
func (b *bench) check(r *rapid.T, before map[vee.ID]bool) {
	names := map[string]bool{}
	for _, l := range b.state.Slots {
		if names[l.Name()] {
			r.Fatalf("two slots are %s: %+v", l.Name(), b.state.Slots)
		}
		names[l.Name()] = true
	}
	live := map[string]vee.ID{}
	for id, v := range b.w.VEEs {
		if v.State == vee.Destroyed {
			continue
		}
		if o, twice := live[v.Descriptor.Name]; twice && (!before[id] || !before[o]) {
			r.Fatalf("two VEEs are %s", v.Descriptor.Name)
		}
		live[v.Descriptor.Name] = id
	}
}

// rest until nothing happens any more, with room for everything and guests that come up.
func (b *bench) rest(r *rapid.T) {
	b.room, b.lose = 100, 0
	for range 60 {
		clear(b.w.Troubles)
		b.w.Now = b.w.Now.Add(time.Minute)
		for id, v := range b.w.VEEs {
			if v.Submitted && v.State != vee.Destroyed && v.Target == vee.Active {
				v.State, v.Phase, v.GuestReady, v.GuestSeen = vee.Active, vee.PhaseRunning, true, true
				b.w.VEEs[id] = v
			}
		}
		b.step()
	}
	want := 0
	for _, c := range b.goal.Components {
		want += c.Desired
	}
	if b.state.Phase != smi.Ready || b.live() != want || len(b.state.Slots) != want || len(b.state.Limit) > 0 {
		r.Fatalf("%s (%s): %d VEEs and %d slots for %d replicas: %+v", b.state.Phase, b.state.Message, b.live(), len(b.state.Slots), want, b.state)
	}
	for _, l := range b.state.Slots {
		if c := b.component(l.Component); l.Spec != c.Spec || b.w.VEEs[l.VEE].State != vee.Active {
			r.Fatalf("%s is %s of spec %s, wanted %s", l.Name(), b.w.VEEs[l.VEE].State, l.Spec, c.Spec)
		}
	}
	b.goal.Deleting = true
	for range 60 {
		b.w.Now = b.w.Now.Add(time.Minute)
		if _, gone := b.step(); gone {
			if n := b.live() + len(b.w.AccessPoints); n > 0 {
				r.Fatalf("%d things are left of a deleted service", n)
			}
			return
		}
	}
	r.Fatalf("never gone: %s", b.state.Message)
}
