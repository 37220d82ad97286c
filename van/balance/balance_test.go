package balance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"

	"github.com/reservoir-cloud/reservoir/internal/ownnet"
	"github.com/reservoir-cloud/reservoir/van/plan"
)

func TestMain(m *testing.M) {
	ownnet.Main(m, false, func(m *testing.M) int {
		goleak.VerifyTestMain(m)
		return 0
	})
}

// stage is a site's namespace (this process's), with a network of backends, each in a
// namespace of its own, and a client behind another link.
type stage struct {
	t      *testing.T
	client netns.NsHandle
	ends   []netns.NsHandle
}

var (
	siteIP   = netip.MustParseAddr("10.77.0.1")
	clientIP = netip.MustParseAddr("10.78.0.2")
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// within runs f on a thread in namespace ns.
func within(t *testing.T, ns netns.NsHandle, f func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	must(t, err)
	defer home.Close()
	must(t, netns.Set(ns))
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(err) // the thread is of no use to anybody now
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// attach a new namespace by a link pair: here has the address here, the namespace there,
// which is also led back to here by default.
func attach(t *testing.T, name, here, there string) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	must(t, err)
	defer home.Close()
	ns, err := netns.New()
	must(t, err)
	must(t, netns.Set(home))
	t.Cleanup(func() { ns.Close() })
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "up0", PeerNamespace: netlink.NsFd(ns)}))
	l, err := netlink.LinkByName(name)
	must(t, err)
	t.Cleanup(func() { _ = netlink.LinkDel(l) })
	give := func(h *netlink.Handle, link, cidr string) {
		l, err := h.LinkByName(link)
		must(t, err)
		a, err := netlink.ParseAddr(cidr)
		must(t, err)
		must(t, h.AddrAdd(l, a))
		must(t, h.LinkSetUp(l))
	}
	mine, err := netlink.NewHandle()
	must(t, err)
	defer mine.Close()
	lo, err := mine.LinkByName("lo")
	must(t, err)
	must(t, mine.LinkSetUp(lo))
	give(mine, name, here)
	theirs, err := netlink.NewHandleAt(ns)
	must(t, err)
	defer theirs.Close()
	give(theirs, "up0", there)
	gw, _, err := net.ParseCIDR(here)
	must(t, err)
	must(t, theirs.RouteAdd(&netlink.Route{Gw: gw}))
	return ns
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t}
	s.client = attach(t, "client", "10.78.0.1/24", clientIP.String()+"/24")
	must(t, forwardingOff())
	return s
}

func forwardingOff() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644) }

// backend i answers every connection with its name and what it is told; path /ill answers
// as *status says over HTTP on port 81.
type server struct {
	at     netip.AddrPort
	status atomic.Int32
	close  func()
}

func (s *stage) backend(name string) *server {
	s.t.Helper()
	i := len(s.ends)
	if i == 0 {
		a, _ := netlink.ParseAddr(siteIP.String() + "/32")
		lo, _ := netlink.LinkByName("lo")
		if err := netlink.AddrAdd(lo, a); err != nil && !errors.Is(err, os.ErrExist) {
			s.t.Fatal(err)
		}
	}
	ns := attach(s.t, fmt.Sprintf("b%d", i), fmt.Sprintf("10.79.%d.1/24", i), fmt.Sprintf("10.79.%d.2/24", i))
	s.ends = append(s.ends, ns)
	srv := &server{at: netip.MustParseAddrPort(fmt.Sprintf("10.79.%d.2:80", i))}
	srv.status.Store(200)
	var ln, hl net.Listener
	var pc net.PacketConn
	within(s.t, ns, func() {
		var err, err2, err3 error
		ln, err = net.Listen("tcp", ":80")
		hl, err2 = net.Listen("tcp", ":81")
		pc, err3 = net.ListenPacket("udp", ":53")
		must(s.t, errors.Join(err, err2, err3))
	})
	go serve(ln, name)
	go echo(pc, name)
	h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(int(srv.status.Load()))
		fmt.Fprintln(w, name)
	})}
	go h.Serve(hl)
	srv.close = func() { ln.Close(); h.Close(); pc.Close() }
	s.t.Cleanup(srv.close)
	return srv
}

// serve says its name for each line that it reads, until ln is closed.
func serve(ln net.Listener, name string) {
	closed := make(chan struct{})
	defer close(closed)
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			<-closed
			c.Close()
		}()
		go func() {
			defer c.Close()
			for r := bufio.NewReader(c); ; {
				if _, err := r.ReadString('\n'); err != nil {
					return
				}
				fmt.Fprintln(c, name)
			}
		}()
	}
}

func echo(pc net.PacketConn, name string) {
	b := make([]byte, 64)
	for {
		_, from, err := pc.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = pc.WriteTo([]byte(name), from)
	}
}

// dial from the client's namespace.
func (s *stage) dial(network, address string) (c net.Conn, err error) {
	within(s.t, s.client, func() { c, err = net.DialTimeout(network, address, 2*time.Second) })
	return c, err
}

// say a line on c, and hear who answers.
func say(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return "", err
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	if n > 0 && b[n-1] == '\n' {
		n--
	}
	return string(b[:n]), err
}

// ask who answers a new connection.
func (s *stage) ask(network, address string) string {
	c, err := s.dial(network, address)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "refused"
	}
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	who, err := say(c)
	if err != nil {
		return err.Error()
	}
	return who
}

func (s *stage) eventually(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func open(t *testing.T, change ...func(*Config)) *Balancer {
	t.Helper()
	cfg := Config{Address: siteIP, First: 20000, Last: 20009, Every: 200 * time.Millisecond, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, f := range change {
		f(&cfg)
	}
	b := New(cfg)
	t.Cleanup(func() {
		must(t, b.Clear())
		b.Close()
	})
	return b
}

func backends(of ...*server) (list []plan.Backend) {
	for _, s := range of {
		list = append(list, plan.Backend{Address: s.at})
	}
	return list
}

func set(t *testing.T, b *Balancer, p plan.Point) string {
	t.Helper()
	a, err := b.Set(context.Background(), p)
	must(t, err)
	return a
}

func (s *stage) well(b *Balancer, key string, n int) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("%d backends of %s are well", n, key), func() bool {
		well := 0
		for _, k := range b.Show(key)[key] {
			if k.Healthy {
				well++
			}
		}
		return well == n
	})
}

func TestConnectionsAreSpreadAndStayWhereTheyAre(t *testing.T) {
	s := newStage(t)
	one, two := s.backend("one"), s.backend("two")
	b := open(t)
	p := plan.Point{Key: "web", Group: "g", Port: 80, Backends: backends(one, two)}
	at := set(t, b, p)
	if at != siteIP.String()+":20000" {
		t.Errorf("address %s", at)
	}
	s.well(b, "web", 2)
	heard := map[string]int{}
	for range 10 {
		heard[s.ask("tcp", at)]++
	}
	if heard["one"] != 5 || heard["two"] != 5 {
		t.Errorf("ten connections went to %v, want five each", heard)
	}
	local, err := net.Dial("tcp", at) // from the site's own machine, too
	must(t, err)
	defer local.Close()
	if who, err := say(local); who != "one" && who != "two" {
		t.Errorf("from the site itself: %q, %v", who, err)
	}

	held, err := s.dial("tcp", at)
	must(t, err)
	defer held.Close()
	first, err := say(held)
	must(t, err)
	leaving, staying := one, "two"
	if first == "two" {
		leaving, staying = two, "one"
	}
	for i := range p.Backends {
		p.Backends[i].Draining = p.Backends[i].Address == leaving.at
	}
	if again := set(t, b, p); again != at {
		t.Errorf("address %s after a change, was %s", again, at)
	}
	for range 6 {
		if who := s.ask("tcp", at); who != staying {
			t.Errorf("a new connection went to %s, which is being drained", who)
		}
	}
	if who, err := say(held); who != first {
		t.Errorf("the connection under way: %q, %v; want %s", who, err, first)
	}
	under := func() int {
		for _, k := range b.Show("web")["web"] {
			if k.Draining {
				return k.Connections
			}
		}
		return -1
	}
	// The check's own connections are not addressed to the access point.
	s.eventually("one connection is left", func() bool { return under() == 1 })
	other, err := s.dial("tcp", at)
	must(t, err)
	defer other.Close()
	// The time is over: what is left of the leaving one's is reset as soon as its client sends.
	p.Backends = slices.DeleteFunc(p.Backends, func(k plan.Backend) bool { return k.Draining })
	set(t, b, p)
	if _, err := say(held); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection to a backend that is gone: %v, want a reset", err)
	}
	if who, err := say(other); who != staying {
		t.Errorf("a connection to the other: %q, %v; want %s", who, err, staying)
	}
}

func TestNoBackendIsARefusal(t *testing.T) {
	s := newStage(t)
	one := s.backend("one")
	b := open(t)
	at := set(t, b, plan.Point{Key: "web", Port: 80})
	if who := s.ask("tcp", at); who != "refused" {
		t.Errorf("without a backend: %s", who)
	}
	ready := backends(one)
	ready[0].Ready = true // its guest says so: nothing is waited for
	set(t, b, plan.Point{Key: "web", Port: 80, Backends: ready})
	if who := s.ask("tcp", at); who != "one" {
		t.Errorf("with one: %s", who)
	}
	must(t, b.Remove("web"))
	must(t, b.Remove("web"))
	// A backend that does not answer yet, until its guest says that it does.
	one.close()
	silent := plan.Point{Key: "later", Port: 80, Backends: backends(one)}
	at = set(t, b, silent)
	s.eventually("it was checked", func() bool {
		k := b.Show("later")["later"]
		return !k[0].Healthy && strings.Contains(k[0].Why, "refused")
	})
	silent.Backends[0].Ready = true
	set(t, b, silent)
	if k := b.Show("later")["later"]; !k[0].Healthy {
		t.Errorf("a backend whose guest has just become ready: %+v", k[0])
	}
	must(t, b.Remove("later"))
	if who := s.ask("tcp", at); who != "refused" {
		t.Errorf("after its removal: %s", who)
	}
}

func TestTheIllGetNoNewConnections(t *testing.T) {
	s := newStage(t)
	one, two := s.backend("one"), s.backend("two")
	changed := make(chan string, 100)
	b := open(t, func(c *Config) { c.Changed = func(key string, _ plan.BackendState) { changed <- key } })
	p := plan.Point{Key: "web", Port: 80, Health: "/health"}
	for _, k := range []*server{one, two} {
		p.Backends = append(p.Backends, plan.Backend{Address: netip.AddrPortFrom(k.at.Addr(), 81)})
	}
	at := set(t, b, p)
	s.well(b, "web", 2)
	get := func() string {
		c, err := s.dial("tcp", at)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
		body, _ := io.ReadAll(c)
		return string(body[len(body)-4 : len(body)-1])
	}
	one.status.Store(500)
	s.well(b, "web", 1)
	for range 6 {
		if who := get(); who != "two" {
			t.Errorf("%s answers, and it is ill", who)
		}
	}
	if k := b.Show("web")["web"][0]; k.Healthy || k.Why == "" {
		t.Errorf("the ill one is shown as %+v", k)
	}
	two.status.Store(500)
	s.well(b, "web", 0)
	heard := map[string]bool{}
	for range 4 {
		heard[get()] = true
	}
	if !heard["one"] || !heard["two"] {
		t.Errorf("when all are ill: %v answer, want both", heard)
	}
	one.status.Store(202)
	s.well(b, "web", 1)
	if who := get(); who != "one" {
		t.Errorf("%s answers, one is well again", who)
	}
	if key := <-changed; key != "web" {
		t.Errorf("changed: %s", key)
	}
}

func TestDatagrams(t *testing.T) {
	s := newStage(t)
	one, two := s.backend("one"), s.backend("two")
	b := open(t)
	dns := func(k *server) plan.Backend { return plan.Backend{Address: netip.AddrPortFrom(k.at.Addr(), 53)} }
	p := plan.Point{Key: "dns", UDP: true, Port: 53, Backends: []plan.Backend{dns(one), dns(two)}}
	at := set(t, b, p)
	web := set(t, b, plan.Point{Key: "web", Port: 53, Backends: backends(one)})
	if web != at {
		t.Errorf("TCP at %s, UDP at %s: they may share a port", web, at)
	}
	c, err := s.dial("udp", at)
	must(t, err)
	defer c.Close()
	first, err := say(c)
	must(t, err)
	for range 3 {
		if who, err := say(c); who != first {
			t.Errorf("one client's datagrams go to %q and %q, %v", first, who, err)
		}
	}
	// Its backend goes: the next datagram goes to the other.
	if first == "one" {
		p.Backends = []plan.Backend{dns(two)}
	} else {
		p.Backends = []plan.Backend{dns(one)}
	}
	set(t, b, p)
	if who, err := say(c); err != nil || who == first {
		t.Errorf("after its backend is gone: %q, %v", who, err)
	}
}

func TestOneClientStaysWithOneBackend(t *testing.T) {
	s := newStage(t)
	b := open(t)
	at := set(t, b, plan.Point{Key: "web", Port: 80, Algorithm: plan.SourceHash, Backends: backends(s.backend("one"), s.backend("two"), s.backend("three"))})
	s.well(b, "web", 3)
	first := s.ask("tcp", at)
	for range 5 {
		if who := s.ask("tcp", at); who != first {
			t.Errorf("%s and %s answer one client", first, who)
		}
	}
}

func TestAProcessThatEndsGoesOnServing(t *testing.T) {
	s := newStage(t)
	one := s.backend("one")
	b := open(t)
	p := plan.Point{Key: "web", Group: "g", Port: 80, Backends: backends(one)}
	at := set(t, b, p)
	gone := set(t, b, plan.Point{Key: "gone", Group: "g", Port: 80, Backends: backends(one)})
	s.well(b, "web", 1)
	s.well(b, "gone", 1)
	held, err := s.dial("tcp", at)
	must(t, err)
	defer held.Close()
	_, err = say(held)
	must(t, err)
	b.Close()
	if who := s.ask("tcp", at); who != "one" {
		t.Errorf("while no process runs: %s", who)
	}
	next := open(t)
	p.Address = at
	if again := set(t, next, p); again != at {
		t.Errorf("the address was %s and is %s", at, again)
	}
	must(t, next.Sweep())
	if who, err := say(held); who != "one" {
		t.Errorf("the connection under way: %q, %v", who, err)
	}
	s.well(next, "web", 1)
	if who := s.ask("tcp", at); who != "one" {
		t.Errorf("with the next process: %s", who)
	}
	if who := s.ask("tcp", gone); who != "refused" {
		t.Errorf("an access point that the next process does not know: %s", who)
	}
}

func TestAddressesOfThePool(t *testing.T) {
	s := newStage(t)
	one := s.backend("one")
	b := open(t, func(c *Config) { c.Pool = netip.MustParsePrefix("10.77.9.0/30") })
	point := func(key, group string, port uint16) plan.Point {
		return plan.Point{Key: key, Group: group, Port: port, Backends: backends(one)}
	}
	got := []string{set(t, b, point("a80", "a", 80)), set(t, b, point("a443", "a", 443)), set(t, b, point("b80", "b", 80)), set(t, b, point("c80", "c", 80))}
	want := []string{"10.77.9.1:80", "10.77.9.1:443", "10.77.9.2:80", siteIP.String() + ":20000"}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("addresses %v, want %v", got, want)
			break
		}
	}
	s.well(b, "a80", 1)
	if who := s.ask("tcp", "10.77.9.1:80"); who != "one" {
		t.Errorf("at an address of the pool: %s", who)
	}
	must(t, b.Remove("a80"))
	must(t, b.Remove("a443"))
	if at := set(t, b, point("d80", "d", 80)); at != "10.77.9.1:80" {
		t.Errorf("the address that is free again is not given out: %s", at)
	}
}

func TestAPortThatIsTaken(t *testing.T) {
	s := newStage(t)
	one := s.backend("one")
	taken, err := net.Listen("tcp", siteIP.String()+":20000")
	must(t, err)
	defer taken.Close()
	b := open(t, func(c *Config) { c.Last = 20001 })
	if at := set(t, b, plan.Point{Key: "web", Port: 80, Address: siteIP.String() + ":20000", Backends: backends(one)}); at != siteIP.String()+":20001" {
		t.Errorf("address %s, want the next port", at)
	}
	if _, err := b.Set(context.Background(), plan.Point{Key: "more", Port: 80}); err == nil {
		t.Error("there was an address left")
	}
}

func TestForwardingIsForAccessPointsAlone(t *testing.T) {
	s := newStage(t)
	one := s.backend("one")
	b := open(t)
	at := set(t, b, plan.Point{Key: "web", Port: 80, Backends: backends(one)})
	s.well(b, "web", 1)
	if who := s.ask("tcp", at); who != "one" {
		t.Errorf("through the access point: %s", who)
	}
	within(t, s.client, func() {
		c, err := net.DialTimeout("tcp", one.at.String(), 300*time.Millisecond)
		if err == nil {
			c.Close()
			t.Error("past the access point: this machine forwards what it did not before")
		}
	})
}

// A site's machine may be part of the network of its hosts: what its bridge passes on from
// one to the other is none of the firewall's business, also where br_netfilter shows it.
func TestBridgedFramesPass(t *testing.T) {
	s := newStage(t)
	ends := []netns.NsHandle{attach(t, "left", "10.90.0.1/24", "10.90.0.11/24"), attach(t, "right", "10.90.0.2/24", "10.90.0.12/24")}
	a := netlink.NewLinkAttrs()
	a.Name = "br0"
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: a}))
	br, err := netlink.LinkByName("br0")
	must(t, err)
	t.Cleanup(func() { _ = netlink.LinkDel(br) })
	must(t, netlink.LinkSetUp(br))
	for _, name := range []string{"left", "right"} {
		l, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkSetMaster(l, br))
	}
	const call = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	if _, err := os.Stat(call); err == nil {
		must(t, os.WriteFile(call, []byte("1"), 0o644))
	}
	b := open(t)
	set(t, b, plan.Point{Key: "web", Port: 80, Backends: backends(s.backend("one"))})
	var ln net.Listener
	within(t, ends[1], func() { ln, err = net.Listen("tcp", ":80") })
	must(t, err)
	defer ln.Close()
	go serve(ln, "right")
	within(t, ends[0], func() {
		c, err := net.DialTimeout("tcp", "10.90.0.12:80", 5*time.Second)
		if err != nil {
			t.Errorf("through the bridge: %v", err)
			return
		}
		c.Close()
	})
}

// People look at the rules with nft, which is particular about what it can print.
func TestTheRulesCanBeListed(t *testing.T) {
	s := newStage(t)
	b := open(t)
	for i, a := range []plan.Algorithm{plan.RoundRobin, plan.SourceHash} {
		set(t, b, plan.Point{Key: fmt.Sprint(i), Port: 80, Algorithm: a, Backends: backends(s.backend("one"), s.backend("two"))})
		s.well(b, fmt.Sprint(i), 2)
	}
	out, err := exec.Command("nft", "list", "table", "ip", tableName).CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	for _, want := range []string{"numgen inc mod 2 map", "jhash ip saddr mod 128 map", "masquerade"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestNothingIsLeft(t *testing.T) {
	s := newStage(t)
	b := open(t)
	set(t, b, plan.Point{Key: "web", Port: 80, Backends: backends(s.backend("one"))})
	must(t, b.Clear())
	tables, err := (&nftables.Conn{}).ListTables()
	must(t, err)
	if len(tables) != 0 {
		t.Errorf("tables %v are left", tables)
	}
}
