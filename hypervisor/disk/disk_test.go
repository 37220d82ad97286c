package disk

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/vee"
)

func TestPlanDisks(t *testing.T) {
	images := []hypervisor.LocalImage{
		{Digest: "sha256:disk", Disk: "/i/disk.qcow2", Format: "qcow2"},
		{Digest: "sha256:kernel", Kernel: "/i/vmlinux"},
	}
	got := Plan(hypervisor.Guest{Images: images, Descriptor: vee.Descriptor{Disks: []vee.Disk{
		{Name: "swap", Size: vee.MiB, Target: "vdb"},
		{Name: "root", Image: "sha256:disk"},
		{Name: "db", Image: "sha256:disk", Persistent: true},
		{Name: "boot", Image: "sha256:kernel"},
		{Name: "scratch", Image: "sha256:kernel", Size: vee.GiB},
		{Name: "tools", Image: "sha256:disk", CDROM: true},
	}}})
	var files []string
	for _, d := range got {
		files = append(files, d.Name+" "+d.File)
	}
	want := []string{
		"root disk-root.qcow2", "swap disk-swap.raw", "db disk-db.qcow2", "scratch disk-scratch.raw", "tools ",
	}
	if !slices.Equal(files, want) {
		t.Errorf("disks %q, want %q", files, want)
	}
	for i, kind := range []Kind{Clone, Blank, Copied, Blank, Medium} {
		if got[i].Kind != kind {
			t.Errorf("disk %q is of kind %d, want %d", got[i].Name, got[i].Kind, kind)
		}
	}
}

func TestDeviceOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var disks []vee.Disk
		for i := range rapid.IntRange(0, 30).Draw(t, "disks") {
			disks = append(disks, vee.Disk{
				Name:   string(rune('A' + i)),
				Target: rapid.SampledFrom([]string{"", "", "vda", "vdb", "vdz", "sda", "vd", "vdaa"}).Draw(t, "target"),
			})
		}
		got := inDeviceOrder(disks)
		if len(got) != len(disks) {
			t.Fatalf("%d disks became %d", len(disks), len(got))
		}
		seen := map[string]bool{}
		for _, k := range got {
			seen[k.Name] = true
		}
		if len(seen) != len(disks) {
			t.Fatalf("disks were lost: %v", got)
		}
		first := slices.IndexFunc(disks, func(k vee.Disk) bool { return k.Target == "vda" })
		if first >= 0 && got[0].Name != disks[first].Name {
			t.Fatalf("vda is %q, want %q", got[0].Name, disks[first].Name)
		}
	})
}

func TestSeedMedium(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seed.iso")
	want := map[string]string{"meta-data": "instance-id: x\n", "user-data": "#cloud-config\n", "ovf-env.xml": "<x/>", "empty": ""}
	for range 2 { // the second time in the first one's place
		if err := MakeSeed(path, want); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	iso, err := iso9660.Read(file.New(f, true), 0, 0, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if label := strings.TrimRight(iso.Label(), "\x00 "); label != SeedLabel {
		t.Errorf("label %q, want %q", label, SeedLabel)
	}
	for name, content := range want {
		r, err := iso.OpenFile("/"+name, os.O_RDONLY)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != content {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, content)
		}
	}
	if rest, _ := os.ReadDir(filepath.Dir(path)); len(rest) != 1 {
		t.Errorf("%v beside the image, want nothing", rest)
	}
	if err := MakeSeed(path, map[string]string{"../evil": ""}); err == nil {
		t.Error("a name with a path was taken")
	}
}
