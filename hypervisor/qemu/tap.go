package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// openTap takes hold of an existing TAP device, to be inherited by a QEMU. The device must
// be in this process's network namespace.
func openTap(name string) (*os.File, error) {
	// Looked for first, because TUNSETIFF makes a device that is not there.
	if _, err := net.InterfaceByName(name); err != nil {
		return nil, fmt.Errorf("open TAP device %q: %w", name, err)
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open TAP device %q (needs the tun module): %w", name, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, request)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EBUSY) {
			err = errors.New("another process holds it")
		}
		return nil, fmt.Errorf("open TAP device %q: %w", name, err)
	}
	return f, nil
}
