package qemu

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/conformance"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu/cgroup"
	"github.com/reservoir-cloud/reservoir/vee"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashingDir); dir != "" {
		crashingAgent(dir) // never returns
	}
	goleak.VerifyTestMain(m)
}

// These tests start QEMU as users of their own and under cgroups, which takes root.
func needsRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("QEMU is tested as it is run: as root, which starts each guest as a user of its own. Run: sudo make test")
	}
}

// newDriver on dir; when t ends, no guest of it is left.
func newDriver(t testing.TB, dir string) *Driver {
	t.Helper()
	needsRoot(t)
	t.Cleanup(func() { sweep(t, dir) })
	d, err := New(t.Context(), Config{Dir: dir, Accelerator: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sweep ends all processes of the driver on dir and removes their cgroups. An open driver
// has closed before, since cleanups run in reverse order.
func sweep(t testing.TB, dir string) {
	found, err := findProcesses("reservoir:" + dir + ":")
	if err != nil {
		t.Error(err)
	}
	for id, pids := range found {
		for _, pid := range pids {
			if err := killUnowned(context.Background(), pid); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
	}
	groups := cgroup.Find(cgroup.Root, "reservoir")
	for _, name := range groups.Names() {
		if strings.HasPrefix(name, cgroupPrefix(dir)) {
			if err := groups.Remove(name); err != nil {
				t.Error(err)
			}
		}
	}
}

// sectorImage is the guest of one sector as an image of this host.
func sectorImage(t testing.TB, dir string) hypervisor.LocalImage {
	t.Helper()
	return conformance.SectorImage(t, dir)
}

func sectorGuestOn(i hypervisor.LocalImage) hypervisor.Guest { return conformance.SectorGuest(i) }

func kill(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	needsRoot(t)
	image := sectorImage(t, t.TempDir())
	r := conformance.Run(t, conformance.Factory{
		New:   func(t *testing.T, dir string) hypervisor.Driver { return newDriver(t, dir) },
		Guest: func(*testing.T) hypervisor.Guest { return sectorGuestOn(image) },
		Crash: func(t *testing.T, _ hypervisor.Driver, o hypervisor.Observation) { kill(t, o.PID) },
	})
	r.Check(t, "qemu", *update)
}

// Many guests made at once neither wait for each other for ever nor share a user.
func TestManyGuestsAtOnce(t *testing.T) {
	image := sectorImage(t, t.TempDir())
	d := newDriver(t, t.TempDir())
	defer d.Close()
	var wg sync.WaitGroup
	errs := make([]error, 40)
	id := func(i int) vee.ID { return vee.ID("alpha.aaaaaaaa" + string(rune('a'+i/20)) + string(rune('a'+i%20))) }
	for i := range errs {
		wg.Go(func() {
			g := sectorGuestOn(image)
			g.ID = id(i)
			for range 3 {
				errs[i] = errors.Join(errs[i], d.Prepare(t.Context(), g), d.Destroy(t.Context(), g.ID, g.Epoch))
			}
			errs[i] = errors.Join(errs[i], d.Prepare(t.Context(), g))
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	users := map[int]vee.ID{}
	for i := range errs {
		uid := d.guest(id(i)).record().UID
		if other, taken := users[uid]; taken {
			t.Errorf("%s and %s have user %d", id(i), other, uid)
		}
		users[uid] = id(i)
	}
}
