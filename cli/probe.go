package cli

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/monitor"
)

func (a *app) probeCmd() *cobra.Command {
	return noun("probe", "What measures, how often, and what of it is sent",
		a.probeList(), a.probeShow(),
		a.probeChange("on PROBE…", "Switch probes on", 0, func([]string) (monitor.ProbeChange, error) { return monitor.ProbeChange{On: new(true)}, nil }),
		a.probeChange("off PROBE…", "Switch probes off", 0, func([]string) (monitor.ProbeChange, error) { return monitor.ProbeChange{On: new(false)}, nil }),
		a.probeChange("rate PROBE… INTERVAL", "Set how often probes measure", 1, probeRate),
		a.probeChange("send PROBE… WHEN", "Set which values probes send: always, changed, above=N, below=N, inside=N..M, outside=N..M", 1, probeSend))
}

func (a *app) probeListing() listing[monitor.SourceProbe] {
	return listing[monitor.SourceProbe]{
		columns: []column[monitor.SourceProbe]{
			{head: "PROBE", cell: monitor.SourceProbe.ID},
			{head: "KIND", cell: func(p monitor.SourceProbe) string { return string(p.Kind) }},
			{head: "EVERY", cell: probeEvery},
			{head: "SENDS", cell: func(p monitor.SourceProbe) string { return sends(p.Now) }},
			{head: "COLLECTED", cell: func(p monitor.SourceProbe) string { return strconv.FormatUint(p.Collected, 10) }, wide: true},
			{head: "SENT", cell: func(p monitor.SourceProbe) string { return strconv.FormatUint(p.Sent, 10) }, wide: true},
			{head: "LAST", cell: func(p monitor.SourceProbe) string { return a.since(milli(p.LastMS)) }},
			{head: "NOTE", cell: probeNote},
		},
		name: monitor.SourceProbe.ID,
		none: "no probes: they come with the hosts; reservoir host list",
	}
}

// milli is a time, zero for 0.
func milli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func probeEvery(p monitor.SourceProbe) string {
	switch {
	case !p.Now.On:
		return "off"
	case p.Now.EveryMS == 0:
		return "on event"
	}
	return p.Now.Every().String()
}

// sends says which values are sent.
func sends(s monitor.Settings) string {
	switch s.Send {
	case "":
		return string(monitor.Always)
	case monitor.Above:
		return fmt.Sprintf("above %v", s.High)
	case monitor.Below:
		return fmt.Sprintf("below %v", s.Low)
	case monitor.Inside, monitor.Outside:
		return fmt.Sprintf("%s %v..%v", s.Send, s.Low, s.High)
	}
	return string(s.Send)
}

// probeNote is what one should know of a probe: what ails it first.
func probeNote(p monitor.SourceProbe) string {
	switch {
	case p.LastError != "":
		return p.LastError
	case p.Slowed != "":
		return "slowed: " + p.Slowed
	case p.Ordered != nil && *p.Ordered != p.Now && !p.Ordered.On:
		return "will be off"
	case p.Ordered != nil && *p.Ordered != p.Now:
		return "will be " + probeEvery(monitor.SourceProbe{Status: monitor.Status{Now: *p.Ordered}}) + ", " + sends(*p.Ordered)
	}
	return ""
}

func (a *app) probeList() *cobra.Command {
	cmd := &cobra.Command{Use: "list [PATTERN]", Aliases: []string{"ls"}, Short: "List probes, what they do and what ails them",
		Example: "  reservoir probe list 'h1/*'"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		all, err := r.probes.Probes(ctx)
		if err != nil {
			return err
		}
		if len(args) > 0 {
			if all, err = matching(all, args[0]); err != nil {
				return err
			}
		}
		return a.probeListing().print(a, *f, all)
	})
	return cmd
}

func (a *app) probeShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show PROBE", Short: "Show a probe and its dictionary: what its values mean", ValidArgsFunction: a.names(probeNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		all, err := r.probes.Probes(ctx)
		if err != nil {
			return err
		}
		found, err := matching(all, args[0])
		if err != nil {
			return err
		}
		p := found[0]
		if *f != "table" && *f != "wide" {
			return a.probeListing().printOne(a, *f, p)
		}
		a.describeProbe(p)
		return nil
	})
	return cmd
}

func (a *app) describeProbe(p monitor.SourceProbe) {
	for _, x := range []struct{ what, is string }{
		{"probe", p.ID()}, {"kind", string(p.Kind)}, {"every", probeEvery(p)}, {"sends", sends(p.Now)},
		{"values", fmt.Sprintf("%d collected, %d sent", p.Collected, p.Sent)}, {"last", a.since(milli(p.LastMS))}, {"note", probeNote(p)},
	} {
		if x.is != "" {
			a.printf("%-8s  %s\n", x.what, oneLine(x.is))
		}
	}
	a.printf("\n")
	fields := listing[monitor.Field]{columns: []column[monitor.Field]{
		{head: "FIELD", cell: func(f monitor.Field) string { return f.Name }},
		{head: "TYPE", cell: func(f monitor.Field) string { return string(f.Type) }},
		{head: "UNIT", cell: func(f monitor.Field) string { return f.Unit }},
		{head: "MEANING", cell: func(f monitor.Field) string { return f.Help }},
	}}
	for _, line := range fields.table("table", p.Fields) {
		a.printf("%s\n", line)
	}
}

// matching probes of a pattern such as "h1/*", or "cpu" for those of that name on all hosts;
// that there is none is an error.
func matching(all []monitor.SourceProbe, pattern string) (found []monitor.SourceProbe, err error) {
	for _, p := range all {
		id := p.ID()
		if !strings.Contains(pattern, "/") {
			id = p.String()
		}
		ok, err := path.Match(pattern, id)
		if err != nil {
			return nil, fault.New(fault.Malformed, "probe %q: %w", pattern, err).Try("reservoir probe list")
		}
		if ok {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return nil, fault.New(fault.NotFound, "no probe %q", pattern).Try("reservoir probe list")
	}
	return found, nil
}

// probeNames that the site knows, for completion.
func probeNames(ctx context.Context, r *remote, _ []string) (names []string, err error) {
	all, err := r.probes.Probes(ctx)
	for _, p := range all {
		names = append(names, p.ID())
	}
	return names, err
}

// probeChange is a command that changes the probes which its arguments name, but for the
// last few of these.
func (a *app) probeChange(use, short string, last int, change func([]string) (monitor.ProbeChange, error)) *cobra.Command {
	verb, _, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{Use: use, Short: short, ValidArgsFunction: a.names(probeNames), Args: cobra.MinimumNArgs(1 + last),
		Example: map[string]string{
			"on": "  reservoir probe on h1/host", "off": "  reservoir probe off 'h1/*'",
			"rate": "  reservoir probe rate 'h*/cpu*' 30s", "send": "  reservoir probe send h1/cpu changed\n  reservoir probe send h1/cpu above=0.8",
		}[verb]}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		probes := args[:len(args)-last]
		c, err := change(args[len(args)-last:])
		if err != nil {
			return err
		}
		all, err := r.probes.Probes(ctx)
		if err != nil {
			return err
		}
		var changed []monitor.SourceProbe
		for _, pattern := range probes {
			found, err := matching(all, pattern)
			if err != nil {
				return err
			}
			for _, p := range found {
				p, err := r.probes.SetProbe(ctx, p.Source, p.Ref, c)
				if err != nil {
					return err
				}
				changed = append(changed, p)
			}
		}
		return a.probeListing().print(a, *f, changed)
	})
	return cmd
}

func probeRate(args []string) (monitor.ProbeChange, error) {
	d, err := time.ParseDuration(args[0])
	if err != nil || d <= 0 {
		return monitor.ProbeChange{}, fault.New(fault.Malformed, "interval %q: want a duration such as 30s", args[0]).Try("reservoir probe rate --help")
	}
	return monitor.ProbeChange{EveryMS: new(d.Milliseconds())}, nil
}

func probeSend(args []string) (c monitor.ProbeChange, err error) {
	word, band, _ := strings.Cut(args[0], "=")
	when := monitor.When(word)
	c.Send = &when
	low, high := band, band
	switch when {
	case monitor.Always, monitor.Changed:
		if band == "" {
			return c, nil
		}
	case monitor.Above, monitor.Below:
	case monitor.Inside, monitor.Outside:
		low, high, _ = strings.Cut(band, "..")
	default:
		low = "?"
	}
	from, err1 := strconv.ParseFloat(low, 64)
	to, err2 := strconv.ParseFloat(high, 64)
	if err1 != nil || err2 != nil || when == monitor.Always || when == monitor.Changed {
		return c, fault.New(fault.Malformed, "%q: want always, changed, above=N, below=N, inside=N..M or outside=N..M", args[0]).Try("reservoir probe send --help")
	}
	c.Low, c.High = &from, &to
	return c, nil
}
