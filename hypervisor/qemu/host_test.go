package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu/cgroup"
	"github.com/reservoir-cloud/reservoir/vee"
)

// These tests show what the driver does to its host.

// open a driver in a folder of its own, that closes with t.
func openDriver(t testing.TB, dir string) *Driver {
	t.Helper()
	d := newDriver(t, dir)
	t.Cleanup(func() { d.Close() })
	return d
}

func start(t testing.TB, d *Driver, g hypervisor.Guest) hypervisor.Observation {
	t.Helper()
	if err := errors.Join(d.Prepare(t.Context(), g), d.Start(t.Context(), g)); err != nil {
		t.Fatal(err)
	}
	o, err := d.Inspect(t.Context(), g.ID)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestProcessIsHeldDown(t *testing.T) {
	dir := t.TempDir()
	d := openDriver(t, dir)
	g := sectorGuestOn(sectorImage(t, t.TempDir()))
	g.Descriptor.CPU = vee.CPUShare{Weight: 200}
	other := g
	other.ID = "alpha.bbbbbbbbbb"
	o, p := start(t, d, g), start(t, d, other)

	uids := map[string]bool{}
	for _, o := range []hypervisor.Observation{o, p} {
		status := statusOf(t, o.PID)
		uid := strings.Fields(status["Uid"])[0]
		if uid == "0" || uids[uid] {
			t.Errorf("process %d runs as user %s, want one of its own", o.PID, uid)
		}
		uids[uid] = true
		for field, want := range map[string]string{
			"Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0000000000000000", "CapPrm": "0000000000000000", "Groups": "",
		} {
			if status[field] != want {
				t.Errorf("%s of process %d is %q, want %q", field, o.PID, status[field], want)
			}
		}
		session, err := unix.Getsid(o.PID)
		if err != nil || session != o.PID {
			t.Errorf("session %d, %v; want one of its own", session, err)
		}
	}
	for _, controller := range []string{"cpu", "memory", "pids"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", o.PID))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "/reservoir/"+cgroupPrefix(dir)+string(g.ID)) {
			t.Errorf("process %d is not in its %s cgroup:\n%s", o.PID, controller, b)
		}
	}
	if err := d.Destroy(t.Context(), g.ID, g.Epoch); err != nil {
		t.Fatal(err)
	}
	for _, name := range cgroup.Find(cgroup.Root, "reservoir").Names() {
		if strings.HasSuffix(name, string(g.ID)) && strings.HasPrefix(name, cgroupPrefix(dir)) {
			t.Errorf("cgroup %s is left after destroy", name)
		}
	}
}

// statusOf a process, by field (proc(5)).
func statusOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

func TestLongPaths(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30), "end")
	d := openDriver(t, dir)
	g := sectorGuestOn(sectorImage(t, t.TempDir()))
	start(t, d, g)
	c, err := d.Console(t.Context(), g.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	expect(t, c, "B01")
}

// expect reads until text has come.
func expect(t testing.TB, r io.Reader, text string) {
	t.Helper()
	var all []byte
	buffer := make([]byte, 256)
	for !bytes.Contains(all, []byte(text)) {
		n, err := r.Read(buffer)
		if all = append(all, buffer[:n]...); err != nil {
			t.Fatalf("the console said %q and ended (%v), want %q", all, err, text)
		}
	}
}

// tinyDisk is a file system of so many bytes.
func tinyDisk(t *testing.T, size vee.Bytes) string {
	t.Helper()
	needsRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func fill(t *testing.T, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); err != nil {
			return path
		}
	}
}

func TestPrepareOnAFullDiskLeavesNothing(t *testing.T) {
	dir := tinyDisk(t, vee.MiB)
	d := openDriver(t, dir)
	g := sectorGuestOn(sectorImage(t, t.TempDir()))
	filler := fill(t, dir)
	err := d.Prepare(t.Context(), g)
	if !errors.Is(err, hypervisor.ErrNoSpace) {
		t.Fatalf("prepare on a full disk: %v, want ErrNoSpace", err)
	}
	t.Log(err)
	if rest, _ := os.ReadDir(filepath.Join(dir, "vees")); len(rest) != 0 {
		t.Errorf("%v is left", rest)
	}
	os.Remove(filler)
	if err := d.Prepare(t.Context(), g); err != nil {
		t.Errorf("prepare after room was made: %v", err)
	}
}

func TestAFullDiskHaltsTheGuest(t *testing.T) {
	dir := tinyDisk(t, 2*vee.MiB)
	d := openDriver(t, dir)
	g := sectorGuestOn(sectorImage(t, t.TempDir()))
	if err := d.Prepare(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(t.Context(), g.ID, g.Epoch, 0); err != nil {
		t.Fatal(err)
	}
	// A disk that has not been written to, and no room to write.
	os.Remove(filepath.Join(dir, "vees", string(g.ID), "disk-root.qcow2"))
	if err := disk.Plan(g)[0].Make(t.Context(), "qemu-img", filepath.Join(dir, "vees", string(g.ID))); err != nil {
		t.Fatal(err)
	}
	var filler string
	halted := make(chan hypervisor.Event)
	go func() {
		for e := range d.Events() {
			if e.Condition == hypervisor.Halted {
				halted <- e
				return
			}
		}
	}()
	filler = fillAllBut(t, dir, 64<<10)
	if err := d.Start(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	e := <-halted
	if !strings.Contains(e.Reason, "no space left") {
		t.Errorf("halted: %q, want \"no space left\"", e.Reason)
	}
	// A new driver sees the same.
	d.Close()
	d = openDriver(t, dir)
	if o, err := d.Inspect(t.Context(), g.ID); err != nil || o.Condition != hypervisor.Halted || !strings.Contains(o.Reason, "no space left") {
		t.Errorf("after adoption %+v, %v; want halted for want of space", o, err)
	}
	os.Remove(filler)
	if err := d.Resume(t.Context(), g.ID, g.Epoch); err != nil {
		t.Fatal(err)
	}
	c, err := d.Console(t.Context(), g.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	expect(t, c, "B01")
}

// fillAllBut so many bytes of the file system.
func fillAllBut(t *testing.T, dir string, left int64) string {
	t.Helper()
	path := fill(t, dir)
	st, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, st.Size()-left)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A QEMU that does not answer, as one that a guest has taken over, still ends.
func TestStopOfADeafProcess(t *testing.T) {
	d := openDriver(t, t.TempDir())
	g := sectorGuestOn(sectorImage(t, t.TempDir()))
	o := start(t, d, g)
	if err := syscall.Kill(o.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.Pause(ctx, g.ID, g.Epoch); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("pause of a deaf guest: %v, want the context's error", err)
	}
	if err := d.Stop(t.Context(), g.ID, g.Epoch, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := identify(o.PID); err != errEnded {
		t.Errorf("process %d is left: %v", o.PID, err)
	}
}

func TestTap(t *testing.T) {
	needsRoot(t)
	name := fmt.Sprintf("hvq%d", os.Getpid()%100000)
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(tap); err != nil {
		t.Fatalf("make a TAP device: %v", err)
	}
	t.Cleanup(func() { netlink.LinkDel(tap) })
	d := openDriver(t, t.TempDir())
	g := sectorGuestOn(sectorImage(t, t.TempDir()))
	g.NICs = []hypervisor.NIC{{Tap: name, MAC: "52:54:00:00:00:01"}}
	start(t, d, g)
	other := g
	other.ID = "alpha.bbbbbbbbbb"
	if err := errors.Join(d.Prepare(t.Context(), other), d.Start(t.Context(), other)); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("a TAP device that is held: %v, want an error that names it", err)
	}
	other.NICs[0].Tap = "hvnone"
	if err := d.Start(t.Context(), other); err == nil || !strings.Contains(err.Error(), "hvnone") {
		t.Errorf("a TAP device that is not there: %v, want an error that names it", err)
	}
	if _, err := net.InterfaceByName("hvnone"); err == nil {
		t.Error("a TAP device was made")
	}
}

func TestPersistentDiskOutlivesItsImage(t *testing.T) {
	d := openDriver(t, t.TempDir())
	image := sectorImage(t, t.TempDir())
	g := sectorGuestOn(image)
	g.Descriptor.Disks[0].Persistent = true
	g.Descriptor.Disks[0].Size = 4 * vee.MiB
	if err := d.Prepare(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image.Disk, 0); err != nil {
		t.Fatal(err)
	}
	start(t, d, g)
	c, err := d.Console(t.Context(), g.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	expect(t, c, "B01")
}

func TestFailedStartSaysWhy(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { sweep(t, dir) })
	needsRoot(t)
	d, err := New(t.Context(), Config{Dir: dir, Accelerator: "tcg", AllowRaw: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	g := sectorGuestOn(sectorImage(t, t.TempDir()))
	g.Descriptor.Raw = map[string]string{Name: "-device no-such-device"}
	err = errors.Join(d.Prepare(t.Context(), g), d.Start(t.Context(), g))
	if err == nil || !strings.Contains(err.Error(), "no-such-device") {
		t.Errorf("start: %v, want QEMU's own words", err)
	}
	if o, err := d.Inspect(t.Context(), g.ID); err != nil || o.Condition != hypervisor.Stopped {
		t.Errorf("after a failed start %+v, %v; want stopped", o, err)
	}
	// Where raw arguments are not allowed they are refused, not dropped.
	other := openDriver(t, t.TempDir())
	if err := other.Prepare(t.Context(), g); !errors.Is(err, hypervisor.ErrUnsupported) {
		t.Errorf("prepare: %v, want ErrUnsupported", err)
	}
}

// A QEMU that dies before it answers is not waited for, and its end counts from then.
func TestItDiesWhileItStarts(t *testing.T) {
	dir := t.TempDir()
	needsRoot(t)
	t.Cleanup(func() { sweep(t, dir) })
	deadly := false
	d, err := New(t.Context(), Config{Dir: dir, Accelerator: "tcg", Guard: func(_ context.Context, _ vee.ID, pid int) error {
		if deadly {
			kill(t, pid)
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	g := sectorGuestOn(sectorImage(t, dir))
	o := start(t, d, g)
	kill(t, o.PID)
	for e := range d.Events() {
		if e.Condition == hypervisor.Crashed {
			break
		}
	}
	crashed, err := d.Inspect(t.Context(), g.ID)
	if err != nil {
		t.Fatal(err)
	}

	deadly = true
	err = d.Start(t.Context(), g)
	if err == nil || strings.Contains(err.Error(), "does not answer") {
		t.Errorf("start: %v, want an error, and not that of its patience", err)
	}
	again, err := d.Inspect(t.Context(), g.ID)
	if err != nil || again.Condition != hypervisor.Crashed || !again.Since.After(crashed.Since) {
		t.Errorf("it is %+v, %v, want crashed again, later than at %v", again, err, crashed.Since)
	}
}

func TestFailedWakeStaysSuspended(t *testing.T) {
	dir := t.TempDir()
	d := openDriver(t, dir)
	g := sectorGuestOn(sectorImage(t, t.TempDir()))
	start(t, d, g)
	if err := d.Suspend(t.Context(), g.ID, g.Epoch, nil); err != nil {
		t.Fatal(err)
	}
	memory := filepath.Join(dir, "vees", string(g.ID), memoryFile)
	saved, err := os.ReadFile(memory)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(memory, saved[:len(saved)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Wake(t.Context(), g); err == nil {
		t.Fatal("woke from half a memory")
	} else {
		t.Log(err)
	}
	if o, err := d.Inspect(t.Context(), g.ID); err != nil || o.Condition != hypervisor.Suspended || o.PID != 0 {
		t.Errorf("after a failed wake %+v, %v; want suspended", o, err)
	}
	if err := os.WriteFile(memory, saved, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Wake(t.Context(), g); err != nil {
		t.Errorf("wake: %v", err)
	}
}

func TestProbe(t *testing.T) {
	needsRoot(t)
	cfg := Config{Dir: t.TempDir()}
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	caps, _ := d.Capabilities(t.Context())
	t.Log(caps.Accelerator, "because", caps.Why)
	if caps.Accelerator != "kvm" && caps.Accelerator != "tcg" || !strings.Contains(caps.Why, "TCG") {
		t.Errorf("capabilities %+v: want an accelerator and the reason", caps)
	}
	// The answer is kept: a binary that cannot boot anything is not asked.
	again, err := cachedProbe(t.Context(), Config{Binary: "/bin/false", ProbeCache: filepath.Join(cfg.Dir, "accelerator.json")}, caps.Version)
	if err != nil || again.Accelerator != caps.Accelerator {
		t.Errorf("asked again: %+v, %v", again, err)
	}
	if _, err := Probe(t.Context(), Config{Binary: "/bin/false"}); err == nil {
		t.Error("a QEMU that does not boot passed the test boot")
	}
}

func TestTwoDriversOnOneDirectory(t *testing.T) {
	dir := t.TempDir()
	openDriver(t, dir)
	if _, err := New(t.Context(), Config{Dir: dir, Accelerator: "tcg"}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second driver on the directory: %v", err)
	}
}

// A record that cannot be read is a guest for a person to look at: nothing of it runs, it
// is shown, and it can be destroyed. A folder without a record goes.
func TestDamagedRecord(t *testing.T) {
	dir := t.TempDir()
	d := openDriver(t, dir)
	g := sectorGuestOn(sectorImage(t, t.TempDir()))
	o := start(t, d, g)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(dir, "vees", string(g.ID))
	if err := os.WriteFile(filepath.Join(folder, recordFile), []byte(`{"guest": {`), 0o600); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, "vees", "alpha.halfmade22")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	d = openDriver(t, dir)
	if _, err := identify(o.PID); err != errEnded {
		t.Errorf("process %d runs, and no record owns it", o.PID)
	}
	o, err := d.Inspect(t.Context(), g.ID)
	if err != nil || o.Condition != hypervisor.Crashed || !strings.Contains(o.Reason, "damaged") {
		t.Errorf("observed %+v, %v; want crashed for a damaged record", o, err)
	}
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Errorf("a half-made guest is left: %v", err)
	}
	for name, err := range map[string]error{"prepare": d.Prepare(t.Context(), g), "start": d.Start(t.Context(), g)} {
		if !errors.Is(err, hypervisor.ErrWrongState) {
			t.Errorf("%s over a damaged record: %v, want ErrWrongState", name, err)
		}
	}
	if err := d.Destroy(t.Context(), g.ID, g.Epoch); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("after destroy its folder is left: %v", err)
	}
}

// BenchmarkStart is the driver's whole way from a description to running vCPUs, beside the
// same QEMU, with the same arguments, started bare until its monitor answers.
func BenchmarkStart(b *testing.B) {
	d := openDriver(b, b.TempDir())
	described := sectorGuestOn(sectorImage(b, b.TempDir()))
	b.Run("driver", func(b *testing.B) {
		for b.Loop() {
			start(b, d, described)
			b.StopTimer()
			if err := d.Destroy(b.Context(), described.ID, described.Epoch); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("bare", func(b *testing.B) {
		if err := d.Prepare(b.Context(), described); err != nil {
			b.Fatal(err)
		}
		g := d.guest(described.ID)
		for b.Loop() {
			b.StopTimer()
			m, in, err := g.machine(g.record(), nil)
			if err != nil {
				b.Fatal(err)
			}
			m.Name = "bare"
			cmd := exec.Command("qemu-system-x86_64", m.args()...)
			cmd.ExtraFiles = in.files
			b.StartTimer()
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			monitor, err := dialUnix(b.Context(), g.dir, "qmp.sock")
			if err != nil {
				b.Fatal(err)
			}
			expect(b, monitor, "QMP")
			b.StopTimer()
			monitor.Close()
			cmd.Process.Kill()
			cmd.Wait()
			in.close()
			b.StartTimer()
		}
	})
}
