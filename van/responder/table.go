package responder

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Table is a segment in the order that questions are asked in. It does not change.
type Table struct {
	segment plan.Segment
	host    string
	servers []netip.Addr // where DNS and DHCP are answered, IPv4 first
	zone    string       // the segment's domain, "shop.alpha.internal."; "" where it has none

	ports    map[string]port         // of this host, by MAC as net.HardwareAddr prints it
	asker    map[netip.Addr]vee.ID   // by address
	members  map[vee.ID]bool         // VEEs that have a port
	names    map[string][]netip.Addr // by canonical name
	reversed map[string][]string     // names by the address's name in in-addr.arpa or ip6.arpa
	channel  string                  // canonical name of the monitoring channel; "" where it means something else
	// moved has for a public network's addresses that are on another host that host's own.
	moved map[netip.Addr]netip.Addr
}

// port with its addresses by family: IPv4, IPv6.
type port struct {
	plan.Port
	own [2]netip.Addr
}

// NewTable of a segment as host sees it. servers are the host's own addresses; where none is
// in the segment's subnets, its gateways answer.
func NewTable(s plan.Segment, host string, servers []netip.Addr) *Table {
	servers = slices.DeleteFunc(slices.Clone(servers), func(a netip.Addr) bool {
		return !slices.ContainsFunc(s.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
	})
	if len(servers) == 0 {
		servers = s.Gateways
	}
	t := &Table{
		segment: s, host: host, servers: slices.SortedFunc(slices.Values(servers), netip.Addr.Compare),
		ports: map[string]port{}, asker: map[netip.Addr]vee.ID{}, members: map[vee.ID]bool{},
		names: map[string][]netip.Addr{}, reversed: map[string][]string{}, moved: map[netip.Addr]netip.Addr{},
	}
	if s.Domain != "" {
		t.zone = dns.CanonicalName(s.Domain)
	}
	for _, p := range s.Ports {
		t.add(p)
	}
	if channel := dns.CanonicalName(vee.MonitoringName + "." + t.zone); t.zone != "" && len(t.names[channel]) == 0 {
		t.names[channel], t.channel = t.servers, channel
	}
	return t
}

func (t *Table) add(p plan.Port) {
	t.members[p.VEE] = true
	var own [2]netip.Addr
	for _, a := range p.Addresses {
		t.asker[a] = p.VEE
		own[family(a)] = a
		if t.segment.Public && p.Host != t.host && p.Underlay.IsValid() {
			t.moved[a] = p.Underlay
		}
	}
	if mac, err := net.ParseMAC(p.MAC); err == nil && p.Host == t.host {
		t.ports[mac.String()] = port{p, own}
	}
	if t.zone == "" {
		return
	}
	for _, name := range p.Names {
		full := dns.CanonicalName(name + "." + t.zone)
		t.names[full] = append(t.names[full], p.Addresses...)
		// An address has the names that it has alone: those that say which replica it is.
		if !strings.Contains(name, ".") {
			continue
		}
		for _, a := range p.Addresses {
			if of, err := dns.ReverseAddr(a.String()); err == nil {
				t.reversed[of] = append(t.reversed[of], full)
			}
		}
	}
}

// addresses of a name as they are told to the asker at an address. The monitoring channel is
// the host that the asker is on: in a public network one that has moved still asks the host
// it came from.
func (t *Table) addresses(name string, from netip.Addr) []netip.Addr {
	if at, moved := t.moved[from]; moved && name == t.channel {
		return []netip.Addr{at}
	}
	return t.names[name]
}

// Families of addresses, as indices.
const (
	ip4 = iota
	ip6
)

func family(a netip.Addr) int {
	if a.Is4() {
		return ip4
	}
	return ip6
}

// of a family, the first; not valid where there is none.
func of(list []netip.Addr, wanted int) netip.Addr {
	for _, a := range list {
		if family(a) == wanted {
			return a
		}
	}
	return netip.Addr{}
}

// subnet of a family; not valid where the segment has none.
func (t *Table) subnet(wanted int) netip.Prefix {
	for _, p := range t.segment.Subnets {
		if family(p.Addr()) == wanted {
			return p
		}
	}
	return netip.Prefix{}
}
