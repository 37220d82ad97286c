package tunnel

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// Lengths of headers, and where in them what is needed here is (IEEE 802.3; RFC 791, 8200,
// 9293, 768, 7348).
const (
	etherLen, ip4Len, ip6Len, udpLen, vxlanLen = 14, 20, 40, 8, 8

	// wrapLen is what is before each frame inside WireGuard.
	wrapLen = ip4Len + udpLen + vxlanLen

	etherSrc, etherType              = 6, 12
	ip4Total, ip4Frag, ip4Proto      = 2, 6, 9
	ip4Sum, ip4Src, ip4Dst           = 10, 12, 16
	ip6Payload, ip6Next              = 4, 6
	ip6Src, ip6Dst                   = 8, 24
	tcpSeq, tcpOff, tcpFlags, tcpSum = 4, 12, 13, 16

	typeIPv4, typeIPv6 = 0x0800, 0x86dd
	protoICMP          = 1
	protoTCP           = 6
	protoUDP           = 17
	protoICMP6         = 58

	dontFragment, moreFragments, fragOffset = 0x4000, 0x2000, 0x1fff
)

var be = binary.BigEndian

// wrap is what comes before a frame on its way to another proxy: IPv4, UDP and VXLAN, as the
// kernel's VXLAN device would write it. The UDP checksum is not used (RFC 7348, section 5):
// WireGuard authenticates all of it.
type wrap [wrapLen]byte

func newWrap(from, to netip.Addr, vni uint32) (w wrap) {
	w[0], w[8], w[ip4Proto] = 0x45, 64, protoUDP
	be.PutUint16(w[ip4Frag:], dontFragment)
	copy(w[ip4Src:], from.AsSlice())
	copy(w[ip4Dst:], to.AsSlice())
	be.PutUint16(w[ip4Len:], plan.VXLANPort)
	be.PutUint16(w[ip4Len+2:], plan.VXLANPort)
	w[ip4Len+udpLen] = 0x08 // the VNI is there
	be.PutUint32(w[ip4Len+udpLen+4:], vni<<8)
	return w
}

// put w before a frame of that length.
func (w *wrap) put(to []byte, frame int) {
	copy(to, w[:])
	be.PutUint16(to[ip4Total:], uint16(wrapLen+frame))
	be.PutUint16(to[ip4Sum:], ^fold(sum(to[:ip4Len])))
	be.PutUint16(to[ip4Len+4:], uint16(udpLen+vxlanLen+frame))
}

// unwrap what came out of WireGuard: who sent it, as WireGuard has verified, in which network,
// and the frame; false where it is nothing that put has made.
func unwrap(p []byte) (from [4]byte, vni uint32, frame []byte, ok bool) {
	if len(p) < wrapLen+etherLen || p[0] != 0x45 || p[ip4Proto] != protoUDP || be.Uint16(p[ip4Frag:])&^dontFragment != 0 ||
		int(be.Uint16(p[ip4Total:])) != len(p) || be.Uint16(p[ip4Len+2:]) != plan.VXLANPort ||
		int(be.Uint16(p[ip4Len+4:])) != len(p)-ip4Len || p[ip4Len+udpLen]&0x08 == 0 {
		return from, 0, nil, false
	}
	copy(from[:], p[ip4Src:])
	return from, be.Uint32(p[ip4Len+udpLen+4:]) >> 8, p[wrapLen:], true
}

// sum of 16-bit words, as RFC 1071 has it, not folded yet: sums may be added.
func sum(b []byte) (s uint64) {
	var carry uint64
	for ; len(b) >= 32; b = b[32:] {
		s, carry = bits.Add64(s, be.Uint64(b), carry)
		s, carry = bits.Add64(s, be.Uint64(b[8:]), carry)
		s, carry = bits.Add64(s, be.Uint64(b[16:]), carry)
		s, carry = bits.Add64(s, be.Uint64(b[24:]), carry)
	}
	for ; len(b) >= 8; b = b[8:] {
		s, carry = bits.Add64(s, be.Uint64(b), carry)
	}
	var last [8]byte
	copy(last[:], b)
	s, carry = bits.Add64(s, be.Uint64(last[:]), carry)
	s, carry = bits.Add64(s, 0, carry)
	s += carry
	return s>>32 + s&0xffffffff // room for some more
}

// fold a sum to 16 bits.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s&0xffff)
}

// packet is where the parts of an IP packet in a frame are.
type packet struct {
	v6    bool
	proto byte
	body  int // offset of what is behind the IP header, in the frame
	end   int // of the packet, in the frame: what is behind it is padding
}

// packetIn a frame: IPv4, or IPv6 without extension headers; false for all else, fragments
// too where whole is set.
func packetIn(f []byte, whole bool) (p packet, ok bool) {
	if len(f) < etherLen+ip4Len {
		return p, false
	}
	switch be.Uint16(f[etherType:]) {
	case typeIPv4:
		n := int(f[etherLen]&0xf) * 4
		if f[etherLen]>>4 != 4 || n < ip4Len || whole && be.Uint16(f[etherLen+ip4Frag:])&(moreFragments|fragOffset) != 0 {
			return p, false
		}
		p = packet{proto: f[etherLen+ip4Proto], body: etherLen + n, end: etherLen + int(be.Uint16(f[etherLen+ip4Total:]))}
	case typeIPv6:
		if len(f) < etherLen+ip6Len || f[etherLen]>>4 != 6 {
			return p, false
		}
		p = packet{v6: true, proto: f[etherLen+ip6Next], body: etherLen + ip6Len, end: etherLen + ip6Len + int(be.Uint16(f[etherLen+ip6Payload:]))}
	default:
		return p, false
	}
	return p, p.body <= p.end && p.end <= len(f)
}

// pseudo header's sum for a body of n bytes (RFC 9293, section 3.1; RFC 8200, section 8.1).
func (p packet) pseudo(f []byte, n int) uint64 {
	a := f[etherLen+ip4Src : etherLen+ip4Len]
	if p.v6 {
		a = f[etherLen+ip6Src : etherLen+ip6Len]
	}
	return sum(a) + uint64(p.proto) + uint64(n)
}

// resize the packet in f, whose IP header says another length: it and, of IPv4, the header's
// checksum.
func (p packet) resize(f []byte, end int) {
	if p.v6 {
		be.PutUint16(f[etherLen+ip6Payload:], uint16(end-p.body))
		return
	}
	be.PutUint16(f[etherLen+ip4Total:], uint16(end-etherLen))
	be.PutUint16(f[etherLen+ip4Sum:], 0)
	be.PutUint16(f[etherLen+ip4Sum:], ^fold(sum(f[etherLen:p.body])))
}
