package guard

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Now on CLOCK_BOOTTIME, which goes on while the machine sleeps and knows no wall clock.
func Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Duration(t.Nano())
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// StartTime of a process, clock ticks since boot (proc(5), stat field 22). With its PID it
// names one process of this boot. A zombie has ended.
func StartTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	// The name in field 2 may hold anything; the fields after it start behind its last ")".
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	return start, nil
}

// readable waits until a file can be read.
func readable(fd int, patience time.Duration) bool {
	for until := Now() + patience; ; {
		left := max(0, until-Now())
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if n > 0 {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) || left == 0 {
			return false
		}
	}
}

// alarm is a timer on CLOCK_BOOTTIME.
type alarm struct{ f *os.File }

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	return &alarm{os.NewFile(uintptr(fd), "timerfd")}, nil
}

// set it to ring at a time, or never (0). One that has passed rings at once.
func (a *alarm) set(at time.Duration) {
	raw, err := a.f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &unix.ItimerSpec{Value: unix.NsecToTimespec(at.Nanoseconds())}, nil)
	})
}

// wait until it rings.
func (a *alarm) wait() error {
	var n [8]byte
	if _, err := a.f.Read(n[:]); err != nil {
		return fmt.Errorf("wait for the deadline: %w", err)
	}
	return nil
}

// wake whoever waits.
func (a *alarm) wake()  { a.set(1) }
func (a *alarm) close() { a.f.Close() }

// steady keeps the guard able to act when the machine is short of everything: its memory is
// not swapped, the kernel does not choose it to free memory, and it goes first. What of this
// is not allowed here is said and done without.
func steady(log *slog.Logger) {
	const onFault = 4 // MCL_ONFAULT: of the address space, what is used
	for what, err := range map[string]error{
		"keep its memory in RAM":     unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | onFault),
		"be spared by the kernel":    os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0),
		"run before other processes": unix.Setpriority(unix.PRIO_PROCESS, 0, -20),
	} {
		if err != nil {
			log.Warn("the guard cannot "+what, "err", err)
		}
	}
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the guard's directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another guard works on %s: %w", path, err)
	}
	return f, nil
}

// listen where an earlier guard may have listened; its lock is ours.
func listen(path string) (*net.UnixListener, error) {
	_ = os.Remove(path)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("the guard's socket %s: %w", path, err)
	}
	return ln, nil
}

// sameUser refuses callers of other users (SO_PEERCRED: who they were when they connected).
func sameUser(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("who calls: %w", err)
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d may not speak to this guard", cred.Pid, cred.Uid)
	}
	return nil
}

// watchdog is the kernel's interface to hardware that resets the machine when it is not
// written to for a while (Documentation/watchdog/watchdog-api.rst). It guards the guard: a
// machine on which that does not run any more runs no guest either.
type watchdog struct {
	f     *os.File
	every time.Duration
}

func openWatchdog(path string, timeout time.Duration) (*watchdog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the watchdog: %w", err)
	}
	seconds := int(timeout / time.Second) // rounded down: earlier is safe
	if seconds < 1 {
		f.Close()
		return nil, fmt.Errorf("watchdog %s: it cannot act within %v; choose a larger --ha-scale", path, timeout)
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, seconds); err != nil {
		err = fmt.Errorf("watchdog %s does not take a timeout of %d s: %w", path, seconds, err)
		return nil, errors.Join(err, disarm(f))
	}
	// The driver may have rounded it up.
	got, err := unix.IoctlGetInt(int(f.Fd()), unix.WDIOC_GETTIMEOUT)
	if err != nil || time.Duration(got)*time.Second > timeout {
		return nil, errors.Join(fmt.Errorf("watchdog %s acts after %d s, which is later than %v: %w", path, got, timeout, err), disarm(f))
	}
	return &watchdog{f, timeout / 4}, nil
}

// disarm a watchdog: the magic word before it is closed.
func disarm(f *os.File) error {
	_, err := f.WriteString("V")
	return errors.Join(err, f.Close())
}

// quiet keeps it from acting until ctx is done.
func (w *watchdog) quiet(ctx context.Context) error {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		if _, err := w.f.Write(binary.LittleEndian.AppendUint16(nil, 0)); err != nil {
			return fmt.Errorf("keep the watchdog quiet: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// close disarms it: the guard ends in order, and whoever ends it knows.
func (w *watchdog) close() { _ = disarm(w.f) }
