package lrt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Machine tells what is taken of this one, by everything that runs on it. Counters start
// when the machine does.
type Machine struct {
	Root string // of the files that the kernel tells by; "/" but in tests
	Dir  string // where VEEs' disks are

	energy energy
}

// userHZ is how many of the units of /proc/stat are a second.
const userHZ = 100

// CPU time of all CPUs together, in seconds.
type CPU struct{ User, System, Wait, Stolen, Idle float64 }

// CPU reads the first line of /proc/stat (proc(5)).
func (m *Machine) CPU() (c CPU, err error) {
	line, err := m.line("proc/stat", "cpu ")
	if err != nil {
		return c, err
	}
	f, err := numbers(strings.Fields(line), 8)
	if err != nil {
		return c, fmt.Errorf("CPU time of this machine: %w", err)
	}
	// user nice system idle iowait irq softirq steal; what guests take is in user.
	return CPU{User: (f[0] + f[1]) / userHZ, System: (f[2] + f[5] + f[6]) / userHZ, Wait: f[4] / userHZ, Stolen: f[7] / userHZ, Idle: f[3] / userHZ}, nil
}

// Load is the number of runnable tasks for each CPU, averaged over a minute.
func (m *Machine) Load() (float64, error) {
	line, err := m.line("proc/loadavg", "")
	if err != nil {
		return 0, err
	}
	f, err := numbers(strings.Fields(line), 1)
	if err != nil {
		return 0, fmt.Errorf("load of this machine: %w", err)
	}
	return f[0] / float64(runtime.NumCPU()), nil
}

// Memory of the machine. Available is what new processes could have.
type Memory struct{ Total, Available, SwapUsed vee.Bytes }

// Memory reads /proc/meminfo (proc(5)).
func (m *Machine) Memory() (Memory, error) {
	of := map[string]vee.Bytes{}
	text, err := os.ReadFile(filepath.Join(m.Root, "proc/meminfo"))
	if err != nil {
		return Memory{}, fmt.Errorf("memory of this machine: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		if kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64); err == nil {
			of[name] = vee.Bytes(kib) * vee.KiB
		}
	}
	if of["MemTotal"] == 0 {
		return Memory{}, errors.New("memory of this machine: /proc/meminfo has no MemTotal")
	}
	return Memory{Total: of["MemTotal"], Available: of["MemAvailable"], SwapUsed: of["SwapTotal"] - of["SwapFree"]}, nil
}

// Disk of the machine: the file system of Dir, and what all its disks have read and written.
type Disk struct {
	Total, Free   vee.Bytes
	Read, Written vee.Bytes
}

// sector is the unit of /proc/diskstats, whatever the device's own is.
const sector = 512

// Disk reads /proc/diskstats (the kernel's iostats.rst). Whole disks count, and neither their
// partitions nor devices that lead to others.
func (m *Machine) Disk() (d Disk, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(m.Dir, &st); err != nil {
		return d, fmt.Errorf("file system of %s: %w", m.Dir, err)
	}
	d.Total, d.Free = vee.Bytes(st.Blocks)*vee.Bytes(st.Bsize), vee.Bytes(st.Bavail)*vee.Bytes(st.Bsize)
	text, err := os.ReadFile(filepath.Join(m.Root, "proc/diskstats"))
	if err != nil {
		return d, fmt.Errorf("disks of this machine: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 10 || !m.isDisk(f[2]) {
			continue
		}
		n, err := numbers(f[3:], 7)
		if err != nil {
			return d, fmt.Errorf("disk %s: %w", f[2], err)
		}
		d.Read += vee.Bytes(n[2]) * sector
		d.Written += vee.Bytes(n[6]) * sector
	}
	return d, nil
}

// isDisk reports whether a block device is hardware (or what a hypervisor shows as such).
func (m *Machine) isDisk(name string) bool {
	_, err := os.Stat(filepath.Join(m.Root, "sys/block", strings.ReplaceAll(name, "/", "!"), "device"))
	return err == nil
}

// Traffic of network devices.
type Traffic struct{ Received, Sent vee.Bytes }

// Network is the traffic of those devices of the machine that lead out of it: not of
// loopback, and not of what this product has made for VEEs (skip).
func (m *Machine) Network(skip func(device string) bool) (t Traffic, err error) {
	text, err := os.ReadFile(filepath.Join(m.Root, "proc/thread-self/net/dev"))
	if err != nil {
		return t, fmt.Errorf("network of this machine: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		name, rest, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "lo" || skip(name) {
			continue
		}
		f, err := numbers(strings.Fields(rest), 9)
		if err != nil {
			return t, fmt.Errorf("network device %s: %w", name, err)
		}
		t.Received += vee.Bytes(f[0])
		t.Sent += vee.Bytes(f[8])
	}
	return t, nil
}

// ErrNoEnergy says that a machine does not tell what energy it takes.
var ErrNoEnergy = errors.New("this machine does not tell its energy: it has no powercap zone (RAPL) that can be read")

// energy adds up counters that wrap.
type energy struct {
	mu    sync.Mutex
	last  map[string]uint64 // µJ, by zone
	total float64           // µJ since the first look
}

// Energy that the machine's processor packages and their memory have taken since the first
// call, in joules (the kernel's powercap.rst: zones intel-rapl:N, which AMD's processors have
// too). It must be called more often than the counters wrap, which takes minutes. ErrNoEnergy
// where there are none: most virtual machines.
func (m *Machine) Energy() (joules float64, err error) {
	m.energy.mu.Lock()
	defer m.energy.mu.Unlock()
	zones, err := filepath.Glob(filepath.Join(m.Root, "sys/class/powercap/intel-rapl:*"))
	if err != nil {
		return 0, err
	}
	now := map[string]uint64{}
	for _, z := range zones {
		if name, err := readText(filepath.Join(z, "name")); err != nil || !strings.HasPrefix(name, "package") && name != "dram" {
			continue // parts of a package are in the package's
		}
		n, err := readNumber(filepath.Join(z, "energy_uj"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("energy of zone %s: %w", filepath.Base(z), err)
		}
		now[z] = n
		if last, known := m.energy.last[z]; known && n >= last {
			m.energy.total += float64(n - last)
		} else if most, err := readNumber(filepath.Join(z, "max_energy_range_uj")); known && err == nil && most >= last {
			m.energy.total += float64(most - last + n)
		}
	}
	if len(now) == 0 {
		return 0, ErrNoEnergy
	}
	m.energy.last = now
	return m.energy.total / 1e6, nil
}

func readText(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

func readNumber(path string) (uint64, error) {
	s, err := readText(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(s, 10, 64)
}

// line of a file that starts so, without that.
func (m *Machine) line(file, start string) (string, error) {
	text, err := os.ReadFile(filepath.Join(m.Root, file))
	if err != nil {
		return "", fmt.Errorf("read what this machine does: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, start); ok {
			return rest, nil
		}
	}
	return "", fmt.Errorf("/%s has no line %q", file, start)
}

// numbers that the first n fields are.
func numbers(fields []string, n int) ([]float64, error) {
	if len(fields) < n {
		return nil, fmt.Errorf("%d numbers where %d should be", len(fields), n)
	}
	list := make([]float64, n)
	for i := range list {
		v, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			if list[i], err = strconv.ParseFloat(fields[i], 64); err != nil {
				return nil, err
			}
			continue
		}
		list[i] = float64(v)
	}
	return list, nil
}
