package relay

import (
	"context"
	"net"
	"sync"
)

// Feed is a place for connections that others have accepted. Who serves them may change:
// each takes a Listener of its own.
type Feed struct {
	addr  net.Addr
	conns chan net.Conn
}

// NewFeed for the connections that come to addr.
func NewFeed(addr net.Addr) *Feed { return &Feed{addr, make(chan net.Conn)} }

// Give waits until somebody serves conn; it is closed when ctx ends before.
func (f *Feed) Give(ctx context.Context, conn net.Conn) {
	select {
	case f.conns <- conn:
	case <-ctx.Done():
		conn.Close()
	}
}

// Listener of what is given from now on, until it is closed.
func (f *Feed) Listener() net.Listener {
	return &listener{feed: f, closed: make(chan struct{})}
}

type listener struct {
	feed   *Feed
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select { // one that is closed takes nothing, even where something waits
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.feed.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.feed.addr }
