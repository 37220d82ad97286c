package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/site/admin"
)

func (a *app) sitePublish() *cobra.Command {
	cmd := &cobra.Command{Use: "publish", Short: "Say how the site's power is, and whether its heat is wanted",
		Long: `Say what partners and the site's own placement go by beside what the site has free: how its
power is, how clean, and how much of its waste heat somebody wants. What is not named stays as
it is; without any flag it is shown. It outlives restarts, and partners are told at once.`,
		Example: `  reservoir site publish --power scarce
  reservoir site publish --co2 45 --heat-wanted 0.8`}
	var power string
	var co2, heat float64
	fl := cmd.Flags()
	fl.StringVar(&power, "power", "", "normal, scarce or failing")
	fl.Float64Var(&co2, "co2", 0, "grams for each kWh")
	fl.Float64Var(&heat, "heat-wanted", 0, "part of the waste heat, 0 to 1")
	_ = cmd.RegisterFlagCompletionFunc("power", cobra.FixedCompletions([]string{"normal", "scarce", "failing"}, cobra.ShellCompDirectiveNoFileComp))
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		var p admin.Publish
		if fl.Changed("power") {
			p.Power = &power
		}
		if fl.Changed("co2") {
			p.GramsKWh = &co2
		}
		if fl.Changed("heat-wanted") {
			p.HeatWanted = &heat
		}
		var now admin.Published
		var err error
		if p == (admin.Publish{}) {
			now, err = r.federation.Published(ctx)
		} else {
			now, err = r.federation.Publish(ctx, p)
		}
		if err != nil {
			return err
		}
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, now)
		}
		fmt.Fprintf(a.out, "power   %s\nCO₂     %g g/kWh\nheat    %.0f%% is wanted\n", now.Power, now.GramsKWh, 100*now.HeatWanted)
		return nil
	})
	return cmd
}
