// Command dvms measures scheduling without a centre against a central scheduler, in virtual
// time on one trace of loads: the published setting at the sizes that were published, and
// 10,000 hosts with 100,000 VEEs, and 100,000 with 1,000,000.
package main

import (
	"fmt"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/sim/scale"
)

var algorithms = []scale.Algorithm{scale.Ring, scale.Locality, scale.Central}

// published are the mean times in violation, s, of VMPlaceS (Lèbre, Pastor, Südholt, Euro-Par
// 2015; from memory, not checked against its tables), by hosts: Entropy, Snooze, DVMS.
var published = []struct {
	hosts                  int
	entropy, snooze, peers float64
}{{128, 21.3, 21.1, 9.55}, {256, 40.1, 21.5, 9.58}, {512, 55.6, 24.5, 9.57}, {1024, 81.6, 29.0, 9.61}}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-dvms:", err)
		os.Exit(1)
	}
}

func run() error {
	fmt.Printf("virtual time, one trace of loads for all; %d CPUs, %s\n\n", runtime.NumCPU(), runtime.Version())
	if err := beside(); err != nil {
		return err
	}
	figures, err := sizes("10,000 hosts at 4 sites, 100,000 VEEs, loads as published: N(60, 20), 30 min", func(a scale.Algorithm) scale.Config {
		return at4(scale.Published(a, 10_000))
	})
	if err != nil {
		return err
	}
	if _, err := sizes("The same with solvers that take 20 µs for a VEE, rather than Entropy's 2.6 ms (ours takes less)", func(a scale.Algorithm) scale.Config {
		return ours(at4(scale.Published(a, 10_000)))
	}); err != nil {
		return err
	}
	if _, err := sizes("10,000 hosts at 4 sites, 50,000 VEEs, dense: 4 cores a host, N(60, 30)", func(a scale.Algorithm) scale.Config {
		return at4(scale.Dense(a, 10_000))
	}); err != nil {
		return err
	}
	larger, err := sizes("100,000 hosts at 4 sites, 1,000,000 VEEs, loads as published", func(a scale.Algorithm) scale.Config {
		return at4(scale.Published(a, 100_000))
	})
	if err != nil {
		return err
	}
	ring, near, central := figures[0].Violations.Mean(), figures[1].Violations.Mean(), figures[2].Violations.Mean()
	figure.Line("dvms_10k_wall_s", slowest(figures), "s", "<", 60)
	figure.Line("dvms_10k_violation_s", max(ring, near), "s", "<", central)
	figure.Line("dvms_10k_intersite", figures[1].InterSite(), "share", "<", figures[0].InterSite())
	figure.Line("dvms_100k_wall_s", slowest(larger), "s", "<", 900)
	return nil
}

// slowest algorithm's wall time, s.
func slowest(all []measured) (wall float64) {
	for _, m := range all {
		wall = max(wall, m.wall.Seconds())
	}
	return wall
}

// ours is a pace that our own solver keeps: the wall times of the central scheduler, over its
// plans, show by how much.
func ours(c scale.Config) scale.Config {
	c.Base, c.PerVEE = time.Millisecond, 20*time.Microsecond
	return c
}

func at4(c scale.Config) scale.Config {
	c.Sites = 4
	return c
}

// beside prints our times in violation beside those published. A run at these sizes sees few
// violations: as many runs are taken as make 40,960 hosts.
func beside() error {
	fmt.Println("Time in violation, s: mean ± deviation (violations in all runs); VMPlaceS, Euro-Par 2015, from memory, not checked against its tables")
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "hosts\tVEEs\truns\tring\tlocality\tcentral\tpublished DVMS\tSnooze\tEntropy\t")
	for _, p := range published {
		runs := 40_960 / p.hosts
		fmt.Fprintf(t, "%d\t%d\t%d\t", p.hosts, 10*p.hosts, runs)
		for _, a := range algorithms {
			var all scale.Sample
			for seed := range runs {
				c := scale.Published(a, p.hosts)
				c.Seed = uint64(seed) + 1
				r, err := scale.Run(c)
				if err != nil {
					return err
				}
				all.Join(r.Violations)
			}
			fmt.Fprintf(t, "%.2f ± %.2f (%d)\t", all.Mean(), all.Std(), all.N)
		}
		fmt.Fprintf(t, "%.2f\t%.1f\t%.1f\t\n", p.peers, p.snooze, p.entropy)
	}
	t.Flush()
	fmt.Println()
	return nil
}

type measured struct {
	scale.Result
	wall time.Duration
}

// sizes prints what each algorithm makes of one setting.
func sizes(title string, of func(scale.Algorithm) scale.Config) (all []measured, err error) {
	fmt.Println(title)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "algorithm\tviolations\tmean s\t± s\tmax s\tof all host time\thosts/partition\tlargest\tsolved\tmigrations\tbetween sites\tmessages\twall s\t")
	for _, a := range algorithms {
		began := time.Now()
		r, err := scale.Run(of(a))
		if err != nil {
			return nil, err
		}
		m := measured{r, time.Since(began)}
		all = append(all, m)
		note := ""
		if r.Solves > 0 && r.Partitions.N == 0 {
			note = "  its first plan was not ready in time"
		}
		fmt.Fprintf(t, "%s\t%d\t%.2f\t%.2f\t%.0f\t%.4f %%\t%.2f\t%.0f\t%d\t%d\t%.0f %%\t%d\t%.1f\t%s\n", a, r.Violations.N, r.Violations.Mean(), r.Violations.Std(), r.Violations.Max,
			100*r.Share, r.Partitions.Mean(), r.Partitions.Max, r.Solves, r.Migrations, 100*r.InterSite(), r.Messages, m.wall.Seconds(), note)
	}
	t.Flush()
	fmt.Println()
	return all, nil
}
