package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// drainPoll is how often a plan that is waited for is asked how far it is.
const drainPoll = 500 * time.Millisecond

func (a *app) hostDrain() *cobra.Command {
	cmd := &cobra.Command{Use: "drain NAME", Short: "Have a host's VEEs leave it, live where possible", ValidArgsFunction: a.names(hostNames),
		Long: `Let a host take no new VEEs and have those there leave it by live migration. VEEs that can
go nowhere are waited for, or suspended with --suspend. Back: reservoir host on NAME`}
	var in vmi.Drain
	cmd.Flags().BoolVar(&in.Suspend, "suspend", false, "suspend what can go nowhere")
	a.drainWith(cmd, &in, func(h vmi.Host) bool { return h.Drained })
	return cmd
}

func (a *app) hostOff() *cobra.Command {
	cmd := &cobra.Command{Use: "off NAME", Short: "Drain a host, then end its agent and switch it off", ValidArgsFunction: a.names(hostNames),
		Long: `Have a host's VEEs leave it; suspend those that can go nowhere; then end its agent, which
switches the machine off where it was started with --power-off COMMAND.`}
	in := vmi.Drain{Suspend: true, Off: true}
	a.drainWith(cmd, &in, func(h vmi.Host) bool { return h.State == vmi.HostOff })
	return cmd
}

func (a *app) drainWith(cmd *cobra.Command, in *vmi.Drain, done func(vmi.Host) bool) {
	f, w := outputFlag(cmd), waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		h, err := r.vmi.DrainHost(ctx, args[0], *in)
		if err != nil {
			return err
		}
		if w.wait {
			err = w.until(ctx, "host "+args[0], func(ctx context.Context) error {
				h, err = a.awaitHost(ctx, r, args[0], done)
				return err
			})
			if err != nil {
				return err
			}
		}
		return a.hostListing().printOne(a, *f, h)
	})
}

// awaitHost until it is as wanted, showing what still has to happen.
func (a *app) awaitHost(ctx context.Context, r *remote, name string, done func(vmi.Host) bool) (vmi.Host, error) {
	screen := newScreen(a.err)
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for {
		h, err := r.vmi.GetHost(ctx, name)
		if err != nil {
			return h, err
		}
		lines := []line{{key: "host", text: fmt.Sprintf("%s  %s  %d VEEs there", name, h.State, h.VEEs)}}
		p, err := r.vmi.GetReconfiguration(ctx)
		if err != nil && !fault.Has(err, fault.NotFound) {
			return h, err
		}
		screen.show(append(lines, planLines(p)...))
		if done(h) {
			return h, nil
		}
		select {
		case <-ctx.Done():
			return h, ctx.Err()
		case <-tick.C:
		}
	}
}

// planLines are the moves under way and who waits.
func planLines(p vmi.Reconfiguration) (lines []line) {
	for _, s := range p.Steps {
		if s.State == "running" && p.State == vmi.ReconfigurationRunning {
			lines = append(lines, line{key: string(s.VEE), text: fmt.Sprintf("%s  %s → %s", s.Name, s.From, s.To)})
		}
	}
	for _, s := range p.Stays {
		lines = append(lines, line{key: string(s.VEE), text: s.Name + "  waits on " + s.Host, detail: s.Why})
	}
	return lines
}

func (a *app) siteRebalance() *cobra.Command {
	cmd := &cobra.Command{Use: "rebalance", Short: "Move VEEs that run by a policy: plan, apply, status, stop",
		Long: `Plan how VEEs would be moved so that hosts are equally full (balance), as few as possible
are in use (consolidate), or cheap ones (cost); apply such a plan; see how far the one is that
is being applied; stop it.`,
		Example: `  reservoir site rebalance --plan --policy consolidate
  reservoir site rebalance --apply --policy balance --wait
  reservoir site rebalance --status`}
	var in vmi.Rebalance
	var plan, apply, status, stop bool
	fl := cmd.Flags()
	fl.BoolVar(&plan, "plan", false, "show what would be done")
	fl.BoolVar(&apply, "apply", false, "do it")
	fl.BoolVar(&status, "status", false, "show the plan that is being applied, or the last one")
	fl.BoolVar(&stop, "stop", false, "begin no more moves of the plan that is being applied")
	fl.StringVar(&in.Policy, "policy", "", "balance, consolidate or cost (the site's)")
	_ = cmd.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions([]string{"balance", "consolidate", "cost"}, cobra.ShellCompDirectiveNoFileComp))
	f, w := outputFlag(cmd), waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		chosen := 0
		for _, b := range []bool{plan, apply, status, stop} {
			if b {
				chosen++
			}
		}
		if chosen != 1 {
			return fault.New(fault.Malformed, "reservoir site rebalance: want one of --plan, --apply, --status and --stop").Try("reservoir site rebalance --help")
		}
		var p vmi.Reconfiguration
		var err error
		switch {
		case plan:
			p, err = r.vmi.PlanRebalance(ctx, in)
		case apply:
			p, err = r.vmi.Rebalance(ctx, in)
		case stop:
			p, err = r.vmi.StopReconfiguration(ctx)
		default:
			p, err = r.vmi.GetReconfiguration(ctx)
		}
		if err == nil && apply && w.wait {
			err = w.until(ctx, "plan "+p.ID, func(ctx context.Context) error {
				p, err = a.awaitPlan(ctx, r)
				return err
			})
		}
		if err != nil {
			return err
		}
		return a.printPlan(*f, p)
	})
	return cmd
}

// awaitPlan until it has ended; one that was stopped and goes on with another is the same
// to whoever waits.
func (a *app) awaitPlan(ctx context.Context, r *remote) (vmi.Reconfiguration, error) {
	screen := newScreen(a.err)
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for {
		p, err := r.vmi.GetReconfiguration(ctx)
		if err != nil {
			return p, err
		}
		screen.show(planLines(p))
		switch p.State {
		case vmi.ReconfigurationDone:
			return p, nil
		case vmi.ReconfigurationStopped:
			f := fault.New(fault.Conflict, "plan %s was stopped: %s", p.ID, p.Note)
			if p.Evacuation != nil {
				return p, f.Try("see who has gone: reservoir site rebalance --status")
			}
			return p, f.Try("reservoir site rebalance --apply --policy %s", p.Policy)
		}
		select {
		case <-ctx.Done():
			return p, ctx.Err()
		case <-tick.C:
		}
	}
}

func (a *app) printPlan(f format, p vmi.Reconfiguration) error {
	if f == "json" || f == "yaml" {
		return writeObject(a.out, f, p)
	}
	if err := moveListing().print(a, f, number(p.Steps)); err != nil || f == "name" {
		return err
	}
	for _, s := range p.Stays {
		a.printf("%s stays on %s: %s\n", s.Name, s.Host, s.Why)
	}
	text := fmt.Sprintf("%s: %s", p.Cause, p.State)
	if p.Policy != "" {
		text = fmt.Sprintf("%s by %s: %s, score %.3g → %.3g", p.Cause, p.Policy, p.State, p.Before, p.After)
	}
	if p.ID != "" {
		text = "plan " + p.ID + ", " + text
	}
	if p.Note != "" {
		text += " (" + p.Note + ")"
	}
	a.printf("%s\n", text)
	return nil
}

// numbered step of a plan, from 1.
type numbered struct {
	vmi.ReconfigureStep
	n int
}

func number(steps []vmi.ReconfigureStep) (list []numbered) {
	for i, s := range steps {
		list = append(list, numbered{s, i + 1})
	}
	return list
}

func moveListing() listing[numbered] {
	seconds := func(ms int64) string { return fmt.Sprintf("%.1fs", float64(ms)/1000) }
	return listing[numbered]{
		columns: []column[numbered]{
			{head: "STEP", cell: func(s numbered) string { return fmt.Sprint(s.n) }},
			{head: "VEE", cell: func(s numbered) string { return s.Name }},
			{head: "FROM", cell: func(s numbered) string { return s.From }},
			{head: "TO", cell: func(s numbered) string { return s.To }},
			{head: "HOW", cell: func(s numbered) string {
				if s.Cold {
					return "cold"
				}
				return "live"
			}},
			{head: "BEGIN", cell: func(s numbered) string { return seconds(s.StartMS) }},
			{head: "END", cell: func(s numbered) string { return seconds(s.EndMS) }},
			{head: "AFTER", cell: func(s numbered) string {
				var after []string
				for _, i := range s.After {
					after = append(after, fmt.Sprint(i+1))
				}
				return strings.Join(after, ",")
			}},
			{head: "STATE", cell: func(s numbered) string { return s.State }},
			{head: "PER-SECOND", cell: func(s numbered) string {
				if s.Bandwidth == 0 {
					return ""
				}
				return s.Bandwidth.String()
			}, wide: true},
			{head: "VEE-ID", cell: func(s numbered) string { return string(s.VEE) }, wide: true},
		},
		name: func(s numbered) string { return string(s.VEE) },
		none: "nothing to move",
	}
}
