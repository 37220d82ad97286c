// Package lrt is the local resources tracker of a host's agent (seed 4): what the host has and
// what of it VEEs may take (lrt.go, use.go); a monitoring layer that sees when it has too much,
// too little or is to be emptied (watch.go, pure); and a scheduling layer, by which hosts then
// relieve each other: the shell around package dvms (relief.go) and its problem (plan.go, pure).
package lrt

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Offer is what an operator lets VEEs have of a host. Zero values: all but a reserve for
// the host itself.
type Offer struct {
	CPUOverbook float64 // virtual to physical CPUs; 0: 4
	Memory      vee.Bytes
	Disk        vee.Bytes
}

// Defaults of an Offer.
const (
	defaultOverbook = 4.0
	memoryReserve   = 512 * vee.MiB
	diskReserve     = 1 * vee.GiB
)

// Capacity of this machine under an offer; dir is where disks will be. An offer larger
// than the machine is an error, since VEEs would be promised what is not there. cpus are
// the physical ones.
func Capacity(o Offer, dir string) (r vee.Resources, cpus int, err error) {
	mem, err := totalMemory()
	if err != nil {
		return r, 0, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return r, 0, fmt.Errorf("size of the file system of %s: %w", dir, err)
	}
	r, err = capacity(o, runtime.NumCPU(), mem, vee.Bytes(fs.Blocks)*vee.Bytes(fs.Bsize))
	return r, runtime.NumCPU(), err
}

func capacity(o Offer, cpus int, mem, disk vee.Bytes) (vee.Resources, error) {
	if o.CPUOverbook == 0 {
		o.CPUOverbook = defaultOverbook
	}
	if o.CPUOverbook < 1 || o.CPUOverbook > 1000 {
		return vee.Resources{}, fmt.Errorf("CPU overbooking of %g: want 1 to 1000", o.CPUOverbook)
	}
	if o.Memory > mem || o.Disk > disk {
		return vee.Resources{}, fmt.Errorf("the offer of %s memory and %s disk is more than the machine's %s and %s", o.Memory, o.Disk, mem, disk)
	}
	if o.Memory == 0 {
		o.Memory = max(mem-memoryReserve, mem/2)
	}
	if o.Disk == 0 {
		o.Disk = max(disk-diskReserve, disk/2)
	}
	return vee.Resources{MilliCPU: int64(float64(cpus) * o.CPUOverbook * 1000), Memory: o.Memory, Disk: o.Disk}, nil
}

// DiskFree is what an unprivileged process can still write under dir.
func DiskFree(dir string) (vee.Bytes, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return vee.Bytes(fs.Bavail) * vee.Bytes(fs.Bsize), nil
}

func totalMemory() (vee.Bytes, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("memory of this machine: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if rest, ok := strings.CutPrefix(s.Text(), "MemTotal:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return vee.Bytes(kb) * vee.KiB, err
		}
	}
	return 0, fmt.Errorf("memory of this machine: /proc/meminfo has no MemTotal")
}
