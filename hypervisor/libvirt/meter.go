package libvirt

import (
	"context"
	"fmt"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

var _ hypervisor.Meter = (*Driver)(nil)

// metered asks libvirt about a guest that has a process.
func (d *Driver) metered(ctx context.Context, id vee.ID, what string, ask func(l *rpc.Libvirt, dom rpc.Domain) error) error {
	g := d.guest(id)
	switch g.condition() {
	case hypervisor.Running, hypervisor.Paused, hypervisor.Halted:
	default:
		return g.wrongState("measure")
	}
	if g.d.kind == kindMock {
		return fmt.Errorf("%s of %s: libvirt's mock measures nothing: %w", what, id, hypervisor.ErrUnsupported)
	}
	if err := g.do(ctx, func(l *rpc.Libvirt) error { return ask(l, g.dom) }); err != nil {
		return fmt.Errorf("%s of %s: %w", what, id, err)
	}
	return nil
}

// CPUUse implements hypervisor.Meter.
func (d *Driver) CPUUse(ctx context.Context, id vee.ID) (used time.Duration, err error) {
	err = d.metered(ctx, id, "CPU time", func(l *rpc.Libvirt, dom rpc.Domain) error {
		_, _, _, _, ns, err := l.DomainGetInfo(dom)
		used = time.Duration(ns)
		return err
	})
	return used, err
}

// Tags of DomainMemoryStats (libvirt-domain.h, virDomainMemoryStatTags), in KiB.
const (
	statBalloon  = 6
	statResident = 7
	statTags     = 16
)

// MemoryUse implements hypervisor.Meter.
func (d *Driver) MemoryUse(ctx context.Context, id vee.ID) (u hypervisor.MemoryUse, err error) {
	err = d.metered(ctx, id, "memory", func(l *rpc.Libvirt, dom rpc.Domain) error {
		stats, err := l.DomainMemoryStats(dom, statTags, 0)
		for _, s := range stats {
			switch s.Tag {
			case statBalloon:
				u.Guest = vee.Bytes(s.Val) * vee.KiB
			case statResident:
				u.Resident = vee.Bytes(s.Val) * vee.KiB
			}
		}
		return err
	})
	return u, err
}

// BlockUse implements hypervisor.Meter.
func (d *Driver) BlockUse(ctx context.Context, id vee.ID) (u hypervisor.BlockUse, err error) {
	err = d.metered(ctx, id, "disks", func(l *rpc.Libvirt, dom rpc.Domain) error {
		reads, read, writes, written, _, err := l.DomainBlockStats(dom, "") // of all of them
		u = hypervisor.BlockUse{Read: vee.Bytes(max(read, 0)), Written: vee.Bytes(max(written, 0)), Reads: uint64(max(reads, 0)), Writes: uint64(max(writes, 0))}
		return err
	})
	return u, err
}

// DirtyRate implements hypervisor.Meter. What libvirt measures of it, it tells only in
// statistics that this driver's library cannot read yet.
func (d *Driver) DirtyRate(_ context.Context, id vee.ID, _ time.Duration) (vee.Bytes, error) {
	return 0, fmt.Errorf("dirty rate of %s: driver %s does not tell: %w", id, Name, hypervisor.ErrUnsupported)
}
