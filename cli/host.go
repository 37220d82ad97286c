package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// hostCmd is the agent itself when it is called without a verb (process.go).
func (a *app) hostCmd() *cobra.Command {
	cmd := noun("host", "The machines of a site; be one of them",
		a.hostList(), a.hostShow(), a.hostPartitions(), a.hostInvite(),
		a.hostState("cordon", vmi.HostDraining, "Let a host take no new VEEs; those there stay"),
		a.hostDrain(), a.hostEvacuate(), a.hostOff(),
		a.hostState("on", vmi.HostOn, "Let a host take VEEs again"),
		a.hostArm("disarm", false, "Let the guests of a host live on without a lease, for maintenance"),
		a.hostArm("arm", true, "Have the guests of a host end with its lease again, to be restarted elsewhere"),
		a.hostRemove())
	a.hostProcess(cmd)
	return cmd
}

func (a *app) hostListing() listing[vmi.Host] {
	of := func(used, all string) string { return used + " of " + all }
	cores := func(milli int64) string { return fmt.Sprintf("%.4g", float64(milli)/1000) }
	return listing[vmi.Host]{
		columns: []column[vmi.Host]{
			{head: "NAME", cell: func(h vmi.Host) string { return h.Name }},
			{head: "STATE", cell: func(h vmi.Host) string {
				switch {
				case !h.Alive && h.State != vmi.HostOff:
					return "lost"
				case h.Drained && h.State == vmi.HostDraining:
					return "drained"
				}
				return string(h.State)
			}},
			{head: "SEEN", cell: func(h vmi.Host) string { return a.since(h.LastSeen) }},
			{head: "VEES", cell: func(h vmi.Host) string { return strconv.Itoa(h.VEEs) }},
			{head: "CPU", cell: func(h vmi.Host) string { return of(cores(h.Used.MilliCPU), cores(h.Capacity.MilliCPU)) }},
			{head: "MEMORY", cell: func(h vmi.Host) string { return of(h.Used.Memory.String(), h.Capacity.Memory.String()) }},
			{head: "DISK", cell: func(h vmi.Host) string { return of(h.Used.Disk.String(), h.Capacity.Disk.String()) }},
			{head: "DRIVER", cell: func(h vmi.Host) string {
				text := ""
				for _, d := range h.Drivers {
					if text != "" {
						text += " "
					}
					text += d.Name
					if d.Accelerator != "" {
						text += "/" + d.Accelerator
					}
					if d.Simulated {
						text += " (simulated)"
					}
				}
				return text
			}},
			{head: "HA", cell: ha},
			{head: "ADDRESS", cell: func(h vmi.Host) string { return h.Address }, wide: true},
			{head: "CPUS", cell: func(h vmi.Host) string { return strconv.Itoa(h.CPUs) }, wide: true},
			{head: "DISK-FREE", cell: func(h vmi.Host) string { return h.DiskFree.String() }, wide: true},
			{head: "VERSION", cell: func(h vmi.Host) string { return h.Version }, wide: true},
			{head: "JOINED", cell: func(h vmi.Host) string { return a.since(h.Joined) }, wide: true},
			{head: "LOAD", cell: load, wide: true},
			{head: "PARTITION", cell: together, wide: true},
			{head: "DOUBTS", cell: doubts, wide: true},
			{head: "WITNESS", cell: func(h vmi.Host) string { return yes(h.HA.Witness) }, wide: true},
			{head: "WHY-DEGRADED", cell: func(h vmi.Host) string { return h.HA.Degraded }, wide: true},
			{head: "WHY-THIS-ACCELERATOR", cell: func(h vmi.Host) string {
				for _, d := range h.Drivers {
					if d.Why != "" {
						return d.Why
					}
				}
				return ""
			}, wide: true},
		},
		name: func(h vmi.Host) string { return h.Name },
		none: "no hosts; invite one: reservoir host invite",
	}
}

func (a *app) hostList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List hosts"}
	f, watch := outputFlag(cmd), watchFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		if *watch {
			return showWatch(ctx, a, a.hostListing(), *f, poll(r.vmi.ListHosts))
		}
		list, err := r.vmi.ListHosts(ctx)
		if err != nil {
			return err
		}
		return a.hostListing().print(a, *f, list)
	})
	return cmd
}

func (a *app) hostShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show NAME", Short: "Show one host and its VEEs", ValidArgsFunction: a.names(hostNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		h, err := r.vmi.GetHost(ctx, args[0])
		if err != nil {
			return err
		}
		if *f != "table" && *f != "wide" {
			return a.hostListing().printOne(a, *f, h)
		}
		vees, err := r.vmi.ListVEEs(ctx, vmi.Filter{Host: h.Name})
		if err != nil {
			return err
		}
		if err := a.hostListing().printOne(a, "wide", h); err != nil {
			return err
		}
		fmt.Fprintln(a.out)
		return a.veeListing().print(a, *f, vees)
	})
	return cmd
}

func (a *app) hostState(verb string, to vmi.HostState, shortHelp string) *cobra.Command {
	cmd := &cobra.Command{Use: verb + " NAME", Short: shortHelp, ValidArgsFunction: a.names(hostNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		h, err := r.vmi.SetHostState(ctx, args[0], to)
		if err != nil {
			return err
		}
		return a.hostListing().printOne(a, *f, h)
	})
	return cmd
}

// ha is how far the VEEs of a host can be restarted elsewhere, in one word.
func ha(h vmi.Host) string {
	switch {
	case h.HA.Fenced:
		return "fenced"
	case h.HA.Disarmed:
		return "disarmed"
	case h.HA.Degraded != "":
		return "degraded"
	}
	return "ok"
}

func (a *app) hostArm(verb string, armed bool, shortHelp string) *cobra.Command {
	cmd := &cobra.Command{Use: verb + " NAME", Short: shortHelp, ValidArgsFunction: a.names(hostNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		h, err := r.vmi.ArmHost(ctx, args[0], armed)
		if err != nil {
			return err
		}
		return a.hostListing().printOne(a, *f, h)
	})
	return cmd
}

func (a *app) hostRemove() *cobra.Command {
	return &cobra.Command{Use: "remove NAME", Aliases: []string{"rm"}, Short: "Forget a host that runs no VEE", ValidArgsFunction: a.names(hostNames),
		RunE: a.onSite(func(ctx context.Context, r *remote, args []string) error { return r.vmi.RemoveHost(ctx, args[0]) })}
}

func (a *app) hostInvite() *cobra.Command {
	cmd := &cobra.Command{Use: "invite [NAME]", Short: "Make a one-time token with which a machine may join",
		Long: `Make a one-time token with which a machine may join the site, as the host of that name
where one is given. The token is printed once and holds the fingerprint of the site's
authority: the new host needs nothing else to trust the site.`}
	ttl := cmd.Flags().Duration("ttl", time.Hour, "the token is good for this long")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		q := admin.NewInvite{TTLMS: ttl.Milliseconds()}
		if len(args) > 0 {
			q.Host = args[0]
		}
		i, err := r.site.InviteHost(ctx, q)
		if err != nil {
			return err
		}
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, i)
		}
		fmt.Fprintln(a.out, i.Token)
		fmt.Fprintf(a.err, "on the new host, within %s: reservoir host --dir /var/lib/reservoir --site https://%s --join TOKEN\n", duration(*ttl), i.Address)
		return nil
	})
	return cmd
}

func hostNames(ctx context.Context, r *remote, _ []string) ([]string, error) {
	list, err := r.vmi.ListHosts(ctx)
	names := make([]string, len(list))
	for i, h := range list {
		names[i] = h.Name + "\t" + string(h.State)
	}
	return names, err
}
