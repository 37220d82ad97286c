// Command roadef improves one instance of the ROADEF/EURO challenge 2012 for a time and
// writes the assignment; on standard error it says what it found on the way, in the end as
// "INSTANCE SECONDS COST".
package main

import (
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/reassign"
	"github.com/reservoir-cloud/reservoir/placement/roadef"
)

func main() {
	var (
		model   = flag.String("model", "", "model file (.gz too)")
		initial = flag.String("initial", "", "assignment before (.gz too)")
		out     = flag.String("out", "", "file to write the assignment to")
		limit   = flag.Duration("time", 300*time.Second, "time for the run, reading included")
		workers = flag.Int("workers", 2, "searches beside each other")
		seed    = flag.Uint64("seed", 1, "seed")
	)
	flag.Parse()
	if err := run(*model, *initial, *out, *limit, *workers, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(model, initial, out string, limit time.Duration, workers int, seed uint64) error {
	start := time.Now()
	m, err := open(model)
	if err != nil {
		return err
	}
	a, err := open(initial)
	if err != nil {
		return err
	}
	p, err := roadef.Read(m, a)
	if err != nil {
		return fmt.Errorf("read %s and %s: %w", model, initial, err)
	}
	name := strings.TrimPrefix(strings.SplitN(filepath.Base(model), ".", 2)[0], "model_")
	say := func(cost int64) { fmt.Fprintf(os.Stderr, "%s %.1f %d\n", name, time.Since(start).Seconds(), cost) }
	best, err := reassign.Improve(p, reassign.Options{
		Seed: seed, Workers: workers,
		Elapsed:  func() float64 { return time.Since(start).Seconds() / limit.Seconds() },
		Improved: func(_ []int32, cost int64) { say(cost) },
	})
	if err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	if err := roadef.WriteAssignment(f, best.At); err != nil {
		return err
	}
	return f.Close()
}

// open a file, unpacked if it is a .gz.
func open(name string) (io.Reader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(name, ".gz") {
		return f, nil
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", name, err)
	}
	return z, nil
}
