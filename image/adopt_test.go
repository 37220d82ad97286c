package image

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// A second store takes each image before the first lets anybody find it, and adopts the index;
// one that is empty gets everything.
func TestStoresShareTheirImages(t *testing.T) {
	var first, second *Store
	var from Remote
	ctx := t.Context()
	down := false
	first = newStore(t, t.TempDir(), Options{
		Spread: func(ctx context.Context, manifest []byte) error {
			if down {
				return fault.New(fault.Unavailable, "no majority")
			}
			if _, err := first.Resolve(ctx, digest.FromBytes(manifest).String()); !fault.Has(err, fault.NotFound) {
				t.Errorf("it is found before others have it: %v", err)
			}
			return second.Take(ctx, manifest, from)
		},
		Share: func(index []byte) error { return second.Adopt(index) },
	})
	second = newStore(t, t.TempDir(), Options{})
	from = serve(t, first, identity.SiteRole)
	img := push(t, first, kernelImage(t, 1, 3000), "web:1")
	if got, err := second.Resolve(ctx, "web:1"); err != nil || got.Digest != img.Digest {
		t.Fatalf("%+v, %v", got, err)
	}
	down = true
	if _, err := first.Push(ctx, diskImage(t, 2, 3000), "db:1"); !fault.Has(err, fault.Unavailable) {
		t.Errorf("pushed without a majority: %v", err)
	}
	if _, err := first.Resolve(ctx, "db:1"); !fault.Has(err, fault.NotFound) {
		t.Errorf("and found: %v", err)
	}
	down = false
	push(t, first, diskImage(t, 2, 3000), "db:1")

	third := newStore(t, t.TempDir(), Options{})
	index, err := second.Index()
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Adopt(index); err != nil {
		t.Fatal(err)
	}
	if _, err := third.Resolve(ctx, "web:1"); !fault.Has(err, fault.DigestMismatch) {
		t.Errorf("an image that is not there yet: %v", err)
	}
	for _, d := range third.Missing() {
		if err := third.Fetch(ctx, d, from); err != nil {
			t.Error(err)
		}
	}
	if left := third.Missing(); len(left) != 0 {
		t.Errorf("missing: %v", left)
	}
	if got, err := third.Resolve(ctx, "web:1"); err != nil || got.Digest != img.Digest {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.Remove(third.blobs.path(img.Kernel.Digest)); err != nil {
		t.Fatal(err)
	}
	if left := third.Missing(); len(left) != 1 {
		t.Errorf("missing: %v", left)
	}
	if err := first.Remove(ctx, "web:1", false); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Resolve(ctx, "web:1"); !fault.Has(err, fault.NotFound) {
		t.Errorf("removed at the first: %v", err)
	}
	if err := third.Adopt([]byte("{")); !fault.Has(err, fault.Malformed) {
		t.Errorf("no index: %v", err)
	}
	if _, err := second.Sweep(ctx); err != nil {
		t.Error(err)
	}
	first.o.Share = func([]byte) error { return errors.New("no leader any more") }
	if err := first.Remove(ctx, "db:1", true); err == nil {
		t.Error("a change that could not be shared")
	}
	if _, err := first.Resolve(ctx, "db:1"); err != nil {
		t.Errorf("and yet it counts: %v", err)
	}
}
