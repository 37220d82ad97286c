package lrt

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
)

// machine of files.
func machine(t *testing.T, files map[string]string) *Machine {
	t.Helper()
	m := &Machine{Root: t.TempDir(), Dir: t.TempDir()}
	for name, text := range files {
		tell(t, m, name, text)
	}
	return m
}

func tell(t *testing.T, m *Machine, name, text string) {
	t.Helper()
	path := filepath.Join(m.Root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestUse(t *testing.T) {
	m := machine(t, map[string]string{
		"proc/stat":    "cpu  1000 200 300 40000 50 6 7 80 900 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n",
		"proc/loadavg": "3.00 2.00 1.00 1/100 1234\n",
		"proc/meminfo": "MemTotal:        2048 kB\nMemFree: 1 kB\nMemAvailable:    1024 kB\nSwapTotal: 100 kB\nSwapFree: 40 kB\nHugePages_Total: 0\n",
		"proc/diskstats": "   8 0 vda 10 0 100 5 20 0 200 6 0 7 8\n   8 1 vda1 10 0 100 5 20 0 200 6 0 7 8\n" +
			" 7 0 loop0 1 1 1 1 1 1 1 1 1 1 1\n",
		"sys/block/vda/device": "",
		"proc/thread-self/net/dev": "Inter-|   Receive   |  Transmit\n face |bytes    packets\n" +
			"    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  eth0: 1000 1 0 0 0 0 0 0 500 1 0 0 0 0 0 0\nrtaaaa0: 7 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n",
	})
	if c, err := m.CPU(); err != nil || c != (CPU{User: 12, System: 3.13, Wait: .5, Stolen: .8, Idle: 400}) {
		t.Errorf("CPU %+v, %v", c, err)
	}
	if l, err := m.Load(); err != nil || l != 3/float64(runtime.NumCPU()) {
		t.Errorf("load %g, %v", l, err)
	}
	if u, err := m.Memory(); err != nil || u != (Memory{2 * vee.MiB, vee.MiB, 60 * vee.KiB}) {
		t.Errorf("memory %+v, %v", u, err)
	}
	if d, err := m.Disk(); err != nil || d.Read != 51200 || d.Written != 102400 || d.Total <= 0 || d.Free > d.Total {
		t.Errorf("disk %+v, %v", d, err)
	}
	if n, err := m.Network(func(d string) bool { return strings.HasPrefix(d, "rt") }); err != nil || n != (Traffic{1000, 500}) {
		t.Errorf("network %+v, %v", n, err)
	}
}

// What the kernel does not tell as expected is an error, never a number.
func TestUseWithout(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"nothing": {},
		"other": {"proc/stat": "cpu 1 2\n", "proc/loadavg": "x\n", "proc/meminfo": "MemFree: 1 kB\n",
			"proc/diskstats": "8 0 vda a b c d e f g h\n", "sys/block/vda/device": "", "proc/thread-self/net/dev": "eth0: 1\n"},
	} {
		m := machine(t, files)
		_, cpu := m.CPU()
		_, load := m.Load()
		_, memory := m.Memory()
		_, disk := m.Disk()
		_, network := m.Network(func(string) bool { return false })
		for what, err := range map[string]error{"CPU": cpu, "load": load, "memory": memory, "disk": disk, "network": network} {
			if err == nil {
				t.Errorf("%s: no error for %s", name, what)
			}
		}
	}
}

func TestEnergy(t *testing.T) {
	m := machine(t, nil)
	if _, err := m.Energy(); !errors.Is(err, ErrNoEnergy) {
		t.Errorf("a machine without powercap: %v", err)
	}
	const zone, part = "sys/class/powercap/intel-rapl:0/", "sys/class/powercap/intel-rapl:0:0/"
	for name, text := range map[string]string{"name": "package-0\n", "energy_uj": "9000000\n", "max_energy_range_uj": "10000000\n"} {
		tell(t, m, zone+name, text)
	}
	tell(t, m, part+"name", "core\n")
	tell(t, m, part+"energy_uj", "1\n")
	for i, step := range []struct {
		at   string
		want float64
	}{{"9000000", 0}, {"9500000", 0.5}, {"1000000", 2}, {"1000000", 2}} { // the third has wrapped
		tell(t, m, zone+"energy_uj", step.at+"\n")
		if j, err := m.Energy(); err != nil || j != step.want {
			t.Errorf("step %d: %g J, %v; want %g", i, j, err, step.want)
		}
	}
	tell(t, m, zone+"energy_uj", "broken\n")
	if _, err := m.Energy(); err == nil {
		t.Error("a counter that is no number is no error")
	}
}

// This machine tells what the product needs.
func TestUseOfThisMachine(t *testing.T) {
	m := &Machine{Root: "/", Dir: t.TempDir()}
	c, err := m.CPU()
	if err != nil || c.User+c.System+c.Idle <= 0 {
		t.Errorf("CPU %+v, %v", c, err)
	}
	if u, err := m.Memory(); err != nil || u.Available <= 0 || u.Available > u.Total {
		t.Errorf("memory %+v, %v", u, err)
	}
	if _, err := m.Disk(); err != nil {
		t.Error(err)
	}
	if _, err := m.Network(func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	if _, err := m.Load(); err != nil {
		t.Error(err)
	}
}
