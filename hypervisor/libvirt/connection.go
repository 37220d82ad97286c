package libvirt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"

	"github.com/reservoir-cloud/reservoir/hypervisor"
)

const (
	// answerPatience is how long libvirtd may take to answer what it answers at once; it
	// may first have to find out what its hypervisor can do, which takes many seconds
	// where KVM is there and does not work.
	answerPatience = 90 * time.Second
	// reconnectPause between tries to reach a libvirtd that went away.
	reconnectPause = 500 * time.Millisecond
)

// connection to libvirtd. It is opened again when it breaks: libvirtd may be restarted
// under its guests.
//
// The library's calls know no context. Each runs in a goroutine of its own, which ends
// when libvirtd answers or the connection is closed; close waits for all of them.
type connection struct {
	uri    rpc.ConnectURI // as libvirtd knows it: "qemu:///system"
	socket string         // where it listens
	calls  sync.WaitGroup

	mu     sync.Mutex
	line   *line // nil while there is none
	closed bool
}

// line is one connection to libvirtd, with what it tells of guests.
type line struct {
	*rpc.Libvirt
	conn   net.Conn
	events <-chan rpc.DomainEventLifecycleMsg // ends with the line
}

// defaultSocket of libvirtd.
const defaultSocket = "/var/run/libvirt/libvirt-sock"

// newConnection for a URI in libvirt's own form (libvirt.org/uri.html). The driver makes
// disks and opens sockets on its own host, so libvirtd must be there too.
func newConnection(uri string) (*connection, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("libvirt URI %q: %w", uri, err)
	}
	scheme, transport, _ := strings.Cut(u.Scheme, "+")
	switch {
	case scheme != "qemu" && scheme != "test":
		return nil, fmt.Errorf("libvirt URI %q: want qemu:///system, or test:///default for libvirt's mock", uri)
	case u.Host != "", transport != "" && transport != "unix":
		return nil, fmt.Errorf("libvirt URI %q names another machine: run an agent there", uri)
	}
	return &connection{uri: rpc.RemoteURI(u), socket: cmp.Or(u.Query().Get("socket"), defaultSocket)}, nil
}

// errAway says that there is no libvirtd to speak to.
var errAway = errors.New("libvirtd does not answer; see that it runs: systemctl status libvirtd virtlogd")

// dial opens the line.
func (c *connection) dial(ctx context.Context) (*line, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, fmt.Errorf("connect to libvirtd: %w; see that it runs: systemctl status libvirtd virtlogd", err)
	}
	l := &line{Libvirt: rpc.NewWithDialer(dialers.NewAlreadyConnected(conn)), conn: conn}
	err = c.await(ctx, func() error {
		err := l.ConnectToURI(c.uri)
		if err == nil {
			l.events, err = l.LifecycleEvents(context.Background()) //nolint:contextcheck // ends with the line
		}
		if err != nil {
			l.hangUp()
		}
		return err
	}, l.hangUp)
	if err != nil {
		conn.Close() // ends the call that nobody waits for
		return nil, fmt.Errorf("connect to %s: %w", c.uri, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		l.hangUp()
		return nil, hypervisor.ErrClosed
	}
	c.line = l
	return l, nil
}

// hangUp without a word, which a libvirtd that hangs would not answer.
func (l *line) hangUp() {
	l.conn.Close()
	<-l.Disconnected()
	if l.events != nil {
		l.drain()
	}
}

// drain what libvirtd tells, to the line's end: somebody has to read it.
func (l *line) drain() {
	for range l.events {
	}
}

// mock tells libvirt's mock hypervisor from one that runs guests.
func (c *connection) mock() bool { return strings.HasPrefix(string(c.uri), "test:") }

// version of libvirt and its hypervisor.
func (c *connection) version(ctx context.Context) (string, error) {
	var hypervisor, library uint64
	if err := c.call(ctx, func(l *rpc.Libvirt) (err error) {
		if library, err = l.ConnectGetLibVersion(); err == nil {
			hypervisor, err = l.ConnectGetVersion()
		}
		return err
	}); err != nil {
		return "", fmt.Errorf("ask libvirt for its hypervisor: %w", err)
	}
	dotted := func(n uint64) string { return fmt.Sprintf("%d.%d.%d", n/1e6, n/1e3%1e3, n%1e3) }
	if c.mock() {
		return "libvirt " + dotted(library), nil
	}
	return "QEMU " + dotted(hypervisor) + ", libvirt " + dotted(library), nil
}

// lost says that line has broken.
func (c *connection) lost(l *line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.line == l {
		c.line = nil
	}
}

// call speaks to libvirtd about something that takes it no time.
func (c *connection) call(ctx context.Context, do func(*rpc.Libvirt) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerPatience, errAway)
	defer cancel()
	return c.work(ctx, do)
}

// work has libvirtd do something, for as long as ctx lets it.
func (c *connection) work(ctx context.Context, do func(*rpc.Libvirt) error) error {
	c.mu.Lock()
	l := c.line
	c.mu.Unlock()
	if l == nil {
		return errAway
	}
	err := c.await(ctx, func() error { return do(l.Libvirt) }, func() {})
	if errors.Is(err, rpc.ErrInterrupted) {
		return errAway
	}
	return err
}

// await do, or ctx; in that case late is called when do has ended after all.
func (c *connection) await(ctx context.Context, do func() error, late func()) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	over := make(chan struct{}) // nobody waits any more
	done := make(chan error)
	c.calls.Go(func() {
		err := do()
		select {
		case done <- err:
		case <-over:
			late()
		}
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		close(over)
		return context.Cause(ctx)
	}
}

// close ends the line, and with it the calls under way.
func (c *connection) close() {
	c.mu.Lock()
	l := c.line
	c.line, c.closed = nil, true
	c.mu.Unlock()
	if l != nil {
		l.hangUp()
	}
	c.calls.Wait()
}

// is tells whether libvirt's error has this number (virErrorNumber).
func is(err error, number rpc.ErrorNumber) bool {
	var e rpc.Error
	return errors.As(err, &e) && e.Code == uint32(number)
}
