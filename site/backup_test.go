package site

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/store"
)

// A backup is a copy that the site's own record knows nothing of; a restore from it begins a
// generation that is larger than any before, also a second time from the same backup.
func TestBackupAndRestore(t *testing.T) {
	ctx, log := t.Context(), slog.New(slog.DiscardHandler)
	dir := filepath.Join(t.TempDir(), "alpha")
	write := func(value string) {
		s, err := store.Open(ctx, store.Config{Dir: filepath.Join(dir, "store"), Prefix: "/reservoir/alpha/", Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		if err := Backup(dir, dir+".busy"); !fault.Has(err, fault.InUse) {
			t.Errorf("a backup of a site that runs: %v", err)
		}
		if _, err := store.NewCollection[string](s, "token").Put(ctx, "admin", value); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write("before")
	if err := os.WriteFile(filepath.Join(dir, "admin-token"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(t.TempDir(), "backup")
	if err := Backup(dir, backup); err != nil {
		t.Fatal(err)
	}
	if err := Backup(dir, backup); !fault.Has(err, fault.Exists) {
		t.Errorf("a backup over another: %v", err)
	}
	write("after")
	if _, err := Restore(ctx, "alpha", backup, dir, log); !fault.Has(err, fault.Exists) {
		t.Errorf("a restore over a site: %v", err)
	}
	if _, err := Restore(ctx, "alpha", filepath.Join(backup, "none"), dir+".new", log); !fault.Has(err, fault.NotFound) {
		t.Errorf("a restore from nothing: %v", err)
	}
	if _, err := Restore(ctx, "beta", backup, dir+".new", log); !fault.Has(err, fault.NotFound) {
		t.Errorf("a restore under another name: %v", err)
	}
	began := uint64(time.Now().Unix())
	for _, to := range []string{dir + ".one", dir + ".two"} {
		generation, err := Restore(ctx, "alpha", backup, to, log)
		if err != nil || generation < began {
			t.Fatalf("generation %d: %v", generation, err)
		}
		if got := readBack(ctx, t, to, generation); got != "before" {
			t.Errorf("the restored record says %q", got)
		}
		st, err := os.Stat(filepath.Join(to, "admin-token"))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("the token's file: %v, %v", st, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "*.half")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func readBack(ctx context.Context, t *testing.T, dir string, generation uint64) string {
	t.Helper()
	s, err := store.Open(ctx, store.Config{Dir: filepath.Join(dir, "store"), Prefix: "/reservoir/alpha/", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Generation() != generation {
		t.Errorf("generation %d, was said to be %d", s.Generation(), generation)
	}
	v, _, err := store.NewCollection[string](s, "token").Get(ctx, "admin")
	if err != nil {
		t.Fatal(err)
	}
	return v
}
