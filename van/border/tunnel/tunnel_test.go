package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/plan"
)

// shared is a network of two or more sites, with one guest at each that serves.
func (l *lab) shared(tunnel uint32, net4 string, sites ...*labSite) *network {
	n := &network{id: fmt.Sprintf("alpha.shop/net%d", tunnel), vnis: map[string]uint32{}, tunnel: tunnel, net4: net4}
	for i, s := range sites {
		n.vnis[s.name] = 100*tunnel + uint32(i)
		l.guest(n, s, i+1).serve(7)
	}
	return n
}

func TestTwoSitesShareANetworkAndNothingIsLeftOfIt(t *testing.T) {
	l := newLab(t, "alpha", "beta")
	n := l.shared(3, "10.1.0", l.sites...)
	l.put(n)
	a, b := n.guests[0], n.guests[1]
	a.reaches(b, 1<<20)
	b.reaches(a, 1<<20)
	for _, p := range l.sites[0].tunnel.Peers() {
		if p.Site != "beta" || p.Handshake.IsZero() || p.Received < 1<<20 || p.Sent < 1<<20 {
			t.Errorf("the peer is told as %+v", p)
		}
	}
	l.put()
	a.never(b)
	for _, s := range l.sites {
		all, err := s.proxy.h.LinkList()
		must(t, err)
		for _, d := range all {
			if name := d.Attrs().Name; strings.HasPrefix(name, "r") {
				t.Errorf("proxy of %s: device %s is left", s.name, name)
			}
		}
		if len(s.tunnel.wires) > 0 {
			t.Errorf("proxy of %s has %d wires", s.name, len(s.tunnel.wires))
		}
	}
}

// TestThreeSitesAreAMesh: each pair speaks directly, and what comes from one site never goes
// to another, though a site may say that the way is through us.
func TestThreeSitesAreAMesh(t *testing.T) {
	l := newLab(t, "alpha", "beta", "gamma")
	n := l.shared(3, "10.1.0", l.sites...)
	l.put(n)
	for _, from := range n.guests {
		for _, to := range n.guests {
			if from != to {
				from.reaches(to, 1<<16)
			}
		}
	}
	// Alpha takes beta for the way to gamma's guest.
	alpha, beta := l.sites[0], l.sites[1]
	before := beta.tunnel.Peers()
	g := n.at(alpha)
	for i, p := range g.Ports {
		if p.Host == border.SiteHost("gamma") {
			g.Ports[i].Host = border.SiteHost("beta")
		}
	}
	must(t, alpha.tunnel.Put(t.Context(), l.peersOf(alpha), []border.Segment{g}))
	n.guests[0].never(n.guests[2])
	n.guests[0].reaches(n.guests[1], 1<<10) // what was sent before it has arrived
	after := beta.tunnel.Peers()
	if grown := after[1].Sent - before[1].Sent; after[1].Site != "gamma" || grown > 1<<10 {
		t.Errorf("beta has passed %v on to %s", grown, after[1].Site)
	}
}

// TestNetworksAreApart: two sites have networks of the same VNIs and addresses, and share
// only one that has other numbers at each.
func TestNetworksAreApart(t *testing.T) {
	l := newLab(t, "alpha", "beta")
	alpha, beta := l.sites[0], l.sites[1]
	n := &network{id: "alpha.shop/shared", vnis: map[string]uint32{"alpha": 5, "beta": 6}, tunnel: 7, net4: "10.1.0"}
	a, b := l.guest(n, alpha, 1), l.guest(n, beta, 2)
	ownA := &network{id: "alpha.own/net", vnis: map[string]uint32{"alpha": 6}, tunnel: 8, net4: "10.1.0"}
	ownB := &network{id: "beta.own/net", vnis: map[string]uint32{"beta": 5}, tunnel: 9, net4: "10.1.0"}
	a2, b2 := l.guest(ownA, alpha, 1), l.guest(ownB, beta, 2) // the addresses of a and b
	for _, g := range []*guest{a, b, a2, b2} {
		g.serve(7)
	}
	l.put(n, ownA, ownB)
	a.reaches(b, 1<<16)
	b.reaches(a, 1<<16)
	a2.never(b2)

	// Beta's own network is not shared, whatever alpha says.
	lie := n.at(alpha)
	lie.ID, lie.Tunnel = "beta.own/net", ownB.tunnel
	must(t, alpha.tunnel.Put(t.Context(), l.peersOf(alpha), []border.Segment{lie}))
	a.never(b2)
	a.never(b)
	if n := beta.tunnel.Dropped()["of a network that is not shared with the sender"]; n == 0 {
		t.Errorf("beta has dropped %v: want some of a network that is not shared", beta.tunnel.Dropped())
	}
}

// TestOnlyWhatIsThereMaySend: a site that says that its guest has a MAC, or an address, which
// it has not, is not believed; nor is a guest's own word.
func TestOnlyWhatIsThereMaySend(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(p *plan.Port)
	}{
		{"MAC", func(p *plan.Port) { p.MAC = "52:54:00:00:66:66" }},
		{"address", func(p *plan.Port) {
			p.Addresses = []netip.Addr{netip.MustParseAddr("10.1.0.99"), netip.MustParseAddr("fd00:3::99")}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, "alpha", "beta")
			n := l.shared(3, "10.1.0", l.sites...)
			a, b := n.guests[0], n.guests[1]
			l.put(n)
			a.reaches(b, 1<<10)
			// Beta's host and proxy go by the lie, and so does the guest.
			beta := l.sites[1]
			g := n.at(beta)
			for i := range g.Ports {
				if g.Ports[i].VEE == b.port.VEE {
					c.lie(&g.Ports[i])
					b.change(g.Ports[i])
				}
			}
			must(t, beta.host.Apply([]plan.Segment{g.Segment}))
			must(t, beta.tunnel.Put(t.Context(), l.peersOf(beta), []border.Segment{g}))
			heard := l.sites[0].tunnel.Peers()[0].Received
			b.never(a)
			if now := l.sites[0].tunnel.Peers()[0].Received; now == heard {
				t.Errorf("nothing came to alpha that it could have refused")
			}
		})
	}
}

// change a guest to what the port says.
func (g *guest) change(p plan.Port) {
	g.t.Helper()
	d, err := g.h.LinkByName("eth0")
	must(g.t, err)
	mac, err := net.ParseMAC(p.MAC)
	must(g.t, err)
	must(g.t, g.h.LinkSetHardwareAddr(d, mac))
	old, err := g.h.AddrList(d, 2) // AF_INET
	must(g.t, err)
	for _, a := range old {
		must(g.t, g.h.AddrDel(d, &a))
	}
	g.up("eth0", p.Addresses[0].String()+"/24")
}

// TestNoBlackHole: guests that were not offered the MTU of the way to the other site, and
// ways that carry less than is usual.
func TestNoBlackHole(t *testing.T) {
	l := newLab(t, "alpha", "beta")
	n := l.shared(3, "10.1.0", l.sites...)
	a, b := n.guests[0], n.guests[1]
	l.put(n)
	a.mtu("eth0", 1500)
	b.mtu("eth0", 1500)
	a.reaches(b, 1<<20)
	b.reaches(a, 1<<20)
	// Datagrams that may not be fragmented: the first is lost, then the guest knows.
	for _, size := range []int{1500, 1400} {
		a.learns(b, size, guestMTU)
	}
	a.fragments(b, 1500)

	l.sites[0].proxy.mtu("wan", 1400)
	l.sites[1].proxy.mtu("wan", 1400)
	for end := time.Now().Add(patience); l.sites[0].tunnel.Peers()[0].MTU == guestMTU || l.sites[1].tunnel.Peers()[0].MTU == guestMTU; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the proxies never noticed that the way has become smaller")
		}
	}
	mtu := l.sites[0].tunnel.Peers()[0].MTU
	a.learns(b, 1360, mtu)
	c, err := a.dial(b, 0, 7)
	must(t, err)
	defer c.Close()
	if err := roundTrip(c, 1<<20); err != nil {
		t.Errorf("by a way of 1400 bytes: %v", err)
	}
}

// udp socket of a guest to another, with or without the leave to fragment.
func (g *guest) udp(o *guest, mode int, f func(fd int)) {
	g.t.Helper()
	g.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, mode); err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: o.port.Addresses[0].As4()}); err != nil {
			return err
		}
		f(fd)
		return nil
	})
}

// learns asserts that a guest that sends packets of a size is told which one fits.
func (g *guest) learns(o *guest, size, mtu int) {
	g.t.Helper()
	g.udp(o, unix.IP_PMTUDISC_DO, func(fd int) {
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			_ = unix.Send(fd, make([]byte, size-ip4Len-udpLen), 0) // what is too big is refused, once that is known
			if got, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU); err == nil && got == mtu {
				return
			}
		}
		g.t.Errorf("%s sends packets of %d bytes and is never told that %d fit", g.name, size, mtu)
	})
}

// fragments asserts that a packet that may be fragmented arrives.
func (g *guest) fragments(o *guest, size int) {
	g.t.Helper()
	var in net.PacketConn
	o.do(func() (err error) { in, err = net.ListenPacket("udp4", ":9"); return err })
	defer in.Close()
	must(g.t, in.SetReadDeadline(time.Now().Add(patience)))
	want := size - ip4Len - udpLen
	g.udp(o, unix.IP_PMTUDISC_INTERFACE, func(fd int) { // it does not heed what was learned
		must(g.t, unix.Send(fd, make([]byte, want), 0))
	})
	b := make([]byte, 4096)
	if n, _, err := in.ReadFrom(b); err != nil || n != want {
		g.t.Errorf("%s got %d bytes, %v: want %d", o.name, n, err, want)
	}
}

func TestConnectionsSurviveThatAProxyIsRestarted(t *testing.T) {
	l := newLab(t, "alpha", "beta")
	n := l.shared(3, "10.1.0", l.sites...)
	l.put(n)
	c, err := n.guests[0].dial(n.guests[1], 0, 7)
	must(t, err)
	defer c.Close()
	must(t, roundTrip(c, 1<<16))
	for _, s := range l.sites {
		s.close()
		lost := make(chan error, 1)
		go func() { lost <- roundTrip(c, 1<<16) }() // into the void, and again
		s.open()
		must(t, s.tunnel.Put(t.Context(), l.peersOf(s), []border.Segment{n.at(s)})) // as it was kept
		s.settled()
		if err := <-lost; err != nil {
			t.Errorf("after the proxy of %s was restarted: %v", s.name, err)
		}
	}
}

// TestWhatSomebodyDeletesIsMadeAnew: a TAP, a bridge, and all rules.
func TestWhatSomebodyDeletesIsMadeAnew(t *testing.T) {
	l := newLab(t, "alpha", "beta")
	n := l.shared(3, "10.1.0", l.sites...)
	l.put(n)
	s := l.sites[0]
	for _, name := range []string{plan.BorderTap(n.vnis["alpha"], "beta"), plan.BridgeName(n.vnis["alpha"])} {
		d, err := s.proxy.h.LinkByName(name)
		must(t, err)
		must(t, s.proxy.h.LinkDel(d))
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			_, err := s.border.Mend()
			must(t, err)
			must(t, s.tunnel.Put(t.Context(), l.peersOf(s), []border.Segment{n.at(s)}))
			have, want, err := s.border.Show()
			must(t, err)
			if len(plan.Diff(have, want)) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("without %s the kernel stays without %v", name, plan.Diff(have, want))
			}
		}
		n.guests[0].reaches(n.guests[1], 1<<10)
	}
}

func TestAProxyWithAnotherKeyIsNobody(t *testing.T) {
	l := newLab(t, "alpha", "beta")
	n := l.shared(3, "10.1.0", l.sites...)
	l.put(n)
	alpha, beta := l.sites[0], l.sites[1]
	n.guests[0].reaches(n.guests[1], 1<<10)
	beta.close()
	beta.key = NewKey()
	beta.open()
	must(t, beta.tunnel.Put(t.Context(), l.peersOf(beta), []border.Segment{n.at(beta)}))
	n.guests[0].never(n.guests[1])
	n.guests[1].never(n.guests[0])
	if p := beta.tunnel.Peers()[0]; !p.Handshake.IsZero() {
		t.Errorf("a proxy with a key that nobody knows is spoken to: %+v", p)
	}
	// Once the partner is told of the new key, all is well.
	must(t, alpha.tunnel.Put(t.Context(), l.peersOf(alpha), []border.Segment{n.at(alpha)}))
	n.guests[0].reaches(n.guests[1], 1<<10)
}

func TestAPortThatIsTakenIsTold(t *testing.T) {
	l := newLab(t, "alpha")
	s := l.sites[0]
	s.proxy.do(func() error {
		c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", labPort+1))
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		return nil
	})
	second, err := Open(Config{Key: NewKey(), Port: labPort + 1, Networks: s.border, Log: quiet})
	if err == nil {
		second.Close()
		t.Fatal("two have one port")
	}
	if !errors.Is(err, unix.EADDRINUSE) && !strings.Contains(err.Error(), "UDP port 51821") {
		t.Errorf("it fails with %v", err)
	}
}
