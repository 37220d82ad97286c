package dev

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Pauses before a process that ended is started again; a process that ran this long
// starts over with the shortest.
const (
	firstPause = time.Second
	lastPause  = 30 * time.Second
	ranWell    = time.Minute
	// stopGrace for processes to end when told to, before they are killed.
	stopGrace = 10 * time.Second
)

// record of a process on disk. Pid and Start together name one process for ever: the
// kernel reuses pids, but not with the same start time.
type record struct {
	Pid      int       `json:"pid"`
	Start    uint64    `json:"start"` // clock ticks after boot, field 22 of /proc/PID/stat
	Started  time.Time `json:"started"`
	Restarts int       `json:"restarts"`
}

func (r record) alive() bool { return r.Pid > 0 && startTime(r.Pid) == r.Start && r.Start != 0 }

func writeRecord(path string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return durable.WriteFile(path, b, 0o644)
}

// readRecord gives the zero record where there is none or it is damaged.
func readRecord(path string) record {
	var r record
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &r) != nil {
		return record{}
	}
	return r
}

// startTime of a process in clock ticks after boot, 0 when there is none (or a zombie).
func startTime(pid int) uint64 {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	// "PID (COMMAND) STATE …": the command may have spaces and brackets in it.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return 0
	}
	t, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0
	}
	return t
}

// supervise keeps a node's process running until ctx is done, then ends it.
func (l layout) supervise(ctx context.Context, n node, say func(format string, args ...any)) {
	pause, restarts := firstPause, 0
	for {
		began := time.Now()
		err := l.run(ctx, n, restarts)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > ranWell || killed(err) {
			pause = firstPause // only what ends by itself again and again has to wait
		}
		say("%s ended (%s); starting it again in %s; its log: %s", n.name(), how(err), pause, l.log(n))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
		restarts++
	}
}

// killed reports whether a process was ended from outside.
func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	st, ok := exit.Sys().(syscall.WaitStatus)
	return ok && st.Signaled() && st.Signal() == syscall.SIGKILL
}

func how(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// run a node's process once, in its namespace, with its output appended to its log.
func (l layout) run(ctx context.Context, n node, restarts int) error {
	if err := l.cfg.makeDir(n.dir); err != nil {
		return fmt.Errorf("directory of %s: %w", n.name(), err)
	}
	log, err := os.OpenFile(l.log(n), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("log of %s: %w", n.name(), err)
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, cmp.Or(n.program, l.cfg.Binary), n.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	// In a group of its own, so that Ctrl-C reaches this process alone and children end in
	// order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := inNetns(n.netns, cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", n.name(), err)
	}
	r := record{Pid: cmd.Process.Pid, Start: startTime(cmd.Process.Pid), Started: time.Now(), Restarts: restarts}
	if err := writeRecord(l.pid(n), r); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	return cmd.Wait()
}

// makeDir of a process. Guests of libvirt's open their disks by name, as users of their
// own: they must be let through.
func (c Config) makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil || c.Hypervisor != "libvirt" {
		return err
	}
	for ; strings.HasPrefix(dir, c.Dir); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// file identifies a file, and so a namespace; zero when there is none.
type file struct{ dev, inode uint64 }

func identify(path string) file {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return file{}
	}
	return file{st.Dev, st.Ino}
}

// running is a process that lives in one of the namespaces.
type running struct {
	pid   int
	netns string
	rss   vee.Bytes
}

// processes in the namespaces of the prefix: sites, agents, guards and guests. It finds
// them by the namespace that they are in, so also those that nobody has a record of.
func (c Config) processes() ([]running, error) {
	names, err := c.namespaces()
	if err != nil {
		return nil, err
	}
	ours := map[file]string{}
	for _, name := range names {
		ours[identify(filepath.Join(netnsDir, name))] = name
	}
	delete(ours, file{})
	if len(ours) == 0 {
		return nil, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var list []running
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() { // a thread of ours may be in there for a moment
			continue
		}
		if name, ok := ours[identify(filepath.Join("/proc", e.Name(), "ns/net"))]; ok {
			list = append(list, running{pid, name, rss(pid)})
		}
	}
	return list, nil
}

// rss is the resident memory of a process.
func rss(pid int) vee.Bytes {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(b), "\nVmRSS:")
	if !ok {
		return 0
	}
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		return 0
	}
	return vee.Bytes(kib) * vee.KiB
}

// killProcesses ends everything that runs in the namespaces, at once: it is called when
// the processes that would have ended in order are gone, or did not. Guests' control
// groups go with them.
func (c Config) killProcesses(ctx context.Context) error {
	groups := map[string]bool{}
	for {
		list, err := c.processes()
		if err != nil {
			return err
		}
		for _, p := range list {
			for _, dir := range guestCgroups(p.pid) {
				groups[dir] = true
			}
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d in namespace %s: %w", p.pid, p.netns, err)
			}
		}
		for dir := range groups {
			if err := unix.Rmdir(dir); err == nil || errors.Is(err, unix.ENOENT) {
				delete(groups, dir)
			}
		}
		if len(list) == 0 && len(groups) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes and %d control groups do not end: %w", len(list), len(groups), ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// guestCgroups are the directories of a process's control groups, where they are a
// guest's: below the group "reservoir" (cgroups(7), /proc/PID/cgroup).
func guestCgroups(pid int) []string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return nil
	}
	var dirs []string
	for l := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(l), ":", 3)
		if len(f) == 3 && strings.HasPrefix(f[2], "/reservoir/") {
			dirs = append(dirs, filepath.Join("/sys/fs/cgroup", f[1], f[2]))
		}
	}
	return dirs
}

// unmount whatever is mounted below dir, innermost first.
func unmount(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	lines := strings.Split(string(b), "\n")
	var errs []error
	for i := len(lines) - 1; i >= 0; i-- {
		f := strings.Fields(lines[i])
		if len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", f[4], err))
			}
		}
	}
	return errors.Join(errs...)
}

func removeAll(path string) error {
	if err := os.RemoveAll(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", path, err)
	}
	return nil
}
