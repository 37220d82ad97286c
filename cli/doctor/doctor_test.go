package doctor

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
)

func good() Facts {
	return Facts{
		Root: true, Accelerator: "kvm", Why: "booted in 0.4s", Dir: "/var/lib", DiskFree: 50 * vee.GiB, MemoryFree: 8 * vee.GiB,
		Programs: map[string]string{"qemu-system-x86_64": "/usr/bin/q", "qemu-img": "/usr/bin/i", "mmdebstrap": "/usr/bin/m", "mkfs.ext4": "/sbin/m"},
		Kernel:   map[string]string{},
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Facts)
		check  string
		level  Level
		fix    string // contained in the finding's
	}{
		{"no qemu", func(f *Facts) { f.Programs["qemu-system-x86_64"], f.Programs["qemu-img"] = "", "" }, "qemu-img", Problem,
			"apt-get update && apt-get install -y --no-install-recommends qemu-system-x86 qemu-utils"},
		{"no mmdebstrap", func(f *Facts) { f.Programs["mmdebstrap"] = "" }, "mmdebstrap", Warning, "apt-get install -y --no-install-recommends mmdebstrap"},
		{"not root", func(f *Facts) { f.Root = false }, "user", Problem, "sudo"},
		{"no tun", func(f *Facts) { f.Kernel["tun"] = "no such device" }, "tun", Problem, "modprobe tun"},
		{"no vxlan", func(f *Facts) { f.Kernel["vxlan"] = "not supported" }, "vxlan", Problem, "modprobe vxlan"},
		{"no br_netfilter", func(f *Facts) { f.Kernel["br_netfilter"] = "no such file" }, "br_netfilter", Problem, "modprobe br_netfilter"},
		{"emulation", func(f *Facts) { f.Accelerator, f.Why = "tcg", "kvm hung" }, "accelerator", Warning, "/dev/kvm"},
		{"nothing boots", func(f *Facts) { f.Accelerator, f.AcceleratorErr = "", "no boot in 20s" }, "accelerator", Problem, "-accel help"},
		{"port taken", func(f *Facts) { f.PortsTaken = []int{8440} }, "port 8440", Warning, "--listen"},
		{"disk full", func(f *Facts) { f.DiskFree = vee.GiB }, "disk", Problem, "/var/lib"},
		{"little memory", func(f *Facts) { f.MemoryFree = vee.GiB + vee.MiB }, "memory", Warning, "--memory"},
		{"no libvirtd", func(f *Facts) { f.LibvirtErr = "does not answer" }, "libvirt", Problem, "libvirt-daemon-system"},
		{"no control groups", func(f *Facts) { f.CgroupMissing = []string{"cpu", "memory"} }, "control groups", Warning, "cgroup"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := good()
			if w := Worst(Judge(f)); w != OK {
				t.Fatalf("a good machine is judged %s: %v", w, Judge(f))
			}
			c.change(&f)
			list := Judge(f)
			if w := Worst(list); w != c.level {
				t.Errorf("worst: %s, want %s", w, c.level)
			}
			for _, x := range list {
				if x.Level != OK && x.Fix == "" {
					t.Errorf("%s: %s has no fix", x.Check, x.Level)
				}
				if x.Check == c.check {
					if x.Level != c.level || !strings.Contains(x.Fix, c.fix) {
						t.Errorf("%+v: want %s, fix with %q", x, c.level, c.fix)
					}
					return
				}
			}
			t.Errorf("no finding about %s in %v", c.check, list)
		})
	}
}

// TestGather needs root: it makes one of each kind of link.
func TestGather(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	dir := t.TempDir()
	f, err := Gather(t.Context(), Machine{Dir: dir + "/not/there/yet",
		Accelerator:   func(context.Context) (string, string, error) { return "", "", errors.New("hangs") },
		CgroupMissing: func() []string { return []string{"pids"} }})
	if err != nil {
		t.Fatal(err)
	}
	for k, why := range f.Kernel {
		t.Errorf("%s: %s", k, why)
	}
	if f.AcceleratorErr != "hangs" || f.DiskFree == 0 || f.MemoryFree == 0 || len(f.CgroupMissing) != 1 {
		t.Errorf("facts: %+v", f)
	}
}
