package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRoundTripAndNoLeftovers(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "a.json")
	for i := range 3 {
		if err := WriteJSON(p, map[string]int{"n": i}, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got map[string]int
	if err := ReadJSON(p, &got); err != nil || got["n"] != 2 {
		t.Fatalf("read %v, %v", got, err)
	}
	if st, _ := os.Stat(p); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", st.Mode())
	}
	if e, _ := os.ReadDir(dir); len(e) != 1 {
		t.Errorf("%d files, want 1: temporary files were left", len(e))
	}
	if err := Remove(p); err != nil {
		t.Fatal(err)
	}
	if err := Remove(p); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	if err := ReadJSON(p, &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read after remove: %v, want not exist", err)
	}
}

func TestFailedWriteKeepsTheOldContent(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "a.json")
	if err := WriteFile(p, []byte(`{"n":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteJSON(p, func() {}, 0o600); err == nil {
		t.Fatal("a function was written as JSON")
	}
	if b, _ := os.ReadFile(p); string(b) != `{"n":1}` {
		t.Errorf("content is now %q", b)
	}
}

func TestLockKeepsASecondOneOffUntilItIsClosed(t *testing.T) {
	p := filepath.Join(t.TempDir(), "lock")
	first, err := Lock(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(p); !errors.Is(err, ErrLocked) {
		t.Errorf("a second lock: %v, want ErrLocked", err)
	}
	go func() { time.Sleep(50 * time.Millisecond); first.Close() }()
	second, err := Lock(p) // waits the moment that the first one takes to go
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}
