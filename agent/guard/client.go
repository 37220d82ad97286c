package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRefused is why a guard did not do what it was asked; it wraps its words.
var ErrRefused = errors.New("the guard refuses")

// callTime bounds one call.
const callTime = 10 * time.Second

// Client asks the guard of a host's directory. Each call is a connection of its own, so that
// a guard that was started again is met without further ado.
type Client struct{ Dir string }

// Show what the guard holds.
func (c Client) Show(ctx context.Context) (State, error) { return c.call(ctx, Request{Op: Show}) }

// Hold the process pid as the guest of a VEE. Errors: ErrRefused when the lease has expired
// or the process has ended.
func (c Client) Hold(ctx context.Context, vee string, pid int) (State, error) {
	start, err := StartTime(pid)
	if err != nil {
		return State{}, err
	}
	return c.call(ctx, Request{Op: Hold, VEE: vee, PID: pid, Start: start})
}

// Extend the deadline to a time on CLOCK_BOOTTIME.
func (c Client) Extend(ctx context.Context, until time.Duration) (State, error) {
	return c.call(ctx, Request{Op: Extend, Until: until})
}

// Arm the guard, or let deadlines pass without harm.
func (c Client) Arm(ctx context.Context, armed bool) (State, error) {
	return c.call(ctx, Request{Op: Arm, Armed: armed})
}

// Kill the guest of a VEE; it has ended when Kill returns.
func (c Client) Kill(ctx context.Context, vee string) (State, error) {
	return c.call(ctx, Request{Op: Kill, VEE: vee})
}

func (c Client) call(ctx context.Context, r Request) (s State, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("ask the guard to %s: %w", r.Op, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.Dir, socketFile))
	if err != nil {
		return s, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	b, err := json.Marshal(r)
	if err != nil {
		return s, err
	}
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return s, err
	}
	if err := json.NewDecoder(bufio.NewReader(conn)).Decode(&s); err != nil {
		return s, err
	}
	if s.Error != "" {
		return s, fmt.Errorf("%w: %s", ErrRefused, s.Error)
	}
	return s, nil
}

// End the process, if it is still the one that was held: for an agent whose guard is gone.
func (x Guest) End() error {
	fd, err := unix.PidfdOpen(x.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end process %d of VEE %s: %w", x.PID, x.VEE, err)
	}
	h := held{x, os.NewFile(uintptr(fd), "pidfd")}
	defer h.pidfd.Close()
	if start, err := StartTime(x.PID); err != nil || start != x.Start {
		return nil
	}
	return h.kill()
}
