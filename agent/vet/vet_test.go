package vet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// host is a hypervisor, an image cache and a bridge that keep in memory what they have,
// take time, and fail when they are told to.
type host struct {
	mu     sync.Mutex
	guests map[vee.ID]hypervisor.Observation
	taps   map[string]bool
	starts int
	events chan hypervisor.Event
	fail   func(step string) error // consulted before each change
	takes  time.Duration
}

func newHost() *host {
	return &host{guests: map[vee.ID]hypervisor.Observation{}, taps: map[string]bool{}, events: make(chan hypervisor.Event, 100),
		fail: func(string) error { return nil }, takes: 50 * time.Millisecond}
}

func (h *host) change(ctx context.Context, what string, id vee.ID, e vee.Epoch, to hypervisor.Condition) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(h.takes):
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.fail(what); err != nil {
		return err
	}
	if to == hypervisor.Absent {
		delete(h.guests, id)
		return nil
	}
	h.guests[id] = hypervisor.Observation{ID: id, Epoch: e, Condition: to, Since: time.Now()}
	return nil
}

func (h *host) crash(id vee.ID, c hypervisor.Condition, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.guests[id] = hypervisor.Observation{ID: id, Condition: c, Reason: why, Since: time.Now()}
	h.events <- hypervisor.Event{ID: id, Condition: c, Reason: why}
}

func (h *host) condition(id vee.ID) hypervisor.Condition {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o, ok := h.guests[id]; ok {
		return o.Condition
	}
	return hypervisor.Absent
}

func (h *host) Capabilities(context.Context) (hypervisor.Capabilities, error) {
	return hypervisor.Capabilities{}, nil
}
func (h *host) Prepare(ctx context.Context, g hypervisor.Guest) error {
	return h.change(ctx, "prepare", g.ID, g.Epoch, hypervisor.Stopped)
}
func (h *host) Start(ctx context.Context, g hypervisor.Guest) error {
	h.mu.Lock()
	h.starts++
	h.mu.Unlock()
	return h.change(ctx, "start", g.ID, g.Epoch, hypervisor.Running)
}
func (h *host) Pause(ctx context.Context, id vee.ID, e vee.Epoch) error {
	return h.change(ctx, "pause", id, e, hypervisor.Paused)
}
func (h *host) Resume(ctx context.Context, id vee.ID, e vee.Epoch) error {
	return h.change(ctx, "resume", id, e, hypervisor.Running)
}
func (h *host) Suspend(ctx context.Context, id vee.ID, e vee.Epoch, _ func(vee.Progress)) error {
	return h.change(ctx, "suspend", id, e, hypervisor.Suspended)
}
func (h *host) Wake(ctx context.Context, g hypervisor.Guest) error {
	return h.change(ctx, "wake", g.ID, g.Epoch, hypervisor.Running)
}
func (h *host) Stop(ctx context.Context, id vee.ID, e vee.Epoch, _ time.Duration) error {
	return h.change(ctx, "stop", id, e, hypervisor.Stopped)
}
func (h *host) Destroy(ctx context.Context, id vee.ID, e vee.Epoch) error {
	return h.change(ctx, "destroy", id, e, hypervisor.Absent)
}
func (h *host) Observe(context.Context) (out []hypervisor.Observation, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.guests {
		out = append(out, o)
	}
	return out, nil
}
func (h *host) Inspect(_ context.Context, id vee.ID) (hypervisor.Observation, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o, ok := h.guests[id]
	if !ok {
		return o, hypervisor.ErrNotFound
	}
	return o, nil
}
func (h *host) Events() <-chan hypervisor.Event { return h.events }
func (h *host) Console(context.Context, vee.ID) (io.ReadWriteCloser, error) {
	return nil, hypervisor.ErrUnsupported
}
func (h *host) GuestChannel(context.Context, vee.ID) (net.Conn, error) {
	return nil, hypervisor.ErrUnsupported
}
func (h *host) Close() error { return nil }

func (h *host) Fetch(_ context.Context, digest string, _ func(vee.Progress)) (hypervisor.LocalImage, error) {
	if digest == "sha256:none" {
		return hypervisor.LocalImage{}, fault.New(fault.NotFound, "image %s is not in the site's registry", digest)
	}
	return hypervisor.LocalImage{Digest: digest}, nil
}
func (h *host) Plug(_ context.Context, id vee.ID, i int) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.taps[fmt.Sprint(id, i)] = true
	return "tap", nil
}
func (h *host) Release(vee.ID, netip.Addr) error { return nil }
func (h *host) Announce(vee.ID) error            { return nil }
func (h *host) Unplug(id vee.ID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.taps, fmt.Sprint(id, 0))
	return nil
}

const web = vee.ID("alpha.aaaaaaaaaa")

func assignment(seq uint64, p vhi.Power) vhi.Assignment {
	return vhi.Assignment{VEE: web, Epoch: vee.Epoch{Generation: 1, Term: 1}, Seq: seq, Power: p,
		Descriptor: vee.Descriptor{Name: "web-1", VCPUs: 1, Disks: []vee.Disk{{Name: "root", Image: "sha256:a"}}, NICs: []vee.NIC{{Network: "n"}}}}
}

// running starts a tracker on h over dir; stop waits until it has ended.
func running(t *testing.T, dir string, h *host) (tr *Tracker, stop func()) {
	t.Helper()
	tr, err := Open(t.Context(), Config{Dir: dir, Driver: h, Images: h, Plugs: h, Changed: func() {}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = tr.Run(ctx) }()
	synctest.Wait()
	return tr, func() { cancel(); <-done }
}

func assign(t *testing.T, tr *Tracker, a vhi.Assignment) {
	t.Helper()
	if _, err := tr.Assign(t.Context(), a); err != nil {
		t.Fatal(err)
	}
}

func report(t *testing.T, tr *Tracker) vhi.Report {
	t.Helper()
	time.Sleep(time.Second)
	synctest.Wait()
	r := tr.Reports()
	if len(r) != 1 {
		t.Fatalf("%d reports, want 1", len(r))
	}
	return r[0]
}

func TestALifeFromAssignmentToTombstone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		tr, stop := running(t, t.TempDir(), h)
		defer stop()
		for i, s := range []struct {
			want  vhi.Power
			phase vee.Phase
		}{
			{vhi.Running, vee.PhaseBoot}, {vhi.Paused, vee.PhaseHold}, {vhi.Running, vee.PhaseBoot}, {vhi.Suspended, vee.PhaseSuspended},
			{vhi.Running, vee.PhaseBoot}, {vhi.Stopped, vee.PhaseStopped}, {vhi.Running, vee.PhaseBoot}, {vhi.Absent, vee.PhaseDone},
		} {
			assign(t, tr, assignment(uint64(i+1), s.want))
			if r := report(t, tr); r.Power != s.want || r.Phase != s.phase || r.Error != "" || r.Seq != uint64(i+1) {
				t.Errorf("after %s: %+v", s.want, r)
			}
		}
		if len(h.taps) != 0 {
			t.Errorf("TAPs were left: %v", h.taps)
		}
		if _, err := tr.Assign(t.Context(), assignment(3, vhi.Running)); !fault.Has(err, fault.StaleEpoch) {
			t.Errorf("a late assignment to a VEE that is gone: %v, want stale-epoch", err)
		}
	})
}

func TestOlderAssignmentsAreRefusedAlsoAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, dir := newHost(), t.TempDir()
		tr, stop := running(t, dir, h)
		newest := assignment(7, vhi.Running)
		newest.Epoch.Hop = 1
		assign(t, tr, newest)
		report(t, tr)
		stop()
		tr, stop = running(t, dir, h)
		defer stop()
		older := assignment(9, vhi.Absent)
		if _, err := tr.Assign(t.Context(), older); !fault.Has(err, fault.StaleEpoch) {
			t.Errorf("older epoch: %v, want stale-epoch", err)
		}
		late := newest
		late.Seq, late.Power = 6, vhi.Absent
		if _, err := tr.Assign(t.Context(), late); !fault.Has(err, fault.StaleEpoch) {
			t.Errorf("older sequence number: %v, want stale-epoch", err)
		}
		if r := report(t, tr); r.Power != vhi.Running || h.starts != 1 {
			t.Errorf("after the restart: %+v, %d starts; want running, started once", r, h.starts)
		}
	})
}

func TestACrashedGuestIsStartedAgainWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		tr, stop := running(t, t.TempDir(), h)
		defer stop()
		assign(t, tr, assignment(1, vhi.Running))
		report(t, tr)
		var last time.Duration
		for i := range 5 {
			h.crash(web, hypervisor.Crashed, "killed by signal 9")
			began := time.Now()
			for h.condition(web) != hypervisor.Running {
				time.Sleep(100 * time.Millisecond)
			}
			if took := time.Since(began); took <= last {
				t.Errorf("restart %d came after %s, the one before after %s", i+1, took, last)
			} else {
				last = took
			}
		}
		if r := report(t, tr); r.Restarts != 5 || r.Error != "" {
			t.Errorf("%+v, want five restarts and no error", r)
		}
		time.Sleep(2 * calm)
		h.crash(web, hypervisor.Crashed, "killed by signal 9")
		time.Sleep(restartPause + time.Second)
		if c := h.condition(web); c != hypervisor.Running {
			t.Errorf("after a calm time: %s, want started again at the shortest pause", c)
		}
	})
}

func TestPolicyNeverLeavesACrashedGuestForPeople(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		tr, stop := running(t, t.TempDir(), h)
		defer stop()
		a := assignment(1, vhi.Running)
		a.Descriptor.Restart = vee.RestartNever
		assign(t, tr, a)
		report(t, tr)
		h.crash(web, hypervisor.Crashed, "killed by signal 9")
		time.Sleep(time.Hour)
		r := report(t, tr)
		if r.Power != vhi.Failed || r.Phase != vee.PhaseFailed || r.Error != "the guest ended by itself: killed by signal 9" {
			t.Errorf("%+v", r)
		}
	})
}

func TestAHaltedGuestSaysWhyAndIsContinued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		tr, stop := running(t, t.TempDir(), h)
		defer stop()
		assign(t, tr, assignment(1, vhi.Running))
		report(t, tr)
		h.crash(web, hypervisor.Halted, "no space left on the host's disk")
		if r := report(t, tr); r.Code != string(fault.DiskFull) || r.Phase != vee.PhaseHold {
			t.Errorf("%+v, want disk-full and HOLD", r)
		}
		time.Sleep(time.Minute)
		if r := report(t, tr); r.Power != vhi.Running || r.Error != "" {
			t.Errorf("%+v, want running again", r)
		}
	})
}

func TestAnErrorIsReportedAndTheStepRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		full := true
		h.fail = func(s string) error {
			if s == "prepare" && full {
				return fmt.Errorf("make disk root: %w", hypervisor.ErrNoSpace)
			}
			return nil
		}
		tr, stop := running(t, t.TempDir(), h)
		defer stop()
		assign(t, tr, assignment(1, vhi.Running))
		if r := report(t, tr); r.Code != string(fault.DiskFull) || r.Power != vhi.Unprepared {
			t.Errorf("%+v, want disk-full and unprepared", r)
		}
		h.mu.Lock()
		full = false
		h.mu.Unlock()
		time.Sleep(time.Minute)
		if r := report(t, tr); r.Power != vhi.Running || r.Error != "" {
			t.Errorf("%+v, want running", r)
		}
		missing := assignment(2, vhi.Running)
		missing.VEE = "alpha.bbbbbbbbbb"
		missing.Descriptor.Disks[0].Image = "sha256:none"
		assign(t, tr, missing)
		time.Sleep(time.Second)
		for _, r := range tr.Reports() {
			if r.VEE == missing.VEE && r.Code != string(fault.NotFound) {
				t.Errorf("%+v, want not-found", r)
			}
		}
	})
}

func TestRemovingInterruptsWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		h.takes = time.Hour
		tr, stop := running(t, t.TempDir(), h)
		defer stop()
		assign(t, tr, assignment(1, vhi.Running))
		time.Sleep(time.Second)
		h.mu.Lock()
		h.takes = time.Millisecond
		h.mu.Unlock()
		assign(t, tr, assignment(2, vhi.Absent))
		if r := report(t, tr); r.Power != vhi.Absent {
			t.Errorf("%+v, want absent", r)
		}
	})
}

func TestAGuestThatNobodyAssignedIsShownAndLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		h.guests[web] = hypervisor.Observation{ID: web, Epoch: vee.Epoch{Generation: 1, Term: 4}, Condition: hypervisor.Running}
		tr, stop := running(t, t.TempDir(), h)
		defer stop()
		if r := report(t, tr); r.Power != vhi.Running || r.Epoch.Term != 4 {
			t.Errorf("%+v, want running under term 4", r)
		}
	})
}

// Random assignments, crashes, errors and restarts of the tracker: when they stop, the VEE
// is as the newest assignment says.
func TestConvergesAfterRandomFaults(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			h, dir := newHost(), t.TempDir()
			faulty := true
			h.fail = func(s string) error {
				if faulty && random.IntN(4) == 0 {
					return errors.New("injected into " + s)
				}
				return nil
			}
			tr, stop := running(t, dir, h)
			var last vhi.Assignment
			for seq := uint64(1); seq <= 12; seq++ {
				last = assignment(seq, powers[random.IntN(len(powers))])
				assign(t, tr, last)
				time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
				switch random.IntN(4) {
				case 0:
					if h.condition(web) == hypervisor.Running {
						h.crash(web, hypervisor.Crashed, "injected")
					}
				case 1:
					stop()
					tr, stop = running(t, dir, h)
				}
			}
			if last.Power == vhi.Suspended { // a guest that is stopped cannot be suspended
				last = assignment(13, vhi.Running)
				assign(t, tr, last)
			}
			h.mu.Lock()
			faulty = false
			h.mu.Unlock()
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			r := tr.Reports()[0]
			ok := r.Power == last.Power || last.Power == vhi.Stopped && r.Power == vhi.Unprepared
			if !ok || r.Seq != last.Seq {
				t.Errorf("seed %d: assigned %s (%d), reported %s (%d), error %q", seed, last.Power, last.Seq, r.Power, r.Seq, r.Error)
			}
			stop()
		})
	}
}
