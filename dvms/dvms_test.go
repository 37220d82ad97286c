package dvms

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/sim"
)

var seeds = flag.Int("seeds", 1000, "ordeals of each overlay")

// ordeal of one seed: nodes with more and less load than they have room for, loss, copies,
// late messages, crashes and restarts for a minute; then peace. It returns what is wrong.
func ordeal(seed uint64, kind string, without rule) string {
	return play(seed, kind, without).wrong
}

func play(seed uint64, kind string, without rule) *world {
	r := sim.New(seed, epoch).Stream("ordeal")
	names := make([]string, 3+r.IntN(8))
	for i := range names {
		names[i] = fmt.Sprintf("n%02d", i)
	}
	p, over := overlays(names, r)[kind]()
	p.without = without
	w := newWorld(seed, p, over, names, sim.Link{Delay: time.Millisecond, Jitter: 400 * time.Millisecond, Loss: .05, Twice: .05})
	all := 0
	for _, n := range names {
		w.load[n] = r.IntN(17)
		all += w.load[n]
		w.monitor(n)
	}
	for all > room*len(names)*(80+r.IntN(21))/100 && seed%4 > 0 { // there is a solution
		n := names[r.IntN(len(names))]
		if w.load[n] > 0 {
			w.load[n]--
			all--
		}
	}
	for range 2 + r.IntN(5) {
		n := names[r.IntN(len(names))]
		at := time.Duration(r.IntN(60_000)) * time.Millisecond
		w.sim.At(epoch.Add(at), "", func() { w.crash(n) })
		w.sim.At(epoch.Add(at+time.Duration(500+r.IntN(9000))*time.Millisecond), "", func() { w.restart(n) })
	}
	a, b := names[r.IntN(len(names))], names[r.IntN(len(names))]
	if a != b { // one direction is cut
		w.sim.At(epoch.Add(20*time.Second), "", func() { w.net.Cut(a, b, true) })
		w.sim.At(epoch.Add(50*time.Second), "", func() { w.net.Cut(a, b, false) })
	}
	run := func(until time.Duration) bool {
		if err := w.sim.Run(epoch.Add(until)); err != nil {
			w.fail("%v", err)
		}
		return w.wrong == ""
	}
	if !run(75 * time.Second) {
		return w
	}
	for _, n := range names {
		w.restart(n)
		for _, m := range names {
			w.net.Set(n, m, sim.Link{Delay: time.Millisecond, Jitter: 5 * time.Millisecond})
		}
	}
	if !run(10 * time.Minute) {
		return w
	}
	if all > room*len(names) {
		if w.asked == 0 {
			w.fail("nobody has asked for help")
		}
		return w
	}
	for _, n := range names {
		if w.violated(n) {
			w.fail("%s still has %d of %d, all have %d of %d", n, w.load[n], room, all, room*len(names))
		}
		if w.nodes[n].In() {
			w.fail("%s is still in %+v, pledged %v", n, w.nodes[n].Part, w.nodes[n].Pledged)
		}
	}
	return w
}

func TestOrdeal(t *testing.T) {
	for kind := range overlays([]string{"a"}, sim.New(1, epoch).Stream("")) {
		t.Run(kind, func(t *testing.T) {
			merged, asked := 0, 0
			for seed := range uint64(*seeds) {
				w := play(seed, kind, "")
				if w.wrong != "" {
					t.Fatalf("seed %d: %s", seed, w.wrong)
				}
				merged, asked = merged+w.merged, asked+w.asked
			}
			t.Logf("%d partitions merged, %d asked for help", merged, asked)
			if merged == 0 || asked == 0 {
				t.Error("the ordeals try too little")
			}
		})
	}
}
