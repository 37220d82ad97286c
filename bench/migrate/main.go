// Command migrate measures the live migration of a busy guest of 256 MiB between two hosts
// of a site, and beside it, in turns, the same migration driven by hand over QMP: two QEMUs
// with the command line of the product's guest (disk, NIC and all), the same work and the
// same limits, joined by TCP on the loopback, without a site, agents, TLS or a record of
// what happens. The work rewrites a quarter of the memory every second and keeps the vCPU
// busy.
// What downtime and total are says package byhand.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/byhand"
	"github.com/reservoir-cloud/reservoir/bench/stage"
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
	b := byhand.Beside{On: on, Machine: m, Way: byhand.Way{Prefix: *prefix, Port: *port, Dial: [2]int{*port, *port + 1}}, To: func(int) string { return "" }}
	ours, hand, err := b.Rounds(ctx, *rounds)
	if err != nil {
		return err
	}
	return byhand.Report("migrate", ours, hand, 1.2)
}
