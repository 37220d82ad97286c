package vet

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Live changes are level-triggered as everything here: a guest that runs is fitted to its
// assignment after each step and each newer assignment. Snapshots are calls, and the VEE's
// own loop carries them out between its steps, so that neither sees the other half done.

// Further steps, that no condition asks for.
const (
	resize   step = "resize"
	snapshot step = "snapshot"
	restore  step = "restore"
	guarding step = "put under guard"
)

// fit of a guest that runs to an assignment.
type fit struct {
	epoch   vee.Epoch
	seq     uint64
	waiting []string // what waits for the next boot
}

// misfit reports whether the guest is to be resized: it has run into a newer assignment.
func (v *tracked) misfit(a vhi.Assignment, c hypervisor.Condition) bool {
	if _, can := v.t.cfg.Driver.(hypervisor.Resizer); !can || c != hypervisor.Running && c != hypervisor.Paused || a.Power == "" {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.fit.epoch != a.Epoch || v.fit.seq != a.Seq
}

func (v *tracked) resize(ctx context.Context, a vhi.Assignment) error {
	waiting, err := v.t.cfg.Driver.(hypervisor.Resizer).Resize(ctx, a.VEE, a.Epoch, a.Descriptor)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.fit = fit{a.Epoch, a.Seq, waiting}
	v.mu.Unlock()
	v.t.cfg.Changed()
	return nil
}

// order to the loop of a VEE.
type order struct {
	ctx  context.Context
	step step
	do   func(context.Context) error
	done chan error // of size one
}

// ask the loop to do something between its steps, and wait for it.
func (v *tracked) ask(ctx context.Context, s step, do func(context.Context) error) error {
	q := order{ctx, s, do, make(chan error, 1)}
	select {
	case v.orders <- q:
	case <-v.over:
		return fault.New(fault.NotFound, "VEE %s is not on this host", v.assigned().VEE)
	case <-ctx.Done():
		return fault.New(fault.Timeout, "VEE %s: another step is under way: %w", v.assigned().VEE, ctx.Err())
	}
	// Begun, it ends: what a snapshot stops, it lets go on.
	return coded(<-q.done)
}

// obey an order.
func (v *tracked) obey(q order) {
	v.mu.Lock()
	v.doing, v.progress = q.step, nil
	v.fit = fit{}
	v.mu.Unlock()
	v.t.cfg.Changed()
	err := q.do(q.ctx)
	v.mu.Lock()
	v.doing, v.progress = rest, nil
	v.mu.Unlock()
	v.nudge()
	v.t.cfg.Changed()
	q.done <- err
}

func (t *Tracker) storage(id vee.ID, what string) (*tracked, hypervisor.Snapshotter, error) {
	v := t.find(id)
	s, can := t.cfg.Driver.(hypervisor.Snapshotter)
	switch {
	case v == nil || v.gone():
		return nil, nil, fault.New(fault.NotFound, "%s VEE %s: it is not on this host", what, id)
	case !can:
		return nil, nil, fault.New(fault.Unsupported, "%s VEE %s: its host's driver has no snapshots", what, id)
	}
	return v, s, nil
}

// current refuses an epoch that is older than the assignment's.
func (v *tracked) current(e vee.Epoch) (vhi.Assignment, error) {
	a := v.assigned()
	if e.Compare(a.Epoch) < 0 {
		return a, fault.New(fault.StaleEpoch, "VEE %s: epoch %s is older than %s, which is obeyed here", a.VEE, e, a.Epoch)
	}
	return a, nil
}

// CreateSnapshot of a VEE; see vhi.Storage.
func (t *Tracker) CreateSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string, memory bool) (s vee.Snapshot, err error) {
	v, d, err := t.storage(id, "snapshot of")
	if err != nil {
		return s, err
	}
	if err := hypervisor.CheckSnapshotName(name); err != nil {
		return s, fault.New(fault.Malformed, "%w", err)
	}
	err = v.ask(ctx, snapshot, func(ctx context.Context) error {
		a, err := v.current(e)
		if err != nil {
			return err
		}
		g, err := v.guest(ctx, a)
		if err == nil {
			s, err = d.Snapshot(ctx, g, name, memory)
		}
		return err
	})
	return s, err
}

// Snapshots of a VEE, oldest first.
func (t *Tracker) Snapshots(ctx context.Context, id vee.ID) ([]vee.Snapshot, error) {
	_, d, err := t.storage(id, "snapshots of")
	if err != nil {
		return nil, err
	}
	list, err := d.Snapshots(ctx, id)
	return list, coded(err)
}

// RestoreSnapshot of a VEE. What it becomes by that, the loop brings to what is assigned.
func (t *Tracker) RestoreSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error {
	v, d, err := t.storage(id, "restore")
	if err != nil {
		return err
	}
	return v.ask(ctx, restore, func(ctx context.Context) error {
		a, err := v.current(e)
		if err != nil {
			return err
		}
		if err := d.Restore(ctx, id, a.Epoch, name); err != nil {
			return err
		}
		o, err := t.cfg.Driver.Inspect(ctx, id)
		if err == nil && a.Power == vhi.Stopped && o.Condition == hypervisor.Suspended {
			return t.cfg.Driver.Stop(ctx, id, a.Epoch, 0) // the disks alone: nobody wants it to run
		}
		return err
	})
}

// DeleteSnapshot of a VEE.
func (t *Tracker) DeleteSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error {
	v, d, err := t.storage(id, "delete a snapshot of")
	if err != nil {
		return err
	}
	return v.ask(ctx, rest, func(ctx context.Context) error {
		a, err := v.current(e)
		if err != nil {
			return err
		}
		return d.DeleteSnapshot(ctx, id, a.Epoch, name)
	})
}

// Disks of a VEE.
func (t *Tracker) Disks(ctx context.Context, id vee.ID) ([]vee.DiskInfo, error) {
	x, can := t.cfg.Driver.(hypervisor.DiskExporter)
	if !can {
		return nil, fault.New(fault.Unsupported, "disks of VEE %s: its host's driver does not tell of them", id)
	}
	list, err := x.Disks(ctx, id)
	return list, coded(err)
}

// ExportDisk of a VEE; see vhi.Storage.
func (t *Tracker) ExportDisk(ctx context.Context, id vee.ID, disk, from string) (io.ReadWriteCloser, error) {
	x, can := t.cfg.Driver.(hypervisor.DiskExporter)
	if !can {
		return nil, fault.New(fault.Unsupported, "export of VEE %s: its host's driver gives no disks out", id)
	}
	e, err := x.Export(ctx, id, disk, from)
	if err != nil {
		err = coded(err)
		if f := fault.From(err); errors.Is(err, hypervisor.ErrWrongState) {
			return nil, f.Try("reservoir vee shutdown %s, or reservoir vee snapshot create %s NAME, and export with --snapshot NAME", id, id)
		}
		return nil, err
	}
	s, err := vhi.NewExport(vhi.ExportHeader{Size: e.Size, Digest: e.Digest}, e)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("export disk %q of VEE %s: %w", disk, id, err), e.Close())
	}
	return s, nil
}
