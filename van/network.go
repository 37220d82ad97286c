// Package van is the data path of the VEEs' networks on one host: bridges, tunnels to other
// hosts, forwarding entries, the namespaces where DHCP and DNS are answered, isolation and
// firewall. It makes the kernel hold what van/plan computes of the segments that the VEE
// Manager put, and nothing else of ours; it decides no address.
//
// Beside it: van/responder answers DHCP and DNS, van/balance makes a group of VEEs reachable
// from outside through one address (an access point).
package van

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Config of a host's networks.
type Config struct {
	Host     string     // as plan.Port.Host names it
	Underlay netip.Addr // that tunnels end at; plan.Port.Underlay of this host's ports
	Bridge   string     // that public networks use; made where it is not there
	// Border: this is not a host but the site's proxy (plan.ForBorder). It has no public
	// networks; Host and Bridge are not used.
	Border bool
	Log    *slog.Logger
}

// Network is the data path of a host: the kernel is made to hold what the segments ask,
// and nothing else of ours. It is safe for concurrent use. It acts in the network
// namespace of the thread that opened it.
type Network struct {
	cfg    Config
	home   *space
	links  *links
	filter *filter

	mu       sync.Mutex
	segments []plan.Segment
	moved    map[vee.ID]moved
	have     plan.HostPlan // what the kernel holds, as far as is known; nil: not known
	closed   bool
}

// moved is where a VEE is since a live migration that the segments do not speak of yet.
type moved struct {
	said string // host that the segments named at that time; once they name another, they know better
	host string // "": not this one
	at   netip.Addr
}

// Open makes the public networks' bridge and the constant part of the rule set, where they
// are not there yet. What an earlier process left stays as it is until the first Apply.
func Open(cfg Config) (_ *Network, err error) {
	home, err := here()
	if err != nil {
		return nil, err
	}
	n := &Network{cfg: cfg, home: home, moved: map[vee.ID]moved{}}
	defer func() {
		if err != nil {
			if !fault.Has(err, fault.Unsupported) {
				err = fault.New(fault.Internal, "open the networks of host %s: %w", cfg.Host, err).Try("reservoir doctor")
			}
			_ = n.Close()
		}
	}()
	h, err := netlink.NewHandle()
	if err != nil {
		return nil, fmt.Errorf("reach the kernel's network devices: %w", err)
	}
	n.links = &links{h: h, ns: home, bridge: cfg.Bridge, border: cfg.Border, spaces: map[string]*space{}, gates: map[string]plan.Gateway{}}
	n.filter = &filter{ns: int(home.ns), underlay: cfg.Underlay, sets: newSets(), log: cfg.Log}
	if !cfg.Border {
		bridge, err := n.links.ensurePublic()
		if err != nil {
			return nil, err
		}
		n.filter.hostMAC = bridge.Attrs().HardwareAddr
	}
	return n, n.filter.ensure()
}

// Close leaves the data path as it is, but for the namespaces of the gateways, which end
// when nobody holds a socket in them any more.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	var errs []error
	if n.links != nil {
		for _, s := range n.links.spaces {
			errs = append(errs, s.close())
		}
		n.links.h.Close()
	}
	return errors.Join(append(errs, n.home.close())...)
}

// Destroy removes everything that this package made, but for the public networks' bridge,
// and closes.
func (n *Network) Destroy() error {
	n.mu.Lock()
	n.segments, n.have, n.moved = nil, nil, map[vee.ID]moved{}
	err := n.converge()
	if err == nil {
		_, err = n.links.unplug(func(string) bool { return true })
	}
	if err == nil {
		err = n.filter.remove()
	}
	n.mu.Unlock()
	return errors.Join(err, n.Close())
}

// Apply makes the kernel hold what the segments ask: all networks of this host, each as a
// whole. Only what differs is touched. An error leaves some of it undone; the next Apply
// starts from what the kernel has.
func (n *Network) Apply(segments []plan.Segment) error {
	seen := map[uint32]string{}
	for _, s := range segments {
		if err := s.Check(); err != nil {
			return fault.New(fault.Malformed, "%w", err)
		}
		if other, ok := seen[s.VNI]; ok && !s.Public {
			return fault.New(fault.Malformed, "networks %s and %s have the same VNI %d", other, s.ID, s.VNI)
		}
		if !s.Public {
			seen[s.VNI] = s.ID
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.segments = slices.Clone(segments)
	return n.converge()
}

// Mend compares what the kernel really has with what it should have, repairs it, and tells
// what was amiss.
func (n *Network) Mend() ([]plan.Change, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.filter.ensure(); err != nil {
		return nil, err
	}
	n.have = nil
	have, err := n.read()
	if err != nil {
		return nil, err
	}
	n.have = maps.Clone(have)
	return n.pending(have), n.converge()
}

// Show is what the kernel has and what it should have.
func (n *Network) Show() (have, want plan.HostPlan, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	have, err = n.read()
	return have, n.want(), err
}

// Segments that the host holds, as they were applied.
func (n *Network) Segments() []plan.Segment {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.segments)
}

// effective segments: with VEEs where they are since they were handed over. n.mu is held.
func (n *Network) effective() []plan.Segment {
	if len(n.moved) == 0 {
		return n.segments
	}
	all := slices.Clone(n.segments)
	there := map[vee.ID]bool{}
	for i := range all {
		all[i].Ports = slices.Clone(all[i].Ports)
		for j := range all[i].Ports {
			p := &all[i].Ports[j]
			m, ok := n.moved[p.VEE]
			if !ok || p.Host != m.said {
				continue
			}
			there[p.VEE] = true
			p.Host, p.Underlay = m.host, m.at
		}
	}
	maps.DeleteFunc(n.moved, func(id vee.ID, _ moved) bool { return !there[id] })
	return all
}

func (n *Network) want() plan.HostPlan {
	if n.cfg.Border {
		return plan.ForBorder(n.cfg.Underlay, n.effective())
	}
	return plan.For(n.cfg.Host, n.cfg.Underlay, n.cfg.Bridge, n.effective())
}

func (n *Network) read() (plan.HostPlan, error) {
	have := plan.HostPlan{}
	if err := n.links.read(have); err != nil {
		return nil, err
	}
	return have, n.filter.read(have)
}

// pending changes: without those that wait for a TAP that is not plugged. n.mu is held.
func (n *Network) pending(have plan.HostPlan) []plan.Change {
	return slices.DeleteFunc(plan.Diff(have, n.want()), func(c plan.Change) bool {
		name := c.Key().Name
		if c.Have != nil || !isTap(name) || holds(c.Key().Kind) {
			return false
		}
		_, err := n.links.h.LinkByName(name)
		return missing(err)
	})
}

// converge the kernel to what is wanted. The rule set goes first: a port is walled before
// it is plugged in. n.mu is held.
func (n *Network) converge() (err error) {
	if n.closed {
		return fault.New(fault.Unavailable, "the networks of host %s are closed", n.cfg.Host)
	}
	if n.have == nil {
		if n.have, err = n.read(); err != nil {
			return fault.New(fault.Internal, "read the networks of host %s: %w", n.cfg.Host, err)
		}
	}
	defer func() {
		if err != nil {
			n.have = nil // part of it was done
			err = fault.New(fault.Internal, "networks of host %s: %w", n.cfg.Host, err).Try("reservoir van show --plan")
		}
	}()
	want := n.want()
	var rules, devices []plan.Change
	for _, c := range plan.Diff(n.have, want) {
		if holds(c.Key().Kind) {
			rules = append(rules, c)
		} else {
			devices = append(devices, c)
		}
	}
	if len(rules) > 0 {
		if err := n.filter.apply(rules); err != nil {
			return err
		}
	}
	var tunnels []plan.Tunnel
	for _, e := range want {
		if t, ok := e.(plan.Tunnel); ok {
			tunnels = append(tunnels, t)
		}
	}
	if err := n.links.setDetour(n.detour(), tunnels); err != nil {
		return err
	}
	later := map[plan.Key]bool{}
	for _, c := range devices {
		switch err := n.links.apply(c); {
		case errors.Is(err, errLater):
			later[c.Key()] = true
		case err != nil:
			return err
		}
	}
	maps.DeleteFunc(want, func(k plan.Key, _ plan.Entry) bool { return later[k] })
	n.have = want
	return nil
}

// detour reports whether a VEE has left that others may still look for here.
func (n *Network) detour() bool {
	for _, m := range n.moved {
		if m.host != n.cfg.Host {
			return true
		}
	}
	return false
}

// Plug makes the TAP for a VEE's NIC; it is idempotent. The TAP is in its network's bridge
// as soon as a segment says that the port is on this host, which may be before or after.
func (n *Network) Plug(id vee.ID, nic int) (tap string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if tap, err = n.links.plug(id, nic); err != nil {
		return "", fmt.Errorf("plug %s: %w", id, err)
	}
	return tap, n.converge()
}

// Unplug removes the TAPs of a VEE. That there are none is no error.
func (n *Network) Unplug(id vee.ID) error {
	taps := tapsOf(id)
	return n.unplug(func(name string) bool { return taps[name] })
}

// Sweep removes the TAPs of every VEE that keep does not name.
func (n *Network) Sweep(keep []vee.ID) error {
	kept := map[string]bool{}
	for _, id := range keep {
		maps.Copy(kept, tapsOf(id))
	}
	return n.unplug(func(name string) bool { return !kept[name] })
}

func tapsOf(id vee.ID) map[string]bool {
	taps := map[string]bool{}
	for i := range 16 {
		taps[plan.TapName(id, i)] = true
	}
	return taps
}

func (n *Network) unplug(drop func(name string) bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	gone, err := n.links.unplug(drop)
	maps.DeleteFunc(n.have, func(k plan.Key, _ plan.Entry) bool { // the kernel took them along
		return !holds(k.Kind) && slices.Contains(gone, k.Name)
	})
	return err
}

// Release says that a VEE has left for the host with that underlay address: this host stops
// owning its addresses at once, and passes on what still comes for it until the segments
// say where it is. It may come after the other host's Announce.
func (n *Network) Release(id vee.ID, to netip.Addr) error {
	return n.move(id, func(said string) moved { return moved{said: said, at: to} })
}

// Announce says that a VEE is on this host now, and tells its public networks so.
func (n *Network) Announce(id vee.ID) error {
	if err := n.move(id, func(said string) moved { return moved{said: said, host: n.cfg.Host, at: n.cfg.Underlay} }); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.segments {
		for _, p := range s.Ports {
			if p.VEE != id || !s.Public {
				continue
			}
			if err := n.home.do(func() error { return announce(n.cfg.Bridge, p) }); err != nil {
				return fmt.Errorf("announce VEE %s in network %s: %w", id, s.ID, err)
			}
		}
	}
	return nil
}

func (n *Network) move(id vee.ID, to func(said string) moved) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.segments {
		if i := slices.IndexFunc(s.Ports, func(p plan.Port) bool { return p.VEE == id }); i >= 0 {
			n.moved[id] = to(s.Ports[i].Host)
		}
	}
	return n.converge()
}

// Inside runs f where DHCP and DNS of a network are answered, with the device that its
// guests are behind: in the namespace of a private network's gateway, or on a public
// network's bridge in the host's. Sockets that f opens stay there, and are to be closed when
// the network goes.
func (n *Network) Inside(segment string, f func(device string) error) error {
	n.mu.Lock()
	var at *space
	device := ""
	for _, s := range n.segments {
		switch {
		case s.ID != segment:
		case s.Public:
			at, device = n.home, n.cfg.Bridge
		default:
			at, device = n.links.spaces[plan.GatewayName(s.VNI)], gatewayDevice
		}
	}
	if at == nil {
		n.mu.Unlock()
		return fault.New(fault.NotFound, "network %s is not on host %s", segment, n.cfg.Host).Try("reservoir van list")
	}
	held, err := at.clone()
	n.mu.Unlock()
	if err != nil {
		return fmt.Errorf("network %s: %w", segment, err)
	}
	return errors.Join(held.do(func() error { return f(device) }), held.close())
}

// Traffic of a VEE, as its guest sees it.
type Traffic struct{ Received, Sent vee.Bytes }

// Traffic of a VEE's first NICs together since they were plugged in here.
func (n *Network) Traffic(id vee.ID, nics int) (t Traffic, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return t, fault.New(fault.Unavailable, "the networks of host %s are closed", n.cfg.Host)
	}
	for i := range nics {
		d, err := n.links.h.LinkByName(plan.TapName(id, i))
		if err != nil {
			return t, fmt.Errorf("traffic of NIC %d of VEE %s: %w", i, id, err)
		}
		if s := d.Attrs().Statistics; s != nil { // what the TAP takes, the guest has sent
			t.Received += vee.Bytes(s.TxBytes)
			t.Sent += vee.Bytes(s.RxBytes)
		}
	}
	return t, nil
}

// ensurePublic makes the bridge of public networks, if it is not there, and brings it up.
func (l *links) ensurePublic() (netlink.Link, error) {
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil { // a firewall would be there and do nothing
		return nil, fault.New(fault.Unsupported, "the kernel shows no bridge's packets to its firewall: %w", err).Try("modprobe br_netfilter")
	}
	if isOurs(l.bridge) {
		return nil, fmt.Errorf("bridge %s: that is a private network's name", l.bridge)
	}
	d, err := l.h.LinkByName(l.bridge)
	if missing(err) {
		a := netlink.NewLinkAttrs()
		a.Name = l.bridge
		if err = l.h.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err == nil {
			d, err = l.h.LinkByName(l.bridge)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", l.bridge, err)
	}
	if d.Type() != "bridge" {
		return nil, fmt.Errorf("bridge %s: there is a %s of that name", l.bridge, d.Type())
	}
	// An address that nobody has set is the lowest of the ports': it would change with each
	// TAP that comes or goes, and this host would be lost to its neighbours for seconds.
	if err := l.h.LinkSetHardwareAddr(d, d.Attrs().HardwareAddr); err != nil {
		return nil, fmt.Errorf("bridge %s: keep its address: %w", l.bridge, err)
	}
	if err := l.callNetfilter(d.Attrs().Index); err != nil {
		return nil, fmt.Errorf("bridge %s: let its frames pass the packet filter: %w", l.bridge, err)
	}
	if err := l.h.LinkSetUp(d); err != nil {
		return nil, fmt.Errorf("bridge %s: bring up: %w", l.bridge, err)
	}
	return d, nil
}
