// Command polymorph runs the polymorph search of RESERVOIR's publications in virtual time,
// through the Service Manager and the VEE Manager of a site (sim/managers): its 7,200 jobs on 16
// dedicated nodes, on elastic ones under the published settings, and under ours. The nodes,
// their boots and the batch system are simulated; what is decided, and when, is not.
//
// The workload of the published run is known in its outline only: a batch of 2 long jobs,
// then large sets, up to 7,200 jobs. How long the jobs are, in how many sets they come and how
// long the orchestration thinks between two is guessed so that the published settings give
// the published figures; several guesses do, and all of them are run.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
)

// What was published (Clayman et al.): minutes, and nodes on average.
const (
	publishedDedicated = 143.41
	publishedTime      = 153.66
	publishedExtra     = 7.15
	publishedNodes     = 10.49
	publishedSaving    = 34.46
	publishedShutdown  = 159.11
)

// model of the workload, and the boot time under which the published settings give the
// published figures.
type model struct {
	workload
	boot time.Duration
	why  string
}

// models that fit. The first is the one that the figures are of.
var models = []model{
	{workload{Long: 2465 * time.Second, Sets: 6, Think: 225 * time.Second, Short: 10590 * time.Millisecond}, 20 * time.Second,
		"six sets of 1,200, minutes between them"},
	{workload{Long: 2745 * time.Second, Sets: 2, Think: 180 * time.Second, Short: 12240 * time.Millisecond}, 45 * time.Second,
		"two sets, minutes between them"},
	{workload{Long: 3000 * time.Second, Sets: 1, Think: 0, Short: 12430 * time.Millisecond}, 65 * time.Second,
		"all at once"},
}

// bootHere is how long a Debian guest takes from its order until it takes jobs: measured on
// QEMU without KVM (make polymorph).
const bootHere = 31 * time.Second

func main() {
	seeds := flag.Int("seeds", 3, "runs of each, whose averages are shown")
	boot := flag.Duration("boot", bootHere, "until a node that was ordered takes jobs, with our settings")
	events := flag.Bool("events", false, "show what the Service Manager decided in the first run of ours")
	flag.Parse()
	if err := run(*seeds, *boot, *events); err != nil {
		fmt.Fprintln(os.Stderr, "polymorph:", err)
		os.Exit(1)
	}
}

func run(seeds int, boot time.Duration, events bool) error {
	fmt.Printf("Polymorph search: %d jobs, at most %d nodes, queue measured every %s; simulated nodes, averages of %d runs\n\n", allJobs, mostNodes, measureEach, seeds)
	fmt.Printf("%-34s %9s %8s %7s %8s %9s %7s\n", "", "time", "extra", "nodes", "saving", "shut down", "possible")
	row("published, dedicated", outcome{Time: minutes(publishedDedicated), Nodes: mostNodes}, 0, 0)
	row("published, RESERVOIR", outcome{Time: minutes(publishedTime), Nodes: publishedNodes, Shutdown: minutes(publishedShutdown)}, publishedExtra, 0)
	for i, m := range models {
		d, err := average(seeds, func(seed uint64) (outcome, error) { return dedicated(m.workload, seed) })
		if err != nil {
			return err
		}
		then, err := elasticly(m.workload, published(m.boot), seeds, false)
		if err != nil {
			return err
		}
		now, err := elasticly(m.workload, ours(boot), seeds, events && i == 0)
		if err != nil {
			return err
		}
		fmt.Printf("\nmodel %d: %s\n  2 jobs of %.1f min, then %d in sets of %d, %.1f s each on average, %.1f min apart\n", i+1, m.why,
			m.Long.Minutes(), allJobs-longJobs, (allJobs-longJobs)/m.Sets, m.Short.Seconds(), m.Think.Minutes())
		row("  dedicated", d, 0, 0)
		row(fmt.Sprintf("  published settings, boot %s", m.boot), then, then.extra(d), 0)
		row(fmt.Sprintf("  ours, boot %s", boot), now, now.extra(d), possible(m.workload, d))
		if i == 0 {
			defer figure.Line("polymorph_extra_time", now.extra(d), "%", "<=", 5)
			defer figure.Line("polymorph_node_saving", now.saving(), "%", ">=", 40)
		}
	}
	explain(boot)
	return nil
}

func explain(boot time.Duration) {
	fmt.Printf(`
time       minutes until the last job has ended; extra: beside dedicated nodes
nodes      ordered, serving or stopping, on average until then; saving: beside %d
possible   the most that anything could save within 5 %% of extra time: with every node busy
           all the time

Known of the published run: the batch of 2 long jobs and the large sets after it, 7,200 jobs,
the queue's measure every 30 s, the rule for one node more (queue ÷ (nodes + 1) > 4, nodes <
16), and its results. Guessed: lengths and sets of jobs, the rule for one node less (queue =
0), 2 nodes to begin with, and the boot: the published engine ordered a node every 30 s
whatever still booted, ours waits for a change that is in flight, so that the same pace takes
a short boot here. Every model gives the published figures, so they cannot tell which one
was run; what can be saved differs, because a run of T minutes that works for W node-minutes
saves at most 1 - W/(16 T).

Our settings, with a boot of %s:
%s
`, mostNodes, boot, ours(boot).Rules)
}

func minutes(m float64) time.Duration { return time.Duration(m * float64(time.Minute)) }

// row of the table; what is 0 is not known.
func row(name string, o outcome, extra, possible float64) {
	known := func(format string, v float64) string {
		if v == 0 {
			return "-"
		}
		return fmt.Sprintf(format, v)
	}
	fmt.Printf("%-34s %9.2f %8s %7.2f %8s %9s %7s\n", name, o.Time.Minutes(), known("%+.2f%%", extra), o.Nodes, known("%.2f%%", o.saving()),
		known("%.2f", o.Shutdown.Minutes()), known("%.1f%%", possible))
}

// possible saving within 5 % of extra time, %.
func possible(w workload, dedicated outcome) float64 {
	work := longJobs*w.Long.Seconds() + (allJobs-longJobs)*w.Short.Seconds()
	return 100 * (1 - work/(mostNodes*1.05*dedicated.Time.Seconds()))
}

func elasticly(w workload, set settings, seeds int, events bool) (outcome, error) {
	return average(seeds, func(seed uint64) (outcome, error) {
		o, all, err := elastic(w, set, seed, nil)
		for _, e := range all {
			if events && seed == 1 && (e.Reason == "ScaledUp" || e.Reason == "ScaledDown") {
				fmt.Printf("  %8s %s\n", e.At.Sub(begin).Truncate(time.Second), e.Message)
			}
		}
		return o, err
	})
}

// average of some runs.
func average(seeds int, run func(seed uint64) (outcome, error)) (sum outcome, err error) {
	for seed := range seeds {
		o, err := run(uint64(seed) + 1)
		if err != nil {
			return sum, err
		}
		sum.Time += o.Time / time.Duration(seeds)
		sum.Shutdown += o.Shutdown / time.Duration(seeds)
		sum.Nodes += o.Nodes / float64(seeds)
		sum.Peak = max(sum.Peak, o.Peak)
	}
	return sum, nil
}
