package build

import (
	"bytes"
	"encoding/binary"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/pierrec/lz4/v4"
	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func TestLoadOrder(t *testing.T) {
	depends := map[string][]string{
		"virtio_net": {"virtio_ring", "virtio", "net_failover"}, "net_failover": {"failover"},
		"virtio_ring": {"virtio"}, "virtio": nil, "failover": nil, "virtio_blk": {"virtio", "virtio_ring"},
		"a": {"b"}, "b": {"a"}, "orphan": {"absent"},
	}
	all := map[string]module{}
	for name := range depends {
		all[name] = module{name: name, path: name}
	}
	info := func(path string) ([]string, error) { return depends[path], nil }
	for _, c := range []struct {
		wanted    []string
		want, err string
	}{
		{nil, "", ""},
		{[]string{"virtio_net", "virtio_blk", "virtio_net"}, "virtio virtio_ring failover net_failover virtio_net virtio_blk", ""},
		{[]string{"a"}, "", "a → b → a"},
		{[]string{"orphan"}, "", "absent"},
	} {
		order, err := loadOrder(all, c.wanted, info)
		var names []string
		for _, m := range order {
			names = append(names, m.name)
		}
		if got := strings.Join(names, " "); got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v: got %q, %v; want %q, %q", c.wanted, got, err, c.want, c.err)
		}
	}
}

// TestLoadOrderHolds: whatever the graph, each module comes once and after all it needs.
func TestLoadOrderHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "modules")
		name := func(i int) string { return string(rune('a' + i)) }
		depends := map[string][]string{}
		all := map[string]module{}
		for i := range n { // on earlier ones only, so that there is no cycle
			all[name(i)] = module{name: name(i), path: name(i)}
			for j := range i {
				if rapid.Bool().Draw(t, "depends") {
					depends[name(i)] = append(depends[name(i)], name(j))
				}
			}
		}
		wanted := rapid.SliceOf(rapid.SampledFrom(slices.Sorted(func(yield func(string) bool) {
			for k := range all {
				if !yield(k) {
					return
				}
			}
		}))).Draw(t, "wanted")
		order, err := loadOrder(all, wanted, func(p string) ([]string, error) { return depends[p], nil })
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, m := range order {
			for _, d := range m.depends {
				if !seen[d] {
					t.Fatalf("%s before %s, which it needs", m.name, d)
				}
			}
			if seen[m.name] {
				t.Fatalf("%s twice", m.name)
			}
			seen[m.name] = true
		}
		for _, w := range wanted {
			if !seen[w] {
				t.Fatalf("%s is missing", w)
			}
		}
	})
}

func TestKernelDependency(t *testing.T) {
	got, err := kernelDependency("Package: linux-image-cloud-amd64\nVersion: 6.1.1-2\nDepends: linux-image-6.1.0-5-cloud-amd64 (= 6.1.1-2)\nSize: 1\n")
	if err != nil || got != "linux-image-6.1.0-5-cloud-amd64=6.1.1-2" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := kernelDependency("Package: x\nDepends: libc6\n"); err == nil {
		t.Error("no error without a kernel")
	}
}

// bzImage with that payload, as far as decompressed looks at it.
func bzImage(payload []byte) []byte {
	b := make([]byte, 512+0x400)
	b[0x1f1] = 1 // one sector of setup code, after the boot sector
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(b[0x248:], 0x10)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)+4))
	b = append(b[:1024+0x10], payload...)
	return append(b, 0, 0, 0, 0)
}

func TestDecompressed(t *testing.T) {
	want := bytes.Repeat([]byte("the kernel "), 1000)
	var packed bytes.Buffer
	w := lz4.NewWriter(&packed)
	if err := w.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := decompressed(bzImage(packed.Bytes())); err != nil || !bytes.Equal(got, want) {
		t.Errorf("LZ4: %d bytes, %v", len(got), err)
	}
	for name, as := range map[string][]byte{"gzip": bzImage([]byte{0x1f, 0x8b, 8, 0, 0}), "no bzImage": []byte("\x7fELF")} {
		if got, err := decompressed(as); err != nil || !bytes.Equal(got, as) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	broken := bzImage(packed.Bytes())
	binary.LittleEndian.PutUint32(broken[0x24c:], 1<<30)
	if _, err := decompressed(broken); err == nil || !strings.Contains(err.Error(), "payload") {
		t.Errorf("a payload beyond the end: %v", err)
	}
}

func TestInitramfsSaysWhatItLacks(t *testing.T) {
	_, err := initramfs([]byte("guest"), fstest.MapFS{"kernel/virtio.ko": {Data: []byte("no ELF")}}, "root.list")
	if err == nil || !strings.Contains(err.Error(), "virtio_pci") {
		t.Errorf("without modules: %v", err)
	}
	if _, err := moduleDepends([]byte("no ELF")); err == nil {
		t.Error("no error for a module that is no ELF file")
	}
}

func TestDebianSources(t *testing.T) {
	etc := fstest.MapFS{
		"sources.list": {Data: []byte(`# deb http://a.example/debian bookworm main
deb-src http://a.example/debian bookworm main
deb [ signed-by=/k.gpg arch=amd64 ] http://a.example/debian bookworm main contrib # theirs
deb http://a.example/debian bookworm-backports main
deb http://a.example/security bookworm/updates main
`)},
		"sources.list.d/vendor.list": {Data: []byte("deb https://vendor.example/ bookworm stable\ndeb https://vendor.example/apt sdk-bookworm main\n")},
		"sources.list.d/debian.sources": {Data: []byte(`Types: deb deb-src
# a remark
URIs: http://b.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/d.gpg

Types: deb
URIs: http://b.example/security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
`)},
	}
	want := `deb [signed-by=/k.gpg arch=amd64] http://a.example/debian bookworm main
deb http://a.example/security bookworm/updates main
deb [signed-by=/usr/share/keyrings/d.gpg] http://b.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/d.gpg] http://b.example/debian bookworm-updates main
deb http://b.example/security bookworm-security main`
	got, err := debianSources(etc, "bookworm")
	if err != nil || strings.Join(got, "\n") != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, strings.Join(got, "\n"), want)
	}
	if _, err := debianSources(etc, "trixie"); err == nil || !strings.Contains(err.Error(), "trixie") {
		t.Errorf("another release: %v", err)
	}
}

func FuzzDebianSources(f *testing.F) {
	f.Add("deb [a=b] http://x bookworm main", "Types: deb\nURIs: x\nSuites: bookworm\nComponents: main\n")
	f.Fuzz(func(t *testing.T, list, stanzas string) {
		_, _ = debianSources(fstest.MapFS{"sources.list": {Data: []byte(list)}, "sources.list.d/x.sources": {Data: []byte(stanzas)}}, "bookworm")
	})
}

func TestParseRelease(t *testing.T) {
	got := parseRelease("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_CODENAME='bookworm'\n")
	if got != (release{"debian", "bookworm"}) {
		t.Errorf("got %+v", got)
	}
}

func TestMissingProgramNamesItsPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := exec.LookPath("mmdebstrap"); err == nil {
		t.Fatal("the path is not empty")
	}
	_, err := run(t.Context(), "", nil, "mmdebstrap")
	if !fault.Has(err, fault.NotFound) || !strings.Contains(fault.From(err).NextStep(), "apt-get install mmdebstrap") {
		t.Errorf("got %v", err)
	}
}

func TestEveryFileOfOursIsForTheImage(t *testing.T) {
	sum, err := embeddedSum(debianFiles)
	if err != nil || len(sum) != 64 {
		t.Errorf("digest %q, %v", sum, err)
	}
	if _, err := fs.Stat(debianFiles, "debian/etc/systemd/system/reservoir-guest.service"); err != nil {
		t.Error(err)
	}
}
