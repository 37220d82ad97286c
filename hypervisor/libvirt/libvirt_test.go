package libvirt

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/conformance"
	"github.com/reservoir-cloud/reservoir/internal/libvirtd"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon of these tests' own, so that they see no other guests and leave none. libvirtd
// takes root.
func daemon(t *testing.T) *libvirtd.Daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("libvirtd is tested as it is run: as root. Run: sudo make test")
	}
	d, err := libvirtd.Start(t.Context(), shortDir(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// shortDir is a temporary directory for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rsv-lv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newDriver on dir; when t ends, no guest of it is left.
func newDriver(t *testing.T, uri, run, dir string) *Driver {
	t.Helper()
	// Guests' users pass through; the testing package makes it for its own user alone.
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	d, err := New(t.Context(), Config{Dir: dir, URI: uri, Run: run, Accelerator: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sweep(t, uri, d.prefix) })
	return d
}

// sweep ends all domains of a driver that may be closed.
func sweep(t *testing.T, uri, prefix string) {
	c, err := newConnection(uri)
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	domains, _, err := l.ConnectListAllDomains(1, 0)
	if err != nil {
		t.Error(err)
	}
	for _, dom := range domains {
		if strings.HasPrefix(dom.Name, prefix) {
			_ = l.DomainDestroyFlags(dom, 0)
			if err := l.DomainUndefineFlags(dom, undefineFlags); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestConformanceOnQEMU(t *testing.T) {
	uri, run := daemon(t).URI(), shortDir(t)
	image := conformance.SectorImage(t, shortDir(t))
	r := conformance.Run(t, conformance.Factory{
		New:   func(t *testing.T, dir string) hypervisor.Driver { return newDriver(t, uri, run, dir) },
		Guest: func(*testing.T) hypervisor.Guest { return conformance.SectorGuest(image) },
		Crash: func(t *testing.T, _ hypervisor.Driver, o hypervisor.Observation) {
			if err := syscall.Kill(o.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
	})
	r.Check(t, "libvirt", *update)
}

func TestConformanceOnTheMock(t *testing.T) {
	uri := strings.Replace(daemon(t).URI(), "qemu:///system", "test:///default", 1)
	// The mock forgets everything when nobody is connected.
	c, err := newConnection(uri)
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for range l.events {
		}
	}()
	defer func() { c.close(); <-drained }()
	run, image := shortDir(t), conformance.SectorImage(t, shortDir(t))
	r := conformance.Run(t, conformance.Factory{
		New:   func(t *testing.T, dir string) hypervisor.Driver { return newDriver(t, uri, run, dir) },
		Guest: func(*testing.T) hypervisor.Guest { return conformance.SectorGuest(image) },
		Crash: func(t *testing.T, d hypervisor.Driver, o hypervisor.Observation) {
			g := d.(*Driver).guest(o.ID)
			if err := l.DomainDestroyFlags(g.dom, 0); err != nil {
				t.Fatal(err)
			}
		},
	})
	r.Check(t, "libvirt-mock", *update)
}

// TestGuestsSurviveLibvirtd restarts it under a running guest.
func TestGuestsSurviveLibvirtd(t *testing.T) {
	dir := shortDir(t)
	first, err := libvirtd.Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	last := first
	t.Cleanup(func() { last.Stop() }) // after the driver's own cleanup
	d := newDriver(t, first.URI(), shortDir(t), filepath.Join(shortDir(t), "host"))
	g := conformance.SectorGuest(conformance.SectorImage(t, shortDir(t)))
	if err := errors.Join(d.Prepare(t.Context(), g), d.Start(t.Context(), g)); err != nil {
		t.Fatal(err)
	}
	before, err := d.Inspect(t.Context(), g.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := d.Pause(t.Context(), g.ID, g.Epoch); !errors.Is(err, errAway) {
		t.Errorf("pause without libvirtd: %v", err)
	}
	if last, err = libvirtd.Start(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	for err = errAway; errors.Is(err, errAway); { // until the driver has found it
		err = d.Pause(t.Context(), g.ID, g.Epoch)
	}
	after, inspected := d.Inspect(t.Context(), g.ID)
	if err := errors.Join(err, inspected); err != nil || after.Condition != hypervisor.Paused || after.PID != before.PID {
		t.Errorf("%+v (%v), want it paused as process %d", after, err, before.PID)
	}
	if err := errors.Join(d.Destroy(t.Context(), g.ID, g.Epoch), d.Close()); err != nil {
		t.Error(err)
	}
}
