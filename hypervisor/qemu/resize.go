package qemu

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/vee"
)

var _ hypervisor.Resizer = (*Driver)(nil)

// Resize implements hypervisor.Resizer. Memory is changed with the balloon alone: a guest
// boots with the upper end of its range and a balloon that holds the rest
// (docs/adr/0010-live-changes.md). Each change that took effect is in the record
// before the next is made; one that is cut off is made again by the next Resize.
func (d *Driver) Resize(ctx context.Context, id vee.ID, e vee.Epoch, want vee.Descriptor) ([]string, error) {
	g, ctx, done, err := d.command(ctx, id, e)
	if err != nil {
		return nil, fmt.Errorf("resize %s: %w", id, err)
	}
	defer done()
	v := g.process()
	if c := g.condition(); v == nil || c != hypervisor.Running && c != hypervisor.Paused && c != hypervisor.Halted {
		return nil, g.wrongState("resize")
	}
	var waiting []string
	for _, change := range []func(context.Context, *guest, vee.Descriptor) (string, error){
		v.resizeMemory, v.reshare, v.growDisks, v.plugVCPUs,
	} {
		why, err := change(ctx, g, want)
		if err != nil {
			return nil, disk.NoSpace(fmt.Errorf("resize %s: %w", id, err))
		}
		if why != "" {
			waiting = append(waiting, why)
		}
	}
	return waiting, nil
}

// note in the record what has become of the hardware.
func (g *guest) note(change func(*vee.Descriptor)) error {
	return g.save(func(r *record) {
		r.Guest.Descriptor.Disks = slices.Clone(r.Guest.Descriptor.Disks) // records are copied, what they point to is not
		change(&r.Guest.Descriptor)
	})
}

// setBalloon so that it leaves the guest memory.
func (v *vm) setBalloon(ctx context.Context, memory vee.Bytes) error {
	return v.do(ctx, "balloon", object{"value": int64(memory)}, nil)
}

func (v *vm) resizeMemory(ctx context.Context, g *guest, want vee.Descriptor) (string, error) {
	have := g.record().Guest.Descriptor
	most := max(have.Memory, have.MemoryMax)
	waits := ""
	switch {
	case want.Memory > most:
		waits = fmt.Sprintf("memory of %s: it was started with at most %s", want.Memory, most)
	case max(want.Memory, want.MemoryMax) != most:
		waits = fmt.Sprintf("memory up to %s: it was started with at most %s", max(want.Memory, want.MemoryMax), most)
	}
	if want.Memory > most || want.Memory == have.Memory {
		return waits, nil
	}
	if g.condition() != hypervisor.Running {
		return fmt.Sprintf("memory of %s: its vCPUs stand still; it is changed when they run, or", want.Memory), nil
	}
	if err := v.setBalloon(ctx, want.Memory); err != nil {
		return "", err
	}
	got, err := hypervisor.AwaitMemory(ctx, want.Memory, v.ballooned)
	if err != nil {
		return "", err
	}
	if got != want.Memory {
		if err := v.setBalloon(ctx, have.Memory); err != nil {
			return "", err
		}
		return fmt.Sprintf("memory of %s: the guest needs what it has, and came from %s to %s only", want.Memory, have.Memory, got), nil
	}
	return waits, g.note(func(d *vee.Descriptor) { d.Memory, d.MemoryMax = want.Memory, most })
}

// ballooned is what the balloon leaves the guest.
func (v *vm) ballooned(ctx context.Context) (vee.Bytes, error) {
	var now struct {
		Actual vee.Bytes `json:"actual"`
	}
	err := v.do(ctx, "query-balloon", nil, &now)
	return now.Actual, err
}

// plugVCPUs is the last change of a Resize, since under TCG the process is another after it.
func (v *vm) plugVCPUs(ctx context.Context, g *guest, want vee.Descriptor) (string, error) {
	have := g.record().Guest.Descriptor
	most := max(have.VCPUs, have.VCPUsMax)
	if n := min(want.VCPUs, most); n > have.VCPUs {
		plug := v.plug
		if g.record().Accelerator == "tcg" {
			plug = v.plugAnew
		}
		if err := plug(ctx, n); err != nil {
			return "", fmt.Errorf("plug in vCPUs: %w", err)
		}
		if err := g.note(func(d *vee.Descriptor) { d.VCPUs, d.VCPUsMax = n, most }); err != nil {
			return "", err
		}
	}
	switch {
	case want.VCPUs > most:
		return fmt.Sprintf("%d vCPUs: it was started with at most %d", want.VCPUs, most), nil
	case want.VCPUs < have.VCPUs:
		return fmt.Sprintf("%d vCPUs: they are plugged in while it runs, and not taken away", want.VCPUs), nil
	case max(want.VCPUs, want.VCPUsMax) != most:
		return fmt.Sprintf("up to %d vCPUs: it was started with at most %d", max(want.VCPUs, want.VCPUsMax), most), nil
	}
	return "", nil
}

// plug in vCPUs until there are n.
func (v *vm) plug(ctx context.Context, n int) error {
	var slots []struct {
		Type  string         `json:"type"`
		Props map[string]any `json:"props"`
		Path  string         `json:"qom-path"` // of one that is plugged in
	}
	if err := v.do(ctx, "query-hotpluggable-cpus", nil, &slots); err != nil {
		return err
	}
	slices.Reverse(slots) // QEMU lists the last one first; saved memory wants them without gaps
	plugged := 0
	for _, s := range slots {
		if s.Path == "" && plugged < n {
			device := object{"driver": s.Type, "id": fmt.Sprintf("vcpu%d", plugged)}
			maps.Copy(device, s.Props)
			if err := v.do(ctx, "device_add", device, nil); err != nil {
				return err
			}
			s.Path = "new"
		}
		if s.Path != "" {
			plugged++
		}
	}
	return nil
}

// plugAnew is plug by way of saved memory. QEMU 7.2's TCG gives each vCPU a region for its
// translated code when it comes, and aborts when those that run have taken them all
// (tcg/region.c, tcg_region_initial_alloc); in a process that has only loaded its memory
// they are all free.
func (v *vm) plugAnew(ctx context.Context, n int) error {
	g, before := v.g, v.g.condition()
	if before == hypervisor.Halted {
		return fmt.Errorf("it is halted: %w", hypervisor.ErrWrongState)
	}
	if err := g.suspend(ctx, v, before, func(vee.Progress) {}); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // it goes on, whoever asked
	if err := g.wake(ctx, g.record().Guest, hypervisor.Paused); err != nil {
		return err // suspended, and woken by whoever wants it to run
	}
	again := g.process()
	if again == nil {
		return errors.New("its QEMU ended")
	}
	err := again.plug(ctx, n)
	if before == hypervisor.Running {
		err = errors.Join(err, again.cont(ctx), g.save(func(r *record) { r.Want = hypervisor.Running }))
	}
	return err
}

func (v *vm) reshare(_ context.Context, g *guest, want vee.Descriptor) (string, error) {
	have := g.record().Guest.Descriptor
	if want.CPU == have.CPU {
		return "", nil
	}
	limits := g.d.limits(want.CPU, machine{
		VCPUs: have.VCPUs, VCPUsMax: have.VCPUsMax, Memory: max(have.Memory, have.MemoryMax),
	})
	if err := g.d.cgroups.Place(g.d.prefix+string(g.id), v.PID, limits); err != nil {
		return "", err
	}
	return "", g.note(func(d *vee.Descriptor) { d.CPU = want.CPU })
}

func (v *vm) growDisks(ctx context.Context, g *guest, want vee.Descriptor) (string, error) {
	rec := g.record()
	for i, k := range disk.Plan(rec.Guest) {
		at := slices.IndexFunc(want.Disks, func(w vee.Disk) bool { return w.Name == k.Name })
		if k.Kind == disk.Medium || at < 0 || want.Disks[at].Size <= k.Size {
			continue
		}
		size := want.Disks[at].Size
		err := v.do(ctx, "block_resize", object{"node-name": fmt.Sprintf("disk%d", i), "size": int64(size)}, nil)
		if err != nil {
			return fmt.Sprintf("disk %q of %s: %v", k.Name, size, err), nil
		}
		if err := g.note(func(d *vee.Descriptor) {
			for j := range d.Disks {
				if d.Disks[j].Name == k.Name {
					d.Disks[j].Size = size
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
