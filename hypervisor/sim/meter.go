package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

var _ hypervisor.Meter = (*Driver)(nil)

// What a simulated guest takes while it is up: a tenth of each vCPU, its memory, and a block
// of its disks now and then.
const (
	simulatedLoad  = 0.1
	simulatedBlock = 4 * vee.KiB
	blockEvery     = 100 * time.Millisecond
)

// metered is how long a guest has been up, and its descriptor.
func (d *Driver) metered(id vee.ID) (up time.Duration, is vee.Descriptor, err error) {
	g := d.find(id)
	if _, err := g.in("measure", hypervisor.Running, hypervisor.Paused, hypervisor.Halted); err != nil {
		return 0, is, fmt.Errorf("measure %s: %w", id, err)
	}
	s := g.state()
	return max(0, d.cfg.Clock.Now().Sub(s.Booted)), s.Guest.Descriptor, nil
}

// CPUUse implements hypervisor.Meter.
func (d *Driver) CPUUse(_ context.Context, id vee.ID) (time.Duration, error) {
	up, is, err := d.metered(id)
	return time.Duration(simulatedLoad * float64(is.VCPUs) * float64(up)), err
}

// MemoryUse implements hypervisor.Meter.
func (d *Driver) MemoryUse(_ context.Context, id vee.ID) (hypervisor.MemoryUse, error) {
	_, is, err := d.metered(id)
	return hypervisor.MemoryUse{Resident: is.Memory, Guest: is.Memory}, err
}

// BlockUse implements hypervisor.Meter.
func (d *Driver) BlockUse(_ context.Context, id vee.ID) (hypervisor.BlockUse, error) {
	up, _, err := d.metered(id)
	n := uint64(up / blockEvery)
	moved := vee.Bytes(n) * simulatedBlock
	return hypervisor.BlockUse{Read: moved, Written: moved, Reads: n, Writes: n}, err
}

// DirtyRate implements hypervisor.Meter.
func (d *Driver) DirtyRate(_ context.Context, id vee.ID, _ time.Duration) (vee.Bytes, error) {
	if _, _, err := d.metered(id); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("dirty rate of %s, whose memory is simulated: %w", id, hypervisor.ErrUnsupported)
}
