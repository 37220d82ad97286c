package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

func (a *app) serviceUsage(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "usage NAME", Short: "Show what a service has used",
		Long: `Show what the VEEs of a service have used: the time in each state and what was allocated
meanwhile, as the site's accounting told it last. VEEs and services that are gone stay in it.
The single intervals are in -o json.`,
		ValidArgsFunction: a.names(serviceNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		u, err := r.smi.Usage(ctx, *customer, args[0])
		if err != nil {
			return err
		}
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, u)
		}
		rows := u.VEEs
		if *f != "name" {
			rows = append(rows, smi.VEEUsage{Name: "total", Total: u.Total})
		}
		return a.usageListing().print(a, *f, rows)
	})
	return cmd
}

func (a *app) usageListing() listing[smi.VEEUsage] {
	spent := func(ms func(account.Usage) int64) func(smi.VEEUsage) string {
		return func(v smi.VEEUsage) string {
			return (time.Duration(ms(v.Total)) * time.Millisecond).Round(time.Second).String()
		}
	}
	// hours of something that is counted in ms.
	hours := func(unit string, ms func(account.Usage) int64) func(smi.VEEUsage) string {
		return func(v smi.VEEUsage) string { return fmt.Sprintf("%.2f%s", float64(ms(v.Total))/3_600_000, unit) }
	}
	gib := func(mib int64) int64 { return mib / int64(vee.GiB/vee.MiB) }
	return listing[smi.VEEUsage]{
		columns: []column[smi.VEEUsage]{
			{head: "NAME", cell: func(v smi.VEEUsage) string {
				if v.Site != "" {
					return v.Name + " (at " + v.Site + ")"
				}
				return v.Name
			}},
			{head: "VEE", cell: func(v smi.VEEUsage) string { return string(v.VEE) }, wide: true},
			{head: "ACTIVE", cell: spent(func(u account.Usage) int64 { return u.ActiveMS })},
			{head: "PAUSED", cell: spent(func(u account.Usage) int64 { return u.PausedMS })},
			{head: "SUSPENDED", cell: spent(func(u account.Usage) int64 { return u.SuspendedMS })},
			{head: "DEFINED", cell: spent(func(u account.Usage) int64 { return u.DefinedMS })},
			{head: "VCPU", cell: hours(" h", func(u account.Usage) int64 { return u.VCPUMS })},
			{head: "MEMORY", cell: hours(" GiB·h", func(u account.Usage) int64 { return gib(u.MemoryMiBMS) })},
			{head: "DISK", cell: hours(" GiB·h", func(u account.Usage) int64 { return gib(u.DiskMiBMS) })},
			{head: "THROUGH", cell: func(v smi.VEEUsage) string {
				switch {
				case v.Through.IsZero():
					return ""
				case v.Ended:
					return "its end"
				}
				return a.since(v.Through) + " ago"
			}},
		},
		name: func(v smi.VEEUsage) string { return string(v.VEE) },
		none: "nothing",
	}
}
