package van

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// evil is in every frame that must not arrive.
const evil = "evil evil evil evil"

// TestNoGuestBreaksOut sends, from a guest of a private network, every frame that it must not
// send, and looks at the guests of its network here and at another host, at the gateway and
// at the host itself.
func TestNoGuestBreaksOut(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	ports := testSegment(1, testPort(1, 1, h1), testPort(1, 2, h1), testPort(1, 3, h2))
	other := testSegment(2, testPort(2, 1, h1), testPort(2, 2, h1), testPort(2, 3, h2)) // the same subnets
	l.apply(ports, other)
	attacker, near, far := h1.guest(ports.Ports[0]), h1.guest(ports.Ports[1]), h2.guest(ports.Ports[2])
	otherNear, otherFar := h1.guest(other.Ports[1]), h2.guest(other.Ports[2])
	foreign := h1.guest(other.Ports[0])
	host := h1.ns.sniff(t, "rv000001")
	gate := h1.net.links.spaces["rg000001"].sniff(t, gatewayDevice)

	attacker.reaches(near)
	attacker.reaches(far)
	far.reaches(attacker)

	me, my4, my6 := attacker.mac(), attacker.ip4(), attacker.ip6()
	his4, his6 := near.ip4(), near.ip6()
	stranger := []byte{0x52, 0x54, 0, 9, 9, 9}
	all4, none4 := netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("0.0.0.0")
	nodes := netip.MustParseAddr("ff02::1")
	gw4, gw6 := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")
	hostMAC := deviceMAC(t, h1, "rv000001")
	publicMAC := deviceMAC(t, h1, labBridge)
	link := func(g *guest) netip.Addr { return plan.LinkLocal(g.port.MAC) }

	for _, to := range []*guest{near, far} {
		v, v4, v6 := to.mac(), to.ip4(), to.ip6()
		for what, bad := range map[string][]byte{
			"a spoofed MAC":                        frame(v, stranger, packet(my4, v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a neighbour's MAC":                    frame(v, near.mac(), packet(my4, v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a spoofed IPv4 address":               frame(v, me, packet(his4.Next(), v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"the gateway's IPv4 address":           frame(v, me, packet(gw4, v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"no IPv4 address":                      frame(v, me, packet(none4, v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a spoofed IPv6 address":               frame(v, me, packet(his6.Next(), v6, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a neighbour's link-local address":     frame(v, me, packet(link(near), v6, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"no IPv6 address":                      frame(v, me, packet(netip.IPv6Unspecified(), v6, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"an ARP answer for a neighbour":        arpFrame(v, me, 2, me, his4.Next(), v, v4, evil),
			"an ARP answer for the gateway":        arpFrame(v, me, 2, me, gw4, v, v4, evil),
			"an ARP answer with another's MAC":     arpFrame(v, me, 2, stranger, my4, v, v4, evil),
			"an ARP question as a neighbour":       arpFrame(v, me, 1, me, his4.Next(), make([]byte, 6), v4, evil),
			"a gratuitous ARP answer":              arpFrame(broadcast, me, 2, me, my4, broadcast, my4, evil),
			"a reverse ARP question":               join(v, me, []byte{0x80, 0x35}, []byte(evil)),
			"a DHCP offer":                         frame(v, me, packet(my4, v4, unix.IPPROTO_UDP, udpData(67, 68, evil))),
			"a broadcast DHCP offer":               frame(broadcast, me, packet(my4, all4, unix.IPPROTO_UDP, udpData(67, 68, evil))),
			"a DHCPv6 advertisement":               frame(v, me, packet(link(attacker), link(to), unix.IPPROTO_UDP, udpData(547, 546, evil))),
			"a router advertisement":               frame(v, me, packet(link(attacker), link(to), unix.IPPROTO_ICMPV6, icmp6Data(routerAdvertisement, make([]byte, 12), []byte(evil)))),
			"a router advertisement to all":        frame(allNodes, me, packet(link(attacker), nodes, unix.IPPROTO_ICMPV6, icmp6Data(routerAdvertisement, make([]byte, 12), []byte(evil)))),
			"an ICMPv6 redirect":                   frame(v, me, packet(link(attacker), v6, unix.IPPROTO_ICMPV6, icmp6Data(redirect, make([]byte, 36), []byte(evil)))),
			"an advertisement of a neighbour":      frame(v, me, packet(my6, v6, unix.IPPROTO_ICMPV6, icmp6Data(neighbourAdvertisement, make([]byte, 4), his6.Next().AsSlice(), []byte(evil)))),
			"an advertisement of the gateway":      frame(v, me, packet(my6, v6, unix.IPPROTO_ICMPV6, icmp6Data(neighbourAdvertisement, make([]byte, 4), gw6.AsSlice(), []byte(evil)))),
			"an advertisement to all":              frame(allNodes, me, packet(my6, nodes, unix.IPPROTO_ICMPV6, icmp6Data(neighbourAdvertisement, make([]byte, 4), my6.AsSlice(), []byte(evil)))),
			"a tagged frame":                       join(v, me, []byte{0x81, 0, 0, 5}, []byte{8, 0}, packet(my4, v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a frame of no protocol of ours":       join(v, me, []byte{0x88, 0xcc}, []byte(evil)),
			"a bridge's spanning tree":             join([]byte{1, 0x80, 0xc2, 0, 0, 0}, me, []byte{0, 38, 0x42, 0x42, 3}, []byte(evil)),
			"a broadcast datagram":                 frame(broadcast, me, packet(my4, all4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a multicast datagram":                 frame([]byte{1, 0, 0x5e, 0, 0, 0xfb}, me, packet(my4, netip.MustParseAddr("224.0.0.251"), unix.IPPROTO_UDP, udpData(5353, 5353, evil))),
			"an IPv6 multicast datagram":           frame([]byte{0x33, 0x33, 0, 0, 0, 0xfb}, me, packet(my6, netip.MustParseAddr("ff02::fb"), unix.IPPROTO_UDP, udpData(5353, 5353, evil))),
			"a frame to a MAC that nobody has":     frame(stranger, me, packet(my4, v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a question for an address of nobody":  arpFrame(broadcast, me, 1, me, my4, make([]byte, 6), netip.MustParseAddr("10.1.0.200"), evil),
			"a solicitation for nobody":            frame([]byte{0x33, 0x33, 0xff, 0, 0, 0x99}, me, packet(my6, netip.MustParseAddr("ff02::1:ff00:99"), unix.IPPROTO_ICMPV6, icmp6Data(neighbourSolicitation, make([]byte, 4), netip.MustParseAddr("fd00:1::99").AsSlice(), []byte(evil)))),
			"a frame to another network's guest":   frame(foreign.mac(), me, packet(my4, foreign.ip4(), unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a frame to another network's far one": frame(otherFar.mac(), me, packet(my4, otherFar.ip4(), unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a packet to the host by its bridge":   frame(hostMAC, me, packet(my4, h1.underlay, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a packet to the host's public bridge": frame(publicMAC, me, packet(my4, h1.underlay, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"an IPv6 packet to the host":           frame(hostMAC, me, packet(my6, nodes, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"a packet to the underlay":             frame(hostMAC, me, packet(my4, h2.underlay, unix.IPPROTO_UDP, udpData(1, 2, evil))),
			"VXLAN to another host":                frame(hostMAC, me, packet(my4, h2.underlay, unix.IPPROTO_UDP, udpData(4789, 4789, evil))),
		} {
			attacker.never(what, bad, near, far)
		}
	}
	for _, f := range host.seen() {
		t.Errorf("the host got %x", f)
	}
	for _, f := range gate.seen() {
		if has(evil)(f) {
			t.Errorf("the gateway got %x", f)
		}
	}
	foreign.reaches(otherNear, has(evil))
	foreign.reaches(otherFar, has(evil))
	otherNear.reaches(foreign, has(evil))
}

func deviceMAC(t *testing.T, h *labHost, device string) (m []byte) {
	t.Helper()
	must(t, h.ns.do(func() error {
		l, err := net.InterfaceByName(device)
		if err == nil {
			m = l.HardwareAddr
		}
		return err
	}))
	return m
}
