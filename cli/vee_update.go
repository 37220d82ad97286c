package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (a *app) veeUpdate() *cobra.Command {
	cmd := &cobra.Command{Use: "update VEE…", Short: "Change memory, vCPUs, CPU share, tags or disks; live where it can be",
		Long: `Change what VEEs are made of. Memory within its declared range, more vCPUs up to the
declared number, the CPU share and larger disks come into effect while the VEE runs; what
cannot is applied at its next boot, and the answer says so.`,
		Example: `  reservoir vee update web-1 --memory 256MiB --cpus 2
  reservoir vee update db-1 --disk data=2GiB`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.names(veeNames)}
	var memory string
	var cpus int
	var share vee.CPUShare
	var tags, disks []string
	var version uint64
	f := cmd.Flags()
	f.StringVar(&memory, "memory", "", "memory: 256MiB")
	f.IntVar(&cpus, "cpus", 0, "number of vCPUs")
	f.IntVar(&share.Weight, "cpu-weight", 0, "share of the host's CPUs, relative; 100 is usual")
	f.IntVar(&share.LimitMHz, "cpu-limit", 0, "most of the host's CPUs that it gets, MHz")
	f.StringSliceVar(&tags, "tag", nil, "tags that it has from now on, in place of those before")
	f.StringSliceVar(&disks, "disk", nil, "NAME=SIZE: grow this disk")
	f.Uint64Var(&version, "version", 0, "change only this version of the VEE")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		u := vmi.VEEUpdate{Version: version, Disks: map[string]vee.Bytes{}}
		if f.Changed("memory") {
			size, err := vee.ParseBytes(memory)
			if err != nil {
				return fault.New(fault.Malformed, "--memory: %w", err)
			}
			u.Memory = &size
		}
		if f.Changed("cpus") {
			u.VCPUs = &cpus
		}
		if f.Changed("cpu-weight") || f.Changed("cpu-limit") {
			u.CPU = &share
		}
		if f.Changed("tag") {
			u.Tags = &tags
		}
		for _, d := range disks {
			name, text, err := splitPair(d)
			if err != nil {
				return fault.New(fault.Malformed, "--disk: %w", err)
			}
			if u.Disks[name], err = vee.ParseBytes(text); err != nil {
				return fault.New(fault.Malformed, "--disk %s: %w", name, err)
			}
		}
		ids, err := r.findVEEs(ctx, args)
		if err != nil {
			return err
		}
		var us []vmi.VEEUpdate
		for _, id := range ids {
			u.ID = id
			us = append(us, u)
		}
		out, err := r.vmi.UpdateVEEs(ctx, us)
		if err != nil {
			return err
		}
		var failed *fault.Error
		var refused []string
		for _, o := range out {
			if o.OK {
				fmt.Fprintf(a.out, "%s  %s\n", o.ID, oneLine(o.Detail))
				continue
			}
			refused = append(refused, fmt.Sprintf("update VEE %s: %s", o.ID, o.Detail))
			failed = cmp.Or(failed, &fault.Error{Code: fault.Code(o.Code), Next: "reservoir vee show " + string(o.ID)})
		}
		if failed != nil {
			failed.Message = strings.Join(refused, "\n")
			return failed
		}
		return nil
	})
	return cmd
}
