// Package tunnel carries the frames of shared networks between the VAN proxies of sites, in
// VXLAN (RFC 7348) inside WireGuard. Each network has a TAP for each site that it is shared
// with (van.Network.OpenBorder); what is read from it goes to that site and to no other, what
// comes from that site goes to that TAP and to no other, where the kernel lets those MACs and
// addresses through that the network has at that site (plan.ForBorder). Everything else is
// dropped. What comes from one site never goes to another.
//
// WireGuard and VXLAN run in this process (ADR 0023). Frames are handed over with the
// offloads of a network card: the kernel gives and takes TCP segments of up to 64 KiB, which
// are cut and joined here (cut.go, merge.go), around the encryption, which is by the packet.
package tunnel

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Networks is the kernel's half: *van.Network of a proxy.
type Networks interface {
	OpenBorder(vni uint32, site string) (*os.File, error)
	Apply(segments []plan.Segment) error
	// Home runs f in the network namespace that the tunnel is in.
	Home(f func() error) error
}

// Config of a tunnel.
type Config struct {
	Key      PrivateKey
	Port     uint16 // UDP
	Networks Networks
	// Every is how often the ways to peers are looked at; 0: 2 s.
	Every time.Duration
	Log   *slog.Logger
}

// PrivateKey of WireGuard (Curve25519).
type PrivateKey [32]byte

// NewKey makes one.
func NewKey() (k PrivateKey) {
	_, _ = rand.Read(k[:]) // never fails (crypto/rand)
	k[0] &= 248            // RFC 7748, section 5
	k[31] = k[31]&127 | 64
	return k
}

// Public key that belongs to it.
func (k PrivateKey) Public() (p border.Key) {
	b, err := curve25519.X25519(k[:], curve25519.Basepoint)
	if err != nil {
		panic(fmt.Sprintf("a clamped scalar and the base point: %v", err)) // never all zero
	}
	return border.Key(b)
}

// String keeps it out of logs.
func (PrivateKey) String() string { return "***" }

// guestMTU is what the way to another site carries at most, bytes of a guest's IP packet: what
// guests are offered whose network may be shared. With Ethernet, VXLAN, UDP, IPv4, WireGuard's
// 32, UDP and IPv4 or IPv6 it fits 1500.
const guestMTU = 1370

// wireMTU is the longest packet inside WireGuard.
const wireMTU = guestMTU + etherLen + wrapLen

// Tunnel is open until Close.
type Tunnel struct {
	cfg     Config
	address netip.Addr // inside
	device  *device.Device
	frames  chan *parcel // from TAPs, to be encrypted
	spare   sync.Pool    // of *parcel
	events  chan tun.Event
	closed  chan struct{}
	cutting cutting // of the device's one reader
	mergers sync.Pool
	tables  atomic.Pointer[tables]
	drops   drops

	mu    sync.Mutex // of what follows; Put and Close
	peers map[string]*peer
	wires map[wireKey]*wire
	stop  context.CancelFunc
	wg    sync.WaitGroup // of the wires' readers and of the watch
}

// peer is a partner's proxy.
type peer struct {
	border.Peer
	key      border.Key
	endpoint netip.AddrPort // that was set; zero: none
	mtu      atomic.Int32   // of guests' packets
}

type wireKey struct {
	vni  uint32
	site string
}

// wire is one network's way to one site.
type wire struct {
	wireKey
	tap *os.File
	raw rawWriter
	out atomic.Pointer[outlet] // nil: it leads nowhere now
	cut atomic.Bool            // the TAP was deleted by somebody else
}

// outlet is how a wire's frames leave: to which peer, and from which MACs.
type outlet struct {
	peer *peer
	wrap wrap
	here map[[6]byte]bool
}

// tables is what comes in by; never changed once made.
type tables struct {
	in map[inKey]*wire
}

type inKey struct {
	from [4]byte
	vni  uint32
}

// parcel is a frame from a TAP, with its virtio_net_hdr.
type parcel struct {
	wire *wire
	n    int
	b    [offloadLen + maxFrame]byte
}

// queue of parcels between TAPs and WireGuard.
const queue = 64

// Open a tunnel without peers. Its UDP port is in the network namespace of Networks.
func Open(cfg Config) (*Tunnel, error) {
	if cfg.Every == 0 {
		cfg.Every = 2 * time.Second
	}
	ctx, stop := context.WithCancel(context.Background())
	t := &Tunnel{cfg: cfg, address: cfg.Key.Public().Address(), frames: make(chan *parcel, queue), events: make(chan tun.Event, 1), closed: make(chan struct{}),
		peers: map[string]*peer{}, wires: map[wireKey]*wire{}, stop: stop}
	t.spare.New = func() any { return new(parcel) }
	t.mergers.New = func() any { return &merger{emit: t.deliver} }
	t.tables.Store(&tables{})
	err := cfg.Networks.Home(func() error {
		t.device = device.NewDevice((*inner)(t), conn.NewDefaultBind(), &device.Logger{
			Verbosef: device.DiscardLogf,
			Errorf:   func(format string, args ...any) { cfg.Log.Warn("WireGuard: " + fmt.Sprintf(format, args...)) },
		})
		if err := t.device.IpcSet(fmt.Sprintf("private_key=%x\nlisten_port=%d\n", [32]byte(cfg.Key), cfg.Port)); err != nil {
			return err
		}
		return t.device.Up()
	})
	if err != nil {
		stop()
		if t.device != nil {
			t.device.Close()
		}
		return nil, fault.New(fault.Unavailable, "open the tunnel on UDP port %d: %w", cfg.Port, err).Try("see who has the port: ss -lunp")
	}
	t.wg.Go(func() { t.watch(ctx) })
	return t, nil
}

// Close ends the tunnel: its port and its TAPs go.
func (t *Tunnel) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop()
	for _, w := range t.wires {
		w.tap.Close()
	}
	t.device.Close()
	t.wg.Wait()
}

// Put makes the tunnel lead to these peers with these segments, and the kernel hold what
// belongs to it. Only what differs is touched. A peer whose endpoint is no address now is
// waited for.
func (t *Tunnel) Put(ctx context.Context, peers []border.Peer, segments []border.Segment) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.followPeers(ctx, peers); err != nil {
		return err
	}
	want := map[wireKey]border.Segment{}
	plans := make([]plan.Segment, len(segments))
	for i, s := range segments {
		plans[i] = s.Segment
		for _, site := range s.Sites() {
			want[wireKey{s.VNI, site}] = s
		}
	}
	for k := range want {
		if w := t.wires[k]; w == nil || w.cut.Load() {
			if err := t.lay(k); err != nil {
				return err
			}
		}
	}
	// Before the kernel's forwarding changes, what is dropped; after it, what is let through.
	t.connect(want)
	if err := t.cfg.Networks.Apply(plans); err != nil {
		return err
	}
	for k, w := range t.wires {
		if _, ok := want[k]; !ok {
			w.tap.Close()
			delete(t.wires, k)
		}
	}
	return nil
}

// lay a wire: its TAP, and who reads it. t.mu is held.
func (t *Tunnel) lay(k wireKey) error {
	tap, err := t.cfg.Networks.OpenBorder(k.vni, k.site)
	if err != nil {
		return err
	}
	w := &wire{wireKey: k, tap: tap}
	if w.raw, err = rawWriterOf(tap); err != nil {
		tap.Close()
		return err
	}
	if old := t.wires[k]; old != nil {
		old.tap.Close()
	}
	t.wires[k] = w
	t.wg.Go(func() { t.read(w) })
	return nil
}

// connect the wires with what they are for. t.mu is held.
func (t *Tunnel) connect(want map[wireKey]border.Segment) {
	next := &tables{in: map[inKey]*wire{}}
	for k, w := range t.wires {
		s, wanted := want[k]
		p := t.peers[k.site]
		if !wanted || p == nil {
			w.out.Store(nil)
			continue
		}
		o := &outlet{peer: p, wrap: newWrap(t.address, p.key.Address(), s.Tunnel), here: map[[6]byte]bool{}}
		for _, port := range s.Ports {
			if _, away := plan.SiteOf(port); away {
				continue
			}
			if mac, err := net.ParseMAC(port.MAC); err == nil && len(mac) == 6 {
				o.here[[6]byte(mac)] = true
			}
		}
		w.out.Store(o)
		next.in[inKey{p.key.Address().As4(), s.Tunnel}] = w
	}
	t.tables.Store(next)
}

// followPeers makes WireGuard know these peers and no others. t.mu is held.
func (t *Tunnel) followPeers(ctx context.Context, peers []border.Peer) error {
	var set strings.Builder
	keep := map[string]*peer{}
	for _, p := range peers {
		if p.Key == "" {
			continue
		}
		key, err := border.ParseKey(p.Key)
		if err != nil {
			return fault.New(fault.Malformed, "peer %s: %w", p.Site, err)
		}
		endpoint, err := resolve(ctx, p.Tunnel)
		if err != nil {
			t.cfg.Log.Warn("the way to a partner's proxy is not known", "site", p.Site, "err", err)
		}
		now := &peer{Peer: p, key: key, endpoint: endpoint}
		now.mtu.Store(guestMTU)
		old := t.peers[p.Site]
		if old != nil && old.key == key {
			now.mtu.Store(old.mtu.Load())
			if keep[p.Site] = old; old.Peer == p && (old.endpoint == endpoint || !endpoint.IsValid()) {
				continue // it may have moved since, and WireGuard knows
			}
		}
		keep[p.Site] = now
		fmt.Fprintf(&set, "public_key=%x\nreplace_allowed_ips=true\nallowed_ip=%s/32\npersistent_keepalive_interval=%d\n", [32]byte(key), key.Address(), keepalive)
		if endpoint.IsValid() {
			fmt.Fprintf(&set, "endpoint=%s\n", endpoint)
		}
	}
	for site, p := range t.peers {
		if k := keep[site]; k == nil || k.key != p.key {
			fmt.Fprintf(&set, "public_key=%x\nremove=true\n", [32]byte(p.key))
		}
	}
	if set.Len() > 0 {
		if err := t.device.IpcSet(set.String()); err != nil {
			return fault.New(fault.Internal, "tell WireGuard its peers: %w", err)
		}
	}
	t.peers = keep
	return nil
}

// keepalive in seconds: whatever translates addresses between the sites remembers us, and a
// proxy that was restarted is found by those that it does not call.
const keepalive = 10

func resolve(ctx context.Context, text string) (netip.AddrPort, error) {
	if text == "" {
		return netip.AddrPort{}, nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: %w", port, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(all[0].Unmap(), uint16(n)), nil
}

// watch the ways to peers: how large a packet may be.
func (t *Tunnel) watch(ctx context.Context) {
	tick := time.NewTicker(t.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		endpoints := t.endpoints()
		t.mu.Lock()
		peers := make([]*peer, 0, len(t.peers))
		for _, p := range t.peers {
			peers = append(peers, p)
		}
		t.mu.Unlock()
		for _, p := range peers {
			if at := endpoints[p.key].endpoint; at.IsValid() {
				if mtu, err := t.pathMTU(at); err == nil && p.mtu.Swap(int32(mtu)) != int32(mtu) {
					t.cfg.Log.Info("the way to a partner has another MTU", "site", p.Site, "guests", mtu)
				}
			}
		}
	}
}

// pathMTU to another proxy, as the kernel knows it (RFC 1191), less what is around a guest's
// packet.
func (t *Tunnel) pathMTU(to netip.AddrPort) (mtu int, err error) {
	err = t.cfg.Networks.Home(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) // nothing is sent
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		level, option, ip := unix.IPPROTO_IP, unix.IP_MTU, ip4Len
		if to.Addr().Is6() {
			level, option, ip = unix.IPPROTO_IPV6, unix.IPV6_MTU, ip6Len
		}
		var asked error
		if err := raw.Control(func(fd uintptr) { mtu, asked = unix.GetsockoptInt(int(fd), level, option) }); err != nil || asked != nil {
			return errors.Join(err, asked)
		}
		const padding = 16 // WireGuard pads what it encrypts to a multiple of this
		mtu = (mtu-ip-udpLen-device.MessageTransportSize)/padding*padding - wrapLen - etherLen
		mtu = min(max(mtu, leastMTU), guestMTU)
		return nil
	})
	return mtu, err
}

// leastMTU of guests' packets, whatever the way: RFC 791.
const leastMTU = 576

// link is WireGuard's state of a peer.
type link struct {
	endpoint       netip.AddrPort
	handshake      time.Time
	received, sent uint64
}

// endpoints and the rest that WireGuard tells of its peers, by their keys.
func (t *Tunnel) endpoints() map[border.Key]link {
	text, err := t.device.IpcGet()
	if err != nil {
		return nil
	}
	all := map[border.Key]link{}
	var key border.Key
	var l link
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		number, _ := strconv.ParseUint(value, 10, 64)
		switch name {
		case "public_key":
			l = link{}
			var b []byte
			if _, err := fmt.Sscanf(value, "%x", &b); err == nil && len(b) == len(key) {
				key = border.Key(b)
			}
		case "endpoint":
			l.endpoint, _ = netip.ParseAddrPort(value)
		case "last_handshake_time_sec":
			if number > 0 {
				l.handshake = time.Unix(int64(number), 0)
			}
		case "rx_bytes":
			l.received = number
		case "tx_bytes":
			l.sent = number
		default:
			continue
		}
		all[key] = l
	}
	return all
}

// Peers as they are, in the order of their names.
func (t *Tunnel) Peers() []border.PeerStatus {
	links := t.endpoints()
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]border.PeerStatus, 0, len(t.peers))
	for _, p := range t.peers {
		l := links[p.key]
		s := border.PeerStatus{Site: p.Site, Key: p.Key, Handshake: l.handshake, Received: vee.Bytes(l.received), Sent: vee.Bytes(l.sent), MTU: int(p.mtu.Load())}
		if l.endpoint.IsValid() {
			s.Endpoint = l.endpoint.String()
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b border.PeerStatus) int { return strings.Compare(a.Site, b.Site) })
	return list
}

// Dropped frames by the reason.
func (t *Tunnel) Dropped() map[string]uint64 { return t.drops.counts() }
