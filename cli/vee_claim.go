package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/vmi"
)

func (a *app) veeClaim() *cobra.Command {
	cmd := &cobra.Command{Use: "claim VEE", Short: "Settle who runs a VEE whose host does not answer", ValidArgsFunction: a.names(veeNames),
		Long: `Say that nothing runs any more on the host of a VEE that does not answer: that you have
switched it off, or cut it from its disks and networks for good. What it had is started
elsewhere, from its images. If the host runs on after all, its VEEs run twice.`,
		Example: `  reservoir vee claim web-1 --i-fenced-it`}
	var in vmi.Claim
	cmd.Flags().BoolVar(&in.Fenced, "i-fenced-it", false, "the host is off, and stays so until it has been started anew")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		ids, err := r.findVEEs(ctx, args)
		if err != nil {
			return err
		}
		v, err := r.vmi.ClaimVEE(ctx, ids[0], in)
		if err != nil {
			return err
		}
		return a.veeListing().printOne(a, *f, v)
	})
	return cmd
}
