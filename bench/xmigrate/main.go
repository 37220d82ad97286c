// Command xmigrate measures the live migration of a busy guest of 256 MiB from a site to its
// partner and back, and beside it, in turns, the same migration driven by hand over QMP (see
// byhand) through two relays of the same code that the sites' proxies are: what the product
// adds is TLS from host to host, two sites that agree and keep books, and a network that
// follows.
//
// Downtime is how long no vCPU runs: from QEMU's STOP at the source to its RESUME at the
// destination, by QEMU's own timestamps. The product's leaves out the way of one message
// from host to host, since sites do not compare clocks. Total goes from the start of the
// destination's QEMU (by hand) or the call (product) to the guest's going on there (by
// hand) or the primary's record saying so (product).
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
	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/bench/stage"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/van/border/relay"
	"github.com/reservoir-cloud/reservoir/vmi"
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
	for _, to := range []string{"@beta", "h1"} { // the first one brings the image there
		if _, err := product(ctx, on, to); err != nil {
			return fmt.Errorf("before the first round: %w", err)
		}
	}
	var ours, hand []byhand.Result
	fmt.Printf("%-6s %22s %22s\n", "round", "product down / total", "by hand down / total")
	for i := range *rounds {
		p, err := product(ctx, on, []string{"@beta", "h1"}[i%2])
		if err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
		h, err := byhand.Migrate(ctx, filepath.Join(on.Scratch, fmt.Sprint("hand", i)), m, way)
		if err != nil {
			return fmt.Errorf("round %d by hand: %w", i+1, err)
		}
		ours, hand = append(ours, p), append(hand, h)
		fmt.Printf("%-6d %22s %22s\n", i+1, p, h)
	}
	down := func(r byhand.Result) time.Duration { return r.Down }
	total := func(r byhand.Result) time.Duration { return r.Total }
	fmt.Printf("%-6s %22s %22s\n", "median", byhand.Result{Down: median(ours, down), Total: median(ours, total)}, byhand.Result{Down: median(hand, down), Total: median(hand, total)})
	ratio := func(of func(byhand.Result) time.Duration) float64 {
		return float64(median(ours, of)) / float64(max(median(hand, of), time.Millisecond))
	}
	figure.Line("xmigrate_downtime_ratio", ratio(down), "x", "<=", 1.3)
	figure.Line("xmigrate_total_ratio", ratio(total), "x", "<=", 1.3)
	return nil
}

func median(rs []byhand.Result, of func(byhand.Result) time.Duration) time.Duration {
	var d []time.Duration
	for _, r := range rs {
		d = append(d, of(r))
	}
	return figure.Median(d)
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

// product migrates the VEE to a place.
func product(ctx context.Context, on *stage.Stage, to string) (byhand.Result, error) {
	for _, work := range []string{"burn-cpu amount=1", fmt.Sprintf("burn-memory amount=%d", byhand.BurnMemory)} {
		if _, err := on.Run(ctx, append([]string{"vee", "tell", "web-1"}, append(strings.Fields(work), fmt.Sprintf("seconds=%d", byhand.BurnSeconds))...)...); err != nil {
			return byhand.Result{}, err
		}
	}
	if _, err := on.Run(ctx, "vee", "migrate", "web-1", "--to", to, "--wait"); err != nil {
		return byhand.Result{}, err
	}
	list, err := stage.List[vmi.Migration](ctx, on, "vee", "migrations")
	if err != nil {
		return byhand.Result{}, err
	}
	if len(list) == 0 || list[0].Ended == nil {
		return byhand.Result{}, fmt.Errorf("vee migrations lists no migration that has ended: %+v", list)
	}
	// The guest's channel is open again, and its work is over, before the next round.
	time.Sleep(byhand.BurnSeconds*time.Second - time.Since(list[0].Started))
	return byhand.Result{Down: time.Duration(list[0].DowntimeMS) * time.Millisecond, Total: list[0].Ended.Sub(list[0].Started)}, nil
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
