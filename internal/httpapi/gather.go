package httpapi

import (
	"crypto/tls"
	"net"
	"sync"
)

// gathered is TLS over a connection of which one Write becomes one write to the kernel. TLS
// makes a record of each 16 KiB (RFC 8446, section 5.1) and writes it by itself; where a
// stream carries hundreds of MiB, as a guest's memory does, most of its cost is that.
type gathered struct {
	*tls.Conn
	under *gather
}

func (c gathered) Write(b []byte) (int, error) {
	c.under.hold()
	n, err := c.Conn.Write(b)
	if sent := c.under.release(); err == nil && sent != nil {
		n, err = 0, sent
	}
	return n, err
}

// gather holds what is written between hold and release.
type gather struct {
	net.Conn
	mu    sync.Mutex
	holds bool
	held  []byte
}

func (g *gather) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.holds {
		return g.Conn.Write(b)
	}
	g.held = append(g.held, b...)
	return len(b), nil
}

func (g *gather) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holds = true
}

func (g *gather) release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.held
	g.holds, g.held = false, b[:0]
	if len(b) == 0 {
		return nil
	}
	_, err := g.Conn.Write(b)
	return err
}
