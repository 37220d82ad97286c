package image

import (
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// A host that has an image lends it to another, which verifies it; what it does not have it
// says so of.
func TestAnotherHostLends(t *testing.T) {
	s, disk := newStore(t, t.TempDir(), Options{}), diskImage(t, 2, 1<<20)
	push(t, s, disk, "debian")
	img, site := disk.image.Digest, new(unruly)
	lender := newCache(t, t.TempDir(), site.serve(t, s), CacheOptions{})
	server := httptest.NewServer(lender.Handler())
	defer server.Close()
	other := newCache(t, t.TempDir(), Remote{Base: server.URL, HTTP: server.Client()}, CacheOptions{})
	if _, err := other.Fetch(t.Context(), img, nil); !fault.Has(err, fault.NotFound) {
		t.Errorf("before the lender has it: %v", err)
	}
	had, err := lender.Fetch(t.Context(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := other.Fetch(t.Context(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(had.Disk)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(got.Disk)
	if err != nil || string(a) != string(b) || len(a) == 0 {
		t.Errorf("%d bytes were lent of %d: %v", len(b), len(a), err)
	}
	for _, path := range []string{"manifests/sha256:../../etc/passwd", "blobs/latest", "blobs/sha512:00"} {
		resp, err := server.Client().Get(server.URL + CachePath + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode < http.StatusBadRequest {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}
