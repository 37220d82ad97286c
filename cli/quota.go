package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (a *app) quotaCmd() *cobra.Command {
	return noun("quota", "What the VEEs of each customer may take together", a.quotaList(), a.quotaShow(), a.quotaSet(), a.quotaRemove())
}

// of says how much of a limit is used.
func of[T any](used T, limit *T) string {
	if limit == nil {
		return fmt.Sprint(used)
	}
	return fmt.Sprintf("%v of %v", used, *limit)
}

func quotaListing() listing[vmi.Quota] {
	return listing[vmi.Quota]{
		columns: []column[vmi.Quota]{
			{head: "CUSTOMER", cell: func(q vmi.Quota) string { return q.Customer }},
			{head: "VEES", cell: func(q vmi.Quota) string { return of(q.Used.VEEs, q.Limits.VEEs) }},
			{head: "VCPUS", cell: func(q vmi.Quota) string { return of(q.Used.VCPUs, q.Limits.VCPUs) }},
			{head: "MEMORY", cell: func(q vmi.Quota) string { return of(q.Used.Memory, q.Limits.Memory) }},
			{head: "DISK", cell: func(q vmi.Quota) string { return of(q.Used.Disk, q.Limits.Disk) }},
			{head: "VERSION", cell: func(q vmi.Quota) string { return strconv.FormatUint(q.Version, 10) }, wide: true},
		},
		name: func(q vmi.Quota) string { return q.Customer },
		none: "no customer has VEEs or a quota; set one: reservoir site quota set CUSTOMER --vees 10",
	}
}

func (a *app) quotaList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List customers, what they have and what they may have"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		list, err := r.vmi.ListQuotas(ctx)
		if err != nil {
			return err
		}
		return quotaListing().print(a, *f, list)
	})
	return cmd
}

func (a *app) quotaShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show CUSTOMER", Short: "Show what a customer has and may have", ValidArgsFunction: a.names(customers)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		q, err := r.vmi.GetQuota(ctx, args[0])
		if err != nil {
			return err
		}
		return quotaListing().printOne(a, *f, q)
	})
	return cmd
}

// customers that the site knows, for completion.
func customers(ctx context.Context, r *remote, _ []string) (names []string, err error) {
	list, err := r.vmi.ListQuotas(ctx)
	for _, q := range list {
		names = append(names, q.Customer)
	}
	return names, err
}

func (a *app) quotaSet() *cobra.Command {
	cmd := &cobra.Command{Use: "set CUSTOMER", Short: "Set limits; those that are not named stay",
		Example:           "  reservoir site quota set acme --vees 10 --memory 16GiB\n  reservoir site quota set acme --disk none",
		ValidArgsFunction: a.names(customers)}
	var vees, vcpus, memory, disk string
	cmd.Flags().StringVar(&vees, "vees", "", "`NUMBER` of VEEs, or none")
	cmd.Flags().StringVar(&vcpus, "vcpus", "", "`NUMBER` of vCPUs, or none")
	cmd.Flags().StringVar(&memory, "memory", "", "`SIZE` of memory such as 16GiB, or none")
	cmd.Flags().StringVar(&disk, "disk", "", "`SIZE` of disks such as 1TiB, or none")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		old, err := r.vmi.GetQuota(ctx, args[0])
		if err != nil {
			return err
		}
		q := vmi.SetQuota{Customer: args[0], Limits: old.Limits, Version: old.Version}
		for _, err := range []error{
			setLimit(&q.Limits.VEEs, "vees", vees, strconv.Atoi), setLimit(&q.Limits.VCPUs, "vcpus", vcpus, strconv.Atoi),
			setLimit(&q.Limits.Memory, "memory", memory, vee.ParseBytes), setLimit(&q.Limits.Disk, "disk", disk, vee.ParseBytes),
		} {
			if err != nil {
				return err
			}
		}
		set, err := r.vmi.SetQuota(ctx, q)
		if err != nil {
			return err
		}
		return quotaListing().printOne(a, *f, set)
	})
	return cmd
}

// setLimit from a flag: a value, "none", or nothing, which leaves it as it is.
func setLimit[T any](limit **T, flag, text string, parse func(string) (T, error)) error {
	switch text {
	case "":
		return nil
	case "none":
		*limit = nil
		return nil
	}
	v, err := parse(text)
	if err != nil {
		return fault.New(fault.Malformed, "--%s %q: %w", flag, text, err).Try("see what it takes: reservoir site quota set --help")
	}
	*limit = &v
	return nil
}

func (a *app) quotaRemove() *cobra.Command {
	return &cobra.Command{Use: "remove CUSTOMER", Aliases: []string{"rm"}, Short: "Take a customer's limits away", ValidArgsFunction: a.names(customers),
		RunE: a.onSite(func(ctx context.Context, r *remote, args []string) error { return r.vmi.DeleteQuota(ctx, args[0]) })}
}
