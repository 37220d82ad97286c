// Package hypervisor is the bare hardware wrapper (seed 4): one small interface between a
// host's agent and whatever runs its guests. Drivers live in the folders beside this file;
// all of them pass the same suite, in hypervisor/conformance.
//
// Every command carries the epoch of the VEE, and a driver refuses an epoch older than one
// that it has obeyed (ErrStaleEpoch, see Fence). Guests are not children of the driver's
// process in spirit: Close leaves them running, and a new driver on the same directory
// adopts them.
package hypervisor

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Errors that callers decide on. Drivers wrap them.
var (
	ErrStaleEpoch  = errors.New("a newer epoch has been obeyed")
	ErrNotFound    = errors.New("no such guest")
	ErrWrongState  = errors.New("not possible in the guest's condition")
	ErrUnsupported = errors.New("this driver cannot do that")
	ErrNoSpace     = errors.New("no space left on the host's disk")
)

// Condition of a guest, as observed.
type Condition string

// Conditions. Prepared, Stopped: disks are there and no process is. Halted: the guest's
// process stopped its vCPUs by itself (an I/O error under werror=stop); Resume tries again.
const (
	Absent    Condition = "absent"
	Stopped   Condition = "stopped"
	Running   Condition = "running"
	Paused    Condition = "paused"
	Suspended Condition = "suspended" // memory saved to disk, no process
	Halted    Condition = "halted"
	Crashed   Condition = "crashed" // its process ended without being told to
)

// ReasonPoweredOff is the Reason of a guest that is Crashed because it shut itself down: it
// ended without being told to, and its restart policy says what becomes of it.
const ReasonPoweredOff = "guest powered off"

// LocalImage is a verified image on this host. A Kernel means direct boot.
type LocalImage struct {
	Digest  string // manifest digest, as in vee.Disk.Image
	Disk    string // path of a qcow2 or raw file, never written; may be empty
	Format  string // of Disk: "qcow2" or "raw"
	Kernel  string
	Initrd  string
	Cmdline string
}

// KernelOptions are the image's, for a guest of so many vCPUs. With acpi=noirq, which makes
// a boot shorter, Linux does not read from ACPI which vCPUs there are, and uses one.
func (i LocalImage) KernelOptions(vcpus int) string {
	if vcpus < 2 {
		return i.Cmdline
	}
	return strings.Join(slices.DeleteFunc(strings.Fields(i.Cmdline), func(o string) bool { return o == "acpi=noirq" }), " ")
}

// NIC is where a guest's NIC is plugged in: an existing TAP device. The i-th belongs to
// the i-th NIC of the descriptor.
type NIC struct {
	Tap string
	MAC string
}

// Guest is all that a driver needs to make one. The caller owns it; drivers copy.
type Guest struct {
	ID         vee.ID
	Epoch      vee.Epoch
	Descriptor vee.Descriptor
	Images     []LocalImage // every image that Descriptor.Disks name
	NICs       []NIC
}

// Observation of one guest.
type Observation struct {
	ID        vee.ID
	Epoch     vee.Epoch // the newest obeyed
	Condition Condition
	PID       int    // of its process, 0 when there is none
	Reason    string // why it crashed or halted, in words
	Since     time.Time
	DiskUsed  vee.Bytes // taken on this host by its own disks and saved memory
}

// Event says that a guest's condition changed; read Observe for what it is now.
type Event struct {
	ID        vee.ID
	Condition Condition
	Reason    string
}

// Capabilities of a driver on this host.
type Capabilities struct {
	Driver      string   // "qemu", "sim"
	Version     string   // of the hypervisor
	Accelerator string   // "kvm", "tcg"; empty where it means nothing
	Why         string   // how the accelerator was chosen, in words
	Operations  []string // beyond the interface's minimum: "suspend", "console", "guest-channel"
	Simulated   bool     // true: says so wherever it is shown
}

// Driver runs guests. All methods may be called from several goroutines; calls about one
// guest are serialised by the driver. Every method that changes something is idempotent:
// called again after success it returns nil and changes nothing.
type Driver interface {
	Capabilities(ctx context.Context) (Capabilities, error)

	// Prepare makes the guest's disks and seed medium (absent → stopped). On a guest that
	// exists it brings description and epoch up to date where it can be done at rest.
	Prepare(ctx context.Context, g Guest) error
	// Start boots a stopped or crashed guest. It returns when the vCPUs run.
	Start(ctx context.Context, g Guest) error
	Pause(ctx context.Context, id vee.ID, e vee.Epoch) error
	Resume(ctx context.Context, id vee.ID, e vee.Epoch) error
	// Suspend saves memory to disk and ends the process; Wake is the way back. A failed
	// Suspend leaves the guest running, a failed Wake leaves it suspended.
	Suspend(ctx context.Context, id vee.ID, e vee.Epoch, progress func(vee.Progress)) error
	Wake(ctx context.Context, g Guest) error
	// Stop asks the guest to shut down, and after grace ends its process. Disks are kept,
	// saved memory is dropped. A zero grace ends it at once.
	Stop(ctx context.Context, id vee.ID, e vee.Epoch, grace time.Duration) error
	// Destroy ends the guest and deletes everything it had on this host except the
	// epoch, which goes on being refused when older.
	Destroy(ctx context.Context, id vee.ID, e vee.Epoch) error

	// Observe lists every guest that has a process or data on this host.
	Observe(ctx context.Context) ([]Observation, error)
	// Inspect is Observe of one guest; ErrNotFound where there is none.
	Inspect(ctx context.Context, id vee.ID) (Observation, error)
	// Events delivers changes until Close; a slow reader loses none for good, since
	// Observe tells the whole truth.
	Events() <-chan Event

	// Console is the serial console; GuestChannel the guest agent's line. Both are
	// streams that the caller closes; a second caller takes over from the first.
	Console(ctx context.Context, id vee.ID) (io.ReadWriteCloser, error)
	GuestChannel(ctx context.Context, id vee.ID) (net.Conn, error)

	// Close lets go and leaves the guests running.
	Close() error
}
