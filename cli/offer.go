package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/smi/report"
)

func (a *app) offerListing() listing[smi.Offer] {
	return listing[smi.Offer]{
		columns: []column[smi.Offer]{
			{head: "OFFER", cell: func(o smi.Offer) string { return o.ID }},
			{head: "CUSTOMER", cell: func(o smi.Offer) string { return o.Customer }, wide: true},
			{head: "SERVICE", cell: func(o smi.Offer) string { return o.Service }},
			{head: "STATUS", cell: func(o smi.Offer) string {
				if !o.Ended.IsZero() {
					return "ended"
				}
				return string(o.Status)
			}},
			{head: "PER HOUR", cell: func(o smi.Offer) string { return o.Hour.Initial.Fixed(max(4, o.Places)) + " " + o.Currency }},
			{head: "PROMISES", cell: func(o smi.Offer) string { return fmt.Sprint(len(o.Promises)) }},
			{head: "EXPIRES", cell: func(o smi.Offer) string {
				if o.Status != smi.Open {
					return ""
				}
				return "in " + duration(o.Expires.Sub(a.now()))
			}},
		},
		name: func(o smi.Offer) string { return o.ID },
		none: "no offers; ask for one: reservoir service offer -f MANIFEST",
	}
}

func (a *app) serviceOffer(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "offer", Short: "Ask for an offer on a manifest: price, promises, terms",
		Long: `Ask the site for an offer on a manifest: what running it costs, what is promised and at which
penalties, on which terms, and until when it can be accepted. Nothing is reserved.`,
		Example: `  reservoir service offer -f web.yaml
  reservoir service accept alpha.o-k3v9q2m7xd --wait`}
	var d smi.Deploy
	file := cmd.Flags().StringP("file", "f", "", "manifest `FILE` (YAML, OVF or .ova; \"-\" is stdin)")
	cmd.Flags().StringVar(&d.Name, "name", "", "name of the service (the manifest's)")
	cmd.Flags().BoolVar(&d.BestEffort, "best-effort", false, "when it is accepted and there is not enough room, wait for it")
	_ = cmd.MarkFlagRequired("file")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		p, err := a.readPackage(ctx, *file)
		if err != nil {
			return err
		}
		defer p.Close()
		d.Customer, d.Manifest, d.File = *customer, p.text, p.name
		if d.Images, err = a.pushFiles(ctx, r, p); err != nil {
			return err
		}
		o, err := r.trade.Offer(ctx, d)
		if err != nil {
			return err
		}
		return a.showOffer(*f, o)
	})
	return cmd
}

// showOffer in full.
func (a *app) showOffer(f format, o smi.Offer) error {
	if f != "table" && f != "wide" {
		return a.offerListing().printOne(a, f, o)
	}
	places := max(4, o.Places)
	a.printf("offer %s of site %s on service %s, %s\n", o.ID, o.Site, o.Service, o.Status)
	a.printf("price     %s %s an hour at first; %s at its least, %s at its most replicas (price list %s)\n",
		o.Hour.Initial.Fixed(places), o.Currency, o.Hour.Least.Fixed(places), o.Hour.Most.Fixed(places), o.List.Name)
	for _, p := range o.Promises {
		text := p.Name + ": " + report.Promise(p)
		if p.Penalty != "" {
			text += "; penalty " + p.Penalty
		}
		if p.Protection != "" {
			text += "; protected by " + p.Protection
		}
		a.printf("promise   %s\n", oneLine(text))
	}
	for _, t := range o.Terms {
		a.printf("term      %s: %s\n", oneLine(t.Key), oneLine(t.Value))
	}
	switch o.Status {
	case smi.Open:
		a.printf("valid     until %s\n", o.Expires.UTC().Format(time.RFC3339))
		fmt.Fprintf(a.err, "accept it: reservoir service accept %s\n", o.ID)
	case smi.Accepted:
		a.printf("accepted  %s\n", o.Accepted.UTC().Format(time.RFC3339))
		if !o.Ended.IsZero() {
			a.printf("ended     %s\n", o.Ended.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

func (a *app) serviceOffers(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "offers [OFFER]", Short: "List offers and the contracts that they became, or show one", ValidArgsFunction: a.names(offerIDs)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		if len(args) > 0 {
			o, err := r.trade.GetOffer(ctx, args[0])
			if err != nil {
				return err
			}
			return a.showOffer(*f, o)
		}
		list, err := r.trade.Offers(ctx, *customer)
		if err != nil {
			return err
		}
		return a.offerListing().print(a, *f, list)
	})
	return cmd
}

func offerIDs(ctx context.Context, r *remote, _ []string) (names []string, err error) {
	list, err := r.trade.Offers(ctx, "")
	for _, o := range list {
		names = append(names, fmt.Sprintf("%s\t%s, %s", o.ID, o.Service, o.Status))
	}
	return names, err
}

func (a *app) serviceAccept() *cobra.Command {
	cmd := &cobra.Command{Use: "accept OFFER", Short: "Accept an offer: the service runs under it",
		Long: `Accept an offer. Its service is deployed, or redeployed, as it was offered, and runs under that
contract: the prices stay, and penalties for broken promises are credited.`,
		ValidArgsFunction: a.names(offerIDs)}
	f, w := outputFlag(cmd), waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		s, err := r.trade.Accept(ctx, args[0])
		if err != nil {
			return err
		}
		return a.settle(ctx, r, *f, w, s)
	})
	return cmd
}

// slaRow is one objective of a service.
type slaRow struct {
	s smi.SLA
	o smi.Objective
}

func (a *app) serviceSLA(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "sla [NAME]", Short: "Show how promises are kept",
		Long: `Show how what services have promised is kept: in the present window, and in those that are
over. With --html or --csv, a report.`,
		Example: `  reservoir service sla web
  reservoir service sla --html > sla.html`, ValidArgsFunction: a.names(serviceNames)}
	html := cmd.Flags().Bool("html", false, "a report as one HTML page")
	csv := cmd.Flags().Bool("csv", false, "a report as CSV: a row for each window")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		list, err := r.trade.SLA(ctx, *customer, strings.Join(args, ""))
		if err != nil {
			return err
		}
		switch {
		case *html && *csv:
			return fault.New(fault.Malformed, "--html and --csv: want one of them")
		case *html:
			site, err := r.site.Site(ctx)
			if err != nil {
				return err
			}
			return report.HTML(a.out, site.Name, a.now(), list)
		case *csv:
			return report.CSV(a.out, list)
		case *f == "json" || *f == "yaml":
			return writeObject(a.out, *f, list)
		}
		var rows []slaRow
		for _, s := range list {
			for _, o := range s.Objectives {
				rows = append(rows, slaRow{s, o})
			}
		}
		return slaListing().print(a, *f, rows)
	})
	return cmd
}

func slaListing() listing[slaRow] {
	span := func(ms int64) string {
		return (time.Duration(ms) * time.Millisecond).Round(100 * time.Millisecond).String()
	}
	return listing[slaRow]{
		columns: []column[slaRow]{
			{head: "SERVICE", cell: func(r slaRow) string { return r.s.Service }},
			{head: "OBJECTIVE", cell: func(r slaRow) string { return r.o.Name }},
			{head: "PROMISED", cell: func(r slaRow) string { return report.Promise(r.o.Promise) }},
			{head: "NOW", cell: func(r slaRow) string { return r.o.Now }},
			{head: "KEPT", cell: func(r slaRow) string {
				if r.o.Window == nil {
					return ""
				}
				return fmt.Sprintf("%.4g %%", r.o.Window.Kept)
			}},
			{head: "BUDGET LEFT", cell: func(r slaRow) string {
				if r.o.Window == nil {
					return ""
				}
				return span(r.o.Window.BudgetMS-r.o.Window.BrokenMS) + " of " + span(r.o.Window.BudgetMS)
			}},
			{head: "VIOLATED", cell: violated},
			{head: "DUE", cell: func(r slaRow) string {
				if r.s.Contract == "" {
					return "no contract"
				}
				return r.o.Due.Fixed(2) + " " + r.s.Currency
			}},
			{head: "CONTRACT", cell: func(r slaRow) string { return r.s.Contract }, wide: true},
		},
		name: func(r slaRow) string { return r.s.Service + "/" + r.o.Name },
		none: "no service has promised anything; what a manifest may promise: docs/sla.md",
	}
}

// violated windows of those that are over, or late losses.
func violated(r slaRow) string {
	if r.o.Kind == "restart" {
		return fmt.Sprintf("%d late", len(r.o.Late))
	}
	n := 0
	for _, w := range r.o.Past {
		if w.Violated {
			n++
		}
	}
	return fmt.Sprintf("%d of %s", n, count(len(r.o.Past), "window"))
}
