package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/reservoir-cloud/reservoir/bench/spaces"
	"github.com/reservoir-cloud/reservoir/van"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/border/tunnel"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// stage is everything that is measured, until it is closed. Of each kind there are two: g
// guests, h hosts, p proxies; k what is made by hand.
type stage struct {
	spaces   []string
	networks []*van.Network
	tunnels  []*tunnel.Tunnel
	devices  []*device.Device
}

const (
	port     = 51820
	guestMTU = 1370
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func newStage(ctx context.Context) (*stage, error) {
	s := &stage{}
	for i := 1; i <= 2; i++ {
		for _, kind := range "ghpk" {
			name := fmt.Sprintf("btun-%c%d", kind, i)
			if err := spaces.IP("netns add "+name, "-n "+name+" link set lo up"); err != nil {
				return s, err
			}
			s.spaces = append(s.spaces, name)
		}
	}
	if err := spaces.IP("link add wire netns btun-p1 type veth peer name wire netns btun-p2", "link add wire netns btun-k1 type veth peer name wire netns btun-k2"); err != nil {
		return s, err
	}
	for i := 1; i <= 2; i++ {
		for _, k := range []string{"p", "k"} {
			if err := spaces.IP(fmt.Sprintf("-n btun-%s%d addr add 192.0.2.%d/24 dev wire", k, i, i), fmt.Sprintf("-n btun-%s%d link set wire up", k, i)); err != nil {
				return s, err
			}
		}
	}
	if err := s.byHand(); err != nil {
		return s, fmt.Errorf("by hand: %w", err)
	}
	return s, s.ours(ctx)
}

// byHand is WireGuard on a TUN device with all that wireguard-go does to be fast, and a bridge
// with a VXLAN device through it.
func (s *stage) byHand() error {
	keys := [2]tunnel.PrivateKey{tunnel.NewKey(), tunnel.NewKey()}
	for i := range 2 {
		space := fmt.Sprintf("btun-k%d", i+1)
		err := spaces.Inside(space, func() error {
			t, err := tun.CreateTUN("wg0", device.DefaultMTU)
			if err != nil {
				return err
			}
			d := device.NewDevice(t, conn.NewDefaultBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
			s.devices = append(s.devices, d)
			if err := d.IpcSet(fmt.Sprintf("private_key=%x\nlisten_port=%d\npublic_key=%x\nallowed_ip=10.97.0.0/24\nendpoint=192.0.2.%d:%d\n",
				[32]byte(keys[i]), port, [32]byte(keys[1-i].Public()), 2-i, port)); err != nil {
				return err
			}
			return d.Up()
		})
		if err != nil {
			return err
		}
		guest := fmt.Sprintf("btun-g%d", i+1)
		if err := spaces.IP(
			fmt.Sprintf("-n %s addr add 10.97.0.%d/24 dev wg0", space, i+1), "-n "+space+" link set wg0 up",
			"-n "+space+" link add br0 type bridge", "-n "+space+" link set br0 up",
			fmt.Sprintf("-n %s link add vx0 type vxlan id 77 local 10.97.0.%d remote 10.97.0.%d dstport 4789", space, i+1, 2-i),
			"-n "+space+" link set vx0 master br0", "-n "+space+" link set vx0 up",
			"link add port netns "+space+" type veth peer name hand netns "+guest,
			"-n "+space+" link set port master br0", "-n "+space+" link set port up",
			fmt.Sprintf("-n %s addr add 10.93.0.%d/24 dev hand", guest, i+1),
			fmt.Sprintf("-n %s link set hand mtu %d", guest, guestMTU), "-n "+guest+" link set hand up"); err != nil {
			return err
		}
	}
	return nil
}

// ours is the same by the data paths of a host and a proxy at each site. A veth with the name
// of the port's TAP stands for the TAP.
func (s *stage) ours(ctx context.Context) error {
	names := []string{"alpha", "beta"}
	keys := []tunnel.PrivateKey{tunnel.NewKey(), tunnel.NewKey()}
	for i := range names {
		host, proxy, guest := fmt.Sprintf("btun-h%d", i+1), fmt.Sprintf("btun-p%d", i+1), fmt.Sprintf("btun-g%d", i+1)
		if err := spaces.IP("link add wire netns "+host+" type veth peer name in netns "+proxy,
			"-n "+host+" addr add 10.91.0.11/24 dev wire", "-n "+host+" link set wire up",
			"-n "+proxy+" addr add 10.91.0.1/24 dev in", "-n "+proxy+" link set in up"); err != nil {
			return err
		}
		g := segment(names, i)
		h, err := s.open(host, van.Config{Host: "h1", Underlay: netip.MustParseAddr("10.91.0.11"), Bridge: "rsv0", Log: quiet})
		if err != nil {
			return err
		}
		if err := h.Apply([]plan.Segment{g.Segment}); err != nil {
			return err
		}
		p := g.Ports[i]
		if err := spaces.IP("link add "+p.Tap()+" netns "+host+" type veth peer name van address "+p.MAC+" netns "+guest,
			fmt.Sprintf("-n %s addr add %s/24 dev van", guest, p.Addresses[0]),
			fmt.Sprintf("-n %s link set van mtu %d", guest, guestMTU), "-n "+guest+" link set van up"); err != nil {
			return err
		}
		if _, err := h.Plug(p.VEE, p.NIC); err != nil {
			return err
		}
		b, err := s.open(proxy, van.Config{Host: "proxy", Underlay: netip.MustParseAddr("10.91.0.1"), Border: true, Log: quiet})
		if err != nil {
			return err
		}
		t, err := tunnel.Open(tunnel.Config{Key: keys[i], Port: port, Networks: b, Log: quiet})
		if err != nil {
			return err
		}
		s.tunnels = append(s.tunnels, t)
		peer := border.Peer{Site: names[1-i], Key: keys[1-i].Public().String(), Tunnel: fmt.Sprintf("192.0.2.%d:%d", 2-i, port)}
		if err := t.Put(ctx, []border.Peer{peer}, []border.Segment{g}); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) open(space string, c van.Config) (n *van.Network, err error) {
	if err = spaces.Inside(space, func() (err error) { n, err = van.Open(c); return err }); err == nil {
		s.networks = append(s.networks, n)
	}
	return n, err
}

// segment as site number i sees it.
func segment(names []string, i int) border.Segment {
	g := plan.Segment{ID: "bench/tunnel", Version: 1, VNI: uint32(5 + i), MTU: guestMTU,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.94.0.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.94.0.254")}}
	for k := range 2 {
		p := plan.Port{VEE: vee.ID(fmt.Sprintf("bench.aaaaaaaaa%c", 'a'+k)), MAC: fmt.Sprintf("52:54:00:00:00:%02x", k+1), Host: "h1",
			Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.94.0.%d", k+1))}, Underlay: netip.MustParseAddr("10.91.0.11")}
		if k != i {
			p.Host, p.Underlay = border.SiteHost(names[k]), netip.MustParseAddr("10.91.0.1")
		}
		g.Ports = append(g.Ports, p)
	}
	return border.Segment{Segment: g, Tunnel: 9}
}

func (s *stage) close() error {
	var errs []error
	for _, t := range s.tunnels {
		t.Close()
	}
	for _, d := range s.devices {
		d.Close()
	}
	for _, n := range s.networks {
		errs = append(errs, n.Destroy())
	}
	for _, name := range s.spaces {
		errs = append(errs, spaces.IP("netns del "+name))
	}
	return errors.Join(errs...)
}
