package tunnel

import "bytes"

// merger joins TCP segments of one connection that follow each other, so that the kernel
// handles them as one: what a network card's receive offload does, and the inverse of the
// cutter. Nothing else is changed, and nothing of a connection overtakes.
type merger struct {
	runs []run
	emit func(w *wire, o offload, parts [][]byte)
	room [][]byte
}

// run of segments: the first one, and the payloads of those that followed.
type run struct {
	wire  *wire
	first []byte
	packet
	head   int // of the first: headers
	step   int // payload of each but the last
	more   [][]byte
	length int    // of all payloads
	next   uint32 // sequence number behind them
	ended  bool   // nothing may follow
}

// maxRuns of one batch; what is beyond is passed on as it is.
const maxRuns = 16

// add a frame from wire w. It is used until flush.
func (m *merger) add(w *wire, f []byte) {
	r, ok := segmentOf(w, f)
	for i := range m.runs {
		old := &m.runs[i]
		if old.first == nil || !old.sameFlow(w, f) {
			continue
		}
		if ok && old.follows(&r) {
			return
		}
		m.pass(old) // before what cannot be joined to it
	}
	if !ok {
		m.emit(w, offload{}, append(m.room[:0], f))
		return
	}
	for i := range m.runs {
		if m.runs[i].first == nil {
			r.more = m.runs[i].more[:0]
			m.runs[i] = r
			return
		}
	}
	if len(m.runs) < maxRuns {
		m.runs = append(m.runs, r)
		return
	}
	m.pass(&m.runs[0])
	r.more = m.runs[0].more[:0]
	m.runs[0] = r
}

// flush what is held.
func (m *merger) flush() {
	for i := range m.runs {
		if m.runs[i].first != nil {
			m.pass(&m.runs[i])
		}
	}
}

// pass a run on, and forget it.
func (m *merger) pass(r *run) {
	parts := append(append(m.room[:0], r.first), r.more...)
	m.room = parts
	var o offload
	if len(r.more) > 0 {
		o = offload{flags: needsSum, gso: gsoTCP4, headers: uint16(r.head), size: uint16(r.step), sumStart: uint16(r.body), sumField: tcpSum}
		if r.v6 {
			o.gso = gsoTCP6
		}
		r.resize(r.first, r.head+r.length)
		be.PutUint16(r.first[r.body+tcpSum:], fold(r.pseudo(r.first, r.head-r.body+r.length)))
	}
	m.emit(r.wire, o, parts)
	clear(r.more)
	r.first, r.more, r.wire = nil, r.more[:0], nil
}

// segmentOf a frame that may begin a run: TCP with payload, in order, nothing urgent, and with
// a checksum that is right, since it will be made anew.
func segmentOf(w *wire, f []byte) (r run, ok bool) {
	p, ok := packetIn(f, true)
	if !ok || p.proto != protoTCP || p.end < p.body+20 || !p.v6 && p.body != etherLen+ip4Len {
		return r, false
	}
	t := f[p.body:p.end]
	head := p.body + int(t[tcpOff]>>4)*4
	if head < p.body+20 || head >= p.end || t[tcpFlags]&^pushFlag != ackFlag || fold(p.pseudo(f, len(t))+sum(t)) != 0xffff {
		return r, false
	}
	n := p.end - head
	return run{wire: w, first: f[:p.end], packet: p, head: head, step: n, length: n, next: be.Uint32(t[tcpSeq:]) + uint32(n), ended: t[tcpFlags]&pushFlag != 0}, true
}

// sameFlow reports whether a frame may be of the same connection: it must not overtake.
func (r *run) sameFlow(w *wire, f []byte) bool {
	if w != r.wire || len(f) < r.body+4 {
		return false
	}
	from, to := etherLen+ip4Src, etherLen+ip4Len
	if r.v6 {
		from, to = etherLen+ip6Src, etherLen+ip6Len
	}
	return bytes.Equal(f[etherType:etherLen], r.first[etherType:etherLen]) && bytes.Equal(f[from:to], r.first[from:to]) &&
		bytes.Equal(f[r.body:r.body+4], r.first[r.body:r.body+4])
}

// follows joins s to r if it is what comes next and has the same headers.
func (r *run) follows(s *run) bool {
	a, b := r.first, s.first
	if r.ended || s.head != r.head || s.step > r.step || r.head+r.length+s.length > maxFrame-1-etherLen || be.Uint32(b[s.body+tcpSeq:]) != r.next ||
		!bytes.Equal(a[:etherLen], b[:etherLen]) || !r.sameHeader(a, b) ||
		!bytes.Equal(a[r.body+8:r.body+tcpFlags], b[r.body+8:r.body+tcpFlags]) || !bytes.Equal(a[r.body+14:r.body+tcpSum], b[r.body+14:r.body+tcpSum]) ||
		!bytes.Equal(a[r.body+18:r.head], b[r.body+18:r.head]) {
		return false
	}
	r.more = append(r.more, b[s.head:])
	r.length += s.length
	r.next = s.next
	a[r.body+tcpFlags] |= b[r.body+tcpFlags] & pushFlag
	r.ended = s.ended || s.step < r.step
	return true
}

// sameHeader compares IP headers, but for the length, and of IPv4 the number and checksum.
func (r *run) sameHeader(a, b []byte) bool {
	a, b = a[etherLen:r.body], b[etherLen:r.body]
	if r.v6 {
		return bytes.Equal(a[:ip6Payload], b[:ip6Payload]) && bytes.Equal(a[ip6Next:], b[ip6Next:])
	}
	return bytes.Equal(a[:ip4Total], b[:ip4Total]) && bytes.Equal(a[ip4Frag:ip4Sum], b[ip4Frag:ip4Sum]) && bytes.Equal(a[ip4Src:], b[ip4Src:])
}
