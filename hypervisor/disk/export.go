package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"slices"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Info of a disk of g that is in file now. What it takes on the host, the driver knows.
func Info(g hypervisor.Guest, k Disk, file hypervisor.LocalImage) (vee.DiskInfo, error) {
	at := slices.IndexFunc(g.Descriptor.Disks, func(w vee.Disk) bool { return w.Name == k.Name })
	w := g.Descriptor.Disks[at]
	size, err := VirtualSize(file)
	return vee.DiskInfo{
		Name: k.Name, Image: w.Image, Source: w.Source, Persistent: w.Persistent, CDROM: w.CDROM, Format: file.Format, Size: size,
	}, err
}

// Export a disk that nobody writes to as one qcow2 file, put together in dir. The file has
// no name by the time that its bytes are read, so nothing is left of it, whatever happens.
func Export(ctx context.Context, imageTool, dir string, file hypervisor.LocalImage) (_ *hypervisor.Export, err error) {
	f, err := os.CreateTemp(dir, "export-*.qcow2")
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = os.Remove(f.Name())
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := Run(ctx, imageTool, "convert", "-q", "-f", file.Format, "-O", "qcow2", file.Disk, f.Name()); err != nil {
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
