package tunnel

import (
	"encoding/binary"
	"errors"
)

// offload is struct virtio_net_hdr (linux/virtio_net.h), with which the kernel hands over
// frames whose checksum is still to be made, and TCP segments that are still to be cut.
type offload struct {
	flags, gso         byte
	headers, size      uint16 // of the headers; of a segment's payload
	sumStart, sumField uint16
}

const (
	offloadLen  = 10
	needsSum    = 1
	gsoNone     = 0
	gsoTCP4     = 1
	gsoTCP6     = 4
	maxFrame    = 1<<16 + etherLen
	finPush     = 0x01 | 0x08
	congestion  = 0x80 // CWR: in the first segment alone (RFC 3168, section 6.1.2)
	pushFlag    = 0x08
	ackFlag     = 0x10
	ip4IDOffset = 4
)

func readOffload(b []byte) offload {
	ne := binary.NativeEndian
	return offload{b[0], b[1], ne.Uint16(b[2:]), ne.Uint16(b[4:]), ne.Uint16(b[6:]), ne.Uint16(b[8:])}
}

func (o offload) put(b []byte) {
	ne := binary.NativeEndian
	b[0], b[1] = o.flags, o.gso
	for i, v := range []uint16{o.headers, o.size, o.sumStart, o.sumField} {
		ne.PutUint16(b[2+2*i:], v)
	}
}

// errTooBig is the answer to a packet that does not fit and must not be cut.
var errTooBig = errors.New("the packet is too big for the way to the other site")

var errMalformed = errors.New("the frame is malformed")

// cutter turns a frame that the kernel handed over into those that go on the wire: TCP
// segments are cut, checksums completed, IPv4 packets that are too big and may be fragmented
// are. It is what a network card does.
type cutter struct {
	frame []byte
	packet
	step  int // of the body, in each piece; 0: the frame is one piece
	head  int // of each piece: headers
	at    int // where the next piece begins
	tcp   bool
	piece uint16
}

// begin with a frame; no packet of it may be longer than mtu. errTooBig, errMalformed. The
// frame's bytes are used until the last piece, and its checksum is completed in place.
func (c *cutter) begin(o offload, frame []byte, mtu int) error {
	if len(frame) < etherLen {
		return errMalformed
	}
	*c = cutter{frame: frame, at: -1}
	if o.gso == gsoNone {
		if err := complete(o, frame); err != nil {
			return err
		}
		if len(frame)-etherLen <= mtu {
			return nil
		}
		return c.fragments(mtu)
	}
	p, ok := packetIn(frame, true)
	if !ok || p.proto != protoTCP || (o.gso == gsoTCP6) != p.v6 || (o.gso == gsoTCP4) == p.v6 || o.size == 0 || p.end < p.body+20 {
		return errMalformed
	}
	c.packet, c.tcp, c.frame = p, true, frame[:p.end]
	c.head = p.body + int(frame[p.body+tcpOff]>>4)*4
	if c.head < p.body+20 || c.head > p.end {
		return errMalformed
	}
	c.step, c.at = int(o.size), c.head
	if room := mtu - (c.head - etherLen); c.step > room {
		if room <= 0 || p.v6 || be.Uint16(frame[etherLen+ip4Frag:])&dontFragment != 0 {
			return errTooBig
		}
		c.step = room // cut smaller instead of cut and then fragmented
	}
	return nil
}

// complete the checksum that the kernel has left to do.
func complete(o offload, frame []byte) error {
	if o.flags&needsSum == 0 {
		return nil
	}
	from, field := int(o.sumStart), int(o.sumStart)+int(o.sumField)
	if from < etherLen || field+2 > len(frame) {
		return errMalformed
	}
	s := ^fold(sum(frame[from:])) // what the pseudo header adds is in the field already
	if s == 0 {
		s = 0xffff // of UDP, 0 would say that there is none; elsewhere it is the same
	}
	be.PutUint16(frame[field:], s)
	return nil
}

// fragments of an IPv4 packet (RFC 791, section 3.2).
func (c *cutter) fragments(mtu int) error {
	p, ok := packetIn(c.frame, false)
	if !ok || p.v6 || be.Uint16(c.frame[etherLen+ip4Frag:])&dontFragment != 0 {
		return errTooBig
	}
	c.packet, c.frame, c.head, c.at = p, c.frame[:p.end], p.body, p.body
	c.step = (mtu - (p.body - etherLen)) &^ 7
	if c.step <= 0 {
		return errTooBig
	}
	return nil
}

// next piece into to, which must have room for it; 0: there is none.
func (c *cutter) next(to []byte) int {
	if c.step == 0 {
		if c.at >= 0 {
			return 0
		}
		c.at = 0
		return copy(to, c.frame)
	}
	if c.at >= len(c.frame) && (c.piece > 0 || !c.tcp) {
		return 0
	}
	end := min(c.at+c.step, len(c.frame))
	n := copy(to, c.frame[:c.head])
	n += copy(to[n:], c.frame[c.at:end])
	to = to[:n]
	if c.tcp {
		c.segment(to, end)
	} else {
		c.fragment(to, end)
	}
	c.at = end
	c.piece++
	return n
}

func (c *cutter) segment(to []byte, end int) {
	if !c.v6 {
		id := to[etherLen+ip4IDOffset:]
		be.PutUint16(id, be.Uint16(id)+c.piece)
	}
	c.resize(to, len(to))
	t := to[c.body:]
	be.PutUint32(t[tcpSeq:], be.Uint32(t[tcpSeq:])+uint32(c.at-c.head))
	if end < len(c.frame) {
		t[tcpFlags] &^= finPush
	}
	if c.piece > 0 {
		t[tcpFlags] &^= congestion
	}
	be.PutUint16(t[tcpSum:], 0)
	be.PutUint16(t[tcpSum:], ^fold(c.pseudo(to, len(t))+sum(t)))
}

func (c *cutter) fragment(to []byte, end int) {
	field := be.Uint16(to[etherLen+ip4Frag:])
	field += uint16((c.at - c.head) / 8)
	if end < len(c.frame) {
		field |= moreFragments
	}
	be.PutUint16(to[etherLen+ip4Frag:], field)
	c.resize(to, len(to))
}

// tooBig is the frame that tells who sent f which size fits (RFC 1191; RFC 4443, section
// 3.2), in the name of whom f was for; nil where nothing may be told (RFC 1122, section 3.2.2).
func tooBig(f []byte, mtu int) []byte {
	p, ok := packetIn(f, true)
	if !ok || f[0]&1 != 0 || p.proto == protoICMP && !p.v6 && isError4(f[p.body:p.end]) || p.proto == protoICMP6 && p.v6 && isError6(f[p.body:p.end]) {
		return nil
	}
	ip := ip4Len
	quote := min(p.end-etherLen, 548) // RFC 1812, section 4.3.2.3
	if p.v6 {
		ip, quote = ip6Len, min(p.end-etherLen, 1280-ip6Len-8)
	}
	r := make([]byte, etherLen+ip+8+quote)
	copy(r[:6], f[6:12])
	copy(r[6:12], f[:6])
	copy(r[etherType:], f[etherType:etherLen])
	h, m := r[etherLen:], r[etherLen+ip:]
	copy(m[8:], f[etherLen:etherLen+quote])
	if p.v6 {
		h[0], h[ip6Next], h[7] = 0x60, protoICMP6, 64
		be.PutUint16(h[ip6Payload:], uint16(len(m)))
		copy(h[ip6Src:], f[etherLen+ip6Dst:etherLen+ip6Len])
		copy(h[ip6Dst:], f[etherLen+ip6Src:etherLen+ip6Dst])
		m[0] = 2
		be.PutUint32(m[4:], uint32(mtu))
		of := packet{v6: true, proto: protoICMP6}
		be.PutUint16(m[2:], ^fold(of.pseudo(r, len(m))+sum(m)))
		return r
	}
	h[0], h[8], h[ip4Proto] = 0x45, 64, protoICMP
	be.PutUint16(h[ip4Total:], uint16(len(h)))
	copy(h[ip4Src:], f[etherLen+ip4Dst:etherLen+ip4Len])
	copy(h[ip4Dst:], f[etherLen+ip4Src:etherLen+ip4Dst])
	be.PutUint16(h[ip4Sum:], ^fold(sum(h[:ip4Len])))
	m[0], m[1] = 3, 4
	be.PutUint16(m[6:], uint16(mtu))
	be.PutUint16(m[2:], ^fold(sum(m)))
	return r
}

// isError reports whether an ICMP message is one that may not be answered with another.
func isError4(m []byte) bool {
	return len(m) == 0 || m[0] == 3 || m[0] == 4 || m[0] == 5 || m[0] == 11 || m[0] == 12
}
func isError6(m []byte) bool { return len(m) == 0 || m[0] < 128 }
