package vet

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// channel is the line to the agent in one guest while that guest runs. The guest is not
// trusted: what it may make the host remember is one Status, and it wakes nobody more
// often than its readiness changes.
type channel struct {
	mu      sync.Mutex
	conn    net.Conn
	seen    bool
	status  guest.Status
	heard   time.Time // last word of the guest, or since when it is listened to; zero: it is not
	pending map[string]chan guest.Reply
	lastID  int
}

// redial is the pause between attempts to reach the guest's line.
const redial = 300 * time.Millisecond

// tellTimeout bounds the wait for a guest's reply.
const tellTimeout = 10 * time.Second

// serve keeps the line until ctx is done. changed is called when readiness, idleness or
// presence changed, said with each Status.
func (c *channel) serve(ctx context.Context, dial func(context.Context) (net.Conn, error), changed func(), said func(guest.Status)) {
	c.mu.Lock()
	c.heard = time.Now()
	c.mu.Unlock()
	defer c.reset(changed)
	for ctx.Err() == nil {
		if conn, err := dial(ctx); err == nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			c.read(conn, changed, said)
			stop()
			conn.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(redial):
		}
	}
}

// reset forgets the guest: it does not run any more.
func (c *channel) reset(changed func()) {
	c.mu.Lock()
	was := c.seen
	c.seen, c.status, c.heard = false, guest.Status{}, time.Time{}
	c.mu.Unlock()
	if was {
		changed()
	}
}

func (c *channel) read(conn net.Conn, changed func(), said func(guest.Status)) {
	c.mu.Lock()
	c.conn, c.pending = conn, map[string]chan guest.Reply{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.conn = nil
		for _, w := range c.pending {
			close(w)
		}
		c.pending = nil
	}()
	if c.send(guest.Command{Type: "hello?"}) != nil {
		return
	}
	r := guest.NewReader(conn)
	for {
		m, err := r.Next()
		if errors.Is(err, guest.ErrMalformed) {
			continue
		}
		if err != nil {
			return
		}
		if c.take(m) {
			changed()
		}
		if s, is := m.(*guest.Status); is {
			said(*s)
		}
	}
}

// take remembers one message, and reports whether anybody should hear of it.
func (c *channel) take(m any) (news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
	switch m := m.(type) {
	case *guest.Hello: // a Status follows; before it, a guest that was ready elsewhere still is
	case *guest.Status:
		news = !c.seen || c.status.Ready != m.Ready || c.status.Idle != m.Idle || c.status.Failure != m.Failure
		c.seen, c.status = true, *m
	case *guest.Reply:
		if w := c.pending[m.ID]; w != nil {
			delete(c.pending, m.ID)
			w <- *m
		}
	}
	return news
}

func (c *channel) send(cmd guest.Command) error {
	b, err := guest.Encode(cmd)
	if err != nil {
		return fault.New(fault.Malformed, "%w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return fault.New(fault.Unavailable, "the guest has no agent that answers")
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(tellTimeout))
	if _, err := c.conn.Write(b); err != nil {
		return fault.New(fault.Unavailable, "tell the guest's agent: %w", err)
	}
	return nil
}

// tell sends a command and waits for the guest's reply.
func (c *channel) tell(ctx context.Context, cmd guest.Command) (guest.Reply, error) {
	w := make(chan guest.Reply, 1)
	c.mu.Lock()
	if c.pending == nil {
		c.mu.Unlock()
		return guest.Reply{}, fault.New(fault.Unavailable, "the guest has no agent that answers")
	}
	c.lastID++
	cmd.ID = strconv.Itoa(c.lastID)
	c.pending[cmd.ID] = w
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.pending, cmd.ID)
	}()
	if err := c.send(cmd); err != nil {
		return guest.Reply{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	select {
	case r, ok := <-w:
		if !ok {
			return guest.Reply{}, fault.New(fault.Unavailable, "the guest's agent went away before it replied")
		}
		return r, nil
	case <-ctx.Done():
		return guest.Reply{}, fault.New(fault.Timeout, "the guest's agent did not reply to %q: %w", cmd.Type, ctx.Err())
	}
}

// silent is for how long the guest has said nothing to a host that listens.
func (c *channel) silent(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heard.IsZero() {
		return 0
	}
	return now.Sub(c.heard)
}

// now is what the guest last said.
func (c *channel) now() (seen bool, s guest.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen, c.status
}
