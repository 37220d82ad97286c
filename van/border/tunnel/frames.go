package tunnel

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// drops counts frames that go nowhere, by the reason.
type drops struct{ noPeer, notOurs, malformed, tooBig, notShared, refused atomic.Uint64 }

func (d *drops) counts() map[string]uint64 {
	all := map[string]uint64{}
	for why, n := range map[string]*atomic.Uint64{
		"to a site that is no partner": &d.noPeer, "from a MAC that is not at this site": &d.notOurs, "malformed": &d.malformed,
		"too big": &d.tooBig, "of a network that is not shared with the sender": &d.notShared, "not taken by the kernel": &d.refused,
	} {
		if v := n.Load(); v > 0 {
			all[why] = v
		}
	}
	return all
}

// read a wire's TAP until it is closed.
func (t *Tunnel) read(w *wire) {
	for {
		p := t.spare.Get().(*parcel)
		n, err := w.tap.Read(p.b[:])
		if err != nil {
			t.spare.Put(p)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if errors.Is(err, unix.EBADFD) { // the next Put makes it anew
				w.cut.Store(true)
				t.cfg.Log.Error("a TAP to another site was deleted", "tap", w.tap.Name())
				return
			}
			continue
		}
		p.wire, p.n = w, n
		select {
		case t.frames <- p:
		case <-t.closed:
			return
		}
	}
}

// inner is the tunnel as WireGuard's device sees it: where packets come from and go to.
type inner Tunnel

var _ tun.Device = (*inner)(nil)

// cutting is the parcel that Read is at.
type cutting struct {
	cutter
	parcel *parcel
	out    *outlet
}

// Read implements tun.Device. It has one caller at a time.
func (d *inner) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	t := (*Tunnel)(d)
	for n < len(bufs) {
		if t.cutting.parcel == nil {
			var p *parcel
			if n == 0 {
				select {
				case p = <-t.frames:
				case <-t.closed:
					return 0, os.ErrClosed
				}
			} else {
				select { // no more than is there: what has been read goes out
				case p = <-t.frames:
				default:
					return n, nil
				}
			}
			if !t.take(p) {
				t.spare.Put(p)
				continue
			}
		}
		c := &t.cutting
		size := c.next(bufs[n][offset+wrapLen:])
		if size == 0 {
			t.spare.Put(c.parcel)
			c.parcel = nil
			continue
		}
		c.out.wrap.put(bufs[n][offset:], size)
		sizes[n] = wrapLen + size
		n++
	}
	return n, nil
}

// take a parcel for cutting; false: it goes nowhere.
func (t *Tunnel) take(p *parcel) bool {
	if p.n < offloadLen+etherLen {
		t.drops.malformed.Add(1)
		return false
	}
	out, frame := p.wire.out.Load(), p.b[offloadLen:p.n]
	switch {
	case out == nil:
		t.drops.noPeer.Add(1)
		return false
	case !out.here[[6]byte(frame[etherSrc:])]:
		t.drops.notOurs.Add(1)
		return false
	}
	mtu := int(out.peer.mtu.Load())
	switch err := t.cutting.begin(readOffload(p.b[:]), frame, mtu); {
	case errors.Is(err, errTooBig):
		t.drops.tooBig.Add(1)
		if answer := tooBig(frame, mtu); answer != nil {
			t.deliver(p.wire, offload{}, [][]byte{answer})
		}
		return false
	case err != nil:
		t.drops.malformed.Add(1)
		return false
	}
	t.cutting.parcel, t.cutting.out = p, out
	return true
}

// Write implements tun.Device: packets that WireGuard has decrypted, whose source is the
// address of the peer that has encrypted them. It is called by one goroutine for each peer.
func (d *inner) Write(bufs [][]byte, offset int) (int, error) {
	t := (*Tunnel)(d)
	tables := t.tables.Load()
	m := t.mergers.Get().(*merger)
	for _, b := range bufs {
		from, vni, frame, ok := unwrap(b[offset:])
		if !ok {
			t.drops.malformed.Add(1)
			continue
		}
		w := tables.in[inKey{from, vni}]
		if w == nil {
			t.drops.notShared.Add(1)
			continue
		}
		m.add(w, frame)
	}
	m.flush()
	t.mergers.Put(m)
	return len(bufs), nil
}

// deliver a frame to the kernel.
func (t *Tunnel) deliver(w *wire, o offload, parts [][]byte) {
	if err := w.raw.write(o, parts); err != nil {
		t.drops.refused.Add(1)
	}
}

// File implements tun.Device.
func (d *inner) File() *os.File { return nil }

// MTU implements tun.Device.
func (d *inner) MTU() (int, error) { return wireMTU, nil }

// Name implements tun.Device.
func (d *inner) Name() (string, error) { return "reservoir", nil }

// Events implements tun.Device.
func (d *inner) Events() <-chan tun.Event { return d.events }

// Close implements tun.Device.
func (d *inner) Close() error {
	close(d.closed)
	close(d.events)
	return nil
}

// BatchSize implements tun.Device.
func (d *inner) BatchSize() int { return conn.IdealBatchSize }

// rawWriter writes frames to a TAP in parts that are not beside each other.
type rawWriter struct{ c syscall.RawConn }

func rawWriterOf(tap *os.File) (rawWriter, error) {
	c, err := tap.SyscallConn()
	if err != nil {
		return rawWriter{}, fmt.Errorf("write to TAP %s: %w", tap.Name(), err)
	}
	return rawWriter{c}, nil
}

func (r rawWriter) write(o offload, parts [][]byte) error {
	var head [offloadLen]byte
	o.put(head[:])
	all := append(make([][]byte, 0, 64), head[:])
	all = append(all, parts...)
	var wrote error
	err := r.c.Control(func(fd uintptr) { _, wrote = unix.Writev(int(fd), all) })
	return errors.Join(err, wrote)
}
