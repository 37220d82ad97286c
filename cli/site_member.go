package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/site/admin"
)

// memberCmd is about the machines of a site's control plane.
func (a *app) memberCmd() *cobra.Command {
	return noun("member", "The machines that the control plane runs on", a.memberList(), a.memberAdd(), a.memberRemove())
}

func (a *app) memberListing() listing[admin.Member] {
	return listing[admin.Member]{
		columns: []column[admin.Member]{
			{head: "NAME", cell: func(m admin.Member) string { return m.Name }},
			{head: "ADDRESS", cell: func(m admin.Member) string { return m.Address }},
			{head: "STATE", cell: func(m admin.Member) string {
				switch {
				case m.Leads:
					return "leads"
				case m.Healthy:
					return "follows"
				}
				return "not well"
			}},
			{head: "STORE", cell: func(m admin.Member) string { return m.Size.String() }},
			{head: "IMAGES", cell: func(m admin.Member) string {
				if m.Missing > 0 {
					return strconv.Itoa(m.Missing) + " missing"
				}
				return "all"
			}},
			{head: "UP", cell: func(m admin.Member) string {
				if m.Started.IsZero() {
					return ""
				}
				return a.since(m.Started)
			}},
			{head: "VERSION", cell: func(m admin.Member) string { return m.Version }},
			{head: "PROBLEM", cell: func(m admin.Member) string { return m.Problem }, wide: true},
			{head: "MEMBERS", cell: func(m admin.Member) string { return m.Own }, wide: true},
			{head: "STORES", cell: func(m admin.Member) string { return m.Store }, wide: true},
		},
		name: func(m admin.Member) string { return m.Name },
		none: "the control plane is one process that has no name",
	}
}

func (a *app) memberList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the members: who leads, who is well"}
	f, watch := outputFlag(cmd), watchFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		if *watch {
			return showWatch(ctx, a, a.memberListing(), *f, poll(r.site.Members))
		}
		list, err := r.site.Members(ctx)
		if err != nil {
			return err
		}
		return a.memberListing().print(a, *f, list)
	})
	return cmd
}

func (a *app) memberAdd() *cobra.Command {
	cmd := &cobra.Command{Use: "add NAME", Short: "Make a one-time token with which a machine becomes a member",
		Long: `Make a one-time token with which a machine becomes a member of the control plane. Three
members go on when one is lost, two do not. Bring the file unseal.key of a member to the new
machine, then start "reservoir site" there as on the others, with the token.`,
		Example: `  reservoir site member add m2 > token
  reservoir site --dir /var/lib/reservoir --name alpha --member m2 --unseal-file unseal.key \
      --advertise 10.0.0.6:8440 --join-site https://10.0.0.5:8440 --join-file token …`}
	var q admin.NewMember
	ttl := cmd.Flags().Duration("ttl", 0, "the token is good for this long (1h)")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		q.Name, q.TTLMS = args[0], ttl.Milliseconds()
		i, err := r.site.InviteMember(ctx, q)
		if err != nil {
			return err
		}
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, i)
		}
		fmt.Fprintln(a.out, i.Token)
		return nil
	})
	return cmd
}

func (a *app) memberRemove() *cobra.Command {
	return &cobra.Command{Use: "remove NAME", Aliases: []string{"rm"}, Short: "Remove a member for good: one that is lost, or not wanted any more",
		Long: `Remove a member for good. Its directory is of no use after that: a machine that is to be a
member again begins with an empty one. It had the authority's key, so let nobody have its disk.`,
		ValidArgsFunction: a.names(func(ctx context.Context, r *remote, _ []string) ([]string, error) {
			list, err := r.site.Members(ctx)
			names := make([]string, len(list))
			for i, m := range list {
				names[i] = m.Name + "\t" + m.Address
			}
			return names, err
		}),
		RunE: a.onSite(func(ctx context.Context, r *remote, args []string) error { return r.site.RemoveMember(ctx, args[0]) })}
}
