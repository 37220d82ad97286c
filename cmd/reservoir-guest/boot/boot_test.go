package boot

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/seed"
)

// What needs to be the first process of a machine is tested in one: image/build.

func TestVolumeLabel(t *testing.T) {
	volume := func(descriptor, label string) []byte {
		v := make([]byte, 17*2048)
		copy(v[16*2048:], descriptor)
		copy(v[16*2048+40:], label)
		return v
	}
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"ours":          {volume("\x01CD001", "cidata                          and more"), "cidata"},
		"zeroes after":  {volume("\x01CD001", "cidata"), "cidata"},
		"no descriptor": {volume("\x02CD001", "cidata"), ""},
		"an empty disk": {nil, ""},
		"cut off":       {volume("\x01CD001", "cidata")[:17*2048-1], ""},
	} {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := volumeLabel(path); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := volumeLabel(filepath.Join(t.TempDir(), "absent")); got != "" {
		t.Errorf("no device: %q", got)
	}
}

func TestFindPrefersTheAddress(t *testing.T) {
	device := func(name string, last byte) netlink.Link {
		return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, last}}}
	}
	present := []netlink.Link{device("eth0", 1), device("eth1", 2)}
	for _, c := range []struct {
		link seed.Link
		want string
	}{
		{seed.Link{Name: "eth1"}, "eth1"},
		{seed.Link{Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}, "eth1"}, // to be called eth0
		{seed.Link{Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}, ""},
		{seed.Link{Name: "eth9"}, ""},
	} {
		got := ""
		if l := find(c.link, present); l != nil {
			got = l.Attrs().Name
		}
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.link, got, c.want)
		}
	}
}
