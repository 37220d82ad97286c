package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

// powerButton is how often Stop presses it: a guest that is still booting misses it.
const powerButton = time.Second

// wrongState says which command does not go with which condition.
func (g *guest) wrongState(command string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cond == hypervisor.Absent {
		return fmt.Errorf("%s %s: %w", command, g.id, hypervisor.ErrNotFound)
	}
	return fmt.Errorf("%s %s, which is %s: %w", command, g.id, g.cond, hypervisor.ErrWrongState)
}

// Prepare implements hypervisor.Driver. Its commit point is the record. On a guest at rest
// it makes disks that are new and grows those whose size grew; the image of a disk cannot
// change. A guest that runs or is suspended only gets the newer epoch.
func (d *Driver) Prepare(ctx context.Context, gs hypervisor.Guest) error {
	g, ctx, done, err := d.command(ctx, gs.ID, gs.Epoch)
	if err == nil {
		defer done()
		switch g.condition() {
		case hypervisor.Absent:
			err = g.create(ctx, gs)
		case hypervisor.Stopped, hypervisor.Crashed:
			err = g.update(ctx, gs)
		}
	}
	if err != nil {
		return disk.NoSpace(fmt.Errorf("prepare %s: %w", gs.ID, err))
	}
	return nil
}

func (d *Driver) check(gs hypervisor.Guest) error {
	if err := gs.Check(); err != nil {
		return err
	}
	if gs.Descriptor.Raw[Name] != "" && !d.cfg.AllowRaw {
		return fmt.Errorf("%s has raw arguments for QEMU: %w: this host does not allow them", gs.ID, hypervisor.ErrUnsupported)
	}
	return nil
}

func (g *guest) create(ctx context.Context, gs hypervisor.Guest) (err error) {
	if err := g.d.check(gs); err != nil {
		return err
	}
	// A folder without a record is a rest of an earlier failure.
	if err := os.RemoveAll(g.dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(g.dir)
		}
	}()
	if err := os.Mkdir(g.dir, 0o700); err != nil {
		return err
	}
	for _, k := range disk.Plan(gs) {
		if err := k.Make(ctx, g.d.cfg.ImageTool, g.dir); err != nil {
			return err
		}
	}
	if len(gs.Descriptor.Context) > 0 {
		if err := disk.MakeSeed(filepath.Join(g.dir, disk.SeedFile), gs.Descriptor.Context); err != nil {
			return err
		}
	}
	// The folder's name before its content: a record that is there names a whole guest.
	if err := durable.SyncDir(filepath.Dir(g.dir)); err != nil {
		return err
	}
	uid := g.d.users.take(g.id, g.d.token(g.id))
	if err := g.save(func(r *record) {
		*r = record{Guest: gs, UID: uid, Want: hypervisor.Stopped}
	}); err != nil {
		return err
	}
	g.setCondition(hypervisor.Stopped, "")
	return nil
}

// update a guest at rest to a newer description.
func (g *guest) update(ctx context.Context, gs hypervisor.Guest) error {
	old := g.record().Guest
	if old.ID == "" { // its disks would be taken for new ones
		return fmt.Errorf("its record on disk is damaged: %w; restore %s, or destroy the VEE",
			hypervisor.ErrWrongState, filepath.Join(g.dir, recordFile))
	}
	if reflect.DeepEqual(old, gs) {
		return nil
	}
	if err := g.d.check(gs); err != nil {
		return err
	}
	if err := disk.Update(ctx, g.d.cfg.ImageTool, g.dir, old, gs, g.record().topOf); err != nil {
		return err
	}
	return g.save(func(r *record) {
		r.Guest = gs
		r.layers = r.kept(disk.Plan(gs))
	})
}

// Start implements hypervisor.Driver. Its commit point is the record that names the
// process; from there a crash of the driver ends in a guest that runs.
func (d *Driver) Start(ctx context.Context, gs hypervisor.Guest) error {
	g, ctx, done, err := d.command(ctx, gs.ID, gs.Epoch)
	if err != nil {
		return fmt.Errorf("start %s: %w", gs.ID, err)
	}
	defer done()
	switch g.condition() {
	case hypervisor.Running:
		return nil
	case hypervisor.Stopped, hypervisor.Crashed:
	default:
		return g.wrongState("start")
	}
	if err := g.start(ctx, gs); err != nil {
		return disk.NoSpace(fmt.Errorf("start %s: %w", gs.ID, err))
	}
	return nil
}

func (g *guest) start(ctx context.Context, gs hypervisor.Guest) error {
	if err := g.update(ctx, gs); err != nil {
		return err
	}
	if err := g.tidy(ctx); err != nil { // it costs space only
		g.d.cfg.Log.Warn("cannot merge the layers of disks", "vee", g.id, "error", err)
	}
	before := g.record().Want
	v, err := g.launch(ctx, nil, hypervisor.Running)
	if err == nil && gs.Descriptor.MemoryMax > gs.Descriptor.Memory {
		err = v.setBalloon(ctx, gs.Descriptor.Memory) // the guest's driver fills it when it comes up
	}
	if err == nil {
		err = v.cont(ctx)
	}
	if err != nil {
		if v != nil {
			err = errors.Join(err, v.end(context.WithoutCancel(ctx)))
		}
		return errors.Join(err, g.save(func(r *record) { r.Want, r.Process = before, nil }))
	}
	return nil
}

// cont lets the vCPUs run, after which the guest's condition is its own.
func (v *vm) cont(ctx context.Context) error {
	if err := v.do(ctx, "cont", nil, nil); err != nil {
		return err
	}
	v.become("")
	return v.refresh(ctx)
}

// Pause implements hypervisor.Driver.
func (d *Driver) Pause(ctx context.Context, id vee.ID, e vee.Epoch) error {
	return d.steer(ctx, id, e, "pause", "stop", hypervisor.Paused, hypervisor.Running)
}

// Resume implements hypervisor.Driver. A guest that was sent and not taken runs here again.
func (d *Driver) Resume(ctx context.Context, id vee.ID, e vee.Epoch) error {
	if d.guest(id).condition() == hypervisor.Sent {
		return d.takeBack(ctx, id, e)
	}
	return d.steer(ctx, id, e, "resume", "cont", hypervisor.Running, hypervisor.Paused, hypervisor.Halted)
}

// steer the vCPUs by one QMP command.
func (d *Driver) steer(ctx context.Context, id vee.ID, e vee.Epoch, name, command string, to hypervisor.Condition, from ...hypervisor.Condition) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return fmt.Errorf("%s %s: %w", name, id, err)
	}
	defer done()
	c := g.condition()
	if c == to {
		return nil
	}
	v := g.process()
	if v == nil || !slices.Contains(from, c) {
		return g.wrongState(name)
	}
	if err = v.do(ctx, command, nil, nil); err == nil {
		// The vCPUs first: between the two a crash ends in a guest that runs.
		if err = g.save(func(r *record) { r.Want = to }); err == nil {
			err = v.refresh(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", name, id, err)
	}
	return nil
}

// process of the guest, nil when there is none.
func (g *guest) process() *vm {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.vm
}

// Stop implements hypervisor.Driver. Its commit point is the record that wants the guest
// stopped: a crash after it, and the next driver ends the process without grace.
func (d *Driver) Stop(ctx context.Context, id vee.ID, e vee.Epoch, grace time.Duration) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return fmt.Errorf("stop %s: %w", id, err)
	}
	defer done()
	c := g.condition()
	switch c {
	case hypervisor.Absent:
		return g.wrongState("stop")
	case hypervisor.Stopped:
		return nil
	}
	if err := g.stop(ctx, c, grace); err != nil {
		return fmt.Errorf("stop %s: %w", id, err)
	}
	return nil
}

func (g *guest) stop(ctx context.Context, c hypervisor.Condition, grace time.Duration) error {
	err := g.save(func(r *record) { r.Want, r.Reason = hypervisor.Stopped, "" })
	if err != nil && !errors.Is(err, hypervisor.ErrNoSpace) {
		return err // a full disk must not keep anything from being stopped
	}
	if v := g.process(); v != nil {
		v.become(hypervisor.Stopped)
		if grace > 0 && c != hypervisor.Halted {
			if err := v.shutdown(ctx, c, grace); err != nil {
				return err
			}
		}
		if err := v.end(ctx); err != nil {
			return err
		}
	}
	if err := durable.Remove(filepath.Join(g.dir, memoryFile)); err != nil {
		return err
	}
	g.setCondition(hypervisor.Stopped, "")
	return nil
}

// shutdown asks the guest to, and waits until it has or the grace is over. A paused guest
// runs again for that.
func (v *vm) shutdown(ctx context.Context, c hypervisor.Condition, grace time.Duration) error {
	if c == hypervisor.Paused {
		if err := v.do(ctx, "cont", nil, nil); err != nil {
			return nil // then by force
		}
	}
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	again := time.NewTicker(powerButton)
	defer again.Stop()
	for {
		if err := v.do(ctx, "system_powerdown", nil, nil); err != nil && ctx.Err() == nil {
			return nil // it has ended, or does not answer
		}
		select {
		case <-v.ended:
			return nil
		case <-deadline.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for its shutdown: %w", context.Cause(ctx))
		case <-again.C:
		}
	}
}

// Destroy implements hypervisor.Driver. Its commit point is the removal of the record:
// after a crash the next driver ends the process and deletes the rest.
func (d *Driver) Destroy(ctx context.Context, id vee.ID, e vee.Epoch) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return fmt.Errorf("destroy %s: %w", id, err)
	}
	defer done()
	if err := g.destroy(ctx); err != nil {
		return fmt.Errorf("destroy %s: %w", id, err)
	}
	return nil
}

func (g *guest) destroy(ctx context.Context) error {
	if g.condition() == hypervisor.Absent {
		return os.RemoveAll(g.dir)
	}
	if err := durable.Remove(filepath.Join(g.dir, recordFile)); err != nil {
		return err
	}
	if v := g.process(); v != nil {
		v.become(hypervisor.Stopped)
		if err := v.end(ctx); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(g.dir); err != nil {
		return err
	}
	g.d.users.free(g.id)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rec = record{}
	g.set(hypervisor.Absent, "")
	return nil
}
