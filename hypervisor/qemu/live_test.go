package qemu

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/image/build"
	"github.com/reservoir-cloud/reservoir/vee"
	channel "github.com/reservoir-cloud/reservoir/vhi/guest"
)

// ranged is an appliance with room to grow and a data disk.
func ranged(t testing.TB, id vee.ID) hypervisor.Guest {
	t.Helper()
	a, err := build.Appliance(t.Context(), build.Options{Out: t.TempDir(), Cache: "../../.cache/images"})
	if err != nil {
		t.Fatal(err)
	}
	return hypervisor.Guest{
		ID: id,
		Descriptor: vee.Descriptor{
			Name: "web-1", VCPUs: 1, VCPUsMax: 2, Memory: 128 * vee.MiB, MemoryMax: 256 * vee.MiB,
			Disks:   []vee.Disk{{Name: "root", Image: "sha256:appliance"}, {Name: "data", Size: 16 * vee.MiB}},
			Context: map[string]string{"meta-data": "instance-id: " + string(id) + "\nlocal-hostname: web-1\n"},
		},
		Images: []hypervisor.LocalImage{{
			Digest: "sha256:appliance", Kernel: a.Kernel, Initrd: a.Initrd, Cmdline: a.Image.Config.Cmdline,
		}},
	}
}

// until the guest says so.
func (l *line) until(_ string, ok func(*channel.Status) bool) *channel.Status {
	l.t.Helper()
	for {
		s := l.status()
		if ok(s) {
			return s
		}
	}
}

// Memory down and up, a vCPU and a disk, with the guest's own word for each; and the way
// through suspend and a crash of the agent with them.
func TestLiveChanges(t *testing.T) {
	dir := t.TempDir()
	d := openDriver(t, dir)
	g := ranged(t, "alpha.resize2222")
	start(t, d, g)
	l := openLine(t, d, g.ID)
	first := l.until("ready", func(s *channel.Status) bool { return s.Ready && s.KPIs["memory_total_bytes"] < 128<<20 })
	if first.KPIs["vcpus_online"] != 1 || first.KPIs["disk_vda_bytes"] != 16<<20 {
		t.Errorf("it starts with %v", first.KPIs)
	}
	resize := func(want vee.Descriptor, waiting ...string) {
		t.Helper()
		began := time.Now()
		got, err := d.Resize(t.Context(), g.ID, g.Epoch, want)
		if err != nil {
			t.Fatalf("%v; QEMU's last words: %s", err, d.guest(g.ID).lastWords())
		}
		t.Logf("after %s: %q", time.Since(began).Round(time.Millisecond), got)
		if len(got) != len(waiting) {
			t.Fatalf("%q wait for the next boot, want %q", got, waiting)
		}
		for i := range got {
			if !strings.Contains(got[i], waiting[i]) {
				t.Errorf("%q waits for the next boot, want %q", got[i], waiting[i])
			}
		}
	}
	want := g.Descriptor
	want.Memory, want.VCPUs = 256*vee.MiB, 2
	want.Disks = []vee.Disk{want.Disks[0], {Name: "data", Size: 32 * vee.MiB}}
	resize(want)
	l = openLine(t, d, g.ID)
	// The balloon takes its time, also at boot: what counts is where it ends.
	s := l.until("grown", func(s *channel.Status) bool {
		return s.KPIs["vcpus_online"] == 2 && s.KPIs["disk_vda_bytes"] == 32<<20 && s.KPIs["memory_total_bytes"] > 192<<20
	})
	if s.UptimeS < first.UptimeS {
		t.Error("it was restarted")
	}

	// Through suspend and wake.
	if err := d.Suspend(t.Context(), g.ID, g.Epoch, nil); err != nil {
		t.Fatal(err)
	}
	if err := d.Wake(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	l = openLine(t, d, g.ID)
	s = l.until("woken", func(s *channel.Status) bool { return true })
	if s.KPIs["vcpus_online"] != 2 || s.UptimeS < first.UptimeS {
		t.Errorf("woken it has %v", s.KPIs)
	}

	// Down again, and what cannot be.
	want.Memory, want.MemoryMax, want.VCPUs = 128*vee.MiB, 256*vee.MiB, 1
	resize(want, "1 vCPUs: they are plugged in")
	l.until("shrunk", func(s *channel.Status) bool { return s.KPIs["memory_total_bytes"] < 128<<20 })
	want.Memory, want.MemoryMax, want.VCPUs, want.VCPUsMax = 512*vee.MiB, 512*vee.MiB, 4, 4
	resize(want, "memory of 512MiB: it was started with at most 256MiB", "4 vCPUs: it was started with at most 2")
	want.Memory, want.MemoryMax, want.VCPUs, want.VCPUsMax = 8*vee.MiB, 256*vee.MiB, 2, 2
	resize(want, "the guest needs what it has")

	// All of it at the next boot.
	if err := d.Stop(t.Context(), g.ID, g.Epoch, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Resize(t.Context(), g.ID, g.Epoch, want); !errors.Is(err, hypervisor.ErrWrongState) {
		t.Errorf("a stopped guest: %v", err)
	}
	g.Descriptor = want
	g.Descriptor.Memory, g.Descriptor.MemoryMax, g.Descriptor.VCPUs, g.Descriptor.VCPUsMax = 192*vee.MiB, 0, 2, 0
	if err := d.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	l = openLine(t, d, g.ID)
	s = l.until("booted", func(s *channel.Status) bool { return s.Ready })
	if s.KPIs["vcpus_online"] != 2 || s.KPIs["disk_vda_bytes"] != 32<<20 {
		t.Errorf("after its next boot it has %v", s.KPIs)
	}
}

// A snapshot with memory brings back what the guest had in memory and on its disk; one of
// the disks alone only that. Layers are gone when nothing needs them.
func TestSnapshots(t *testing.T) {
	dir := t.TempDir()
	d := openDriver(t, dir)
	g := ranged(t, "alpha.snapshot22")
	start(t, d, g)
	l := openLine(t, d, g.ID)
	l.until("ready", func(s *channel.Status) bool { return s.Ready })
	kept := func(n float64) {
		t.Helper()
		l.tell(channel.Command{Type: "kpi", ID: "1", Name: "kept", Amount: n})
		l.until("told", func(s *channel.Status) bool { return s.KPIs["kept"] == n })
	}
	snapshot := func(name string, memory bool) vee.Snapshot {
		t.Helper()
		began := time.Now()
		s, err := d.Snapshot(t.Context(), g, name, memory)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("snapshot %s: %+v after %s", name, s, time.Since(began).Round(time.Millisecond))
		return s
	}
	kept(1)
	if s := snapshot("one", true); !s.Memory || s.Size < 10*vee.MiB {
		t.Errorf("it takes %s", s.Size)
	}
	l = openLine(t, d, g.ID)
	if s := l.status(); s.KPIs["kept"] != 1 {
		t.Errorf("after a snapshot it says %v", s.KPIs)
	}
	kept(2)
	snapshot("two", false)
	if _, err := d.Shape(t.Context(), g.ID); !errors.Is(err, hypervisor.ErrUnsupported) || !strings.Contains(err.Error(), "2 snapshots") {
		t.Errorf("a migration with snapshots: %v", err)
	}
	if _, err := d.Snapshot(t.Context(), g, "two", true); !errors.Is(err, hypervisor.ErrExists) {
		t.Errorf("a name twice: %v", err)
	}

	// A new agent knows them.
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openDriver(t, dir)
	if all, err := d.Snapshots(t.Context(), g.ID); err != nil || len(all) != 2 || all[0].Name != "one" {
		t.Fatalf("%+v, %v", all, err)
	}
	if err := d.Restore(t.Context(), g.ID, g.Epoch, "none"); !errors.Is(err, hypervisor.ErrNotFound) {
		t.Errorf("an unknown one: %v", err)
	}
	if err := d.Restore(t.Context(), g.ID, g.Epoch, "one"); err != nil {
		t.Fatal(err)
	}
	if o, err := d.Inspect(t.Context(), g.ID); err != nil || o.Condition != hypervisor.Suspended {
		t.Fatalf("%+v, %v", o, err)
	}
	for range 2 { // and again, since its memory is kept
		if err := d.Wake(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		l = openLine(t, d, g.ID)
		if s := l.status(); s.KPIs["kept"] != 1 {
			t.Errorf("restored it says %v", s.KPIs)
		}
		kept(3)
		if err := d.Restore(t.Context(), g.ID, g.Epoch, "one"); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Restore(t.Context(), g.ID, g.Epoch, "two"); err != nil {
		t.Fatal(err)
	}
	if o, err := d.Inspect(t.Context(), g.ID); err != nil || o.Condition != hypervisor.Stopped {
		t.Fatalf("%+v, %v", o, err)
	}
	before := disk.Used(d.guest(g.ID).dir)
	for _, name := range []string{"one", "two", "two"} {
		if err := d.DeleteSnapshot(t.Context(), g.ID, g.Epoch, name); err != nil {
			t.Fatal(err)
		}
	}
	after := disk.Used(d.guest(g.ID).dir)
	t.Logf("%s before, %s after", before, after)
	left, err := filepath.Glob(filepath.Join(d.guest(g.ID).dir, "*@*"))
	if err != nil || len(left) != 1 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// What is on a disk survives snapshots, restores, deletions and merges of layers, and an
// export says the same as the disk.
func TestLayersKeepTheirContent(t *testing.T) {
	d := openDriver(t, t.TempDir())
	g := ranged(t, "alpha.layers2222")
	if err := d.Prepare(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	here := d.guest(g.ID)
	top := func() string {
		return filepath.Join(here.dir, here.record().topOf(disk.Disk{Name: "data", File: "disk-data.raw"}))
	}
	write := func(pattern, at string) {
		t.Helper()
		out, err := exec.Command("qemu-io", "-f", disk.Format(top()), "-c", "write -P "+pattern+" "+at+" 64k", top()).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	reads := func(pattern, at string) {
		t.Helper()
		x, err := d.Export(t.Context(), g.ID, "data", "")
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		file := filepath.Join(t.TempDir(), "x.qcow2")
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if n, err := f.ReadFrom(x); err != nil || n != x.Size {
			t.Fatalf("%d of %d bytes, %v", n, x.Size, err)
		}
		out, err := exec.Command("qemu-io", "-r", "-f", "qcow2", "-c", "read -P "+pattern+" "+at+" 64k", file).CombinedOutput()
		if err != nil || strings.Contains(string(out), "fail") {
			t.Errorf("at %s: want %s: %v: %s", at, pattern, err, out)
		}
	}
	snapshot := func(name string) {
		t.Helper()
		if _, err := d.Snapshot(t.Context(), g, name, false); err != nil {
			t.Fatal(err)
		}
	}
	write("1", "0")
	snapshot("a")
	write("2", "64k")
	snapshot("b")
	write("3", "0")
	snapshot("c")
	write("4", "128k")
	if _, err := d.Snapshot(t.Context(), g, "memory", true); !errors.Is(err, hypervisor.ErrWrongState) {
		t.Errorf("memory of a stopped guest: %v", err)
	}
	for _, c := range []struct{ pattern, at string }{{"3", "0"}, {"2", "64k"}, {"4", "128k"}} {
		reads(c.pattern, c.at)
	}
	if err := d.DeleteSnapshot(t.Context(), g.ID, g.Epoch, "b"); err != nil {
		t.Fatal(err)
	}
	if err := d.Restore(t.Context(), g.ID, g.Epoch, "c"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ pattern, at string }{{"3", "0"}, {"2", "64k"}, {"0", "128k"}} {
		reads(c.pattern, c.at)
	}
	if err := d.Restore(t.Context(), g.ID, g.Epoch, "a"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ pattern, at string }{{"1", "0"}, {"0", "64k"}} {
		reads(c.pattern, c.at)
	}
	if x, err := d.Export(t.Context(), g.ID, "data", "c"); err != nil {
		t.Error(err)
	} else {
		x.Close()
	}
	for _, name := range []string{"a", "c"} {
		if err := d.DeleteSnapshot(t.Context(), g.ID, g.Epoch, name); err != nil {
			t.Fatal(err)
		}
	}
	reads("1", "0")
	if infos, err := d.Disks(t.Context(), g.ID); err != nil || len(infos) != 1 || infos[0].Size != 16*vee.MiB || infos[0].Layers != 0 {
		t.Errorf("%+v, %v", infos, err)
	}
	if _, err := d.Export(t.Context(), g.ID, "none", ""); !errors.Is(err, hypervisor.ErrNotFound) {
		t.Errorf("an unknown disk: %v", err)
	}
}
