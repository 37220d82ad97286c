package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
)

// The test binary is also the process that is killed: with roleEnv set it plays a part on
// dirEnv instead of running tests.
const (
	roleEnv = "IMAGE_TEST_ROLE"
	dirEnv  = "IMAGE_TEST_DIR"
	siteEnv = "IMAGE_TEST_SITE"
	imgEnv  = "IMAGE_TEST_IMAGE"
)

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := parts[role](context.Background(), os.Getenv(dirEnv)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var parts = map[string]func(ctx context.Context, dir string) error{
	"push": playPush, "fetch": playFetch, "small-disk": playSmallDisk,
}

// start runs a part in a process of its own, which is gone when the test ends.
func start(t *testing.T, role, dir string, env ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), append(env, roleEnv+"="+role, dirEnv+"="+dir,
		"GORACE=atexit_sleep_ms=0")...) // the race detector's second at exit would count as life
	cmd.Stdout, cmd.Stderr = &out, &out
	return cmd, &out
}

// killAfter runs cmd for about d, then kills it. It reports whether cmd had ended before.
func killAfter(t *testing.T, cmd *exec.Cmd, out *bytes.Buffer, d time.Duration) (ended bool) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(d) // when it dies is meant to be at random
	_ = cmd.Process.Signal(syscall.SIGKILL)
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled()) {
		t.Fatalf("%v: %s", err, out)
	}
	return err == nil
}

// playPush pushes, tags, moves tags, removes and collects for as long as it is let.
func playPush(ctx context.Context, dir string) error {
	s, err := OpenStore(filepath.Join(dir, "store"), Options{Grace: 1})
	if err != nil {
		return err
	}
	defer s.Close()
	for i := 0; ; i++ {
		disk := filepath.Join(dir, "disk.raw")
		if err := os.WriteFile(disk, content(rand.Uint64(), 200_000), 0o600); err != nil {
			return err
		}
		src, err := FromFiles(ctx, Files{Disk: disk})
		if err != nil {
			return err
		}
		if _, err := s.Push(ctx, src, fmt.Sprintf("app:v%d", i%3)); err != nil {
			return err
		}
		if i%5 == 4 {
			if err := s.Remove(ctx, "app:v0", false); err != nil && !fault.Has(err, fault.NotFound) {
				return err
			}
		}
		if _, err := s.Collect(ctx); err != nil {
			return err
		}
	}
}

// A process that pushes is killed at random moments, again and again on one directory.
func TestStoreSurvivesKills(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	found := 0
	for range 25 {
		cmd, out := start(t, "push", dir)
		if killAfter(t, cmd, out, time.Duration(10+rng.IntN(90))*time.Millisecond) {
			t.Fatalf("the process ended by itself: %s", out)
		}
		s, err := OpenStore(filepath.Join(dir, "store"), Options{Grace: 1})
		if err != nil {
			t.Fatalf("after a kill: %v", err)
		}
		problems, err := s.Verify(t.Context())
		if err != nil || len(problems) > 0 {
			t.Fatalf("after a kill: %v, %v", problems, err)
		}
		list, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list {
			if i.Problem != "" {
				t.Fatalf("after a kill: %+v", i)
			}
		}
		found += len(list)
		if _, err := s.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := files(t, filepath.Join(s.dir, "uploads")); len(left) > 0 {
			t.Fatalf("left over: %v", left)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Error("no process lived long enough to push an image")
	}
}

func playFetch(ctx context.Context, dir string) error {
	site := Remote{Base: os.Getenv(siteEnv), HTTP: httpClient()}
	c, err := OpenCache(dir, site, CacheOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Fetch(ctx, os.Getenv(imgEnv), nil)
	return err
}

// A host that fetches is killed at random moments until it has the image.
func TestCacheSurvivesKills(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	site := serve(t, s, identity.HostRole)
	src := kernelImage(t, 1, 8<<20)
	push(t, s, src, "app")
	dir := t.TempDir()
	if err := makeDirs(dir, "blobs/sha256"); err != nil { // the first may die before it does
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	longest := 20 * time.Millisecond
	for i := 0; ; i++ {
		cmd, out := start(t, "fetch", dir, siteEnv+"="+site.Base, imgEnv+"="+src.image.Digest)
		if killAfter(t, cmd, out, time.Duration(rng.Int64N(int64(longest)))) {
			break
		}
		longest += longest / 5 // so that one gets there on any machine
		for _, name := range files(t, filepath.Join(dir, "blobs")) {
			d, err := parseDigest(strings.Replace(name, "/", ":", 1))
			if err != nil {
				t.Fatal(err)
			}
			if err := (blobs{dir: filepath.Join(dir, "blobs")}).verify(d); err != nil {
				t.Fatalf("after kill %d: %v", i, err)
			}
		}
	}
	c := newCache(t, dir, Remote{Base: "http://127.0.0.1:1", HTTP: httpClient()}, CacheOptions{})
	l, err := c.Fetch(t.Context(), src.image.Digest, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(l.Initrd); err != nil || !bytes.Equal(got, content(1, 8<<20)) {
		t.Errorf("initrd: %d bytes, %v", len(got), err)
	}
}

// playSmallDisk runs in a mount namespace of its own. It fills a real file system of 2 MiB
// by a push and by a fetch.
func playSmallDisk(ctx context.Context, dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		return fmt.Errorf("mount a small disk: %w", err)
	}
	store := filepath.Join(dir, "store")
	s, err := OpenStore(store, Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	full := func(what string, err error, partial string) error {
		if !fault.Has(err, fault.DiskFull) {
			return fmt.Errorf("%s on a full disk: %v; want fault.DiskFull", what, err)
		}
		if left, err := os.ReadDir(partial); err != nil || len(left) > 0 {
			return fmt.Errorf("%s on a full disk left %v, %v", what, left, err)
		}
		return nil
	}
	big := io.LimitReader(rand.NewChaCha8([32]byte{}), 3<<20)
	if err := full("push", s.PutBlob(ctx, someDigest, big), filepath.Join(store, "uploads")); err != nil {
		return err
	}
	site := Remote{Base: os.Getenv(siteEnv), HTTP: httpClient()}
	c, err := OpenCache(filepath.Join(dir, "cache"), site, CacheOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Fetch(ctx, os.Getenv(imgEnv), nil)
	return full("fetch", err, filepath.Join(dir, "cache", "partial"))
}

// A user namespace makes the mount possible without root, and it goes with the process.
func TestDiskFull(t *testing.T) {
	s := newStore(t, t.TempDir(), Options{})
	site := serve(t, s, identity.HostRole)
	src := kernelImage(t, 1, 3<<20)
	push(t, s, src, "app")
	cmd, out := start(t, "small-disk", t.TempDir(), siteEnv+"="+site.Base, imgEnv+"="+src.image.Digest)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
