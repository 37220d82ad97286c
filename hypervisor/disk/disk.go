// Package disk makes what a guest boots from on a host: clones of images, blank disks, the
// seed medium. Every driver that runs guests from files of this host uses it; what a
// hypervisor does with the files, and who owns them, is the driver's.
package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Kind says what a disk is made from.
type Kind int

// Kinds.
const (
	Blank  Kind = iota // raw, sparse
	Clone              // qcow2 over the shared image
	Copied             // qcow2 with a content of its own
	Medium             // the shared image itself, read only
)

// Disk is what one of the descriptor's disks becomes on this host.
type Disk struct {
	Kind  Kind
	Name  string
	File  string // in the guest's folder; a Medium has none
	Base  hypervisor.LocalImage
	Size  vee.Bytes // 0: that of the image
	Image string
}

// Plan of a guest that passed its Check, in the order of their devices. A disk whose
// image has nothing but a kernel is blank, or is none when it has no size either.
//
// A persistent disk is copied whole when it is made, because it outlives the image that it
// came from; the others stay clones.
func Plan(g hypervisor.Guest) []Disk {
	images := map[string]hypervisor.LocalImage{}
	for _, i := range g.Images {
		images[i.Digest] = i
	}
	var disks []Disk
	for _, k := range inDeviceOrder(g.Descriptor.Disks) {
		d := Disk{Name: k.Name, Size: k.Size, Image: k.Image, Base: images[k.Image]}
		switch {
		case k.CDROM:
			d.Kind = Medium
		case d.Base.Disk != "" && k.Persistent:
			d.Kind, d.File = Copied, "disk-"+k.Name+".qcow2"
		case d.Base.Disk != "":
			d.Kind, d.File = Clone, "disk-"+k.Name+".qcow2"
		case k.Size > 0:
			d.Kind, d.File = Blank, "disk-"+k.Name+".raw"
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

// Make the disk in a guest's folder, written through.
func (d Disk) Make(ctx context.Context, imageTool, dir string) error {
	path := filepath.Join(dir, d.File)
	if d.Kind == Medium {
		return nil
	}
	if d.Kind != Blank && d.Size > 0 {
		size, err := VirtualSize(d.Base)
		if err != nil {
			return fmt.Errorf("make disk %q: %w", d.Name, err)
		}
		if d.Size < size {
			return fmt.Errorf("make disk %q: %s is smaller than its image, which has %s", d.Name, d.Size, size)
		}
	}
	var err error
	switch d.Kind {
	case Blank:
		err = makeSparse(path, d.Size)
	case Clone:
		args := []string{"create", "-q", "-f", "qcow2", "-F", d.Base.Format, "-b", d.Base.Disk, path}
		if d.Size > 0 {
			args = append(args, strconv.FormatInt(int64(d.Size), 10))
		}
		err = Run(ctx, imageTool, args...)
	case Copied:
		err = Run(ctx, imageTool, "convert", "-q", "-f", d.Base.Format, "-O", "qcow2", d.Base.Disk, path)
		if err == nil && d.Size > 0 {
			err = d.Grow(ctx, imageTool, path)
		}
	}
	if err == nil {
		err = Sync(path)
	}
	if err != nil {
		return fmt.Errorf("make disk %q: %w", d.Name, err)
	}
	return nil
}

// Grow the disk in file to its size, which must not be less than it has.
func (d Disk) Grow(ctx context.Context, imageTool, path string) error {
	return Run(ctx, imageTool, "resize", "-q", "-f", Format(path), path, strconv.FormatInt(int64(d.Size), 10))
}

// Format of a file in a guest's folder, by its name.
func Format(path string) string { return strings.TrimPrefix(filepath.Ext(path), ".") }

// VirtualSize of an image's disk.
func VirtualSize(i hypervisor.LocalImage) (vee.Bytes, error) {
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

// Sync writes a file through.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Run a tool; its words become the error. It dies with this process: the next one must not
// find its files still being made.
func Run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // whose end the kernel takes for the process's: prctl(2)
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	text := strings.Join(strings.Fields(string(out)), " ")
	if short, full := strings.CutSuffix(text, ": No space left on device"); full {
		return fmt.Errorf("%s: %w", short, unix.ENOSPC)
	}
	return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, text)
}

// NoSpace gives the drivers' name to the kernel's error.
func NoSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) && !errors.Is(err, hypervisor.ErrNoSpace) {
		return fmt.Errorf("%w: %w", hypervisor.ErrNoSpace, err)
	}
	return err
}

// Free on the file system that holds dir, for us.
func Free(dir string) (vee.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for the free space under %s: %w", dir, err)
	}
	return vee.Bytes(int64(st.Bavail) * st.Bsize), nil
}

// Used by the files in dir; a sparse file counts what it takes.
func Used(dir string) vee.Bytes {
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
