package boot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/seed"
)

const (
	// dhcpPatience with servers, in all.
	dhcpPatience = 15 * time.Second
	// dhcpAgain after a question that was not answered.
	dhcpAgain = time.Second
)

// askDHCP gets a link's address, routes and name servers (RFC 2131). The lease is not
// renewed: an address is a VEE's own for as long as it lives.
func askDHCP(ctx context.Context, device string, mac net.HardwareAddr, l *seed.Link) error {
	ctx, cancel := context.WithTimeout(ctx, dhcpPatience)
	defer cancel()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) { set = unix.BindToDevice(int(fd), device) })
		return errors.Join(err, set)
	}}
	conn, err := config.ListenPacket(ctx, "udp4", "0.0.0.0:68")
	if err != nil {
		return err
	}
	defer conn.Close()
	offer, err := exchange(ctx, conn, question(mac, dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer)
	if err != nil {
		return fmt.Errorf("asking for an address: %w", err)
	}
	request := question(mac, dhcpv4.MessageTypeRequest,
		dhcpv4.OptRequestedIPAddress(offer.YourIPAddr), dhcpv4.OptServerIdentifier(offer.ServerIdentifier()))
	ack, err := exchange(ctx, conn, request, dhcpv4.MessageTypeAck)
	if err != nil {
		return fmt.Errorf("asking for the address %s: %w", offer.YourIPAddr, err)
	}
	return leased(ack, l)
}

// question to a server, to be answered by broadcast. The library's own constructors draw
// from the kernel's random numbers, for which a machine that has just booted waits many
// seconds; to tell answers apart takes no secret.
func question(mac net.HardwareAddr, kind dhcpv4.MessageType, more ...dhcpv4.Option) *dhcpv4.DHCPv4 {
	q := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, ClientHWAddr: mac,
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: net.IPv4zero,
		Options: dhcpv4.Options{},
	}
	binary.BigEndian.PutUint32(q.TransactionID[:], rand.Uint32())
	q.SetBroadcast()
	for _, o := range append(more, dhcpv4.OptMessageType(kind), dhcpv4.OptParameterRequestList(
		dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionInterfaceMTU,
		dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionClasslessStaticRoute,
	)) {
		q.UpdateOption(o)
	}
	return q
}

// exchange sends q until there is an answer to it of the wanted type.
func exchange(ctx context.Context, conn net.PacketConn, q *dhcpv4.DHCPv4, wanted dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	buffer := make([]byte, 4096)
	for ctx.Err() == nil {
		if _, err := conn.WriteTo(q.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil {
			return nil, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(dhcpAgain)); err != nil {
			return nil, err
		}
		for {
			n, _, err := conn.ReadFrom(buffer)
			if err != nil {
				break // the time is over
			}
			r, err := dhcpv4.FromBytes(buffer[:n])
			if err != nil || r.OpCode != dhcpv4.OpcodeBootReply || r.TransactionID != q.TransactionID {
				continue
			}
			switch r.MessageType() {
			case wanted:
				return r, nil
			case dhcpv4.MessageTypeNak:
				return nil, errors.New("the server refuses it: " + r.Message())
			}
		}
	}
	return nil, errors.New("no server answers")
}

// leased is what a server has given out.
func leased(r *dhcpv4.DHCPv4, l *seed.Link) error {
	address, ok := netip.AddrFromSlice(r.YourIPAddr.To4())
	bits, size := r.SubnetMask().Size()
	if !ok || size != 32 {
		return fmt.Errorf("the server gives address %v with mask %v", r.YourIPAddr, r.SubnetMask())
	}
	l.Addresses = append(l.Addresses, netip.PrefixFrom(address, bits))
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, r.Options); err == nil && l.MTU == 0 {
		l.MTU = int(mtu)
	}
	routes := r.ClasslessStaticRoute()
	if len(routes) == 0 { // RFC 3442: they go before the router
		for _, gateway := range r.Router() {
			routes = append(routes, &dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Router: gateway})
			break
		}
	}
	for _, x := range routes {
		to, okTo := netip.AddrFromSlice(x.Dest.IP.To4())
		via, okVia := netip.AddrFromSlice(x.Router.To4())
		if ones, _ := x.Dest.Mask.Size(); okTo && okVia {
			l.Routes = append(l.Routes, seed.Route{To: netip.PrefixFrom(to, ones), Via: via})
		}
	}
	for _, server := range r.DNS() {
		if a, ok := netip.AddrFromSlice(server.To4()); ok {
			l.DNS = append(l.DNS, a)
		}
	}
	if search := r.DomainSearch(); search != nil && len(l.Search) == 0 {
		l.Search = search.Labels
	}
	return nil
}
