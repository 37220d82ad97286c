package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

const (
	// powerButton is how often Stop presses it: a guest that is still booting misses it.
	powerButton = time.Second
	// savePoll is how often libvirt is asked how far a Suspend is.
	savePoll = 50 * time.Millisecond
)

// undefineFlags: a domain goes with all that libvirt keeps about it.
const undefineFlags = rpc.DomainUndefineManagedSave | rpc.DomainUndefineSnapshotsMetadata

// wrongState says which command does not go with which condition.
func (g *guest) wrongState(command string) error {
	if c := g.condition(); c != hypervisor.Absent {
		return fmt.Errorf("%s %s, which is %s: %w", command, g.id, c, hypervisor.ErrWrongState)
	}
	return fmt.Errorf("%s %s: %w", command, g.id, hypervisor.ErrNotFound)
}

// failed wraps a command's error, and gives the driver's name to a full disk, which libvirt
// tells in words only.
func failed(command string, id vee.ID, err error) error {
	if strings.Contains(err.Error(), unix.ENOSPC.Error()) || strings.Contains(err.Error(), "No space left on device") {
		err = errors.Join(unix.ENOSPC, err)
	}
	return disk.NoSpace(fmt.Errorf("%s %s: %w", command, id, err))
}

// do speaks to libvirtd about the guest.
func (g *guest) do(ctx context.Context, do func(*rpc.Libvirt) error) error {
	return g.d.con.call(ctx, do)
}

// Prepare implements hypervisor.Driver. Its commit point is the record; libvirt hears of
// the guest when it starts. On a guest at rest it makes disks that are new and grows those
// whose size grew; the image of a disk cannot change.
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
		return failed("prepare", gs.ID, err)
	}
	return nil
}

func check(gs hypervisor.Guest) error {
	if err := gs.Check(); err != nil {
		return err
	}
	if gs.Descriptor.Raw[Name] != "" {
		return fmt.Errorf("%s has raw settings for libvirt: %w", gs.ID, hypervisor.ErrUnsupported)
	}
	return nil
}

func (g *guest) create(ctx context.Context, gs hypervisor.Guest) (err error) {
	if err := check(gs); err != nil {
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
	if err := errors.Join(os.Mkdir(g.dir, 0o711), os.Chmod(g.dir, 0o711)); err != nil { //nolint:gosec // its process passes through
		return err
	}
	rec := record{Guest: gs, UID: g.d.pickUID(g.id), Want: hypervisor.Stopped}
	for _, k := range disk.Plan(gs) {
		if err := g.makeDisk(ctx, k); err != nil {
			return err
		}
	}
	if err := g.makeSeed(gs.Descriptor.Context); err != nil {
		return err
	}
	// The folder's name before its content: a record that is there names a whole guest.
	if err := durable.SyncDir(filepath.Dir(g.dir)); err != nil {
		return err
	}
	if err := g.save(func(r *record) { *r = rec }); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.set(hypervisor.Stopped, "")
	return nil
}

// makeDisk, but not for the mock, which would never read it.
func (g *guest) makeDisk(ctx context.Context, k disk.Disk) error {
	if g.d.kind == kindMock {
		return nil
	}
	return k.Make(ctx, g.d.cfg.ImageTool, g.dir)
}

func (g *guest) makeSeed(context map[string]string) error {
	if len(context) == 0 || g.d.kind == kindMock {
		return nil
	}
	return disk.MakeSeed(filepath.Join(g.dir, disk.SeedFile), context)
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
	if err := check(gs); err != nil {
		return err
	}
	if g.d.kind != kindMock {
		if err := disk.Update(ctx, g.d.cfg.ImageTool, g.dir, old, gs, func(k disk.Disk) string { return k.File }); err != nil {
			return err
		}
	}
	return g.save(func(r *record) { r.Guest = gs })
}

// handOver the guest's files to its user, and see that he can read the images.
func (g *guest) handOver(rec record) error {
	if os.Geteuid() != 0 || g.d.kind == kindMock {
		return nil
	}
	for _, i := range rec.Guest.Images {
		for _, path := range []string{i.Disk, i.Kernel, i.Initrd} {
			if path == "" {
				continue
			}
			if err := readable(path); err != nil {
				return err
			}
		}
	}
	files := []string{}
	for _, k := range disk.Plan(rec.Guest) {
		if k.Kind != disk.Medium {
			files = append(files, k.File)
		}
	}
	if len(rec.Guest.Descriptor.Context) > 0 {
		files = append(files, disk.SeedFile)
	}
	for _, f := range files {
		path := filepath.Join(g.dir, f)
		if err := errors.Join(os.Chmod(path, 0o600), os.Chown(path, rec.UID, rec.UID)); err != nil {
			return err
		}
	}
	return nil
}

// Start implements hypervisor.Driver. Its commit point is the record that wants the guest
// running: a crash after it ends in a guest that runs, or in one that has crashed.
func (d *Driver) Start(ctx context.Context, gs hypervisor.Guest) error {
	g, ctx, done, err := d.command(ctx, gs.ID, gs.Epoch)
	if err != nil {
		return failed("start", gs.ID, err)
	}
	defer done()
	switch g.condition() {
	case hypervisor.Running:
		if g.record().Want == hypervisor.Running {
			return nil
		}
		err = g.save(func(r *record) { r.Want = hypervisor.Running }) // after a Stop that was cut short
	case hypervisor.Stopped, hypervisor.Crashed:
		err = g.start(ctx, gs)
	default:
		return g.wrongState("start")
	}
	if err != nil {
		return failed("start", gs.ID, err)
	}
	return nil
}

func (g *guest) start(ctx context.Context, gs hypervisor.Guest) (err error) {
	if err := g.update(ctx, gs); err != nil {
		return err
	}
	rec := g.record()
	if err := g.handOver(rec); err != nil {
		return err
	}
	xml, err := domainXML(rec, g.d.kind, g.place(rec))
	if err != nil {
		return err
	}
	if err := g.openLog(); err != nil {
		return err
	}
	if err := g.save(func(r *record) { r.Want, r.Reason = hypervisor.Running, "" }); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerPatience)
			defer cancel()
			err = errors.Join(err, g.end(clean), g.save(func(r *record) { r.Want, r.Reason = rec.Want, rec.Reason }))
		}
	}()
	if err := g.do(ctx, func(l *rpc.Libvirt) error {
		_, err := l.DomainDefineXMLFlags(xml, 0)
		return err
	}); err != nil {
		return err
	}
	if err := g.boot(ctx); err != nil {
		return err
	}
	return g.look(ctx, nil)
}

// boot the domain, or bring back its saved memory: with its vCPUs still until its console
// is listened to.
func (g *guest) boot(ctx context.Context) error {
	flags := rpc.DomainStartPaused
	if g.d.kind == kindMock {
		flags = 0
	}
	if err := g.do(ctx, func(l *rpc.Libvirt) error {
		_, err := l.DomainCreateWithFlags(g.dom, uint32(flags))
		return err
	}); err != nil {
		return err
	}
	if err := g.attach(ctx); err != nil {
		return err
	}
	return g.resume(ctx)
}

// resume the vCPUs. One that runs is left at it.
func (g *guest) resume(ctx context.Context) error {
	s, err := g.see(ctx)
	if err != nil || s.state == rpc.DomainRunning {
		return err
	}
	return g.do(ctx, func(l *rpc.Libvirt) error { return l.DomainResume(g.dom) })
}

// Pause implements hypervisor.Driver.
func (d *Driver) Pause(ctx context.Context, id vee.ID, e vee.Epoch) error {
	return d.steer(ctx, id, e, "pause", (*rpc.Libvirt).DomainSuspend, hypervisor.Paused, hypervisor.Running)
}

// Resume implements hypervisor.Driver.
func (d *Driver) Resume(ctx context.Context, id vee.ID, e vee.Epoch) error {
	return d.steer(ctx, id, e, "resume", (*rpc.Libvirt).DomainResume, hypervisor.Running, hypervisor.Paused, hypervisor.Halted)
}

// steer the vCPUs by one call.
func (d *Driver) steer(ctx context.Context, id vee.ID, e vee.Epoch, name string, call func(*rpc.Libvirt, rpc.Domain) error, to hypervisor.Condition, from ...hypervisor.Condition) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return failed(name, id, err)
	}
	defer done()
	c := g.condition()
	if c == to {
		return nil
	}
	if !slices.Contains(from, c) {
		return g.wrongState(name)
	}
	if err = g.do(ctx, func(l *rpc.Libvirt) error { return call(l, g.dom) }); err == nil {
		// The vCPUs first: between the two a crash ends in a guest that runs.
		err = g.save(func(r *record) { r.Want = to })
	}
	if err = errors.Join(err, g.look(context.WithoutCancel(ctx), nil)); err != nil {
		return failed(name, id, err)
	}
	return nil
}

// Suspend implements hypervisor.Driver by a managed save. Its commit point is libvirt's: the
// guest is suspended when there is a managed save and no process.
func (d *Driver) Suspend(ctx context.Context, id vee.ID, e vee.Epoch, progress func(vee.Progress)) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return failed("suspend", id, err)
	}
	defer done()
	switch g.condition() {
	case hypervisor.Suspended:
		return nil
	case hypervisor.Running, hypervisor.Paused:
	default:
		return g.wrongState("suspend")
	}
	if progress == nil {
		progress = func(vee.Progress) {}
	}
	err = g.saveMemory(ctx, progress)
	if err == nil {
		err = g.save(func(r *record) { r.Want = hypervisor.Suspended })
	}
	if err = errors.Join(err, g.look(context.WithoutCancel(ctx), nil)); err != nil {
		return failed("suspend", id, err)
	}
	return nil
}

// saveMemory lets libvirt save the guest, and says how far it is. On an error libvirt lets
// the guest go on as it was.
func (g *guest) saveMemory(ctx context.Context, progress func(vee.Progress)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	told := func(done, total int64) {
		progress(vee.Progress{Done: done, Total: total, Unit: "bytes", What: "memory"})
	}
	saved := make(chan error, 1)
	g.d.watches.Go(func() {
		// Until libvirt is through with it: what ctx has to say goes by AbortJob.
		saved <- g.d.con.work(g.d.ctx, func(l *rpc.Libvirt) error { return l.DomainManagedSave(g.dom, 0) })
	})
	tick := time.NewTicker(savePoll)
	defer tick.Stop()
	over := ctx.Done()
	var patience <-chan time.Time
	for {
		select {
		case err := <-saved:
			if err == nil {
				all := int64(max(g.record().Guest.Descriptor.Memory, 1))
				told(all, all)
			}
			return err
		case <-tick.C:
			_ = g.do(ctx, func(l *rpc.Libvirt) error { // of use to people only
				_, _, _, total, done, _, _, _, _, _, _, _, err := l.DomainGetJobInfo(g.dom)
				if err == nil && total > 0 && done <= total {
					told(int64(done), int64(total))
				}
				return err
			})
		case <-over:
			over = nil
			timer := time.NewTimer(answerPatience)
			defer timer.Stop()
			patience = timer.C
			// A job that has ended meanwhile is not bothered by it.
			_ = g.do(context.WithoutCancel(ctx), func(l *rpc.Libvirt) error { return l.DomainAbortJob(g.dom) })
		case <-g.d.ctx.Done():
			return hypervisor.ErrClosed
		case <-patience:
			return context.Cause(ctx)
		}
	}
}

// Wake implements hypervisor.Driver. Of g only the places of images and NICs count: the
// description is part of the saved memory. libvirt gives up the saved memory when it is
// loaded and before the vCPUs run, which is the commit point: never can old memory meet
// newer disks.
func (d *Driver) Wake(ctx context.Context, gs hypervisor.Guest) error {
	g, ctx, done, err := d.command(ctx, gs.ID, gs.Epoch)
	if err != nil {
		return failed("wake", gs.ID, err)
	}
	defer done()
	switch g.condition() {
	case hypervisor.Running:
		return nil
	case hypervisor.Suspended:
	default:
		return g.wrongState("wake")
	}
	if err := errors.Join(g.wake(ctx, gs), g.look(context.WithoutCancel(ctx), nil)); err != nil {
		return failed("wake", gs.ID, err)
	}
	return nil
}

func (g *guest) wake(ctx context.Context, gs hypervisor.Guest) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	rec := g.record()
	if !reflect.DeepEqual(rec.Guest.Images, gs.Images) || !reflect.DeepEqual(rec.Guest.NICs, gs.NICs) {
		rec.Guest.Images, rec.Guest.NICs = gs.Images, gs.NICs
		if err := g.handOver(rec); err != nil {
			return err
		}
		xml, err := domainXML(rec, g.d.kind, g.place(rec))
		if err != nil {
			return err
		}
		if err := g.do(ctx, func(l *rpc.Libvirt) error {
			return l.DomainManagedSaveDefineXML(g.dom, rpc.OptString{xml}, 0)
		}); err != nil {
			return fmt.Errorf("put its NICs and images in their new places: %w", err)
		}
	}
	err := g.boot(ctx)
	if err == nil {
		return g.save(func(r *record) {
			r.Want, r.Reason, r.Guest.Images, r.Guest.NICs = hypervisor.Running, "", gs.Images, gs.NICs
		})
	}
	// Loaded, and not set going: back to where it was.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerPatience)
	defer cancel()
	if s, seen := g.see(clean); seen == nil && s.active {
		err = errors.Join(err, g.saveMemory(clean, func(vee.Progress) {}))
	}
	return err
}

// Stop implements hypervisor.Driver. Its commit point is the record that wants the guest
// stopped: a crash after it, and the next driver ends the process without grace.
func (d *Driver) Stop(ctx context.Context, id vee.ID, e vee.Epoch, grace time.Duration) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return failed("stop", id, err)
	}
	defer done()
	c := g.condition()
	switch c {
	case hypervisor.Absent:
		return g.wrongState("stop")
	case hypervisor.Stopped:
		return nil
	}
	if err := errors.Join(g.stop(ctx, c, grace), g.look(context.WithoutCancel(ctx), nil)); err != nil {
		return failed("stop", id, err)
	}
	return nil
}

func (g *guest) stop(ctx context.Context, c hypervisor.Condition, grace time.Duration) error {
	err := g.save(func(r *record) { r.Want, r.Reason = hypervisor.Stopped, "" })
	if err != nil && !errors.Is(err, hypervisor.ErrNoSpace) {
		return err // a full disk must not keep anything from being stopped
	}
	if grace > 0 && (c == hypervisor.Running || c == hypervisor.Paused) {
		if err := g.shutdown(ctx, c, grace); err != nil {
			return err
		}
	}
	return g.end(ctx)
}

// shutdown asks the guest to, and waits until it has or the grace is over. A paused guest
// runs again for that.
func (g *guest) shutdown(ctx context.Context, c hypervisor.Condition, grace time.Duration) error {
	if c == hypervisor.Paused {
		if err := g.resume(ctx); err != nil {
			return nil // then by force
		}
	}
	how := rpc.DomainShutdownAcpiPowerBtn
	if g.d.kind == kindMock {
		how = 0
	}
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	again := time.NewTicker(powerButton)
	defer again.Stop()
	for press := true; ; {
		s, err := g.see(ctx)
		if err != nil || !s.active {
			return err
		}
		if press { // what goes wrong with it, the grace mends
			_ = g.do(ctx, func(l *rpc.Libvirt) error { return l.DomainShutdownFlags(g.dom, how) })
		}
		select {
		case <-g.ended:
			press = false
		case <-again.C:
			press = true
		case <-deadline.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for its shutdown: %w", context.Cause(ctx))
		}
	}
}

// end the guest's process at once, and give up saved memory.
func (g *guest) end(ctx context.Context) error {
	return g.do(ctx, func(l *rpc.Libvirt) error {
		err := l.DomainDestroyFlags(g.dom, 0)
		if err != nil && !is(err, rpc.ErrOperationInvalid) && !is(err, rpc.ErrNoDomain) {
			return fmt.Errorf("end its process: %w", err)
		}
		saved, err := l.DomainHasManagedSaveImage(g.dom, 0)
		if err == nil && saved != 0 {
			err = l.DomainManagedSaveRemove(g.dom, 0)
		}
		if err != nil && !is(err, rpc.ErrNoDomain) {
			return fmt.Errorf("give up its saved memory: %w", err)
		}
		return nil
	})
}

// undefine ends the guest and makes libvirt forget it.
func (g *guest) undefine(ctx context.Context) error {
	if err := g.end(ctx); err != nil {
		return err
	}
	err := g.do(ctx, func(l *rpc.Libvirt) error { return l.DomainUndefineFlags(g.dom, undefineFlags) })
	if err != nil && !is(err, rpc.ErrNoDomain) {
		return fmt.Errorf("make libvirt forget %s: %w", g.dom.Name, err)
	}
	for _, s := range []string{"console", "guest"} {
		_ = os.Remove(g.socket(s)) // one that is left bothers nobody
	}
	return nil
}

// Destroy implements hypervisor.Driver. Its commit point is the removal of the record:
// after a crash the next driver ends the domain and deletes the rest.
func (d *Driver) Destroy(ctx context.Context, id vee.ID, e vee.Epoch) error {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return failed("destroy", id, err)
	}
	defer done()
	if err := g.destroy(ctx); err != nil {
		return failed("destroy", id, err)
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
	if err := g.undefine(ctx); err != nil {
		return err
	}
	g.hangUp()
	if err := os.RemoveAll(g.dir); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rec, g.pid = record{}, 0
	g.set(hypervisor.Absent, "")
	return nil
}
