package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// hostPoll is how often a port is looked at while nobody listens at its other end.
const hostPoll = 100 * time.Millisecond

// OpenPort opens this machine's guest channel once a host listens on it. It looks in sysfs
// for the port's name, because without udev there are no names in /dev.
func OpenPort(ctx context.Context) (Port, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, path := range names {
		name, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(name)) != guest.PortName {
			continue
		}
		f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(path)), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("opening the port %s: %w", guest.PortName, err)
		}
		if err := awaitHost(ctx, f); err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	return nil, errors.New("this machine has no port " + guest.PortName)
}

// awaitHost returns when somebody listens. Until then the port is hung up, and a read from
// it ends at once.
func awaitHost(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var events int16
		var pollErr error
		if err := raw.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			_, pollErr = unix.Poll(fds, 0)
			events = fds[0].Revents
		}); err != nil {
			return err
		}
		if pollErr != nil && !errors.Is(pollErr, unix.EINTR) {
			return fmt.Errorf("waiting for a host on the port %s: %w", guest.PortName, pollErr)
		}
		if events&unix.POLLHUP == 0 && events&unix.POLLOUT != 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(hostPoll):
		}
	}
}
