package responder

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cable has a responder's end and a guest's, each in a network namespace of its own. It
// needs root.
type cable struct{ host, guest netns.NsHandle }

// in runs f in one of the namespaces. The thread is not used again.
func in(t *testing.T, ns netns.NsHandle, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- errors.Join(netns.Set(ns), f())
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func namespace(t *testing.T) (ns netns.NsHandle) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		ns, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("making a network namespace (needs root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func newCable(t *testing.T, mac string, gateways ...string) cable {
	t.Helper()
	c := cable{namespace(t), namespace(t)}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	in(t, c.host, func() error {
		a := netlink.NewLinkAttrs()
		a.Name = "gw"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "eth0", PeerHardwareAddr: hw, PeerNamespace: netlink.NsFd(c.guest)}); err != nil {
			return err
		}
		link, err := netlink.LinkByName("gw")
		if err != nil {
			return err
		}
		errs := []error{netlink.LinkSetUp(link)}
		for _, g := range gateways {
			address, err := netlink.ParseAddr(g)
			if err == nil {
				address.Flags = unix.IFA_F_NODAD
				err = netlink.AddrAdd(link, address)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	in(t, c.guest, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	return c
}

// socket of the guest.
func (c cable) socket(t *testing.T, network, at string) (s net.PacketConn) {
	t.Helper()
	in(t, c.guest, func() (err error) {
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var set error
			err := c.Control(func(fd uintptr) { set = unix.BindToDevice(int(fd), "eth0") })
			return errors.Join(err, set)
		}}
		s, err = config.ListenPacket(t.Context(), network, at)
		return err
	})
	t.Cleanup(func() { s.Close() })
	return s
}

// exchange sends a question again and again until an answer is taken.
func exchange(ctx context.Context, t *testing.T, s net.PacketConn, question []byte, to net.Addr, take func([]byte) bool) {
	t.Helper()
	buffer := make([]byte, 4096)
	for ctx.Err() == nil {
		_, err := s.WriteTo(question, to) // fails while the device comes up
		for err == nil {
			var n int
			if err = s.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if n, _, err = s.ReadFrom(buffer); err == nil && take(buffer[:n]) {
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("no answer from %v", to)
}

func TestResponder(t *testing.T) {
	const mac = "02:52:0a:09:00:02"
	c := newCable(t, mac, "10.9.0.1/20", "fd00:9::1/64")
	segment := back()
	var sockets *Sockets
	in(t, c.host, func() (err error) {
		sockets, err = Listen(t.Context(), "gw", segment.Gateways)
		return err
	})
	other := front()
	other.Ports[0].Host = "b"
	directory := &Directory{}
	directory.replace(nil, []*Table{NewTable(other, "a", nil)})
	r := New(Config{Host: "a", Sockets: sockets, Directory: directory, Log: slog.New(slog.DiscardHandler),
		Resolve: func(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
			answer := new(dns.Msg).SetReply(q)
			answer.Answer = []dns.RR{&dns.TXT{Hdr: header(q.Question[0].Name, dns.TypeTXT), Txt: []string{"from afar"}}}
			return answer, nil
		}})
	closed := false
	t.Cleanup(func() {
		if !closed {
			r.Close()
		}
	})
	none := plan.Segment{ID: "alpha.other", Subnets: segment.Subnets, Gateways: segment.Gateways}
	r.Set(none, segment)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	hello := c.socket(t, "udp4", "0.0.0.0:68")
	exchange(ctx, t, hello, discover(t, mac), &net.UDPAddr{IP: net.IPv4bcast, Port: 67}, func(b []byte) bool {
		offer, err := dhcpv4.FromBytes(b)
		return err == nil && offer.MessageType() == dhcpv4.MessageTypeOffer && same(offer.YourIPAddr, addr("10.9.0.2"))
	})
	hw, _ := net.ParseMAC(mac)
	solicit, err := dhcpv6.NewSolicit(hw)
	if err != nil {
		t.Fatal(err)
	}
	hello6 := c.socket(t, "udp6", "[::]:546")
	exchange(ctx, t, hello6, solicit.ToBytes(), &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547}, func(b []byte) bool {
		m, err := dhcpv6.MessageFromBytes(b)
		return err == nil && m.MessageType == dhcpv6.MessageTypeAdvertise && same(m.Options.OneIANA().Options.OneAddress().IPv6Addr, addr("fd00:9::2"))
	})
	routers := c.socket(t, "ip6:ipv6-icmp", "::")
	icmp := ipv6.NewPacketConn(routers)
	if err := errors.Join(icmp.SetMulticastHopLimit(255), icmp.SetControlMessage(ipv6.FlagHopLimit, true)); err != nil {
		t.Fatal(err)
	}
	exchange(ctx, t, routers, []byte{133, 0, 0, 0, 0, 0, 0, 0}, &net.IPAddr{IP: net.ParseIP("ff02::2")}, func(b []byte) bool {
		return len(b) > 16 && b[0] == 134 && slices.Equal(b[4:], NewTable(segment, "a", nil).Advertisement()[4:])
	})

	in(t, c.guest, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 0, 2), Mask: net.CIDRMask(20, 32)}})
	})
	names := c.socket(t, "udp4", "10.9.0.2:0")
	at := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.9.0.1:53"))
	resolve := func(name string, kind uint16, want func(*dns.Msg) bool) {
		t.Helper()
		q := new(dns.Msg).SetQuestion(name, kind)
		text, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		exchange(ctx, t, names, text, at, func(b []byte) bool {
			var m dns.Msg
			return m.Unpack(b) == nil && m.Id == q.Id && want(&m)
		})
	}
	resolve("db-1.db.shop.alpha.internal.", dns.TypeA, func(m *dns.Msg) bool { return m.Rcode == dns.RcodeNameError })
	segment.Ports = slices.Clone(segment.Ports)
	segment.Ports[2].Names = []string{"db-1.db"}
	r.Set(segment)
	resolve("db-1.db.shop.alpha.internal.", dns.TypeA, func(m *dns.Msg) bool { return len(m.Answer) == 1 })
	// It is on a public network of this host as well: other names are asked of the resolver.
	resolve("example.org.", dns.TypeTXT, func(m *dns.Msg) bool { return len(m.Answer) == 1 && m.Rcode == dns.RcodeSuccess })

	// More than fits is cut, and whole by TCP.
	segment.Ports = segment.Ports[:1:1]
	for i := range 100 {
		segment.Ports = append(segment.Ports, plan.Port{VEE: "alpha.x", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 1, byte(i)})}, Names: []string{"many"}})
	}
	r.Set(segment)
	resolve("many.shop.alpha.internal.", dns.TypeA, func(m *dns.Msg) bool { return m.Truncated })
	in(t, c.guest, func() error {
		conn, err := net.Dial("tcp", at.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		m, _, err := (&dns.Client{Net: "tcp"}).ExchangeWithConnContext(ctx, new(dns.Msg).SetQuestion("many.shop.alpha.internal.", dns.TypeA), &dns.Conn{Conn: conn})
		if err == nil && len(m.Answer) != 100 {
			t.Errorf("%d answers by TCP", len(m.Answer))
		}
		return err
	})
	closed = true
	if err := r.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if left := directory.all(); len(left) != 1 {
		t.Errorf("%d segments are left in the directory", len(left))
	}
}
