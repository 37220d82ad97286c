package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

var _ hypervisor.Snapshotter = (*Driver)(nil)

// Snapshot implements hypervisor.Snapshotter. It is always taken at rest: a guest that runs
// is suspended for it and woken again, so that a crash at any instruction leaves a guest
// that is suspended at the worst, and which is woken as any other (layers.go names the
// commit point; docs/adr/0011-snapshots.md says why).
func (d *Driver) Snapshot(ctx context.Context, gs hypervisor.Guest, name string, memory bool) (vee.Snapshot, error) {
	g, ctx, done, err := d.command(ctx, gs.ID, gs.Epoch)
	if err != nil {
		return vee.Snapshot{}, fmt.Errorf("snapshot %s: %w", gs.ID, err)
	}
	defer done()
	s, err := g.snapshot(ctx, gs, name, memory)
	if err != nil {
		return vee.Snapshot{}, disk.NoSpace(fmt.Errorf("snapshot %s: %w", gs.ID, err))
	}
	return g.told(s), nil
}

func (g *guest) snapshot(ctx context.Context, gs hypervisor.Guest, name string, memory bool) (s snapshot, err error) {
	if err := hypervisor.CheckSnapshotName(name); err != nil {
		return s, err
	}
	c, v := g.condition(), g.process()
	runs := v != nil && (c == hypervisor.Running || c == hypervisor.Paused)
	switch {
	case c == hypervisor.Absent:
		return s, hypervisor.ErrNotFound
	case v != nil && !runs:
		return s, fmt.Errorf("it is %s: %w", c, hypervisor.ErrWrongState)
	case memory && !runs && c != hypervisor.Suspended:
		return s, fmt.Errorf("it is %s and has no memory: %w", c, hypervisor.ErrWrongState)
	}
	if _, taken := g.record().snapshot(name); taken {
		return s, fmt.Errorf("%q: %w", name, hypervisor.ErrExists)
	}
	if runs {
		if err := g.suspend(ctx, v, c, func(vee.Progress) {}); err != nil {
			return s, err
		}
		// Whatever becomes of the snapshot, and of who asked for it, the guest goes on.
		defer func() {
			back := g.wake(context.WithoutCancel(ctx), gs, c)
			if back != nil {
				back = fmt.Errorf("it is suspended now: %w", back)
			}
			err = errors.Join(err, back)
		}()
	}
	if s, err = g.freeze(ctx, name, memory); err == nil && runs {
		// No other time will come while it runs, and layers of snapshots that were deleted
		// would lie on each other for ever.
		if err := g.tidy(ctx); err != nil {
			g.d.cfg.Log.Warn("layers of snapshots that are gone stay", "vee", g.id, "error", err)
		}
	}
	return s, err
}

// freeze a guest at rest. The commit point is the record.
func (g *guest) freeze(ctx context.Context, name string, memory bool) (s snapshot, err error) {
	rec := g.record()
	next, chains := rec.freeze(disk.Plan(rec.Guest))
	s = snapshot{
		Snapshot: vee.Snapshot{
			Name: name, Memory: memory, Created: g.d.cfg.Now(), Disks: slices.Sorted(maps.Keys(chains)),
		},
		Layers: chains, Guest: rec.Guest, Machine: rec.Machine, CPU: rec.CPU, Accelerator: rec.Accelerator,
	}
	defer func() {
		if err != nil {
			g.sweepFiles()
		}
	}()
	if memory {
		s.MemoryFile = fmt.Sprintf("memory@%d.state", next.Frozen)
		// The same file by another name: it is only read from now on.
		if err := os.Link(filepath.Join(g.dir, rec.memory()), filepath.Join(g.dir, s.MemoryFile)); err != nil {
			return s, err
		}
	}
	if err := g.makeTops(ctx, next); err != nil {
		return s, err
	}
	next.Snapshots = append(next.Snapshots, s)
	return s, g.save(func(r *record) { r.layers = next })
}

// memory is the file that a suspended guest wakes from.
func (r record) memory() string { return cmp.Or(r.MemoryFrom, memoryFile) }

// told is what callers see of a snapshot.
func (g *guest) told(s snapshot) vee.Snapshot {
	t := s.Snapshot
	t.Size = g.used(s.MemoryFile)
	for _, chain := range s.Layers {
		t.Size += g.used(chain[0])
	}
	return t
}

// Snapshots implements hypervisor.Snapshotter.
func (d *Driver) Snapshots(_ context.Context, id vee.ID) ([]vee.Snapshot, error) {
	g, err := d.existing(id)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	all := []vee.Snapshot{}
	for _, s := range g.record().Snapshots {
		all = append(all, g.told(s))
	}
	return all, nil
}

// existing guest, with a process or without.
func (d *Driver) existing(id vee.ID) (*guest, error) {
	d.mu.Lock()
	g := d.guests[id]
	d.mu.Unlock()
	if g == nil || g.condition() == hypervisor.Absent {
		return nil, fmt.Errorf("%s: %w", id, hypervisor.ErrNotFound)
	}
	return g, nil
}

// Restore implements hypervisor.Snapshotter. Its commit point is the record that names the
// new tops: up to it the guest goes on as it was, after it the next driver ends its process.
func (d *Driver) Restore(ctx context.Context, id vee.ID, e vee.Epoch, name string) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return fmt.Errorf("restore %s: %w", id, err)
	}
	defer done()
	if err := g.restore(ctx, name); err != nil {
		return disk.NoSpace(fmt.Errorf("restore %s: %w", id, err))
	}
	return nil
}

func (g *guest) restore(ctx context.Context, name string) (err error) {
	rec := g.record()
	s, ok := rec.snapshot(name)
	if !ok || g.condition() == hypervisor.Absent {
		return fmt.Errorf("snapshot %q: %w", name, hypervisor.ErrNotFound)
	}
	next := rec.restore(s.Layers)
	next.MemoryFrom = s.MemoryFile
	defer g.sweepFiles() // what is given up, or was made in vain
	if err := g.makeTops(ctx, next); err != nil {
		return err
	}
	want := hypervisor.Stopped
	if s.Memory {
		want = hypervisor.Suspended
	}
	v := g.process()
	err = g.save(func(r *record) {
		epoch, images, nics := r.Guest.Epoch, r.Guest.Images, r.Guest.NICs
		r.layers, r.Want, r.Reason = next, want, ""
		r.Guest = s.Guest
		r.Guest.Epoch, r.Guest.Images, r.Guest.NICs = epoch, images, nics
		r.Machine, r.CPU, r.Accelerator = s.Machine, s.CPU, s.Accelerator
	})
	if err != nil {
		return err
	}
	if v != nil {
		v.become(want)
		if err := v.end(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	g.setCondition(want, "")
	return durable.Remove(filepath.Join(g.dir, memoryFile))
}

// DeleteSnapshot implements hypervisor.Snapshotter. Its commit point is the record.
func (d *Driver) DeleteSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return fmt.Errorf("delete a snapshot of %s: %w", id, err)
	}
	defer done()
	rec := g.record()
	if _, there := rec.snapshot(name); !there {
		return nil
	}
	next := rec.clone()
	next.Snapshots = slices.DeleteFunc(next.Snapshots, func(s snapshot) bool { return s.Name == name })
	err = g.save(func(r *record) { r.layers = next })
	if err == nil {
		g.sweepFiles()
		if g.process() == nil {
			err = g.tidy(ctx)
		}
	}
	if err != nil {
		return disk.NoSpace(fmt.Errorf("delete snapshot %q of %s: %w", name, id, err))
	}
	return nil
}
