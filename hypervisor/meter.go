package hypervisor

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Meter tells what guests take of their host. Counters are of a guest's process and start
// again at zero with the next one, on this host or another. All methods return ErrNotFound or
// ErrWrongState for a guest that has no process, and ErrUnsupported for what a driver cannot
// tell. They wait for no command that is under way.
type Meter interface {
	// CPUUse is the time that its process has run, the hypervisor's own part included.
	CPUUse(ctx context.Context, id vee.ID) (time.Duration, error)
	MemoryUse(ctx context.Context, id vee.ID) (MemoryUse, error)
	// BlockUse of all its disks together.
	BlockUse(ctx context.Context, id vee.ID) (BlockUse, error)
	// DirtyRate is how much memory the guest changes in a second. It watches the guest for so
	// long, whole seconds.
	DirtyRate(ctx context.Context, id vee.ID, over time.Duration) (vee.Bytes, error)
}

// MemoryUse of a guest.
type MemoryUse struct {
	Resident vee.Bytes // of its process in the host's memory
	Guest    vee.Bytes // that the balloon leaves the guest
}

// BlockUse counts since the guest's process started.
type BlockUse struct {
	Read, Written vee.Bytes
	Reads, Writes uint64
}
