// Command tunnel measures what a virtual area network costs between two sites: throughput of
// a TCP stream between two namespaces ("guests") of a shared VAN, each at a host of its site,
// through both sites' proxies, beside a VXLAN bridge made by hand inside the same user-space
// WireGuard, and that WireGuard bare, in turns.
//
// The hand-made one is what `ip` and wireguard-go make with the fewest steps: bridge and VXLAN
// device on the TUN device, on one machine for each site. Ours has a hop more at each site,
// from the host to the proxy, and its isolation rules.
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
	"github.com/reservoir-cloud/reservoir/bench/spaces"
)

var (
	rounds  = flag.Int("rounds", 20, "measurements of each path, in short turns: what else the machine does meets all")
	seconds = flag.Duration("time", time.Second, "of one measurement")
)

func main() {
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench tunnel:", err)
		os.Exit(1)
	}
}

// path between two namespaces.
type path struct {
	name, what, from, to, server string
	bits                         []float64 // per second, by round
}

func run(ctx context.Context) (err error) {
	s, err := newStage(ctx)
	defer func() { err = errors.Join(err, s.close()) }()
	if err != nil {
		return err
	}
	paths := []*path{
		{name: "VAN", what: "ours: host, proxy, WireGuard, proxy, host; isolation", from: "btun-g1", to: "btun-g2", server: "10.94.0.2"},
		{name: "by hand", what: "bridge and VXLAN inside WireGuard, no rules", from: "btun-g1", to: "btun-g2", server: "10.93.0.2"},
		{name: "bare", what: "the same WireGuard without VXLAN", from: "btun-k1", to: "btun-k2", server: "10.97.0.2"},
	}
	for round := range *rounds {
		for _, p := range paths {
			if err := ctx.Err(); err != nil {
				return err
			}
			rate, err := spaces.Throughput(ctx, p.from, p.to, p.server, *seconds)
			if err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, p.name, err)
			}
			p.bits = append(p.bits, rate)
		}
	}
	fmt.Printf("\nOne TCP stream for %v; medians of %d rounds in turns:\n\n", *seconds, *rounds)
	fmt.Printf("%-10s %10s %12s   %s\n", "path", "Gbit/s", "of bare", "")
	for _, p := range paths {
		fmt.Printf("%-10s %10.2f %11.0f%%   %s\n", p.name, median(p.bits)/1e9, 100*ratio(p, paths[2]), p.what)
	}
	fmt.Println()
	figure.Line("tunnel_ratio", ratio(paths[0], paths[1]), "x", ">=", 0.9)
	return nil
}

// ratio of two paths: the median of those of each round.
func ratio(a, b *path) float64 {
	var all []float64
	for i := range a.bits {
		all = append(all, a.bits[i]/b.bits[i])
	}
	return median(all)
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
