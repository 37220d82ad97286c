package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/content/oci"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

func newStore(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := OpenStore(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func push(t testing.TB, s *Store, src *Source, ref string) Image {
	t.Helper()
	img, err := s.Push(t.Context(), src, ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// clock is a time that tests move.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

// files under dir that are no directories, without the lock.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "lock" {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestStoreResolve(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir, Options{})
	v1 := push(t, s, kernelImage(t, 1, 1000), "acme/app:v1")
	v2 := push(t, s, diskImage(t, 2, 1000), "acme/app")
	check := func() {
		t.Helper()
		for ref, want := range map[string]string{
			"acme/app:v1": v1.Digest, "acme/app": v2.Digest, "acme/app:latest": v2.Digest,
			v1.Digest: v1.Digest, "acme/app@" + v2.Digest: v2.Digest,
		} {
			if img, err := s.Resolve(t.Context(), ref); err != nil || img.Digest != want {
				t.Errorf("Resolve(%s) = %s, %v; want %s", ref, img.Digest, err, want)
			}
		}
		_, err := s.Resolve(t.Context(), "acme/app:v3")
		wantFault(t, err, fault.NotFound, "acme/app:v3")
		_, err = s.Resolve(t.Context(), "a:b:c")
		wantFault(t, err, fault.Malformed)
	}
	check()
	if _, err := OpenStore(dir, Options{}); !fault.Has(err, fault.Exists) {
		t.Errorf("a second process on one store: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = newStore(t, dir, Options{})
	check()
}

// What we write is a layout that others can read.
func TestStoreIsAnOCILayout(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	img := push(t, s, kernelImage(t, 1, 1000), "app:v1")
	layout, err := oci.NewFromFS(t.Context(), os.DirFS(s.dir))
	if err != nil {
		t.Fatal(err)
	}
	d, err := layout.Resolve(t.Context(), "app:v1")
	if err != nil || d.Digest.String() != img.Digest {
		t.Fatalf("oras resolves %+v, %v; want %s", d, err, img.Digest)
	}
	r, err := layout.Fetch(t.Context(), *img.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); err != nil || digest.FromBytes(data) != img.Initrd.Digest {
		t.Fatalf("oras fetches %d bytes, %v", len(data), err)
	}
}

func TestStoreList(t *testing.T) {
	used := map[string][]string{}
	s := newStore(t, t.TempDir(), Options{InUse: func(context.Context) (map[string][]string, error) { return used, nil }})
	if l, err := s.List(t.Context()); err != nil || l == nil || len(l) != 0 {
		t.Fatalf("empty store lists %v, %v", l, err)
	}
	app := push(t, s, kernelImage(t, 1, 1000), "app:v1")
	push(t, s, kernelImage(t, 1, 1000), "app:v2")
	push(t, s, diskImage(t, 2, 1000), "debian")
	used[app.Digest] = []string{"alpha.aaaaaaaaaa"}
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range l {
		got = append(got, i.Name+":"+i.Tag+" "+i.Boot+" "+i.VirtualSize.String()+" "+strings.Join(i.UsedBy, ","))
	}
	want := []string{"app:v1 kernel 0B alpha.aaaaaaaaaa", "app:v2 kernel 0B alpha.aaaaaaaaaa", "debian:latest disk 1GiB "}
	if !slices.Equal(got, want) {
		t.Errorf("list %q; want %q", got, want)
	}
	if !l[0].Created.Equal(testTime) || l[0].Size != app.Size() || l[0].Digest != app.Digest {
		t.Errorf("first: %+v", l[0])
	}
}

func TestPutBlobRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		d    digest.Digest
		r    io.Reader
		code fault.Code
	}{
		{"other content", Options{}, someDigest, strings.NewReader("other"), fault.DigestMismatch},
		{"no digest", Options{}, "sha256:../x", strings.NewReader("other"), fault.Malformed},
		{"too large", Options{MaxBlob: 4}, digest.FromString("other"), strings.NewReader("other"), fault.TooLarge},
		{"no room", Options{KeepFree: 1 << 60}, digest.FromString("other"), strings.NewReader("other"), fault.DiskFull},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, t.TempDir(), tt.o)
			before := files(t, s.dir)
			err := s.PutBlob(t.Context(), tt.d, tt.r)
			wantFault(t, err, tt.code)
			if after := files(t, s.dir); !slices.Equal(before, after) {
				t.Errorf("left over: %v; there was %v", after, before)
			}
		})
	}
}

func TestPutManifestRefuses(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	src := kernelImage(t, 1, 1000)
	_, err := s.PutManifest(t.Context(), src.manifest, "app:v1")
	wantFault(t, err, fault.Malformed, "app:v1", "is not here")
	push(t, s, src, "app:v1")
	_, err = s.PutManifest(t.Context(), src.manifest, "app@"+someDigest)
	wantFault(t, err, fault.DigestMismatch, src.image.Digest)
	_, err = s.PutManifest(t.Context(), []byte("{"), "app:v1")
	wantFault(t, err, fault.Malformed)

	// A disk that names another file of the host, in a manifest that is in order.
	evil := qcow2Head(vee.GiB)
	evil[15] = 1
	good := diskImage(t, 1, 0)
	manifest := bytes.ReplaceAll(good.manifest, []byte(good.image.Disk.Digest), []byte(digest.FromBytes(evil)))
	if err := errors.Join(
		s.PutBlob(t.Context(), digest.FromBytes(evil), bytes.NewReader(evil)),
		pushParts(t.Context(), s, good),
	); err != nil {
		t.Fatal(err)
	}
	_, err = s.PutManifest(t.Context(), manifest, "evil")
	wantFault(t, err, fault.Malformed, "backing file")
	_, err = s.Resolve(t.Context(), "evil")
	wantFault(t, err, fault.NotFound)
}

func pushParts(ctx context.Context, s *Store, src *Source) error {
	for _, p := range src.image.parts() {
		r, _, err := src.open(p.Digest)
		if err != nil {
			return err
		}
		defer r.Close()
		if err := s.PutBlob(ctx, p.Digest, r); err != nil {
			return err
		}
	}
	return nil
}

func TestTagsBelongToCustomers(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	as := func(r identity.Role, customer string) context.Context {
		return identity.With(t.Context(), identity.Caller{ID: "x", Role: r, Customer: customer})
	}
	acme, other, operator := as(identity.Provider, "acme"), as(identity.Provider, "other"), as(identity.Operator, "")
	v1, v2 := kernelImage(t, 1, 10), kernelImage(t, 2, 10)
	put := func(ctx context.Context, src *Source) error { _, err := s.Push(ctx, src, "app"); return err }
	if err := put(acme, v1); err != nil {
		t.Fatal(err)
	}
	wantFault(t, put(other, v2), fault.Denied, "app:latest")
	wantFault(t, s.Remove(other, "app", true), fault.Denied)
	wantFault(t, s.Remove(other, v1.image.Digest, true), fault.Denied)
	if err := put(acme, v2); err != nil {
		t.Errorf("the owner may not push again: %v", err)
	}
	if err := put(operator, v1); err != nil {
		t.Errorf("the operator may not push: %v", err)
	}
	wantFault(t, put(acme, v2), fault.Denied) // it is the operator's now
}

func TestRemoveAndCollect(t *testing.T) {
	c := &clock{time.Now()}
	used := map[string][]string{}
	var broken error
	s := newStore(t, t.TempDir(), Options{Grace: time.Hour, Now: c.Now, InUse: func(context.Context) (map[string][]string, error) {
		return used, broken
	}})
	empty := files(t, s.dir)
	v1, v2 := push(t, s, kernelImage(t, 1, 1000), "app:v1"), push(t, s, kernelImage(t, 2, 1000), "app:v2")
	used[v1.Digest] = []string{"alpha.aaaaaaaaaa"}

	err := s.Remove(t.Context(), "app:v1", false)
	wantFault(t, err, fault.InUse, "alpha.aaaaaaaaaa")
	wantFault(t, s.Remove(t.Context(), "app:v3", false), fault.NotFound)
	if err := s.Remove(t.Context(), "app:v1", true); err != nil {
		t.Fatal(err)
	}
	_, err = s.Resolve(t.Context(), "app:v1")
	wantFault(t, err, fault.NotFound)
	if err := s.Remove(t.Context(), "app:v2", false); err != nil {
		t.Fatal(err)
	}

	collect := func(images int) {
		t.Helper()
		got, err := s.Collect(t.Context())
		if err != nil || got.Images != images {
			t.Errorf("collected %+v, %v; want %d images", got, err, images)
		}
	}
	collect(0) // within the grace
	c.now = c.now.Add(2 * time.Hour)
	broken = errors.New("the record of truth does not answer")
	if _, err := s.Collect(t.Context()); !errors.Is(err, broken) {
		t.Errorf("collect without knowing what is in use: %v", err)
	}
	broken = nil
	collect(1) // v2; v1 is in use
	if _, err := s.Resolve(t.Context(), v1.Digest); err != nil {
		t.Errorf("an image in use was collected: %v", err)
	}
	_, err = s.Resolve(t.Context(), v2.Digest)
	wantFault(t, err, fault.NotFound)
	if _, err := os.Stat(s.blobs.path(v1.Kernel.Digest)); err != nil {
		t.Errorf("the kernel that both had is gone: %v", err)
	}

	delete(used, v1.Digest)
	collect(1)
	if left := files(t, s.dir); !slices.Equal(left, empty) {
		t.Errorf("left over: %v; want %v", left, empty)
	}
}

func TestCollectDropsAbandonedUploads(t *testing.T) {
	c := &clock{time.Now()}
	s := newStore(t, t.TempDir(), Options{Now: c.Now})
	id, u, err := s.uploads.start()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeAll(u.partial, []byte("half")); err != nil {
		t.Fatal(err)
	}
	c.now = c.now.Add(2 * time.Hour)
	if got, err := s.Collect(t.Context()); err != nil || got.Bytes != 0 {
		t.Errorf("an upload in somebody's hands: collected %+v, %v", got, err)
	}
	s.uploads.give(id, u)
	if got, err := s.Collect(t.Context()); err != nil || got.Bytes != 4 {
		t.Errorf("collected %+v, %v; want 4 bytes", got, err)
	}
	_, err = s.uploads.take(id)
	wantFault(t, err, fault.NotFound)
}

func TestVerifyQuarantinesAndPushHeals(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	src := kernelImage(t, 1, 1000)
	img := push(t, s, src, "app:v1")
	push(t, s, diskImage(t, 2, 1000), "debian")
	if p, err := s.Verify(t.Context()); err != nil || len(p) != 0 {
		t.Fatalf("sound store: %v, %v", p, err)
	}
	if err := os.WriteFile(s.blobs.path(img.Initrd.Digest), content(9, 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.blobs.path(img.Kernel.Digest)); err != nil {
		t.Fatal(err)
	}
	p, err := s.Verify(t.Context())
	if err != nil || len(p) != 2 {
		t.Fatalf("problems %v, %v; want two", p, err)
	}
	for _, x := range p {
		if !slices.Equal(x.Images, []string{"app:v1"}) || !strings.Contains(x.String(), "app:v1") {
			t.Errorf("problem %s", x)
		}
	}
	if _, err := os.Stat(filepath.Join(s.dir, "quarantine", img.Initrd.Digest.Encoded())); err != nil {
		t.Error(err)
	}
	_, err = s.Resolve(t.Context(), "app:v1")
	wantFault(t, err, fault.DigestMismatch, "app:v1", "damaged")
	if i, err := s.Show(t.Context(), "app:v1"); err != nil || i.Problem == "" {
		t.Errorf("show %+v, %v", i, err)
	}
	if _, err := s.Resolve(t.Context(), "debian"); err != nil {
		t.Errorf("the sound image: %v", err)
	}
	push(t, s, src, "app:v1")
	if _, err := s.Resolve(t.Context(), "app:v1"); err != nil {
		t.Errorf("pushed again: %v", err)
	}
}

// Writes that fail in the middle of a blob, as on a full disk: /dev/full takes none.
func TestDiskFullMidBlob(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	id, u, err := s.uploads.start()
	if err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	file := u.partial.f
	u.partial.f = full
	_, err = u.partial.Write([]byte("x"))
	wantFault(t, err, fault.DiskFull, "write blob")
	u.partial.f = file
	u.abort()
	s.uploads.give(id, u)
}
