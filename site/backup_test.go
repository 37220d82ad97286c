package site

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
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
	if err := Backup(dir, dir+".bare"); !fault.Has(err, fault.WrongState) {
		t.Errorf("a backup of a site whose authority is in the clear: %v", err)
	}
	authority := sealFor(t, dir)
	for _, secret := range []string{"admin-token", "identity/key.pem", "ca/ca.key"} {
		path := filepath.Join(dir, secret)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("secret"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	backup := filepath.Join(t.TempDir(), "backup")
	if err := Backup(dir, backup); err != nil {
		t.Fatal(err)
	}
	if err := Backup(dir, backup); !fault.Has(err, fault.Exists) {
		t.Errorf("a backup over another: %v", err)
	}
	for _, secret := range append(notInBackups, "identity/key.pem") {
		if _, err := os.Stat(filepath.Join(backup, secret)); err == nil {
			t.Errorf("%s is in the backup", secret)
		}
	}
	unseal := filepath.Join(dir, unsealFile)
	other := filepath.Join(t.TempDir(), "other")
	if err := newPassphrase(other); err != nil {
		t.Fatal(err)
	}
	write("after")
	if _, err := Restore(ctx, "alpha", backup, dir, unseal, log); !fault.Has(err, fault.Exists) {
		t.Errorf("a restore over a site: %v", err)
	}
	if _, err := Restore(ctx, "alpha", filepath.Join(backup, "none"), dir+".new", unseal, log); !fault.Has(err, fault.NotFound) {
		t.Errorf("a restore from nothing: %v", err)
	}
	if _, err := Restore(ctx, "beta", backup, dir+".new", unseal, log); !fault.Has(err, fault.Denied) {
		t.Errorf("a restore under another name: %v", err)
	}
	if _, err := Restore(ctx, "alpha", backup, dir+".new", other, log); !fault.Has(err, fault.Denied) {
		t.Errorf("a restore with another pass phrase: %v", err)
	}
	if _, err := Restore(ctx, "alpha", backup, dir+".new", "", log); !fault.Has(err, fault.Malformed) {
		t.Errorf("a restore without any: %v", err)
	}
	began := uint64(time.Now().Unix())
	for _, to := range []string{dir + ".one", dir + ".two"} {
		generation, err := Restore(ctx, "alpha", backup, to, unseal, log)
		if err != nil || generation < began {
			t.Fatalf("generation %d: %v", generation, err)
		}
		if got := readBack(ctx, t, to, generation); got != "before" {
			t.Errorf("the restored record says %q", got)
		}
		if _, err := readBox(to); err != nil {
			t.Fatal(err)
		}
		if ca := sealFor(t, to); ca.Fingerprint() != authority.Fingerprint() {
			t.Error("it has another authority")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "*.half")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A site of a version that kept its authority's key in the clear keeps the authority, and the
// key no longer so; with another pass phrase it does not start, and says why.
func TestAnAuthorityInTheClearIsSealed(t *testing.T) {
	cfg := config(t)
	cfg.Log = slog.New(slog.DiscardHandler)
	if err := cfg.check(); err != nil {
		t.Fatal(err)
	}
	was, err := identity.NewCA("alpha", time.Now, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := was.Export()
	if err != nil {
		t.Fatal(err)
	}
	old, cert := filepath.Join(cfg.Dir, oldCADir), was.Bundle()
	key := strings.TrimSuffix(text.Reveal(), string(cert))
	if err := errors.Join(os.MkdirAll(old, 0o700), os.WriteFile(filepath.Join(old, "ca.key"), []byte(key), 0o600), os.WriteFile(filepath.Join(old, "ca.pem"), cert, 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Run("it starts", func(t *testing.T) {
		if s := opened(t, cfg); s.ca.Fingerprint() != was.Fingerprint() {
			t.Error("it has another authority")
		}
	})
	if _, err := os.Stat(filepath.Join(cfg.Dir, oldCADir)); err == nil {
		t.Error("the key is there in the clear")
	}
	file := filepath.Join(cfg.Dir, unsealFile)
	for what, x := range map[string]struct {
		text string
		mode os.FileMode
		want fault.Code
	}{
		"another pass phrase": {"some other pass phrase", 0o600, fault.Denied},
		"a short one":         {"short", 0o600, fault.Malformed},
		"one for all to read": {"some other pass phrase", 0o644, fault.WrongState},
	} {
		if err := errors.Join(os.RemoveAll(file), os.WriteFile(file, []byte(x.text), x.mode)); err != nil {
			t.Fatal(err)
		}
		if err := Run(t.Context(), cfg); !fault.Has(err, x.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// sealFor is the authority of a site in dir; it is made where there is none.
func sealFor(t *testing.T, dir string) *identity.CA {
	t.Helper()
	m := &member{cfg: Config{Dir: dir, Name: "alpha"}}
	var err error
	if m.keys, err = identity.OpenKeypair(filepath.Join(dir, "identity"), time.Now); err != nil {
		t.Fatal(err)
	}
	if err := m.openAuthority(); err != nil {
		t.Fatal(err)
	}
	return m.ca
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
