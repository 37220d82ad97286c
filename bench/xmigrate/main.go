// Command xmigrate measures the live migration of a busy guest of 256 MiB from a site to its
// partner and back, and beside it, in turns, the same migration driven by hand over QMP (see
// byhand) through two relays of the same code that the sites' proxies are: what the product
// adds is TLS from host to host, two sites that agree and keep books, and a network that
// follows.
// What downtime and total are says package byhand.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/byhand"
	"github.com/reservoir-cloud/reservoir/bench/stage"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/border/relay"
)

var (
	binary = flag.String("reservoir", "build/reservoir", "the binary under test")
	layout = flag.String("image", ".cache/images/appliance", "OCI layout of the appliance")
	rounds = flag.Int("rounds", 10, "migrations of each kind, there and back in turns")
	port   = flag.Int("port", 17949, "first of two TCP ports on the loopback, for the one by hand")
	prefix = flag.String("prefix", "bxm", "of the stage's interfaces")
	subnet = flag.String("subnet", "149", "first of the stage's two")
)

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench xmigrate:", err)
		os.Exit(1)
	}
}

const agreement = `lend: false
until: 2099-01-01
notice: 1h
ceiling: {vees: 4, vcpus: 4, memory: 2GiB, disk: 20GiB}
types: [{name: small, vcpus: 1, memory: 1GiB, disk: 10GiB}]
currency: EUR
prices: {vcpu: 0.05}
move: [live]
`

// manifest is byhand.Manifest, on a network that goes along.
const manifest = `service: busy
components:
  - name: web
    image: appliance
    memory: 256MiB
    disks:
      - {name: data, size: 64MiB}
    networks: [back]
networks:
  - {name: back}
`

func run(ctx context.Context) (err error) {
	on, err := stage.Up(ctx, *binary, *layout, "--sites", "2", "--hosts", "1", "--prefix", *prefix, "--subnet", *subnet)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, on.Down(ctx)) }()
	if err := federate(ctx, on); err != nil {
		return err
	}
	if err := on.Deploy(ctx, manifest); err != nil {
		return err
	}
	m, err := byhand.MachineOf(on.Dir, on.Scratch)
	if err != nil {
		return err
	}
	way, end, err := relays(ctx)
	if err != nil {
		return err
	}
	defer end()
	places := []string{"@beta", "h1"}
	b := byhand.Beside{On: on, Machine: m, Way: way, To: func(round int) string { return places[round%2] }}
	for _, to := range places { // the first one brings the image there
		if _, err := b.Product(ctx, to); err != nil {
			return fmt.Errorf("before the first round: %w", err)
		}
	}
	ours, hand, err := b.Rounds(ctx, *rounds)
	if err != nil {
		return err
	}
	return byhand.Report("xmigrate", ours, hand, 1.3)
}

// federate the two sites: alpha may have VEEs at beta.
func federate(ctx context.Context, on *stage.Stage) error {
	file := filepath.Join(on.Scratch, "agreement.yaml")
	if err := os.WriteFile(file, []byte(agreement), 0o600); err != nil {
		return err
	}
	alpha := func(args ...string) (string, error) {
		return on.Run(ctx, append([]string{"--context", "dev-alpha"}, args...)...)
	}
	beta := func(args ...string) (string, error) {
		return on.Run(ctx, append([]string{"--context", "dev-beta"}, args...)...)
	}
	token, err := beta("federation", "invite")
	if err == nil {
		_, err = alpha("federation", "accept", strings.TrimSpace(token))
	}
	if err == nil {
		_, err = alpha("agreement", "propose", "beta", file)
	}
	id := ""
	if err == nil {
		id, err = alpha("agreement", "list", "-o", "name")
	}
	if err != nil {
		return err
	}
	id = strings.TrimSpace(id)
	if err := soon(ctx, func() error { _, err := beta("agreement", "sign", id); return err }); err != nil {
		return err
	}
	return soon(ctx, func() error {
		hosts, err := alpha("host", "list", "-o", "name")
		if err == nil && !strings.Contains(hosts, "@beta") {
			err = errors.New("site beta is no place for VEEs yet")
		}
		return err
	})
}

// soon f succeeds, or its last error is returned.
func soon(ctx context.Context, f func() error) error {
	for end := time.Now().Add(30 * time.Second); ; {
		err := f()
		if err == nil || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// relays are two as the sites' proxies have them, one after the other, and before them for
// each of the two ports one that shows a ticket in QEMU's place.
func relays(ctx context.Context) (way byhand.Way, end func(), err error) {
	way = byhand.Way{Prefix: *prefix, Port: *port}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	end = func() { cancel(); wg.Wait() }
	defer func() {
		if err != nil {
			end()
		}
	}()
	goals := map[string]relay.Goal{}
	listen := func(side relay.Side, tickets func(string) (relay.Goal, bool)) (string, error) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		r := relay.New(relay.Config{Valid: border.ValidTicket, Dial: &net.Dialer{}, Log: slog.New(slog.DiscardHandler),
			Tickets: func(_ relay.Side, ticket string) (relay.Goal, func(), error) {
				g, ok := tickets(ticket)
				if !ok {
					return g, nil, errors.New("unknown ticket")
				}
				return g, func() {}, nil
			}})
		wg.Go(func() { _ = r.Serve(ctx, side, ln) })
		return ln.Addr().String(), nil
	}
	for i := range way.Dial {
		goals[fmt.Sprint("in", i)] = relay.Goal{Address: fmt.Sprintf("127.0.0.1:%d", way.Port+i)}
	}
	outside, err := listen(relay.Outside, func(t string) (relay.Goal, bool) { g, ok := goals[t]; return g, ok })
	if err != nil {
		return way, end, err
	}
	inside, err := listen(relay.Inside, func(t string) (relay.Goal, bool) { return relay.Goal{Address: outside, Show: t}, true })
	if err != nil {
		return way, end, err
	}
	for i := range way.Dial {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return way, end, err
		}
		way.Dial[i] = ln.Addr().(*net.TCPAddr).Port
		wg.Go(func() { forward(ctx, ln, inside, fmt.Sprint("in", i)) })
	}
	return way, end, nil
}

// forward connections to a relay, with a ticket, until ctx is done.
func forward(ctx context.Context, ln net.Listener, to, ticket string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			far, err := relay.Dial(ctx, &net.Dialer{}, to, ticket)
			if err != nil {
				fmt.Fprintln(os.Stderr, "bench xmigrate:", err)
				return
			}
			defer far.Close()
			cut := context.AfterFunc(ctx, func() { c.Close(); far.Close() })
			defer cut()
			done := make(chan struct{})
			go func() { defer close(done); _, _ = io.Copy(far, c); far.Close() }()
			_, _ = io.Copy(c, far)
			c.Close()
			<-done
		})
	}
}
