package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// identity of a process: a PID is used again, but not with the same start on the same boot.
type identity struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot (proc(5), stat field 22)
	Boot  string `json:"boot"`  // /proc/sys/kernel/random/boot_id
}

// errEnded says that a process is not there any more.
var errEnded = errors.New("the process has ended")

// identify the process that has this PID now. One that ended and was not waited for yet
// counts as ended.
func identify(pid int) (identity, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, errEnded
	}
	// The name in field 2 may hold anything; the fields after it start behind its last ")".
	_, rest, _ := cutLast(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return identity{}, errEnded
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return identity{}, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
	}
	boot, err := bootID()
	return identity{pid, start, boot}, err
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// process is a handle on one: whatever happens to its PID, signals reach it or nobody.
type process struct {
	identity
	pidfd *os.File
}

// openProcess by its identity, or errEnded.
func openProcess(id identity) (*process, error) {
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, errEnded
	}
	p := &process{id, os.NewFile(uintptr(fd), "pidfd")}
	// Checked after the handle is held, so that it cannot change in between.
	if now, err := identify(id.PID); err != nil || now != id {
		p.close()
		return nil, errEnded
	}
	return p, nil
}

// wait until the process has ended or the handle is closed (os.ErrClosed). It says how it
// ended where this process is its parent, which an adopted guest's is not.
func (p *process) wait() (how string, err error) {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return "", err
	}
	// A pidfd becomes readable when its process ends (pidfd_open(2)).
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
	if err != nil {
		return "", err
	}
	// Asked for through the handle first: the PID may be another child's by now.
	_ = raw.Control(func(fd uintptr) {
		err = unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	})
	var status unix.WaitStatus
	if err != nil {
		return "", nil // not our child
	}
	if _, err := unix.Wait4(p.PID, &status, unix.WNOHANG, nil); err != nil {
		return "", nil
	}
	if status.Signaled() {
		return fmt.Sprintf("killed by signal %d (%s)", status.Signal(), unix.SignalName(status.Signal())), nil
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus()), nil
}

// kill the process at once. One that has ended already is no error.
func (p *process) kill() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if sent != nil && !errors.Is(sent, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, sent)
	}
	return nil
}

func (p *process) close() { p.pidfd.Close() }

// rss is the memory that the process holds in RAM, bytes; 0 when it cannot be read.
func (p *process) rss() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID))
	fields := strings.Fields(string(b))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// findProcesses lists those whose "-name" argument starts with token, by what follows it.
func findProcesses(token string) (map[string][]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for running guests: %w", err)
	}
	found := map[string][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(b), "\x00")
		for i := range len(args) - 1 {
			if name, ok := strings.CutPrefix(args[i+1], token); ok && args[i] == "-name" {
				found[name] = append(found[name], pid)
				break
			}
		}
	}
	return found, nil
}

// killUnowned ends a process and waits for it.
func killUnowned(ctx context.Context, pid int) error {
	id, err := identify(pid)
	if err != nil {
		return nil
	}
	p, err := openProcess(id)
	if err != nil {
		return nil
	}
	defer p.close()
	if err := p.kill(); err != nil {
		return err
	}
	_ = p.pidfd.SetReadDeadline(time.Now().Add(killPatience))
	stop := context.AfterFunc(ctx, func() { _ = p.pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := p.wait(); err != nil {
		return fmt.Errorf("wait for the end of process %d, which no VEE owns: %w", pid, err)
	}
	return nil
}
