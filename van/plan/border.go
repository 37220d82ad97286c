package plan

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
)

// SitePrefix is what Port.Host begins with where it names a site and not a host: to the
// hosts of a site a partner is one more host, whose underlay address is the site's proxy's.
const SitePrefix = "@"

// AtBorder is what Port.Host says of the one port that a site's proxy has itself: by it the
// access points of the site lead into the network. To other sites it is a port at that site.
const AtBorder = "+border"

// SiteOf a port that is at another site; false: it is at a host of this one.
func SiteOf(p Port) (site string, ok bool) { return strings.CutPrefix(p.Host, SitePrefix) }

// SitesOf a segment's ports beside this one, in order.
func SitesOf(s Segment) (sites []string) {
	for _, p := range s.Ports {
		if site, ok := SiteOf(p); ok && !slices.Contains(sites, site) {
			sites = append(sites, site)
		}
	}
	slices.Sort(sites)
	return sites
}

// BorderTap is the name of the TAP in a network at a site's proxy that leads to another
// site.
func BorderTap(vni uint32, site string) string {
	h := fnv.New32a()
	h.Write([]byte(site))
	return fmt.Sprintf("%sb%06x%06x", TapPrefix, vni, h.Sum32()&0xffffff)
}

// ForBorder is the plan of a site's proxy, which is one more host of each network: all ports
// at another site are behind one TAP, through which they alone may send, and nothing passes
// from one such TAP to another. Nothing is answered here. Segments must be valid.
func ForBorder(underlay netip.Addr, segments []Segment) HostPlan {
	h := make(HostPlan, 16*len(segments))
	for _, s := range segments {
		bridge, tunnel := BridgeName(s.VNI), TunnelName(s.VNI)
		h.Add(Bridge{Name: bridge})
		h.Add(Tunnel{Name: tunnel, Bridge: bridge, VNI: s.VNI, Local: underlay})
		for _, p := range s.Ports {
			for _, a := range owned(p) {
				h.Add(Answer{s.VNI, a, p.MAC})
			}
			if p.Host == AtBorder {
				gateway := GatewayName(s.VNI)
				h.Add(Gateway{Name: gateway, Bridge: bridge, MAC: p.MAC, Addresses: withLengths(s, p.Addresses)})
				h.Add(Network{gateway, s.VNI})
				h.Add(Forward{Device: gateway, MAC: p.MAC})
				continue
			}
			site, away := SiteOf(p)
			if !away {
				if p.Underlay.IsValid() {
					h.Add(Underlay{p.Underlay})
					h.Add(Forward{Device: tunnel, MAC: p.MAC, To: p.Underlay})
				}
				continue
			}
			tap := BorderTap(s.VNI, site)
			h.Add(Member{tap, bridge})
			h.Add(Forward{Device: tap, MAC: p.MAC})
			h.Add(Network{tap, s.VNI})
			h.Add(Permit{Tap: tap, MAC: p.MAC})
			for _, a := range owned(p) {
				h.Add(Permit{Tap: tap, MAC: p.MAC, Addr: a})
			}
		}
	}
	return h
}
