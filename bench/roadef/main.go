// Command roadef improves the instances of the ROADEF/EURO challenge 2012 for as long as the
// challenge did, on two cores, and prints the challenge's own score beside that of team S41:
// what is lost to the best published cost, in % of the initial cost. Costs are counted from
// the final placement alone: by code that the search does not use, and by a referee that is
// not ours at all.
package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/csv"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
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
	data := cmp.Or(os.Getenv("RESERVOIR_DATA"), "../shared/data")
	only := flag.String("only", "", "instances, with commas between; empty: all")
	factor := flag.Float64("factor", 1, "of the challenge's time")
	cpu := flag.Bool("cpu", false, "count the processor's time of both workers in place of the clock's, for a busy machine")
	iterations := flag.Int64("iterations", 0, "of each worker, in place of any time: the same result on any machine; 0: time")
	seed := flag.Uint64("seed", 1, "of the search")
	referee := flag.String("referee", filepath.Join(data, "../tools/roadef_check.py"), "script that is given model, initial and final assignment, and prints the cost; empty: none")
	out := flag.String("out", "", "folder for the assignments, for another referee; empty: none")
	flag.Parse()
	o := options{only: *only, factor: *factor, cpu: *cpu, iterations: *iterations, seed: *seed, referee: *referee, out: *out}
	if err := run(context.Background(), filepath.Join(data, "roadef2012"), o); err != nil {
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
	referee    string
	out        string
}

// String says under what conditions the figures come about.
func (o options) String() string {
	budget := "by the clock"
	if o.cpu {
		budget = "by the time that processors gave to each worker"
	}
	budget = fmt.Sprintf("%g of the challenge's time (and of 10 and 60 s), %s", o.factor, budget)
	if o.iterations > 0 {
		budget = fmt.Sprintf("%d moves weighed by each", o.iterations)
	}
	return fmt.Sprintf("two workers, seed %d, %s", o.seed, budget)
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

func run(ctx context.Context, data string, o options) error {
	instances, err := read(filepath.Join(data, "published.csv"))
	if err != nil {
		return fmt.Errorf("%w: say where the data is with RESERVOIR_DATA", err)
	}
	fmt.Println(o)
	fmt.Printf("%-6s %6s %14s %14s %14s %9s %9s %9s %9s\n", "", "s", "ours", "S41", "best", "score %", "at 10 s %", "at 60 s %", "S41 %")
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
		r, err := improve(ctx, data, p.name, limit, o)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		score := p.score(r.cost)
		fmt.Printf("%-6s %6.0f %14.0f %14.0f %14.0f %9.4f %9.4f %9.4f %9.4f\n", p.name, limit.Seconds(), r.cost, p.s41, p.best,
			score, p.score(r.after(10*o.factor, p.initial)), p.score(r.after(60*o.factor, p.initial)), p.score(p.s41))
		worst, sum, n = max(worst, score), sum+score, n+1
	}
	if n == 0 {
		return fmt.Errorf("no instance is called %s", o.only)
	}
	figure.Line("roadef_score_worst", worst, "%", "<=", .5)
	figure.Line("roadef_score_mean", sum/float64(n), "%", "<=", .1)
	return nil
}

// result of an instance: what the search ends with, and the costs it had on the way.
type result struct {
	cost float64
	way  []found
}

// found by the search after so many seconds.
type found struct{ after, cost float64 }

// after is the cost that a search stopped after so many seconds would have come to.
func (r result) after(seconds, initial float64) float64 {
	cost := initial
	for _, f := range r.way {
		if f.after <= seconds {
			cost = f.cost
		}
	}
	return cost
}

// improve an instance until limit, reading included.
func improve(ctx context.Context, data, name string, limit time.Duration, o options) (r result, err error) {
	clock := o.clock()
	model, initial := filepath.Join(data, "model_"+name+".txt.gz"), filepath.Join(data, "assignment_"+name+".txt.gz")
	modelText, err := unpack(model)
	if err != nil {
		return r, err
	}
	initialText, err := unpack(initial)
	if err != nil {
		return r, err
	}
	p, err := roadef.Read(strings.NewReader(modelText), strings.NewReader(initialText))
	if err != nil {
		return r, err
	}
	search := reassign.Options{Seed: o.seed, Workers: workers, Iterations: o.iterations,
		Improved: func(_ []int32, cost int64) { r.way = append(r.way, found{clock(), float64(cost)}) }}
	if o.iterations == 0 {
		search.Elapsed = func() float64 { return clock() / limit.Seconds() }
	}
	best, err := reassign.Improve(p, search)
	if err != nil {
		return r, err
	}
	r.cost = float64(best.Cost)
	if cost, err := p.Cost(best.At); err != nil || cost != best.Cost {
		return r, fmt.Errorf("the placement found costs %d instead of %d: %w", cost, best.Cost, err)
	}
	if o.out == "" {
		if o.out, err = os.MkdirTemp("", "reservoir-roadef"); err != nil {
			return r, err
		}
		defer func() { _ = os.RemoveAll(o.out) }()
	}
	var text bytes.Buffer
	if err := roadef.WriteAssignment(&text, best.At); err != nil {
		return r, err
	}
	final := filepath.Join(o.out, name+".txt")
	if err := os.WriteFile(final, text.Bytes(), 0o644); err != nil {
		return r, err
	}
	return r, o.judge(ctx, model, initial, final, best.Cost)
}

// judge asks the referee what an assignment costs.
func (o options) judge(ctx context.Context, model, initial, final string, cost int64) error {
	if o.referee == "" {
		return nil
	}
	said, err := exec.CommandContext(ctx, "python3", o.referee, model, initial, final).Output()
	if err != nil {
		return fmt.Errorf("referee %s (-referee= goes without): %w: %s", o.referee, err, said)
	}
	if got := strings.TrimSpace(string(said)); got != strconv.FormatInt(cost, 10) {
		return fmt.Errorf("referee %s counts %s instead of %d", o.referee, got, cost)
	}
	return nil
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
