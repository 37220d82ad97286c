package van

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/internal/fault"
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

// passagePrefix of the veth between the proxy's own stack and a network's namespace.
const passagePrefix = "rd"

// passage is the pair of addresses of that veth: of the block that is for future use (RFC 1112,
// section 4), which no machine has, and made of the VNI, so that no two networks have the same.
func passage(vni uint32) (near, far netip.Prefix) {
	at := func(n uint32) netip.Prefix {
		v := 0xf0<<24 | vni<<2 | n
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), 30)
	}
	return at(1), at(2)
}

// Passage joins the proxy's own stack to the namespace in which it has its port of a network
// (plan.AtBorder), where inside is then run; far is the address of that end. It ends with the
// namespace. fault.NotFound where the proxy has no port there.
func (n *Network) Passage(vni uint32, inside func(far netip.Addr) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.links.spaces[plan.GatewayName(vni)]
	if s == nil {
		return fault.New(fault.NotFound, "this proxy has no port of its own in network %d", vni)
	}
	near, far := passage(vni)
	a := netlink.NewLinkAttrs()
	a.Name = fmt.Sprintf("%s%06x", passagePrefix, vni)
	const end = "door0"
	there := func() error { _, err := netlink.LinkByName(end); return err }
	if err := s.do(there); err != nil { // one of the same name may lead to a namespace that is going
		if err := n.links.remove(a.Name); err != nil {
			return fmt.Errorf("passage to network %d: %w", vni, err)
		}
	}
	_, err := n.links.add(&netlink.Veth{LinkAttrs: a, PeerName: end, PeerNamespace: netlink.NsFd(int(s.ns))})
	if err == nil {
		err = n.home.do(func() error { return addressed(a.Name, near) })
	}
	if err == nil {
		err = s.do(func() error { return errors.Join(addressed(end, far), inside(far.Addr())) })
	}
	if err != nil {
		return fmt.Errorf("passage to network %d: %w", vni, err)
	}
	return nil
}

// addressed brings a device of this namespace up with an address.
func addressed(name string, p netip.Prefix) error {
	d, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	if err := netlink.AddrReplace(d, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}); err != nil {
		return fmt.Errorf("device %s: address %s: %w", name, p, err)
	}
	if err := netlink.LinkSetUp(d); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// Home runs f in the network namespace of these networks. Sockets that f opens stay there.
func (n *Network) Home(f func() error) error { return n.home.do(f) }
