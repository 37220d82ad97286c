// Package plan is the address and forwarding plan of virtual area networks (VANs): what a
// host's kernel should hold for the ports that it and its neighbours have. It is pure: the
// VEE Manager computes segments with it, a host turns them into entries and compares.
package plan

import (
	"net/netip"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Segment is one network as one host needs to see it: the ports of the whole network,
// wherever they are. It is what the VEE Manager puts to a host.
type Segment struct {
	// ID of the network at its site, unique over services: "alpha.shop.back".
	ID string `json:"id"`
	// Version grows with every change of the rest.
	Version uint64 `json:"version"`
	// VNI is the VXLAN network identifier (RFC 7348), 1 to 2²⁴−1; 0 where Public.
	VNI uint32 `json:"vni,omitempty"`
	// Public is the site's own network: ports are in the host's bridge, without VXLAN. Each
	// group that has NICs there is a segment of its own, so several may be in one bridge.
	Public bool `json:"public,omitempty"`
	// Domain under which the names of the ports are: "shop.alpha.internal".
	Domain string `json:"domain,omitempty"`
	// Subnets: at most one of each family. Gateways are in them, in the same order: where the
	// agent answers DHCP and DNS; in a private network nothing is routed there.
	Subnets  []netip.Prefix `json:"subnets"`
	Gateways []netip.Addr   `json:"gateways,omitempty"`
	// MTU that guests are offered, bytes.
	MTU   int    `json:"mtu"`
	Ports []Port `json:"ports"`
}

// Port is where a VEE's NIC is plugged into the network.
type Port struct {
	VEE vee.ID `json:"vee"`
	NIC int    `json:"nic"` // index in the descriptor
	MAC string `json:"mac"`
	// Addresses of the subnets, at most one of each family.
	Addresses []netip.Addr `json:"addresses"`
	// Host that the VEE runs on, and that host's underlay address.
	Host     string     `json:"host"`
	Underlay netip.Addr `json:"underlay,omitzero"`
	// Names relative to Domain: "web-1.web", "web-1", and "web" while it is ready, which other
	// ports have too. Nothing else stands for it; empty while the replica must not be found.
	Names []string `json:"names,omitempty"`
	// Firewall rules of the port, tried in order. None: everything is allowed that isolation
	// allows. Some: what no rule of a direction that has rules speaks of is denied.
	Firewall []Rule `json:"firewall,omitempty"`
	// Scraped is the TCP port at which its host asks it for its measurements in a public network,
	// whatever the firewall says; 0: none. In a private one the host asks from the gateway, which
	// every wall lets through.
	Scraped uint16 `json:"scraped,omitempty"`
}

// Rule of a stateful firewall: an answer to what was let through is let through.
type Rule struct {
	Allow bool `json:"allow"`
	Out   bool `json:"out,omitempty"` // direction, as the guest sees it
	// Protocol is "tcp", "udp", "icmp" (ICMPv6 too) or "any".
	Protocol string `json:"protocol"`
	// First to Last are destination ports; First zero: all; Last zero: First alone.
	First uint16 `json:"first,omitempty"`
	Last  uint16 `json:"last,omitempty"`
	// Peers that it speaks of; empty: anybody. Components and networks of the manifest are
	// resolved to the addresses of their ports by who makes the segment.
	Peers []netip.Prefix `json:"peers,omitempty"`
}
