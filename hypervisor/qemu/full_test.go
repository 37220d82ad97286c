package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/disk"
	"github.com/reservoir-cloud/reservoir/vee"
)

// roomFor so many more files on a tinyDisk: the next one finds no space, which is the same
// error as a disk that is full and can be put between any two steps. Below 0: any number.
func roomFor(t *testing.T, dir string, files int) {
	t.Helper()
	limit := uint64(0)
	if files >= 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		limit = st.Files - st.Ffree + uint64(files)
	} else {
		limit = 100_000
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, fmt.Sprintf("nr_inodes=%d", limit)); err != nil {
		t.Fatalf("room for %d files: %v", files, err)
	}
}

// Whatever a disk fills up in the midst of is refused with that reason, and the guest has
// all that it had: it runs on, or is saved and goes on when there is room, its snapshots can
// be restored, and nothing that was half made is left.
func TestADiskThatFillsUpAtAnyStep(t *testing.T) {
	dir := tinyDisk(t, 256*vee.MiB)
	roomFor(t, dir, -1)
	d := openDriver(t, dir)
	g := sectorGuestOn(sectorImage(t, t.TempDir()))
	start(t, d, g)
	typed, frozen := 0, 0 // bytes typed so far, and when the snapshot was taken
	// counts shows that the guest runs and has the memory that it had.
	counts := func() {
		t.Helper()
		c, err := d.Console(t.Context(), g.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		defer time.AfterFunc(time.Minute, func() { c.Close() }).Stop() // a guest that says nothing
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		typed++
		expect(t, c, fmt.Sprintf("C%02X", typed))
	}
	c, err := d.Console(t.Context(), g.ID)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, c, "B01")
	c.Close()
	counts()
	snapshot := func(name string, memory bool) func() error {
		return func() error {
			_, err := d.Snapshot(t.Context(), g, name, memory)
			if errors.Is(err, hypervisor.ErrExists) {
				return nil // it was made, and the guest could not go on after it
			}
			return err
		}
	}
	awake := func() {
		t.Helper()
		o, err := d.Inspect(t.Context(), g.ID)
		if err == nil && o.Condition == hypervisor.Suspended {
			err = d.Wake(t.Context(), g)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	larger := g.Descriptor
	larger.Disks = []vee.Disk{larger.Disks[0]}
	larger.Disks[0].Size = 8 * vee.MiB
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"snapshot", snapshot("one", true)},
		{"snapshot of the disks", snapshot("two", false)},
		{"grow a disk", func() error { _, err := d.Resize(t.Context(), g.ID, g.Epoch, larger); return err }},
		{"delete a snapshot", func() error { return d.DeleteSnapshot(t.Context(), g.ID, g.Epoch, "two") }},
		{"export", func() error {
			x, err := d.Export(t.Context(), g.ID, "root", "one")
			if err == nil {
				err = x.Close()
			}
			return err
		}},
		{"save", func() error { return d.Suspend(t.Context(), g.ID, g.Epoch, nil) }},
		{"restore", func() error { return d.Restore(t.Context(), g.ID, g.Epoch, "one") }},
	} {
		failures := 0
		for files := 0; ; files++ {
			roomFor(t, dir, files)
			err := step.do()
			roomFor(t, dir, -1)
			if err != nil {
				failures++
				if !errors.Is(err, hypervisor.ErrNoSpace) {
					t.Fatalf("%s with room for %d files: %v, want ErrNoSpace", step.name, files, err)
				}
			}
			if _, made := d.guest(g.ID).record().snapshot("one"); made && frozen == 0 {
				frozen = typed
			}
			if step.name == "restore" && err == nil {
				typed = frozen
			}
			if rest := unnamed(t, d.guest(g.ID)); len(rest) > 0 {
				t.Errorf("%s with room for %d files has left %q", step.name, files, rest)
			}
			awake()
			counts()
			if err == nil {
				break
			}
		}
		t.Logf("%s: %d times without room", step.name, failures)
		if failures == 0 {
			t.Errorf("%s needs no room: it was not tried without", step.name)
		}
	}
	if err := d.Stop(t.Context(), g.ID, g.Epoch, 0); err != nil {
		t.Fatal(err)
	}
	sound(t, d.guest(g.ID))
}

// unnamed are files in the guest's folder that nothing needs any more.
func unnamed(t *testing.T, g *guest) (rest []string) {
	t.Helper()
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	rec := g.record()
	need := rec.files(disk.Plan(rec.Guest))
	for _, e := range entries {
		n := e.Name()
		if !need[n] && (strings.HasPrefix(n, "disk-") || strings.HasPrefix(n, "export-") || strings.Contains(n, "@") || strings.HasSuffix(n, ".new")) {
			rest = append(rest, n)
		}
	}
	return rest
}

// sound are all layers of a guest without a process, says QEMU.
func sound(t *testing.T, g *guest) {
	t.Helper()
	layers, err := filepath.Glob(filepath.Join(g.dir, "disk-*.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range layers {
		if err := disk.Run(t.Context(), "qemu-img", "check", "-q", f); err != nil {
			t.Errorf("%s: %v", filepath.Base(f), err)
		}
	}
}
