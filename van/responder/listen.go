package responder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv6"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// Sockets that questions come by. Any may be missing: what comes by it is then not answered.
type Sockets struct {
	DHCP4    net.PacketConn // 0.0.0.0:67
	DHCP6    net.PacketConn // [::]:547
	ICMP6    net.PacketConn // raw; of [::], with hop limit 255
	DNS      []net.PacketConn
	DNSByTCP []net.Listener
}

// mostTCP connections for DNS at once.
const mostTCP = 64

// Listen opens the sockets in the network namespace of the calling thread, on one device
// alone, which has the addresses servers already. IPv6 is left out where no server has it.
func Listen(ctx context.Context, device string, servers []netip.Addr) (_ *Sockets, err error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("listen for DHCP and DNS on device %s: %w", device, err)
	}
	s := &Sockets{}
	defer func() {
		if err != nil {
			err = fmt.Errorf("listen for DHCP and DNS on device %s: %w", device, errors.Join(err, s.Close()))
		}
	}()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) { set = unix.BindToDevice(int(fd), device) })
		return errors.Join(err, set)
	}}
	for _, a := range servers {
		at := netip.AddrPortFrom(a, 53).String()
		udp, err := config.ListenPacket(ctx, "udp", at)
		if err != nil {
			return nil, err
		}
		s.DNS = append(s.DNS, udp)
		tcp, err := config.Listen(ctx, "tcp", at)
		if err != nil {
			return nil, err
		}
		s.DNSByTCP = append(s.DNSByTCP, netutil.LimitListener(tcp, mostTCP))
	}
	if of(servers, ip4).IsValid() {
		if s.DHCP4, err = config.ListenPacket(ctx, "udp4", "0.0.0.0:67"); err != nil {
			return nil, err
		}
	}
	if !of(servers, ip6).IsValid() {
		return s, nil
	}
	if s.DHCP6, err = config.ListenPacket(ctx, "udp6", "[::]:547"); err != nil {
		return nil, err
	}
	if s.ICMP6, err = config.ListenPacket(ctx, "ip6:ipv6-icmp", "::"); err != nil {
		return nil, err
	}
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv6.ICMPTypeRouterSolicitation)
	icmp := ipv6.NewPacketConn(s.ICMP6)
	return s, errors.Join(
		ipv6.NewPacketConn(s.DHCP6).JoinGroup(link, &net.UDPAddr{IP: net.ParseIP("ff02::1:2")}),
		icmp.JoinGroup(link, &net.IPAddr{IP: net.ParseIP("ff02::2")}),
		icmp.SetICMPFilter(&only), icmp.SetMulticastInterface(link),
		icmp.SetHopLimit(255), icmp.SetMulticastHopLimit(255)) // RFC 4861, section 6.1.2: anything less came from afar
}

// Close closes all of them.
func (s *Sockets) Close() error {
	var errs []error
	for _, c := range append([]net.PacketConn{s.DHCP4, s.DHCP6, s.ICMP6}, s.DNS...) {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	for _, l := range s.DNSByTCP {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
