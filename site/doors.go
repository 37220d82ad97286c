package site

import (
	"cmp"
	"context"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/veem"
)

// doorway is a door of the proxy's, by which access points lead to a VEE.
type doorway struct {
	port uint16
	open bool // the proxy has it
}

// openingTakes is how long who asks for a new door waits for the proxy.
const openingTakes = 3 * time.Second

// Door of the proxy that leads where d says; it is open when Door returns. While the proxy does
// not answer, only those that are open already are told.
func (g *gate) Door(ctx context.Context, d veem.Door) (netip.AddrPort, error) {
	at, open, err := g.doorway(d)
	if err != nil || open {
		return at, err
	}
	if err := g.failure(); err != nil {
		return at, fault.New(fault.Unavailable, "open a door to VEE %s: %w", d.VEE, err)
	}
	ctx, cancel := context.WithTimeout(ctx, openingTakes)
	defer cancel()
	if err := g.sync(ctx); err != nil {
		return at, fault.New(fault.Unavailable, "open a door to VEE %s: %w", d.VEE, err)
	}
	if at, open, err = g.doorway(d); err == nil && !open {
		err = fault.New(fault.Unavailable, "the site's proxy has no door to VEE %s yet", d.VEE)
	}
	return at, err
}

// doorway of d, with a port that is its own.
func (g *gate) doorway(d veem.Door) (at netip.AddrPort, open bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	inside, err := netip.ParseAddrPort(g.proxy.Inside)
	if err != nil {
		return at, false, g.none()
	}
	w := g.ways[d]
	if w == nil {
		port, ok := g.freeDoor(d)
		if !ok {
			return at, false, fault.New(fault.NoResources, "all %d doors of the site's proxy are taken", border.LastDoor-border.FirstDoor+1)
		}
		w = &doorway{port: port}
		g.ways[d] = w
	}
	return netip.AddrPortFrom(inside.Addr(), w.port), w.open, nil
}

// freeDoor is the first free port from one on that is made of d, so that a process that has
// just started mostly gives the same as the one before. g.mu is held.
func (g *gate) freeDoor(d veem.Door) (uint16, bool) {
	taken := map[uint16]bool{}
	for o, w := range g.ways {
		if o.UDP == d.UDP {
			taken[w.port] = true
		}
	}
	const all = border.LastDoor - border.FirstDoor + 1
	h := fnv.New32a()
	h.Write([]byte(string(d.VEE) + " " + strconv.Itoa(int(d.Port))))
	for i := range uint32(all) {
		if port := uint16(border.FirstDoor + (h.Sum32()+i)%all); !taken[port] {
			return port, true
		}
	}
	return 0, false
}

// keepWays forgets the doors that nobody leads through any more. g.mu is held.
func (g *gate) keepWays(wanted []veem.Door) {
	keep := make(map[veem.Door]bool, len(wanted))
	for _, d := range wanted {
		keep[d] = true
	}
	for d := range g.ways {
		if !keep[d] {
			delete(g.ways, d)
		}
	}
}

// listWays as the proxy is told of them. g.mu is held.
func (g *gate) listWays() (all []border.Door) {
	for d, w := range g.ways {
		all = append(all, border.Door{Port: w.port, UDP: d.UDP, Segment: d.Segment, To: d.To})
	}
	slices.SortFunc(all, func(a, b border.Door) int {
		if c := cmp.Compare(a.Port, b.Port); c != 0 || a.UDP == b.UDP {
			return c
		}
		if b.UDP {
			return -1
		}
		return 1
	})
	return all
}

// openWays notes which doors the proxy has, and reports whether one of them is new. g.mu is held.
func (g *gate) openWays(there []border.Door) (news bool) {
	for d, w := range g.ways {
		open := slices.Contains(there, border.Door{Port: w.port, UDP: d.UDP, Segment: d.Segment, To: d.To})
		news = news || open && !w.open
		w.open = open
	}
	return news
}
