package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
	"github.com/reservoir-cloud/reservoir/veem/federation/partners"
)

func (a *app) federationCmd() *cobra.Command {
	return noun("federation", "Sites that lend and borrow: partners, the way to them, what they have to offer",
		a.federationInvite(), a.federationAccept(), a.federationList(), a.federationShow(), a.federationFind(), a.federationPreflight(), a.federationStandby(), a.federationPromote(),
		a.federationRotate(), a.federationRevoke(), a.federationLeave())
}

func (a *app) partnerListing() listing[partners.Shown] {
	return listing[partners.Shown]{
		columns: []column[partners.Shown]{
			{head: "NAME", cell: func(p partners.Shown) string { return p.Name }},
			{head: "STATE", cell: func(p partners.Shown) string { return p.State }},
			{head: "SEEN", cell: func(p partners.Shown) string { return a.since(p.Seen) }},
			{head: "CLOCK", cell: clockOffset},
			{head: "AGREEMENTS", cell: func(p partners.Shown) string { return strconv.Itoa(len(p.Agreements)) }},
			{head: "RELAY", cell: func(p partners.Shown) string { return p.Border.Relay }},
			{head: "VERSION", cell: func(p partners.Shown) string { return p.Version }},
			{head: "FINGERPRINT", cell: func(p partners.Shown) string { return p.Fingerprint }, wide: true},
			{head: "BUNDLE", cell: func(p partners.Shown) string { return strconv.FormatUint(p.Bundle, 10) }, wide: true},
			{head: "SINCE", cell: func(p partners.Shown) string { return a.since(p.Since) }, wide: true},
			{head: "WHY", cell: func(p partners.Shown) string { return p.Why }, wide: true},
		},
		name: func(p partners.Shown) string { return p.Name },
		none: "no partners; invite one: reservoir federation invite",
	}
}

// clockOffset is how far a partner's clock is ahead of this site's.
func clockOffset(p partners.Shown) string {
	if p.Seen.IsZero() {
		return "-"
	}
	return fmt.Sprintf("%+.0fms ±%.0f", p.OffsetMS, p.OffsetErrorMS)
}

func (a *app) federationInvite() *cobra.Command {
	cmd := &cobra.Command{Use: "invite [SITE]", Short: "Make a one-time token with which another site may become a partner",
		Long: `Make a one-time token with which another site, the one of that name where one is given,
may become a partner. Send its operator the token, and tell the fingerprint by another way,
such as a telephone: accepting prints the one that the token holds.`}
	ttl := cmd.Flags().Duration("ttl", time.Hour, "the token is good for this long")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		q := admin.NewPartnerInvite{TTLMS: ttl.Milliseconds()}
		if len(args) > 0 {
			q.Site = args[0]
		}
		i, err := r.federation.InvitePartner(ctx, q)
		if err != nil {
			return err
		}
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, i)
		}
		fmt.Fprintln(a.out, i.Token)
		fmt.Fprintf(a.err, "fingerprint of this site, to be compared: %s\nat the other site, within %s: reservoir federation accept TOKEN\n", i.Fingerprint, duration(*ttl))
		return nil
	})
	return cmd
}

func (a *app) federationAccept() *cobra.Command {
	cmd := &cobra.Command{Use: "accept TOKEN", Short: "Become a partner of the site that has given out a token",
		Long: `Become a partner of the site that has given out a token. Its fingerprint is printed:
compare it with the one that its operator tells. A TOKEN of "-" is read from standard input.`}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		token := args[0]
		if token == "-" {
			text, err := io.ReadAll(io.LimitReader(a.in, 4<<10))
			if err != nil {
				return fmt.Errorf("read the token: %w", err)
			}
			token = strings.TrimSpace(string(text))
		}
		p, err := r.federation.AcceptPartner(ctx, admin.PartnerToken{Token: token})
		if err != nil {
			return err
		}
		fmt.Fprintf(a.err, "fingerprint of site %s, to be compared: %s\nif it differs: reservoir federation revoke %s\n", p.Name, p.Fingerprint, p.Name)
		return a.partnerListing().printOne(a, *f, p)
	})
	return cmd
}

func (a *app) federationList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List partners"}
	f, watch := outputFlag(cmd), watchFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		if *watch {
			return showWatch(ctx, a, a.partnerListing(), *f, poll(r.federation.ListPartners))
		}
		list, err := r.federation.ListPartners(ctx)
		if err != nil {
			return err
		}
		return a.partnerListing().print(a, *f, list)
	})
	return cmd
}

func (a *app) federationShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show NAME", Short: "Show one partner: the way to it, what it can and has to offer", ValidArgsFunction: a.names(partnerNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		p, err := r.federation.GetPartner(ctx, args[0])
		if err != nil {
			return err
		}
		if *f != "table" && *f != "wide" {
			return a.partnerListing().printOne(a, *f, p)
		}
		a.showPartner(p)
		return nil
	})
	return cmd
}

func (a *app) showPartner(p partners.Shown) {
	say := func(what, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			fmt.Fprintf(a.out, "%-13s %s\n", what, text)
		}
	}
	state := p.State
	if p.Why != "" {
		state += ": " + p.Why
	}
	var can []string
	for _, c := range p.Capabilities {
		can = append(can, string(c))
	}
	say("site", "%s", p.Name)
	say("state", "%s", state)
	say("partner", "for %s", a.since(p.Since))
	say("fingerprint", "%s (trust bundle %d)", p.Fingerprint, p.Bundle)
	say("relay", "tcp://%s", p.Border.Relay)
	if p.Border.Tunnel != "" {
		say("tunnel", "udp://%s", p.Border.Tunnel)
	}
	say("clock", "%s", clockOffset(p))
	say("version", "%s", p.Version)
	say("can", "%s", strings.Join(can, ", "))
	say("agreements", "%s", strings.Join(p.Agreements, ", "))
	if p.Offer == nil {
		return
	}
	o := p.Offer.State
	say("free", "%.4g vCPUs, %v of memory, %v of disk on %d hosts", float64(o.Free.MilliCPU)/1000, o.Free.Memory, o.Free.Disk, o.Hosts)
	say("load", "%.0f%%, %d VEEs wait", 100*o.Load, o.Queue)
	if l := p.Offer.Characteristics.Location; l.Country != "" {
		say("location", "%s", strings.TrimSpace(l.Country+" "+l.Region))
	}
	say("told", "%s ago, good for %s", duration(time.Duration(p.OfferAgeMS)*time.Millisecond), duration(time.Duration(p.Offer.GoodMS)*time.Millisecond))
}

func (a *app) federationLeave() *cobra.Command {
	cmd := &cobra.Command{Use: "leave NAME", Short: "End a partnership; agreements have to be over", ValidArgsFunction: a.names(partnerNames)}
	force := cmd.Flags().Bool("force", false, "one-sided: whatever the partner says, and whatever runs there")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		return r.federation.LeavePartner(ctx, args[0], admin.Leaving{Force: *force})
	})
	return cmd
}

func (a *app) federationRevoke() *cobra.Command {
	cmd := &cobra.Command{Use: "revoke NAME", Short: "Trust a partner no longer, at once", ValidArgsFunction: a.names(partnerNames),
		Long: `Trust a partner no longer: nothing is taken from it from now on, on connections that stand
too. Its record stays, so that people see why. It becomes a partner again by a new token.`}
	reason := cmd.Flags().String("reason", "", "for people")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		return r.federation.RevokePartner(ctx, args[0], admin.Reason{Reason: *reason})
	})
	return cmd
}

func (a *app) federationRotate() *cobra.Command {
	cmd := &cobra.Command{Use: "rotate", Short: "Replace the key of this site's authority, step by step",
		Long: `Replace the key of this site's authority. The new one is announced first; it signs when
every partner has it and every host has had the time to; the old one is taken out when the
last certificate that it has signed is over. Repeat the command to see how far it is.`}
	now := cmd.Flags().Bool("now", false, "the key was stolen: wait for nobody. Who does not have the new one yet has to join again")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		t, err := r.federation.RotateAuthority(ctx, admin.Rotate{Now: *now})
		if err != nil {
			return err
		}
		if *f != "table" && *f != "wide" {
			if *f == "name" {
				fmt.Fprintln(a.out, t.Current)
				return nil
			}
			return writeObject(a.out, *f, t)
		}
		fmt.Fprintf(a.out, "signs        %s (trust bundle %d)\n", t.Current, t.Sequence)
		if t.Next != "" {
			fmt.Fprintf(a.out, "announced    %s, %s ago\n", t.Next, a.since(t.Announced))
			fmt.Fprintf(a.out, "waits for    %s\n", strings.Join(append(t.Waiting, "hosts, until "+t.After.UTC().Format(time.RFC3339)), ", "))
		}
		for _, old := range t.Retiring {
			fmt.Fprintf(a.out, "leaves       %s\n", old)
		}
		return nil
	})
	return cmd
}

func (a *app) federationPreflight() *cobra.Command {
	cmd := &cobra.Command{Use: "preflight NAME", Short: "Go the way to a partner step by step, and say where it ends", ValidArgsFunction: a.names(partnerNames),
		Long: `Go the way to a partner step by step, up to the first that fails, and name what is not
reachable. Before accepting, NAME may be the token that the other site has given out.`}
	f := outputFlag(cmd)
	l := listing[partners.Check]{
		columns: []column[partners.Check]{
			{head: "OK", cell: func(c partners.Check) string { return yes(c.OK) }},
			{head: "STEP", cell: func(c partners.Check) string { return c.Step }},
			{head: "TARGET", cell: func(c partners.Check) string { return c.Target }},
			{head: "DETAIL", cell: func(c partners.Check) string { return c.Detail }},
		},
		name: func(c partners.Check) string { return c.Step },
	}
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		way := admin.Way{Partner: args[0]}
		if strings.HasPrefix(args[0], "rsvf_") {
			way = admin.Way{Token: args[0]}
		}
		checks, err := r.federation.Preflight(ctx, way)
		if err != nil {
			return err
		}
		if err := l.print(a, *f, checks); err != nil {
			return err
		}
		for _, c := range checks {
			if !c.OK {
				return fault.New(fault.Unavailable, "%s: %s", strings.TrimSpace(c.Step+" "+c.Target), c.Detail).Try("%s", c.Next)
			}
		}
		return nil
	})
	return cmd
}

func (a *app) federationFind() *cobra.Command {
	var fields strings.Builder
	for _, f := range broker.Fields {
		fmt.Fprintf(&fields, "  %-13s %s\n", f.Name, f.Is)
	}
	cmd := &cobra.Command{Use: "find [REQUIREMENT]", Short: "Ask which sites fit a requirement, in which order, and why the others do not",
		Long: `Ask the broker which sites fit a requirement now, in which order, and why the others do
not. The requirement is an expression in CEL over a site's fields:

` + fields.String(),
		Example: `  reservoir federation find 'country in ["SE", "FI"] && free.vcpus >= 8'
  reservoir federation find --vcpus 2 --memory 4GiB --count 10 'hour < 0.5'
  reservoir federation find --near 59.3,18.1 --order location`}
	var q admin.Find
	var memory, disk, near string
	fl := cmd.Flags()
	fl.StringVar(&q.Order, "order", "", "overflow, cost, location, energy or heat (cost where a VEE is asked for, else overflow)")
	fl.IntVar(&q.VCPUs, "vcpus", 0, "of a VEE that there is to be room for")
	fl.StringVar(&memory, "memory", "", "of that VEE, `SIZE`")
	fl.StringVar(&disk, "disk", "", "of that VEE, `SIZE`")
	fl.IntVar(&q.Count, "count", 0, "so many of it (1)")
	fl.StringVar(&near, "near", "", "where the users are: `LATITUDE,LONGITUDE`")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) (err error) {
		if len(args) > 0 {
			q.Requirement = args[0]
		}
		if q.Memory, err = parse(vee.ParseBytes, "--memory", memory); err != nil {
			return err
		}
		if q.Disk, err = parse(vee.ParseBytes, "--disk", disk); err != nil {
			return err
		}
		if q.Users, err = parse(point, "--near", near); err != nil {
			return err
		}
		answer, err := r.federation.FindSites(ctx, q)
		if err != nil {
			return err
		}
		return a.printAnswer(*f, answer)
	})
	return cmd
}

// point of "59.3,18.1".
func point(s string) (*admin.Users, error) {
	lat, long, ok := strings.Cut(s, ",")
	x, err := strconv.ParseFloat(strings.TrimSpace(lat), 64)
	y, err2 := strconv.ParseFloat(strings.TrimSpace(long), 64)
	if !ok || err != nil || err2 != nil {
		return nil, fmt.Errorf("want LATITUDE,LONGITUDE such as 59.3,18.1")
	}
	return &admin.Users{Latitude: x, Longitude: y}, nil
}

func (a *app) printAnswer(f format, answer broker.Answer) error {
	switch f {
	case "json", "yaml":
		return writeObject(a.out, f, answer)
	case "name":
		for _, m := range answer.Fit {
			fmt.Fprintln(a.out, m.Site)
		}
		return nil
	}
	place := 0
	fit := listing[broker.Match]{
		columns: []column[broker.Match]{
			{head: "PLACE", cell: func(broker.Match) string { place++; return strconv.Itoa(place) }},
			{head: "SITE", cell: func(m broker.Match) string {
				if m.Here {
					return m.Site + " (here)"
				}
				return m.Site
			}},
			{head: "WHY", cell: func(m broker.Match) string { return m.Why }},
			{head: "FREE", cell: func(m broker.Match) string {
				free := m.Offer.State.Free
				return fmt.Sprintf("%.4g vCPUs, %v", float64(free.MilliCPU)/1000, free.Memory)
			}},
			{head: "LOAD", cell: func(m broker.Match) string { return fmt.Sprintf("%.0f%%", 100*m.Offer.State.Load) }},
			{head: "COUNTRY", cell: func(m broker.Match) string { return m.Offer.Characteristics.Location.Country }},
			{head: "AGE", cell: func(m broker.Match) string { return fmt.Sprintf("%.1fs", float64(m.AgeMS)/1000) }},
		},
		name: func(m broker.Match) string { return m.Site }, none: "no site fits",
	}
	if err := fit.print(a, f, answer.Fit); err != nil {
		return err
	}
	if len(answer.Refused) == 0 {
		return nil
	}
	fmt.Fprintln(a.out)
	refused := listing[broker.Refusal]{
		columns: []column[broker.Refusal]{
			{head: "SITE", cell: func(r broker.Refusal) string { return r.Site }},
			{head: "DOES NOT FIT", cell: func(r broker.Refusal) string { return strings.Join(r.Why, "; ") }},
		},
		name: func(r broker.Refusal) string { return r.Site },
	}
	return refused.print(a, f, answer.Refused)
}

func partnerNames(ctx context.Context, r *remote, _ []string) ([]string, error) {
	list, err := r.federation.ListPartners(ctx)
	names := make([]string, len(list))
	for i, p := range list {
		names[i] = p.Name + "\t" + p.State
	}
	return names, err
}
