// Package spaces is what benchmarks of networks share: commands of ip(8), code that runs inside
// a network namespace, and how fast a TCP stream goes from one to another.
package spaces

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netns"
)

// ServePort of the measured services.
const ServePort = 5001

// Patience with a path that has just been made: a bridge does not forward at once.
const Patience = 20 * time.Second

// IP runs commands of ip(8), each a line, until one fails.
func IP(lines ...string) error {
	for _, l := range lines {
		if out, err := exec.CommandContext(context.Background(), "ip", strings.Fields(l)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", l, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// Inside runs f in a namespace, on a thread that ends with it; sockets that f opens stay.
func Inside(space string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.GetFromName(space)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			done <- fmt.Errorf("namespace %s: %w", space, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Throughput of one TCP stream for some time between two namespaces, to an address of the
// second: bit/s as that one counts them.
func Throughput(ctx context.Context, from, to, server string, d time.Duration) (float64, error) {
	at := net.JoinHostPort(server, fmt.Sprint(ServePort))
	var ln net.Listener
	if err := Inside(to, func() (err error) { ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp", at); return err }); err != nil {
		return 0, err
	}
	defer ln.Close()
	type result struct {
		bits float64
		err  error
	}
	got := make(chan result, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			got <- result{err: err}
			return
		}
		defer c.Close()
		buf, total, start := make([]byte, 256<<10), 0, time.Now()
		for {
			n, err := c.Read(buf)
			if total += n; errors.Is(err, io.EOF) {
				got <- result{bits: float64(total) * 8 / time.Since(start).Seconds()}
				return
			} else if err != nil {
				got <- result{err: err}
				return
			}
		}
	}()
	var c net.Conn
	err := Inside(from, func() (err error) { c, err = (&net.Dialer{Timeout: Patience}).DialContext(ctx, "tcp", at); return err })
	if err == nil {
		buf := make([]byte, 256<<10)
		for end := time.Now().Add(d); err == nil && time.Now().Before(end); {
			_, err = c.Write(buf)
		}
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		ln.Close()
		return 0, errors.Join(err, (<-got).err)
	}
	r := <-got
	return r.bits, r.err
}
