// Command van measures what a virtual area network costs: throughput and latency between
// two namespaces ("guests") at two hosts, by our data path, beside a direct veth and a
// bridge and VXLAN device as a person makes them by hand, between the same two namespaces,
// in turns. The hosts of the hand-made one have no rules of ours.
//
// It also measures what an access point adds to a question and its answer, and how long it
// takes to plan 1,000 networks with 10,000 ports, and to find what has to change.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/bench/figure"
)

var (
	rounds  = flag.Int("rounds", 40, "measurements of each path, in short turns: what else the machine does meets all")
	seconds = flag.Duration("time", 300*time.Millisecond, "of one measurement of throughput")
	echoes  = flag.Int("echoes", 500, "questions and answers of one measurement of latency")
)

func main() {
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench van:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	planned, err := plans()
	if err != nil {
		return err
	}
	s, err := newStage()
	defer func() { err = errors.Join(err, s.close()) }()
	if err != nil {
		return err
	}
	paths := []*path{
		{name: "veth", what: "one veth from guest to guest", server: "10.92.0.2"},
		{name: "by hand", what: "bridge and VXLAN with learning, no rules", server: "10.93.0.2"},
		{name: "VAN", what: "ours: isolation", server: "10.94.0.2"},
		{name: "VAN, firewall", what: "ours: isolation and a stateful firewall at both ends", server: "10.95.0.2"},
	}
	for round := range *rounds {
		for _, p := range paths {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.measure(ctx, p); err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, p.name, err)
			}
		}
	}
	report(paths)
	hand, ours := paths[1], paths[2:]
	worst := 0.0
	for i, p := range ours {
		var ratios []float64
		for r := range p.bits {
			ratios = append(ratios, p.bits[r]/hand.bits[r])
		}
		if m := median(ratios); i == 0 || m < worst {
			worst = m
		}
	}
	ratio, err := accessPoint(ctx)
	if err != nil {
		return fmt.Errorf("access point: %w", err)
	}
	figure.Line("van_throughput_ratio", worst, "x", ">=", 0.9)
	figure.Line("van_plan_ms", float64(planned.Microseconds())/1000, "ms", "<=", 1000)
	figure.Line("lb_p99_ratio", ratio, "x", "<=", 1.1)
	return nil
}

// path between the guests.
type path struct {
	name, what, server string
	bits               []float64       // per second, by round
	half, slow         []time.Duration // round trips: median and 99th percentile, by round
}

func report(paths []*path) {
	fmt.Printf("\nOne TCP stream for %v, %d round trips of a datagram of 64 bytes; medians of %d rounds in turns:\n\n", *seconds, *echoes, *rounds)
	fmt.Printf("%-14s %12s %10s %10s   %s\n", "path", "Gbit/s", "round trip", "p99", "")
	for _, p := range paths {
		fmt.Printf("%-14s %12.2f %10v %10v   %s\n", p.name, median(p.bits)/1e9,
			figure.Median(p.half).Round(100*time.Nanosecond), figure.Median(p.slow).Round(100*time.Nanosecond), p.what)
	}
	fmt.Println()
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
