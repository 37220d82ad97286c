package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

// migrationPoll is how often QEMU is asked how far it is.
const migrationPoll = 20 * time.Millisecond

// suspendMargin is left free on the disk when memory is saved.
const suspendMargin = 64 * vee.MiB

// Suspend implements hypervisor.Driver. Memory goes through a descriptor that is sent
// along, since QEMU may open no file and start no program. Its commit point is the record
// that wants the guest suspended, written when all of memory is on disk.
func (d *Driver) Suspend(ctx context.Context, id vee.ID, e vee.Epoch, progress func(vee.Progress)) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return fmt.Errorf("suspend %s: %w", id, err)
	}
	defer done()
	c, v := g.condition(), g.process()
	switch {
	case c == hypervisor.Suspended:
		return nil
	case v == nil, c != hypervisor.Running && c != hypervisor.Paused:
		return g.wrongState("suspend")
	}
	if progress == nil {
		progress = func(vee.Progress) {}
	}
	if err := g.suspend(ctx, v, c, progress); err != nil {
		return disk.NoSpace(fmt.Errorf("suspend %s: %w", id, err))
	}
	return nil
}

func (g *guest) suspend(ctx context.Context, v *vm, before hypervisor.Condition, progress func(vee.Progress)) (err error) {
	// What the process holds now is the most that is written: pages of zeros are not.
	free, err := disk.Free(g.dir)
	if err != nil {
		return err
	}
	if need := vee.Bytes(v.rss()) + suspendMargin; free < need {
		return fmt.Errorf("%w: its memory may take %s, and %s are free", hypervisor.ErrNoSpace, need, free)
	}
	temporary := filepath.Join(g.dir, memoryFile+".new")
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()

	// A failure, also a cancelled context, leaves it as it was.
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), monitorPatience)
		defer cancel()
		var back error
		if before == hypervisor.Running {
			back = v.abandonSave(ctx)
		}
		_ = v.refresh(ctx)
		err = errors.Join(err, back, os.Remove(temporary))
	}()
	if err := v.do(ctx, "stop", nil, nil); err != nil {
		return err
	}
	if err := v.save(ctx, file, progress); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(temporary, filepath.Join(g.dir, memoryFile)); err != nil {
		return err
	}
	if err := g.save(func(r *record) { r.Want, r.MemoryFrom = hypervisor.Suspended, "" }); err != nil {
		return err
	}
	v.become(hypervisor.Suspended)
	if err := v.end(context.WithoutCancel(ctx)); err != nil {
		g.d.cfg.Log.Error("a suspended guest's QEMU does not end", "vee", g.id, "error", err)
	}
	return nil
}

// save the memory of a guest whose vCPUs stand still.
func (v *vm) save(ctx context.Context, file *os.File, progress func(vee.Progress)) (err error) {
	// As fast as the disk is: there is no other traffic to spare.
	if err := v.do(ctx, "migrate-set-parameters", object{"max-bandwidth": int64(1) << 40}, nil); err != nil {
		return err
	}
	if err := v.doWithFile(ctx, "getfd", object{"fdname": "memory"}, file, nil); err != nil {
		return err
	}
	if err := v.do(ctx, "migrate", object{"uri": "fd:memory"}, nil); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), monitorPatience)
			defer cancel()
			_ = v.do(ctx, "migrate_cancel", nil, nil) // one that has ended is not bothered by it
			_ = v.migrated(ctx, func(vee.Progress) {})
		}
	}()
	return v.migrated(ctx, progress)
}

// abandonSave lets the vCPUs of a guest run whose memory was to be saved, wherever that was
// cut short. QEMU refuses "cont" while it tidies up after a migration, so that is waited
// for.
func (v *vm) abandonSave(ctx context.Context) error {
	_ = v.do(ctx, "migrate_cancel", nil, nil) // none, or one that has ended, is not bothered by it
	for {
		status, err := v.status(ctx)
		switch {
		case err != nil:
			return err
		case status == "running":
			return nil // as it was before the migration
		case status != "finish-migrate":
			return v.do(ctx, "cont", nil, nil)
		}
		select {
		case <-time.After(migrationPoll):
		case <-ctx.Done():
			return fmt.Errorf("its memory is still being saved: %w", context.Cause(ctx))
		}
	}
}

// migrated waits for the end of a migration.
func (v *vm) migrated(ctx context.Context, progress func(vee.Progress)) error {
	tick := time.NewTicker(migrationPoll)
	defer tick.Stop()
	for {
		var m struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
			RAM    struct {
				Total     int64 `json:"total"`
				Remaining int64 `json:"remaining"`
			} `json:"ram"`
		}
		if err := v.do(ctx, "query-migrate", nil, &m); err != nil {
			return err
		}
		if m.RAM.Total > 0 {
			progress(vee.Progress{Done: m.RAM.Total - m.RAM.Remaining, Total: m.RAM.Total, Unit: "bytes", What: "memory"})
		}
		switch m.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("save its memory: %s %s", m.Status, m.Error)
		}
		select {
		case <-tick.C:
		case <-v.ended:
			return errors.New("save its memory: its QEMU ended")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Wake implements hypervisor.Driver. Of g only the places of images and NICs count: the
// description is part of the saved memory. Its commit point is the record that wants the
// guest running, written when its memory is loaded and before its vCPUs run: never can old
// memory meet newer disks.
func (d *Driver) Wake(ctx context.Context, gs hypervisor.Guest) error {
	g, ctx, done, err := d.command(ctx, gs.ID, gs.Epoch)
	if err != nil {
		return fmt.Errorf("wake %s: %w", gs.ID, err)
	}
	defer done()
	switch g.condition() {
	case hypervisor.Running:
		return nil
	case hypervisor.Suspended:
	default:
		return g.wrongState("wake")
	}
	if err := g.wake(ctx, gs, hypervisor.Running); err != nil {
		return disk.NoSpace(fmt.Errorf("wake %s: %w", gs.ID, err))
	}
	return nil
}

// wake to a guest that runs or is paused.
func (g *guest) wake(ctx context.Context, gs hypervisor.Guest, to hypervisor.Condition) (err error) {
	memory := filepath.Join(g.dir, g.record().memory())
	file, err := os.Open(memory)
	if err != nil {
		return err
	}
	defer file.Close()
	g.mu.Lock()
	g.rec.Guest.Images, g.rec.Guest.NICs = gs.Images, gs.NICs
	g.mu.Unlock()
	v, err := g.launch(ctx, file, hypervisor.Suspended)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // before the commit point it is suspended again, after it crashed
			err = errors.Join(err, v.end(context.WithoutCancel(ctx)))
		}
	}()
	if err := v.loaded(ctx); err != nil {
		if words := g.lastWords(); words != "" {
			err = fmt.Errorf("%w; QEMU says: %s", err, words)
		}
		return err
	}
	if err := g.save(func(r *record) { r.Want, r.MemoryFrom = to, "" }); err != nil {
		return err
	}
	v.become(hypervisor.Crashed)
	if err := durable.Remove(filepath.Join(g.dir, memoryFile)); err != nil { // a snapshot's stays
		return err
	}
	if to == hypervisor.Paused {
		v.become("")
		return v.refresh(ctx)
	}
	return v.cont(ctx)
}

// loaded waits until saved memory has been read.
func (v *vm) loaded(ctx context.Context) error {
	tick := time.NewTicker(migrationPoll)
	defer tick.Stop()
	for {
		status, err := v.status(ctx)
		if err != nil {
			return fmt.Errorf("load its memory: %w", err)
		}
		if status != "inmigrate" {
			return nil
		}
		select {
		case <-tick.C:
		case <-v.ended:
			return errors.New("load its memory: its QEMU ended")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
