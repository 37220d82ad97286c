package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/sim/scenario"
	"github.com/reservoir-cloud/reservoir/sim/site"
)

func (a *app) simCmd() *cobra.Command {
	return noun("sim", "Simulate sites, their faults and their schedulers in virtual time", a.simRun(), a.simCheck(), a.simCommands())
}

func (a *app) simRun() *cobra.Command {
	cmd := &cobra.Command{Use: "run FILE", Short: "Run a scenario: a script of what befalls a site, or an experiment",
		Long: `Run a scenario from a YAML file (test/scenarios; docs/simulation.md says what is in one). The
product's own state machines run in virtual time: five minutes take a fraction of a second,
and the same file gives the same run. What happens is told line by line, and after each event
it is checked that nothing is wrong: no VEE runs twice, none forgets what it acknowledged.`,
		Example: `  reservoir sim run test/scenarios/host-cut-off.yaml
  reservoir sim run test/scenarios/experiment-small.yaml --html report.html
  reservoir sim run story.yaml --seed 7`}
	var html string
	var seed uint64
	fl := cmd.Flags()
	fl.StringVar(&html, "html", "", "draw the run into this `FILE`")
	fl.Uint64Var(&seed, "seed", 0, "instead of the file's")
	f := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		text, err := a.readFile(args[0])
		if err != nil {
			return err
		}
		s, err := scenario.Parse(text)
		if err != nil {
			return fault.New(fault.Malformed, "%s: %w", args[0], err).Try("reservoir sim commands")
		}
		if cmd.Flags().Changed("seed") {
			s.Seed(seed)
		}
		log := a.out
		if *f == "json" || *f == "yaml" {
			log = io.Discard
		}
		r, err := s.Run(log)
		if err != nil {
			return fault.New(fault.Malformed, "%s: %w", args[0], err)
		}
		if html != "" {
			var page bytes.Buffer
			if err := r.HTML(&page, "Simulation of "+args[0]); err != nil {
				return err
			}
			if err := os.WriteFile(html, page.Bytes(), 0o644); err != nil {
				return fileFault(err)
			}
			fmt.Fprintf(a.err, "drawn: %s\n", html)
		}
		return a.printReport(*f, args[0], r)
	}
	return cmd
}

func (a *app) printReport(f format, name string, r scenario.Report) error {
	switch {
	case f == "json" || f == "yaml":
		if err := writeObject(a.out, f, r); err != nil {
			return err
		}
	case len(r.Rows) > 0:
		if err := rowListing().print(a, f, r.Rows); err != nil {
			return err
		}
	}
	if len(r.Wrong) > 0 {
		return fault.New(fault.WrongState, "%s: %s", name, strings.Join(r.Wrong, "\n")).Try("see it as a chart: reservoir sim run %s --html report.html", name)
	}
	if len(r.Rows) == 0 {
		fmt.Fprintln(a.err, "nothing was wrong at any moment")
	}
	return nil
}

func rowListing() listing[scenario.Row] {
	return listing[scenario.Row]{
		columns: []column[scenario.Row]{
			{head: "ALGORITHM", cell: func(r scenario.Row) string { return string(r.Algorithm) }},
			{head: "HOSTS", cell: func(r scenario.Row) string { return fmt.Sprint(r.Hosts) }},
			{head: "VEES", cell: func(r scenario.Row) string { return fmt.Sprint(r.VEEs) }},
			{head: "VIOLATIONS", cell: func(r scenario.Row) string { return fmt.Sprint(r.Violations) }},
			{head: "MEAN", cell: func(r scenario.Row) string { return fmt.Sprintf("%.2fs", r.MeanS) }},
			{head: "LONGEST", cell: func(r scenario.Row) string { return fmt.Sprintf("%.0fs", r.MaxS) }, wide: true},
			{head: "OF-ALL-TIME", cell: func(r scenario.Row) string { return fmt.Sprintf("%.4f%%", 100*r.Share) }},
			{head: "PARTITION", cell: func(r scenario.Row) string { return fmt.Sprintf("%.2f", r.Partition) }},
			{head: "MIGRATIONS", cell: func(r scenario.Row) string { return fmt.Sprint(r.Migrations) }},
			{head: "INTER-SITE", cell: func(r scenario.Row) string { return fmt.Sprintf("%.0f%%", 100*r.InterSite) }},
			{head: "MESSAGES", cell: func(r scenario.Row) string { return fmt.Sprint(r.Messages) }},
		},
		name: func(r scenario.Row) string { return string(r.Algorithm) },
	}
}

func (a *app) simCheck() *cobra.Command {
	cmd := &cobra.Command{Use: "check", Short: "Random faults, seed by seed: nothing may be wrong, and all must be well after",
		Long: `Let random faults befall random sites: hosts that die, freeze, hang or are cut off, agents
that stop and go on, leaders that do not know that they are none, disks that are slow, lost
and late messages, a restored log, overloads. After each event nothing may be wrong, and when
the faults stop all must be well again. With --seed one story is told, line by line.`,
		Example: `  reservoir sim check --seeds 1000
  reservoir sim check --seed 145`}
	var seeds, first, seed uint64
	fl := cmd.Flags()
	fl.Uint64Var(&seeds, "seeds", 100, "how many")
	fl.Uint64Var(&first, "from", 0, "the first")
	fl.Uint64Var(&seed, "seed", 0, "only this one, told")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("seed") {
			return a.tellStory(seed)
		}
		return a.checkSeeds(cmd.Context(), first, seeds)
	}
	return cmd
}

func (a *app) tellStory(seed uint64) error {
	wrong, err := site.Random(seed).Play(a.out)
	if err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fault.New(fault.WrongState, "seed %d: %s", seed, strings.Join(wrong, "\n"))
	}
	fmt.Fprintln(a.err, "nothing was wrong at any moment, and all is well")
	return nil
}

func (a *app) checkSeeds(ctx context.Context, first, seeds uint64) error {
	var bad []string
	for i := range seeds {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		seed := first + i
		wrong, err := site.Random(seed).Play(nil)
		if err != nil {
			return err
		}
		if len(wrong) > 0 {
			bad = append(bad, fmt.Sprint(seed))
			a.printf("seed %d: %s\n", seed, wrong[0])
		}
		if (i+1)%100 == 0 {
			fmt.Fprintf(a.err, "%d of %d seeds, %d bad\n", i+1, seeds, len(bad))
		}
	}
	if len(bad) > 0 {
		return fault.New(fault.WrongState, "%d of %d seeds went wrong: %s", len(bad), seeds, strings.Join(bad, ", ")).Try("reservoir sim check --seed %s", bad[0])
	}
	a.printf("%s, nothing wrong\n", count(int(seeds), "seed"))
	return nil
}

func (a *app) simCommands() *cobra.Command {
	cmd := &cobra.Command{Use: "commands", Short: "What the scripts of scenarios are made of"}
	cmd.RunE = func(*cobra.Command, []string) error {
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		for _, c := range site.Commands() {
			fmt.Fprintf(w, "%s\t%s\n", c.Use, c.Short)
		}
		return w.Flush()
	}
	return cmd
}
