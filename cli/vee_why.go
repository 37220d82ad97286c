package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) veeWhy() *cobra.Command {
	cmd := &cobra.Command{Use: "why VEE", Short: "Why a VEE is where it is, and what each other place had against it", ValidArgsFunction: a.names(veeNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		ids, err := r.findVEEs(ctx, args)
		if err != nil {
			return err
		}
		v, err := r.vmi.GetVEE(ctx, ids[0])
		if err != nil {
			return err
		}
		why := v.Why
		switch {
		case v.Host == "":
			why = v.Error
		case why == "":
			why = "it has been moved since it was placed: reservoir event list"
		}
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, map[string]string{"vee": string(v.ID), "host": v.Host, "why": why})
		}
		where := "on " + v.Host
		if v.Host == "" {
			where = "nowhere"
		}
		fmt.Fprintf(a.out, "%s is %s: %s\n", v.Descriptor.Name, where, why)
		return nil
	})
	return cmd
}
