package van

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// OpenBorder makes the TAP in a network that leads to another site (plan.BorderTap), at the
// site's proxy, and opens it: what is read from it is for that site, what is written came
// from there. Each read or write is one frame behind a struct virtio_net_hdr; frames that are
// read may be TCP segments that are not cut yet, and checksums may be left to do. The TAP ends
// with the file. It is in its network's bridge from the next Apply on.
func (n *Network) OpenBorder(vni uint32, site string) (f *os.File, err error) {
	name := plan.BorderTap(vni, site)
	err = n.home.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		r, err := unix.NewIfreq(name)
		if err == nil {
			r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("make it: %w", err)
		}
		f = os.NewFile(uintptr(fd), name) // not before: the poller is deaf to a TAP that is none yet
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
			return fmt.Errorf("have it give whole TCP segments: %w", err)
		}
		d, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return n.links.quiet(d)
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("TAP %s to site %s: %w", name, site, err)
	}
	return f, nil
}

// Home runs f in the network namespace of these networks. Sockets that f opens stay there.
func (n *Network) Home(f func() error) error { return n.home.do(f) }
