// Command migrate measures the live migration of a busy guest of 256 MiB between two hosts
// of a site, and beside it, in turns, the same migration driven by hand over QMP: two QEMUs
// with the command line of the product's guest (disk, NIC and all), the same work and the
// same limits, joined by TCP on the loopback, without a site, agents, TLS or a record of
// what happens. The work rewrites a quarter of the memory every second and keeps the vCPU
// busy.
//
// Downtime is how long no vCPU runs: from QEMU's STOP at the source to its RESUME at the
// destination, by QEMU's own timestamps. The product's leaves out the way of one message
// from agent to agent, since hosts do not compare clocks. Total goes from the start of the
// destination's QEMU (by hand) or the call (product) to the guest's going on there (by
// hand) or the record's saying so (product).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/byhand"
	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/bench/stage"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var (
	binary = flag.String("reservoir", "build/reservoir", "the binary under test")
	layout = flag.String("image", ".cache/images/appliance", "OCI layout of the appliance")
	rounds = flag.Int("rounds", 9, "migrations of each kind")
	port   = flag.Int("port", 17929, "first of two TCP ports on the loopback, for the one by hand")
	prefix = flag.String("prefix", "bmi", "of the stage's interfaces")
	subnet = flag.String("subnet", "129", "of the stage")
)

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench migrate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	on, err := stage.Up(ctx, *binary, *layout, "--hosts", "2", "--prefix", *prefix, "--subnet", *subnet)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, on.Down(ctx)) }()
	if err := on.Deploy(ctx, byhand.Manifest); err != nil {
		return err
	}
	m, err := byhand.MachineOf(on.Dir, on.Scratch)
	if err != nil {
		return err
	}
	var ours, hand []byhand.Result
	fmt.Printf("%-6s %22s %22s\n", "round", "product down / total", "by hand down / total")
	for i := range *rounds {
		p, err := product(ctx, on)
		if err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
		h, err := byhand.Migrate(ctx, filepath.Join(on.Scratch, fmt.Sprint("hand", i)), m, byhand.Way{Prefix: *prefix, Port: *port, Dial: [2]int{*port, *port + 1}})
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
	figure.Line("migrate_downtime_ratio", ratio(down), "x", "<=", 1.2)
	figure.Line("migrate_total_ratio", ratio(total), "x", "<=", 1.2)
	return nil
}

func median(rs []byhand.Result, of func(byhand.Result) time.Duration) time.Duration {
	var d []time.Duration
	for _, r := range rs {
		d = append(d, of(r))
	}
	return figure.Median(d)
}

// product migrates the VEE to the other host.
func product(ctx context.Context, on *stage.Stage) (byhand.Result, error) {
	for _, work := range []string{"burn-cpu amount=1", fmt.Sprintf("burn-memory amount=%d", byhand.BurnMemory)} {
		if _, err := on.Run(ctx, append([]string{"vee", "tell", "web-1"}, append(strings.Fields(work), fmt.Sprintf("seconds=%d", byhand.BurnSeconds))...)...); err != nil {
			return byhand.Result{}, err
		}
	}
	if _, err := on.Run(ctx, "vee", "migrate", "web-1", "--wait"); err != nil {
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
