package qemu

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

var _ hypervisor.Meter = (*Driver)(nil)

// clockTick is the unit of times in /proc (USER_HZ; the same on every architecture that
// Linux has been brought to since).
const clockTick = 10 * time.Millisecond

// metered is the process of a guest, or why there is none.
func (d *Driver) metered(id vee.ID) (*vm, error) {
	g := d.guest(id)
	switch g.condition() { // one that was sent, or is still coming, is another host's to measure
	case hypervisor.Running, hypervisor.Paused, hypervisor.Halted:
		if v := g.process(); v != nil {
			return v, nil
		}
	}
	return nil, g.wrongState("measure")
}

// CPUUse implements hypervisor.Meter.
func (d *Driver) CPUUse(_ context.Context, id vee.ID) (time.Duration, error) {
	v, err := d.metered(id)
	if err != nil {
		return 0, err
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.PID))
	if err != nil {
		return 0, fmt.Errorf("CPU time of %s: %w", id, err)
	}
	used, err := cpuTime(string(stat))
	if err != nil {
		return 0, fmt.Errorf("CPU time of %s: %w", id, err)
	}
	return used, nil
}

// cpuTime of all threads, those that ended included: utime and stime of proc(5)'s stat.
func cpuTime(stat string) (time.Duration, error) {
	_, rest, _ := cutLast(stat, ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("stat %.60q of a process", stat)
	}
	ticks := int64(0)
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// MemoryUse implements hypervisor.Meter.
func (d *Driver) MemoryUse(ctx context.Context, id vee.ID) (u hypervisor.MemoryUse, err error) {
	v, err := d.metered(id)
	if err != nil {
		return u, err
	}
	if u.Guest, err = v.ballooned(ctx); err != nil {
		return u, fmt.Errorf("memory of %s: %w", id, err)
	}
	u.Resident = vee.Bytes(v.rss())
	return u, nil
}

// BlockUse implements hypervisor.Meter.
func (d *Driver) BlockUse(ctx context.Context, id vee.ID) (u hypervisor.BlockUse, err error) {
	v, err := d.metered(id)
	if err != nil {
		return u, err
	}
	var devices []struct {
		Stats struct {
			ReadBytes    vee.Bytes `json:"rd_bytes"`
			WrittenBytes vee.Bytes `json:"wr_bytes"`
			Reads        uint64    `json:"rd_operations"`
			Writes       uint64    `json:"wr_operations"`
		} `json:"stats"`
	}
	if err := v.do(ctx, "query-blockstats", nil, &devices); err != nil {
		return u, fmt.Errorf("disks of %s: %w", id, err)
	}
	for _, k := range devices {
		u.Read += k.Stats.ReadBytes
		u.Written += k.Stats.WrittenBytes
		u.Reads += k.Stats.Reads
		u.Writes += k.Stats.Writes
	}
	return u, nil
}

// dirtyMargin is how much longer than it was asked to QEMU may watch.
const dirtyMargin = 5 * time.Second

// DirtyRate implements hypervisor.Meter. QEMU takes samples of pages and looks again, which
// slows the guest down no more than reading them does (qapi/migration.json, calc-dirty-rate).
func (d *Driver) DirtyRate(ctx context.Context, id vee.ID, over time.Duration) (vee.Bytes, error) {
	v, err := d.metered(id)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, over+dirtyMargin)
	defer cancel()
	seconds := max(int(over/time.Second), 1)
	if err := v.do(ctx, "calc-dirty-rate", object{"calc-time": seconds}, nil); err != nil {
		return 0, fmt.Errorf("dirty rate of %s: %w", id, err)
	}
	wait := time.Duration(seconds) * time.Second
	for {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return 0, fmt.Errorf("dirty rate of %s: %w", id, context.Cause(ctx))
		}
		var now struct {
			Status string `json:"status"`
			Rate   int64  `json:"dirty-rate"` // MiB/s
		}
		if err := v.do(ctx, "query-dirty-rate", nil, &now); err != nil {
			return 0, fmt.Errorf("dirty rate of %s: %w", id, err)
		}
		if now.Status == "measured" {
			return vee.Bytes(max(now.Rate, 0)) * vee.MiB, nil
		}
		wait = 100 * time.Millisecond
	}
}
