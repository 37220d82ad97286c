package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/site/admin"
)

// siteCmd is the site's control plane itself when it is called without a verb
// (process.go).
func (a *app) siteCmd() *cobra.Command {
	cmd := noun("site", "A site: its tokens and its store; be its control plane",
		a.siteShow(), noun("token", "API tokens of people and programs", a.tokenCreate(), a.tokenList(), a.tokenRevoke()), a.memberCmd(), a.siteProxy(), a.sitePublish(), a.quotaCmd(), a.siteRebalance(), a.siteEvacuate(), a.siteAudit(), a.siteCompact(), a.siteBackup(), a.siteRestore())
	a.siteProcess(cmd)
	return cmd
}

func (a *app) siteShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show", Short: "Show what the site is and how it is"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		s, err := r.site.Site(ctx)
		if err != nil {
			return err
		}
		return a.showOne(*f, s, s.Name, func() error { a.describeSite(s); return nil })
	})
	return cmd
}

func (a *app) describeSite(s admin.Site) {
	store := fmt.Sprintf("%s, %s of %s", s.Store.Kind, s.Store.Size, s.Store.Quota)
	if s.Store.Alarm != "" {
		store += "; ALARM: " + s.Store.Alarm + " (make room: reservoir site compact)"
	}
	timings := ""
	if s.HAScale != 0 && s.HAScale != 1 {
		timings = strconv.FormatFloat(s.HAScale, 'g', -1, 64) + " × real"
	}
	a.facts([]fact{
		{"site", s.Name}, {"version", s.Version}, {"address", s.Address}, {"up", a.since(s.Started)},
		{"has", fmt.Sprintf("%s, %s, %s, %s", count(s.Hosts, "host"), count(s.Services, "service"), count(s.VEEs, "VEE"), count(s.Images, "image"))},
		{"members", members(s)}, {"placement", s.Placement}, {"rebalance", s.Rebalance}, {"VEE network", s.VEENetwork}, {"store", store},
		{"generation", strconv.FormatUint(s.Generation, 10)}, {"timings", timings},
	})
}

func members(s admin.Site) string {
	if s.Members == 0 {
		return ""
	}
	return fmt.Sprintf("%d, of which %s leads", s.Members, s.Leader)
}

func (a *app) tokenListing() listing[identity.Token] {
	return listing[identity.Token]{
		columns: []column[identity.Token]{
			{head: "NAME", cell: func(t identity.Token) string { return t.Name }},
			{head: "ROLE", cell: func(t identity.Token) string { return string(t.Role) }},
			{head: "CUSTOMER", cell: func(t identity.Token) string { return t.Customer }},
			{head: "AGE", cell: func(t identity.Token) string { return a.since(t.Created) }},
			{head: "EXPIRES", cell: func(t identity.Token) string {
				left := t.Expires.Sub(a.now())
				if left <= 0 {
					return "expired"
				}
				return "in " + duration(left)
			}},
		},
		name: func(t identity.Token) string { return t.Name },
		none: "no tokens",
	}
}

func (a *app) tokenList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List tokens, without their secrets"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		list, err := r.site.ListTokens(ctx)
		if err != nil {
			return err
		}
		return a.tokenListing().print(a, *f, list)
	})
	return cmd
}

func (a *app) tokenCreate() *cobra.Command {
	cmd := &cobra.Command{Use: "create NAME", Short: "Create a token; it is printed once",
		Example: `  reservoir site token create ci --role provider --customer acme --ttl 720h > token`}
	var q admin.NewToken
	var role string
	cmd.Flags().StringVar(&role, "role", "", "operator, provider, partner or auditor")
	cmd.Flags().StringVar(&q.Customer, "customer", "", "of a provider: whose objects it sees")
	ttl := cmd.Flags().Duration("ttl", 0, "it is good for this long (the site's default)")
	_ = cmd.MarkFlagRequired("role")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"operator", "provider", "partner", "auditor"}, cobra.ShellCompDirectiveNoFileComp))
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		q.Name, q.Role, q.TTLMS = args[0], identity.Role(role), ttl.Milliseconds()
		t, err := r.site.CreateToken(ctx, q)
		if err != nil {
			return err
		}
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, t)
		}
		fmt.Fprintln(a.out, t.Secret)
		fmt.Fprintf(a.err, "token %s, role %s, expires %s; it is not shown again\n", t.Name, t.Role, t.Expires.Local().Format(time.DateTime))
		return nil
	})
	return cmd
}

func (a *app) tokenRevoke() *cobra.Command {
	return &cobra.Command{Use: "revoke NAME", Short: "End a token at once",
		ValidArgsFunction: a.names(func(ctx context.Context, r *remote, _ []string) ([]string, error) {
			list, err := r.site.ListTokens(ctx)
			names := make([]string, len(list))
			for i, t := range list {
				names[i] = t.Name + "\t" + string(t.Role)
			}
			return names, err
		}),
		RunE: a.onSite(func(ctx context.Context, r *remote, args []string) error { return r.site.RevokeToken(ctx, args[0]) })}
}

func (a *app) siteCompact() *cobra.Command {
	cmd := &cobra.Command{Use: "compact", Short: "Make room in the store and clear its alarm"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		c, err := r.site.Compact(ctx)
		if err != nil {
			return err
		}
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, c)
		}
		a.printf("store: %s before, %s now\n", c.Before, c.After)
		if c.Alarm != "" {
			a.printf("the alarm %q stands: delete what is not needed, or raise the store's quota\n", c.Alarm)
		}
		return nil
	})
	return cmd
}
