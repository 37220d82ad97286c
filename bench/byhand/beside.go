package byhand

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/bench/stage"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Beside is the product's migration and the one by hand, in turns on one machine.
type Beside struct {
	On      *stage.Stage
	Machine Machine
	Way     Way
	// To is where the product's goes in a round, from 0; "" is any other host.
	To func(round int) string
}

// Rounds of each kind.
func (b Beside) Rounds(ctx context.Context, n int) (ours, hand []Result, err error) {
	fmt.Printf("%-6s %22s %22s\n", "round", "product down / total", "by hand down / total")
	for i := range n {
		p, err := b.Product(ctx, b.To(i))
		if err != nil {
			return nil, nil, fmt.Errorf("round %d: %w", i+1, err)
		}
		h, err := Migrate(ctx, filepath.Join(b.On.Scratch, fmt.Sprint("hand", i)), b.Machine, b.Way)
		if err != nil {
			return nil, nil, fmt.Errorf("round %d by hand: %w", i+1, err)
		}
		ours, hand = append(ours, p), append(hand, h)
		fmt.Printf("%-6d %22s %22s\n", i+1, p, h)
	}
	return ours, hand, nil
}

// Product migrates the stage's guest to a place, while it works.
func (b Beside) Product(ctx context.Context, to string) (Result, error) {
	for _, work := range []string{"burn-cpu amount=1", fmt.Sprintf("burn-memory amount=%d", BurnMemory)} {
		if _, err := b.On.Run(ctx, append([]string{"vee", "tell", "web-1"}, append(strings.Fields(work), fmt.Sprintf("seconds=%d", BurnSeconds))...)...); err != nil {
			return Result{}, err
		}
	}
	order := []string{"vee", "migrate", "web-1", "--wait"}
	if to != "" {
		order = append(order, "--to", to)
	}
	if _, err := b.On.Run(ctx, order...); err != nil {
		return Result{}, err
	}
	list, err := stage.List[vmi.Migration](ctx, b.On, "vee", "migrations")
	if err != nil {
		return Result{}, err
	}
	if len(list) == 0 || list[0].Ended == nil {
		return Result{}, fmt.Errorf("vee migrations lists no migration that has ended: %+v", list)
	}
	// The guest's channel is open again, and its work is over, before the next round.
	m, ms := list[0], time.Millisecond
	time.Sleep(BurnSeconds*time.Second - time.Since(m.Started))
	return Result{Prepare: time.Duration(m.Took.PrepareMS) * ms, Disks: time.Duration(m.Took.DisksMS) * ms, Memory: time.Duration(m.Took.MemoryMS) * ms,
		Down: time.Duration(m.DowntimeMS) * ms, Total: m.Ended.Sub(m.Started)}, nil
}

// Report where the time goes, and how the medians of NAME_downtime_ratio and NAME_total_ratio
// compare with what they may be.
func Report(name string, ours, hand []Result, target float64) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "median ms\tprepare\tdisks\tmemory\tdown\tthe rest\ttotal\t")
	for _, of := range []struct {
		who string
		rs  []Result
	}{{"product", ours}, {"by hand", hand}} {
		fmt.Fprintf(w, "%s\t", of.who)
		for _, phase := range phases {
			fmt.Fprintf(w, "%d\t", median(of.rs, phase).Milliseconds())
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	ratio := func(of func(Result) time.Duration) float64 {
		return float64(median(ours, of)) / float64(max(median(hand, of), time.Millisecond))
	}
	figure.Line(name+"_downtime_ratio", ratio(func(r Result) time.Duration { return r.Down }), "x", "<=", target)
	figure.Line(name+"_total_ratio", ratio(func(r Result) time.Duration { return r.Total }), "x", "<=", target)
	return nil
}

// phases of a Result, in their order.
var phases = []func(Result) time.Duration{
	func(r Result) time.Duration { return r.Prepare },
	func(r Result) time.Duration { return r.Disks },
	func(r Result) time.Duration { return r.Memory },
	func(r Result) time.Duration { return r.Down },
	func(r Result) time.Duration { return r.Total - r.Prepare - r.Disks - r.Memory - r.Down },
	func(r Result) time.Duration { return r.Total },
}

func median(rs []Result, of func(Result) time.Duration) time.Duration {
	var d []time.Duration
	for _, r := range rs {
		d = append(d, of(r))
	}
	return figure.Median(d)
}
