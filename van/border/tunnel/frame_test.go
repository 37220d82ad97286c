package tunnel

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// superframe is a frame as the kernel hands it over: TCP that is not cut, with the checksum
// left to do.
func superframe(v6 bool, seq uint32, flags byte, payload []byte, step int, df bool) (offload, []byte) {
	ip, kind := ip4Len, typeIPv4
	if v6 {
		ip, kind = ip6Len, typeIPv6
	}
	const tcp = 32 // with 12 bytes of options
	f := make([]byte, etherLen+ip+tcp, etherLen+ip+tcp+len(payload))
	copy(f, []byte{0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2})
	be.PutUint16(f[etherType:], uint16(kind))
	f = append(f, payload...)
	p := packet{v6: v6, proto: protoTCP, body: etherLen + ip, end: len(f)}
	h := f[etherLen:]
	if v6 {
		h[0], h[ip6Next], h[7] = 0x60, protoTCP, 64
		h[ip6Src], h[ip6Dst], h[ip6Dst+15] = 0xfd, 0xfd, 2
	} else {
		h[0], h[8], h[ip4Proto] = 0x45, 64, protoTCP
		if df {
			be.PutUint16(h[ip4Frag:], dontFragment)
		}
		copy(h[ip4Src:], []byte{10, 1, 0, 1, 10, 1, 0, 2})
	}
	p.resize(f, len(f))
	t := f[p.body:]
	be.PutUint32(t, 4000<<16|7)
	be.PutUint32(t[tcpSeq:], seq)
	t[tcpOff], t[tcpFlags] = tcp/4<<4, flags
	be.PutUint16(t[tcpSum:], fold(p.pseudo(f, len(t))))
	o := offload{flags: needsSum, sumStart: uint16(p.body), sumField: tcpSum, headers: uint16(p.body + tcp)}
	if len(payload) > step {
		o.size, o.gso = uint16(step), gsoTCP4
		if v6 {
			o.gso = gsoTCP6
		}
	}
	return o, f
}

// pieces that a frame is cut into.
func pieces(t *rapid.T, o offload, f []byte, mtu int) (all [][]byte) {
	var c cutter
	if err := c.begin(o, f, mtu); err != nil {
		t.Fatalf("cut: %v", err)
	}
	for {
		b := make([]byte, 2*maxFrame)
		n := c.next(b)
		if n == 0 {
			return all
		}
		all = append(all, b[:n])
	}
}

func right(t *rapid.T, f []byte) packet {
	p, ok := packetIn(f, true)
	if !ok || p.end != len(f) {
		t.Fatalf("no packet: %x", f[:min(len(f), 80)])
	}
	if !p.v6 && fold(sum(f[etherLen:p.body])) != 0xffff {
		t.Fatal("the IPv4 header's checksum is wrong")
	}
	if fold(p.pseudo(f, p.end-p.body)+sum(f[p.body:])) != 0xffff {
		t.Fatal("the TCP checksum is wrong")
	}
	return p
}

// TestCutAndJoin: what was cut is whole segments, each right by itself, and what is joined of
// them is what was there.
func TestCutAndJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, step := rapid.Bool().Draw(t, "v6"), rapid.IntRange(1, 1318).Draw(t, "step")
		payload := rapid.SliceOfN(rapid.Byte(), 1, 1<<14).Draw(t, "payload")
		seq := rapid.Uint32().Draw(t, "seq")
		flags := byte(ackFlag) | rapid.SampledFrom([]byte{0, pushFlag}).Draw(t, "push")
		o, f := superframe(v6, seq, flags, payload, step, true)
		want := bytes.Clone(f)
		all := pieces(t, o, f, guestMTU+8)
		var got []byte
		for i, s := range all {
			p := right(t, s)
			tcp := s[p.body:]
			if at := be.Uint32(tcp[tcpSeq:]); at != seq+uint32(len(got)) {
				t.Fatalf("segment %d begins at %d: want %d", i, at, seq+uint32(len(got)))
			}
			if last := i == len(all)-1; tcp[tcpFlags]&pushFlag != 0 != (last && flags&pushFlag != 0) {
				t.Fatalf("segment %d of %d has flags %x", i, len(all), tcp[tcpFlags])
			}
			got = append(got, tcp[32:]...)
		}
		if !bytes.Equal(got, payload) {
			t.Fatal("the payload is another")
		}

		var joined [][]byte
		m := merger{emit: func(_ *wire, o offload, parts [][]byte) {
			b := bytes.Join(parts, nil)
			if o.flags&needsSum != 0 {
				if len(all) > 1 && (int(o.size) != step || int(o.headers) != len(b)-len(payload)) {
					t.Fatalf("joined as %+v", o)
				}
				if err := complete(o, b); err != nil {
					t.Fatal(err)
				}
			}
			joined = append(joined, b)
		}}
		w := &wire{}
		for _, s := range all {
			m.add(w, s)
		}
		m.flush()
		if len(joined) != 1 {
			t.Fatalf("%d segments were joined to %d", len(all), len(joined))
		}
		right(t, joined[0])
		if err := complete(o, want); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(joined[0], want) {
			t.Fatalf("joined\n%x\nwant\n%x", joined[0][:90], want[:90])
		}
	})
}

// TestNothingOvertakes: whatever segments come in whatever order, those of each connection
// leave in the order in which they came.
func TestNothingOvertakes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in, out [3][]byte // payloads by connection
		m := merger{emit: func(_ *wire, _ offload, parts [][]byte) {
			b := bytes.Join(parts, nil)
			flow := be.Uint16(b[etherLen+ip4Len:])
			out[flow] = append(out[flow], b[etherLen+ip4Len+32:]...)
		}}
		var next [3]uint32
		for range rapid.IntRange(1, 40).Draw(t, "segments") {
			flow := rapid.IntRange(0, 2).Draw(t, "flow")
			payload := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "payload")
			if rapid.IntRange(0, 3).Draw(t, "jump") == 0 {
				next[flow] += 1000
			}
			o, f := superframe(false, next[flow], rapid.SampledFrom([]byte{ackFlag, ackFlag | pushFlag, 2, 1 | ackFlag}).Draw(t, "flags"), payload, 1000, false)
			be.PutUint16(f[etherLen+ip4Len:], uint16(flow))
			be.PutUint16(f[etherLen+ip4Len+tcpSum:], 0)
			p, _ := packetIn(f, true)
			be.PutUint16(f[etherLen+ip4Len+tcpSum:], fold(p.pseudo(f, p.end-p.body)))
			if err := complete(o, f); err != nil {
				t.Fatal(err)
			}
			m.add(nil, f)
			next[flow] += uint32(len(payload))
			in[flow] = append(in[flow], payload...)
		}
		m.flush()
		for i := range in {
			if !bytes.Equal(in[i], out[i]) {
				t.Fatalf("connection %d: %x came, %x left", i, in[i], out[i])
			}
		}
	})
}

func TestFragments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		payload := rapid.SliceOfN(rapid.Byte(), 1400, 5000).Draw(t, "payload")
		mtu := rapid.IntRange(leastMTU, guestMTU).Draw(t, "mtu")
		o, f := superframe(false, 1, ackFlag, payload, len(payload), false)
		f[etherLen+ip4Proto] = protoUDP // any other protocol: it is not looked into
		o.flags = 0
		var got []byte
		all := pieces(t, o, f, mtu)
		for i, s := range all {
			field := be.Uint16(s[etherLen+ip4Frag:])
			if len(s)-etherLen > mtu || int(field&fragOffset)*8 != len(got) || field&moreFragments != 0 != (i < len(all)-1) || fold(sum(s[etherLen:etherLen+ip4Len])) != 0xffff {
				t.Fatalf("fragment %d of %d: %x", i, len(all), s[:40])
			}
			got = append(got, s[etherLen+ip4Len:]...)
		}
		if !bytes.Equal(got, f[etherLen+ip4Len:]) {
			t.Fatal("the packet is another")
		}
	})
}

func TestTooBig(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		o, f := superframe(v6, 1, ackFlag, make([]byte, 4000), 1448, true)
		var c cutter
		if err := c.begin(o, f, guestMTU); !errors.Is(err, errTooBig) {
			t.Fatalf("v6 %v: %v", v6, err)
		}
		a := tooBig(f, guestMTU)
		p, ok := packetIn(a, true)
		if !ok || p.end != len(a) || !bytes.Equal(a[:6], f[6:12]) || !bytes.Equal(a[6:12], f[:6]) {
			t.Fatalf("v6 %v: answered %x", v6, a)
		}
		m, said, pseudo := a[p.body:], int(be.Uint16(a[p.body+6:])), uint64(0)
		if v6 {
			said, pseudo = int(be.Uint32(m[4:])), p.pseudo(a, len(m))
		}
		if said != guestMTU || fold(pseudo+sum(m)) != 0xffff || !bytes.Equal(m[8:40], f[etherLen:etherLen+32]) {
			t.Errorf("v6 %v: answered %x", v6, a)
		}
		if tooBig(a, 100) != nil {
			t.Errorf("v6 %v: an error is answered by an error", v6)
		}
	}
}

func FuzzFrames(f *testing.F) {
	o, s := superframe(false, 1, ackFlag, make([]byte, 3000), 1300, true)
	var head [offloadLen]byte
	o.put(head[:])
	f.Add(append(head[:], s...))
	_, s6 := superframe(true, 1, ackFlag, make([]byte, 100), 1300, true)
	w := newWrap(netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("240.0.0.2"), 7)
	b := make([]byte, wrapLen+len(s6))
	w.put(b, len(s6))
	copy(b[wrapLen:], s6)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := merger{emit: func(*wire, offload, [][]byte) {}}
		if from, vni, frame, ok := unwrap(bytes.Clone(b)); ok {
			if vni >= 1<<24 || from == [4]byte{} && len(frame) < etherLen {
				t.Fatalf("unwrapped %v %d %x", from, vni, frame)
			}
			m.add(nil, frame)
		}
		m.add(nil, bytes.Clone(b))
		m.add(nil, bytes.Clone(b))
		m.flush()
		_ = tooBig(b, guestMTU)
		if len(b) < offloadLen {
			return
		}
		var c cutter
		o, frame := readOffload(b), bytes.Clone(b[offloadLen:])
		if len(frame) > maxFrame || o.gso != gsoNone && o.size < 64 || c.begin(o, frame, guestMTU) != nil {
			return // with smaller steps it is the same, and slow
		}
		to := make([]byte, 2*maxFrame)
		for range 1 << 17 {
			n := c.next(to)
			if n == 0 {
				return
			}
			if n-etherLen > guestMTU {
				t.Fatalf("a piece of %d bytes", n)
			}
		}
		t.Fatal("it is cut for ever")
	})
}
