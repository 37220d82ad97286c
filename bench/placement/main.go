// Command placement measures the placement engine: BtrPlace's published workloads in repair
// mode, a site of 10,000 hosts and 100,000 VEEs, and beside others on the same problems:
// migrations with capped parallelism, hbal, hail and hspace of Ganeti, proven optima (MiniZinc, CBC), Nomad's scheduler, and first
// fit and best fit on Azure's arrivals. The independent checker verifies every plan.
//
// With arguments it runs only those parts: workloads, scale, migrations, ganeti, optima, nomad, azure.
package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench placement:", err)
		os.Exit(1)
	}
}

func run(only []string) error {
	data := cmp.Or(os.Getenv("RESERVOIR_DATA"), "../shared/data")
	for _, part := range []struct {
		name string
		run  func() error
	}{
		{"workloads", func() error { return workloads(data) }},
		{"scale", func() error { return scale(10_000, 100_000) }},
		{"migrations", migrations},
		{"ganeti", clusters},
		{"optima", optima},
		{"nomad", jobs},
		{"azure", func() error { return azure(data) }},
	} {
		if len(only) > 0 && !slices.Contains(only, part.name) {
			continue
		}
		fmt.Printf("\n%s\n", part.name)
		if err := part.run(); err != nil {
			return err
		}
	}
	return nil
}
