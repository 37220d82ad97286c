package vet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/handover"
	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// tracked is one VEE: what is assigned, what is observed, and the loop that brings the
// second to the first.
type tracked struct {
	t      *Tracker
	line   channel
	wake   chan struct{} // of size one: something may have changed
	over   chan struct{} // closed by end
	orders chan order    // to the loop, see live.go
	begun  bool          // the loop runs; t.mu guards it

	looking sync.Mutex // one observation after the other; taken before mu

	mu       sync.Mutex
	want     vhi.Assignment
	part     handover.Part // in the newest handover
	move     moving
	origin   *vhi.Origin // of the newest move from another site
	seen     hypervisor.Observation
	doing    step
	progress *vee.Progress
	err      error
	cancel   context.CancelFunc // of the step under way
	restarts int                // since it was assigned
	crashes  int                // without a calm time in between
	began    time.Time          // of the last start
	fit      fit                // of the guest to its assignment
	freed    vee.Bytes          // by its removal
	heart    heartbeat
	spoke    bool       // the agent in the guest has, since the guest was started
	hung     bool       // its guest was ended because it hung
	still    *stillness // for a checkpoint; nil: it does not stand still
	unpacked int        // starts from a checkpoint without a calm time in between
	held     int        // process that is under guard
	asleep   int        // attempts to wake it that went wrong
}

func newTracked(t *Tracker, a vhi.Assignment) *tracked {
	return &tracked{t: t, want: a, wake: make(chan struct{}, 1), over: make(chan struct{}), orders: make(chan order),
		seen: hypervisor.Observation{ID: a.VEE, Condition: hypervisor.Absent}}
}

func (v *tracked) nudge() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

func (v *tracked) end() { close(v.over) }

// assign keeps a on disk and makes it the one to obey.
func (v *tracked) assign(a vhi.Assignment) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch c := a.Epoch.Compare(v.want.Epoch); {
	case c < 0:
		return fault.New(fault.StaleEpoch, "VEE %s: epoch %s is older than %s, which is obeyed here", a.VEE, a.Epoch, v.want.Epoch)
	case c == 0 && a.Seq < v.want.Seq:
		return fault.New(fault.StaleEpoch, "VEE %s: assignment %d of epoch %s is older than %d, which is obeyed here", a.VEE, a.Seq, a.Epoch, v.want.Seq)
	case c == 0 && a.Seq == v.want.Seq && v.want.Power != "":
		return nil // the same again
	case c == 0 && v.part.Undecided() && a.Power != vhi.Absent:
		return fault.New(fault.Conflict, "VEE %s was given to host %s, whose answer is not known yet", a.VEE, v.want.Move.To)
	}
	before := v.move
	if id := moveID(a); id != "" && id != v.move.id {
		v.move = moving{id: id, plugs: v.move.plugs, report: a.Move.Report(vhi.MoveWaiting)}
	}
	part := v.part
	switch {
	case part.Undecided():
		part.State = handover.Gone // the site knows who has it
	case moveID(a) != part.Move:
		part = part.Withdraw()
	}
	obsolete := a.Power != v.want.Power || moveID(a) != moveID(v.want)
	if err := v.keep(a, part); err != nil {
		v.move = before
		return err
	}
	if obsolete { // what is being done is not wanted any more
		if v.cancel != nil {
			v.cancel()
		}
		before.load.giveUp()
	}
	v.err = nil
	v.nudge()
	return nil
}

func (v *tracked) assigned() vhi.Assignment {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.want
}

// gone: it was removed here, and only its tombstone is left.
func (v *tracked) gone() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.want.Power == vhi.Absent && v.seen.Condition == hypervisor.Absent
}

// running: its vCPUs are this host's, see Tracker.Running.
func (v *tracked) running() (vee.Descriptor, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch v.seen.Condition {
	case hypervisor.Running, hypervisor.Paused, hypervisor.Halted:
		return v.want.Descriptor, v.want.Power != "" && v.want.Power != vhi.Absent && !v.part.Undecided()
	}
	return vee.Descriptor{}, false
}

// call is a goroutine that is there or not.
type call struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (c *call) open(ctx context.Context, talk func(context.Context)) {
	if c.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	c.cancel, c.done = cancel, done
	go func() { defer close(done); talk(ctx) }()
}

func (c *call) hangUp() {
	if c.cancel == nil {
		return
	}
	c.cancel()
	<-c.done
	c.cancel = nil
}

// loop converges until ctx is done or the VEE is forgotten.
func (v *tracked) loop(ctx context.Context) {
	var line call
	defer line.hangUp()
	retries := 0
	for {
		o, err := v.observe(ctx)
		if ctx.Err() != nil {
			return
		}
		if o.Condition == hypervisor.Running || o.Condition == hypervisor.Paused {
			if err == nil {
				line.open(ctx, func(ctx context.Context) { v.line.serve(ctx, v.dialGuest, v.t.cfg.Changed, v.said) })
			}
		} else {
			line.hangUp()
		}

		a := v.assigned()
		s := rest
		if err == nil && a.Power != "" {
			v.mu.Lock()
			a = v.want
			s = nextOf(a, v.part.State, v.move, o.Condition)
			v.mu.Unlock()
		}
		if s == rest && err == nil && v.misfit(a, o.Condition) {
			s = resize
		}
		v.mu.Lock()
		if s == rest && err == nil && v.unheld() {
			s = guarding
		}
		v.mu.Unlock()
		var listen time.Duration
		if s == rest && err == nil {
			s, listen = v.listen(a, o.Condition)
		}
		var pause time.Duration
		switch {
		case err != nil:
			v.note(err)
			pause, retries = backoff(retryPause, retries), retries+1
		case s == rest || s == failed:
			if v.settle(o, s) {
				v.t.cfg.Changed()
			}
			retries = 0
			if o.Condition == hypervisor.Running {
				pause = calm // then look again whether it deserves to be forgiven its crashes
			} else {
				pause = time.Hour
			}
			if listen > 0 {
				pause = min(pause, listen)
			}
		default:
			if wait := v.patience(s, o); wait > 0 {
				v.t.cfg.Changed()
				pause = wait
				break
			}
			if s == destroy || s == stop || s == suspend || s == end {
				line.hangUp()
			}
			if err := v.do(ctx, s, a); err != nil && ctx.Err() == nil {
				v.note(err)
				v.t.cfg.Changed()
				if errors.Is(err, context.Canceled) {
					continue
				}
				v.t.cfg.Log.Warn("step failed", "vee", v.want.VEE, "step", s, "err", err)
				pause, retries = backoff(retryPause, retries), retries+1
				break
			}
			retries = 0
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-v.over:
			timer.Stop()
			return
		case <-v.wake:
		case q := <-v.orders:
			line.hangUp() // what is read afterwards may come from another time
			v.obey(q)
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (v *tracked) observe(ctx context.Context) (hypervisor.Observation, error) {
	id := v.assigned().VEE
	v.looking.Lock()
	defer v.looking.Unlock()
	o, err := v.t.cfg.Driver.Inspect(ctx, id)
	if errors.Is(err, hypervisor.ErrNotFound) {
		o, err = hypervisor.Observation{ID: id, Condition: hypervisor.Absent}, nil
	}
	if err != nil {
		return o, coded(fmt.Errorf("observe VEE %s: %w", id, err))
	}
	v.mu.Lock()
	changed := v.seen.Condition != o.Condition && !v.move.taking // whoever takes it tells, and more than that
	v.seen = o
	if o.Condition != hypervisor.Incoming && !v.move.taking {
		v.arrived(o.Since)
	}
	if o.Condition == hypervisor.Running && time.Since(v.began) > calm {
		v.crashes, v.unpacked = 0, 0
	}
	v.mu.Unlock()
	if changed {
		v.t.cfg.Changed()
	}
	return o, nil
}

// settle notes that nothing is to be done, and reports whether that is news.
func (v *tracked) settle(o hypervisor.Observation, s step) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	var err error
	switch {
	case s == failed:
		err = fault.New(fault.WrongState, "the guest ended by itself: %s", o.Reason)
	case o.Condition == hypervisor.Halted:
		err = fault.New(fault.DiskFull, "the guest is halted: %s", o.Reason)
	case v.heart.hangs:
		err = errHangs
	}
	news := (err == nil) != (v.err == nil)
	v.err = err
	return news
}

// patience is how long to wait before a step: a crashed guest is started again after a
// pause that grows, a halted one is tried again now and then.
func (v *tracked) patience(s step, o hypervisor.Observation) time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	var since time.Time
	var pause time.Duration
	switch {
	case s == start && o.Condition == hypervisor.Crashed:
		since, pause = o.Since, backoff(restartPause, v.crashes)
		v.err = fault.New(fault.WrongState, "the guest ended by itself: %s; it is started again", o.Reason)
	case s == resume && o.Condition == hypervisor.Halted:
		since, pause = o.Since, backoff(10*restartPause, v.crashes)
		v.err = fault.New(fault.DiskFull, "the guest is halted: %s; it is continued when there is room", o.Reason)
	default:
		return 0
	}
	left := time.Until(since.Add(pause))
	if left > 0 {
		return left
	}
	v.crashes++
	if s == start {
		v.restarts++
	}
	return 0
}

func (v *tracked) note(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !errors.Is(err, context.Canceled) {
		v.err = err
	}
}

// do performs one step. An assignment of another power cancels it.
func (v *tracked) do(ctx context.Context, s step, a vhi.Assignment) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v.mu.Lock()
	if v.want.Power != a.Power || moveID(v.want) != moveID(a) {
		v.mu.Unlock()
		return nil // overtaken between the decision and now
	}
	v.doing, v.progress, v.cancel = s, nil, cancel
	v.mu.Unlock()
	v.t.cfg.Changed()
	err := v.perform(ctx, s, a)
	v.mu.Lock()
	v.doing, v.progress, v.cancel = rest, nil, nil
	if s != resize {
		v.fit = fit{} // whatever became of it
	}
	if err == nil {
		if s != prepare {
			v.err = nil
		}
		if s == start || s == wake {
			v.began, v.hung, v.spoke, v.asleep = time.Now(), false, false, 0
		}
	}
	v.mu.Unlock()
	if err != nil {
		return coded(fmt.Errorf("%s VEE %s: %w", s, a.VEE, err))
	}
	return nil
}

func (v *tracked) perform(ctx context.Context, s step, a vhi.Assignment) error {
	d := v.t.cfg.Driver
	if err := v.may(ctx, s, a); err != nil {
		return err
	}
	switch s {
	case prepare:
		if done, err := v.unpack(ctx, a); done || err != nil {
			return err
		}
		if done, err := v.sow(ctx, a); done || err != nil {
			return err
		}
		g, err := v.guest(ctx, a)
		if err != nil {
			return err
		}
		return d.Prepare(ctx, g)
	case end:
		return d.Stop(ctx, a.VEE, a.Epoch, 0)
	case start:
		if back, err := v.rewind(ctx, a); back || err != nil {
			return err
		}
		g, err := v.guest(ctx, a)
		if err != nil {
			return err
		}
		return d.Start(ctx, g)
	case wake:
		g, err := v.guest(ctx, a)
		if err != nil {
			return err
		}
		if err := d.Wake(ctx, g); err != nil {
			return v.noWake(ctx, a, err)
		}
		return nil
	case resize:
		return v.resize(ctx, a)
	case guarding:
		return v.hold(ctx, a)
	case pause:
		return d.Pause(ctx, a.VEE, a.Epoch)
	case resume:
		return d.Resume(ctx, a.VEE, a.Epoch)
	case suspend:
		return d.Suspend(ctx, a.VEE, a.Epoch, v.setProgress)
	case stop:
		return d.Stop(ctx, a.VEE, a.Epoch, time.Duration(a.GraceMS)*time.Millisecond)
	case send:
		return v.send(ctx, a)
	case give:
		return v.give(ctx)
	case take:
		if m, ok := d.(hypervisor.Migrator); ok {
			return v.take(ctx, m, a.Epoch)
		}
	case destroy:
		o, err := d.Inspect(ctx, a.VEE)
		if err == nil || errors.Is(err, hypervisor.ErrNotFound) { // then its TAPs may be left
			err = d.Destroy(ctx, a.VEE, a.Epoch)
		}
		if err != nil {
			return err
		}
		v.mu.Lock()
		v.freed = o.DiskUsed
		v.mu.Unlock()
		if err := v.t.cfg.Plugs.Unplug(a.VEE); err != nil {
			return err
		}
		v.mu.Lock()
		v.move.plugs = false
		v.mu.Unlock()
	}
	return nil
}

// guest gathers what the driver needs: images that are here and verified, NICs that are
// plugged in.
func (v *tracked) guest(ctx context.Context, a vhi.Assignment) (hypervisor.Guest, error) {
	g := hypervisor.Guest{ID: a.VEE, Epoch: a.Epoch, Descriptor: a.Descriptor}
	g.Descriptor.Context = seed(a.VEE, a.Descriptor, v.t.cfg.NameServers)
	have := map[string]bool{}
	for _, k := range a.Descriptor.Disks {
		if k.Image == "" || have[k.Image] {
			continue
		}
		have[k.Image] = true
		img, err := v.t.cfg.Images.Fetch(ctx, k.Image, v.setProgress)
		if err != nil {
			return g, fmt.Errorf("image %s of disk %q: %w", k.Source, k.Name, err)
		}
		g.Images = append(g.Images, img)
	}
	for i, n := range a.Descriptor.NICs {
		tap, err := v.t.cfg.Plugs.Plug(ctx, a.VEE, i)
		if err != nil {
			return g, err
		}
		g.NICs = append(g.NICs, hypervisor.NIC{Tap: tap, MAC: n.MAC})
	}
	return g, nil
}

func (v *tracked) setProgress(p vee.Progress) {
	v.mu.Lock()
	tell := v.progress == nil || p.Total > 0 && (p.Done-v.progress.Done)*20 >= p.Total // every 5 %
	if tell {
		v.progress = &p
	}
	v.mu.Unlock()
	if tell {
		v.t.cfg.Changed()
	}
}

func (v *tracked) said(s guest.Status) {
	v.mu.Lock()
	v.spoke = true
	v.mu.Unlock()
	if v.t.cfg.Said != nil {
		v.t.cfg.Said(v.assigned().VEE, s)
	}
}

func (v *tracked) dialGuest(ctx context.Context) (net.Conn, error) {
	return v.t.cfg.Driver.GuestChannel(ctx, v.assigned().VEE)
}

func (v *tracked) report() vhi.Report {
	seen, status := v.line.now()
	v.mu.Lock()
	defer v.mu.Unlock()
	s := nextOf(v.want, v.part.State, v.move, v.seen.Condition)
	r := vhi.Report{
		VEE: v.want.VEE, Epoch: v.want.Epoch, Seq: v.want.Seq,
		Power:    power(v.want.Power, v.seen.Condition, s),
		Phase:    phase(v.want.Power, v.seen, v.doing, s, seen, time.Now()),
		Progress: v.progress, GuestSeen: seen, GuestReady: status.Ready, GuestIdle: status.Idle, GuestFailure: status.Failure,
		Restarts: v.restarts, Since: v.seen.Since, DiskUsed: v.seen.DiskUsed,
		Fitted: v.fit.epoch == v.want.Epoch && v.fit.seq == v.want.Seq, NextBoot: v.fit.waiting, Freed: v.freed,
		Guarded: v.want.Leased && !v.unheld(),
	}
	if v.move.id != "" {
		m := v.move.report
		r.Move = &m
	}
	if v.err != nil {
		f := fault.From(v.err)
		r.Error, r.Code = f.Message, string(f.Code)
	}
	return r
}

// coded gives a driver's error the code that people see.
func coded(err error) error {
	for sentinel, code := range map[error]fault.Code{
		hypervisor.ErrStaleEpoch: fault.StaleEpoch, hypervisor.ErrNotFound: fault.NotFound, hypervisor.ErrWrongState: fault.WrongState,
		hypervisor.ErrUnsupported: fault.Unsupported, hypervisor.ErrNoSpace: fault.DiskFull, hypervisor.ErrExists: fault.Exists,
	} {
		if errors.Is(err, sentinel) {
			return fault.New(code, "%w", err)
		}
	}
	return err
}
