package cli

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/promapi"
)

func (a *app) metricCmd() *cobra.Command {
	return noun("metric", "What was measured", a.metricQuery(), a.metricList())
}

// chartWidth of a range at most, in characters, each a step where none is named.
const chartWidth = 60

func (a *app) metricQuery() *cobra.Command {
	cmd := &cobra.Command{Use: "query EXPR", Short: "Ask in PromQL, now or over a range of time",
		Example: `  reservoir metric query 'queue_size{service="shop"}'
  reservoir metric query 'rate(vee_cpu_seconds_total[1m])' --range 1h
  reservoir metric query 'sum(host_memory_free_bytes) by (site)' --at 2026-03-01T12:00:00Z -o json`}
	var at string
	var back, step time.Duration
	cmd.Flags().StringVar(&at, "at", "", "`TIME` that is asked about, or at which the range ends: RFC 3339 (now)")
	cmd.Flags().DurationVar(&back, "range", 0, "what was during this time, such as 1h")
	cmd.Flags().DurationVar(&step, "step", 0, "time between two points of a range (a 60th of it)")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		end := a.now()
		if at != "" {
			var err error
			if end, err = time.Parse(time.RFC3339, at); err != nil {
				return fault.New(fault.Malformed, "--at %q: %w", at, err).Try("reservoir metric query EXPR --at %s", a.now().UTC().Format(time.RFC3339))
			}
		}
		if back < 0 || step < 0 || step > 0 && back == 0 {
			return fault.New(fault.Malformed, "a range of %v in steps of %v", back, step).Try("reservoir metric query EXPR --range 1h --step 1m")
		}
		if back == 0 {
			found, err := r.metrics.Query(ctx, args[0], end)
			if err != nil {
				return err
			}
			return a.printSeries(*f, found, false, valueColumns)
		}
		if step == 0 {
			step = max(time.Second, (back / chartWidth).Truncate(time.Second))
		}
		from := end.Add(-back)
		found, err := r.metrics.QueryRange(ctx, args[0], from, end, step)
		if err != nil {
			return err
		}
		if *f == "table" || *f == "wide" {
			fmt.Fprintf(a.err, "from %s to %s, every %v\n", from.Local().Format(time.DateTime), end.Local().Format(time.DateTime), step)
		}
		return a.printSeries(*f, found, true, rangeColumns(found, from, end, min(chartWidth, 1+int(back/step))))
	})
	return cmd
}

func (a *app) metricList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List what is measured now, and of how many"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		found, err := r.metrics.Query(ctx, `count by (__name__) ({__name__!=""})`, a.now())
		if err != nil {
			return err
		}
		slices.SortFunc(found, func(x, y monitor.Series) int {
			return strings.Compare(x.Labels[monitor.LabelName], y.Labels[monitor.LabelName])
		})
		return a.printSeries(*f, found, false, func() []column[monitor.Series] {
			return []column[monitor.Series]{{head: "SERIES", cell: func(s monitor.Series) string { return figure(s.Points[0].Value) }}}
		})
	})
	return cmd
}

// printSeries of a query: a column for each label that tells them apart, and those of
// values. Machines get what Prometheus's API writes.
func (a *app) printSeries(f format, found []monitor.Series, matrix bool, values func() []column[monitor.Series]) error {
	if f == "json" || f == "yaml" {
		return writeObject(a.out, f, promapi.Results(found, matrix))
	}
	return listing[monitor.Series]{
		columns: append(labelColumns(found), values()...),
		name:    seriesName,
		none:    "nothing was measured that matches; see what there is: reservoir metric list",
	}.print(a, f, found)
}

// labelColumns: the name first, then the labels from wide to narrow. Those that are the same
// for all, and what identifies no more than the others do, are wide.
func labelColumns(found []monitor.Series) (columns []column[monitor.Series]) {
	order := []string{monitor.LabelName, monitor.LabelSite, monitor.LabelHost, monitor.LabelCustomer, monitor.LabelService, monitor.LabelComponent, monitor.LabelReplica, monitor.LabelVEE}
	values := map[string]map[string]bool{}
	for _, s := range found {
		for k := range s.Labels {
			values[k] = map[string]bool{}
		}
	}
	for _, s := range found {
		for k := range values {
			values[k][s.Labels[k]] = true
		}
	}
	for _, k := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(order, k) {
			order = append(order, k)
		}
	}
	for _, k := range order {
		if values[k] == nil {
			continue
		}
		head := strings.ToUpper(k)
		if k == monitor.LabelName {
			head = "NAME"
		}
		same := len(values[k]) == 1 && len(found) > 1
		columns = append(columns, column[monitor.Series]{head: head, cell: func(s monitor.Series) string { return s.Labels[k] },
			wide: same && k != monitor.LabelName || k == monitor.LabelSite || k == monitor.LabelVEE})
	}
	return columns
}

func valueColumns() []column[monitor.Series] {
	return []column[monitor.Series]{{head: "VALUE", cell: func(s monitor.Series) string { return figure(s.Points[0].Value) }}}
}

// seriesName as PromQL writes it.
func seriesName(s monitor.Series) string {
	var labels []string
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		if k != monitor.LabelName {
			labels = append(labels, k+"="+strconv.Quote(s.Labels[k]))
		}
	}
	return s.Labels[monitor.LabelName] + "{" + strings.Join(labels, ",") + "}"
}

func figure(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

// rangeColumns: the least, the greatest and the last value of a series, and its chart. All
// charts have the same scale.
func rangeColumns(found []monitor.Series, from, to time.Time, width int) func() []column[monitor.Series] {
	low, high := math.Inf(1), math.Inf(-1)
	for _, s := range found {
		l, h := bounds(s.Points)
		low, high = min(low, l), max(high, h)
	}
	return func() []column[monitor.Series] {
		return []column[monitor.Series]{
			{head: "MIN", cell: func(s monitor.Series) string { l, _ := bounds(s.Points); return figure(l) }},
			{head: "MAX", cell: func(s monitor.Series) string { _, h := bounds(s.Points); return figure(h) }},
			{head: "LAST", cell: func(s monitor.Series) string { return figure(s.Points[len(s.Points)-1].Value) }},
			{head: fmt.Sprintf("%s TO %s", figure(low), figure(high)), cell: func(s monitor.Series) string { return chart(s.Points, from, to, low, high, width) }},
		}
	}
}

// bounds of what is finite.
func bounds(points []monitor.Point) (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, p := range points {
		if !math.IsNaN(p.Value) && !math.IsInf(p.Value, 0) {
			low, high = min(low, p.Value), max(high, p.Value)
		}
	}
	return low, high
}

// chart of points in one line: each character the mean of its part of the time, a dot where
// nothing was measured.
func chart(points []monitor.Point, from, to time.Time, low, high float64, width int) string {
	const bars = "▁▂▃▄▅▆▇█"
	sum, n := make([]float64, width), make([]float64, width)
	for _, p := range points {
		if math.IsNaN(p.Value) || math.IsInf(p.Value, 0) {
			continue
		}
		i := int(math.Round(float64(width-1) * float64(p.At.Sub(from)) / float64(max(to.Sub(from), 1))))
		i = min(max(i, 0), width-1)
		sum[i] += p.Value
		n[i]++
	}
	var b strings.Builder
	for i := range n {
		if n[i] == 0 {
			b.WriteRune('·')
			continue
		}
		level := 0.0
		if high > low {
			level = (sum[i]/n[i] - low) / (high - low) * 7
		}
		b.WriteRune([]rune(bars)[int(math.Round(min(max(level, 0), 7)))])
	}
	return b.String()
}
