package libvirt

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/image/build"
	"github.com/reservoir-cloud/reservoir/vee"
	channel "github.com/reservoir-cloud/reservoir/vhi/guest"
)

// Memory up and down and a disk grown, with the guest's own word for each; and what libvirt
// cannot, at the next boot.
func TestLiveChanges(t *testing.T) {
	images := shortDir(t)
	a, err := build.Appliance(t.Context(), build.Options{Out: images, Cache: "../../.cache/images"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{a.Kernel, a.Initrd} { // guests' users read them
		if err := os.Chmod(f, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := newDriver(t, daemon(t).URI(), shortDir(t), filepath.Join(shortDir(t), "host"))
	defer d.Close()
	g := hypervisor.Guest{
		ID: "alpha.resize2222", Epoch: vee.Epoch{Generation: 1, Term: 1},
		Descriptor: vee.Descriptor{
			Name: "web-1", VCPUs: 1, Memory: 128 * vee.MiB, MemoryMax: 256 * vee.MiB,
			Disks:   []vee.Disk{{Name: "root", Image: "sha256:appliance"}, {Name: "data", Size: 16 * vee.MiB}},
			Context: map[string]string{"meta-data": "instance-id: web-1\nlocal-hostname: web-1\n"},
		},
		Images: []hypervisor.LocalImage{{
			Digest: "sha256:appliance", Kernel: a.Kernel, Initrd: a.Initrd, Cmdline: a.Image.Config.Cmdline,
		}},
	}
	boot := func() {
		t.Helper()
		if err := d.Prepare(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		if err := d.Start(t.Context(), g); err != nil {
			t.Fatal(err)
		}
	}
	// guest waits until it says so.
	guest := func(ok func(*channel.Status) bool) *channel.Status {
		t.Helper()
		conn, err := d.GuestChannel(t.Context(), g.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
			t.Fatal(err)
		}
		for in := channel.NewReader(conn); ; {
			m, err := in.Next()
			if s, is := m.(*channel.Status); is && ok(s) {
				return s
			}
			if err != nil && !errors.Is(err, channel.ErrMalformed) {
				t.Fatal(err)
			}
		}
	}
	resize := func(want vee.Descriptor, waiting ...string) {
		t.Helper()
		got, err := d.Resize(t.Context(), g.ID, g.Epoch, want)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, waiting, strings.Contains) {
			t.Errorf("%q wait for the next boot, want %q", got, waiting)
		}
	}
	boot()
	first := guest(func(s *channel.Status) bool { return s.Ready && s.KPIs["memory_total_bytes"] < 128<<20 })
	want := g.Descriptor
	want.Memory = 256 * vee.MiB
	want.Disks = []vee.Disk{want.Disks[0], {Name: "data", Size: 32 * vee.MiB}}
	resize(want)
	// The balloon takes its time, also at boot: what counts is where it ends.
	s := guest(func(s *channel.Status) bool {
		return s.KPIs["disk_vda_bytes"] == 32<<20 && s.KPIs["memory_total_bytes"] > 192<<20
	})
	if s.UptimeS < first.UptimeS {
		t.Errorf("it has %v after %.0f s, had %v after %.0f s", s.KPIs, s.UptimeS, first.KPIs, first.UptimeS)
	}
	want.Memory = 128 * vee.MiB
	resize(want)
	guest(func(s *channel.Status) bool { return s.KPIs["memory_total_bytes"] < 128<<20 })

	want.VCPUs, want.Memory = 2, 512*vee.MiB
	resize(want, "memory of 512MiB: it was started with at most 256MiB", "2 vCPUs: through libvirt")
	if err := d.Stop(t.Context(), g.ID, g.Epoch, 0); err != nil {
		t.Fatal(err)
	}
	want.MemoryMax = 0
	g.Descriptor = want
	boot()
	s = guest(func(s *channel.Status) bool { return s.Ready })
	if s.KPIs["vcpus_online"] != 2 || s.KPIs["disk_vda_bytes"] != 32<<20 || s.KPIs["memory_total_bytes"] < 384<<20 {
		t.Errorf("after its next boot it has %v", s.KPIs)
	}
	if err := d.Destroy(t.Context(), g.ID, g.Epoch); err != nil {
		t.Error(err)
	}
}
