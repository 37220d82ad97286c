package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OnlineVCPUs puts vCPUs to use that are plugged in while the machine runs, until ctx ends:
// the kernel leaves that to user space, where a distribution's udev may or may not do it.
// It listens to the kernel's events (NETLINK_KOBJECT_UEVENT, group 1), and polls nothing.
func OnlineVCPUs(ctx context.Context) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("listening for plugged vCPUs: %w", err)
	}
	events := os.NewFile(uintptr(fd), "uevents")
	defer events.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return fmt.Errorf("listening for plugged vCPUs: %w", err)
	}
	defer context.AfterFunc(ctx, func() { events.Close() })()
	online := onlineAll() // those that came before
	event := make([]byte, 8<<10)
	for ctx.Err() == nil {
		n, err := events.Read(event)
		switch {
		case errors.Is(err, unix.ENOBUFS): // some were lost
		case err != nil:
			return ctx.Err()
		case !bytes.HasPrefix(event[:n], []byte("add@/devices/system/cpu/cpu")):
			continue
		}
		online = errors.Join(online, onlineAll())
	}
	return online
}

// onlineAll puts every vCPU that is there and not in use to use.
func onlineAll() error {
	switches, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/online")
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range switches {
		if now, err := os.ReadFile(path); err == nil && len(now) > 0 && now[0] == '0' {
			if err := os.WriteFile(path, []byte("1"), 0); err != nil {
				errs = append(errs, fmt.Errorf("putting a vCPU to use: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}
