package main

import (
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/placement/btrplace"
	"github.com/reservoir-cloud/reservoir/placement/check"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

// workloads of BtrPlace in repair mode: how long the first solution takes, reading the
// instance and checking the plan apart.
func workloads(data string) error {
	files, err := filepath.Glob(filepath.Join(data, "btrplace", "*.json.gz"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no instance in %s/btrplace: say where the data is with RESERVOIR_DATA", data)
	}
	fmt.Printf("%-10s %8s %8s %10s %8s %11s %10s %s\n", "instance", "hosts", "VEEs", "seconds", "actions", "migrations", "sum of ends", "checker")
	var nr6, worst time.Duration
	var objective float64
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json.gz")
		m, err := read(f)
		if err != nil {
			return err
		}
		start := time.Now()
		target, err := solve.Repair(m, solve.Options{Seed: 1})
		if err != nil {
			return fmt.Errorf("repair %s: %w", name, err)
		}
		p, err := solve.Schedule(m, target)
		if err != nil {
			return fmt.Errorf("repair %s: %w", name, err)
		}
		took := time.Since(start)
		if err := check.Plan(m, p); err != nil {
			return fmt.Errorf("the checker rejects the plan for %s: %w", name, err)
		}
		fmt.Printf("%-10s %8d %8d %10.3f %8d %11d %10.0fs passed\n", name, len(m.Hosts), len(m.VEEs), took.Seconds(), len(p.Actions), p.Migrations(), p.SumOfEnds().Seconds())
		if name == "nr6-c0" {
			nr6, objective = took, p.SumOfEnds().Seconds()
		}
		if strings.HasSuffix(name, "-c100") {
			worst = max(worst, took)
		}
	}
	figure.Line("btrplace_nr6c0_s", nr6.Seconds(), "s", "<", 1)
	figure.Line("btrplace_nr6c0_objective", objective, "s", "<=", 8543)
	figure.Line("btrplace_c100_worst_s", worst.Seconds(), "s", "<", 3)
	return nil
}

func read(name string) (*model.Model, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", name, err)
	}
	m, err := btrplace.Read(z)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}
