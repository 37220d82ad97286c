package van

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// patience with a machine that is busy.
const patience = 30 * time.Second

// lab is some hosts on one wire, each a network namespace, as `reservoir dev` makes them:
// the underlay is the public network, and the host has an address in it.
type lab struct {
	t     *testing.T
	wire  *space
	hosts []*labHost
}

type labHost struct {
	t        *testing.T
	name     string
	ns       *space
	underlay netip.Addr
	net      *Network
}

const labBridge = "rsv0"

func newLab(t *testing.T, hosts ...string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run make test as root (make check leaves it out)")
	}
	l := &lab{t: t, wire: newTestSpace(t)}
	must(t, l.wire.do(func() error { return bridgeUp("wire0", "") }))
	for i, name := range hosts {
		h := &labHost{t: t, name: name, ns: newTestSpace(t), underlay: netip.AddrFrom4([4]byte{10, 90, 0, byte(11 + i)})}
		must(t, h.ns.do(func() error { return bridgeUp(labBridge, h.underlay.String()+"/24") }))
		port := fmt.Sprintf("w%d", i)
		must(t, h.ns.do(func() error { return veth("up0", labBridge, port, l.wire) }))
		must(t, l.wire.do(func() error { return enslave(port, "wire0") }))
		h.open()
		l.hosts = append(l.hosts, h)
		h.ns.forwards(t, "up0")
		l.wire.forwards(t, port)
	}
	return l
}

// forwards waits until a bridge takes frames from the port: it does some time after the
// other end of a veth, or of a TAP, came up.
func (s *space) forwards(t *testing.T, port string) {
	t.Helper()
	const forwarding = 3 // BR_STATE_FORWARDING
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		state := byte(0)
		must(t, s.do(func() error {
			l, err := net.InterfaceByName(port)
			if err != nil {
				return err
			}
			req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
			req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
			all, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
			if errors.Is(err, netlink.ErrDumpInterrupted) {
				return nil
			}
			for _, m := range all {
				attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfInfomsg:])
				if err != nil {
					return err
				}
				for _, a := range attrs {
					if a.Attr.Type != unix.IFLA_PROTINFO|unix.NLA_F_NESTED || int(nl.DeserializeIfInfomsg(m).Index) != l.Index {
						continue
					}
					info, err := nl.ParseRouteAttr(a.Value)
					if err != nil {
						return err
					}
					for _, i := range info {
						if i.Attr.Type == nl.IFLA_BRPORT_STATE {
							state = i.Value[0]
						}
					}
				}
			}
			return err
		}))
		if state == forwarding {
			return
		}
	}
	t.Fatalf("port %s never forwards", port)
}

// newTestSpace is closed at the end, and with it all that is in it.
func newTestSpace(t *testing.T) *space {
	t.Helper()
	s, err := newSpace()
	must(t, err)
	t.Cleanup(func() { must(t, s.close()) })
	return s
}

func (h *labHost) open() {
	h.t.Helper()
	must(h.t, h.ns.do(func() (err error) {
		h.net, err = Open(Config{Host: h.name, Underlay: h.underlay, Bridge: labBridge, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		return err
	}))
	n := h.net
	h.t.Cleanup(func() {
		if h.net == n {
			must(h.t, n.Destroy())
			h.clean()
		}
	})
}

// clean asserts that nothing of ours is left.
func (h *labHost) clean() {
	h.t.Helper()
	must(h.t, h.ns.do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if n := l.Attrs().Name; isTap(n) || isOurs(n) {
				h.t.Errorf("host %s: device %s is left", h.name, n)
			}
		}
		return err
	}))
	tables, err := (&nftables.Conn{NetNS: int(h.ns.ns)}).ListTables()
	must(h.t, err)
	for _, x := range tables {
		h.t.Errorf("host %s: nftables table %s is left", h.name, x.Name)
	}
}

func (l *lab) apply(segments ...plan.Segment) {
	l.t.Helper()
	for _, h := range l.hosts {
		must(l.t, h.net.Apply(segments))
		h.settled()
	}
}

// settled asserts that the kernel has what it should have.
func (h *labHost) settled() {
	h.t.Helper()
	have, want, err := h.net.Show()
	must(h.t, err)
	for _, c := range plan.Diff(have, want) {
		if c.Have == nil && (c.Key().Kind == plan.KindMember || c.Key().Kind == plan.KindForward) && isTap(c.Key().Name) {
			continue // not plugged yet
		}
		h.t.Errorf("host %s: %s", h.name, c)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func bridgeUp(name, cidr string) error {
	a := netlink.NewLinkAttrs()
	a.Name = name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err != nil {
		return err
	}
	return up(name, cidr)
}

func up(name, cidr string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if cidr != "" {
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

func enslave(name, bridge string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	b, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetMaster(l, b), netlink.LinkSetUp(l))
}

// veth whose other end is in another namespace.
func veth(name, bridge, peer string, at *space) error {
	a := netlink.NewLinkAttrs()
	a.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: peer, PeerNamespace: netlink.NsFd(int(at.ns))}); err != nil {
		return err
	}
	if bridge == "" {
		return up(name, "")
	}
	return enslave(name, bridge)
}

// guest is a fake one: what it sends and gets are whole frames, made by the test.
type guest struct {
	t    *testing.T
	port plan.Port
	file *os.File
	got  chan []byte
	done chan struct{}
}

// vnetHeader before each frame of a TAP that QEMU uses (struct virtio_net_hdr): no offload.
const vnetHeader = 10

func (h *labHost) guest(p plan.Port) *guest {
	h.t.Helper()
	tap, err := h.net.Plug(p.VEE, p.NIC)
	must(h.t, err)
	g := &guest{t: h.t, port: p, got: make(chan []byte, 4096), done: make(chan struct{})}
	must(h.t, h.ns.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		r, err := unix.NewIfreq(tap)
		if err != nil {
			return err
		}
		r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
			return err
		}
		g.file = os.NewFile(uintptr(fd), tap)
		return nil
	}))
	go func() {
		defer close(g.done)
		b := make([]byte, 1<<16)
		for {
			n, err := g.file.Read(b)
			if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EBADFD) {
				return
			}
			if err != nil || n < vnetHeader {
				continue
			}
			g.got <- bytes.Clone(b[vnetHeader:n])
		}
	}()
	h.t.Cleanup(g.close)
	for _, s := range h.net.effective() {
		for _, o := range s.Ports {
			if o.VEE == p.VEE && o.Host == h.name {
				h.ns.forwards(h.t, tap)
			}
		}
	}
	return g
}

func (g *guest) close() {
	g.file.Close()
	for {
		select {
		case <-g.got: // nobody reads any more
		case <-g.done:
			return
		}
	}
}

func (g *guest) send(frame []byte) {
	g.t.Helper()
	if _, err := g.file.Write(append(make([]byte, vnetHeader), frame...)); err != nil {
		g.t.Fatalf("%s: send: %v", g.port.VEE, err)
	}
}

// expect waits for a frame that is as wanted; none before it may be what is not.
func (g *guest) expect(what string, want func([]byte) bool, not ...func([]byte) bool) []byte {
	g.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case f := <-g.got:
			for _, n := range not {
				if n(f) {
					g.t.Fatalf("%s got what it must not get: %s", g.port.VEE, hex.EncodeToString(f))
				}
			}
			if want(f) {
				return f
			}
		case <-deadline:
			g.t.Fatalf("%s never got %s", g.port.VEE, what)
		}
	}
}

func has(text string) func([]byte) bool {
	return func(f []byte) bool { return bytes.Contains(f, []byte(text)) }
}

func (g *guest) mac() []byte     { return mac(g.port.MAC) }
func (g *guest) ip4() netip.Addr { return g.port.Addresses[0] }
func (g *guest) ip6() netip.Addr { return g.port.Addresses[1] }

// reaches asserts that a datagram of g arrives at o, by both families, and that nothing of
// what went before it that carries one of the texts does.
func (g *guest) reaches(o *guest, not ...func([]byte) bool) {
	g.t.Helper()
	serial++
	for _, src := range []netip.Addr{g.ip4(), g.ip6()} {
		dst := o.ip4()
		if src.Is6() {
			dst = o.ip6()
		}
		text := fmt.Sprintf("marker-%d-%v-", serial, src.Is6())
		g.send(frame(o.mac(), g.mac(), packet(src, dst, unix.IPPROTO_UDP, udpData(4000, 4001, text))))
		o.expect(text, has(text), not...)
	}
}

// never asserts that what g sends reaches none of the others; a marker that is sent after
// it does reach those of witnesses.
func (g *guest) never(what string, bad []byte, witnesses ...*guest) {
	g.t.Helper()
	g.send(bad)
	for _, w := range witnesses {
		g.reaches(w, func(f []byte) bool {
			if bytes.Contains(f, []byte("evil")) {
				g.t.Errorf("%s arrived", what)
			}
			return false
		})
	}
}

var serial int // of markers; the tests of this package do not run side by side

// Frames, made by hand.

func frame(dst, src []byte, payload []byte) []byte {
	kind := []byte{0x08, 0x00}
	if payload[0]>>4 == 6 {
		kind = []byte{0x86, 0xdd}
	}
	return join(dst, src, kind, payload)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func arpFrame(dst, src []byte, op byte, sha []byte, spa netip.Addr, tha []byte, tpa netip.Addr, trailer string) []byte {
	return join(dst, src, []byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, op}, sha, spa.AsSlice(), tha, tpa.AsSlice(), []byte(trailer))
}

func packet(src, dst netip.Addr, proto byte, body []byte) []byte {
	body = bytes.Clone(body)
	if off, ok := map[byte]int{unix.IPPROTO_UDP: 6, unix.IPPROTO_TCP: 16, unix.IPPROTO_ICMPV6: 2}[proto]; ok {
		binary.BigEndian.PutUint16(body[off:], checksum6(src.AsSlice(), dst.AsSlice(), proto, body))
	}
	if src.Is6() {
		h := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(body)))
		return join(h, []byte{proto, 255}, src.AsSlice(), dst.AsSlice(), body)
	}
	h := binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(body)))
	h = join(h, []byte{0, 1, 0x40, 0, 64, proto, 0, 0}, src.AsSlice(), dst.AsSlice()) // don't fragment
	binary.BigEndian.PutUint16(h[10:], checksum6(h, nil, 0, nil))
	return join(h, body)
}

func udpData(from, to uint16, text string) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	return join(binary.BigEndian.AppendUint16(b, uint16(8+len(text))), []byte{0, 0}, []byte(text))
}

// Flags of TCP.
const syn, ack = 2, 16

func tcpData(from, to uint16, flags byte, text string) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	return join(b, []byte{0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0}, []byte(text))
}

func icmp6Data(kind byte, rest ...[]byte) []byte {
	return join([]byte{kind, 0, 0, 0}, join(rest...))
}

// sniffer counts what a device's host is given by it: all that enters the host by it.
type sniffer struct {
	t    *testing.T
	fd   int
	kept [][]byte // seen, and after what was awaited
}

func (s *space) sniff(t *testing.T, device string) *sniffer {
	t.Helper()
	x := &sniffer{t: t}
	must(t, s.do(func() error {
		l, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		x.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		return unix.Bind(x.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.Index})
	}))
	t.Cleanup(func() { unix.Close(x.fd) })
	return x
}

func htons(v uint16) uint16 {
	b := binary.BigEndian.AppendUint16(nil, v)
	return *(*uint16)(unsafe.Pointer(&b[0]))
}

// seen takes what came since the last call, but for what the host sent itself.
func (x *sniffer) seen() (all [][]byte) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(x.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return all
		}
		must(x.t, err)
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		all = append(all, bytes.Clone(b[:n]))
	}
}

// await a frame that is as wanted.
func (x *sniffer) await(what string, want func([]byte) bool) []byte {
	x.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		x.kept = append(x.kept, x.seen()...)
		for i, f := range x.kept {
			if want(f) {
				x.kept = x.kept[i+1:]
				return f
			}
		}
		x.kept = nil
		p := []unix.PollFd{{Fd: int32(x.fd), Events: unix.POLLIN}}
		_, _ = unix.Poll(p, 100)
	}
	x.t.Fatalf("never saw %s", what)
	return nil
}

// A network with two guests on h1 and one on h2, of a VNI and the subnets that all use.

func testSegment(vni uint32, ports ...plan.Port) plan.Segment {
	return plan.Segment{ID: fmt.Sprintf("alpha.shop.net%d", vni), Version: 1, VNI: vni, MTU: 1370, Ports: ports,
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")}}
}

// testPort number i of network vni, on host h.
func testPort(vni uint32, i byte, h *labHost) plan.Port {
	return plan.Port{VEE: vee.ID("alpha." + strings.Repeat(string('a'+rune(i)), 9) + string('a'+rune(vni))), MAC: fmt.Sprintf("52:54:00:00:%02x:%02x", vni, i),
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, 10 + i}), netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", 0x10+int(i)))},
		Host:      h.name, Underlay: h.underlay}
}
