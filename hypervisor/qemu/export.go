package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

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
		at := slices.IndexFunc(rec.Guest.Descriptor.Disks, func(w vee.Disk) bool { return w.Name == k.Name })
		w := rec.Guest.Descriptor.Disks[at]
		i := vee.DiskInfo{
			Name: k.Name, Image: w.Image, Source: w.Source, Persistent: w.Persistent, CDROM: w.CDROM,
			Layers: len(rec.Under[k.Name]),
		}
		file := k.Base
		if k.Kind != disk.Medium {
			top := rec.topOf(k)
			file = hypervisor.LocalImage{Disk: filepath.Join(g.dir, top), Format: disk.Format(top)}
			i.Used = g.used(append([]string{top}, rec.Under[k.Name]...)...)
		}
		i.Format = file.Format
		if i.Size, err = disk.VirtualSize(file); err != nil {
			return nil, fmt.Errorf("list disks of %s: %w", id, err)
		}
		all = append(all, i)
	}
	return all, nil
}

// Export implements hypervisor.DiskExporter. The file has no name by the time that its
// bytes are read, so nothing is left of it, whatever happens.
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
	x, err := g.export(ctx, name, snapshot)
	if err != nil {
		return nil, disk.NoSpace(fmt.Errorf("export disk %q of %s: %w", name, id, err))
	}
	return x, nil
}

func (g *guest) export(ctx context.Context, name, from string) (_ *hypervisor.Export, err error) {
	file, err := g.exported(name, from)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(g.dir, "export-*.qcow2")
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = os.Remove(f.Name())
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := disk.Run(ctx, g.d.cfg.ImageTool, "convert", "-q", "-f", file.format, "-O", "qcow2", file.path, f.Name()); err != nil {
		return nil, err
	}
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return &hypervisor.Export{ReadCloser: f, Size: size, Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil))}, nil
}

// exported is the file that is the disk, now or in a snapshot.
func (g *guest) exported(name, from string) (underFile, error) {
	rec := g.record()
	if from != "" {
		s, ok := rec.snapshot(from)
		chain := s.Layers[name]
		switch {
		case !ok:
			return underFile{}, fmt.Errorf("snapshot %q: %w", from, hypervisor.ErrNotFound)
		case len(chain) == 0:
			return underFile{}, fmt.Errorf("snapshot %q has no such disk: %w", from, hypervisor.ErrNotFound)
		}
		return underFile{filepath.Join(g.dir, chain[0]), disk.Format(chain[0])}, nil
	}
	for _, k := range disk.Plan(rec.Guest) {
		switch {
		case k.Name != name:
		case k.Kind == disk.Medium:
			return underFile{}, errors.Join(errors.New("a CD-ROM is an image of the site already"), hypervisor.ErrUnsupported)
		case g.process() != nil:
			return underFile{}, fmt.Errorf("it is being written by a guest that is %s; take a snapshot and export that: %w", g.condition(), hypervisor.ErrWrongState)
		default:
			return underFile{filepath.Join(g.dir, rec.topOf(k)), disk.Format(rec.topOf(k))}, nil
		}
	}
	return underFile{}, hypervisor.ErrNotFound
}
