// Command roadef improves the instances of the ROADEF/EURO challenge 2012 for as long as the
// challenge did, on two cores, and prints the challenge's own score beside that of team S41:
// what is lost to the best published cost, in % of the initial cost. Costs are counted from
// the final placement alone, by code that the search does not use.
package main

import (
	"cmp"
	"compress/gzip"
	"encoding/csv"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/placement/reassign"
	"github.com/reservoir-cloud/reservoir/placement/roadef"
)

// short instances run for a minute, the others for five.
var short = []string{"a1_1", "a1_2", "a1_3", "a1_5"}

func main() {
	only := flag.String("only", "", "instances, with commas between; empty: all")
	factor := flag.Float64("factor", 1, "of the challenge's time")
	cpu := flag.Bool("cpu", false, "count the processor's time of both workers in place of the clock's, for a busy machine")
	iterations := flag.Int64("iterations", 0, "of each worker, in place of any time: the same result on any machine; 0: time")
	seed := flag.Uint64("seed", 1, "of the search")
	out := flag.String("out", "", "folder for the assignments, for another referee; empty: none")
	flag.Parse()
	data := filepath.Join(cmp.Or(os.Getenv("RESERVOIR_DATA"), "../shared/data"), "roadef2012")
	o := options{only: *only, factor: *factor, cpu: *cpu, iterations: *iterations, seed: *seed, out: *out}
	if err := run(data, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench roadef:", err)
		os.Exit(1)
	}
}

type options struct {
	only       string
	factor     float64
	cpu        bool
	iterations int64
	seed       uint64
	out        string
}

// clock for a run with two workers, in seconds: the wall's, or half of the time that this
// process has had on processors, which on a busy machine is what a quiet one would show.
func (o options) clock() func() float64 {
	if !o.cpu {
		start := time.Now()
		return func() float64 { return time.Since(start).Seconds() }
	}
	start := used()
	return func() float64 { return (used() - start) / workers }
}

// used is the time in seconds that this process has had on processors.
func used() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // cannot be for oneself
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// workers of the search: one for each core.
const workers = 2

// published figures of an instance.
type published struct {
	name               string
	initial, s41, best float64
}

func (p published) score(cost float64) float64 { return 100 * (cost - p.best) / p.initial }

func run(data string, o options) error {
	instances, err := read(filepath.Join(data, "published.csv"))
	if err != nil {
		return fmt.Errorf("%w: say where the data is with RESERVOIR_DATA", err)
	}
	fmt.Printf("%-6s %6s %14s %14s %14s %9s %9s %9s %9s\n", "", "s", "ours", "S41", "best", "score %", "at 1/30 %", "at 1/5 %", "S41 %")
	var worst, sum float64
	n := 0
	for _, p := range instances {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), p.name) {
			continue
		}
		limit := 300 * time.Second
		if slices.Contains(short, p.name) {
			limit = time.Minute
		}
		limit = time.Duration(o.factor * float64(limit))
		costs, err := improve(data, p.name, limit, o)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		last := costs[len(costs)-1]
		fmt.Printf("%-6s %6.0f %14.0f %14.0f %14.0f %9.4f %9.4f %9.4f %9.4f\n", p.name, limit.Seconds(), last, p.s41, p.best,
			p.score(last), p.score(costs[0]), p.score(costs[min(1, len(costs)-1)]), p.score(p.s41))
		worst, sum, n = max(worst, p.score(last)), sum+p.score(last), n+1
	}
	if n == 0 {
		return fmt.Errorf("no instance is called %s", o.only)
	}
	figure.Line("roadef_score_worst", worst, "%", "<=", .5)
	figure.Line("roadef_score_mean", sum/float64(n), "%", "<=", .1)
	return nil
}

// improve an instance until limit, reading included: its cost after each round.
func improve(data, name string, limit time.Duration, o options) (costs []float64, err error) {
	elapsed := o.clock()
	model, err := unpack(filepath.Join(data, "model_"+name+".txt.gz"))
	if err != nil {
		return nil, err
	}
	initial, err := unpack(filepath.Join(data, "assignment_"+name+".txt.gz"))
	if err != nil {
		return nil, err
	}
	p, err := roadef.Read(strings.NewReader(model), strings.NewReader(initial))
	if err != nil {
		return nil, err
	}
	search := reassign.Options{Seed: o.seed, Workers: workers, Iterations: o.iterations,
		Improved: func(_ []int32, cost int64) { costs = append(costs, float64(cost)) }}
	if o.iterations == 0 {
		search.Elapsed = func() float64 { return elapsed() / limit.Seconds() }
	}
	best, err := reassign.Improve(p, search)
	if err != nil {
		return nil, err
	}
	if cost, err := p.Cost(best.At); err != nil || cost != best.Cost {
		return nil, fmt.Errorf("the placement found costs %d instead of %d: %w", cost, best.Cost, err)
	}
	if o.out == "" {
		return costs, nil
	}
	f, err := os.Create(filepath.Join(o.out, name+".txt"))
	if err != nil {
		return nil, err
	}
	if err := roadef.WriteAssignment(f, best.At); err != nil {
		return nil, err
	}
	return costs, f.Close()
}

func unpack(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	return string(text), nil
}

// read the published costs: instance, initial, lower bound, S41's, best.
func read(name string) (all []published, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	for _, row := range rows[1:] {
		p := published{name: row[0]}
		for field, to := range map[int]*float64{1: &p.initial, 3: &p.s41, 4: &p.best} {
			if *to, err = strconv.ParseFloat(row[field], 64); err != nil {
				return nil, fmt.Errorf("read %s: %s: %w", name, p.name, err)
			}
		}
		all = append(all, p)
	}
	return all, nil
}
