// Package qmp is a client of the QEMU Machine Protocol (QEMU docs/interop/qmp-spec.txt)
// over a Unix socket: commands with a context, events, files sent along. It knows no
// command by name.
//
// QEMU is not trusted: a guest may have taken it over. What it sends is bounded, and
// nothing waits for it without a context. docs/adr/0007-own-qmp-client.md says why this is
// not a library.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxMessage bounds one message of QEMU's, bytes. The longest answers that the driver
// asks for are a few KiB.
const maxMessage = 1 << 20

// ErrClosed says that the connection ended, most often because QEMU did.
var ErrClosed = errors.New("the QMP connection is closed")

// Error is QEMU's refusal of a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return e.Desc }

// Event is what QEMU says unasked.
type Event struct {
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
	When  struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Time is when it happened, by the host's clock.
func (e Event) Time() time.Time { return time.Unix(e.When.Seconds, e.When.Microseconds*1000) }

// message is anything that QEMU may send.
type message struct {
	Event
	QMP    json.RawMessage `json:"QMP"`
	ID     uint64          `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
}

// Client is one connection. Its methods may be called from several goroutines.
type Client struct {
	conn *net.UnixConn
	done chan struct{} // closed when the reader has ended

	write sync.Mutex // held while one command is written

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan message // nil once the reader has ended
}

// Connect takes over conn, waits for QEMU's greeting and negotiates. onEvent is called for
// each event, in order, from the client's one goroutine; it must not wait for a command.
func Connect(ctx context.Context, conn *net.UnixConn, onEvent func(Event)) (*Client, error) {
	c := &Client{conn: conn, done: make(chan struct{}), waiting: map[uint64]chan message{}}
	greeted := make(chan struct{})
	go c.read(greeted, onEvent)
	select {
	case <-greeted:
	case <-c.done:
		return nil, fmt.Errorf("wait for QEMU's greeting: %w", ErrClosed)
	case <-ctx.Done():
		c.Close()
		return nil, fmt.Errorf("wait for QEMU's greeting: %w", context.Cause(ctx))
	}
	if err := c.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection and waits for the reader.
func (c *Client) Close() {
	_ = c.conn.Close()
	<-c.done
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Do runs a command. args and result are JSON objects, or nil. Errors: *Error, ErrClosed,
// the context's.
func (c *Client) Do(ctx context.Context, command string, args, result any) error {
	return c.DoWithFile(ctx, command, args, nil, result)
}

// DoWithFile is Do with an open file sent along, as "getfd" wants it.
func (c *Client) DoWithFile(ctx context.Context, command string, args any, file *os.File, result any) error {
	reply, err := c.run(ctx, command, args, file)
	if err == nil && reply.Error != nil {
		err = reply.Error
	}
	if err == nil && result != nil {
		err = json.Unmarshal(reply.Return, result)
	}
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	return nil
}

func (c *Client) run(ctx context.Context, command string, args any, file *os.File) (message, error) {
	answer := make(chan message, 1)
	c.mu.Lock()
	if c.waiting == nil {
		c.mu.Unlock()
		return message{}, ErrClosed
	}
	c.last++
	id := c.last
	c.waiting[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()

	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return message{}, err
	}
	if err := c.send(ctx, append(line, '\n'), file); err != nil {
		return message{}, err
	}
	select {
	case m := <-answer:
		return m, nil
	case <-c.done:
		return message{}, ErrClosed
	case <-ctx.Done():
		return message{}, context.Cause(ctx)
	}
}

// send writes one line. A write that the context cuts short ends the connection, because
// what comes after half a command would be taken for its other half.
func (c *Client) send(ctx context.Context, line []byte, file *os.File) error {
	c.write.Lock()
	defer c.write.Unlock()
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(cut)
	})
	defer func() {
		if !stop() {
			<-cut
			_ = c.conn.SetWriteDeadline(time.Time{})
		}
	}()
	var oob []byte
	if file != nil {
		oob = syscall.UnixRights(int(file.Fd()))
	}
	n, _, err := c.conn.WriteMsgUnix(line, oob, nil)
	if err == nil && n < len(line) {
		_, err = c.conn.Write(line[n:])
	}
	if err != nil {
		_ = c.conn.Close()
		return errors.Join(ErrClosed, err)
	}
	return nil
}

func (c *Client) read(greeted chan<- struct{}, onEvent func(Event)) {
	defer close(c.done)
	defer func() { _ = c.conn.Close() }()
	defer func() {
		c.mu.Lock()
		c.waiting = nil
		c.mu.Unlock()
	}()
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(nil, maxMessage)
	for lines.Scan() {
		var m message
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			return
		}
		switch {
		case m.QMP != nil && greeted != nil:
			close(greeted)
			greeted = nil
		case m.Event.Event != "":
			onEvent(m.Event)
		default:
			c.mu.Lock()
			answer := c.waiting[m.ID]
			delete(c.waiting, m.ID) // a second answer to one command finds nobody
			c.mu.Unlock()
			if answer != nil {
				answer <- m
			}
		}
	}
}
