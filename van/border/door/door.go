// Package door opens the doors of a site's proxy: by them the site's access points enter the
// networks that span sites, wherever the VEE is that is asked for. The kernel carries what
// passes. A network has a namespace of its own at the proxy, since two may have the same
// addresses; so each door is one here and one there:
//
//	inside address:port ─► passage to the network, same port ─► VEE:port
package door

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/reservoir-cloud/reservoir/van"
	"github.com/reservoir-cloud/reservoir/van/balance"
	"github.com/reservoir-cloud/reservoir/van/border"
)

// Put makes the doors of c those of the proxy with this inside address, and there are no
// others. The networks hold c's segments.
func Put(networks *van.Network, inside netip.Addr, c border.Config) error {
	var here []balance.Door
	var errs []error
	for _, s := range c.Segments {
		if !s.Entered() {
			continue
		}
		errs = append(errs, networks.Passage(s.VNI, func(far netip.Addr) error {
			var there []balance.Door
			for _, d := range c.Doors {
				if d.Segment != s.ID {
					continue
				}
				at := netip.AddrPortFrom(far, d.Port)
				here = append(here, balance.Door{At: netip.AddrPortFrom(inside, d.Port), UDP: d.UDP, To: at})
				there = append(there, balance.Door{At: at, UDP: d.UDP, To: d.To})
			}
			return balance.PutDoors(there)
		}))
	}
	errs = append(errs, networks.Home(func() error { return balance.PutDoors(here) }))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("doors of access points: %w", err)
	}
	return nil
}
