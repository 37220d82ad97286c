package veem

import (
	"fmt"
	"net/netip"

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

// bounds of the addresses that VEEs may have: without the network's own, its broadcast
// address and its gateway (which next leaves out).
func (n Network) bounds() (first, last netip.Addr) {
	first = n.Subnet.Masked().Addr().Next()
	b := n.Subnet.Masked().Addr().As4()
	for i := n.Subnet.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last = netip.AddrFrom4(b).Prev()
	if n.First.IsValid() && first.Less(n.First) {
		first = n.First
	}
	if n.Last.IsValid() && n.Last.Less(last) {
		last = n.Last
	}
	return first, last
}

// pool gives out a network's addresses.
type pool struct {
	net   Network
	taken map[netip.Addr]bool
	after netip.Addr // the search begins behind it, so that an address rests before it is used again
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
		if !p.taken[a] && a != p.net.Gateway {
			p.taken[a], p.after = true, a
			return a, true
		}
	}
}

// mac of the NIC with an IPv4 address: locally administered, and unique where addresses
// are.
func mac(a netip.Addr) string {
	b := a.As4()
	return fmt.Sprintf("02:52:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}

type pools map[string]*pool

// pools as they are in t: an address is taken until the host of its VEE has confirmed that
// the VEE is gone.
func (m *Manager) pools(t *tx) pools {
	ps := pools{}
	for name, n := range m.cfg.Networks {
		ps[name] = &pool{net: n, taken: map[netip.Addr]bool{}}
	}
	newest := map[string]*record{}
	for _, r := range t.vees.all() {
		for _, nic := range r.Descriptor.NICs {
			p := ps[nic.Network]
			a, err := netip.ParsePrefix(nic.Address)
			if p == nil || err != nil {
				continue // of a network that the site has no more
			}
			if r.State != vee.Destroyed {
				p.taken[a.Addr()] = true
			}
			if n := newest[nic.Network]; n == nil || n.Created.Before(r.Created) || n == r || n.Created.Equal(r.Created) && p.after.Less(a.Addr()) {
				newest[nic.Network], p.after = r, a.Addr()
			}
		}
	}
	return ps
}

// fill gives every NIC of d its address.
func (ps pools) fill(d *vee.Descriptor) error {
	nics := append([]vee.NIC(nil), d.NICs...)
	for i := range nics {
		p := ps[nics[i].Network]
		a, free := p.next()
		if !free {
			return fault.New(fault.NoResources, "VEE %q: network %q has no free address in %v", d.Name, nics[i].Network, p.net.Subnet).
				Try("destroy VEEs that are not needed, or give the site a larger subnet")
		}
		nics[i].MAC = mac(a)
		nics[i].Address = netip.PrefixFrom(a, p.net.Subnet.Bits()).String()
		if p.net.Gateway.IsValid() {
			nics[i].Gateway = p.net.Gateway.String()
		}
	}
	d.NICs = nics
	return nil
}
