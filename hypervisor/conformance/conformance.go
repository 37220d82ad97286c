// Package conformance is the one suite that every driver passes. It knows no driver: what
// differs between them, a Factory says.
package conformance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Factory makes what the suite needs of one driver.
//
// Its guests speak on their serial console, a line at a time, two hexadecimal digits each:
// "Bnn" when they have booted, with the number of boots that their disk remembers; "Cnn"
// for each byte that is typed, with how many there have been since boot, counted in
// memory. Typing "q" makes them power off by themselves.
type Factory struct {
	// New opens a driver on dir, and sees to it that nothing of it is left when t ends.
	New func(t *testing.T, dir string) hypervisor.Driver
	// Guest describes one, small and quick to boot. The suite fills in ID and epoch.
	Guest func(t *testing.T) hypervisor.Guest
	// Crash ends a running guest's process without the driver being asked.
	Crash func(t *testing.T, d hypervisor.Driver, o hypervisor.Observation)
}

// patience is how long the suite waits for what must happen; only a failing test takes it.
const patience = 60 * time.Second

// Run the suite and return what came of it. Its parts run at the same time.
func Run(t *testing.T, f Factory) *Results {
	results := &Results{outcome: map[string]string{}}
	t.Run("suite", func(t *testing.T) { run(t, f, results) })
	return results
}

func run(t *testing.T, f Factory, results *Results) {
	for name, test := range map[string]func(*bench){
		"adoption":               adoption,
		"bad descriptions":       badDescriptions,
		"cancelled contexts":     cancelledContexts,
		"capabilities":           capabilities,
		"concurrent calls":       concurrentCalls,
		"console":                console,
		"crash and new start":    crash,
		"destroyed is gone":      destroyed,
		"disks":                  disks,
		"disks grown live":       disksGrown,
		"events end with Close":  eventsEnd,
		"export of disks":        exports,
		"life cycle":             lifeCycle,
		"live changes":           liveChanges,
		"migration":              migrates,
		"migration cut":          migrationCut,
		"migration forgotten":    migrationForgotten,
		"migration taken back":   migrationTakenBack,
		"metering":               meters,
		"newer description":      newerDescription,
		"power off":              powerOff,
		"several guests at once": severalGuests,
		"snapshots":              snapshots,
		"snapshots travel":       snapshotsTravel,
		"stale epochs":           staleEpochs,
		"stop of a paused guest": stopOfPaused,
		"suspend and wake":       suspendAndWake,
		"vCPUs plugged in live":  vcpusPlugged,
		"wrong states":           wrongStates,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &bench{T: t, f: f, dir: t.TempDir()}
			results.note(name, "FAILED")
			b.open()
			test(b)
			switch {
			case t.Failed():
			case b.notDeclared:
				results.note(name, "not declared")
			default:
				results.note(name, "yes")
			}
		})
	}
}

// bench is one test's driver, with what all tests do to it.
type bench struct {
	*testing.T
	f   Factory
	dir string
	d   hypervisor.Driver
	// notDeclared: the test showed no more than that the driver cannot do it, and says so.
	notDeclared bool
}

// one is the guest of the tests that need no more.
const one vee.ID = "alpha.conformanc"

func (b *bench) open() {
	b.Helper()
	d := b.f.New(b.T, b.dir)
	b.d = d
	b.Cleanup(func() { _ = d.Close() })
}

func (b *bench) reopen() {
	b.Helper()
	b.must("close", b.d.Close())
	b.open()
}

func epoch(n uint64) vee.Epoch { return vee.Epoch{Generation: 1, Term: n} }

func (b *bench) guest(id vee.ID, e uint64) hypervisor.Guest {
	b.Helper()
	g := b.f.Guest(b.T)
	g.ID, g.Epoch = id, epoch(e)
	return g
}

func (b *bench) must(what string, err error) {
	b.Helper()
	if err != nil {
		b.Fatalf("%s: %v", what, err)
	}
}

func (b *bench) refused(what string, err, want error) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Errorf("%s: %v, want %q", what, err, want)
	}
}

// running prepares and starts a guest.
func (b *bench) running(id vee.ID) hypervisor.Guest {
	b.Helper()
	g := b.guest(id, 1)
	b.must("prepare", b.d.Prepare(b.Context(), g))
	b.must("start", b.d.Start(b.Context(), g))
	return g
}

// is checks a guest's condition, by Observe and by Inspect.
func (b *bench) is(id vee.ID, want hypervisor.Condition) hypervisor.Observation {
	b.Helper()
	all, err := b.d.Observe(b.Context())
	b.must("observe", err)
	i := slices.IndexFunc(all, func(o hypervisor.Observation) bool { return o.ID == id })
	o, err := b.d.Inspect(b.Context(), id)
	if want == hypervisor.Absent {
		b.refused("inspect an absent guest", err, hypervisor.ErrNotFound)
		if i >= 0 {
			b.Fatalf("%s is %s (%s), want absent", id, all[i].Condition, all[i].Reason)
		}
		return o
	}
	b.must("inspect", err)
	if i < 0 || o.Condition != want {
		b.Fatalf("%s is %s (%s), want %s", id, o.Condition, o.Reason, want)
	}
	process := slices.Contains([]hypervisor.Condition{hypervisor.Running, hypervisor.Paused, hypervisor.Incoming, hypervisor.Sent}, want)
	if !process && o.PID != 0 {
		b.Fatalf("%s is %s and has process %d", id, want, o.PID)
	}
	return o
}

// event waits for one that says want.
func (b *bench) event(id vee.ID, want hypervisor.Condition) hypervisor.Event {
	b.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		select {
		case e, ok := <-b.d.Events():
			if !ok {
				b.Fatalf("the events ended while waiting for %s", want)
			}
			if e.ID == id && e.Condition == want {
				return e
			}
		case <-deadline.C:
			b.Fatalf("no event says that %s is %s", id, want)
		}
	}
}

func (b *bench) crash(id vee.ID) {
	b.Helper()
	b.f.Crash(b.T, b.d, b.is(id, hypervisor.Running))
	if e := b.event(id, hypervisor.Crashed); e.Reason == "" {
		b.Error("the event of a crash has no reason")
	}
	if o := b.is(id, hypervisor.Crashed); o.Reason == "" {
		b.Error("a crashed guest has no reason")
	}
}

// needs says whether the driver declares what a test takes. For one that does not, the test
// is over after this has seen that the driver says so when it is asked all the same.
func (b *bench) needs(operation string) bool {
	b.Helper()
	if b.can(operation) {
		return true
	}
	g, ctx := b.running(one), b.Context()
	var err error
	switch operation {
	case hypervisor.OpSuspend:
		err = b.d.Suspend(ctx, one, g.Epoch, nil)
	case hypervisor.OpConsole:
		_, err = b.d.Console(ctx, one)
	default:
		b.Fatalf("the suite does not know how to ask for %q", operation)
	}
	b.refused(operation, err, hypervisor.ErrUnsupported)
	b.notDeclared = true
	return false
}

func (b *bench) can(operation string) bool {
	b.Helper()
	c, err := b.d.Capabilities(b.Context())
	b.must("capabilities", err)
	return slices.Contains(c.Operations, operation)
}

// terminal is an attached console.
type terminal struct {
	b     *bench
	c     io.ReadWriteCloser
	lines chan string
}

func (b *bench) terminal(id vee.ID) *terminal {
	b.Helper()
	c, err := b.d.Console(b.Context(), id)
	b.must("console", err)
	t := &terminal{b, c, make(chan string, 1000)}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(t.lines)
		for s := bufio.NewScanner(c); s.Scan(); {
			t.lines <- strings.TrimSpace(s.Text())
		}
	})
	b.Cleanup(func() { c.Close(); wg.Wait() })
	return t
}

// await a line that starts with letter, and return the number after it.
func (t *terminal) await(letter string) int {
	t.b.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		select {
		case line, ok := <-t.lines:
			if !ok {
				t.b.Fatalf("the console ended while waiting for %q", letter)
			}
			var n int
			if rest, found := strings.CutPrefix(line, letter); found {
				if _, err := fmt.Sscanf(rest, "%02X", &n); err == nil {
					return n
				}
			}
		case <-deadline.C:
			t.b.Fatalf("no %q on the console", letter)
		}
	}
}

// typed types one byte, and the guest must answer that it was the want-th since boot, where
// the driver has consoles at all.
func (b *bench) typed(id vee.ID, want int) {
	b.Helper()
	if !b.can(hypervisor.OpConsole) {
		return
	}
	t := b.terminal(id)
	if want == 1 {
		t.await("B")
	}
	t.count(want)
}

// count types one byte; the guest must answer that it was the want-th since boot. What
// the console repeats from before it was attached is passed over.
func (t *terminal) count(want int) {
	t.b.Helper()
	_, err := t.c.Write([]byte("x"))
	t.b.must("type", err)
	for n := 0; n != want; {
		if n = t.await("C"); n > want {
			t.b.Fatalf("the guest's memory counts %d, want %d", n, want)
		}
	}
}

func lifeCycle(b *bench) {
	g, ctx := b.guest(one, 1), b.Context()
	b.is(one, hypervisor.Absent)
	b.must("destroy an absent guest", b.d.Destroy(ctx, one, g.Epoch))
	for _, s := range []struct {
		name string
		do   func() error
		then hypervisor.Condition
	}{
		{"prepare", func() error { return b.d.Prepare(ctx, g) }, hypervisor.Stopped},
		{"start", func() error { return b.d.Start(ctx, g) }, hypervisor.Running},
		{"pause", func() error { return b.d.Pause(ctx, one, g.Epoch) }, hypervisor.Paused},
		{"resume", func() error { return b.d.Resume(ctx, one, g.Epoch) }, hypervisor.Running},
		{"stop", func() error { return b.d.Stop(ctx, one, g.Epoch, 0) }, hypervisor.Stopped},
		{"start again", func() error { return b.d.Start(ctx, g) }, hypervisor.Running},
		{"destroy", func() error { return b.d.Destroy(ctx, one, g.Epoch) }, hypervisor.Absent},
	} {
		b.must(s.name, s.do())
		first := b.is(one, s.then)
		b.event(one, s.then)
		b.must(s.name+" once more", s.do())
		if again := b.is(one, s.then); again.PID != first.PID || !again.Since.Equal(first.Since) {
			b.Errorf("%s once more changed %+v to %+v", s.name, first, again)
		}
		if s.then != hypervisor.Absent && first.Epoch != g.Epoch {
			b.Errorf("after %s the epoch is %s, want %s", s.name, first.Epoch, g.Epoch)
		}
	}
}

func wrongStates(b *bench) {
	g, ctx := b.guest(one, 1), b.Context()
	commands := map[string]func() error{
		"start":   func() error { return b.d.Start(ctx, g) },
		"pause":   func() error { return b.d.Pause(ctx, one, g.Epoch) },
		"resume":  func() error { return b.d.Resume(ctx, one, g.Epoch) },
		"suspend": func() error { return b.d.Suspend(ctx, one, g.Epoch, nil) },
		"wake":    func() error { return b.d.Wake(ctx, g) },
		"stop":    func() error { return b.d.Stop(ctx, one, g.Epoch, 0) },
		"console": func() error { _, err := b.d.Console(ctx, one); return err },
		"channel": func() error { _, err := b.d.GuestChannel(ctx, one); return err },
	}
	for name, do := range commands {
		b.refused(name+" of an absent guest", do(), hypervisor.ErrNotFound)
	}
	b.must("prepare", b.d.Prepare(ctx, g))
	for _, name := range []string{"pause", "resume", "suspend", "wake", "console", "channel"} {
		b.refused(name+" of a stopped guest", commands[name](), hypervisor.ErrWrongState)
	}
	b.must("start", b.d.Start(ctx, g))
	b.refused("wake of a paused guest", errors.Join(b.d.Pause(ctx, one, g.Epoch), commands["wake"]()), hypervisor.ErrWrongState)
	b.refused("start of a paused guest", commands["start"](), hypervisor.ErrWrongState)
	b.is(one, hypervisor.Paused)
}

func staleEpochs(b *bench) {
	g, ctx := b.running(one), b.Context()
	b.must("pause with a newer epoch", b.d.Pause(ctx, one, epoch(5)))
	check := func(when string, want hypervisor.Condition) {
		b.Helper()
		for name, err := range map[string]error{
			"prepare": b.d.Prepare(ctx, g),
			"start":   b.d.Start(ctx, g),
			"pause":   b.d.Pause(ctx, one, g.Epoch),
			"resume":  b.d.Resume(ctx, one, epoch(4)),
			"suspend": b.d.Suspend(ctx, one, g.Epoch, nil),
			"wake":    b.d.Wake(ctx, g),
			"stop":    b.d.Stop(ctx, one, epoch(4), 0),
			"destroy": b.d.Destroy(ctx, one, epoch(4)),
		} {
			b.refused("stale "+name+" "+when, err, hypervisor.ErrStaleEpoch)
		}
		b.is(one, want)
	}
	check("while it is paused", hypervisor.Paused)
	b.must("destroy", b.d.Destroy(ctx, one, epoch(6)))
	check("after destroy", hypervisor.Absent)
	b.reopen()
	check("after reopening", hypervisor.Absent)
	b.must("prepare with the same epoch", b.d.Prepare(ctx, b.guest(one, 6)))
}

func crash(b *bench) {
	g := b.running(one)
	b.crash(one)
	b.reopen()
	if o := b.is(one, hypervisor.Crashed); o.Reason == "" {
		b.Error("a guest that had crashed has no reason after reopening")
	}
	b.must("prepare", b.d.Prepare(b.Context(), g))
	b.is(one, hypervisor.Crashed)
	b.must("start", b.d.Start(b.Context(), g))
	b.crash(one)
	b.must("stop", b.d.Stop(b.Context(), one, g.Epoch, 0))
	b.is(one, hypervisor.Stopped)
}

func powerOff(b *bench) {
	if !b.needs(hypervisor.OpConsole) {
		return
	}
	g := b.running(one)
	t := b.terminal(one)
	t.await("B")
	_, err := t.c.Write([]byte("q"))
	b.must("type", err)
	if e := b.event(one, hypervisor.Crashed); e.Reason != hypervisor.ReasonPoweredOff {
		b.Errorf("a guest that powered itself off: %q", e.Reason)
	}
	b.is(one, hypervisor.Crashed)

	b.must("start", b.d.Start(b.Context(), g))
	b.terminal(one).await("B")
	// So long that only the guest's own shutdown lets this end in time.
	b.must("stop", b.d.Stop(b.Context(), one, g.Epoch, 10*patience))
	b.is(one, hypervisor.Stopped)
}

func stopOfPaused(b *bench) {
	g := b.running(one)
	if b.can(hypervisor.OpConsole) {
		b.terminal(one).await("B")
	}
	b.must("pause", b.d.Pause(b.Context(), one, g.Epoch))
	b.must("stop", b.d.Stop(b.Context(), one, g.Epoch, 10*patience))
	b.is(one, hypervisor.Stopped)
}

func adoption(b *bench) {
	const other vee.ID = "alpha.paused2222"
	g := b.running(one)
	b.running(other)
	b.must("pause", b.d.Pause(b.Context(), other, g.Epoch))
	b.typed(one, 1)
	before := b.is(one, hypervisor.Running)
	b.reopen()
	if after := b.is(one, hypervisor.Running); after.PID != before.PID || after.Epoch != before.Epoch {
		b.Errorf("adopted %+v, want %+v", after, before)
	}
	b.is(other, hypervisor.Paused)
	b.typed(one, 2)
	b.crash(one)
	b.must("resume", b.d.Resume(b.Context(), other, g.Epoch))
	b.must("destroy", b.d.Destroy(b.Context(), other, g.Epoch))
	b.is(other, hypervisor.Absent)
}

func suspendAndWake(b *bench) {
	if !b.needs(hypervisor.OpSuspend) {
		return
	}
	g, ctx := b.running(one), b.Context()
	b.typed(one, 1)
	var last vee.Progress
	progress := func(p vee.Progress) {
		if p.Done < 0 || p.Total > 0 && p.Done > p.Total || p.Unit == "" {
			b.Errorf("progress %+v", p)
		}
		last = p
	}
	for range 2 {
		b.must("suspend", b.d.Suspend(ctx, one, g.Epoch, progress))
		b.is(one, hypervisor.Suspended)
	}
	if last.Done == 0 {
		b.Error("no progress was told")
	}
	b.event(one, hypervisor.Suspended)
	b.refused("start of a suspended guest", b.d.Start(ctx, g), hypervisor.ErrWrongState)
	b.reopen()
	b.is(one, hypervisor.Suspended)
	for range 2 {
		b.must("wake", b.d.Wake(ctx, g))
		b.is(one, hypervisor.Running)
	}
	b.typed(one, 2)

	b.must("pause", b.d.Pause(ctx, one, g.Epoch))
	b.must("suspend of a paused guest", b.d.Suspend(ctx, one, g.Epoch, nil))
	b.must("stop of a suspended guest", b.d.Stop(ctx, one, g.Epoch, 0))
	b.is(one, hypervisor.Stopped)
	b.refused("wake after stop", b.d.Wake(ctx, g), hypervisor.ErrWrongState)
	b.must("start", b.d.Start(ctx, g))
	b.typed(one, 1) // and not 3: saved memory was dropped
	b.must("suspend", b.d.Suspend(ctx, one, g.Epoch, nil))
	b.must("destroy of a suspended guest", b.d.Destroy(ctx, one, g.Epoch))
	b.is(one, hypervisor.Absent)
}

func disks(b *bench) {
	if !b.needs(hypervisor.OpConsole) {
		return
	}
	g, ctx := b.running(one), b.Context()
	if n := b.terminal(one).await("B"); n != 1 {
		b.Errorf("its disk remembers %d boots, want 1", n)
	}
	b.must("stop", b.d.Stop(ctx, one, g.Epoch, 0))
	b.must("start", b.d.Start(ctx, g))
	if n := b.terminal(one).await("B"); n != 2 {
		b.Errorf("after stop and start its disk remembers %d boots, want 2", n)
	}
	if o := b.is(one, hypervisor.Running); o.DiskUsed <= 0 {
		b.Errorf("disk used: %s", o.DiskUsed)
	}
	b.must("destroy", b.d.Destroy(ctx, one, g.Epoch))
	b.running(one)
	if n := b.terminal(one).await("B"); n != 1 {
		b.Errorf("after destroy its disk remembers %d boots, want 1", n)
	}
}

func console(b *bench) {
	if !b.needs(hypervisor.OpConsole) {
		return
	}
	g := b.running(one)
	first := b.terminal(one)
	first.await("B")
	first.count(1)
	second := b.terminal(one)
	for range first.lines { // ends, because the second took over
	}
	second.count(2)
	b.must("stop", b.d.Stop(b.Context(), one, g.Epoch, 0))
	for range second.lines { // ends with the guest
	}
}

func concurrentCalls(b *bench) {
	g, ctx := b.running(one), b.Context()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 3 {
				if err := errors.Join(
					b.d.Pause(ctx, one, g.Epoch), b.d.Resume(ctx, one, g.Epoch), b.d.Prepare(ctx, g),
				); err != nil {
					b.Errorf("concurrent commands: %v", err)
				}
				if _, err := b.d.Observe(ctx); err != nil {
					b.Errorf("observe: %v", err)
				}
			}
		})
	}
	wg.Wait()
	b.is(one, hypervisor.Running)
	for range 3 {
		wg.Go(func() {
			if err := b.d.Destroy(ctx, one, g.Epoch); err != nil {
				b.Errorf("concurrent destroy: %v", err)
			}
		})
	}
	wg.Wait()
	b.is(one, hypervisor.Absent)
}

func severalGuests(b *bench) {
	ids := []vee.ID{"alpha.aaaaaaaaaa", "alpha.bbbbbbbbbb", "alpha.cccccccccc"}
	var wg sync.WaitGroup
	for _, id := range ids {
		g := b.guest(id, 1)
		wg.Go(func() {
			if err := errors.Join(b.d.Prepare(b.Context(), g), b.d.Start(b.Context(), g)); err != nil {
				b.Errorf("%s: %v", id, err)
			}
		})
	}
	wg.Wait()
	all, err := b.d.Observe(b.Context())
	b.must("observe", err)
	if len(all) != len(ids) {
		b.Errorf("%d guests, want %d", len(all), len(ids))
	}
	b.crash(ids[0])
	b.is(ids[1], hypervisor.Running)
	b.is(ids[2], hypervisor.Running)
}

func badDescriptions(b *bench) {
	for name, spoil := range map[string]func(*hypervisor.Guest){
		"identifier that is a path": func(g *hypervisor.Guest) { g.ID = "../../etc" },
		"no memory":                 func(g *hypervisor.Guest) { g.Descriptor.Memory = 0 },
		"negative disk":             func(g *hypervisor.Guest) { g.Descriptor.Disks = []vee.Disk{{Name: "a", Size: -1}} },
		"disk of nothing":           func(g *hypervisor.Guest) { g.Descriptor.Disks = []vee.Disk{{Name: "a"}} },
		"disk with a path":          func(g *hypervisor.Guest) { g.Descriptor.Disks = []vee.Disk{{Name: "a/../b", Size: 1}} },
		"image that is not here": func(g *hypervisor.Guest) {
			g.Descriptor.Disks = []vee.Disk{{Name: "root", Image: "sha256:none"}}
		},
		"two disks of one name": func(g *hypervisor.Guest) {
			g.Descriptor.Disks = []vee.Disk{{Name: "a", Size: vee.MiB}, {Name: "a", Size: vee.MiB}}
		},
	} {
		g := b.guest(one, 1)
		spoil(&g)
		if err := b.d.Prepare(b.Context(), g); err == nil {
			b.Errorf("%s: prepared", name)
		}
		b.is(one, hypervisor.Absent)
	}
}

func newerDescription(b *bench) {
	g, ctx := b.guest(one, 1), b.Context()
	b.must("prepare", b.d.Prepare(ctx, g))
	g.Epoch = epoch(2)
	g.Descriptor.Disks = append(slices.Clone(g.Descriptor.Disks), vee.Disk{Name: "more", Size: vee.MiB})
	b.must("prepare with one disk more", b.d.Prepare(ctx, g))
	g.Epoch = epoch(3)
	g.Descriptor.Disks = slices.Clone(g.Descriptor.Disks)
	g.Descriptor.Disks[len(g.Descriptor.Disks)-1].Size = 2 * vee.MiB
	b.must("start with a larger disk", b.d.Start(ctx, g))
	g.Epoch = epoch(4)
	b.must("prepare while it runs", b.d.Prepare(ctx, g))
	if o := b.is(one, hypervisor.Running); o.Epoch != epoch(4) {
		b.Errorf("epoch %s, want %s", o.Epoch, epoch(4))
	}
}

// A command whose context is over was done or was not; a retry finds its way in any case.
func cancelledContexts(b *bench) {
	g := b.running(one)
	over, cancel := context.WithCancel(b.Context())
	cancel()
	for range 2 {
		_ = b.d.Pause(over, one, g.Epoch)
		_ = b.d.Suspend(over, one, g.Epoch, nil)
		_ = b.d.Wake(over, g)
		_ = b.d.Resume(over, one, g.Epoch)
		_ = b.d.Stop(over, one, g.Epoch, time.Second)
		_ = b.d.Start(over, g)
	}
	b.must("stop", b.d.Stop(b.Context(), one, g.Epoch, 0))
	b.is(one, hypervisor.Stopped)
	b.must("start", b.d.Start(b.Context(), g))
	b.is(one, hypervisor.Running)
}

func eventsEnd(b *bench) {
	g := b.running(one)
	b.must("destroy", b.d.Destroy(b.Context(), one, g.Epoch))
	b.must("close", b.d.Close())
	for range b.d.Events() {
	}
	if err := b.d.Prepare(b.Context(), g); err == nil {
		b.Error("a closed driver prepared a guest")
	}
}

func destroyed(b *bench) {
	g := b.running(one)
	b.must("destroy", b.d.Destroy(b.Context(), one, g.Epoch))
	for range 2 {
		all, err := b.d.Observe(b.Context())
		b.must("observe", err)
		if len(all) != 0 {
			b.Errorf("%d guests are left: %+v", len(all), all)
		}
		b.reopen()
	}
}

func capabilities(b *bench) {
	c, err := b.d.Capabilities(b.Context())
	b.must("capabilities", err)
	if c.Driver == "" || c.Version == "" || c.Why == "" {
		b.Errorf("capabilities do not say enough: %+v", c)
	}
}
