package responder

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// routerLifetime of a gateway that leads out, and of what is told beside it.
const routerLifetime = 30 * time.Minute

// Advertisement is the router advertisement of the segment (RFC 4861, section 4.2), without
// its checksum, which the kernel makes: addresses come by DHCPv6 (flag M), not by
// autoconfiguration. nil where the segment has no IPv6 subnet.
func (t *Table) Advertisement() []byte {
	subnet, server := t.subnet(ip6), of(t.servers, ip6)
	if !subnet.IsValid() || !server.IsValid() {
		return nil
	}
	const (
		advertisement   = 134
		managed, other  = 0x80, 0x40
		onLink          = 0x80
		prefixInfo, mtu = 3, 5
		rdnss, dnssl    = 25, 31 // RFC 8106
	)
	life := uint32(routerLifetime / time.Second)
	router := uint16(0) // no default router
	if t.segment.Public && of(t.segment.Gateways, ip6).IsValid() {
		router = uint16(life)
	}
	b := []byte{advertisement, 0, 0, 0, 64, managed | other}
	b = binary.BigEndian.AppendUint16(b, router)
	b = append(b, make([]byte, 8)...) // reachable time, retransmission timer: the client's own
	b = append(b, prefixInfo, 4, byte(subnet.Bits()), onLink)
	b = binary.BigEndian.AppendUint32(b, life)
	b = binary.BigEndian.AppendUint32(b, life)
	b = append(b, 0, 0, 0, 0)
	b = append(b, subnet.Masked().Addr().AsSlice()...)
	if t.segment.MTU > 0 {
		b = append(b, mtu, 1, 0, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(t.segment.MTU))
	}
	b = append(b, rdnss, 3, 0, 0)
	b = binary.BigEndian.AppendUint32(b, life)
	b = append(b, server.AsSlice()...)
	var names []byte
	for _, name := range plan.Search(t.zone) {
		packed := make([]byte, 256)
		if n, err := dns.PackDomainName(dns.Fqdn(name), packed, 0, nil, false); err == nil {
			names = append(names, packed[:n]...)
		}
	}
	if len(names) > 0 {
		for len(names)%8 != 0 {
			names = append(names, 0)
		}
		b = append(b, dnssl, byte(1+len(names)/8), 0, 0)
		b = binary.BigEndian.AppendUint32(b, life)
		b = append(b, names...)
	}
	return b
}

// Solicited reports whether an ICMPv6 message is a router solicitation of a port of this
// host, or of one that has no address yet.
func (t *Table) Solicited(message []byte, from netip.Addr) bool {
	const solicitation = 133
	if len(message) < 8 || message[0] != solicitation || message[1] != 0 {
		return false
	}
	_, known := t.ports[macOf(from)]
	return known || from.IsUnspecified()
}
