package responder

import (
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// lease of an address. It belongs to the NIC for as long as that lives: what a lease's end
// brings is news of the segment, its MTU for one.
const lease = time.Hour

// DHCP4 answers a message of a DHCPv4 client (RFC 2131). There is no answer (nil) to what
// is malformed, comes by a relay or from a MAC that no port of this host has.
func (t *Table) DHCP4(query []byte) []byte {
	q, err := dhcpv4.FromBytes(query)
	if err != nil || q.OpCode != dhcpv4.OpcodeBootRequest || !q.GatewayIPAddr.IsUnspecified() && q.GatewayIPAddr != nil {
		return nil
	}
	p, known := t.ports[q.ClientHWAddr.String()]
	address, server, subnet := p.own[ip4], of(t.servers, ip4), t.subnet(ip4)
	if !known || !address.IsValid() || !server.IsValid() || !subnet.IsValid() {
		return nil
	}
	if other := q.ServerIdentifier(); other != nil && !same(other, server) {
		return nil // it has chosen another server's offer
	}
	kind, yours := dhcpv4.MessageTypeAck, net.IP(address.AsSlice())
	switch q.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeInform:
		yours = net.IPv4zero
	case dhcpv4.MessageTypeRequest:
		wanted := q.RequestedIPAddress()
		if wanted == nil {
			wanted = q.ClientIPAddr
		}
		if !same(wanted, address) {
			return reply(q, dhcpv4.MessageTypeNak, net.IPv4zero, server)
		}
	default:
		return nil
	}
	with := []dhcpv4.Modifier{
		dhcpv4.WithNetmask(net.CIDRMask(subnet.Bits(), 32)),
		dhcpv4.WithOption(dhcpv4.OptDNS(server.AsSlice())),
	}
	if t.segment.MTU > 0 {
		with = append(with, dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(t.segment.MTU >> 8), byte(t.segment.MTU)}))
	}
	if search := plan.Search(t.zone); search != nil {
		with = append(with, dhcpv4.WithOption(dhcpv4.OptDomainName(search[0])),
			dhcpv4.WithOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: search})))
	}
	// A private network leads nowhere. A client that takes classless routes passes over the
	// router (RFC 3442), so both say the same.
	if gateway := of(t.segment.Gateways, ip4); t.segment.Public && gateway.IsValid() {
		via := net.IP(gateway.AsSlice())
		with = append(with, dhcpv4.WithOption(dhcpv4.OptRouter(via)),
			dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Router: via})))
	}
	if kind != dhcpv4.MessageTypeAck || !yours.IsUnspecified() { // an inform is told no time
		with = append(with, dhcpv4.WithLeaseTime(uint32(lease/time.Second)))
	}
	return reply(q, kind, yours, server, with...)
}

func reply(q *dhcpv4.DHCPv4, kind dhcpv4.MessageType, yours net.IP, server netip.Addr, with ...dhcpv4.Modifier) []byte {
	r, err := dhcpv4.NewReplyFromRequest(q, append(with,
		dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(yours),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server.AsSlice())))...)
	if err != nil {
		return nil
	}
	return r.ToBytes()
}

func same(ip net.IP, a netip.Addr) bool {
	b, ok := netip.AddrFromSlice(ip)
	return ok && b.Unmap() == a
}
