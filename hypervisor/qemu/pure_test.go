package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/hypervisor"
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
	kernel.Drives = []drive{{Serial: seedLabel, FD: 9, Format: "raw", ReadOnly: true}}
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

func TestPlanDisks(t *testing.T) {
	images := []hypervisor.LocalImage{
		{Digest: "sha256:disk", Disk: "/i/disk.qcow2", Format: "qcow2"},
		{Digest: "sha256:kernel", Kernel: "/i/vmlinux"},
	}
	got := planDisks(hypervisor.Guest{Images: images, Descriptor: vee.Descriptor{Disks: []vee.Disk{
		{Name: "swap", Size: vee.MiB, Target: "vdb"},
		{Name: "root", Image: "sha256:disk"},
		{Name: "db", Image: "sha256:disk", Persistent: true},
		{Name: "boot", Image: "sha256:kernel"},
		{Name: "scratch", Image: "sha256:kernel", Size: vee.GiB},
		{Name: "tools", Image: "sha256:disk", CDROM: true},
	}}})
	var files []string
	for _, d := range got {
		files = append(files, d.name+" "+d.file)
	}
	want := []string{
		"root disk-root.qcow2", "swap disk-swap.raw", "db disk-db.qcow2", "scratch disk-scratch.raw", "tools ",
	}
	if !slices.Equal(files, want) {
		t.Errorf("disks %q, want %q", files, want)
	}
	for i, kind := range []diskKind{clone, blank, copied, blank, medium} {
		if got[i].kind != kind {
			t.Errorf("disk %q is of kind %d, want %d", got[i].name, got[i].kind, kind)
		}
	}
}

func TestDeviceOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var disks []vee.Disk
		for i := range rapid.IntRange(0, 30).Draw(t, "disks") {
			disks = append(disks, vee.Disk{
				Name:   string(rune('A' + i)),
				Target: rapid.SampledFrom([]string{"", "", "vda", "vdb", "vdz", "sda", "vd", "vdaa"}).Draw(t, "target"),
			})
		}
		got := inDeviceOrder(disks)
		if len(got) != len(disks) {
			t.Fatalf("%d disks became %d", len(disks), len(got))
		}
		seen := map[string]bool{}
		for _, k := range got {
			seen[k.Name] = true
		}
		if len(seen) != len(disks) {
			t.Fatalf("disks were lost: %v", got)
		}
		first := slices.IndexFunc(disks, func(k vee.Disk) bool { return k.Target == "vda" })
		if first >= 0 && got[0].Name != disks[first].Name {
			t.Fatalf("vda is %q, want %q", got[0].Name, disks[first].Name)
		}
	})
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
