package van

import (
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

var (
	broadcast = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = []byte{0x33, 0x33, 0, 0, 0, 1}                                  // MAC of ff02::1
	allNodes6 = []byte{0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01} // ff02::1
)

// announce that a port is behind this host, from the bridge to all of the network: switches
// learn where the MAC is, hosts whose MAC it is. In the namespace of the calling thread.
func announce(bridge string, p plan.Port) error {
	link, err := net.InterfaceByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	defer unix.Close(fd)
	for _, f := range announcement(p) {
		if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
			return fmt.Errorf("send on %s: %w", bridge, err)
		}
	}
	return nil
}

// announcement of a port: an ARP announcement for an IPv4 address (RFC 5227, section 2.3),
// an unsolicited neighbour advertisement for an IPv6 one (RFC 4861, section 7.2.6).
func announcement(p plan.Port) [][]byte {
	m := mac(p.MAC)
	var all [][]byte
	for _, a := range p.Addresses {
		if a.Is4() {
			f := append(append(append([]byte{}, broadcast...), m...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
			f = append(append(f, m...), a.AsSlice()...)
			f = append(append(f, make([]byte, 6)...), a.AsSlice()...)
			all = append(all, f)
			continue
		}
		// type 136, code, checksum, override, target, option 2: link-layer address
		body := append([]byte{neighbourAdvertisement, 0, 0, 0, 0x20, 0, 0, 0}, a.AsSlice()...)
		body = append(append(body, 2, 1), m...)
		binary.BigEndian.PutUint16(body[2:], checksum6(a.AsSlice(), allNodes6, unix.IPPROTO_ICMPV6, body))
		f := append(append(append([]byte{}, allNodes...), m...), 0x86, 0xdd, 0x60, 0, 0, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(len(body)))
		f = append(append(append(f, unix.IPPROTO_ICMPV6, 255), a.AsSlice()...), allNodes6...)
		all = append(all, append(f, body...))
	}
	return all
}

// checksum6 of an upper layer's packet in IPv6 (RFC 8200, section 8.1).
func checksum6(src, dst []byte, proto byte, body []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for ; len(b) > 1; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	add(src)
	add(dst)
	add(body)
	sum += uint32(len(body)) + uint32(proto)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
