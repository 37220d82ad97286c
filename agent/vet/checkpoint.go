package vet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Checkpoints are taken by agent/ve for the VEs that VEEs are part of. Here a guest stands
// still for one, is saved, and goes on; and one that is started again goes on from the newest.

// Checkpoints that VEEs are started from again.
type Checkpoints interface {
	// Newest whole one of a VEE. found is false where there is none; an error: there is one
	// that could not be had.
	Newest(ctx context.Context, id vee.ID) (content io.ReadCloser, n int, found bool, err error)
}

// Seeds that VEEs begin with.
type Seeds interface {
	// Open the checkpoint of which that is the digest, verified. The reader closes it.
	Open(ctx context.Context, s vee.Seed, progress func(vee.Progress)) (io.ReadCloser, error)
}

// noSeeds is a host that can fetch none.
type noSeeds struct{}

func (noSeeds) Open(context.Context, vee.Seed, func(vee.Progress)) (io.ReadCloser, error) {
	return nil, fault.New(fault.Unsupported, "this host fetches no checkpoints of other VEEs")
}

// noCheckpoints is a host that has none.
type noCheckpoints struct{}

func (noCheckpoints) Newest(context.Context, vee.ID) (io.ReadCloser, int, bool, error) {
	return nil, 0, false, nil
}

// fromCheckpoint is how often, one after the other, a guest is started from the same
// checkpoint: what it does then may be what it does each time.
const fromCheckpoint = 3

// Local VEE of this host, for whoever tracks its VE.
type Local struct {
	vhi.Assignment
	Running, Gone bool
}

// Locals are all VEEs of this host.
func (t *Tracker) Locals() (list []Local) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range t.vees {
		v.mu.Lock()
		a, c := v.want, v.seen.Condition
		runs := a.Power == vhi.Running && c == hypervisor.Running && !v.part.Undecided()
		v.mu.Unlock()
		if a.Power != "" {
			list = append(list, Local{a, runs, a.Power == vhi.Absent && c == hypervisor.Absent})
		}
	}
	return list
}

// stillness of a guest for a checkpoint.
type stillness struct {
	n    int
	take chan chan error // asks for the snapshot
	thaw chan struct{}   // closed by goOn
	once sync.Once
	over chan struct{} // closed when it goes on
}

func (s *stillness) goOn() { s.once.Do(func() { close(s.thaw) }) }

// snapshotOf checkpoint n, as the driver knows it. People's snapshots begin with a letter or a
// digit that they have chosen; none is likely to be called so.
func snapshotOf(n int) string { return fmt.Sprintf("checkpoint.%d", n) }

// Freeze stops the vCPUs of a guest for checkpoint n until Thaw, or until nothing was said
// for limit. What is assigned meanwhile is done after that.
func (t *Tracker) Freeze(ctx context.Context, id vee.ID, e vee.Epoch, n int, limit time.Duration) error {
	v, d, err := t.storage(id, "checkpoint of")
	if err != nil {
		return err
	}
	if _, can := d.(hypervisor.Packer); !can {
		return fault.New(fault.Unsupported, "checkpoint of VEE %s: its host's driver has none that could be kept on another host", id)
	}
	s := &stillness{n: n, take: make(chan chan error), thaw: make(chan struct{}), over: make(chan struct{})}
	frozen := make(chan error, 2) // that it stands, and how it went
	t.mu.Lock()
	run := t.ctx
	if run == nil || run.Err() != nil {
		t.mu.Unlock()
		return fault.New(fault.Unavailable, "this host's agent is stopping")
	}
	t.wg.Add(1) // while Run waits for nobody yet
	t.mu.Unlock()
	go func() {
		defer t.wg.Done()
		defer close(s.over)
		// The order is this goroutine's, and not the call's: the guest stands still beyond it.
		order, cancel := context.WithTimeout(run, limit)
		defer cancel()
		frozen <- v.ask(order, snapshot, func(context.Context) error { return v.stand(run, e, s, d, limit, frozen) })
	}()
	select {
	case err := <-frozen:
		return err
	case <-ctx.Done():
		s.goOn()
		return fault.New(fault.Timeout, "checkpoint of VEE %s: another step is under way: %w", id, ctx.Err())
	}
}

// stand still for a checkpoint; it is done between the steps of the VEE's loop.
func (v *tracked) stand(ctx context.Context, e vee.Epoch, s *stillness, d hypervisor.Snapshotter, limit time.Duration, frozen chan<- error) error {
	a, err := v.current(e)
	if err != nil {
		return err
	}
	if o, err := v.t.cfg.Driver.Inspect(ctx, a.VEE); err != nil || a.Power != vhi.Running || o.Condition != hypervisor.Running {
		return errors.Join(err, fault.New(fault.WrongState, "VEE %s does not run", a.VEE))
	}
	if err := v.t.cfg.Driver.Pause(ctx, a.VEE, a.Epoch); err != nil {
		return err
	}
	v.mu.Lock()
	v.still = s
	v.mu.Unlock()
	frozen <- nil
	for going := true; going; {
		timer := time.NewTimer(limit)
		select {
		case <-s.thaw:
			going = false
		case <-ctx.Done():
			going = false
		case <-timer.C:
			v.t.cfg.Log.Warn("a guest goes on: nobody has said so since it was stopped for a checkpoint", "vee", a.VEE, "checkpoint", s.n)
			going = false
		case done := <-s.take:
			done <- v.save(ctx, a, d, s.n)
		}
		timer.Stop()
	}
	v.mu.Lock()
	v.still = nil
	v.mu.Unlock()
	return v.t.cfg.Driver.Resume(context.WithoutCancel(ctx), a.VEE, a.Epoch)
}

// save a guest that stands still. Its process is another afterwards, so this host must have
// the right to run it now.
func (v *tracked) save(ctx context.Context, a vhi.Assignment, d hypervisor.Snapshotter, n int) error {
	if err := v.may(ctx, wake, a); err != nil {
		return err
	}
	g, err := v.guest(ctx, a)
	if err == nil {
		_, err = d.Snapshot(ctx, g, snapshotOf(n), true)
	}
	return coded(err)
}

// stillFor checkpoint n.
func (t *Tracker) stillFor(id vee.ID, n int) (*stillness, error) {
	if v := t.find(id); v != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.still != nil && v.still.n == n {
			return v.still, nil
		}
	}
	return nil, fault.New(fault.WrongState, "VEE %s does not stand still for checkpoint %d", id, n)
}

// Take what a guest is that stands still for checkpoint n.
func (t *Tracker) Take(ctx context.Context, id vee.ID, n int) error {
	s, err := t.stillFor(id, n)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	select {
	case s.take <- done:
	case <-s.over:
		return fault.New(fault.WrongState, "VEE %s has gone on before checkpoint %d was taken", id, n)
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Thaw a guest that stands still for checkpoint n, and wait until it goes on. One that does
// goes on already.
func (t *Tracker) Thaw(ctx context.Context, id vee.ID, n int) error {
	v := t.find(id)
	if v == nil {
		return nil
	}
	v.mu.Lock()
	s := v.still
	if s == nil || s.n != n {
		v.mu.Unlock()
		return nil
	}
	s.goOn()
	v.mu.Unlock()
	select {
	case <-s.over:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// Pack writes what Take has saved.
func (t *Tracker) Pack(ctx context.Context, id vee.ID, n int, w io.Writer) error {
	p, can := t.cfg.Driver.(hypervisor.Packer)
	if !can {
		return fault.New(fault.Unsupported, "checkpoint of VEE %s: its host's driver has none", id)
	}
	return coded(p.Pack(ctx, id, snapshotOf(n), w))
}

// Forget what Take has saved, or was to save.
func (t *Tracker) Forget(ctx context.Context, id vee.ID, e vee.Epoch, n int) error {
	if err := t.DeleteSnapshot(ctx, id, e, snapshotOf(n)); err != nil && !fault.Has(err, fault.NotFound) {
		return err
	}
	return nil
}

// unpack makes an absent guest from its newest checkpoint, and reports whether there is one.
// Where there is one that cannot be had, that is an error while it may still come: a VEE that
// was to go on from what it has done is not started without it at once.
func (v *tracked) unpack(ctx context.Context, a vhi.Assignment) (bool, error) {
	p, can := v.t.cfg.Driver.(hypervisor.Packer)
	v.mu.Lock()
	tried := v.unpacked
	v.mu.Unlock()
	if !can || a.Descriptor.Reliability.From != vee.FromCheckpoint || tried >= fromCheckpoint {
		return false, nil
	}
	content, n, found, err := v.t.cfg.Checkpoints.Newest(ctx, a.VEE)
	if !found {
		return false, nil
	}
	v.mu.Lock()
	v.unpacked++
	v.mu.Unlock()
	if err != nil {
		return false, err
	}
	defer content.Close()
	g, err := v.guest(ctx, a)
	if err != nil {
		return false, err
	}
	if err := p.Unpack(ctx, g, content); err != nil {
		return false, fmt.Errorf("checkpoint %d: %w", n, err)
	}
	v.t.cfg.Log.Info("a VEE goes on from a checkpoint", "vee", a.VEE, "checkpoint", n)
	return true, nil
}

// sow makes an absent guest whose disks begin with another VEE's, and reports whether they do.
func (v *tracked) sow(ctx context.Context, a vhi.Assignment) (bool, error) {
	s := a.Descriptor.Seed
	if s == nil {
		return false, nil
	}
	p, can := v.t.cfg.Driver.(hypervisor.Packer)
	if !can {
		return false, fault.New(fault.Unsupported, "its disks begin with a checkpoint of VEE %s, which this host's driver cannot read", s.Of)
	}
	g, err := v.guest(ctx, a)
	if err != nil {
		return false, err
	}
	content, err := v.t.cfg.Seeds.Open(ctx, *s, v.setProgress)
	if err != nil {
		return false, fmt.Errorf("fetch the checkpoint of VEE %s: %w", s.Of, err)
	}
	defer content.Close()
	if err := p.Seed(ctx, g, content); err != nil {
		return false, fmt.Errorf("the checkpoint of VEE %s: %w", s.Of, err)
	}
	v.t.cfg.Log.Info("a VEE begins with the disks of another", "vee", a.VEE, "of", s.Of, "at", s.At)
	return true, nil
}

// rewind reports whether a guest that has ended by itself is to go on from its newest
// checkpoint: then nothing is left of it but that. One that switched itself off was done.
func (v *tracked) rewind(ctx context.Context, a vhi.Assignment) (bool, error) {
	v.mu.Lock()
	ended := v.hung || v.seen.Condition == hypervisor.Crashed && v.seen.Reason != hypervisor.ReasonPoweredOff
	tried := v.unpacked
	v.mu.Unlock()
	// A persistent disk is never given up for an older one without being asked.
	lasting := slices.ContainsFunc(a.Descriptor.Disks, func(d vee.Disk) bool { return d.Persistent })
	if a.Descriptor.Reliability.From != vee.FromCheckpoint || !ended || tried >= fromCheckpoint || lasting {
		return false, nil
	}
	content, _, found, err := v.t.cfg.Checkpoints.Newest(ctx, a.VEE)
	if !found || err != nil { // then its disks are what there is
		return false, nil //nolint:nilerr // its host logs it
	}
	content.Close()
	if err := v.t.cfg.Driver.Destroy(ctx, a.VEE, a.Epoch); err != nil {
		return false, err
	}
	return true, nil
}

// noWake notes that a guest could not be woken, and gives the memory of its checkpoint up when
// that has gone wrong too often: its disks are of the same moment, and it boots from them.
func (v *tracked) noWake(ctx context.Context, a vhi.Assignment, err error) error {
	v.mu.Lock()
	v.asleep++
	giveUp := v.unpacked > 0 && v.asleep >= fromCheckpoint
	if giveUp {
		v.asleep = 0
	}
	v.mu.Unlock()
	if !giveUp {
		return err
	}
	v.t.cfg.Log.Warn("the memory of a checkpoint cannot be loaded and is given up", "vee", a.VEE, "err", err)
	return v.t.cfg.Driver.Stop(ctx, a.VEE, a.Epoch, 0)
}
