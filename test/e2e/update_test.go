package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// kpi that a guest tells, 0 where it does not.
func kpi(v string, name string) float64 {
	for line := range strings.Lines(ask("http://" + v + "/kpis")) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			n, _ := strconv.ParseFloat(value, 64) // 0 is no value that is waited for
			return n
		}
	}
	return 0
}

// Live changes, snapshots, disks: the guest's own word for each.
func TestLiveChangesSnapshotsAndDisks(t *testing.T) {
	deploy(t, write(t, `service: grow
networks:
  - name: public
    public: true
components:
  - name: web
    image: appliance
    cpu: {count: 1, max: 2}
    memory: {size: 128MiB, max: 256MiB}
    disks:
      - {name: data, size: 16MiB}
    networks: [public]
    ports: [http:80]
`), "grow")
	v := only(t, "web-1")
	id, at := string(v.ID), address(v)
	pid := pidOf(t, v.ID)
	guest := func(what, name string, ok func(float64) bool) {
		t.Helper()
		eventually(t, what, func() bool { return ok(kpi(at, name)) })
	}

	// 2.2.6: memory to a new size without a restart; a disk grown on line.
	guest("the balloon holds the rest", "memory_total_bytes", func(n float64) bool { return n > 0 && n < 128<<20 })
	if out := reservoir(t, "vee", "update", id, "--memory", "256MiB", "--disk", "data=32MiB"); !strings.Contains(out, "applied live") {
		t.Errorf("grown: %s", out)
	}
	guest("more memory", "memory_total_bytes", func(n float64) bool { return n > 192<<20 })
	guest("a larger disk", "disk_vda_bytes", func(n float64) bool { return n == 32<<20 })
	if out := reservoir(t, "vee", "update", id, "--memory", "128MiB"); !strings.Contains(out, "applied live") {
		t.Errorf("shrunk: %s", out)
	}
	guest("less memory", "memory_total_bytes", func(n float64) bool { return n < 128<<20 })
	if out, err := cli("vee", "update", id, "--disk", "data=1MiB"); err == nil || !strings.Contains(err.Error(), "only grow") {
		t.Errorf("a smaller disk: %v %s", err, out)
	}
	if now := pidOf(t, v.ID); now != pid {
		t.Errorf("its process was %d and is %d: it was restarted", pid, now)
	}

	// vCPUs plugged in, which under emulation takes another process with the same memory:
	// what the guest counts goes on.
	requests := func() int {
		var n int
		eventually(t, "it counts", func() bool {
			n, _ = strconv.Atoi(field(ask("http://"+at+"/"), "request"))
			return n > 0
		})
		return n
	}
	before := requests()
	if out := reservoir(t, "vee", "update", id, "--cpus", "2"); !strings.Contains(out, "applied live") {
		t.Errorf("plugged in: %s", out)
	}
	guest("a second vCPU", "vcpus_online", func(n float64) bool { return n == 2 })
	if after := requests(); after <= before {
		t.Errorf("request %d came after %d: it was restarted", after, before)
	}
	if out := reservoir(t, "vee", "update", id, "--cpus", "3"); !strings.Contains(out, "at next boot: 3 vCPUs") {
		t.Errorf("beyond what it was started with: %s", out)
	}
	if out := reservoir(t, "vee", "show", id); !strings.Contains(out, "at next boot") {
		t.Errorf("what waits is not shown:\n%s", out)
	}

	// Snapshots.
	count := func() string { return field(ask("http://"+at+"/"), "request") }
	eventually(t, "it counts", func() bool { return count() != "" })
	reservoir(t, "vee", "snapshot", "create", id, "one", "--memory")
	var mark int
	eventually(t, "it goes on", func() bool { mark, _ = strconv.Atoi(count()); return mark > 0 })
	for range 5 {
		count()
	}
	reservoir(t, "vee", "snapshot", "restore", id, "one")
	eventually(t, "the count of then", func() bool { n, _ := strconv.Atoi(count()); return n > 0 && n <= mark+3 })
	if out := reservoir(t, "vee", "snapshot", "list", id); !strings.Contains(out, "one") {
		t.Errorf("snapshots: %s", out)
	}

	// 2.2.4: stopped with the disks kept, which can be fetched.
	file := filepath.Join(t.TempDir(), "data.qcow2")
	if _, err := cli("vee", "disk", "export", id, "data", "-o", file); err == nil || !strings.Contains(err.Error(), "snapshot") {
		t.Errorf("export of a disk in use: %v", err)
	}
	printed := reservoir(t, "vee", "disk", "export", id, "data", "--snapshot", "one", "-o", file)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	if !strings.Contains(printed, "sha256:"+hex.EncodeToString(sum[:])) {
		t.Errorf("%s printed for a file of %x", printed, sum)
	}
	if out, err := exec.Command("qemu-img", "check", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	reservoir(t, "vee", "snapshot", "delete", id, "one")
	if out := reservoir(t, "vee", "disk", "list", id); !strings.Contains(out, "data") || !strings.Contains(out, "32MiB") {
		t.Errorf("disks: %s", out)
	}

	// 2.2.9: all of it removed, shown by a figure.
	reservoir(t, "vee", "shutdown", id)
	eventually(t, "stopped", func() bool { return only(t, "web-1").State == vee.Defined })
	reservoir(t, "image", "push", "--from-vee", id, "data", "grown-data")

	// What waited for the next boot.
	reservoir(t, "vee", "activate", id)
	guest("a third vCPU, after a boot", "vcpus_online", func(n float64) bool { return n == 3 })
	reservoir(t, "vee", "shutdown", id)
	eventually(t, "stopped again", func() bool { return only(t, "web-1").State == vee.Defined })

	taken := func() vee.Bytes { return jsonOf[vmi.Host](t, "host", "show", v.Host).Used.Disk }
	used, held := only(t, "web-1").DiskUsed, taken()
	if used == 0 || held < 32*vee.MiB {
		t.Errorf("it takes %s of disk, and its host counts %s", used, held)
	}
	folder := filepath.Join(stage.dir, "alpha", v.Host, "qemu", "vees", id)
	if _, err := os.Stat(folder); err != nil {
		t.Error(err)
	}
	reservoir(t, "host", "drain", v.Host) // its successor goes elsewhere
	t.Cleanup(func() {
		if _, err := cli("host", "on", v.Host); err != nil {
			t.Error(err)
		}
	})
	reservoir(t, "vee", "destroy", id)
	eventually(t, "the host has it back", func() bool { return taken() == held-32*vee.MiB })
	if gone := jsonOf[vmi.VEE](t, "vee", "show", id); gone.Freed == 0 {
		t.Errorf("%s are reclaimed of %s", gone.Freed, used)
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", folder, err)
	}
	eventually(t, "a figure", func() bool {
		out, _ := cli("event", "list")
		for line := range strings.Lines(out) {
			if strings.Contains(line, "reclaimed") && strings.Contains(line, "web-1") {
				return true
			}
		}
		return false
	})
}
