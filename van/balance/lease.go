package balance

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Where several machines could serve the access points, each address is on one of them at a
// time: on the one that has the lease. An address is put there with a lifetime (valid_lft,
// ip-address(8)) that ends before the lease does, and the kernel takes it away when nobody
// prolongs it. So it is gone from a machine whose process is stopped, hung or killed before
// another may have it, as far as two clocks run alike for a few seconds.

// prolong the lifetimes this often.
const prolong = 500 * time.Millisecond

// spare is what a lifetime ends before the lease: the kernel looks at lifetimes once a second
// (net/ipv4/devinet.c, check_lifetime), give or take a quarter.
const spare = 1250 * time.Millisecond

// lifetime in whole seconds of an address that is put now; 0: it may not be. The kernel counts
// from the last tick of its own clock that it knows, so what is left is rounded down.
func lifetime(until, now time.Time) int {
	return max(0, int((until.Sub(now)-spare)/time.Second))
}

// leased: the addresses come and go with a lease.
func (b *Balancer) leased() bool { return b.cfg.Lease != nil }

// put an address on this machine.
func (b *Balancer) put(a netip.Addr) error {
	if !b.leased() {
		return b.kernel.address(a, 0)
	}
	life := lifetime(b.cfg.Lease(), time.Now())
	if life == 0 {
		return errors.New("address " + a.String() + ": this machine has no lease for it")
	}
	return b.kernel.address(a, life)
}

// keepAddresses prolongs them for as long as the balancer has the lease.
func (b *Balancer) keepAddresses() {
	tick := time.NewTicker(prolong)
	defer tick.Stop()
	for {
		b.mu.Lock()
		err := b.prolongAll()
		b.mu.Unlock()
		if err != nil {
			b.cfg.Log.Warn("addresses of access points", "err", err)
		}
		select {
		case <-b.run.Done():
			return
		case <-tick.C:
		}
	}
}

// addresses that this machine has, or should: the shared one and those of points.
func (b *Balancer) addresses() map[netip.Addr]bool {
	all := map[netip.Addr]bool{b.cfg.Address: true}
	for _, p := range b.points {
		all[p.target.at.Addr()] = true
	}
	return all
}

func (b *Balancer) prolongAll() (err error) {
	for a := range b.addresses() {
		if b.run.Err() == nil && lifetime(b.cfg.Lease(), time.Now()) > 0 {
			err = errors.Join(err, b.put(a))
		}
	}
	return err
}

// release the addresses, so that another machine can have them at once.
func (b *Balancer) release() error {
	var errs []error
	for a := range b.addresses() {
		errs = append(errs, b.kernel.free(a))
	}
	return errors.Join(errs...)
}

// announce that an address is here now, to all who knew it elsewhere: an ARP announcement
// (RFC 5227, section 2.3) on the link.
func announce(link netlink.Link, a netip.Addr) error {
	m := link.Attrs().HardwareAddr
	if len(m) != 6 { // the loopback link has nobody to tell
		return nil
	}
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, m...)
	frame = append(frame, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	frame = append(append(frame, m...), a.AsSlice()...)
	frame = append(append(frame, make([]byte, 6)...), a.AsSlice()...)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("announce %v: %w", a, err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
		return fmt.Errorf("announce %v on %s: %w", a, link.Attrs().Name, err)
	}
	return nil
}

// address puts an address on the link that leads to the other addresses of its network, or on
// the loopback link where none does: for good, or for so many seconds from now on.
func (k *kernel) address(a netip.Addr, seconds int) error {
	ip := net.IP(a.AsSlice())
	link, there, err := k.placeOf(ip)
	if err != nil {
		return fmt.Errorf("address %v: %w", a, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(32, 32)}, ValidLft: seconds, PreferedLft: seconds}
	if seconds == 0 {
		err = netlink.AddrAdd(link, addr)
	} else if err = netlink.AddrReplace(link, addr); err == nil && !there {
		err = announce(link, a)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return unprivileged(fmt.Errorf("put address %v on %s: %w", a, link.Attrs().Name, err))
	}
	return nil
}

// placeOf an address: the link that it is on already, or belongs on.
func (k *kernel) placeOf(ip net.IP) (link netlink.Link, there bool, err error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, false, err
	}
	for _, x := range addrs {
		if ones, _ := x.Mask.Size(); ones == 32 && x.IP.Equal(ip) {
			link, err := netlink.LinkByIndex(x.LinkIndex)
			return link, true, err
		}
	}
	if routes, err := netlink.RouteGet(ip); err == nil && len(routes) > 0 && routes[0].Gw == nil && routes[0].LinkIndex > 0 {
		if l, err := netlink.LinkByIndex(routes[0].LinkIndex); err == nil {
			return l, false, nil
		}
	}
	link, err = netlink.LinkByName("lo")
	return link, false, err
}
