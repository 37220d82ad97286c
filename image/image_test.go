package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
)

var testTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// content is size bytes that are the same for the same seed.
func content(seed uint64, size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func writeTemp(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// kernelImage is an image of a kernel with an initrd of the given size.
func kernelImage(t testing.TB, seed uint64, size int) *Source {
	t.Helper()
	src, err := FromFiles(t.Context(), Files{
		Kernel:  writeTemp(t, "vmlinuz", []byte("kernel")),
		Initrd:  writeTemp(t, "initrd", content(seed, size)),
		Config:  Config{Name: "appliance", Architecture: "amd64", Cmdline: "console=ttyS0"},
		Created: testTime,
	})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// diskImage is an image of a qcow2 disk of the given size.
func diskImage(t testing.TB, seed uint64, size int) *Source {
	t.Helper()
	src, err := FromFiles(t.Context(), Files{
		Disk:   writeTemp(t, "debian.qcow2", append(qcow2Head(vee.GiB), content(seed, size)...)),
		Config: Config{Architecture: "amd64"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func wantFault(t testing.TB, err error, code fault.Code, words ...string) {
	t.Helper()
	if !fault.Has(err, code) {
		t.Fatalf("error %v; want fault %s", err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q says nothing of %q", err, w)
		}
	}
}

func TestFromFiles(t *testing.T) {
	img := diskImage(t, 1, 1000).Image()
	if img.Config.Name != "debian" || img.Config.Format != FormatQCOW2 || img.Config.VirtualSize != vee.GiB || img.Boot() != "disk" {
		t.Errorf("disk: %+v", img)
	}
	img = kernelImage(t, 1, 1000).Image()
	if img.Boot() != "kernel" || img.Config.Format != "" || !img.Created.Equal(testTime) {
		t.Errorf("kernel: %+v", img)
	}
	raw, err := FromFiles(t.Context(), Files{Disk: writeTemp(t, "x.raw", make([]byte, 512))})
	if err != nil || raw.Image().Config.Format != FormatRaw || raw.Image().Config.VirtualSize != 512 {
		t.Errorf("raw: %+v, %v", raw, err)
	}

	_, err = FromFiles(t.Context(), Files{Disk: "/no/such/file"})
	wantFault(t, err, fault.NotFound, "/no/such/file")
	evil := qcow2Head(vee.GiB)
	evil[15] = 1
	_, err = FromFiles(t.Context(), Files{Disk: writeTemp(t, "evil.qcow2", evil)})
	wantFault(t, err, fault.Malformed, "evil.qcow2", "backing file")
	_, err = FromFiles(t.Context(), Files{Initrd: writeTemp(t, "initrd", []byte("x"))})
	wantFault(t, err, fault.Malformed, "nothing to boot")
	_, err = FromFiles(t.Context(), Files{Disk: writeTemp(t, "empty", nil)})
	wantFault(t, err, fault.Malformed)
}

func TestFromLayout(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	a, b := push(t, s, kernelImage(t, 1, 100), "app:v1"), push(t, s, kernelImage(t, 2, 100), "app:v2")
	for tag, want := range map[string]string{"v1": a.Digest, "app:v2": b.Digest} {
		src, err := FromLayout(s.dir, tag)
		if err != nil || src.Image().Digest != want {
			t.Errorf("tag %s: %+v, %v", tag, src, err)
		}
	}
	_, err := FromLayout(s.dir, "")
	wantFault(t, err, fault.Malformed, "several")
	_, err = FromLayout(s.dir, "v3")
	wantFault(t, err, fault.NotFound, "app:v1", "app:v2")
	_, err = FromLayout(t.TempDir(), "")
	wantFault(t, err, fault.NotFound, "no OCI layout")
}

func TestDecodeManifest(t *testing.T) {
	blob := func(mediaType string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: someDigest, Size: 10}
	}
	good := func() ocispec.Manifest {
		return ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			ArtifactType: ArtifactType, Config: blob(MediaTypeConfig),
			Layers: []ocispec.Descriptor{blob(MediaTypeKernel), blob(MediaTypeInitrd), blob(MediaTypeDiskQCOW2)},
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*ocispec.Manifest)
		err    string
	}{
		{"good", func(*ocispec.Manifest) {}, ""},
		{"schema", func(m *ocispec.Manifest) { m.SchemaVersion = 1 }, "schema 1"},
		{"index", func(m *ocispec.Manifest) { m.MediaType = ocispec.MediaTypeImageIndex }, "media type"},
		{"container", func(m *ocispec.Manifest) { m.ArtifactType = "" }, "artifact type"},
		{"config type", func(m *ocispec.Manifest) { m.Config.MediaType = ocispec.MediaTypeImageConfig }, "config of media type"},
		{"config size", func(m *ocispec.Manifest) { m.Config.Size = 1 << 40 }, "config of"},
		{"layer type", func(m *ocispec.Manifest) { m.Layers[0].MediaType = ocispec.MediaTypeImageLayer }, "layer 0"},
		{"two disks", func(m *ocispec.Manifest) { m.Layers[0].MediaType = MediaTypeDiskRaw }, "second"},
		{"nothing", func(m *ocispec.Manifest) { m.Layers = nil }, "nothing to boot"},
		{"initrd alone", func(m *ocispec.Manifest) { m.Layers = m.Layers[1:] }, "no kernel"},
		{"path for a digest", func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../etc/passwd" }, "digest"},
		{"other algorithm", func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.SHA512.FromString("") }, "digest"},
		{"negative size", func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }, "-1 bytes"},
		{"overflowing size", func(m *ocispec.Manifest) { m.Layers[0].Size = 1 << 62 }, "bytes"},
		{"created", func(m *ocispec.Manifest) { m.Annotations = map[string]string{ocispec.AnnotationCreated: "today"} }, "RFC 3339"},
	} {
		m := good()
		tt.change(&m)
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = decodeManifest(raw)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: error %v; want one about %q", tt.name, err, tt.err)
		}
	}
}

func TestInspectComparesWithBlobs(t *testing.T) {
	src := diskImage(t, 1, 100)
	disk := src.image.Disk.Digest
	for _, tt := range []struct {
		name string
		open opener
		err  string
	}{
		{"missing", func(d digest.Digest) (io.ReadCloser, int64, error) { return nil, 0, fmt.Errorf("%s is missing", d) }, "missing"},
		{"shorter", func(d digest.Digest) (io.ReadCloser, int64, error) {
			r, n, err := src.open(d)
			if d == disk {
				n--
			}
			return r, n, err
		}, "the manifest says"},
		{"another disk", func(d digest.Digest) (io.ReadCloser, int64, error) {
			r, n, err := src.open(d)
			if d == disk {
				r.Close()
				r = io.NopCloser(bytes.NewReader(qcow2Head(2 * vee.GiB)))
			}
			return r, n, err
		}, "config says a disk of"},
		{"another config", func(d digest.Digest) (io.ReadCloser, int64, error) {
			r, n, err := src.open(d)
			if d == src.image.config.Digest {
				r = io.NopCloser(strings.NewReader("{}"))
			}
			return r, n, err
		}, "does not match"},
	} {
		if _, err := inspect(src.manifest, tt.open); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: error %v; want one about %q", tt.name, err, tt.err)
		}
	}
}

func TestIndexRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := index{map[Reference]tag{}, map[digest.Digest]int64{}}
		for range rapid.IntRange(0, 5).Draw(t, "manifests") {
			d := digest.FromString(rapid.String().Draw(t, "manifest"))
			x.manifests[d] = rapid.Int64Range(1, maxMetadata).Draw(t, "size")
			for _, s := range rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,3}(/[a-z])?:[A-Za-z0-9_]{1,3}`), 0, 3).Draw(t, "tags") {
				r, err := ParseReference(s)
				if err != nil {
					t.Fatal(err)
				}
				x.tags[r] = tag{d, rapid.SampledFrom([]string{"", "acme"}).Draw(t, "customer")}
			}
		}
		raw, err := x.encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeIndex(raw)
		if err != nil {
			t.Fatal(err)
		}
		again, err := back.encode()
		if err != nil || !bytes.Equal(raw, again) {
			t.Fatalf("%s came back as %s, %v", raw, again, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	src := kernelImage(f, 1, 10)
	f.Add(src.manifest)
	f.Add([]byte(`{"name":"x","architecture":"amd64","format":"raw","virtualSizeBytes":1}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + someDigest + `","annotations":{"org.opencontainers.image.ref.name":"a:b"}}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if img, err := decodeManifest(raw); err == nil {
			for _, p := range img.parts() {
				if p.Size <= 0 || len(p.Digest.Encoded()) != 64 {
					t.Fatalf("part %+v", p)
				}
			}
			if img.Size() <= 0 {
				t.Fatalf("size %d", img.Size())
			}
		}
		if c, err := decodeConfig(raw); err == nil && (c.VirtualSize < 0 || c.VirtualSize > maxVirtualSize) {
			t.Fatalf("config %+v", c)
		}
		if x, err := decodeIndex(raw); err == nil {
			if _, err := x.encode(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
