package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// crashDirEnv makes the test binary a writer to be killed, see TestMain.
const crashDirEnv = "RESERVOIR_STORE_CRASH_DIR"

// writeUntilKilled prints the number of each object once its write was acknowledged.
func writeUntilKilled(dir string) {
	ctx := context.Background()
	if size := os.Getenv(crashDiskEnv); size != "" {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
			fmt.Fprintln(os.Stderr, "mount:", err)
			os.Exit(1)
		}
	}
	errorsOnly := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})
	s, err := Open(ctx, Config{Dir: dir, Logger: slog.New(errorsOnly)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	text := ""
	if os.Getenv(crashDiskEnv) != "" {
		text = strings.Repeat("x", 100<<10)
	}
	things := NewCollection[thing](s, "thing")
	have, err := things.Values(ctx, "")
	for n := len(have); err == nil; n++ {
		if _, err = things.Create(ctx, fmt.Sprintf("%09d", n), thing{N: n, Text: text}); err == nil {
			fmt.Println(n)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// crashDiskEnv gives that writer a disk of its own with so many bytes, by a tmpfs in a
// mount namespace.
const crashDiskEnv = "RESERVOIR_STORE_CRASH_DISK"

func TestFullDisk(t *testing.T) {
	for _, tt := range []struct {
		name, bytes, says string
		writes            bool
	}{
		{"at the start", "10000000", ": etcd gave up: failed to create WAL: no space left on device", false},
		{"while it runs", "50000000", `level=ERROR msg="etcd: failed to `, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := exec.CommandContext(t.Context(), os.Args[0])
			c.Env = append(os.Environ(), crashDirEnv+"="+t.TempDir(), crashDiskEnv+"="+tt.bytes)
			c.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
			}
			var out, errs bytes.Buffer
			c.Stdout, c.Stderr = &out, &errs
			if err := c.Run(); err == nil {
				t.Error("it wrote for ever")
			}
			said, _, _ := strings.Cut(errs.String(), "\ngoroutine ")
			if !strings.Contains(said, tt.says) || !strings.Contains(said, "no space left on device") || (out.Len() > 0) != tt.writes {
				t.Errorf("after %d writes it said %s", strings.Count(out.String(), "\n"), errs.String())
			}
		})
	}
}

// startWriter returns a process that has dir open and the lines that it prints.
func startWriter(t *testing.T, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), crashDirEnv+"="+dir)
	c.Stderr = t.Output()
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewScanner(out)
}

func TestKillLosesNoAcknowledgedWrite(t *testing.T) {
	dir := t.TempDir()
	acknowledged := -1
	for range 4 {
		c, lines := startWriter(t, dir)
		for n := 20 + rand.IntN(200); n > 0 && lines.Scan(); n-- {
			if n == 1 {
				if err := c.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		for more := true; more; more = lines.Scan() { // written before it noticed
			if n, err := strconv.Atoi(lines.Text()); err == nil {
				acknowledged = n
			}
		}
		if err := c.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the writer ended by itself: %v", err)
		}
	}
	values, err := NewCollection[thing](open(t, Config{Dir: dir}), "thing").Values(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range values {
		if v.N != i {
			t.Fatalf("object %d holds %d", i, v.N)
		}
	}
	if len(values) <= acknowledged || acknowledged < 4*20-1 {
		t.Errorf("%d objects are there, %d was acknowledged", len(values), acknowledged)
	}
}

func TestOneProcessPerDirectory(t *testing.T) {
	dir := t.TempDir()
	c, lines := startWriter(t, dir)
	if !lines.Scan() {
		t.Fatal("the first process wrote nothing")
	}
	_, err := Open(t.Context(), Config{Dir: dir})
	want := fmt.Sprintf("open the site's record of truth in %s: another process has it (pid %d)", dir, c.Process.Pid)
	if !fault.Has(err, fault.InUse) || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.Wait() // "signal: killed"
	open(t, Config{Dir: dir})
}

func TestDirThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"under a file": filepath.Join(file, "x"), "read-only": "/proc/sys/x"} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(t.Context(), Config{Dir: dir})
			if !fault.Has(err, fault.Unavailable) || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// Every file of the record, damaged in turn: Open says so or comes up with all that it
// had; it never takes the process with it or starts empty.
func TestDamagedFiles(t *testing.T) {
	made := t.TempDir()
	s, err := Open(t.Context(), Config{Dir: made, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := NewCollection[thing](s, "thing").Put(t.Context(), fmt.Sprint(i), thing{N: i, Text: strings.Repeat("x", 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup // enough for a snapshot, which needs the database beside it
	for i := range 100 {
		wg.Go(func() {
			for range snapshotCount/100 + 1 {
				if _, err := NewCollection[thing](s, "other").Put(t.Context(), fmt.Sprint(i), thing{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, log := "etcd/member/snap/db", "etcd/member/wal/0000000000000000-0000000000000000.wal"
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, dir string)
	}{
		{"database emptied", func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, db), 0) }},
		{"database cut", func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, db), 5000) }},
		{"database overwritten", func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, db), 0, 64<<10) }},
		{"log overwritten", func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, log), 0, 64<<10) }},
		{"log damaged inside", func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, log), 20000, 64) }},
		{"log lost", func(t *testing.T, dir string) { removeFile(t, filepath.Join(dir, log)) }},
		{"database lost", func(t *testing.T, dir string) { removeFile(t, filepath.Join(dir, db)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(made)); err != nil {
				t.Fatal(err)
			}
			tt.damage(t, dir)
			s, err := Open(t.Context(), Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Log(err)
				if !fault.Has(err, fault.Unavailable) || !strings.Contains(err.Error(), dir) {
					t.Errorf("error %v", err)
				}
				return
			}
			values, err := NewCollection[thing](s, "thing").Values(t.Context(), "")
			if len(values) != 50 || err != nil {
				t.Errorf("it came up with %d objects of 50, %v", len(values), err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func truncate(t *testing.T, path string, size int64) {
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, path string, at, n int) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[at:min(at+n, len(b))], bytes.Repeat([]byte{0xa5}, n))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func removeFile(t *testing.T, path string) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}
