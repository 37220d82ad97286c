package cli

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/veem/federation/agreement"
	"github.com/reservoir-cloud/reservoir/veem/federation/partners"
)

func (a *app) agreementCmd() *cobra.Command {
	return noun("agreement", "Framework agreements with partners: what each may have of the other",
		a.agreementPropose(), a.agreementSign(), a.agreementList(), a.agreementShow(), a.agreementEnd())
}

func (a *app) agreementListing() listing[partners.Agreed] {
	return listing[partners.Agreed]{
		columns: []column[partners.Agreed]{
			{head: "ID", cell: func(g partners.Agreed) string { return g.ID }},
			{head: "STATE", cell: func(g partners.Agreed) string {
				if g.State == partners.Ending && g.Leave != nil {
					return "ending, until " + g.Leave.UTC().Format(time.RFC3339)
				}
				return string(g.State)
			}},
			{head: "LENDER", cell: func(g partners.Agreed) string { return g.Lender }},
			{head: "BORROWER", cell: func(g partners.Agreed) string { return g.Borrower }},
			{head: "CEILING", cell: func(g partners.Agreed) string {
				return fmt.Sprintf("%d VEEs, %d vCPUs, %v", g.Ceiling.VEEs, g.Ceiling.VCPUs, g.Ceiling.Memory)
			}},
			{head: "UNTIL", cell: func(g partners.Agreed) string { return g.Until.UTC().Format(time.DateOnly) }},
			{head: "TOLD", cell: func(g partners.Agreed) string { return yes(g.Told) }, wide: true},
		},
		name: func(g partners.Agreed) string { return g.ID },
		none: "no agreements; propose one: reservoir agreement propose PARTNER FILE",
	}
}

func (a *app) agreementPropose() *cobra.Command {
	cmd := &cobra.Command{Use: "propose PARTNER FILE", Short: "Propose an agreement to a partner, with this site's signature",
		Long: `Propose an agreement to a partner, with this site's signature. It is in force when the
partner has signed it too.`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, text string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault // a file
			}
			return a.names(partnerNames)(cmd, args, text)
		}}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		text, err := os.ReadFile(args[1])
		if err != nil {
			return fileFault(err)
		}
		us, err := r.site.Site(ctx)
		if err != nil {
			return err
		}
		terms, err := agreement.Parse(text, us.Name, args[0], a.now())
		if err != nil {
			return err
		}
		g, err := r.federation.ProposeAgreement(ctx, admin.Proposal{Partner: args[0], Terms: terms})
		if err != nil {
			return err
		}
		fmt.Fprintf(a.err, "at site %s: reservoir agreement sign %s\n", args[0], g.ID)
		return a.agreementListing().printOne(a, *f, g)
	})
	return cmd
}

func (a *app) agreementSign() *cobra.Command {
	cmd := &cobra.Command{Use: "sign ID", Short: "Sign an agreement that a partner has proposed", ValidArgsFunction: a.names(agreementNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		g, err := r.federation.SignAgreement(ctx, args[0])
		if err != nil {
			return err
		}
		return a.agreementListing().printOne(a, *f, g)
	})
	return cmd
}

func (a *app) agreementList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List agreements"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		list, err := r.federation.ListAgreements(ctx)
		if err != nil {
			return err
		}
		return a.agreementListing().print(a, *f, list)
	})
	return cmd
}

func (a *app) agreementEnd() *cobra.Command {
	cmd := &cobra.Command{Use: "end ID", Short: "End an agreement: no new VEEs, and those there have the notice to leave", ValidArgsFunction: a.names(agreementNames)}
	reason := cmd.Flags().String("reason", "", "for people")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		g, err := r.federation.EndAgreement(ctx, args[0], admin.Reason{Reason: *reason})
		if err != nil {
			return err
		}
		return a.agreementListing().printOne(a, *f, g)
	})
	return cmd
}

func (a *app) agreementShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show ID", Short: "Show the terms of an agreement, and who has signed", ValidArgsFunction: a.names(agreementNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		g, err := r.federation.GetAgreement(ctx, args[0])
		if err != nil {
			return err
		}
		if *f != "table" && *f != "wide" {
			return a.agreementListing().printOne(a, *f, g)
		}
		a.showAgreement(g)
		return nil
	})
	return cmd
}

func (a *app) showAgreement(g partners.Agreed) {
	say := func(what, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			fmt.Fprintf(a.out, "%-11s %s\n", what, text)
		}
	}
	when := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	say("agreement", "%s", g.ID)
	say("state", "%s", g.State)
	say("lender", "%s", g.Lender)
	say("borrower", "%s", g.Borrower)
	say("in force", "%s to %s", when(g.From), when(g.Until))
	say("notice", "%s", time.Duration(g.NoticeMS)*time.Millisecond)
	say("signed by", "%s", strings.Join(slices.Sorted(maps.Keys(g.Signatures)), ", "))
	if g.End != nil {
		say("ended", "%s by %s: %s", when(g.End.At), g.End.By, g.End.Reason)
	}
	if g.Leave != nil {
		say("leave by", "%s", when(*g.Leave))
	}
	disk := "any disk"
	if g.Ceiling.Disk > 0 {
		disk = g.Ceiling.Disk.String() + " of disk"
	}
	say("ceiling", "%d VEEs, %d vCPUs, %v of memory, %s", g.Ceiling.VEEs, g.Ceiling.VCPUs, g.Ceiling.Memory, disk)
	for _, t := range g.Types {
		size := fmt.Sprintf("%d vCPUs, %v", t.VCPUs, t.Memory)
		if t.Disk > 0 {
			size += ", " + t.Disk.String() + " of disk"
		}
		say("type", "%s: %s", t.Name, size)
	}
	for _, m := range billing.Meters {
		if p, ok := g.Prices[m]; ok {
			say("price", "%s %s per %s", p, g.Currency, m.Unit())
		}
	}
	for _, l := range g.Locations {
		say("location", "%s", strings.TrimSpace(strings.Join([]string{l.Country, l.Region, l.Jurisdiction}, " ")))
	}
	if g.SLA.Availability > 0 {
		say("sla", "available %.6g%% of the time, else %.4g%% credit", 100*g.SLA.Availability, g.SLA.CreditPercent)
	}
	var ways []string
	for how, may := range map[string]bool{"live": g.Movable.Live, "cold": g.Movable.Cold} {
		if may {
			ways = append(ways, how)
		}
	}
	slices.Sort(ways)
	if ways == nil {
		ways = []string{"no"}
	}
	say("migration", "%s", strings.Join(ways, ", "))
	if g.PromoteMS > 0 {
		say("promotion", "after %s of silence %s goes on with services of %s", time.Duration(g.PromoteMS)*time.Millisecond, g.Lender, g.Borrower)
	}
	if g.Access {
		say("access", "public addresses of %s may lead to VEEs of %s there", g.Lender, g.Borrower)
	}
}

func agreementNames(ctx context.Context, r *remote, _ []string) ([]string, error) {
	list, err := r.federation.ListAgreements(ctx)
	names := make([]string, len(list))
	for i, g := range list {
		names[i] = g.ID + "\t" + string(g.State)
	}
	return names, err
}
