// Package relay lets every member of a site's control plane answer in the name of the one
// that leads: connections are passed on, byte for byte. TLS ends at the leader, which sees
// its callers' own certificates; a member that passes them on can neither read nor say
// anything in their name. It knows nothing of what goes through it.
package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// dialTimeout of the member that leads. Members are near each other.
const dialTimeout = 2 * time.Second

// Relay passes connections on to whoever leads.
type Relay struct {
	Here *Feed // takes the connections while this member leads
	Log  *slog.Logger

	mu    sync.Mutex
	to    string // where the leader answers; empty: nobody leads
	here  bool
	reign context.Context // until somebody else leads
	end   context.CancelFunc
}

// Nobody leads, as far as is known: connections are closed, so that callers try elsewhere.
func (r *Relay) Nobody() { r.lead("", false) }

// Lead says that this member leads.
func (r *Relay) Lead() { r.lead("", true) }

// Follow says where the leader answers.
func (r *Relay) Follow(address string) { r.lead(address, false) }

func (r *Relay) lead(to string, here bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to == to && r.here == here && r.end != nil {
		return
	}
	if r.end != nil {
		r.end()
	}
	r.to, r.here = to, here
	r.reign, r.end = context.WithCancel(context.Background())
}

// Serve takes the connections of ln, which it closes, until ctx is done. It returns when none
// of them is passed on any more.
func (r *Relay) Serve(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if conn != nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // out of descriptors, say: it passes
			r.Log.Warn("take a connection", "err", err)
			pause(ctx)
			continue
		}
		wg.Go(func() { r.pass(ctx, conn) })
	}
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
}

func (r *Relay) pass(ctx context.Context, conn net.Conn) {
	r.mu.Lock()
	to, here, reign := r.to, r.here, r.reign
	r.mu.Unlock()
	switch {
	case here:
		r.Here.Give(ctx, conn)
		return
	case to == "":
		conn.Close()
		return
	}
	up, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", to)
	if err != nil {
		conn.Close()
		return
	}
	cut := func() { conn.Close(); up.Close() }
	defer context.AfterFunc(ctx, cut)()
	defer context.AfterFunc(reign, cut)()
	join(conn, up)
}

// join copies both ways, each until its end, and closes both.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, err := io.Copy(p[0], p[1])
			if half, ok := p[0].(*net.TCPConn); err == nil && ok {
				_ = half.CloseWrite() // the other way may have more to say
				return
			}
			a.Close()
			b.Close()
		})
	}
	wg.Wait()
	a.Close()
	b.Close()
}
