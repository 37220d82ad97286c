package libvirt

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/vee"
)

var (
	_ hypervisor.Resizer      = (*Driver)(nil)
	_ hypervisor.DiskExporter = (*Driver)(nil)
)

// Resize implements hypervisor.Resizer: memory with the balloon, and disks. vCPUs and the
// CPU share wait for the next boot: under TCG, QEMU 7.2 aborts when one is plugged in
// (hypervisor/qemu has a way around it that libvirt has not). Each change that took effect
// is in the record before the next is made; one that is cut off is made again.
func (d *Driver) Resize(ctx context.Context, id vee.ID, e vee.Epoch, want vee.Descriptor) ([]string, error) {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return nil, failed("resize", id, err)
	}
	defer done()
	switch g.condition() {
	case hypervisor.Running, hypervisor.Paused, hypervisor.Halted:
	default:
		return nil, g.wrongState("resize")
	}
	var waiting []string
	for _, change := range []func(context.Context, vee.Descriptor) (string, error){g.resizeMemory, g.growDisks, g.leaveCPUs} {
		why, err := change(ctx, want)
		if err != nil {
			return nil, failed("resize", id, err)
		}
		if why != "" {
			waiting = append(waiting, why)
		}
	}
	return waiting, nil
}

func (g *guest) resizeMemory(ctx context.Context, want vee.Descriptor) (string, error) {
	have := g.record().Guest.Descriptor
	most := max(have.Memory, have.MemoryMax)
	switch {
	case g.d.kind == kindMock && want.Memory != have.Memory:
		return fmt.Sprintf("memory of %s: libvirt's mock changes nothing of a guest that runs", want.Memory), nil
	case want.Memory > most:
		return fmt.Sprintf("memory of %s: it was started with at most %s", want.Memory, most), nil
	case want.Memory == have.Memory && max(want.Memory, want.MemoryMax) != most:
		return fmt.Sprintf("memory up to %s: it was started with at most %s", max(want.Memory, want.MemoryMax), most), nil
	case want.Memory == have.Memory:
		return "", nil
	case g.condition() != hypervisor.Running:
		return fmt.Sprintf("memory of %s: its vCPUs stand still; it is changed when they run, or", want.Memory), nil
	}
	if err := g.setBalloon(ctx, want.Memory); err != nil {
		return "", err
	}
	got, err := hypervisor.AwaitMemory(ctx, roundUp(want.Memory), g.ballooned)
	if err != nil {
		return "", err
	}
	if got != roundUp(want.Memory) {
		if err := g.setBalloon(ctx, have.Memory); err != nil {
			return "", err
		}
		return fmt.Sprintf("memory of %s: the guest needs what it has, and came from %s to %s only", want.Memory, have.Memory, got), nil
	}
	return "", g.note(func(d *vee.Descriptor) { d.Memory, d.MemoryMax = want.Memory, most })
}

// roundUp to what the domain is told: whole MiB.
func roundUp(b vee.Bytes) vee.Bytes { return vee.Bytes(mib(b)) * vee.MiB }

// setBalloon so that it leaves the guest memory.
func (g *guest) setBalloon(ctx context.Context, memory vee.Bytes) error {
	return g.do(ctx, func(l *rpc.Libvirt) error {
		return l.DomainSetMemoryFlags(g.dom, uint64(roundUp(memory)/vee.KiB), uint32(rpc.DomainMemLive))
	})
}

// ballooned is what the balloon leaves the guest.
func (g *guest) ballooned(ctx context.Context) (memory vee.Bytes, err error) {
	err = g.do(ctx, func(l *rpc.Libvirt) error {
		state, _, kib, _, _, err := l.DomainGetInfo(g.dom)
		if err == nil && rpc.DomainState(state) == rpc.DomainShutoff {
			err = errors.New("its QEMU ended")
		}
		memory = vee.Bytes(kib) * vee.KiB
		return err
	})
	return memory, err
}

func (g *guest) growDisks(ctx context.Context, want vee.Descriptor) (string, error) {
	rec := g.record()
	for _, k := range disk.Plan(rec.Guest) {
		at := slices.IndexFunc(want.Disks, func(w vee.Disk) bool { return w.Name == k.Name })
		if k.Kind == disk.Medium || at < 0 || want.Disks[at].Size <= k.Size {
			continue
		}
		size := want.Disks[at].Size
		if g.d.kind == kindMock {
			return fmt.Sprintf("disk %q of %s: libvirt's mock changes nothing of a guest that runs", k.Name, size), nil
		}
		if err := g.do(ctx, func(l *rpc.Libvirt) error {
			return l.DomainBlockResize(g.dom, filepath.Join(g.dir, k.File), uint64(size), rpc.DomainBlockResizeBytes)
		}); errors.Is(err, errAway) {
			return "", err
		} else if err != nil {
			return fmt.Sprintf("disk %q of %s: %v", k.Name, size, err), nil
		}
		if err := g.note(func(d *vee.Descriptor) {
			for i := range d.Disks {
				if d.Disks[i].Name == k.Name {
					d.Disks[i].Size = size
				}
			}
		}); err != nil {
			return "", err
		}
	}
	for _, w := range want.Disks {
		if !slices.ContainsFunc(rec.Guest.Descriptor.Disks, func(h vee.Disk) bool { return h.Name == w.Name }) {
			return fmt.Sprintf("disk %q, which is new", w.Name), nil
		}
	}
	return "", nil
}

// leaveCPUs as they are, and say so.
func (g *guest) leaveCPUs(_ context.Context, want vee.Descriptor) (string, error) {
	have := g.record().Guest.Descriptor
	switch {
	case want.VCPUs != have.VCPUs:
		return fmt.Sprintf("%d vCPUs: through libvirt they are not changed while it runs", want.VCPUs), nil
	case want.CPU != have.CPU:
		return "CPU share: through libvirt it is not changed while it runs", nil
	}
	return "", nil
}

// note in the record what has become of the hardware.
func (g *guest) note(change func(*vee.Descriptor)) error {
	return g.save(func(r *record) {
		r.Guest.Descriptor.Disks = slices.Clone(r.Guest.Descriptor.Disks) // records are copied, what they point to is not
		change(&r.Guest.Descriptor)
	})
}

// Disks implements hypervisor.DiskExporter.
func (d *Driver) Disks(_ context.Context, id vee.ID) ([]vee.DiskInfo, error) {
	g, err := d.existing(id)
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	rec := g.record()
	all := []vee.DiskInfo{}
	for _, k := range disk.Plan(rec.Guest) {
		i, err := disk.Info(rec.Guest, k, g.file(k))
		if err != nil {
			return nil, fmt.Errorf("list disks of %s: %w", id, err)
		}
		if k.Kind != disk.Medium {
			i.Used = disk.Used(g.file(k).Disk)
		}
		all = append(all, i)
	}
	return all, nil
}

// file that a disk is.
func (g *guest) file(k disk.Disk) hypervisor.LocalImage {
	if k.Kind == disk.Medium {
		return k.Base
	}
	return hypervisor.LocalImage{Disk: filepath.Join(g.dir, k.File), Format: disk.Format(k.File)}
}

// Export implements hypervisor.DiskExporter. There are no snapshots that it could be of.
func (d *Driver) Export(ctx context.Context, id vee.ID, name, snapshot string) (*hypervisor.Export, error) {
	g, err := d.existing(id)
	if err != nil {
		return nil, fmt.Errorf("export disk %q: %w", name, err)
	}
	if snapshot != "" {
		return nil, fmt.Errorf("export disk %q of %s: snapshot %q: %w", name, id, snapshot, hypervisor.ErrNotFound)
	}
	ctx, done, err := d.turns.Take(ctx, id, d.turns.Obeyed(id)) // nothing else happens meanwhile
	if err != nil {
		return nil, fmt.Errorf("export disk %q of %s: %w", name, id, err)
	}
	defer done()
	x, err := g.export(ctx, name)
	if err != nil {
		return nil, failed(fmt.Sprintf("export disk %q of", name), id, err)
	}
	return x, nil
}

func (g *guest) export(ctx context.Context, name string) (*hypervisor.Export, error) {
	plan := disk.Plan(g.record().Guest)
	at := slices.IndexFunc(plan, func(k disk.Disk) bool { return k.Name == name })
	switch c := g.condition(); {
	case at < 0:
		return nil, hypervisor.ErrNotFound
	case plan[at].Kind == disk.Medium:
		return nil, errors.Join(errors.New("a CD-ROM is an image of the site already"), hypervisor.ErrUnsupported)
	case c == hypervisor.Running || c == hypervisor.Paused || c == hypervisor.Halted:
		return nil, fmt.Errorf("it is being written by a guest that is %s; shut it down first: %w", c, hypervisor.ErrWrongState)
	}
	return disk.Export(ctx, g.d.cfg.ImageTool, g.dir, g.file(plan[at]))
}

// existing guest; ErrNotFound. The mock has no disks to tell of.
func (d *Driver) existing(id vee.ID) (*guest, error) {
	d.mu.Lock()
	g, ok := d.guests[id]
	d.mu.Unlock()
	switch {
	case !ok || g.condition() == hypervisor.Absent:
		return nil, fmt.Errorf("%s: %w", id, hypervisor.ErrNotFound)
	case d.kind == kindMock:
		return nil, fmt.Errorf("%s, which is simulated: %w", id, hypervisor.ErrUnsupported)
	}
	return g, nil
}
