package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Commands beyond hypervisor.Driver's own.
const (
	Resize         Op = "resize"
	TakeSnapshot   Op = "snapshot"
	Unpack         Op = "unpack"
	Restore        Op = "restore"
	DeleteSnapshot Op = "delete-snapshot"
)

var (
	_ hypervisor.Resizer      = (*Driver)(nil)
	_ hypervisor.Snapshotter  = (*Driver)(nil)
	_ hypervisor.DiskExporter = (*Driver)(nil)
)

// frozen is a snapshot: what the disk remembers (Boots), and the memory (Typed, KPIs).
type frozen struct {
	vee.Snapshot
	Of state `json:"of"`
}

// Resize implements hypervisor.Resizer, with the limits that a real machine has.
func (d *Driver) Resize(ctx context.Context, id vee.ID, e vee.Epoch, want vee.Descriptor) (waiting []string, err error) {
	err = d.command(ctx, Resize, id, e, func(g *guest) error {
		if _, err := g.in(Resize, hypervisor.Running, hypervisor.Paused, hypervisor.Halted); err != nil {
			return err
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.change(func(s *state) {
			have := &s.Guest.Descriptor
			memory, vcpus := max(have.Memory, have.MemoryMax), max(have.VCPUs, have.VCPUsMax)
			if want.Memory > memory {
				waiting = append(waiting, fmt.Sprintf("memory of %s: it was started with at most %s", want.Memory, memory))
			} else {
				have.Memory, have.MemoryMax = want.Memory, memory
			}
			switch {
			case want.VCPUs > vcpus:
				waiting = append(waiting, fmt.Sprintf("%d vCPUs: it was started with at most %d", want.VCPUs, vcpus))
			case want.VCPUs < have.VCPUs:
				waiting = append(waiting, fmt.Sprintf("%d vCPUs: they are plugged in while it runs, and not taken away", want.VCPUs))
			default:
				have.VCPUs, have.VCPUsMax = want.VCPUs, vcpus
			}
			have.CPU = want.CPU
			have.Disks = slices.Clone(have.Disks)
			for i := range have.Disks {
				for _, w := range want.Disks {
					if w.Name == have.Disks[i].Name {
						have.Disks[i].Size = max(have.Disks[i].Size, w.Size)
					}
				}
			}
		})
	})
	return waiting, err
}

// Snapshot implements hypervisor.Snapshotter.
func (d *Driver) Snapshot(ctx context.Context, gs hypervisor.Guest, name string, memory bool) (s vee.Snapshot, err error) {
	err = d.command(ctx, TakeSnapshot, gs.ID, gs.Epoch, func(g *guest) error {
		if err := hypervisor.CheckSnapshotName(name); err != nil {
			return err
		}
		from := []hypervisor.Condition{hypervisor.Running, hypervisor.Paused, hypervisor.Suspended}
		if !memory {
			from = append(from, hypervisor.Stopped, hypervisor.Crashed)
		}
		if _, err := g.in(TakeSnapshot, from...); err != nil {
			return err
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if slices.ContainsFunc(g.s.Snapshots, func(f frozen) bool { return f.Name == name }) {
			return fmt.Errorf("%q: %w", name, hypervisor.ErrExists)
		}
		s = vee.Snapshot{Name: name, Memory: memory, Created: d.cfg.Clock.Now(), Size: vee.MiB}
		if memory {
			s.Size += g.s.Guest.Descriptor.Memory
		}
		for _, k := range g.s.Guest.Descriptor.Disks {
			s.Disks = append(s.Disks, k.Name)
		}
		of := g.s
		of.Snapshots = nil
		return g.change(func(now *state) { now.Snapshots = append(slices.Clone(now.Snapshots), frozen{s, of}) })
	})
	return s, err
}

// Snapshots implements hypervisor.Snapshotter.
func (d *Driver) Snapshots(_ context.Context, id vee.ID) ([]vee.Snapshot, error) {
	g := d.find(id)
	if g == nil {
		return nil, fmt.Errorf("list snapshots of %s: %w", id, hypervisor.ErrNotFound)
	}
	all := []vee.Snapshot{}
	for _, f := range g.state().Snapshots {
		all = append(all, f.Snapshot)
	}
	return all, nil
}

// Restore implements hypervisor.Snapshotter.
func (d *Driver) Restore(ctx context.Context, id vee.ID, e vee.Epoch, name string) error {
	return d.command(ctx, Restore, id, e, func(g *guest) error {
		if g == nil {
			return hypervisor.ErrNotFound
		}
		list := g.state().Snapshots
		i := slices.IndexFunc(list, func(f frozen) bool { return f.Name == name })
		if i < 0 {
			return fmt.Errorf("snapshot %q: %w", name, hypervisor.ErrNotFound)
		}
		to := hypervisor.Stopped
		if list[i].Memory {
			to = hypervisor.Suspended
		}
		return g.become(to, "", func(s *state) {
			then := list[i].Of
			s.Guest.Descriptor, s.Boots, s.Booted = then.Guest.Descriptor, then.Boots, then.Booted
			s.Typed, s.Ready, s.KPIs, s.Hung = then.Typed, then.Ready, then.KPIs, then.Hung
		})
	})
}

// DeleteSnapshot implements hypervisor.Snapshotter.
func (d *Driver) DeleteSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error {
	return d.command(ctx, DeleteSnapshot, id, e, func(g *guest) error {
		if g == nil {
			return nil
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.change(func(s *state) {
			s.Snapshots = slices.DeleteFunc(slices.Clone(s.Snapshots), func(f frozen) bool { return f.Name == name })
		})
	})
}

// Disks implements hypervisor.DiskExporter.
func (d *Driver) Disks(_ context.Context, id vee.ID) ([]vee.DiskInfo, error) {
	g := d.find(id)
	if g == nil {
		return nil, fmt.Errorf("list disks of %s: %w", id, hypervisor.ErrNotFound)
	}
	s := g.state()
	all := []vee.DiskInfo{}
	for _, k := range s.Guest.Descriptor.Disks {
		all = append(all, vee.DiskInfo{
			Name: k.Name, Size: k.Size, Used: vee.MiB, Format: "simulated", Image: k.Image, Source: k.Source,
			Persistent: k.Persistent, CDROM: k.CDROM, Layers: len(s.Snapshots),
		})
	}
	return all, nil
}

// Export implements hypervisor.DiskExporter: what a simulated disk remembers, as JSON.
func (d *Driver) Export(_ context.Context, id vee.ID, disk, snapshot string) (*hypervisor.Export, error) {
	g := d.find(id)
	if g == nil {
		return nil, fmt.Errorf("export disk %q of %s: %w", disk, id, hypervisor.ErrNotFound)
	}
	s := g.state()
	if snapshot != "" {
		i := slices.IndexFunc(s.Snapshots, func(f frozen) bool { return f.Name == snapshot })
		if i < 0 {
			return nil, fmt.Errorf("export disk %q of %s: snapshot %q: %w", disk, id, snapshot, hypervisor.ErrNotFound)
		}
		s = s.Snapshots[i].Of
	} else if alive(s.Condition) {
		return nil, fmt.Errorf("export disk %q of %s, which is %s: %w", disk, id, s.Condition, hypervisor.ErrWrongState)
	}
	if !slices.ContainsFunc(s.Guest.Descriptor.Disks, func(k vee.Disk) bool { return k.Name == disk }) {
		return nil, fmt.Errorf("export disk %q of %s: %w", disk, id, hypervisor.ErrNotFound)
	}
	b, err := json.Marshal(map[string]any{"disk": disk, "boots": s.Boots})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return &hypervisor.Export{ReadCloser: io.NopCloser(bytes.NewReader(b)), Size: int64(len(b)), Digest: "sha256:" + hex.EncodeToString(sum[:])}, nil
}
