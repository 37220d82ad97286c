package responder

import (
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// DHCP6 answers a message of a DHCPv6 client (RFC 8415) that came from a link-local
// address. The client is known by the MAC that this address was made of (RFC 4291,
// appendix A): its own word on who it is (its DUID) may be anything. There is no answer
// (nil) to what is malformed or comes from a MAC that no port of this host has.
func (t *Table) DHCP6(query []byte, from netip.Addr) []byte {
	q, err := dhcpv6.MessageFromBytes(query)
	if err != nil || q.Options.ClientID() == nil {
		return nil
	}
	p, known := t.ports[macOf(from)]
	address, server := p.own[ip6], of(t.servers, ip6)
	if !known || !address.IsValid() || !server.IsValid() {
		return nil
	}
	self := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: serverMAC(server)}
	if other := q.Options.ServerID(); other != nil && !other.Equal(self) {
		return nil
	}
	with := []dhcpv6.Modifier{dhcpv6.WithServerID(self), dhcpv6.WithDNS(server.AsSlice())}
	if search := plan.Search(t.zone); search != nil {
		with = append(with, dhcpv6.WithDomainSearchList(search...))
	}
	if ia := q.Options.OneIANA(); ia != nil { // a NIC has one address
		given := &dhcpv6.OptIANA{IaId: ia.IaId, T1: lease / 2, T2: lease * 4 / 5}
		given.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: address.AsSlice(), PreferredLifetime: lease, ValidLifetime: lease})
		for _, had := range ia.Options.Addresses() {
			if !same(had.IPv6Addr, address) { // section 18.3.4: an address that is no more has no lifetime
				given.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: had.IPv6Addr})
			}
		}
		with = append(with, dhcpv6.WithOption(given))
	}
	var r *dhcpv6.Message
	switch q.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if q.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
			r, err = dhcpv6.NewReplyFromMessage(q, append(with, dhcpv6.WithRapidCommit)...)
			break
		}
		r, err = dhcpv6.NewAdvertiseFromSolicit(q, with...)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind, dhcpv6.MessageTypeInformationRequest:
		r, err = dhcpv6.NewReplyFromMessage(q, with...)
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	return r.ToBytes()
}

// serverMAC stands for a server in its DUID: locally administered, and the same at every
// host that answers at this address.
func serverMAC(server netip.Addr) net.HardwareAddr {
	b := server.As16()
	return net.HardwareAddr{0x02, b[11], b[12], b[13], b[14], b[15]}
}

// macOf a link-local address whose identifier is a modified EUI-64; "" for any other.
func macOf(a netip.Addr) string {
	b := a.As16()
	if !a.IsLinkLocalUnicast() || !a.Is6() || b[11] != 0xff || b[12] != 0xfe {
		return ""
	}
	return net.HardwareAddr{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]}.String()
}
