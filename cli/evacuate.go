package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (a *app) hostEvacuate() *cobra.Command {
	cmd := &cobra.Command{Use: "evacuate NAME", Short: "Have a host's VEEs go to partner sites", ValidArgsFunction: a.names(hostNames),
		Long: `Move what is on a host to partner sites, the most urgent first: what clients reach by an
access point, then the small before the large, live; then what is suspended or stopped, as it
is. With --cold one that runs and cannot cross so is shut down for it, and boots there. What
cannot go, or does not fit into the deadline, is told. The host takes no VEE any more; back: reservoir host on NAME`,
		Example: `  reservoir host evacuate h1 --to beta --deadline 10m --wait`}
	a.evacuateWith(cmd, func(args []string) string { return args[0] })
	return cmd
}

func (a *app) siteEvacuate() *cobra.Command {
	cmd := &cobra.Command{Use: "evacuate", Short: "Have the site's VEEs go to partner sites",
		Long: `Move what is at the site to partner sites, the most urgent first: what clients reach by an
access point, then the small before the large, live; then what is suspended or stopped, as it
is. With --cold one that runs and cannot cross so is shut down for it, and boots there. What
cannot go, or does not fit into the deadline, is told. The hosts take no VEE any more; back: reservoir host on NAME`,
		Example: `  reservoir site evacuate --to beta --deadline 10m --plan
  reservoir site evacuate --to beta --deadline 10m --wait`}
	a.evacuateWith(cmd, func([]string) string { return "" })
	return cmd
}

func (a *app) evacuateWith(cmd *cobra.Command, host func(args []string) string) {
	var in vmi.Evacuate
	var deadline time.Duration
	var plan bool
	fl := cmd.Flags()
	fl.StringVar(&in.To, "to", "", "partner site (whichever takes them)")
	fl.DurationVar(&deadline, "deadline", 0, "by when all is to be done, such as 10m (there is time)")
	fl.BoolVar(&in.Cold, "cold", false, "shut down what runs and cannot cross so, and boot it there")
	fl.BoolVar(&plan, "plan", false, "only show what would be done")
	f, w := outputFlag(cmd), waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		in.Host, in.DeadlineMS = host(args), deadline.Milliseconds()
		if deadline < 0 {
			return fault.New(fault.Malformed, "--deadline %s: want a time from now, such as 10m", deadline)
		}
		if plan {
			p, err := r.vmi.PlanEvacuation(ctx, in)
			if err != nil {
				return err
			}
			return a.printPlan(*f, p)
		}
		p, err := r.vmi.Evacuate(ctx, in)
		if err != nil {
			return err
		}
		if w.wait && p.State == vmi.ReconfigurationRunning {
			err = w.until(ctx, "plan "+p.ID, func(ctx context.Context) error {
				p, err = a.awaitPlan(ctx, r)
				return err
			})
			if err != nil {
				return err
			}
		}
		return a.printPlan(*f, p)
	})
}
