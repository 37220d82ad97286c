// Command placement measures the placement engine: BtrPlace's published workloads in repair
// mode, and a site of 10,000 hosts and 100,000 VEEs. The independent checker verifies every
// plan.
package main

import (
	"cmp"
	"fmt"
	"os"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench placement:", err)
		os.Exit(1)
	}
}

func run() error {
	if err := workloads(cmp.Or(os.Getenv("RESERVOIR_DATA"), "../shared/data")); err != nil {
		return err
	}
	return scale(10_000, 100_000)
}
