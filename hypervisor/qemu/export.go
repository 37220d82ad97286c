package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/vee"
)

var _ hypervisor.DiskExporter = (*Driver)(nil)

// Disks implements hypervisor.DiskExporter.
func (d *Driver) Disks(_ context.Context, id vee.ID) ([]vee.DiskInfo, error) {
	g, err := d.existing(id)
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	rec := g.record()
	all := []vee.DiskInfo{}
	for _, k := range disk.Plan(rec.Guest) {
		file, used := k.Base, vee.Bytes(0)
		if k.Kind != disk.Medium {
			top := rec.topOf(k)
			file = g.local(top)
			used = g.used(append([]string{top}, rec.Under[k.Name]...)...)
		}
		i, err := disk.Info(rec.Guest, k, file)
		if err != nil {
			return nil, fmt.Errorf("list disks of %s: %w", id, err)
		}
		i.Used, i.Layers = used, len(rec.Under[k.Name])
		all = append(all, i)
	}
	return all, nil
}

// Export implements hypervisor.DiskExporter.
func (d *Driver) Export(ctx context.Context, id vee.ID, name, snapshot string) (*hypervisor.Export, error) {
	g, err := d.existing(id)
	if err != nil {
		return nil, fmt.Errorf("export disk %q: %w", name, err)
	}
	if snapshot == "" { // frozen layers do not change, tops do: nothing else happens meanwhile
		var done func()
		if ctx, done, err = d.turns.Take(ctx, id, d.turns.Obeyed(id)); err != nil {
			return nil, fmt.Errorf("export disk %q of %s: %w", name, id, err)
		}
		defer done()
	}
	file, err := g.exported(name, snapshot)
	var x *hypervisor.Export
	if err == nil {
		x, err = disk.Export(ctx, d.cfg.ImageTool, g.dir, file)
	}
	if err != nil {
		return nil, disk.NoSpace(fmt.Errorf("export disk %q of %s: %w", name, id, err))
	}
	return x, nil
}

// exported is the file that is the disk, now or in a snapshot.
func (g *guest) exported(name, from string) (hypervisor.LocalImage, error) {
	rec := g.record()
	if from != "" {
		s, ok := rec.snapshot(from)
		chain := s.Layers[name]
		switch {
		case !ok:
			return hypervisor.LocalImage{}, fmt.Errorf("snapshot %q: %w", from, hypervisor.ErrNotFound)
		case len(chain) == 0:
			return hypervisor.LocalImage{}, fmt.Errorf("snapshot %q has no such disk: %w", from, hypervisor.ErrNotFound)
		}
		return g.local(chain[0]), nil
	}
	for _, k := range disk.Plan(rec.Guest) {
		switch {
		case k.Name != name:
		case k.Kind == disk.Medium:
			return hypervisor.LocalImage{}, errors.Join(errors.New("a CD-ROM is an image of the site already"), hypervisor.ErrUnsupported)
		case g.process() != nil:
			return hypervisor.LocalImage{}, fmt.Errorf("it is being written by a guest that is %s; take a snapshot and export that: %w", g.condition(), hypervisor.ErrWrongState)
		default:
			return g.local(rec.topOf(k)), nil
		}
	}
	return hypervisor.LocalImage{}, hypervisor.ErrNotFound
}

// local is a file of the guest's folder.
func (g *guest) local(name string) hypervisor.LocalImage {
	return hypervisor.LocalImage{Disk: filepath.Join(g.dir, name), Format: disk.Format(name)}
}
