package veem

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
)

func (n Network) check() error {
	switch {
	case !n.Subnet.Addr().Is4() || n.Subnet.Bits() > 30:
		return fmt.Errorf("subnet %v: want an IPv4 prefix of at most /30", n.Subnet)
	case n.Gateway.IsValid() && !n.Subnet.Contains(n.Gateway):
		return fmt.Errorf("gateway %v is not in subnet %v", n.Gateway, n.Subnet)
	case n.First.IsValid() && !n.Subnet.Contains(n.First), n.Last.IsValid() && !n.Subnet.Contains(n.Last), n.First.IsValid() && n.Last.Less(n.First) && n.Last.IsValid():
		return fmt.Errorf("addresses %v to %v are not in subnet %v", n.First, n.Last, n.Subnet)
	}
	return nil
}

// bounds of the addresses that VEEs get without asking: without the network's own, its
// broadcast address and its gateway (which next leaves out).
func (n Network) bounds() (first, last netip.Addr) {
	first, last = usable(n.Subnet)
	if n.First.IsValid() && first.Less(n.First) {
		first = n.First
	}
	if n.Last.IsValid() && n.Last.Less(last) {
		last = n.Last
	}
	return first, last
}

// usable addresses of an IPv4 subnet: without its own and its broadcast address.
func usable(p netip.Prefix) (first, last netip.Addr) {
	return nth(p, 1), nth(p, 1<<(32-p.Bits())-2)
}

// nth address of a subnet of either family; its own is number 0.
func nth(p netip.Prefix, n uint32) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	end := b[len(b)-4:]
	binary.BigEndian.PutUint32(end, binary.BigEndian.Uint32(end)+n)
	a, _ := netip.AddrFromSlice(b) // of 4 or 16 bytes
	return a
}

// number of an IPv4 address in its subnet: the inverse of nth.
func number(p netip.Prefix, a netip.Addr) uint32 {
	x, base := a.As4(), p.Masked().Addr().As4()
	return binary.BigEndian.Uint32(x[:]) - binary.BigEndian.Uint32(base[:])
}

// pool gives out a network's addresses.
type pool struct {
	net Network
	// Of a network of a group:
	of *networkRecord

	taken map[netip.Addr]string // and by which VEE, for people
	after netip.Addr            // the search begins behind it, so that an address rests before it is used again
}

// next free address; false when there is none.
func (p *pool) next() (netip.Addr, bool) {
	first, last := p.net.bounds()
	a := p.after
	for begin := (netip.Addr{}); ; {
		if a = a.Next(); a.Less(first) || last.Less(a) || !a.IsValid() {
			a = first
		}
		if a == begin {
			return a, false
		}
		if !begin.IsValid() {
			begin = a
		}
		if p.taken[a] == "" && a != p.net.Gateway {
			p.after = a
			return a, true
		}
	}
}

// mac of the NIC with an IPv4 address: locally administered, and unique at the site. That of
// a group's network has the network's VNI in it, since two groups may use the same subnet.
func (p *pool) mac(a netip.Addr) string {
	if p.of != nil {
		n := number(p.net.Subnet, a)
		v := p.of.VNI
		return fmt.Sprintf("06:%02x:%02x:%02x:%02x:%02x", byte(v>>16), byte(v>>8), byte(v), byte(n>>8), byte(n))
	}
	b := a.As4()
	return fmt.Sprintf("02:52:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}

// give NIC i of d an address: the one that it asks for, or the next.
func (p *pool) give(d *vee.Descriptor, i int) error {
	nic := &d.NICs[i]
	a, wished := netip.Addr{}, nic.Address != ""
	if wished {
		a = netip.MustParseAddr(nic.Address) // checkNICs has
		first, last := usable(p.net.Subnet)
		switch by := p.taken[a]; {
		case a.Less(first) || last.Less(a) || a == p.net.Gateway:
			return malformed(fmt.Sprintf("VEE %q: nics[%d].address", d.Name, i), "%v cannot be given to a VEE on network %q: want one of %v, without %v", a, nic.Network, p.net.Subnet, p.net.Gateway)
		case by != "":
			return fault.New(fault.NoResources, "VEE %q: address %v of network %q is %s's", d.Name, a, nic.Network, by).
				Try("choose another address, or wait until that VEE is gone: reservoir van show %s", nic.Network)
		}
	} else {
		free := false
		if a, free = p.next(); !free {
			return fault.New(fault.NoResources, "VEE %q: network %q has no free address in %v", d.Name, nic.Network, p.net.Subnet).
				Try("destroy VEEs that are not needed, or give the network a larger subnet")
		}
	}
	p.taken[a] = cmp.Or(d.Name, "?")
	nic.MAC = p.mac(a)
	nic.Address = netip.PrefixFrom(a, p.net.Subnet.Bits()).String()
	nic.Domain = d.Naming.Domain
	if p.of == nil {
		nic.Public = true
		if p.net.Gateway.IsValid() {
			nic.Gateway = p.net.Gateway.String()
		}
		return nil
	}
	nic.MTU = p.of.MTU
	for k, s := range p.of.Subnets {
		if s.Addr().Is6() {
			nic.Address6 = netip.PrefixFrom(nth(s, number(p.net.Subnet, a)), s.Bits()).String()
		}
		nic.DNS = append(nic.DNS, p.of.Gateways[k].String())
	}
	return nil
}

// pools of the networks that NICs may be on: of the site by name, of groups by identifier.
type pools map[string]*pool

// pools as they are in t, of the networks that rs name. An address is taken until the host
// of its VEE has confirmed that the VEE is gone.
func (m *Manager) pools(t *tx, rs []record) pools {
	ps := pools{}
	for i := range rs {
		d := &rs[i].Descriptor
		for _, nic := range d.NICs {
			if n, known := m.cfg.Networks[nic.Network]; known {
				ps["//"+nic.Network] = &pool{net: n}
			}
			if r := t.networks.get(networkID(d.GroupID, nic.Network)); r != nil && r.Deleted == nil && r.Customer == d.Customer {
				ps[r.ID] = &pool{net: r.range4(), of: r}
			}
		}
	}
	for _, p := range ps {
		p.taken = map[netip.Addr]string{}
		if p.of != nil && p.of.Entry.IsValid() {
			p.taken[p.of.Entry] = "the site's proxy"
		}
	}
	newest := map[*pool]*record{}
	for _, r := range t.vees.all() {
		for _, nic := range r.Descriptor.NICs {
			p := ps.find(&r.Descriptor, nic)
			a, err := netip.ParsePrefix(nic.Address)
			if p == nil || err != nil {
				continue
			}
			if r.State != vee.Destroyed {
				p.taken[a.Addr()] = r.Descriptor.Name + " (VEE " + string(r.ID) + ")"
			}
			if wasAsked := p.net.First.IsValid() && a.Addr().Less(p.net.First); wasAsked {
				continue
			}
			if n := newest[p]; n == nil || n.Created.Before(r.Created) || n == r || n.Created.Equal(r.Created) && p.after.Less(a.Addr()) {
				newest[p], p.after = r, a.Addr()
			}
		}
	}
	return ps
}

// find the pool of a NIC: one that is not said to be public is the group's if it has a
// network of that name.
func (ps pools) find(d *vee.Descriptor, nic vee.NIC) *pool {
	if p := ps[networkID(d.GroupID, nic.Network)]; p != nil && !nic.Public {
		return p
	}
	return ps["//"+nic.Network]
}

// fill gives every NIC of rs its addresses, those first that ask for one.
func (m *Manager) fill(t *tx, rs []record) error {
	ps := m.pools(t, rs)
	for i := range rs {
		rs[i].Descriptor.NICs = append([]vee.NIC(nil), rs[i].Descriptor.NICs...)
	}
	for _, wished := range []bool{true, false} {
		for i := range rs {
			d := &rs[i].Descriptor
			for k, nic := range d.NICs {
				p := ps.find(d, nic)
				switch {
				case nic.MAC != "" || (nic.Address != "") != wished:
				case p == nil:
					return malformed(fmt.Sprintf("VEE %q: nics[%d].network", d.Name, k), "group %q has no network %q (the site has %s)", d.GroupID, nic.Network, strings.Join(m.networkNames(), ", ")).
						Try("make it first, or use one that there is: reservoir van list")
				default:
					if err := p.give(d, k); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}
