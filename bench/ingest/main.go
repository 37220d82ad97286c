// Command ingest measures what taking measurements in costs.
//
// First, in this process and in turns: samples a second of CPU time and memory for each series by
// monitor/store, which checks, limits and names what comes, beside the same time series
// database written to directly, by someone who keeps each series' labels and reference at
// hand and checks nothing.
//
// Then a whole site: its processes, agents with simulated guests, 10,000 VEEs whose probes
// all report, and what the site's process takes of memory and CPU while they do.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

var (
	binary   = flag.String("reservoir", "build/reservoir", "the binary under test")
	subjects = flag.Int("subjects", 5000, "subjects of the comparison, ten series each")
	rounds   = flag.Int("rounds", 20, "turns of the comparison; in each, every series gets a sample by both ways")
	number   = flag.Int("vees", 10_000, "VEEs of the site; 0: only the comparison")
	hosts    = flag.Int("hosts", 10, "its hosts, with simulated guests")
	settle   = flag.Duration("settle", 3*time.Minute, "that is waited for measurements of all VEEs, once all run")
	observed = flag.Duration("time", time.Minute, "that the site is observed, once all VEEs run")
	limit    = flag.Duration("timeout", 15*time.Minute, "for everything")
)

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	err := compare(ctx)
	if err == nil && *number > 0 {
		err = observe(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench ingest:", err)
		os.Exit(1)
	}
}
