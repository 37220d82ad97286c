package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Side that a connection comes from.
type Side string

// Sides.
const (
	Inside  Side = "inside"
	Outside Side = "outside"
)

// Goal is where a ticket leads: an address, or another relay with the ticket to show there.
type Goal struct {
	Address string
	Show    string // "": the address is the end itself
}

// Tickets says where a ticket leads, for who shows it on that side. It is asked once for each
// connection, and a ticket for one connection is used up by the answer. done is called when
// the connection has ended. The error's text is the reason that the caller is told.
type Tickets func(side Side, ticket string) (g Goal, done func(), err error)

// Limits of a relay. Zero values: the defaults below.
type Limits struct {
	Connections int           // joined at once; 4096
	Strangers   int           // connections that have not shown a good ticket yet, of either side; 256
	FirstLine   time.Duration // until the first line is complete; 5 s
	Dial        time.Duration // to where the ticket leads; 10 s
	Idle        time.Duration // nothing in either direction; 10 min
}

func (l *Limits) fill() {
	set := func(to *time.Duration, d time.Duration) {
		if *to == 0 {
			*to = d
		}
	}
	if l.Connections == 0 {
		l.Connections = 4096
	}
	if l.Strangers == 0 {
		l.Strangers = 256
	}
	set(&l.FirstLine, 5*time.Second)
	set(&l.Dial, 10*time.Second)
	set(&l.Idle, 10*time.Minute)
}

// Config of a relay.
type Config struct {
	Tickets Tickets
	Valid   func(ticket string) bool
	// Dial to where tickets lead.
	Dial interface {
		DialContext(ctx context.Context, network, address string) (net.Conn, error)
	}
	Limits Limits
	Log    *slog.Logger
}

// Relay joins connections until its context ends.
type Relay struct {
	cfg       Config
	strangers map[Side]chan struct{} // each side has its own: strangers outside do not keep the site in
	joined    chan struct{}
	taken     atomic.Uint64
	refused   atomic.Uint64
}

// New relay.
func New(cfg Config) *Relay {
	cfg.Limits.fill()
	return &Relay{cfg: cfg, joined: make(chan struct{}, cfg.Limits.Connections),
		strangers: map[Side]chan struct{}{Inside: make(chan struct{}, cfg.Limits.Strangers), Outside: make(chan struct{}, cfg.Limits.Strangers)}}
}

// Counts of connections: joined now, and since the start those that were taken and refused.
func (r *Relay) Counts() (open int, taken, refused uint64) {
	return len(r.joined), r.taken.Load(), r.refused.Load()
}

// Serve one side's listener, which it owns. It returns when ctx is done and every connection
// has ended.
func (r *Relay) Serve(ctx context.Context, side Side, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for {
		c, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("relay, %s: %w", side, err)
		case err != nil: // of one connection, or of too many files: not for ever
			r.cfg.Log.Warn("relay cannot take a connection", "side", side, "err", err)
			pause(ctx, 50*time.Millisecond)
			continue
		}
		select {
		case r.strangers[side] <- struct{}{}:
		default:
			r.refused.Add(1)
			c.Close()
			continue
		}
		wg.Go(func() { r.take(ctx, side, c) })
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// take a connection: read its ticket, join it, and wait for its end.
func (r *Relay) take(ctx context.Context, side Side, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	far, done, err := r.admit(ctx, side, c)
	<-r.strangers[side]
	if err != nil {
		r.refused.Add(1)
		r.cfg.Log.Info("relay refuses", "side", side, "from", c.RemoteAddr(), "why", err)
		_ = c.SetDeadline(time.Now().Add(r.cfg.Limits.FirstLine))
		_, _ = io.WriteString(c, no+oneLine(err.Error())+"\n")
		return
	}
	defer done()
	defer func() { <-r.joined }()
	defer far.Close()
	stopFar := context.AfterFunc(ctx, func() { far.Close() })
	defer stopFar()
	r.taken.Add(1)
	_ = c.SetDeadline(time.Time{})
	if _, err := io.WriteString(c, yes+"\n"); err != nil {
		return
	}
	join(c, far, r.cfg.Limits.Idle)
}

// admit who shows a good ticket, and reach where it leads. A place among the joined is taken
// when there is no error.
func (r *Relay) admit(ctx context.Context, side Side, c net.Conn) (far net.Conn, done func(), err error) {
	_ = c.SetDeadline(time.Now().Add(r.cfg.Limits.FirstLine))
	line, err := readLine(c)
	if err != nil {
		return nil, nil, err
	}
	ticket, err := ticketOf(line, r.cfg.Valid)
	if err != nil {
		return nil, nil, err
	}
	select {
	case r.joined <- struct{}{}:
	default:
		return nil, nil, fmt.Errorf("%d connections are open already", cap(r.joined))
	}
	goal, done, err := r.cfg.Tickets(side, ticket)
	if err != nil {
		<-r.joined
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Limits.Dial)
	defer cancel()
	if goal.Show != "" {
		far, err = Dial(ctx, r.cfg.Dial, goal.Address, goal.Show)
	} else if far, err = r.cfg.Dial.DialContext(ctx, "tcp", goal.Address); err != nil {
		err = fmt.Errorf("nobody answers where it leads: %w", err)
	}
	if err != nil {
		<-r.joined
		done()
		return nil, nil, err
	}
	return far, done, nil
}

// oneLine of a reason, short enough for readLine.
func oneLine(s string) string {
	b := []byte(s[:min(len(s), maxLine-len(no)-1)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = ' '
		}
	}
	return string(b)
}

// chunk after which it is noted that something has passed, bytes.
const chunk = 256 << 10

// join copies both ways until both have ended, each by itself, or nothing has passed in
// either for the time idle. Both are to be closed then.
func join(a, b net.Conn, idle time.Duration) {
	var last atomic.Int64 // when something passed
	last.Store(time.Now().UnixNano())
	still := func() time.Duration { return time.Since(time.Unix(0, last.Load())) }
	cut := func() { a.Close(); b.Close() }
	var wg sync.WaitGroup
	for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			for {
				// A deadline for reading alone: what is on its way to the reader would be lost.
				_ = p[1].SetReadDeadline(time.Now().Add(idle / 2))
				n, err := io.CopyN(p[0], p[1], chunk)
				if n > 0 {
					last.Store(time.Now().UnixNano())
				}
				switch {
				case err == nil, errors.Is(err, os.ErrDeadlineExceeded) && still() < idle:
				case errors.Is(err, io.EOF) && closeWrite(p[0]):
					return
				default: // the other direction has no sense either
					cut()
					return
				}
			}
		})
	}
	// One that takes nothing any more is not noticed by reading from the other.
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	tick := time.NewTicker(idle / 2)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
			if still() > 2*idle {
				cut()
			}
		}
	}
}

func closeWrite(c net.Conn) bool {
	half, ok := c.(interface{ CloseWrite() error })
	return ok && half.CloseWrite() == nil
}
