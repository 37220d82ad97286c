package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/site"
)

func (a *app) siteBackup() *cobra.Command {
	cmd := &cobra.Command{Use: "backup", Short: "Copy a site that is stopped: record, authority, images",
		Long: `Copy the directory of a site's control plane, which must not run meanwhile, on its machine.
Guests go on; of several members stop one, and the others go on. The authority's key is sealed
in the copy: keep the file unseal.key elsewhere, since nothing can be restored without it.`,
		Example: `  reservoir site backup --dir /var/lib/reservoir --to /backup/alpha-monday`, Args: cobra.NoArgs}
	dir := cmd.Flags().String("dir", "", "`DIRECTORY` of the site")
	to := cmd.Flags().String("to", "", "`DIRECTORY` that is made, with the copy")
	cmd.RunE = func(*cobra.Command, []string) error {
		if *dir == "" || *to == "" {
			return fault.New(fault.Malformed, "a backup goes from --dir to --to").Try("reservoir site backup --help")
		}
		if err := site.Backup(*dir, *to); err != nil {
			return err
		}
		fmt.Fprintln(a.out, *to)
		return nil
	}
	return cmd
}

func (a *app) siteRestore() *cobra.Command {
	cmd := &cobra.Command{Use: "restore", Short: "Put a backup in the place of a site that is lost, as a new generation",
		Long: `Make a site's directory anew from a backup, on the machine that will run it. The record begins
a new generation: hosts that hear of it obey the site that was lost no more. Start the site as
before then; it gives nothing away until every host has reported, or is said to be off
(reservoir vee claim). What was begun after the backup it does not know: guests of such VEEs
are left alone, and shown as events.`,
		Example: `  reservoir site restore --name alpha --from /backup/alpha-monday --unseal-file unseal.key --dir /var/lib/reservoir`, Args: cobra.NoArgs}
	name := cmd.Flags().String("name", "", "of the site")
	from := cmd.Flags().String("from", "", "`DIRECTORY` with the backup")
	dir := cmd.Flags().String("dir", "", "`DIRECTORY` of the site, which is made")
	unseal := cmd.Flags().String("unseal-file", "", "`FILE` that opens the seal of the authority's key: unseal.key of the site that was lost")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *dir == "" || *from == "" {
			return fault.New(fault.Malformed, "a restore goes from --from to --dir").Try("reservoir site restore --help")
		}
		generation, err := site.Restore(cmd.Context(), *name, *from, *dir, *unseal, a.log())
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "generation %d\n", generation)
		return nil
	}
	return cmd
}
