package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
)

func (a *app) serviceRules(customer *string) *cobra.Command {
	return noun("rules", "The rules by which services change their size",
		a.rulesList(customer), a.rulesExplain(customer), a.rulesReplay(customer), a.rulesSet(customer, false), a.rulesSet(customer, true))
}

// ruleRow is a rule of a component.
type ruleRow struct {
	component string
	paused    bool
	smi.ElasticRule
}

var ruleListing = listing[ruleRow]{
	columns: []column[ruleRow]{
		{head: "COMPONENT", cell: func(r ruleRow) string { return r.component }},
		{head: "RULE", cell: func(r ruleRow) string { return r.Name }},
		{head: "EVERY", cell: func(r ruleRow) string {
			if r.EveryMS == 0 {
				return ""
			}
			return span(time.Duration(r.EveryMS) * time.Millisecond)
		}},
		{head: "STATE", cell: func(r ruleRow) string {
			if r.paused {
				return "paused"
			}
			return "on"
		}},
		{head: "WHAT", cell: func(r ruleRow) string { return oneLine(r.Text) }},
	},
	name: func(r ruleRow) string { return r.component + "/" + r.Name },
	none: "no rules: the service's size is changed by hand alone (reservoir service scale)",
}

var kpiListing = listing[smi.KPI]{
	columns: []column[smi.KPI]{
		{head: "KPI", cell: func(k smi.KPI) string { return k.Name }},
		{head: "VALUE", cell: func(k smi.KPI) string {
			switch {
			case k.Problem != "":
				return "unknown"
			case k.Value == nil:
				return "not measured"
			}
			return strconv.FormatFloat(*k.Value, 'g', 6, 64)
		}},
		{head: "QUERY", cell: func(k smi.KPI) string { return oneLine(k.Query) }},
		{head: "PROBLEM", cell: func(k smi.KPI) string { return oneLine(k.Problem) }},
	},
	name: func(k smi.KPI) string { return k.Name },
	none: "the rules read no KPI",
}

func (a *app) rulesList(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "list NAME", Aliases: []string{"ls"}, Short: "List a service's rules, and the KPIs that they read", ValidArgsFunction: a.names(serviceNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		rules, err := r.elastic.Rules(ctx, *customer, args[0])
		if err != nil {
			return err
		}
		return a.showRules(*f, rules)
	})
	return cmd
}

func (a *app) showRules(f format, rules smi.Rules) error {
	if f == "json" || f == "yaml" {
		return writeObject(a.out, f, rules)
	}
	var rows []ruleRow
	for _, c := range rules.Components {
		for _, r := range c.Rules {
			rows = append(rows, ruleRow{c.Name, c.Paused, r})
		}
	}
	if err := ruleListing.print(a, f, rows); err != nil || f == "name" || len(rows) == 0 {
		return err
	}
	a.printf("\n")
	return kpiListing.print(a, f, rules.KPIs)
}

func (a *app) rulesExplain(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "explain NAME", Short: "Say why a service has the size that it has",
		Long: `Say why the components of a service have the size that they have: what the rules saw when
they looked last, what they made of it, and which change was the last. All changes there
were: reservoir event list --service NAME`, ValidArgsFunction: a.names(serviceNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		rules, err := r.elastic.Rules(ctx, *customer, args[0])
		if err != nil {
			return err
		}
		if *f != "table" && *f != "wide" {
			return a.showRules(*f, rules)
		}
		if len(rules.Components) == 0 {
			a.printf("%s\n", ruleListing.none)
		}
		for _, c := range rules.Components {
			a.explain(c)
		}
		return nil
	})
	return cmd
}

func (a *app) explain(c smi.ElasticComponent) {
	a.printf("%s: %d of %d ready; %s: %d to %d\n", c.Name, c.Ready, c.Desired, c.By, c.Min, c.Max)
	if c.Looked.IsZero() {
		a.printf("  now   the rules have not looked yet\n")
	} else {
		a.printf("  now   %s (%s ago)\n", oneLine(c.Now), a.since(c.Looked))
	}
	if l := c.Last; l != nil {
		a.printf("  last  %s (%s ago)\n", oneLine(l.Why), a.since(l.At))
	}
}

func (a *app) rulesSet(customer *string, on bool) *cobra.Command {
	cmd := &cobra.Command{Use: "pause NAME COMPONENT", Short: "Let a component keep its size, whatever its rules say", Example: `  reservoir service rules pause web web`,
		ValidArgsFunction: a.names(serviceNames, componentNames)}
	if on {
		cmd.Use, cmd.Short, cmd.Example = "resume NAME COMPONENT", "Let a component's rules decide again", `  reservoir service rules resume web web`
	}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		rules, err := r.elastic.SetRules(ctx, *customer, args[0], args[1], on)
		if err != nil {
			return err
		}
		return a.showRules(*f, rules)
	})
	return cmd
}

var decisionListing = listing[smi.ElasticDecision]{
	columns: []column[smi.ElasticDecision]{
		{head: "TIME", cell: func(d smi.ElasticDecision) string { return d.At.Local().Format("01-02 15:04:05") }},
		{head: "COMPONENT", cell: func(d smi.ElasticDecision) string { return d.Component }},
		{head: "DECISION", cell: func(d smi.ElasticDecision) string { return d.Kind }},
		{head: "READY", cell: func(d smi.ElasticDecision) string { return fmt.Sprintf("%d/%d", d.Ready, d.Replicas) }},
		{head: "WHY", cell: func(d smi.ElasticDecision) string { return oneLine(d.Why) }},
	},
	name: func(d smi.ElasticDecision) string { return d.At.UTC().Format(time.RFC3339) + "/" + d.Component },
	none: "nothing would have been decided",
}

func (a *app) rulesReplay(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "replay NAME [FILE]", Short: "Show what rules would have decided on recorded measurements, and do nothing",
		Long: `Show what rules would have decided on recorded measurements, when and why, and do nothing.
The measurements are those of a FILE with lines "TIME,KPI,VALUE" ("-" is stdin; a time is
2026-01-31T10:00:00Z or seconds since 1970), or those that the site has of the time that is
named. The rules are the service's, or those of another manifest. Replicas are assumed to
come and go in the given times, and measurements to be the same whatever is decided.`,
		Example: `  reservoir service rules replay web --from 6h
  reservoir service rules replay web --from 6h --manifest new.yaml
  reservoir service rules replay web load.csv --boot 40s -o json`, ValidArgsFunction: a.names(serviceNames)}
	from := cmd.Flags().String("from", "", "begin at this `TIME`, or so long ago: 6h")
	to := cmd.Flags().String("to", "", "end at this `TIME`, or so long ago (now; of a file, its end)")
	boot := cmd.Flags().Duration("boot", 30*time.Second, "until a new replica serves")
	leave := cmd.Flags().Duration("leave", 10*time.Second, "until a replica that has to go is gone")
	other := cmd.Flags().String("manifest", "", "try the rules of this `FILE`")
	changes := cmd.Flags().Bool("changes", false, "only what changes a size")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) (err error) {
		q := smi.Replay{BootMS: boot.Milliseconds(), LeaveMS: leave.Milliseconds()}
		if q.From, err = a.moment("from", *from); err != nil {
			return err
		}
		if q.To, err = a.moment("to", *to); err != nil {
			return err
		}
		if len(args) == 2 {
			if q.Samples, err = a.readSamples(args[1]); err != nil {
				return err
			}
		} else if q.To.IsZero() {
			q.To = a.now()
		}
		if *other != "" {
			text, err := a.readFile(*other)
			if err != nil {
				return err
			}
			q.Manifest, q.File = string(text), filepath.Base(*other)
		}
		out, err := r.elastic.Replay(ctx, *customer, args[0], q)
		if err != nil {
			return err
		}
		return a.showReplayed(*f, out, *changes)
	})
	return cmd
}

func (a *app) showReplayed(f format, out smi.Replayed, changes bool) error {
	list := []smi.ElasticDecision{}
	n := 0
	for _, d := range out.Decisions {
		if d.Kind != "hold" {
			n++
		} else if changes {
			continue
		}
		list = append(list, d)
	}
	out.Decisions = list
	if f == "json" || f == "yaml" {
		return writeObject(a.out, f, out)
	}
	if err := decisionListing.print(a, f, list); err != nil || f == "name" {
		return err
	}
	a.printf("%s to %s, %s: %s\n", out.From.Local().Format(time.DateTime), out.To.Local().Format(time.DateTime), count(out.Samples, "measurement"), count(n, "change"))
	if out.More {
		a.printf("there were more decisions than are shown: replay a shorter time\n")
	}
	return nil
}

// moment that a flag names: a time, or how long ago; empty: none.
func (a *app) moment(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return a.now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fault.New(fault.Malformed, "--%s %q: want a time such as 2026-01-31T10:00:00Z, or how long ago such as 6h", flag, text)
	}
	return t, nil
}

// readSamples of a file, and tell on stderr how many lines have no number.
func (a *app) readSamples(file string) ([]smi.Sample, error) {
	text, err := a.readFile(file)
	if err != nil {
		return nil, err
	}
	samples, ignored, err := parseSamples(text)
	if err != nil {
		return nil, fault.New(fault.Malformed, "%s: %w", file, err).Try("write lines such as 2026-01-31T10:00:00Z,load,12.5")
	}
	if ignored > 0 {
		fmt.Fprintf(a.err, "%s: %s without a finite number ignored\n", file, count(ignored, "measurement"))
	}
	return samples, nil
}

// parseSamples reads lines TIME,KPI,VALUE; lines that are empty or begin with # are passed
// over, and so is a first line that is a heading.
func parseSamples(text []byte) (samples []smi.Sample, ignored int, err error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || n == 1 && strings.EqualFold(strings.ReplaceAll(line, " ", ""), "time,kpi,value") {
			continue
		}
		f := strings.Split(line, ",")
		if len(f) != 3 {
			return nil, 0, fmt.Errorf("line %d: %q: want TIME,KPI,VALUE", n, line)
		}
		at, err := sampleTime(strings.TrimSpace(f[0]))
		if err != nil {
			return nil, 0, fmt.Errorf("line %d: %w", n, err)
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(f[2]), 64)
		if err != nil {
			return nil, 0, fmt.Errorf("line %d: value %q: want a number", n, f[2])
		}
		kpi := strings.TrimSpace(f[1])
		if kpi == "" {
			return nil, 0, fmt.Errorf("line %d: want the name of a KPI", n)
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			ignored++
			continue
		}
		samples = append(samples, smi.Sample{KPI: kpi, AtMS: at, Value: v})
	}
	if err := lines.Err(); err != nil {
		return nil, 0, err
	}
	if len(samples) == 0 {
		return nil, 0, fmt.Errorf("there is no measurement in it")
	}
	return samples, ignored, nil
}

// sampleTime is ms since 1970.
func sampleTime(text string) (int64, error) {
	if s, err := strconv.ParseFloat(text, 64); err == nil && s > 0 && s < 1e11 {
		return int64(s * 1000), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return 0, fmt.Errorf("time %q: want 2026-01-31T10:00:00Z or seconds since 1970", text)
	}
	return t.UnixMilli(), nil
}

// rulesGoOn says after a scaling by hand that rules will change the size again.
func (a *app) rulesGoOn(ctx context.Context, r *remote, customer, name, component string) {
	rules, err := r.elastic.Rules(ctx, customer, name)
	if err != nil {
		return // the scaling was done; this is a courtesy
	}
	for _, c := range rules.Components {
		if c.Name == component && !c.Paused {
			fmt.Fprintf(a.err, "%s has rules: they go on from this size after their cool-down; to keep it: reservoir service rules pause %s %s\n", component, name, component)
		}
	}
}
