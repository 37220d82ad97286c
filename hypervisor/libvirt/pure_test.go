package libvirt

import (
	"os"
	"path/filepath"
	"testing"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

func TestDomainXML(t *testing.T) {
	at := place{
		Domain: "reservoir-0a1b2c3d-alpha.aaaaaaaaaa", UUID: "6ba7b810-9dad-81d1-80b4-00c04fd430c8",
		Dir: "/var/lib/reservoir/libvirt/vees/alpha.aaaaaaaaaa", Console: "/run/reservoir/libvirt/6b.console",
		Channel: "/run/reservoir/libvirt/6b.guest", Label: "+710001:+710001", MHz: 2000, Shares: 100,
	}
	disks := record{Guest: hypervisor.Guest{
		ID: "alpha.aaaaaaaaaa",
		Descriptor: vee.Descriptor{
			Name: "db <1>\n", VCPUs: 2, Memory: 256 * vee.MiB, MemoryMax: 512 * vee.MiB, CPU: vee.CPUShare{Weight: 200, LimitMHz: 1000},
			Disks: []vee.Disk{
				{Name: "root", Image: "sha256:disk"}, {Name: "db", Image: "sha256:disk", Persistent: true},
				{Name: "tools", Image: "sha256:disk", CDROM: true}, {Name: "scratch", Size: vee.GiB},
			},
			Context: map[string]string{"meta-data": ""},
		},
		Images: []hypervisor.LocalImage{{Digest: "sha256:disk", Disk: "/i/disk.qcow2", Format: "qcow2"}},
		NICs:   []hypervisor.NIC{{Tap: "rsv7", MAC: "02:00:00:00:00:01"}},
	}}
	kernel := record{Guest: hypervisor.Guest{
		ID:         "alpha.aaaaaaaaaa",
		Descriptor: vee.Descriptor{VCPUs: 1, Memory: 128 * vee.MiB, Disks: []vee.Disk{{Name: "boot", Image: "sha256:kernel"}}},
		Images:     []hypervisor.LocalImage{{Digest: "sha256:kernel", Kernel: "/i/vmlinuz", Initrd: "/i/initrd", Cmdline: "console=ttyS0 quiet"}},
	}}
	for name, c := range map[string]struct {
		rec  record
		kind string
	}{"disks": {disks, kindKVM}, "kernel": {kernel, kindTCG}, "mock": {disks, kindMock}} {
		got, err := domainXML(c.rec, c.kind, at)
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", "domain-"+name+".xml")
		if *update {
			if err := os.WriteFile(golden, []byte(got+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got+"\n" != string(want) {
			t.Errorf("%s: the domain changed (go test -update):\n%s", name, got)
		}
	}
}

func TestJudge(t *testing.T) {
	running, stopped := record{Want: hypervisor.Running}, record{Want: hypervisor.Stopped}
	off := func(r rpc.DomainShutoffReason) sight { return sight{state: rpc.DomainShutoff, reason: int32(r)} }
	paused := func(r rpc.DomainPausedReason) sight {
		return sight{active: true, state: rpc.DomainPaused, reason: int32(r)}
	}
	for name, c := range map[string]struct {
		rec    record
		s      sight
		want   hypervisor.Condition
		reason string // "*": any
	}{
		"runs":                    {running, sight{active: true, state: rpc.DomainRunning}, hypervisor.Running, ""},
		"sleeps by itself":        {running, sight{active: true, state: rpc.DomainPmsuspended}, hypervisor.Running, ""},
		"paused by somebody":      {running, paused(rpc.DomainPausedUser), hypervisor.Paused, ""},
		"disk fails":              {running, paused(rpc.DomainPausedIoerror), hypervisor.Halted, "*"},
		"panicked":                {running, sight{active: true, state: rpc.DomainCrashed}, hypervisor.Halted, "guest panicked"},
		"powered off":             {running, off(rpc.DomainShutoffShutdown), hypervisor.Crashed, hypervisor.ReasonPoweredOff},
		"killed":                  {running, off(rpc.DomainShutoffCrashed), hypervisor.Crashed, "*"},
		"ended with virsh":        {running, off(rpc.DomainShutoffDestroyed), hypervisor.Crashed, "*"},
		"libvirt has forgotten":   {record{Want: hypervisor.Running, Reason: "as noted"}, off(rpc.DomainShutoffUnknown), hypervisor.Crashed, "as noted"},
		"stopped":                 {stopped, off(rpc.DomainShutoffDestroyed), hypervisor.Stopped, ""},
		"being stopped":           {stopped, sight{active: true, state: rpc.DomainShutdown}, hypervisor.Running, ""},
		"saved":                   {running, sight{state: rpc.DomainShutoff, saved: true}, hypervisor.Suspended, ""},
		"saved memory is no more": {record{Want: hypervisor.Suspended}, off(rpc.DomainShutoffUnknown), hypervisor.Crashed, "*"},
	} {
		cond, reason := judge(c.rec, c.s)
		if cond != c.want || c.reason != "*" && reason != c.reason || c.reason == "*" && reason == "" {
			t.Errorf("%s: %s %q, want %s %q", name, cond, reason, c.want, c.reason)
		}
	}
}

func TestConnectionOnlyToThisHost(t *testing.T) {
	for uri, ok := range map[string]bool{
		"qemu:///system": true, "qemu+unix:///system?socket=/x": true, "test:///default": true,
		"qemu+ssh://other/system": false, "qemu://other/system": false, "qemu+tcp:///system": false, "xen:///system": false, "%": false,
	} {
		if _, err := newConnection(uri); (err == nil) != ok {
			t.Errorf("%s: %v", uri, err)
		}
	}
}
