// Package relay is the TCP half of a site's VAN proxy: who dials it shows a ticket in the
// first line, and is joined to where that leads. What passes then is TLS between the two ends,
// which the relay cannot read.
//
//	caller: RESERVOIR 1 TICKET\n
//	relay:  OK\n            and from then on whatever the other end sends
//	        NO REASON\n     and the end
//
// Strangers reach the listener for outside: connections, and the time and bytes until the
// first line is complete, are bounded, and an unknown ticket costs next to nothing.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

const (
	greeting = "RESERVOIR 1 "
	yes      = "OK"
	no       = "NO "
	maxLine  = 256 // bytes, with the end of line
)

// readLine without its end, and nothing behind it: byte by byte, since what follows belongs to
// the other end.
func readLine(r io.Reader) (string, error) {
	var line [maxLine]byte
	for n := range line {
		if _, err := io.ReadFull(r, line[n:n+1]); err != nil {
			return "", fmt.Errorf("read the first line: %w", err)
		}
		if line[n] == '\n' {
			return string(line[:n]), nil
		}
	}
	return "", fmt.Errorf("the first line is longer than %d bytes", maxLine)
}

// ticketOf a first line.
func ticketOf(line string, valid func(string) bool) (string, error) {
	ticket, ok := strings.CutPrefix(line, greeting)
	if !ok || !valid(ticket) {
		return "", errors.New("this is no first line of version 1")
	}
	return ticket, nil
}

// Dial the relay at address and show a ticket: the connection is then one to where the ticket
// leads. Errors: fault.Denied with the relay's reason, fault.Unavailable.
func Dial(ctx context.Context, d interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}, address, ticket string) (net.Conn, error) {
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "reach the proxy at tcp://%s: %w", address, err).
			Try("see whether it runs, and whether a firewall is between: tcp://%s", address)
	}
	if err := show(ctx, c, ticket); err != nil {
		c.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if fault.Has(err, fault.Denied) {
			return nil, err
		}
		return nil, fault.New(fault.Unavailable, "the proxy at tcp://%s: %w", address, err)
	}
	return c, nil
}

func show(ctx context.Context, c net.Conn, ticket string) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(c, greeting+ticket+"\n"); err != nil {
		return fmt.Errorf("show it a ticket: %w", err)
	}
	line, err := readLine(c)
	switch reason, refused := strings.CutPrefix(line, no); {
	case err != nil:
		return err
	case refused:
		return fault.New(fault.Denied, "the proxy at %s refuses: %s", c.RemoteAddr(), reason)
	case line != yes:
		return fmt.Errorf("it answers %.32q: that is no proxy", line)
	}
	if !stop() {
		return ctx.Err()
	}
	return nil
}
