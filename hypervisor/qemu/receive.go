package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/vee"
)

// What the destination of a live migration does.

// Receive implements hypervisor.Migrator. The record is written before the process is
// started and says what it waits for, so that a later driver can end it.
func (d *Driver) Receive(ctx context.Context, gs hypervisor.Guest, shape []byte) error {
	g, ctx, done, err := d.command(ctx, gs.ID, gs.Epoch)
	if err == nil {
		defer done()
		if g.condition() != hypervisor.Absent {
			return g.wrongState("receive")
		}
		err = g.receive(ctx, gs, shape)
	}
	if err != nil {
		return disk.NoSpace(fmt.Errorf("receive %s: %w", gs.ID, err))
	}
	return nil
}

func (g *guest) receive(ctx context.Context, gs hypervisor.Guest, shape []byte) (err error) {
	var from record
	if err := json.Unmarshal(shape, &from); err != nil {
		return fmt.Errorf("read the shape of its machine: %w", err)
	}
	if from.Accelerator != g.d.caps.Accelerator {
		return fmt.Errorf("it runs under %s there, and guests run under %s here: %w", from.Accelerator, g.d.caps.Accelerator, hypervisor.ErrUnsupported)
	}
	if err := g.create(ctx, gs); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.destroy(context.WithoutCancel(ctx)))
		}
	}()
	uid := g.record().UID
	if err := g.save(func(r *record) {
		*r = from
		r.Guest.ID, r.Guest.Epoch, r.Guest.Images, r.Guest.NICs = gs.ID, gs.Epoch, gs.Images, gs.NICs
		r.Guest.Descriptor.Context = gs.Descriptor.Context
		r.UID, r.Want, r.Process, r.Reason = uid, hypervisor.Incoming, nil, ""
		r.layers = layers{} // what is under a disk there becomes part of it here
	}); err != nil {
		return err
	}
	v, err := g.launch(ctx, nil, hypervisor.Incoming)
	if err != nil {
		return err
	}
	v.become("") // should it end, it crashed
	if err := v.do(ctx, "migrate-set-capabilities", object{"capabilities": []object{{"capability": "events", "state": true}}}, nil); err != nil {
		return err
	}
	if err := v.openExports(ctx); err != nil {
		return err
	}
	return v.refresh(ctx)
}

// openExports serves the writable disks over NBD.
func (v *vm) openExports(ctx context.Context) error {
	disks := v.g.writableDisks()
	if len(disks) == 0 {
		return nil
	}
	socket, err := listenUnix(v.g.dir, nbdSocket)
	if err != nil {
		return err
	}
	defer socket.Close()
	if err := v.doWithFile(ctx, "getfd", object{"fdname": "nbd"}, socket, nil); err != nil {
		return err
	}
	err = v.do(ctx, "nbd-server-start", object{"addr": object{"type": "fd", "data": object{"str": "nbd"}}}, nil)
	for _, k := range disks {
		if err == nil {
			err = v.do(ctx, "block-export-add", object{"type": "nbd", "id": "export-" + k.node, "node-name": k.node, "name": k.node, "writable": true}, nil)
		}
	}
	return err
}

// Inlet implements hypervisor.Migrator.
func (d *Driver) Inlet(ctx context.Context, id vee.ID, stream string) (net.Conn, error) {
	g := d.guest(id)
	v := g.process()
	if v == nil || g.condition() != hypervisor.Incoming {
		return nil, g.wrongState("open an inlet of")
	}
	if stream != hypervisor.MemoryStream {
		if !slices.ContainsFunc(g.writableDisks(), func(k writableDisk) bool { return k.node == stream }) {
			return nil, fmt.Errorf("open an inlet of %s: it has no disk %q: %w", id, stream, hypervisor.ErrNotFound)
		}
		return dialUnix(ctx, g.dir, nbdSocket)
	}
	if err := g.syncDisks(); err != nil { // they are mirrored
		return nil, err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	if err = v.doWithFile(ctx, "getfd", object{"fdname": hypervisor.MemoryStream}, theirs, nil); err == nil {
		err = v.do(ctx, "migrate-incoming", object{"uri": "fd:" + hypervisor.MemoryStream}, nil)
	}
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("open the memory inlet of %s: %w", id, err)
	}
	return ours, nil
}

// Loaded implements hypervisor.Migrator. When it returns, nobody else writes to the disks.
func (d *Driver) Loaded(ctx context.Context, id vee.ID) error {
	g := d.guest(id)
	v := g.process()
	if v == nil || g.condition() != hypervisor.Incoming {
		return g.wrongState("wait for the memory of")
	}
	for {
		var m struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := v.do(ctx, "query-migrate", nil, &m); err != nil {
			return fmt.Errorf("wait for the memory of %s: %w", id, err)
		}
		switch m.Status {
		case "completed":
			return v.closeExports(ctx)
		case "failed":
			return fmt.Errorf("wait for the memory of %s: its QEMU cannot load it: %s", id, m.Error)
		}
		if err := v.stir(ctx, stirPatience); err != nil {
			return fmt.Errorf("wait for the memory of %s: %w", id, err)
		}
	}
}

// Take implements hypervisor.Migrator. The guest stands still for as long as it takes, so
// whatever goes to disk does so when it runs: a driver that comes after a crash knows from
// QEMU itself whether it ever ran.
func (d *Driver) Take(ctx context.Context, id vee.ID, e vee.Epoch) (ran time.Time, err error) {
	ctx, obey, done, err := d.turns.TakeQuick(ctx, id, e)
	if err != nil {
		return ran, fmt.Errorf("take %s: %w", id, err)
	}
	defer done()
	g := d.guest(id)
	c, v := g.condition(), g.process()
	switch {
	case c == hypervisor.Running:
		return g.observe().Since, obey()
	case c != hypervisor.Incoming || v == nil:
		return ran, g.wrongState("take")
	}
	if err = v.closeExports(ctx); err == nil {
		err = v.do(ctx, "cont", nil, nil)
	}
	if err != nil {
		return ran, fmt.Errorf("take %s: %w", id, err)
	}
	g.mu.Lock()
	ran = v.ran
	g.mu.Unlock()
	if err := errors.Join(obey(), v.taken(ctx)); err != nil {
		return ran, fmt.Errorf("take %s, which runs: %w", id, err)
	}
	return ran, nil
}

// taken notes that a guest runs that came from another host.
func (v *vm) taken(ctx context.Context) error {
	if err := v.g.save(func(r *record) { r.Want = hypervisor.Running }); err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(v.g.dir, nbdSocket))
	return v.refresh(ctx)
}

// closeExports ends the NBD server, if there is one: nobody else writes to the disks from
// here on.
func (v *vm) closeExports(ctx context.Context) error {
	v.g.mu.Lock()
	closed := v.unexported
	v.g.mu.Unlock()
	if closed || len(v.g.writableDisks()) == 0 {
		return nil
	}
	if err := v.do(ctx, "nbd-server-stop", nil, nil); err != nil && !strings.Contains(err.Error(), "not running") {
		return err
	}
	v.g.mu.Lock()
	v.unexported = true
	v.g.mu.Unlock()
	return nil
}
