package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
)

// DeviceMTU is that of bridges, tunnels and TAPs. It is larger than what guests are
// offered: a device that refuses a frame for its size does so in silence, while one that
// takes it answers "fragmentation needed" (RFC 1191) with the size that fits the underlay.
const DeviceMTU = 1500

// VXLANPort is the UDP port of RFC 7348.
const VXLANPort = 4789

// Key finds an entry among those of a host. Two entries with one key are two states of one
// thing in the kernel.
type Key struct {
	Kind Kind
	Name string // device or chain
	VNI  uint32
	MAC  string
	Addr netip.Addr
}

// Kind of entry, in the order in which they are made; they are removed in the reverse one.
type Kind uint8

// Kinds of entries.
const (
	KindBridge Kind = iota
	KindTunnel
	KindGateway
	KindZone
	KindMember
	KindForward
	KindUnderlay
	KindGate
	KindAnswer
	KindGuest
	KindNetwork
	KindPermit
	KindWall
	KindDoor
	KindHatch
)

// Entry is one thing that a host's kernel should hold, or holds. Its text says all of it:
// two entries with one key and one text are the same.
type Entry interface {
	key() Key
	fmt.Stringer
	same(o Entry) bool
}

// KeyOf an entry.
func KeyOf(e Entry) Key { return e.key() }

// Same reports whether the kernel would hold the same for both.
func Same(a, b Entry) bool { return a.same(b) }

// The links of a private network.
type (
	// Bridge joins its ports on this host. Nobody wants one that is down.
	Bridge struct {
		Name string
		Down bool
	}

	// Tunnel is the VXLAN device that leads to other hosts. It learns nothing and floods
	// nothing: where a MAC is, a Forward says.
	Tunnel struct {
		Name, Bridge string
		VNI          uint32
		Local        netip.Addr
	}

	// Gateway is the veth into the namespace where DHCP and DNS are answered. Addresses and
	// MAC are the same on every host, so that a guest does not notice that it was moved. Text
	// of both families: "10.1.0.1/24 fd00::1/64".
	Gateway struct{ Name, Bridge, MAC, Addresses string }
)

// Where frames go.
type (
	// Member is a TAP's place in a bridge. It takes effect when the TAP is there.
	Member struct{ Tap, Bridge string }

	// Forward says behind which device of a bridge a MAC is; behind a tunnel, at which host.
	Forward struct {
		Device, MAC string
		To          netip.Addr // underlay address; zero: on this host
	}

	// Answer says which MAC an address has. A question for it (ARP, neighbour solicitation)
	// goes to that MAC and nowhere else.
	Answer struct {
		VNI  uint32
		Addr netip.Addr
		MAC  string
	}

	// Gate is where questions go that have no addressee yet: DHCP and router solicitations.
	// VNI 0 are the public networks; their gate is the host's bridge, whose MAC the host
	// knows ("").
	Gate struct {
		VNI uint32
		MAC string
	}
)

// Isolation.
type (
	// Network says of which network a device's frames are; VNI 0: a public one.
	Network struct {
		Device string
		VNI    uint32
	}

	// Permit allows a TAP to send from a MAC, and from an address of that MAC. What is not
	// allowed is dropped.
	Permit struct {
		Tap  string
		MAC  string
		Addr netip.Addr // invalid: the MAC alone, for who asks for its address
	}

	// Guest is an address in a bridge that is not the host's: in a public network, one that
	// may not open connections to hosts; Gate, in any: where the network's own services are,
	// which walls let through.
	Guest struct {
		Bridge string
		Addr   netip.Addr
		Gate   bool
	}

	// Underlay is the address of a host that may send VXLAN to this one, and that guests may
	// not speak to.
	Underlay struct{ Addr netip.Addr }
)

// The stateful firewall.
type (
	// Zone separates what is remembered of the connections of a bridge, because two networks
	// may use the same addresses. A private bridge without a zone is not tracked.
	Zone struct {
		Bridge string
		ID     uint16
	}

	// Wall is the rules of one port in one direction.
	Wall struct {
		Tap    string
		Out    bool
		Digest string // of Rules; of a wall that was read from the kernel only this is known
		Rules  []Rule
	}

	// Door leads what comes from or goes to an address of a bridge to a wall.
	Door struct {
		Bridge string
		Addr   netip.Addr
		Out    bool
		Tap    string
	}

	// Hatch lets what this host itself sends to a TCP port of an address pass the wall: the host
	// asks guests of public networks for their measurements.
	Hatch struct {
		Bridge string
		Addr   netip.Addr
		Port   uint16
	}
)

// Chain that holds the wall's rules.
func (w Wall) Chain() string { return wallName(w.Tap, w.Out) }

func wallName(tap string, out bool) string {
	if out {
		return "out-" + tap
	}
	return "in-" + tap
}

// NewWall of a port's rules in one direction.
func NewWall(tap string, out bool, rules []Rule) Wall {
	text, err := json.Marshal(rules)
	if err != nil {
		panic(fmt.Sprintf("firewall rules are plain data: %v", err))
	}
	sum := sha256.Sum256(text)
	return Wall{Tap: tap, Out: out, Digest: hex.EncodeToString(sum[:8]), Rules: rules}
}

func (b Bridge) key() Key   { return Key{Kind: KindBridge, Name: b.Name} }
func (t Tunnel) key() Key   { return Key{Kind: KindTunnel, Name: t.Name} }
func (g Gateway) key() Key  { return Key{Kind: KindGateway, Name: g.Name} }
func (m Member) key() Key   { return Key{Kind: KindMember, Name: m.Tap} }
func (f Forward) key() Key  { return Key{Kind: KindForward, Name: f.Device, MAC: f.MAC} }
func (a Answer) key() Key   { return Key{Kind: KindAnswer, VNI: a.VNI, Addr: a.Addr} }
func (g Gate) key() Key     { return Key{Kind: KindGate, VNI: g.VNI} }
func (n Network) key() Key  { return Key{Kind: KindNetwork, Name: n.Device} }
func (s Permit) key() Key   { return Key{Kind: KindPermit, Name: s.Tap, MAC: s.MAC, Addr: s.Addr} }
func (u Underlay) key() Key { return Key{Kind: KindUnderlay, Addr: u.Addr} }
func (z Zone) key() Key     { return Key{Kind: KindZone, Name: z.Bridge} }
func (w Wall) key() Key     { return Key{Kind: KindWall, Name: w.Chain()} }
func (g Guest) key() Key {
	k := Key{Kind: KindGuest, Name: g.Bridge, Addr: g.Addr}
	if g.Gate {
		k.MAC = "gate"
	}
	return k
}
func (d Door) key() Key {
	k := Key{Kind: KindDoor, Name: d.Bridge, Addr: d.Addr}
	if d.Out {
		k.MAC = "out"
	}
	return k
}

func (x Hatch) key() Key { return Key{Kind: KindHatch, Name: x.Bridge, Addr: x.Addr} }

func (b Bridge) same(o Entry) bool   { return o == Entry(b) }
func (t Tunnel) same(o Entry) bool   { return o == Entry(t) }
func (g Gateway) same(o Entry) bool  { return o == Entry(g) }
func (m Member) same(o Entry) bool   { return o == Entry(m) }
func (f Forward) same(o Entry) bool  { return o == Entry(f) }
func (a Answer) same(o Entry) bool   { return o == Entry(a) }
func (g Gate) same(o Entry) bool     { return o == Entry(g) }
func (n Network) same(o Entry) bool  { return o == Entry(n) }
func (s Permit) same(o Entry) bool   { return o == Entry(s) }
func (u Underlay) same(o Entry) bool { return o == Entry(u) }
func (z Zone) same(o Entry) bool     { return o == Entry(z) }
func (g Guest) same(o Entry) bool    { return o == Entry(g) }
func (d Door) same(o Entry) bool     { return o == Entry(d) }
func (x Hatch) same(o Entry) bool    { return o == Entry(x) }
func (w Wall) same(o Entry) bool {
	v, ok := o.(Wall)
	return ok && v.Tap == w.Tap && v.Out == w.Out && v.Digest == w.Digest
}

func (b Bridge) String() string {
	if b.Down {
		return fmt.Sprintf("bridge   %s mtu %d down", b.Name, DeviceMTU)
	}
	return fmt.Sprintf("bridge   %s mtu %d", b.Name, DeviceMTU)
}
func (t Tunnel) String() string {
	return fmt.Sprintf("tunnel   %s in %s vni %d from %s udp %d", t.Name, t.Bridge, t.VNI, t.Local, VXLANPort)
}
func (g Gateway) String() string {
	return fmt.Sprintf("gateway  %s in %s %s %s", g.Name, g.Bridge, g.MAC, g.Addresses)
}
func (m Member) String() string { return fmt.Sprintf("member   %s in %s", m.Tap, m.Bridge) }
func (f Forward) String() string {
	if f.To.IsValid() {
		return fmt.Sprintf("forward  %s to %s at %s", f.MAC, f.Device, f.To)
	}
	return fmt.Sprintf("forward  %s to %s", f.MAC, f.Device)
}
func (a Answer) String() string {
	return fmt.Sprintf("answer   %s is %s in %s", a.Addr, a.MAC, vanName(a.VNI))
}
func (g Gate) String() string {
	if g.MAC == "" {
		return fmt.Sprintf("gate     of %s is the host", vanName(g.VNI))
	}
	return fmt.Sprintf("gate     of %s is %s", vanName(g.VNI), g.MAC)
}
func (n Network) String() string {
	return fmt.Sprintf("network  of %s is %s", n.Device, vanName(n.VNI))
}
func (s Permit) String() string {
	if !s.Addr.IsValid() {
		return fmt.Sprintf("permit   %s from %s", s.MAC, s.Tap)
	}
	return fmt.Sprintf("permit   %s %s from %s", s.MAC, s.Addr, s.Tap)
}
func (u Underlay) String() string { return fmt.Sprintf("underlay %s", u.Addr) }
func (z Zone) String() string     { return fmt.Sprintf("zone     %d of %s", z.ID, z.Bridge) }
func (w Wall) String() string {
	if w.Rules == nil {
		return fmt.Sprintf("wall     %s as %s", w.Chain(), w.Digest)
	}
	return fmt.Sprintf("wall     %s %d rules as %s", w.Chain(), len(w.Rules), w.Digest)
}
func (g Guest) String() string {
	if g.Gate {
		return fmt.Sprintf("service  %s in %s", g.Addr, g.Bridge)
	}
	return fmt.Sprintf("guest    %s in %s", g.Addr, g.Bridge)
}
func (d Door) String() string {
	way := "to"
	if d.Out {
		way = "from"
	}
	return fmt.Sprintf("door     %s %s in %s is %s", way, d.Addr, d.Bridge, wallName(d.Tap, d.Out))
}
func (x Hatch) String() string {
	return fmt.Sprintf("hatch    to %s tcp %d in %s for this host", x.Addr, x.Port, x.Bridge)
}

func vanName(vni uint32) string {
	if vni == 0 {
		return "public"
	}
	return fmt.Sprintf("van %d", vni)
}
