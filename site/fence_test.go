package site

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func TestPowerFences(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"h1":      "#!/bin/sh\necho $@ > " + filepath.Join(dir, "called") + "\n",
		"h2":      "#!/bin/sh\necho no answer from 10.0.0.2; exit 3\n",
		"h3":      "#!/bin/sh\nexec sleep 600\n",
		"default": "#!/bin/sh\nexit 4\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "h4"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := fencer(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Fence(t.Context(), "h1"); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "called")); string(b) != "off h1\n" {
		t.Errorf("called with %q", b)
	}
	if err := f.Fence(t.Context(), "h2"); err == nil || !strings.Contains(err.Error(), "no answer from 10.0.0.2") {
		t.Errorf("one that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Fence(ctx, "h3"); err == nil {
		t.Error("one that does not end in time")
	}
	if err := f.Fence(t.Context(), "h4"); err == nil || !strings.Contains(err.Error(), "exit status 4") {
		t.Errorf("the default: %v", err)
	}
	if f.Can("../../bin/true") {
		t.Error("a program outside of the folder")
	}
	if err := os.Remove(filepath.Join(dir, "default")); err != nil {
		t.Fatal(err)
	}
	if f.Can("h4") || !f.Can("h1") {
		t.Errorf("h4 %v, h1 %v", f.Can("h4"), f.Can("h1"))
	}
	if _, err := fencer(filepath.Join(dir, "nowhere")); !fault.Has(err, fault.Malformed) {
		t.Errorf("no folder: %v", err)
	}
	if f, err := fencer(""); f != nil || err != nil {
		t.Errorf("none: %v, %v", f, err)
	}
}
