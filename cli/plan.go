package cli

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/placement/file"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

func (a *app) planCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "plan FILE", Short: "Solve a placement problem in a file: hosts, VEEs, rules",
		Long: `Read hosts, VEEs and rules from a JSON file (examples/plan; its schema: --schema), find a
placement in which every rule holds, and print the plan of actions that leads there. Nothing
of a site is asked or changed. Where there is no placement: the smallest conflict.`,
		Example: `  reservoir plan examples/plan/drain.json
  reservoir plan model.json --deadline 60s --html plan.html
  reservoir plan model.json --why web-1
  reservoir plan model.json --why web-1@host-7`}
	var deadline time.Duration
	var iterations int
	var seed uint64
	var html, why string
	var schema bool
	fl := cmd.Flags()
	fl.DurationVar(&deadline, "deadline", 10*time.Second, "search at most so long")
	fl.IntVar(&iterations, "iterations", 0, "search for so many steps instead: the same file gives the same plan")
	fl.Uint64Var(&seed, "seed", 1, "of the search")
	fl.StringVar(&html, "html", "", "draw before, the steps on a time line, and after, into this `FILE`")
	fl.StringVar(&why, "why", "", "`VEE`[@HOST]: which hosts would take it, and what speaks against the others")
	fl.BoolVar(&schema, "schema", false, "print the schema of such files")
	f := outputFlag(cmd)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if schema {
			return nil
		}
		return wantArgs(cmd, args)
	}
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if schema {
			_, err := a.out.Write(file.Schema)
			return err
		}
		text, err := a.readFile(args[0])
		if err != nil {
			return err
		}
		p, err := file.Parse(text)
		if err != nil {
			return fault.New(fault.Malformed, "%s: %w", args[0], err).Try("reservoir plan --schema")
		}
		if why != "" {
			return a.planWhy(*f, p, args[0], why)
		}
		o := solve.Options{Seed: seed, Iterations: iterations}
		if iterations == 0 {
			end := a.now().Add(deadline)
			o.Stop = func() bool { return !a.now().Before(end) }
		}
		return a.planFile(*f, p, args[0], html, o)
	}
	return cmd
}

func (a *app) planFile(f format, p *file.Problem, name, html string, o solve.Options) error {
	s := p.Solve(o)
	if html != "" {
		var page bytes.Buffer
		if err := p.HTML(&page, "Plan for "+name, s); err != nil {
			return err
		}
		if err := os.WriteFile(html, page.Bytes(), 0o644); err != nil {
			return fileFault(err)
		}
		fmt.Fprintf(a.err, "drawn: %s\n", html)
	}
	if f == "json" || f == "yaml" {
		if err := writeObject(a.out, f, s); err != nil {
			return err
		}
	} else if s.Feasible {
		if err := a.printSolution(f, s); err != nil {
			return err
		}
	}
	if !s.Feasible {
		e := fault.New(fault.NoResources, "%s: %s", name, s.Why)
		if s.Conflict != nil {
			return e.Try("drop one of these reasons, or see every host: reservoir plan %s --why %s", name, s.Conflict.VEE)
		}
		if len(s.Contradiction) > 0 {
			return e.Try("drop one of these rules, or give it a weight, so that it is only wished for")
		}
		return e.Try("loosen a rule, or search longer: --deadline 60s")
	}
	return nil
}

func (a *app) printSolution(f format, s *file.Solution) error {
	if err := solutionListing().print(a, f, steps(s.Actions)); err != nil || f == "name" {
		return err
	}
	for _, r := range s.NotKept {
		a.printf("not kept: %s\n", r)
	}
	a.printf("%s, of them %s; done in %.3gs; score %.4g before, %.4g after\n", count(len(s.Actions), "action"), count(s.Migrations, "migration"), s.SecondsInAll, s.Before, s.After)
	return nil
}

// step of a solution, from 1.
type solutionStep struct {
	file.Action
	n int
}

func steps(actions []file.Action) (list []solutionStep) {
	for i, x := range actions {
		list = append(list, solutionStep{x, i + 1})
	}
	return list
}

func solutionListing() listing[solutionStep] {
	return listing[solutionStep]{
		columns: []column[solutionStep]{
			{head: "STEP", cell: func(s solutionStep) string { return fmt.Sprint(s.n) }},
			{head: "ACTION", cell: func(s solutionStep) string { return s.Action.Action }},
			{head: "VEE", cell: func(s solutionStep) string { return s.VEE }},
			{head: "FROM", cell: func(s solutionStep) string { return s.From }},
			{head: "TO", cell: func(s solutionStep) string { return s.To }},
			{head: "BEGIN", cell: func(s solutionStep) string { return fmt.Sprintf("%.3gs", s.Begin) }},
			{head: "END", cell: func(s solutionStep) string { return fmt.Sprintf("%.3gs", s.End) }},
			{head: "MIB/S", wide: true, cell: func(s solutionStep) string {
				if s.MiBPerSecond == 0 {
					return "-"
				}
				return fmt.Sprintf("%.3g", s.MiBPerSecond)
			}},
			{head: "AFTER", cell: func(s solutionStep) string {
				var after []string
				for _, i := range s.After {
					after = append(after, fmt.Sprint(i+1))
				}
				return strings.Join(after, ",")
			}},
		},
		name: func(s solutionStep) string { return s.VEE },
		none: "nothing has to be done",
	}
}

func (a *app) planWhy(f format, p *file.Problem, name, who string) error {
	vee, host, _ := strings.Cut(who, "@")
	all, err := p.WhyHosts(vee, host)
	if err != nil {
		return fault.New(fault.NotFound, "%s: %w", name, err).Try("reservoir plan %s -o json", name)
	}
	l := listing[file.Verdict]{
		columns: []column[file.Verdict]{
			{head: "HOST", cell: func(v file.Verdict) string { return v.Host }},
			{head: "TAKES-IT", cell: func(v file.Verdict) string {
				switch {
				case v.Here && v.OK:
					return "it is there"
				case v.Here:
					return "it is there, and should not be"
				case v.OK:
					return "yes"
				}
				return "no"
			}},
			{head: "FULL", cell: func(v file.Verdict) string { return fmt.Sprintf("%.0f%%", 100*v.Full) }},
			{head: "AGAINST", cell: func(v file.Verdict) string { return strings.Join(v.Against, "; ") }},
		},
		name: func(v file.Verdict) string { return v.Host },
		none: "the model has no host",
	}
	return l.print(a, f, all)
}
