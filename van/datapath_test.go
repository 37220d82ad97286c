package van

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// TestQuestionsGoToWhoHasTheAnswer: a broadcast question becomes a frame to one.
func TestQuestionsGoToWhoHasTheAnswer(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	s := testSegment(1, testPort(1, 1, h1), testPort(1, 2, h1), testPort(1, 3, h2))
	l.apply(s)
	asker, near, far := h1.guest(s.Ports[0]), h1.guest(s.Ports[1]), h2.guest(s.Ports[2])
	gate := h1.net.links.spaces["rg000001"].sniff(t, gatewayDevice)
	farGate := h2.net.links.spaces["rg000001"].sniff(t, gatewayDevice)
	gateMAC := mac(plan.GatewayMAC(1))

	for _, of := range []*guest{near, far} {
		other := map[*guest]*guest{near: far, far: near}[of]
		asker.send(arpFrame(broadcast, asker.mac(), 1, asker.mac(), asker.ip4(), make([]byte, 6), of.ip4(), "question"))
		if f := of.expect("an ARP question", has("question")); !bytes.Equal(f[:6], of.mac()) {
			t.Errorf("an ARP question came to %x", f[:6])
		}
		of.send(arpFrame(asker.mac(), of.mac(), 2, of.mac(), of.ip4(), asker.mac(), asker.ip4(), "answer"))
		asker.expect("an ARP answer", has("answer"))

		group := join([]byte{0x33, 0x33, 0xff}, of.ip6().AsSlice()[13:])
		solicited := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 0xff, group[3], group[4], group[5]})
		asker.send(frame(group, asker.mac(), packet(asker.ip6(), solicited, unix.IPPROTO_ICMPV6,
			icmp6Data(neighbourSolicitation, make([]byte, 4), of.ip6().AsSlice(), []byte("solicitation")))))
		if f := of.expect("a solicitation", has("solicitation")); !bytes.Equal(f[:6], of.mac()) {
			t.Errorf("a solicitation came to %x", f[:6])
		}
		of.send(frame(asker.mac(), of.mac(), packet(of.ip6(), asker.ip6(), unix.IPPROTO_ICMPV6,
			icmp6Data(neighbourAdvertisement, []byte{0x60, 0, 0, 0}, of.ip6().AsSlice(), []byte("advertisement")))))
		asker.expect("an advertisement", has("advertisement"))
		asker.reaches(other, has("question"), has("solicitation"))
	}

	none, all := netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255")
	for what, f := range map[string][]byte{
		"discover":      frame(broadcast, asker.mac(), packet(none, all, unix.IPPROTO_UDP, udpData(68, 67, "discover"))),
		"solicit":       frame([]byte{0x33, 0x33, 0, 1, 0, 2}, asker.mac(), packet(plan.LinkLocal(asker.port.MAC), netip.MustParseAddr("ff02::1:2"), unix.IPPROTO_UDP, udpData(546, 547, "solicit"))),
		"router please": frame([]byte{0x33, 0x33, 0, 0, 0, 2}, asker.mac(), packet(plan.LinkLocal(asker.port.MAC), netip.MustParseAddr("ff02::2"), unix.IPPROTO_ICMPV6, icmp6Data(routerSolicitation, make([]byte, 4), []byte("router please")))),
		"gateway?":      arpFrame(broadcast, asker.mac(), 1, asker.mac(), asker.ip4(), make([]byte, 6), s.Gateways[0], "gateway?"),
	} {
		asker.send(f)
		if f := gate.await(what, has(what)); !bytes.Equal(f[:6], gateMAC) {
			t.Errorf("%s came to %x", what, f[:6])
		}
		asker.reaches(near, has(what))
		asker.reaches(far, has(what))
	}
	for _, f := range farGate.seen() {
		t.Errorf("the other host's gateway got %x", f)
	}
	asker.expect("the gateway's ARP answer", func(f []byte) bool {
		return f[12] == 8 && f[13] == 6 && f[21] == 2 && bytes.Equal(f[22:28], gateMAC) && bytes.Equal(f[28:32], s.Gateways[0].AsSlice())
	})
}

// TestTheGatewayAnswersInItsNetworkAlone: a socket in a network's namespace hears its own
// guests, and its answers reach them, though another network has the same addresses.
func TestTheGatewayAnswersInItsNetworkAlone(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	a, b := testSegment(1, testPort(1, 1, h)), testSegment(2, testPort(2, 1, h))
	l.apply(a, b)
	ga, gb := h.guest(a.Ports[0]), h.guest(b.Ports[0])
	var conns []net.PacketConn
	for _, s := range []plan.Segment{a, b} {
		must(t, h.net.Inside(s.ID, func(device string) error {
			if device != gatewayDevice {
				t.Errorf("device %s", device)
			}
			c, err := net.ListenPacket("udp", netip.AddrPortFrom(s.Gateways[0], 53).String())
			conns = append(conns, c)
			return err
		}))
	}
	for i, g := range []*guest{ga, gb} {
		defer conns[i].Close()
		must(t, conns[i].SetReadDeadline(time.Now().Add(patience)))
		text := fmt.Sprintf("question to %d", i)
		g.send(frame(mac(plan.GatewayMAC(uint32(i+1))), g.mac(), packet(g.ip4(), a.Gateways[0], unix.IPPROTO_UDP, udpData(4000, 53, text))))
		buf := make([]byte, 100)
		n, from, err := conns[i].ReadFrom(buf)
		must(t, err)
		if string(buf[:n]) != text {
			t.Errorf("namespace %d got %q", i, buf[:n])
		}
		_, err = conns[i].WriteTo([]byte("answer"), from)
		must(t, err)
		f := g.expect("the gateway's ARP question", func(f []byte) bool { return f[12] == 8 && f[13] == 6 && f[21] == 1 })
		g.send(arpFrame(f[6:12], g.mac(), 2, g.mac(), g.ip4(), f[6:12], a.Gateways[0], ""))
		g.expect("an answer", has("answer"))
	}
	if err := h.net.Inside("alpha.shop.none", func(string) error { return nil }); err == nil {
		t.Error("inside a network that is not there")
	}
}

// TestTheFirewallIsStateful, for both families, and also for a network that uses the same
// addresses as another: what one remembers does not open the other.
func TestTheFirewallIsStateful(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	client, near, far := testPort(1, 1, h1), testPort(1, 2, h1), testPort(1, 3, h2)
	web := plan.Rule{Allow: true, Protocol: "tcp", First: 80, Last: 81, Peers: []netip.Prefix{
		netip.PrefixFrom(client.Addresses[0], 32), netip.MustParsePrefix("10.1.0.128/25"), netip.PrefixFrom(client.Addresses[1], 128)}}
	near.Firewall, far.Firewall = []plan.Rule{web}, []plan.Rule{web}
	s, twin := testSegment(1, client, near, far), testSegment(2, testPort(2, 1, h1), testPort(2, 2, h1), testPort(2, 3, h2))
	for i := range twin.Ports[1:] {
		twin.Ports[i+1].Firewall = []plan.Rule{web}
	}
	l.apply(s, twin)
	c, c2 := h1.guest(client), h1.guest(twin.Ports[0])
	servers, servers2 := []*guest{h1.guest(near), h2.guest(far)}, []*guest{h1.guest(twin.Ports[1]), h2.guest(twin.Ports[2])}
	send := func(from, to *guest, v int, srcPort, dstPort uint16, flags byte, text string) {
		from.send(frame(to.mac(), from.mac(), packet(from.port.Addresses[v], to.port.Addresses[v], unix.IPPROTO_TCP, tcpData(srcPort, dstPort, flags, text))))
	}
	for v := range 2 {
		for i, srv := range servers {
			for _, port := range []uint16{79, 82, 8080} {
				send(c, srv, v, 1000, port, syn, evil)
			}
			send(c, srv, v, 1000, 80, syn, "hello")
			srv.expect("a connection to port 80", has("hello"), has(evil))
			send(srv, c, v, 80, 1000, syn|ack, "welcome")
			c.expect("the answer", has("welcome"))
			send(c, srv, v, 1000, 80, ack, "thanks")
			srv.expect("what follows", has("thanks"), has(evil))
			// A server may open connections: it has no rule for that direction.
			send(srv, c, v, 2000, 443, syn, "outwards")
			c.expect("a connection of the server", has("outwards"))
			send(c, srv, v, 443, 2000, syn|ack, "come in")
			srv.expect("the answer to it", has("come in"), has(evil))

			// The same, seen from the network beside: nothing was opened there.
			send(c2, servers2[i], v, 443, 2000, syn|ack, evil)
			send(c2, servers2[i], v, 1000, 81, syn, "hello too")
			servers2[i].expect("a connection to port 81", has("hello too"), has(evil), has("come in"))
		}
	}
	// The near one may not be called by the far one, which is no peer.
	send(servers[1], servers[0], 0, 1000, 80, syn, evil)
	send(c, servers[0], 0, 1001, 80, syn, "again")
	servers[0].expect("another connection", has("again"), has(evil))

	// A rule for what goes out: replies still do.
	s.Version++
	s.Ports[1].Firewall = []plan.Rule{web, {Out: true, Protocol: "any"}}
	l.apply(s, twin)
	send(servers[0], c, 0, 2001, 443, syn, evil)
	send(c, servers[0], 0, 1002, 80, syn, "third")
	servers[0].expect("a third connection", has("third"))
	send(servers[0], c, 0, 80, 1002, syn|ack, "answer")
	c.expect("its answer", has("answer"), has(evil))

	// Without rules everything passes.
	s.Ports[1].Firewall = nil
	l.apply(s, twin)
	c.reaches(servers[0])
}

// TestVXLANIsTakenFromKnownHostsAlone: a machine on the underlay that is no host of the
// network cannot put frames into it.
func TestVXLANIsTakenFromKnownHostsAlone(t *testing.T) {
	l := newLab(t, "h1", "h2", "h3")
	h1, h2, h3 := l.hosts[0], l.hosts[1], l.hosts[2]
	s := testSegment(1, testPort(1, 1, h1), testPort(1, 2, h2))
	must(t, h1.net.Apply([]plan.Segment{s}))
	must(t, h2.net.Apply([]plan.Segment{s}))
	g, peer := h1.guest(s.Ports[0]), h2.guest(s.Ports[1])
	tunnelled := func(h *labHost, text string) {
		inner := frame(g.mac(), peer.mac(), packet(peer.ip4(), g.ip4(), unix.IPPROTO_UDP, udpData(1, 2, text)))
		must(t, h.ns.do(func() error {
			c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: h1.underlay.AsSlice(), Port: plan.VXLANPort})
			if err != nil {
				return err
			}
			_, err = c.Write(join([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner))
			return errors.Join(err, c.Close())
		}))
	}
	tunnelled(h3, evil)
	tunnelled(h2, "from a known host")
	g.expect("a frame from a known host", has("from a known host"), has(evil))
	peer.reaches(g, has(evil))
}

// publicSegment is the hosts' own network.
func publicSegment(ports ...plan.Port) plan.Segment {
	for i := range ports {
		ports[i].Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 90, 0, 100 + byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:90::%x", 0x100+i))}
	}
	return plan.Segment{ID: "alpha//public", Version: 1, Public: true, MTU: 1500, Ports: ports,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.90.0.0/24"), netip.MustParsePrefix("fd00:90::/64")}}
}

// TestAPublicNetworkIsOpenButForHosts: guests reach each other and whoever is on the wire,
// but no host, and they cannot pass for another or fill the wire with questions.
func TestAPublicNetworkIsOpenButForHosts(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	s := publicSegment(testPort(0, 1, h1), testPort(0, 2, h1), testPort(0, 3, h2))
	l.apply(s)
	must(t, l.wire.do(func() error { return up("wire0", "10.90.0.1/24") }))
	g, near, far := h1.guest(s.Ports[0]), h1.guest(s.Ports[1]), h2.guest(s.Ports[2])
	wire := l.wire.sniff(t, "wire0")
	g.reaches(near)
	g.reaches(far)
	far.reaches(g)

	me, v, v4 := g.mac(), far.mac(), far.ip4()
	bridgeMAC := deviceMAC(t, h1, labBridge)
	var heard [2]net.PacketConn
	for i, h := range l.hosts {
		must(t, h.ns.do(func() (err error) {
			heard[i], err = net.ListenPacket("udp4", "0.0.0.0:53")
			return err
		}))
		defer heard[i].Close()
		must(t, heard[i].SetReadDeadline(time.Now().Add(patience)))
	}
	other, err := func() (c net.PacketConn, err error) {
		err = h1.ns.do(func() (err error) { c, err = net.ListenPacket("udp4", "0.0.0.0:9"); return err })
		return c, err
	}()
	must(t, err)
	defer other.Close()
	for what, bad := range map[string][]byte{
		"a spoofed MAC":        frame(v, near.mac(), packet(g.ip4(), v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
		"a spoofed address":    frame(v, me, packet(near.ip4(), v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
		"the host's address":   frame(v, me, packet(h1.underlay, v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
		"ARP for the host":     arpFrame(v, me, 2, me, h1.underlay, v, v4, evil),
		"ARP for a neighbour":  arpFrame(broadcast, me, 1, me, near.ip4(), make([]byte, 6), v4, evil),
		"a DHCP offer":         frame(v, me, packet(g.ip4(), v4, unix.IPPROTO_UDP, udpData(67, 68, evil))),
		"a DHCP discover":      frame(broadcast, me, packet(netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"), unix.IPPROTO_UDP, udpData(68, 67, evil))),
		"a router":             frame(v, me, packet(plan.LinkLocal(g.port.MAC), far.ip6(), unix.IPPROTO_ICMPV6, icmp6Data(routerAdvertisement, make([]byte, 12), []byte(evil)))),
		"a broadcast":          frame(broadcast, me, packet(g.ip4(), netip.MustParseAddr("10.90.0.255"), unix.IPPROTO_UDP, udpData(1, 2, evil))),
		"a tagged frame":       join(v, me, []byte{0x81, 0, 0, 5, 8, 0}, packet(g.ip4(), v4, unix.IPPROTO_UDP, udpData(1, 2, evil))),
		"to its host":          frame(bridgeMAC, me, packet(g.ip4(), h1.underlay, unix.IPPROTO_UDP, udpData(1, 9, evil))),
		"to the other host":    frame(deviceMAC(t, h2, labBridge), me, packet(g.ip4(), h2.underlay, unix.IPPROTO_UDP, udpData(1, 9, evil))),
		"VXLAN to another one": frame(deviceMAC(t, h2, labBridge), me, packet(g.ip4(), h2.underlay, unix.IPPROTO_UDP, udpData(4789, 4789, evil))),
	} {
		g.never(what, bad, near, far)
	}
	for _, f := range wire.seen() {
		if has(evil)(f) {
			t.Errorf("the wire got %x", f)
		}
	}
	// DNS of the own host is answered, and nothing else of it.
	g.send(frame(bridgeMAC, me, packet(g.ip4(), h1.underlay, unix.IPPROTO_UDP, udpData(4000, 53, "name?"))))
	buf := make([]byte, 100)
	n, from, err := heard[0].ReadFrom(buf)
	must(t, err)
	if string(buf[:n]) != "name?" || from.String() != netip.AddrPortFrom(g.ip4(), 4000).String() {
		t.Errorf("the host's DNS got %q from %s", buf[:n], from)
	}
	// So is that of the host that it may have come from.
	g.send(frame(deviceMAC(t, h2, labBridge), me, packet(g.ip4(), h2.underlay, unix.IPPROTO_UDP, udpData(4000, 53, "far name?"))))
	if n, _, err = heard[1].ReadFrom(buf); err != nil || string(buf[:n]) != "far name?" {
		t.Errorf("the other host's DNS got %q, %v", buf[:n], err)
	}
	must(t, other.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if n, _, err := other.ReadFrom(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the host got %q, %v", buf[:n], err)
	}

	// Whoever is on the wire opens connections to a guest, hosts too, and is answered.
	for _, from := range []*space{l.wire, h1.ns, h2.ns} {
		var c net.Conn
		must(t, from.do(func() (err error) {
			c, err = net.Dial("udp4", netip.AddrPortFrom(g.ip4(), 7).String())
			return err
		}))
		_, err := c.Write([]byte("ping"))
		must(t, err)
		src := netip.MustParseAddrPort(c.LocalAddr().String())
		f := g.expect("ARP from the wire", func(f []byte) bool { return f[13] == 6 && f[21] == 1 && bytes.Equal(f[28:32], src.Addr().AsSlice()) })
		g.send(arpFrame(f[6:12], me, 2, me, g.ip4(), f[6:12], src.Addr(), ""))
		g.expect("a datagram from the wire", has("ping"))
		g.send(frame(f[6:12], me, packet(g.ip4(), src.Addr(), unix.IPPROTO_UDP, udpData(7, src.Port(), "pong"))))
		must(t, c.SetReadDeadline(time.Now().Add(patience)))
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "pong" {
			t.Errorf("from %s: %q, %v", src, buf[:n], err)
		}
		must(t, c.Close())
	}

	// Questions are limited.
	wire.seen()
	const storm = 2000
	for range storm {
		g.send(arpFrame(broadcast, me, 1, me, g.ip4(), make([]byte, 6), netip.MustParseAddr("10.90.0.250"), "storm"))
	}
	g.reaches(far)
	count := 0
	for _, f := range wire.seen() {
		if has("storm")(f) {
			count++
		}
	}
	if count == 0 || count > storm/2 {
		t.Errorf("%d of %d broadcast questions reached the wire", count, storm)
	}
	near.send(arpFrame(broadcast, near.mac(), 1, near.mac(), near.ip4(), make([]byte, 6), v4, "one more"))
	far.expect("another guest's question", has("one more"))
}

// TestAPublicPortsWall lets nothing by that looks like the hosts' own tunnels, and what the
// wire sends only as the rules say.
func TestAPublicPortsWall(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	s := publicSegment(testPort(0, 1, h1), testPort(0, 2, h1), testPort(0, 3, h2))
	s.Ports[1].Firewall = []plan.Rule{{Allow: true, Protocol: "udp", First: 4001}}
	s.Ports[2].Firewall = s.Ports[1].Firewall
	l.apply(s)
	g := h1.guest(s.Ports[0])
	for _, to := range []*guest{h1.guest(s.Ports[1]), h2.guest(s.Ports[2])} {
		for _, port := range []uint16{plan.VXLANPort, 53, 67, 80} {
			g.never(fmt.Sprintf("a datagram to port %d", port), frame(to.mac(), g.mac(), packet(g.ip4(), to.ip4(), unix.IPPROTO_UDP, udpData(1, port, evil))), to)
			g.never(fmt.Sprintf("an IPv6 datagram to port %d", port), frame(to.mac(), g.mac(), packet(g.ip6(), to.ip6(), unix.IPPROTO_UDP, udpData(1, port, evil))), to)
			g.never(fmt.Sprintf("a link-local datagram to port %d", port), frame(to.mac(), g.mac(),
				packet(plan.LinkLocal(g.port.MAC), plan.LinkLocal(to.port.MAC), unix.IPPROTO_UDP, udpData(1, port, evil))), to)
		}
	}
}

// TestAHostMayScrapeThroughAWall: a host asks its own guests of public networks for their
// measurements whatever their walls say, at the one port; nobody else does.
func TestAHostMayScrapeThroughAWall(t *testing.T) {
	const scraped, other = 9100, 9101
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	s := publicSegment(testPort(0, 1, h1), testPort(0, 2, h1))
	s.Ports[0].Firewall, s.Ports[0].Scraped = []plan.Rule{{Allow: true, Protocol: "udp"}}, other
	l.apply(s)
	s.Version++
	s.Ports[0].Scraped = scraped // another port is another entry of the kernel's
	l.apply(s)
	walled, neighbour := h1.guest(s.Ports[0]), h1.guest(s.Ports[1])
	for i, h := range l.hosts {
		must(t, h.ns.do(func() error {
			bridge, err := netlink.LinkByName(labBridge)
			if err != nil {
				return err
			}
			own, err := netlink.ParseAddr(fmt.Sprintf("fd00:90::%d/64", 11+i))
			if err != nil {
				return err
			}
			own.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(bridge, own); err != nil {
				return err
			}
			for _, a := range walled.port.Addresses {
				n := &netlink.Neigh{LinkIndex: bridge.Attrs().Index, IP: a.AsSlice(), HardwareAddr: walled.mac(), State: netlink.NUD_PERMANENT}
				if err := netlink.NeighSet(n); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	call := func(h *labHost, a netip.Addr, port uint16) { // the guest's answer is not waited for
		must(t, h.ns.do(func() error {
			if c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, port).String(), 10*time.Millisecond); err == nil {
				return c.Close()
			}
			return nil
		}))
	}
	opens := func(from netip.Addr, port uint16) func([]byte) bool {
		return func(f []byte) bool {
			src, tcp := 26, 34
			if from.Is6() {
				src, tcp = 22, 54
			}
			return len(f) > tcp+4 && bytes.Equal(f[src:src+from.BitLen()/8], from.AsSlice()) && binary.BigEndian.Uint16(f[tcp+2:]) == port
		}
	}
	for v, a := range walled.port.Addresses {
		near, far := h1.underlay, h2.underlay
		if v == 1 {
			near, far = netip.MustParseAddr("fd00:90::11"), netip.MustParseAddr("fd00:90::12")
		}
		call(h1, a, other)
		call(h2, a, scraped)
		neighbour.send(frame(walled.mac(), neighbour.mac(), packet(neighbour.port.Addresses[v], a, unix.IPPROTO_TCP, tcpData(1000, scraped, syn, evil))))
		call(h1, a, scraped)
		walled.expect("its host's question", opens(near, scraped), opens(near, other), opens(far, scraped), has(evil))
	}
	s.Version++
	s.Ports[0].Scraped = 0
	l.apply(s)
	for v, a := range walled.port.Addresses {
		call(h1, a, scraped)
		neighbour.send(frame(walled.mac(), neighbour.mac(), packet(neighbour.port.Addresses[v], a, unix.IPPROTO_UDP, udpData(1000, 1, "done"))))
		walled.expect("what the wall lets in", has("done"), opens(h1.underlay, scraped), opens(netip.MustParseAddr("fd00:90::11"), scraped))
	}
}

// TestNoBlackHole: what is too large for the underlay is answered with the size that fits.
func TestNoBlackHole(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	s := testSegment(1, testPort(1, 1, h1), testPort(1, 2, h2))
	s.Ports[0].Firewall = []plan.Rule{{Allow: true, Protocol: "tcp", First: 80}} // "too big" passes it
	l.apply(s)
	a, b := h1.guest(s.Ports[0]), h2.guest(s.Ports[1])
	fits := make([]byte, s.MTU-28)
	a.send(frame(b.mac(), a.mac(), packet(a.ip4(), b.ip4(), unix.IPPROTO_UDP, udpData(1, 2, string(fits))))) // as offered
	b.expect("a packet of the MTU that is offered", func(f []byte) bool { return len(f) == 14+s.MTU })

	large := string(make([]byte, 1500-28))
	a.send(frame(b.mac(), a.mac(), packet(a.ip4(), b.ip4(), unix.IPPROTO_UDP, udpData(1, 2, large))))
	f := a.expect("\"fragmentation needed\"", func(f []byte) bool { return f[12] == 8 && f[13] == 0 && f[23] == 1 && f[34] == 3 && f[35] == 4 })
	if mtu := int(binary.BigEndian.Uint16(f[40:])); mtu < s.MTU || mtu > 1450 {
		t.Errorf("IPv4: told to send %d bytes", mtu)
	}
	large = string(make([]byte, 1500-48))
	a.send(frame(b.mac(), a.mac(), packet(a.ip6(), b.ip6(), unix.IPPROTO_UDP, udpData(1, 2, large))))
	f = a.expect("\"packet too big\"", func(f []byte) bool { return f[12] == 0x86 && f[20] == unix.IPPROTO_ICMPV6 && f[54] == 2 })
	if mtu := int(binary.BigEndian.Uint32(f[58:])); mtu < s.MTU || mtu > 1450 {
		t.Errorf("IPv6: told to send %d bytes", mtu)
	}
}

// TestARestartConverges: another agent takes over what the first left and what somebody
// broke, and what passes goes on passing.
func TestARestartConverges(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	gone, s := testSegment(3, testPort(3, 1, h1)), testSegment(1, testPort(1, 1, h1), testPort(1, 2, h1), testPort(1, 3, h2))
	s.Ports[1].Firewall = []plan.Rule{{Allow: true, Protocol: "udp"}}
	l.apply(s, gone)
	a, b, c := h1.guest(s.Ports[0]), h1.guest(s.Ports[1]), h2.guest(s.Ports[2])
	a.reaches(b)

	must(t, h1.net.Close())
	a.reaches(b)
	a.reaches(c)
	h1.open()
	a.reaches(c)
	must(t, h1.net.Apply([]plan.Segment{s}))
	h1.settled()
	a.reaches(b)
	a.reaches(c)

	breakIt := map[string]func(*nftables.Conn) error{
		"a stray entry": func(*nftables.Conn) error {
			d, err := netlink.LinkByName("rx000001")
			if err != nil {
				return err
			}
			m := []byte{0x52, 0x54, 0, 7, 7, 7}
			return errors.Join(
				netlink.NeighSet(&netlink.Neigh{LinkIndex: d.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER, HardwareAddr: m}),
				netlink.NeighSet(&netlink.Neigh{LinkIndex: d.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, HardwareAddr: m, IP: net.IPv4(10, 90, 0, 99)}))
		},
		"half an entry": func(*nftables.Conn) error {
			d, err := netlink.LinkByName("rx000001")
			if err != nil {
				return err
			}
			return netlink.NeighDel(&netlink.Neigh{LinkIndex: d.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, HardwareAddr: c.mac()})
		},
		"no bridge":          func(*nftables.Conn) error { return remove("rv000001") },
		"no tunnel":          func(*nftables.Conn) error { return remove("rx000001") },
		"no gateway":         func(*nftables.Conn) error { return remove("rg000001") },
		"the bridge is down": func(*nftables.Conn) error { return down("rv000001") },
		"the tunnel is down": func(*nftables.Conn) error { return down("rx000001") },
		"a TAP is out":       func(*nftables.Conn) error { return free(a.port.Tap()) },
		"no bridge rules": func(n *nftables.Conn) error {
			n.DelTable(frames)
			return n.Flush()
		},
		"no rules at all": func(n *nftables.Conn) error { n.FlushRuleset(); return n.Flush() },
		"a rule less": func(n *nftables.Conn) error {
			rules, err := n.GetRules(frames, &nftables.Chain{Table: frames, Name: "port"})
			if err != nil {
				return err
			}
			return errors.Join(n.DelRule(rules[0]), n.Flush())
		},
		"a wall's rule less": func(n *nftables.Conn) error {
			k := &nftables.Chain{Table: packets, Name: "in-" + b.port.Tap()}
			rules, err := n.GetRules(packets, k)
			if err != nil {
				return err
			}
			return errors.Join(n.DelRule(rules[len(rules)-1]), n.Flush())
		},
		"a stray permission": func(n *nftables.Conn) error {
			set := newSets().macs
			return errors.Join(n.SetAddElements(set, []nftables.SetElement{{Key: append(ifname(a.port.Tap()), 2, 2, 2, 2, 2, 2, 0, 0)}}), n.Flush())
		},
		"a permission less": func(n *nftables.Conn) error { n.FlushSet(newSets().own4); return n.Flush() },
		"a door less":       func(n *nftables.Conn) error { n.FlushSet(newSets().in4); return n.Flush() },
	}
	for what, do := range breakIt {
		must(t, h1.ns.do(func() error { return do(&nftables.Conn{}) }))
		changes, err := h1.net.Mend()
		must(t, err)
		if len(changes) == 0 && what != "a rule less" {
			t.Errorf("%s: was not seen", what)
		}
		h1.settled()
		a.reaches(b)
		a.reaches(c)
		c.reaches(a)
		if changes, err := h1.net.Mend(); err != nil || len(changes) > 0 {
			t.Errorf("%s: after repair still %v, %v", what, changes, err)
		}
	}
}

func remove(name string) error {
	d, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(d)
}

func down(name string) error {
	d, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetDown(d)
}

func free(name string) error {
	d, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetNoMaster(d)
}

// TestAMoveOfAPrivatePort: from the hand-over on frames arrive at the new place, also those
// of a host that was not told yet; and the old place sends no more.
func TestAMoveOfAPrivatePort(t *testing.T) {
	l := newLab(t, "h1", "h2", "h3")
	from, to, third := l.hosts[0], l.hosts[1], l.hosts[2]
	s := testSegment(1, testPort(1, 1, from), testPort(1, 2, from), testPort(1, 3, to), testPort(1, 4, third))
	l.apply(s)
	old := from.guest(s.Ports[0])
	here, there, watcher := from.guest(s.Ports[1]), to.guest(s.Ports[2]), third.guest(s.Ports[3])
	incoming := to.guest(s.Ports[0]) // plugged, and still the source's
	watcher.reaches(old)
	incoming.send(frame(watcher.mac(), incoming.mac(), packet(incoming.ip4(), watcher.ip4(), unix.IPPROTO_UDP, udpData(1, 2, evil))))

	must(t, from.net.Release(s.Ports[0].VEE, to.underlay))
	old.send(frame(watcher.mac(), old.mac(), packet(old.ip4(), watcher.ip4(), unix.IPPROTO_UDP, udpData(1, 2, evil))))
	must(t, to.net.Announce(s.Ports[0].VEE))
	for _, g := range []*guest{here, there, watcher} {
		g.reaches(incoming)
		incoming.reaches(g, has(evil))
	}
	must(t, from.net.Unplug(s.Ports[0].VEE))

	s.Version, s.Ports[0].Host, s.Ports[0].Underlay = 2, to.name, to.underlay
	l.apply(s)
	for _, h := range l.hosts {
		if len(h.net.moved) != 0 || h.net.links.detour {
			t.Errorf("host %s still goes by what it was told at the hand-over", h.name)
		}
	}
	for _, g := range []*guest{here, there, watcher} {
		g.reaches(incoming)
		incoming.reaches(g)
	}
}

// TestAMoveOfAPublicPort: the new place tells the wire, after the old one gave it up.
func TestAMoveOfAPublicPort(t *testing.T) {
	l := newLab(t, "h1", "h2")
	from, to := l.hosts[0], l.hosts[1]
	s := publicSegment(testPort(0, 1, from), testPort(0, 2, from))
	l.apply(s)
	old, here := from.guest(s.Ports[0]), from.guest(s.Ports[1])
	incoming := to.guest(s.Ports[0])
	here.reaches(old)
	wire := l.wire.sniff(t, "wire0")

	must(t, from.net.Release(s.Ports[0].VEE, to.underlay))
	must(t, to.net.Announce(s.Ports[0].VEE))
	wire.await("an ARP announcement", func(f []byte) bool {
		return bytes.Equal(f[6:12], incoming.mac()) && f[12] == 8 && f[13] == 6 && bytes.Equal(f[28:32], incoming.ip4().AsSlice()) && bytes.Equal(f[38:42], f[28:32])
	})
	wire.await("a neighbour advertisement", func(f []byte) bool {
		return bytes.Equal(f[6:12], incoming.mac()) && f[12] == 0x86 && f[54] == neighbourAdvertisement && bytes.Equal(f[62:78], incoming.ip6().AsSlice()) &&
			checksum6(f[22:38], f[38:54], unix.IPPROTO_ICMPV6, f[54:]) == 0
	})
	here.reaches(incoming)
	incoming.reaches(here)
}
