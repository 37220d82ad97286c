package qemu

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/image/build"
	"github.com/reservoir-cloud/reservoir/vee"
	channel "github.com/reservoir-cloud/reservoir/vhi/guest"
)

// The appliance is a guest as services have it: Linux, booted directly, with an agent. What
// it holds in memory, the guest channel shows.
func TestAppliance(t *testing.T) {
	needsRoot(t)
	a, err := build.Appliance(t.Context(), build.Options{Out: t.TempDir(), Cache: "../../.cache/images"})
	if err != nil {
		t.Fatal(err)
	}
	d := openDriver(t, t.TempDir())
	g := hypervisor.Guest{
		ID: "alpha.appliance2",
		Descriptor: vee.Descriptor{
			Name: "web-1", VCPUs: 1, Memory: 128 * vee.MiB,
			Disks:   []vee.Disk{{Name: "root", Image: "sha256:appliance"}},
			Context: map[string]string{"meta-data": "instance-id: alpha.appliance2\nlocal-hostname: web-1\n"},
		},
		Images: []hypervisor.LocalImage{{
			Digest: "sha256:appliance", Kernel: a.Kernel, Initrd: a.Initrd, Cmdline: a.Image.Config.Cmdline,
		}},
	}
	began := time.Now()
	start(t, d, g)
	l := openLine(t, d, g.ID)
	for l.status().Ready == false {
	}
	t.Logf("ready after %s", time.Since(began).Round(time.Millisecond))
	l.tell(channel.Command{Type: "kpi", ID: "1", Name: "kept", Amount: 42})
	before := l.status()
	for before.KPIs["kept"] != 42 {
		before = l.status()
	}
	// A second caller takes over from the first.
	second := openLine(t, d, g.ID)
	second.tell(channel.Command{Type: "hello?", ID: "2"})
	second.hello()
	if _, err := l.in.Next(); err == nil {
		t.Error("the first caller of the guest channel was not told that a second took over")
	}

	if err := d.Suspend(t.Context(), g.ID, g.Epoch, nil); err != nil {
		t.Fatal(err)
	}
	o, err := d.Inspect(t.Context(), g.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("suspended, on disk %s", o.DiskUsed)
	if err := d.Wake(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	l = openLine(t, d, g.ID)
	after := l.status()
	if after.KPIs["kept"] != 42 || after.UptimeS < before.UptimeS {
		t.Errorf("woken it says %+v, before it said %+v: its memory was lost", after, before)
	}

	began = time.Now()
	if err := d.Stop(t.Context(), g.ID, g.Epoch, 10*time.Minute); err != nil {
		t.Fatal(err)
	}
	t.Logf("shut down in %s", time.Since(began).Round(time.Millisecond))
}

// line is a guest channel that is spoken on.
type line struct {
	t    testing.TB
	conn net.Conn
	in   *channel.Reader
}

func openLine(t testing.TB, d *Driver, id vee.ID) *line {
	t.Helper()
	conn, err := d.GuestChannel(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	return &line{t, conn, channel.NewReader(conn)}
}

func (l *line) tell(c channel.Command) {
	l.t.Helper()
	b, err := channel.Encode(c)
	if err == nil {
		_, err = l.conn.Write(b)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// next message of a kind; half a message, left from the caller before, is passed over.
func next[M any](l *line) M {
	l.t.Helper()
	for {
		msg, err := l.in.Next()
		if errors.Is(err, channel.ErrMalformed) {
			continue
		}
		if err != nil {
			l.t.Fatalf("the guest channel ended: %v", err)
		}
		if m, ok := msg.(M); ok {
			return m
		}
	}
}

func (l *line) status() *channel.Status { l.t.Helper(); return next[*channel.Status](l) }
func (l *line) hello() *channel.Hello   { l.t.Helper(); return next[*channel.Hello](l) }
