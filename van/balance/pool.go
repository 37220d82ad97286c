package balance

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
)

// target of connections: what a client addresses.
type target struct {
	at  netip.AddrPort
	udp bool
}

func (t target) String() string {
	if t.udp {
		return "udp " + t.at.String()
	}
	return "tcp " + t.at.String()
}

func (t target) proto() uint8 {
	if t.udp {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// candidates in the order in which p should try them: the address that it had, its own port
// on an address of the pool (first those that its group has already), a port of the shared
// address. owners are the groups that have addresses of the pool.
func (c Config) candidates(p plan.Point, owners map[netip.Addr]string) func(yield func(target) bool) {
	return func(yield func(target) bool) {
		try := func(a netip.Addr, port uint16) bool { return yield(target{netip.AddrPortFrom(a, port), p.UDP}) }
		if was, err := netip.ParseAddrPort(p.Address); err == nil && c.serves(was.Addr()) && !try(was.Addr(), was.Port()) {
			return
		}
		for _, own := range []bool{true, false} {
			for a := range c.pooled() {
				if owner, taken := owners[a]; (own && taken && owner == p.Group || !own && !taken) && !try(a, p.Port) {
					return
				}
			}
		}
		for port := int(c.First); port <= int(c.Last); port++ {
			if !try(c.Address, uint16(port)) {
				return
			}
		}
	}
}

// pooled are the addresses of the pool; of one that is larger than a single address, the
// network's own and the broadcast address are left out.
func (c Config) pooled() func(yield func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		if !c.Pool.IsValid() {
			return
		}
		p := c.Pool.Masked()
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			edge := p.Bits() < 31 && (a == p.Addr() || !p.Contains(a.Next()))
			if !edge && a != c.Address && !yield(a) {
				return
			}
		}
	}
}

func (c Config) serves(a netip.Addr) bool {
	return a == c.Address || c.Pool.IsValid() && c.Pool.Contains(a)
}

// hold takes the port of t from every other program of this machine: a bound socket that
// does not listen, so that what no rule sends on is refused.
func hold(t target) (fd int, err error) {
	kind := unix.SOCK_STREAM
	if t.udp {
		kind = unix.SOCK_DGRAM
	}
	if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("hold %v: %w", t, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(t.at.Port()), Addr: t.at.Addr().As4()}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("hold %v: %w", t, err)
	}
	return fd, nil
}

// take the first candidate of p that is free. Addresses of the pool are put on this machine
// first.
func (b *Balancer) take(p plan.Point) (target, int, error) {
	owners := map[netip.Addr]string{}
	taken := map[target]bool{}
	for _, o := range b.points {
		owners[o.target.at.Addr()] = o.Group
		taken[o.target] = true
	}
	for t := range b.cfg.candidates(p, owners) {
		if taken[t] {
			continue
		}
		if t.at.Addr() != b.cfg.Address || b.leased() {
			if err := b.put(t.at.Addr()); err != nil {
				return t, -1, err
			}
		}
		fd, err := hold(t)
		switch {
		case err == nil:
			return t, fd, nil
		case errors.Is(err, syscall.EADDRINUSE):
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			return t, -1, fault.New(fault.Unavailable, "%w", err).
				Try("give the site an address of this machine: reservoir site --access-address")
		default:
			return t, -1, err
		}
	}
	return target{}, -1, fault.New(fault.NoResources, "every port from %d to %d of %v is taken", b.cfg.First, b.cfg.Last, b.cfg.Address).
		Try("give the site more ports or addresses: reservoir site --access-points 20000-29999 --access-pool 192.0.2.0/28")
}
