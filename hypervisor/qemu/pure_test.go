package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/vee"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestCommandLine(t *testing.T) {
	small := machine{
		Name: "reservoir:/var/lib/reservoir/h1:alpha.aaaaaaaaaa", Type: "pc-i440fx-7.2", CPU: DefaultCPU,
		Accelerator: "tcg", VCPUs: 1, Memory: 128 * vee.MiB, QMPFD: 3, ConsoleFD: 4, GuestFD: 5,
	}
	kernel := small
	kernel.KernelFD, kernel.InitrdFD, kernel.Cmdline = 6, 7, "console=ttyS0 quiet"
	kernel.NICs = []nic{{FD: 8, MAC: "52:54:00:00:00:01"}}
	kernel.Drives = []drive{{Serial: disk.SeedLabel, FD: 9, Format: "raw", ReadOnly: true}}
	disks := small
	disks.Accelerator, disks.VCPUs, disks.VCPUsMax, disks.Memory = "kvm", 4, 8, 1500*vee.MiB+1
	disks.Drives = []drive{
		{Serial: "root", FD: 6, Format: "qcow2", Under: []layerFile{{11, "qcow2"}, {12, "qcow2"}, {7, "qcow2"}}},
		{Serial: `a"b,c`, FD: 8, Format: "raw"},
		{Serial: "cd", FD: 9, Format: "raw", ReadOnly: true, CDROM: true},
	}
	disks.IncomingFD = 10
	disks.Raw = []string{"-device", "virtio-keyboard-pci"}
	for name, m := range map[string]machine{"kernel": kernel, "disks": disks} {
		golden := filepath.Join("testdata", "commandline-"+name+".txt")
		var b strings.Builder
		for _, a := range m.args() {
			if strings.HasPrefix(a, "-") && b.Len() > 0 {
				b.WriteByte('\n')
			} else if b.Len() > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(a)
		}
		got := b.String() + "\n"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: the command line changed (go test -update):\n%s", name, got)
		}
	}
}

func TestConditionOf(t *testing.T) {
	for status, want := range map[string]hypervisor.Condition{
		"running": hypervisor.Running, "suspended": hypervisor.Running, "paused": hypervisor.Paused,
		"prelaunch": hypervisor.Paused, "postmigrate": hypervisor.Paused, "io-error": hypervisor.Halted,
		"internal-error": hypervisor.Halted, "guest-panicked": hypervisor.Halted,
	} {
		c, reason := conditionOf(status)
		if c != want || (c == hypervisor.Halted) != (reason != "") {
			t.Errorf("%s: %s %q, want %s", status, c, reason, want)
		}
	}
}

func TestMachineType(t *testing.T) {
	for version, want := range map[string]string{"7.2.22": "pc-i440fx-7.2", "10.0": "pc-i440fx-10.0", "?": "pc"} {
		if got := machineType(version); got != want {
			t.Errorf("%s: %s, want %s", version, got, want)
		}
	}
}

func TestIdentity(t *testing.T) {
	me, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	p, err := openProcess(me)
	if err != nil {
		t.Fatal(err)
	}
	p.close()
	me.Start++
	if _, err := openProcess(me); err != errEnded {
		t.Errorf("the same PID with another start: %v, want errEnded", err)
	}
}

// A guest that is changed faster than it can be sent is given longer and longer to stand
// still, within bounds.
func TestDowntimeLimit(t *testing.T) {
	for round, want := range map[int64]time.Duration{
		0: firstDowntime, 1: firstDowntime, patientRounds: firstDowntime, patientRounds + 1: 2 * firstDowntime,
		patientRounds + 4: 16 * firstDowntime, patientRounds + 5: maxDowntime, 1000: maxDowntime,
	} {
		if got := downtimeLimit(round); got != want {
			t.Errorf("round %d: %v, want %v", round, got, want)
		}
	}
}
