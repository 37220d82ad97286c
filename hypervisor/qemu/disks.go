package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// diskKind says what a disk is made from.
type diskKind int

const (
	blank  diskKind = iota // raw, sparse
	clone                  // qcow2 over the shared image
	copied                 // qcow2 with a content of its own
	medium                 // the shared image itself, read only
)

// disk is what one of the descriptor's disks becomes on this host.
type disk struct {
	kind  diskKind
	name  string
	file  string // in the guest's folder; a medium has none
	base  hypervisor.LocalImage
	size  vee.Bytes // 0: that of the image
	image string
}

// planDisks of a guest that passed its Check, in the order of their devices. A disk whose
// image has nothing but a kernel is blank, or is none when it has no size either.
//
// A persistent disk is copied whole when it is made, because it outlives the image that it
// came from; the others stay clones.
func planDisks(g hypervisor.Guest) []disk {
	images := map[string]hypervisor.LocalImage{}
	for _, i := range g.Images {
		images[i.Digest] = i
	}
	var disks []disk
	for _, k := range inDeviceOrder(g.Descriptor.Disks) {
		d := disk{name: k.Name, size: k.Size, image: k.Image, base: images[k.Image]}
		switch {
		case k.CDROM:
			d.kind = medium
		case d.base.Disk != "" && k.Persistent:
			d.kind, d.file = copied, "disk-"+k.Name+".qcow2"
		case d.base.Disk != "":
			d.kind, d.file = clone, "disk-"+k.Name+".qcow2"
		case k.Size > 0:
			d.kind, d.file = blank, "disk-"+k.Name+".raw"
		default:
			continue
		}
		disks = append(disks, d)
	}
	return disks
}

// inDeviceOrder puts disks that name their device ("vdb") at its place among the others.
// Devices have no gaps: a lone disk that asks for vdc gets vda.
func inDeviceOrder(disks []vee.Disk) []vee.Disk {
	placed := make([]*vee.Disk, 26)
	var others []*vee.Disk
	for i := range disks {
		k := &disks[i]
		letter, ok := strings.CutPrefix(k.Target, "vd")
		if !ok || len(letter) != 1 || letter[0] < 'a' || letter[0] > 'z' || placed[letter[0]-'a'] != nil {
			others = append(others, k)
			continue
		}
		placed[letter[0]-'a'] = k
	}
	ordered := make([]vee.Disk, 0, len(disks))
	for _, k := range placed {
		if k == nil && len(others) > 0 {
			k, others = others[0], others[1:]
		}
		if k != nil {
			ordered = append(ordered, *k)
		}
	}
	for _, k := range others {
		ordered = append(ordered, *k)
	}
	return ordered
}

// make the disk in a guest's folder, written through.
func (d disk) make(ctx context.Context, imageTool, dir string) error {
	path := filepath.Join(dir, d.file)
	if d.kind == medium {
		return nil
	}
	if d.kind != blank && d.size > 0 {
		size, err := virtualSize(d.base)
		if err != nil {
			return fmt.Errorf("make disk %q: %w", d.name, err)
		}
		if d.size < size {
			return fmt.Errorf("make disk %q: %s is smaller than its image, which has %s", d.name, d.size, size)
		}
	}
	var err error
	switch d.kind {
	case blank:
		err = makeSparse(path, d.size)
	case clone:
		args := []string{"create", "-q", "-f", "qcow2", "-F", d.base.Format, "-b", d.base.Disk, path}
		if d.size > 0 {
			args = append(args, strconv.FormatInt(int64(d.size), 10))
		}
		err = run(ctx, imageTool, args...)
	case copied:
		err = run(ctx, imageTool, "convert", "-q", "-f", d.base.Format, "-O", "qcow2", d.base.Disk, path)
		if err == nil && d.size > 0 {
			err = d.grow(ctx, imageTool, path)
		}
	}
	if err == nil {
		err = syncFile(path)
	}
	if err != nil {
		return fmt.Errorf("make disk %q: %w", d.name, err)
	}
	return nil
}

// grow the disk in file to its size, which must not be less than it has.
func (d disk) grow(ctx context.Context, imageTool, path string) error {
	return run(ctx, imageTool, "resize", "-q", "-f", formatOf(path), path, strconv.FormatInt(int64(d.size), 10))
}

// formatOf a file in a guest's folder, by its name.
func formatOf(path string) string { return strings.TrimPrefix(filepath.Ext(path), ".") }

// virtualSize of an image's disk.
func virtualSize(i hypervisor.LocalImage) (vee.Bytes, error) {
	f, err := os.Open(i.Disk)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if i.Format == "raw" {
		st, err := f.Stat()
		if err != nil {
			return 0, err
		}
		return vee.Bytes(st.Size()), nil
	}
	// QEMU docs/interop/qcow2.rst, "Header": bytes 24 to 31. Whoever put the image on
	// this host has checked the rest.
	var size [8]byte
	if _, err := f.ReadAt(size[:], 24); err != nil {
		return 0, fmt.Errorf("read the size of %s: %w", i.Disk, err)
	}
	return vee.Bytes(binary.BigEndian.Uint64(size[:])), nil
}

func makeSparse(path string, size vee.Bytes) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(int64(size)), f.Close())
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// run a tool; its words become the error.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	text := strings.Join(strings.Fields(string(out)), " ")
	if short, full := strings.CutSuffix(text, ": No space left on device"); full {
		return fmt.Errorf("%s: %w", short, unix.ENOSPC)
	}
	return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, text)
}

// noSpace gives the driver's name to the kernel's error.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) && !errors.Is(err, hypervisor.ErrNoSpace) {
		return fmt.Errorf("%w: %w", hypervisor.ErrNoSpace, err)
	}
	return err
}

// diskFree on the file system that holds dir, for us.
func diskFree(dir string) (vee.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for the free space under %s: %w", dir, err)
	}
	return vee.Bytes(int64(st.Bavail) * st.Bsize), nil
}

// diskUsed by the files in dir; a sparse file counts what it takes.
func diskUsed(dir string) vee.Bytes {
	var used vee.Bytes
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			used += vee.Bytes(st.Blocks * 512)
		}
		return nil
	})
	return used
}
