package dnt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// What hosts tell each other of each other travels over the agents' own listener and mutual
// TLS (docs/adr/0019): a stream is an upgraded connection, and packets are frames in one that
// is held open while there are some. Like UDP's they may be lost: nobody waits for a
// connection, and what comes too fast is dropped.

// Kinds of connection.
const (
	Packets = "packets" // frames: two bytes of length, big-endian, and so many more
	Stream  = "stream"
)

// Dial connects to the gossip of a host: to that one and no other.
type Dial func(ctx context.Context, host, address, kind string) (net.Conn, error)

const (
	// largestPacket that is sent; what is longer is no packet of ours.
	largestPacket = 8 << 10
	// queued packets to one host, above which they are dropped.
	queued = 64
	// idle connections are closed. A host that probes another each second comes back to each
	// of a hundred in that time.
	idle = 2 * time.Minute
	// patience with a host that takes no packets.
	patience = 2 * time.Second
)

var _ memberlist.NodeAwareTransport = (*pipes)(nil)

// pipes is memberlist's transport.
type pipes struct {
	cfg     Config
	packets chan *memberlist.Packet
	streams chan net.Conn
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu   sync.Mutex
	over bool
	out  map[memberlist.Address]chan []byte
}

func newPipes(cfg Config) *pipes {
	p := &pipes{cfg: cfg, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), out: map[memberlist.Address]chan []byte{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// begin f, which end waits for; false: it is over.
func (p *pipes) begin(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.beginLocked(f)
}

func (p *pipes) beginLocked(f func()) bool {
	if p.over {
		return false
	}
	p.wg.Go(f)
	return true
}

// Accept a connection of a host: what is returned is the other end of it.
func (t *Tracker) Accept(host, kind string) (io.ReadWriteCloser, error) {
	return t.pipes.accept(host, kind)
}

func (p *pipes) accept(host, kind string) (io.ReadWriteCloser, error) {
	ours, theirs := net.Pipe()
	var take func()
	switch kind {
	case Packets:
		take = func() { p.receive(name(host), ours) }
	case Stream:
		take = func() {
			select {
			case p.streams <- ours:
			case <-p.ctx.Done():
				ours.Close()
			}
		}
	default:
		return nil, fault.New(fault.NotFound, "there is no gossip of kind %q", kind)
	}
	if !p.begin(take) {
		return nil, fault.New(fault.Unavailable, "this agent is ending")
	}
	return theirs, nil
}

// receive packets of a host until it hangs up.
func (p *pipes) receive(from net.Addr, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(p.ctx, func() { c.Close() })()
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint16(length[:])
		if n > largestPacket {
			return
		}
		buf := make([]byte, n)
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
		select {
		case p.packets <- &memberlist.Packet{Buf: buf, From: from, Timestamp: time.Now()}:
		case <-p.ctx.Done():
			return
		}
	}
}

// name of a host as the address that a packet came from.
type name string

func (name) Network() string  { return "mtls" }
func (n name) String() string { return string(n) }

// WriteToAddress implements memberlist.NodeAwareTransport.
func (p *pipes) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	if len(b) > largestPacket {
		return time.Time{}, fmt.Errorf("a packet of %d bytes to host %s: %d at most", len(b), to.Name, largestPacket)
	}
	frame := append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...)
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.out[to]
	if c == nil {
		c = make(chan []byte, queued)
		if !p.beginLocked(func() { p.send(to, c) }) {
			return time.Time{}, errors.New("this agent is ending")
		}
		p.out[to] = c
	}
	select {
	case c <- frame:
	default: // lost
	}
	return time.Now(), nil
}

// send what is queued for a host, until nothing is for a while or it cannot be reached.
func (p *pipes) send(to memberlist.Address, frames chan []byte) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.out, to) // with what is left in it
	}()
	conn, err := p.dial(to, Packets, patience)
	if err != nil {
		p.cfg.Log.Debug("reach another host", "host", to.Name, "err", err)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(p.ctx, func() { conn.Close() })()
	quiet := time.NewTimer(idle)
	defer quiet.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-quiet.C:
			return
		case f := <-frames:
			_ = conn.SetWriteDeadline(time.Now().Add(patience))
			if _, err := conn.Write(f); err != nil {
				return
			}
			quiet.Reset(idle)
		}
	}
}

func (p *pipes) dial(to memberlist.Address, kind string, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	return p.cfg.Dial(ctx, to.Name, to.Addr, kind)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (p *pipes) DialAddressTimeout(to memberlist.Address, limit time.Duration) (net.Conn, error) {
	return p.dial(to, Stream, limit)
}

// PacketCh, StreamCh and FinalAdvertiseAddr implement memberlist.Transport.
func (p *pipes) PacketCh() <-chan *memberlist.Packet { return p.packets }
func (p *pipes) StreamCh() <-chan net.Conn           { return p.streams }
func (p *pipes) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return p.cfg.Address.Addr().AsSlice(), int(p.cfg.Address.Port()), nil
}

var errNameless = errors.New("a host is spoken to by its name")

// WriteTo and DialTimeout would speak to nobody in particular; memberlist is told not to use
// them (RequireNodeNames).
func (p *pipes) WriteTo([]byte, string) (time.Time, error)           { return time.Time{}, errNameless }
func (p *pipes) DialTimeout(string, time.Duration) (net.Conn, error) { return nil, errNameless }

// Shutdown implements memberlist.Transport; see end.
func (p *pipes) Shutdown() error { p.stop(); return nil }

// end everything and wait for it.
func (p *pipes) end() {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.stop()
	p.wg.Wait()
}
