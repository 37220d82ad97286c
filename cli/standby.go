package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/veem/federation/standby"
)

func (a *app) standbyListing() listing[standby.Shown] {
	return listing[standby.Shown]{
		columns: []column[standby.Shown]{
			{head: "SERVICE", cell: func(s standby.Shown) string { return s.Customer + "/" + s.Name }},
			{head: "PRIMARY", cell: func(s standby.Shown) string { return s.Primary }},
			{head: "STANDBY", cell: func(s standby.Shown) string { return s.Standby }},
			{head: "STATE", cell: standbyState},
			{head: "AGE", cell: func(s standby.Shown) string {
				if s.At.IsZero() {
					return "-"
				}
				return a.since(s.At)
			}},
			{head: "VEES", cell: func(s standby.Shown) string { return fmt.Sprint(s.VEEs) }},
			{head: "CHECKPOINTS", cell: func(s standby.Shown) string { return s.Size.String() }},
			{head: "TO-COME", cell: func(s standby.Shown) string {
				if s.Coming == 0 {
					return ""
				}
				return fmt.Sprintf("%s, %s", s.Missing, count(s.MissingImages, "image"))
			}},
			{head: "WHY", cell: func(s standby.Shown) string { return oneLine(s.Problem) }},
			{head: "ID", cell: func(s standby.Shown) string { return s.Service }, wide: true},
			{head: "NUMBER", cell: func(s standby.Shown) string { return fmt.Sprint(s.Number) }, wide: true},
		},
		name: func(s standby.Shown) string { return s.Service },
		none: "no service has a standby; name one in a manifest: standby: [SITE]",
	}
}

// standbyState in one word, or where the service has gone.
func standbyState(s standby.Shown) string {
	switch p := s.Promoted; {
	case p != nil && !s.Done && s.Standby == p.By:
		return "promoting"
	case p != nil:
		return "promoted: " + p.Customer + "/" + p.Name
	case s.Number == 0:
		return "nothing"
	case s.Number == s.Shipment:
		return "current"
	}
	return "behind"
}

func (a *app) federationStandby() *cobra.Command {
	cmd := &cobra.Command{Use: "standby", Short: "List what standbys have of services, here and at partners",
		Long: `List services that have a standby: those of this site, with what each standby has of them,
and those of partners of which this site is one. AGE is how old that is; what runs on after a
promotion goes on from there.`}
	f, watch := outputFlag(cmd), watchFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		if *watch {
			return showWatch(ctx, a, a.standbyListing(), *f, poll(r.cooperation.ListStandbys))
		}
		list, err := r.cooperation.ListStandbys(ctx)
		if err != nil {
			return err
		}
		return a.standbyListing().print(a, *f, list)
	})
	return cmd
}

func (a *app) federationPromote() *cobra.Command {
	cmd := &cobra.Command{Use: "promote SITE", Short: "Go on with services of a partner that is lost", ValidArgsFunction: a.names(partnerNames),
		Long: `Go on here with services of a partner that is lost for good, as it has shipped them: what was
written there since is lost. It cannot be taken back: when the partner returns, it is told, and
gives way.

A partner that is only cut off goes on until it hears of that: what it did meanwhile is not in
the service any more. So the partner must have been silent for a minute, or --fenced says that
somebody has made sure that nothing of its services runs: its machines are off, or cut off from
those who use them.`,
		Example: `  reservoir federation promote alpha --i-am-sure
  reservoir federation promote alpha --service shop --customer acme --i-am-sure --fenced`}
	var p admin.Promotion
	fl := cmd.Flags()
	fl.StringVar(&p.Service, "service", "", "only this one (all that were shipped here)")
	fl.StringVar(&p.Customer, "customer", "", "of this site, that they are to be of (SITE-CUSTOMER)")
	fl.BoolVar(&p.Sure, "i-am-sure", false, "the partner is lost for good")
	fl.BoolVar(&p.Fenced, "fenced", false, "nothing of the services runs at the partner: somebody has made sure")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		if !p.Sure {
			return fault.New(fault.Malformed, "to go on with services of site %s is for good", args[0]).
				Try("when the site is lost: reservoir federation promote %s --i-am-sure", args[0])
		}
		list, err := r.cooperation.Promote(ctx, args[0], p)
		if err != nil {
			return err
		}
		if err := a.standbyListing().print(a, *f, list); err != nil {
			return err
		}
		for _, s := range list {
			if s.Promoted != nil {
				fmt.Fprintf(a.err, "watch it: reservoir service show %s --customer %s --watch\n", s.Promoted.Name, s.Promoted.Customer)
			}
		}
		return nil
	})
	return cmd
}

// elsewhere are the sites that have an image ahead.
func elsewhere(at map[string][]string, digest string) string { return strings.Join(at[digest], " ") }

// standbyWords of a service's provider: what a standby could go on from.
func (a *app) standbyWords(s smi.Standby) string {
	text := "has nothing whole yet"
	if !s.At.IsZero() {
		text = fmt.Sprintf("could go on from %s ago, with %s", a.since(s.At), count(s.VEEs, "checkpoint"))
	}
	if !s.Current && s.Problem != "" {
		text += "; " + oneLine(s.Problem)
	}
	return text
}
