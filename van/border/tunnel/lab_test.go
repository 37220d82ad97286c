package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/van"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience with a machine that is busy.
const patience = 30 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// space is a network namespace that ends with the test.
type space struct {
	t  testing.TB
	ns netns.NsHandle
	h  *netlink.Handle
}

func newSpace(t testing.TB) *space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run make test as root (make check leaves it out)")
	}
	s := &space{t: t}
	must(t, onThread(func() (err error) {
		if s.ns, err = netns.New(); err != nil {
			return err
		}
		for _, file := range []string{"ipv6/conf/default/dad_transmits", "ipv6/conf/default/accept_dad", "ipv6/conf/all/accept_dad"} {
			err = errors.Join(err, os.WriteFile("/proc/sys/net/"+file, []byte("0"), 0o644))
		}
		return err
	}))
	var err error
	s.h, err = netlink.NewHandleAt(s.ns)
	must(t, err)
	t.Cleanup(func() { s.h.Close(); must(t, s.ns.Close()) })
	s.up("lo")
	return s
}

// onThread runs f on a thread that ends with it, and whose namespace it may change.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the first thread does not end
			err := onThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (s *space) do(f func() error) {
	s.t.Helper()
	must(s.t, s.try(f))
}

func (s *space) try(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.ns); err != nil {
			return err
		}
		return f()
	})
}

func (s *space) up(name string, addresses ...string) {
	s.t.Helper()
	l, err := s.h.LinkByName(name)
	must(s.t, err)
	for _, text := range addresses {
		a, err := netlink.ParseAddr(text)
		must(s.t, err)
		a.Flags = unix.IFA_F_NODAD
		must(s.t, s.h.AddrAdd(l, a))
	}
	must(s.t, s.h.LinkSetUp(l))
}

// veth from s to o; mac is of s's end.
func (s *space) veth(name string, o *space, peer, mac string, mtu int) {
	s.t.Helper()
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = name, mtu
	if mac != "" {
		a.HardwareAddr, _ = net.ParseMAC(mac)
	}
	must(s.t, s.h.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: peer, PeerNamespace: netlink.NsFd(int(o.ns)), PeerMTU: 1500}))
}

func (s *space) mtu(name string, mtu int) {
	s.t.Helper()
	l, err := s.h.LinkByName(name)
	must(s.t, err)
	must(s.t, s.h.LinkSetMTU(l, mtu))
}

// lab is some sites, each a proxy and a host, whose proxies alone are on one wire. All sites
// use the same addresses inside.
type lab struct {
	t     testing.TB
	wire  *space
	sites []*labSite
}

type labSite struct {
	t          testing.TB
	name       string
	outside    string
	proxy, hst *space
	host       *van.Network // of hst
	border     *van.Network // of proxy
	key        PrivateKey
	tunnel     *Tunnel
}

const (
	labPort       = 51820
	proxyUnderlay = "10.50.0.1"
	hostUnderlay  = "10.50.0.11"
)

func newLab(t testing.TB, names ...string) *lab {
	t.Helper()
	l := &lab{t: t, wire: newSpace(t)}
	a := netlink.NewLinkAttrs()
	a.Name = "wire0"
	must(t, l.wire.h.LinkAdd(&netlink.Bridge{LinkAttrs: a}))
	l.wire.up("wire0")
	for i, name := range names {
		s := &labSite{t: t, name: name, outside: fmt.Sprintf("192.0.2.%d", i+1), proxy: newSpace(t), hst: newSpace(t), key: NewKey()}
		s.proxy.veth("wan", l.wire, name, "", 1500)
		leg, err := l.wire.h.LinkByName(name)
		must(t, err)
		bridge, err := l.wire.h.LinkByName("wire0")
		must(t, err)
		must(t, l.wire.h.LinkSetMaster(leg, bridge))
		l.wire.up(name)
		s.proxy.up("wan", s.outside+"/24")
		s.hst.veth("up0", s.proxy, "in", "", 1500)
		s.hst.up("up0", hostUnderlay+"/24")
		s.proxy.up("in", proxyUnderlay+"/24")
		s.hst.do(func() (err error) {
			s.host, err = van.Open(van.Config{Host: "h1", Underlay: netip.MustParseAddr(hostUnderlay), Bridge: "rsv0", Log: quiet})
			return err
		})
		t.Cleanup(func() { must(t, s.host.Destroy()) })
		s.open()
		t.Cleanup(s.close)
		l.sites = append(l.sites, s)
	}
	return l
}

// open what is a process of its own at a real site: the proxy.
func (s *labSite) open() {
	s.t.Helper()
	s.proxy.do(func() (err error) {
		s.border, err = van.Open(van.Config{Host: "proxy", Underlay: netip.MustParseAddr(proxyUnderlay), Border: true, Log: quiet})
		return err
	})
	var err error
	s.tunnel, err = Open(Config{Key: s.key, Port: labPort, Networks: s.border, Every: 50 * time.Millisecond, Log: quiet})
	must(s.t, err)
}

func (s *labSite) close() {
	s.tunnel.Close()
	must(s.t, s.border.Close())
}

func (s *labSite) peer() border.Peer {
	return border.Peer{Site: s.name, Key: s.key.Public().String(), Tunnel: fmt.Sprintf("%s:%d", s.outside, labPort)}
}

// peersOf a site: all others.
func (l *lab) peersOf(s *labSite) (peers []border.Peer) {
	for _, o := range l.sites {
		if o != s {
			peers = append(peers, o.peer())
		}
	}
	return peers
}

// network that some sites share.
type network struct {
	id     string
	vnis   map[string]uint32 // each site's own
	tunnel uint32
	net4   string // first three bytes
	guests []*guest
	// entered at this site: its proxy has a port of its own.
	entered *labSite
}

// guest is a namespace with a network card.
type guest struct {
	*space
	name string
	site *labSite
	port plan.Port
}

// guest number i of a network, at a site.
func (l *lab) guest(n *network, s *labSite, i int) *guest {
	l.t.Helper()
	g := &guest{space: newSpace(l.t), name: fmt.Sprintf("%s-%d", s.name, i), site: s}
	g.port = plan.Port{VEE: vee.ID(fmt.Sprintf("alpha.%s%c%c", strings.Repeat("g", 8), 'a'+n.tunnel, 'a'+i)), MAC: fmt.Sprintf("52:54:00:00:%02x:%02x", n.tunnel, i),
		Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("%s.%d", n.net4, 10+i)), netip.MustParseAddr(fmt.Sprintf("fd00:%x::%x", n.tunnel, 10+i))}}
	g.veth("eth0", s.hst, g.port.Tap(), g.port.MAC, guestMTU)
	g.up("eth0", g.port.Addresses[0].String()+"/24", g.port.Addresses[1].String()+"/64")
	_, err := s.host.Plug(g.port.VEE, 0)
	must(l.t, err)
	n.guests = append(n.guests, g)
	return g
}

// at is the network as a site sees it.
func (n *network) at(s *labSite) border.Segment {
	g := plan.Segment{ID: n.id, Version: 1, VNI: n.vnis[s.name], MTU: guestMTU,
		Subnets:  []netip.Prefix{netip.MustParsePrefix(n.net4 + ".0/24"), netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/64", n.tunnel))},
		Gateways: []netip.Addr{netip.MustParseAddr(n.net4 + ".1"), netip.MustParseAddr(fmt.Sprintf("fd00:%x::1", n.tunnel))}}
	for _, o := range n.guests {
		p := o.port
		if p.Host, p.Underlay = "h1", netip.MustParseAddr(hostUnderlay); o.site != s {
			p.Host, p.Underlay = border.SiteHost(o.site.name), netip.MustParseAddr(proxyUnderlay)
		}
		g.Ports = append(g.Ports, p)
	}
	if n.entered != nil {
		p := plan.Port{VEE: "alpha.dddddddddd", MAC: fmt.Sprintf("52:54:00:00:%02x:fe", n.tunnel), Addresses: []netip.Addr{netip.MustParseAddr(n.net4 + ".254")},
			Host: plan.AtBorder, Underlay: netip.MustParseAddr(proxyUnderlay)}
		if n.entered != s {
			p.Host = border.SiteHost(n.entered.name)
		}
		g.Ports = append(g.Ports, p)
	}
	return border.Segment{Segment: g, Tunnel: n.tunnel}
}

// put the networks to all sites' hosts and proxies.
func (l *lab) put(networks ...*network) {
	l.t.Helper()
	for _, s := range l.sites {
		var shared []border.Segment
		var all []plan.Segment
		for _, n := range networks {
			if n.vnis[s.name] == 0 {
				continue
			}
			g := n.at(s)
			shared, all = append(shared, g), append(all, g.Segment)
		}
		must(l.t, s.host.Apply(all))
		must(l.t, s.tunnel.Put(l.t.Context(), l.peersOf(s), shared))
		s.settled()
	}
}

// settled asserts that the kernel of the proxy has what it should.
func (s *labSite) settled() {
	s.t.Helper()
	have, want, err := s.border.Show()
	must(s.t, err)
	for _, c := range plan.Diff(have, want) {
		s.t.Errorf("proxy of %s: %s", s.name, c)
	}
}

// serve takes one connection after the other and sends back what comes, until the test ends.
func (g *guest) serve(port int) {
	g.t.Helper()
	var ln net.Listener
	g.do(func() (err error) { ln, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); return err })
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				_, _ = io.Copy(c, c)
				c.Close()
			})
		}
	})
	g.t.Cleanup(func() { cancel(); ln.Close(); wg.Wait() })
}

func (g *guest) dial(o *guest, family, port int) (c net.Conn, err error) {
	err = g.try(func() error {
		c, err = (&net.Dialer{Timeout: patience}).Dial("tcp", netip.AddrPortFrom(o.port.Addresses[family], uint16(port)).String())
		return err
	})
	return c, err
}

// reaches asserts that a connection passes so many bytes there and back, by each family.
func (g *guest) reaches(o *guest, bytes int) {
	g.t.Helper()
	for family := range 2 {
		c, err := g.dial(o, family, 7)
		// The first handshake of a tunnel may take longer than the guest's kernel asks for a MAC.
		for until := time.Now().Add(patience); err != nil && time.Now().Before(until); {
			c, err = g.dial(o, family, 7)
		}
		if err != nil {
			g.t.Errorf("%s does not reach %s by family %d: %v", g.name, o.name, family, err)
			continue
		}
		if err := roundTrip(c, bytes); err != nil {
			g.t.Errorf("%s to %s by family %d: %v", g.name, o.name, family, err)
		}
		c.Close()
	}
}

func roundTrip(c net.Conn, n int) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	sent := make([]byte, n)
	for i := range sent {
		sent[i] = byte(i * 31 / 7)
	}
	wrote := make(chan error, 1)
	go func() { _, err := c.Write(sent); wrote <- err }()
	got := make([]byte, n)
	_, err := io.ReadFull(c, got)
	if err := errors.Join(err, <-wrote); err != nil {
		return err
	}
	if !slices.Equal(sent, got) {
		return errors.New("what came back is not what was sent")
	}
	return nil
}

// never asserts that no connection comes about.
func (g *guest) never(o *guest) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 300*time.Millisecond)
	defer cancel()
	_ = g.try(func() error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(o.port.Addresses[0], 7).String())
		if err == nil {
			c.Close()
			g.t.Errorf("%s reaches %s", g.name, o.name)
		}
		return nil
	})
}
