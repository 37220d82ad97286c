package tunnel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/border/door"
)

// By a door of its proxy a site's host reaches a VEE wherever it is, by TCP and by UDP; two
// networks with the same addresses are told apart. A connection goes on while the VEE moves to
// the other site and back, while its door is put again, and when the door has gone.
func TestDoors(t *testing.T) {
	l := newLab(t, "alpha", "beta")
	alpha, beta := l.sites[0], l.sites[1]
	one := &network{id: "s/one", vnis: map[string]uint32{"alpha": 5, "beta": 9}, tunnel: 11, net4: "10.9.0", entered: alpha}
	two := &network{id: "s/two", vnis: map[string]uint32{"alpha": 6, "beta": 8}, tunnel: 12, net4: "10.9.0", entered: alpha}
	far, other := l.guest(one, beta, 1), l.guest(two, beta, 1)
	near := l.guest(one, alpha, 2)
	for _, g := range []*guest{far, other, near} {
		g.names(7)
	}
	l.put(one, two)
	doors := func() border.Config {
		c := border.Config{Segments: []border.Segment{one.at(alpha), two.at(alpha)}}
		for i, d := range []struct {
			network *network
			to      *guest
		}{{one, far}, {two, other}, {one, near}} {
			for _, udp := range []bool{false, true} {
				c.Doors = append(c.Doors, border.Door{Port: uint16(border.FirstDoor + i), UDP: udp, Segment: d.network.id, To: netip.AddrPortFrom(d.to.port.Addresses[0], 7)})
			}
		}
		must(t, c.Check())
		return c
	}
	inside := netip.MustParseAddr(proxyUnderlay)
	open := func(c border.Config) { t.Helper(); must(t, door.Put(alpha.border, inside, c)) }
	open(doors())

	through := func(protocol string, i int) string {
		name := ""
		for until := time.Now().Add(patience); name == "" && time.Now().Before(until); {
			_ = alpha.hst.try(func() error {
				c, err := net.DialTimeout(protocol, fmt.Sprintf("%s:%d", inside, border.FirstDoor+i), time.Second)
				if err != nil {
					return err
				}
				defer c.Close()
				name = say(c, time.Second)
				return nil
			})
		}
		return name
	}
	for i, g := range []*guest{far, other, near} {
		for _, protocol := range []string{"tcp", "udp"} {
			if got := through(protocol, i); got != g.name {
				t.Errorf("by %s at door %d: %q answers, want %q", protocol, i, got, g.name)
			}
		}
	}

	var held net.Conn
	alpha.hst.do(func() (err error) {
		held, err = net.DialTimeout("tcp", fmt.Sprintf("%s:%d", inside, border.FirstDoor), patience)
		return err
	})
	defer held.Close()
	for _, at := range []*labSite{alpha, beta} {
		l.move(far, at)
		l.put(one, two)
		open(doors())
		if got := say(held, patience); got != far.name {
			t.Fatalf("on the connection that was there before it moved to %s: %q", at.name, got)
		}
	}
	alpha.close() // as a process that is killed: what it held is gone, and is made anew
	alpha.open()
	l.put(one, two)
	open(doors())
	if got := say(held, patience); got != far.name {
		t.Fatalf("after the proxy was restarted: %q", got)
	}
	open(border.Config{Segments: doors().Segments})
	if got := say(held, patience); got != far.name {
		t.Fatalf("after the door was closed: %q", got)
	}
	_ = alpha.hst.try(func() error {
		if c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", inside, border.FirstDoor), time.Second); err == nil {
			c.Close()
			t.Error("a door that was closed lets in")
		}
		return nil
	})
}

// say something, and hear who answers; empty: nobody, in that time.
func say(c net.Conn, patience time.Duration) string {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("?")); err != nil {
		return ""
	}
	b := make([]byte, 64)
	n, _ := c.Read(b)
	return string(b[:n])
}

// names answers whatever is said, by TCP and by UDP, with its name, until the test ends.
func (g *guest) names(port int) {
	g.t.Helper()
	var ln net.Listener
	var pc net.PacketConn
	g.do(func() (err error) {
		if ln, err = net.Listen("tcp4", fmt.Sprintf(":%d", port)); err == nil {
			pc, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		}
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for b := make([]byte, 64); ; {
			_, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte(g.name), from)
		}
	})
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				for b := make([]byte, 64); err == nil; {
					if _, err = c.Read(b); err == nil {
						_, err = c.Write([]byte(g.name))
					}
				}
				c.Close()
			})
		}
	})
	g.t.Cleanup(func() { cancel(); ln.Close(); pc.Close(); wg.Wait() })
}

// move a guest with its network card to another site.
func (l *lab) move(g *guest, to *labSite) {
	l.t.Helper()
	d, err := g.site.hst.h.LinkByName(g.port.Tap())
	must(l.t, err)
	must(l.t, g.site.hst.h.LinkSetNsFd(d, int(to.hst.ns)))
	g.site = to
	_, err = to.host.Plug(g.port.VEE, 0)
	must(l.t, err)
}
