package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/spaces"
	"github.com/reservoir-cloud/reservoir/van"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// namespaces: two guests, their hosts, and two hosts that are made by hand.
var namespaces = []string{"bvan-g1", "bvan-g2", "bvan-h1", "bvan-h2", "bvan-k1", "bvan-k2"}

// stage is the namespaces and what joins them. Underlay addresses are on the wire itself, at
// both kinds of hosts: a bridge below VXLAN cuts large segments up (bridges do not declare
// offloads for encapsulated packets), which would hide what is above it.
type stage struct {
	hosts []*van.Network
}

// newStage is to be closed also when it could not be made as a whole.
func newStage() (*stage, error) {
	s := &stage{}
	for _, n := range namespaces {
		_ = exec.CommandContext(context.Background(), "ip", "netns", "del", n).Run() // of a run that was killed
		if err := spaces.IP("netns add " + n); err != nil {
			return s, err
		}
		if err := spaces.IP("-n " + n + " link set lo up"); err != nil {
			return s, err
		}
	}
	if err := spaces.IP(
		// The direct veth.
		"link add direct netns bvan-g1 type veth peer name direct netns bvan-g2",
		"-n bvan-g1 addr add 10.92.0.1/24 dev direct", "-n bvan-g1 link set direct up",
		"-n bvan-g2 addr add 10.92.0.2/24 dev direct", "-n bvan-g2 link set direct up",
	); err != nil {
		return s, err
	}
	for i := range 2 {
		if err := byHand(i + 1); err != nil {
			return s, err
		}
	}
	if err := spaces.IP("link add wire netns bvan-k1 type veth peer name wire netns bvan-k2",
		"-n bvan-k1 addr add 10.91.1.1/24 dev wire", "-n bvan-k1 link set wire up",
		"-n bvan-k2 addr add 10.91.1.2/24 dev wire", "-n bvan-k2 link set wire up"); err != nil {
		return s, err
	}
	return s, s.ours()
}

// byHand is a bridge with a guest and a VXLAN device to the other host, as the manual pages
// of ip and bridge show it.
func byHand(i int) error {
	host, guest := fmt.Sprintf("bvan-k%d", i), fmt.Sprintf("bvan-g%d", i)
	return spaces.IP(
		"-n "+host+" link add br0 type bridge", "-n "+host+" link set br0 up",
		fmt.Sprintf("-n %s link add vx0 type vxlan id 77 local 10.91.1.%d remote 10.91.1.%d dstport 4789", host, i, 3-i),
		"-n "+host+" link set vx0 master br0", "-n "+host+" link set vx0 up",
		"link add port netns "+host+" type veth peer name hand netns "+guest,
		"-n "+host+" link set port master br0", "-n "+host+" link set port up",
		fmt.Sprintf("-n %s addr add 10.93.0.%d/24 dev hand", guest, i),
		"-n "+guest+" link set hand mtu 1450", "-n "+guest+" link set hand up")
}

// ours is the same by our data path, in two networks: one whose ports have no firewall, one
// whose ports have. A veth with the name of the port's TAP stands for the TAP.
func (s *stage) ours() error {
	open, walled := segment(1, "10.94.0"), segment(2, "10.95.0")
	for i := range walled.Ports {
		walled.Ports[i].Firewall = []plan.Rule{{Allow: true, Protocol: "tcp", First: spaces.ServePort}, {Allow: true, Protocol: "udp", First: spaces.ServePort},
			{Allow: true, Out: true, Protocol: "any", Peers: walled.Subnets}}
	}
	if err := spaces.IP("link add wire netns bvan-h1 type veth peer name wire netns bvan-h2"); err != nil {
		return err
	}
	for i := range 2 {
		host, guest := fmt.Sprintf("bvan-h%d", i+1), fmt.Sprintf("bvan-g%d", i+1)
		var n *van.Network
		err := spaces.Inside(host, func() (err error) {
			n, err = van.Open(van.Config{Host: open.Ports[i].Host, Underlay: open.Ports[i].Underlay, Bridge: "rsv0", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
			return err
		})
		if err != nil {
			return err
		}
		s.hosts = append(s.hosts, n)
		if err := spaces.IP("-n "+host+" link set wire up", fmt.Sprintf("-n %s addr add %s/24 dev wire", host, open.Ports[i].Underlay)); err != nil {
			return err
		}
		if err := n.Apply([]plan.Segment{open, walled}); err != nil {
			return err
		}
		for k, g := range []plan.Segment{open, walled} {
			p, device := g.Ports[i], fmt.Sprintf("van%d", k)
			if err := spaces.IP("link add "+p.Tap()+" netns "+host+" type veth peer name "+device+" address "+p.MAC+" netns "+guest,
				fmt.Sprintf("-n %s addr add %s/24 dev %s", guest, p.Addresses[0], device),
				fmt.Sprintf("-n %s link set %s mtu %d", guest, device, g.MTU), "-n "+guest+" link set "+device+" up"); err != nil {
				return err
			}
			if _, err := n.Plug(p.VEE, p.NIC); err != nil {
				return err
			}
		}
	}
	return nil
}

func segment(vni uint32, net3 string) plan.Segment {
	s := plan.Segment{ID: fmt.Sprintf("bench.van.net%d", vni), Version: 1, VNI: vni, MTU: 1370,
		Subnets: []netip.Prefix{netip.MustParsePrefix(net3 + ".0/24")}, Gateways: []netip.Addr{netip.MustParseAddr(net3 + ".254")}}
	for i := range 2 {
		s.Ports = append(s.Ports, plan.Port{VEE: vee.ID(fmt.Sprintf("bench.aaaaaaaa%c%c", 'a'+vni, 'a'+i)), MAC: fmt.Sprintf("52:54:00:00:%02x:%02x", vni, i+1),
			Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("%s.%d", net3, i+1))}, Host: fmt.Sprintf("h%d", i+1), Underlay: netip.AddrFrom4([4]byte{10, 91, 0, byte(i + 1)})})
	}
	return s
}

func (s *stage) close() error {
	var errs []error
	for _, n := range s.hosts {
		errs = append(errs, n.Destroy())
	}
	for _, n := range namespaces {
		errs = append(errs, spaces.IP("netns del "+n))
	}
	return errors.Join(errs...)
}

func (s *stage) measure(ctx context.Context, p *path) error {
	rate, err := spaces.Throughput(ctx, "bvan-g1", "bvan-g2", p.server, *seconds)
	if err != nil {
		return fmt.Errorf("throughput: %w", err)
	}
	half, slow, err := latency(ctx, p.server)
	if err != nil {
		return fmt.Errorf("latency: %w", err)
	}
	p.bits, p.half, p.slow = append(p.bits, rate), append(p.half, half), append(p.slow, slow)
	return nil
}

// latency of a datagram's way there and back: median and 99th percentile.
func latency(ctx context.Context, server string) (half, slow time.Duration, err error) {
	at := net.JoinHostPort(server, fmt.Sprint(spaces.ServePort))
	var far net.PacketConn
	if err := spaces.Inside("bvan-g2", func() (err error) { far, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp", at); return err }); err != nil {
		return 0, 0, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := far.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = far.WriteTo(buf[:n], from) // a lost one ends the measurement by its deadline
		}
	}()
	defer func() { far.Close(); <-done }()
	var near net.Conn
	if err := spaces.Inside("bvan-g1", func() (err error) { near, err = (&net.Dialer{}).DialContext(ctx, "udp", at); return err }); err != nil {
		return 0, 0, err
	}
	defer near.Close()
	buf := make([]byte, 64)
	trips := make([]time.Duration, 0, *echoes)
	for warm := -100; warm < *echoes; warm++ {
		start := time.Now()
		if err := near.SetDeadline(start.Add(spaces.Patience)); err != nil {
			return 0, 0, err
		}
		if _, err := near.Write(buf); err != nil {
			return 0, 0, err
		}
		if _, err := near.Read(buf); err != nil {
			return 0, 0, err
		}
		if warm >= 0 {
			trips = append(trips, time.Since(start))
		}
	}
	slices.Sort(trips)
	return trips[len(trips)/2], trips[len(trips)*99/100], nil
}
