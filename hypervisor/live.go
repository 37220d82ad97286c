package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Names in Capabilities.Operations of what a driver may be able to do beyond Driver.
const (
	OpMemory   = "memory-hotplug" // Resizer: memory within the declared range
	OpVCPUs    = "vcpu-hotplug"   // Resizer: more vCPUs, up to the declared number
	OpDisks    = "disk-grow"      // Resizer: disks grown on line
	OpExport   = "disk-export"    // DiskExporter
	OpSnapshot = "snapshot"       // Snapshotter
)

// ErrExists says that a snapshot's name is taken.
var ErrExists = errors.New("there is one of that name already")

// Resizer changes guests while they run. What it cannot change so is left for the next
// boot, which Start does in any case.
type Resizer interface {
	// Resize brings a running or paused guest as near to want as it gets without a boot,
	// and says in words what waits for the next one, each line with its reason. It is
	// idempotent, and an error means that QEMU or the like does not answer: try again.
	Resize(ctx context.Context, id vee.ID, e vee.Epoch, want vee.Descriptor) (waiting []string, err error)
}

// Export of a disk: one qcow2 file that needs no other. Read it to its end and close it.
type Export struct {
	io.ReadCloser
	Size   int64  // bytes to read
	Digest string // "sha256:…" of them
}

// DiskExporter tells of a guest's disks and gives them out.
type DiskExporter interface {
	// Disks in the order of their devices; ErrNotFound.
	Disks(ctx context.Context, id vee.ID) ([]vee.DiskInfo, error)
	// Export the disk of a guest without a process, or as a snapshot has it in any
	// condition. Errors: ErrNotFound, ErrWrongState, ErrNoSpace (it is put together on the
	// host first).
	Export(ctx context.Context, id vee.ID, disk, snapshot string) (*Export, error)
}

// Snapshotter freezes guests and takes them back. A guest that runs stands still while it
// is frozen, as long as it takes to write its memory, and then goes on.
type Snapshotter interface {
	// Snapshot freezes the disks, and the memory if it runs or is suspended. g is what Wake
	// needs. A failed one leaves the guest as it was. Errors: ErrExists, ErrNoSpace,
	// ErrWrongState (memory of a guest that has none).
	Snapshot(ctx context.Context, g Guest, name string, memory bool) (vee.Snapshot, error)
	Snapshots(ctx context.Context, id vee.ID) ([]vee.Snapshot, error)
	// Restore the disks: the guest is Stopped afterwards, or Suspended with the memory of
	// that time where the snapshot has it. What it was before is given up. ErrNotFound.
	Restore(ctx context.Context, id vee.ID, e vee.Epoch, name string) error
	// DeleteSnapshot frees what only it needs; of one that is not there nil. Layers that lie
	// under a disk are merged when the guest is at rest.
	DeleteSnapshot(ctx context.Context, id vee.ID, e vee.Epoch, name string) error
}

var snapshotName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,30}[a-z0-9])?$`)

// CheckSnapshotName says what is wrong with a name for a snapshot.
func CheckSnapshotName(name string) error {
	if !snapshotName.MatchString(name) {
		return fmt.Errorf("snapshot name %q: want up to 32 small letters, digits, dots and hyphens", name)
	}
	return nil
}

// In Capabilities.Operations: OpPack says that the driver is a Packer, OpMigrateCold that it packs
// guests themselves too, so that they migrate while they do not run.
const (
	OpPack        = "snapshot-pack"
	OpMigrateCold = "migrate-cold"
)

// Packer lets a snapshot survive its host: it is written as one stream on one host, and a
// guest is made of it on another, where the images are that the guest is made of.
type Packer interface {
	// Pack writes a snapshot, in any condition of its guest; without a name, the guest itself,
	// stopped or suspended, which must have no snapshots (ErrUnsupported: they do not travel).
	// Only drivers of the same name read it. ErrNotFound, ErrWrongState, ErrNoSpace (it is put
	// together on the host first).
	Pack(ctx context.Context, id vee.ID, snapshot string, w io.Writer) error
	// Unpack makes a guest (absent → stopped, or suspended where the snapshot has its
	// memory). Of g its identity, epoch, images and NICs count; the description is the
	// snapshot's, since memory fits nothing else. A failed one leaves nothing. The stream is
	// read to its end only when it is whole.
	Unpack(ctx context.Context, g Guest, r io.Reader) error
	// Seed makes a guest (absent → stopped) that begins with the disks of a snapshot, which may
	// be another guest's. The description is g's, and the snapshot's memory is passed over.
	// A failed one leaves nothing.
	Seed(ctx context.Context, g Guest, r io.Reader) error
}

// SnapshotsStay is why a guest that has n of them goes nowhere; nil where it has none.
func SnapshotsStay(n int) error {
	if n == 0 {
		return nil
	}
	return fmt.Errorf("it has %d snapshots, which do not travel: %w; delete them first", n, ErrUnsupported)
}
