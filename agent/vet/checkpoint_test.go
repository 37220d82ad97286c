package vet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/sim"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// shelf has one checkpoint, or none.
type shelf struct {
	content []byte
	err     error
}

func (s *shelf) Newest(context.Context, vee.ID) (io.ReadCloser, int, bool, error) {
	if s.err != nil {
		return nil, 1, true, s.err
	}
	return io.NopCloser(bytes.NewReader(s.content)), 1, s.content != nil, nil
}

// reliable is a tracker of one simulated host, whose VEE has these policies.
type reliable struct {
	t    *testing.T
	d    *sim.Driver
	tr   *Tracker
	kept *shelf
	stop func()
	a    vhi.Assignment
}

func newReliable(t *testing.T, restart vee.RestartPolicy, r vee.Reliability) *reliable {
	d, err := sim.New(sim.Config{})
	if err != nil {
		t.Fatal(err)
	}
	x := &reliable{t: t, d: d, kept: &shelf{}, a: assignment(1, vhi.Running)}
	x.a.Descriptor.Memory = vee.GiB
	x.a.Descriptor.Restart, x.a.Descriptor.Reliability = restart, r
	h := newHost()
	x.tr, err = Open(t.Context(), Config{Dir: t.TempDir(), Driver: d, Images: h, Plugs: h, Changed: func() {}, Checkpoints: x.kept, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = x.tr.Run(ctx) }()
	x.stop = func() { cancel(); <-done; _ = d.Close() }
	assign(t, x.tr, x.a)
	x.is(vhi.Running)
	return x
}

func (x *reliable) is(want vhi.Power) vhi.Report {
	x.t.Helper()
	r := report(x.t, x.tr)
	if r.Power != want {
		x.t.Fatalf("it is %s: %+v", r.Power, r)
	}
	return r
}

// checkpoint n of the guest, into the shelf.
func (x *reliable) checkpoint(n int) {
	x.t.Helper()
	ctx := x.t.Context()
	var b bytes.Buffer
	if err := errors.Join(x.tr.Freeze(ctx, web, x.a.Epoch, n, time.Minute), x.tr.Take(ctx, web, n), x.tr.Thaw(ctx, web, n), x.tr.Pack(ctx, web, n, &b), x.tr.Forget(ctx, web, x.a.Epoch, n)); err != nil {
		x.t.Fatal(err)
	}
	x.kept.content = b.Bytes()
}

// bag has one seed, which can be had when there is no err.
type bag struct {
	content []byte
	err     error
	asked   vee.Seed
}

func (b *bag) Open(_ context.Context, s vee.Seed, _ func(vee.Progress)) (io.ReadCloser, error) {
	if b.asked = s; b.err != nil {
		return nil, b.err
	}
	return io.NopCloser(bytes.NewReader(b.content)), nil
}

// TestAVEEThatBeginsWithAnothersDisks: it is not started without them, however long they take,
// boots from them, and has nothing of the other's memory.
func TestAVEEThatBeginsWithAnothersDisks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newReliable(t, "", last)
		old.checkpoint(1)
		old.stop()

		d, err := sim.New(sim.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		seeds := &bag{err: fault.New(fault.Unavailable, "the site does not answer")}
		h := newHost()
		tr, err := Open(t.Context(), Config{Dir: t.TempDir(), Driver: d, Images: h, Plugs: h, Changed: func() {}, Seeds: seeds, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = tr.Run(ctx) }()
		defer func() { cancel(); <-done }()
		a := assignment(1, vhi.Running)
		a.Descriptor.Memory = vee.GiB
		a.Descriptor.Seed = &vee.Seed{Digest: "sha256:1", Size: 1, Of: "alpha.other"}
		assign(t, tr, a)
		time.Sleep(10 * time.Minute)
		if r := report(t, tr); r.Power != vhi.Unprepared || r.Error == "" || seeds.asked.Of != "alpha.other" {
			t.Fatalf("without its seed: %+v", r)
		}
		seeds.err, seeds.content = nil, old.kept.content
		time.Sleep(time.Minute)
		x := &reliable{t: t, d: d, tr: tr, a: a}
		x.is(vhi.Running)
		if n := x.bootsAre(2); !n {
			t.Error("it does not go on from the other's disks")
		}
	})
}

// bootsAre of the guest's disk.
func (x *reliable) bootsAre(n int) bool {
	var b bytes.Buffer
	if _, err := x.d.Snapshot(x.t.Context(), hypervisor.Guest{ID: web, Epoch: x.a.Epoch}, "look", true); err != nil {
		x.t.Fatal(err)
	}
	if err := x.d.Pack(x.t.Context(), web, "look", &b); err != nil {
		x.t.Fatal(err)
	}
	return bytes.Contains(b.Bytes(), fmt.Appendf(nil, `"boots":%d`, n))
}

func (x *reliable) boots() int {
	var b bytes.Buffer
	if _, err := x.d.Snapshot(x.t.Context(), hypervisor.Guest{ID: web, Epoch: x.a.Epoch}, "look", true); err != nil {
		x.t.Fatal(err)
	}
	defer func() { _ = x.d.DeleteSnapshot(x.t.Context(), web, x.a.Epoch, "look") }()
	if err := x.d.Pack(x.t.Context(), web, "look", &b); err != nil {
		x.t.Fatal(err)
	}
	return bytes.Count(b.Bytes(), []byte(`"boots":1`))
}

var last = vee.Reliability{CheckpointMS: 60_000, From: vee.FromCheckpoint}

func TestAGuestStandsStillForACheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newReliable(t, "", last)
		defer x.stop()
		ctx := t.Context()
		if err := x.tr.Freeze(ctx, web, x.a.Epoch, 1, time.Minute); err != nil {
			t.Fatal(err)
		}
		if o, _ := x.d.Inspect(ctx, web); o.Condition != hypervisor.Paused {
			t.Fatalf("it is %s", o.Condition)
		}
		if r := x.is(vhi.Running); r.Phase != vee.PhaseSave {
			t.Errorf("phase %s", r.Phase)
		}
		if err := x.tr.Take(ctx, web, 2); !fault.Has(err, fault.WrongState) {
			t.Errorf("another checkpoint: %v", err)
		}
		if err := errors.Join(x.tr.Take(ctx, web, 1), x.tr.Thaw(ctx, web, 1), x.tr.Thaw(ctx, web, 1)); err != nil {
			t.Fatal(err)
		}
		if o, _ := x.d.Inspect(ctx, web); o.Condition != hypervisor.Running {
			t.Fatalf("it is %s", o.Condition)
		}
		if err := x.tr.Take(ctx, web, 1); !fault.Has(err, fault.WrongState) {
			t.Errorf("taken while it runs: %v", err)
		}
		// A tracker that is gone: the guest goes on by itself.
		if err := x.tr.Freeze(ctx, web, x.a.Epoch, 3, time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(61 * time.Second)
		if o, _ := x.d.Inspect(ctx, web); o.Condition != hypervisor.Running {
			t.Fatalf("a minute later it is %s", o.Condition)
		}
		// What is assigned meanwhile is done afterwards.
		if err := x.tr.Freeze(ctx, web, x.a.Epoch, 4, time.Minute); err != nil {
			t.Fatal(err)
		}
		next := x.a
		next.Seq, next.Power = 2, vhi.Stopped
		assign(t, x.tr, next)
		x.is(vhi.Running)
		if err := x.tr.Thaw(ctx, web, 4); err != nil {
			t.Fatal(err)
		}
		x.is(vhi.Stopped)
		if err := x.tr.Freeze(ctx, web, x.a.Epoch, 5, time.Minute); !fault.Has(err, fault.WrongState) {
			t.Errorf("one that is stopped: %v", err)
		}
	})
}

func TestRestartFromACheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newReliable(t, "", last)
		defer x.stop()
		x.checkpoint(1)
		if err := x.d.Crash(web, "it was killed"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if r := x.is(vhi.Running); r.Restarts != 1 || x.boots() != 1 {
			t.Errorf("restarts %d, boots of its disk %d", r.Restarts, x.boots())
		}
		// It crashes again and again: then it is what it has in its memory.
		for range fromCheckpoint {
			if err := x.d.Crash(web, "it was killed"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
		}
		if x.is(vhi.Running); x.boots() != 0 {
			t.Error("it was started from the same checkpoint for ever")
		}
	})
}

func TestWhatSwitchedItselfOffBoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newReliable(t, "", last)
		defer x.stop()
		x.checkpoint(1)
		if err := x.d.PowerOff(web); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if x.is(vhi.Running); x.boots() != 0 {
			t.Error("it went back to before it was done")
		}
	})
}

// A checkpoint that is there and cannot be had is waited for, and not for ever.
func TestACheckpointThatCannotBeHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newReliable(t, vee.RestartElse, last)
		x.checkpoint(1)
		content := x.kept.content
		x.stop()
		for name, kept := range map[string]shelf{"gone": {err: errors.New("no route to host")}, "damaged": {content: []byte("rot")}} {
			d, err := sim.New(sim.Config{})
			if err != nil {
				t.Fatal(err)
			}
			h := newHost()
			tr, err := Open(t.Context(), Config{Dir: t.TempDir(), Driver: d, Images: h, Plugs: h, Changed: func() {}, Checkpoints: &kept, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); _ = tr.Run(ctx) }()
			assign(t, tr, x.a)
			if r := report(t, tr); r.Power != vhi.Unprepared || r.Error == "" {
				t.Errorf("%s: %+v", name, r)
			}
			time.Sleep(time.Minute)
			if r := report(t, tr); r.Power != vhi.Running {
				t.Errorf("%s: after a minute %+v", name, r)
			}
			cancel()
			<-done
			_ = d.Close()
		}
		_ = content
	})
}

func TestAGuestThatHangs(t *testing.T) {
	for _, c := range []struct {
		policy vee.RestartPolicy
		again  bool
	}{{vee.RestartInPlace, true}, {vee.RestartNever, false}} {
		synctest.Test(t, func(t *testing.T) {
			x := newReliable(t, c.policy, vee.Reliability{HeartbeatMS: 30_000})
			defer x.stop()
			time.Sleep(5 * time.Minute)
			if r := x.is(vhi.Running); r.Restarts != 0 || r.Error != "" {
				t.Fatalf("a guest that speaks: %+v", r)
			}
			if err := x.d.Hang(web); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
			if r := x.is(vhi.Running); r.Restarts != 0 {
				t.Errorf("too early: %+v", r)
			}
			time.Sleep(time.Minute)
			r := x.is(vhi.Running)
			if c.again && (r.Restarts != 1 || !r.GuestReady) || !c.again && (r.Restarts != 0 || r.Error == "") {
				t.Errorf("policy %s: %+v", c.policy, r)
			}
		})
	}
}

// What this process has slept through is not the guest's silence.
func TestHeartbeat(t *testing.T) {
	var h heartbeat
	at := time.Unix(1000, 0)
	look := func(after, silent time.Duration) bool {
		at = at.Add(after)
		h.beat(at, silent, 40*time.Second)
		return h.hangs
	}
	look(0, 0)
	if look(10*time.Minute, 10*time.Minute) {
		t.Error("after one look")
	}
	if look(time.Second, 0); look(5*time.Second, 41*time.Second) {
		t.Error("it has spoken in between")
	}
	if look(5*time.Second, 46*time.Second); !look(10*time.Second, 56*time.Second) {
		t.Error("it hangs, and nobody says so")
	}
	if look(time.Second, 0) {
		t.Error("it has come back")
	}
}
