package console

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestConsoleIsBounded(t *testing.T) {
	dir := t.TempDir()
	host, inside := net.Pipe()
	c, err := Open(dir, host)
	if err != nil {
		t.Fatal(err)
	}
	slow := c.Attach()
	line := bytes.Repeat([]byte("x"), 1<<16)
	for range 3 * Kept >> 16 {
		if _, err := inside.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	inside.Close()
	c.Close()
	var used int64
	for _, name := range []string{File, File + ".1"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil {
			used += st.Size()
		}
	}
	if used > Kept+64<<10 {
		t.Errorf("the console's log takes %d bytes, want at most about %d", used, Kept)
	}
	if got, err := io.ReadAll(slow); err != nil || len(got) != Behind {
		t.Errorf("a slow reader got %d bytes (%v), want the last %d", len(got), err, Behind)
	}
	if got, err := io.ReadAll(c.Attach()); err != nil || len(got) != 0 {
		t.Errorf("a console that ended gave %d bytes, %v", len(got), err)
	}
}
