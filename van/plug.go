// Package van is the network of the VEEs: what plugs a guest into its host's bridge, and
// what makes a group of VEEs reachable from outside through one address (an access
// point).
//
// This is the first cut: one flat bridge for each site. It holds no address plan; that is
// the VEE Manager's.
package van

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/reservoir-cloud/reservoir/vee"
)

// tapPrefix marks the TAP devices that belong to this host's VEEs, so that leftovers can
// be found.
const tapPrefix = "rt"

// TapName of a VEE's i-th NIC: at most 15 characters, the kernel's bound, and the same at
// every call. Two VEEs of one site differ in their identifier's random part; those of two
// sites in the hash.
func TapName(id vee.ID, i int) string {
	h := fnv.New32a()
	h.Write([]byte(id))
	return fmt.Sprintf("%s%s%02x%x", tapPrefix, id.Short(), byte(h.Sum32()), i&0xf)
}

// MAC of a VEE's i-th NIC: locally administered, derived from the identifier. The VEE
// Manager keeps what it gave in the record and checks that no other VEE has it.
func MAC(id vee.ID, i int) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%d", id, i)
	s := h.Sum64()
	return net.HardwareAddr{0x52, 0x54, byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s)}.String()
}

// Bridge is a host's bridge that VEEs are plugged into.
type Bridge struct{ name string }

// EnsureBridge makes the bridge if it is not there, and brings it up.
func EnsureBridge(name string) (Bridge, error) {
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		a := netlink.NewLinkAttrs()
		a.Name = name
		if err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: a}); err == nil {
			l, err = netlink.LinkByName(name)
		}
	}
	if err != nil {
		return Bridge{}, fmt.Errorf("bridge %s: %w", name, err)
	}
	if l.Type() != "bridge" {
		return Bridge{}, fmt.Errorf("bridge %s: there is a %s of that name", name, l.Type())
	}
	// An address that nobody has set is the lowest of the ports': it would change with each
	// TAP that comes or goes, and this host would be lost to its neighbours for seconds.
	if err := netlink.LinkSetHardwareAddr(l, l.Attrs().HardwareAddr); err != nil {
		return Bridge{}, fmt.Errorf("bridge %s: keep its address: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return Bridge{}, fmt.Errorf("bridge %s: bring up: %w", name, err)
	}
	return Bridge{name}, nil
}

// Plug makes the TAP for a VEE's i-th NIC and puts it into the bridge. It is idempotent;
// the name is TapName's. Only root may open the TAP: the driver passes the guest's process
// an open one.
func (b Bridge) Plug(id vee.ID, i int) (string, error) {
	br, err := netlink.LinkByName(b.name)
	if err != nil {
		return "", fmt.Errorf("plug %s into bridge %s: %w", id, b.name, err)
	}
	name := TapName(id, i)
	tap, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		a := netlink.NewLinkAttrs()
		a.Name = name
		t := &netlink.Tuntap{LinkAttrs: a, Mode: netlink.TUNTAP_MODE_TAP,
			Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
		if err = netlink.LinkAdd(t); err == nil {
			tap, err = netlink.LinkByName(name)
		}
	}
	if err != nil {
		return "", fmt.Errorf("plug %s: TAP %s: %w", id, name, err)
	}
	if tap.Attrs().MasterIndex != br.Attrs().Index {
		if err := netlink.LinkSetMaster(tap, br); err != nil {
			return "", fmt.Errorf("plug %s: %s into bridge %s: %w", id, name, b.name, err)
		}
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		return "", fmt.Errorf("plug %s: bring up %s: %w", id, name, err)
	}
	return name, nil
}

// Unplug removes the TAPs of a VEE. That there are none is no error.
func (b Bridge) Unplug(id vee.ID) error {
	return b.removeTaps(func(name string) bool {
		for i := range 16 {
			if name == TapName(id, i) {
				return true
			}
		}
		return false
	})
}

// Sweep removes the TAPs of every VEE that keep does not name.
func (b Bridge) Sweep(keep []vee.ID) error {
	kept := map[string]bool{}
	for _, id := range keep {
		for i := range 16 {
			kept[TapName(id, i)] = true
		}
	}
	return b.removeTaps(func(name string) bool { return !kept[name] })
}

func (b Bridge) removeTaps(drop func(name string) bool) error {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list network links: %w", err)
	}
	var errs []error
	for _, l := range links {
		n := l.Attrs().Name
		if l.Type() != "tuntap" || !strings.HasPrefix(n, tapPrefix) || len(n) != 15 || !drop(n) {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
			errs = append(errs, fmt.Errorf("remove TAP %s: %w", n, err))
		}
	}
	return errors.Join(errs...)
}
