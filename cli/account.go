package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/focus"
	"github.com/reservoir-cloud/reservoir/account/money"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
)

func (a *app) accountCmd() *cobra.Command {
	var customer string
	cmd := noun("account", "What services cost: prices, usage, invoices, budgets",
		noun("prices", "The site's price lists", a.pricesShow(), a.pricesSet()),
		a.accountUsage(&customer),
		noun("invoice", "Invoices of a customer", a.invoiceList(&customer), a.invoiceShow(&customer), a.invoiceDraft(&customer), a.invoiceIssue(&customer)),
		a.accountFocus(&customer), a.accountSettlement(), a.accountSettle(),
		noun("budget", "What customers may spend in a month", a.budgetList(&customer), a.budgetSet(), a.budgetRemove()))
	cmd.PersistentFlags().StringVar(&customer, "customer", "", "whose accounts (your own)")
	return cmd
}

// priceRow is a price of a list.
type priceRow struct {
	List  string       `json:"list"`
	From  time.Time    `json:"from"`
	Meter string       `json:"meter"`
	Price money.Amount `json:"price"`
	Unit  string       `json:"unit"`
}

func (a *app) pricesShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show", Short: "Show the price lists"}
	f := outputFlag(cmd)
	file := cmd.Flags().Bool("file", false, "as they were handed in, to be edited and set again")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		p, err := r.trade.Prices(ctx)
		if err != nil {
			return err
		}
		if *file {
			a.printf("%s", p.File)
			return nil
		}
		return a.showPrices(*f, p)
	})
	return cmd
}

func (a *app) showPrices(f format, p smi.Prices) error {
	if f == "json" || f == "yaml" {
		return writeObject(a.out, f, p)
	}
	var rows []priceRow
	for _, l := range p.Tariff.Lists {
		for _, m := range billing.Meters {
			if price, ok := l.Prices[m]; ok {
				rows = append(rows, priceRow{l.Name, l.From, string(m), price, m.Unit()})
			}
		}
	}
	return listing[priceRow]{
		columns: []column[priceRow]{
			{head: "LIST", cell: func(r priceRow) string { return r.List }},
			{head: "FROM", cell: func(r priceRow) string { return r.From.Format(time.DateOnly) }},
			{head: "METER", cell: func(r priceRow) string { return r.Meter }},
			{head: "PRICE", cell: func(r priceRow) string { return r.Price.String() + " " + p.Tariff.Currency }},
			{head: "PER", cell: func(r priceRow) string { return r.Unit[:len(r.Unit)-1] }},
		},
		name: func(r priceRow) string { return r.List + "/" + r.Meter },
		none: "everything is free",
	}.print(a, f, rows)
}

func (a *app) pricesSet() *cobra.Command {
	cmd := &cobra.Command{Use: "set FILE", Short: "Set the price lists",
		Long: `Set the price lists from a YAML file ("-" is stdin). Lists that are in force already stay as
they are; add one that begins later. How a file looks: docs/billing.md`,
		Example: `  reservoir account prices show --file > prices.yaml
  reservoir account prices set prices.yaml`}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		text, err := a.readFile(args[0])
		if err != nil {
			return err
		}
		p, err := r.trade.SetPrices(ctx, string(text), 0)
		if err != nil {
			return err
		}
		return a.showPrices(*f, p)
	})
	return cmd
}

func (a *app) accountUsage(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "usage", Short: "Show what the services of a customer have used",
		Long: `Show what the services that a customer has now have used. One service, or one that is gone:
reservoir service usage NAME`}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		services, err := r.smi.List(ctx, *customer)
		if err != nil {
			return err
		}
		all := []smi.ServiceUsage{}
		var rows []smi.VEEUsage
		for _, s := range services {
			u, err := r.smi.Usage(ctx, s.Customer, s.Name)
			if fault.Has(err, fault.NotFound) {
				continue // nothing yet
			}
			if err != nil {
				return err
			}
			all = append(all, u)
			row := smi.VEEUsage{Name: s.Name, Total: u.Total}
			for _, v := range u.VEEs {
				if v.Through.After(row.Through) {
					row.Through = v.Through
				}
			}
			rows = append(rows, row)
		}
		if *f == "json" || *f == "yaml" {
			return writeObject(a.out, *f, all)
		}
		l := a.usageListing()
		l.name = func(v smi.VEEUsage) string { return v.Name }
		return l.print(a, *f, rows)
	})
	return cmd
}

func (a *app) invoiceListing() listing[billing.Invoice] {
	amount := func(of func(billing.Invoice) money.Amount) func(billing.Invoice) string {
		return func(v billing.Invoice) string { return of(v).Fixed(v.Places) + " " + v.Currency }
	}
	return listing[billing.Invoice]{
		columns: []column[billing.Invoice]{
			{head: "NUMBER", cell: func(v billing.Invoice) string { return v.Number }},
			{head: "CUSTOMER", cell: func(v billing.Invoice) string { return v.Customer }},
			{head: "FROM", cell: func(v billing.Invoice) string { return v.From.UTC().Format(time.DateTime) }},
			{head: "UNTIL", cell: func(v billing.Invoice) string { return v.Until.UTC().Format(time.DateTime) }},
			{head: "CHARGES", cell: amount(func(v billing.Invoice) money.Amount { return v.Subtotal }), wide: true},
			{head: "CREDITS", cell: amount(func(v billing.Invoice) money.Amount { return v.Credited }), wide: true},
			{head: "TOTAL", cell: amount(func(v billing.Invoice) money.Amount { return v.Total })},
		},
		name: func(v billing.Invoice) string { return v.Number },
		none: "no invoices; what would be on the next one: reservoir account invoice draft",
	}
}

func (a *app) invoiceList(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List invoices"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		list, err := r.trade.Invoices(ctx, *customer)
		if err != nil {
			return err
		}
		return a.invoiceListing().print(a, *f, list)
	})
	return cmd
}

// showInvoice in full.
func (a *app) showInvoice(f format, v billing.Invoice) error {
	if f == "table" || f == "wide" {
		a.printf("%s", v)
		return nil
	}
	return a.invoiceListing().printOne(a, f, v)
}

func invoiceNumbers(ctx context.Context, r *remote, _ []string) (names []string, err error) {
	list, err := r.trade.Invoices(ctx, "")
	for _, v := range list {
		names = append(names, v.Number)
	}
	return names, err
}

func (a *app) invoiceShow(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "show NUMBER", Short: "Show an invoice", Long: "Show an invoice; with -o json every charge that its lines are made of, exactly.", ValidArgsFunction: a.names(invoiceNumbers)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		v, err := r.trade.Invoice(ctx, *customer, args[0])
		if err != nil {
			return err
		}
		return a.showInvoice(*f, v)
	})
	return cmd
}

// untilFlag adds --until; its value is read when the command runs.
func (a *app) untilFlag(cmd *cobra.Command) func() (time.Time, error) {
	until := cmd.Flags().String("until", "", "everything before this `TIME`, 2026-02-01 or 2026-02-01T12:00:00Z (now)")
	return func() (time.Time, error) {
		for _, layout := range []string{time.DateOnly, time.RFC3339} {
			if t, err := time.Parse(layout, *until); err == nil {
				return t, nil
			}
		}
		if *until == "" {
			return time.Time{}, nil
		}
		return time.Time{}, fault.New(fault.Malformed, "--until %q: want a date such as 2026-02-01, or a time such as 2026-02-01T12:00:00Z", *until)
	}
}

func (a *app) invoiceDraft(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "draft", Short: "Show the invoice that would be issued now"}
	f, until := outputFlag(cmd), a.untilFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		t, err := until()
		if err != nil {
			return err
		}
		v, err := r.trade.Draft(ctx, *customer, t)
		if err != nil {
			return err
		}
		return a.showInvoice(*f, v)
	})
	return cmd
}

func (a *app) invoiceIssue(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "issue", Short: "Issue an invoice: what is on no invoice yet",
		Long: `Issue an invoice to a customer: all that was used before --until and is on no invoice yet,
less the credits for promises that were not kept. Usage that becomes known later is on the
next one.`,
		Example: `  reservoir account invoice issue --customer acme --until 2026-02-01`}
	f, until := outputFlag(cmd), a.untilFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		t, err := until()
		if err != nil {
			return err
		}
		v, err := r.trade.Issue(ctx, *customer, t)
		if err != nil {
			return err
		}
		return a.showInvoice(*f, v)
	})
	return cmd
}

func (a *app) accountFocus(customer *string) *cobra.Command {
	return &cobra.Command{Use: "focus [NUMBER…]", Short: "Write invoices in the FinOps format FOCUS, as CSV",
		Long: `Write invoices in FOCUS 1.2, the FinOps Open Cost and Usage Specification, as CSV: those of
these numbers, or all.`,
		Example: `  reservoir account focus > costs.csv`, ValidArgsFunction: a.names(invoiceNumbers),
		RunE: a.onSite(func(ctx context.Context, r *remote, args []string) error {
			heads, err := r.trade.Invoices(ctx, *customer)
			if err != nil {
				return err
			}
			for _, n := range args {
				if !slices.ContainsFunc(heads, func(v billing.Invoice) bool { return v.Number == n }) {
					return fault.New(fault.NotFound, "invoice %s does not exist", n).Try("see what there is: reservoir account invoice list")
				}
			}
			var list []billing.Invoice
			for _, h := range heads {
				if len(args) > 0 && !slices.Contains(args, h.Number) {
					continue
				}
				v, err := r.trade.Invoice(ctx, h.Customer, h.Number)
				if err != nil {
					return err
				}
				list = append(list, v)
			}
			return focus.Write(a.out, list...)
		})}
}

func budgetListing() listing[smi.Budget] {
	return listing[smi.Budget]{
		columns: []column[smi.Budget]{
			{head: "CUSTOMER", cell: func(b smi.Budget) string { return b.Customer }},
			{head: "SPENT", cell: func(b smi.Budget) string {
				return fmt.Sprintf("%s of %s %s", b.Spent.Fixed(2), b.Limit.Fixed(2), b.Currency)
			}},
			{head: "HOURLY", cell: func(b smi.Budget) string { return b.Hour.Fixed(4) }},
			{head: "POLICY", cell: func(b smi.Budget) string { return string(b.Policy) }},
		},
		name: func(b smi.Budget) string { return b.Customer },
		none: "no budgets; set one: reservoir account budget set CUSTOMER AMOUNT",
	}
}

func (a *app) budgetList(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List budgets and what is spent of them in this month"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		list, err := r.trade.Budgets(ctx, *customer)
		if err != nil {
			return err
		}
		return budgetListing().print(a, *f, list)
	})
	return cmd
}

func (a *app) budgetSet() *cobra.Command {
	cmd := &cobra.Command{Use: "set CUSTOMER AMOUNT", Short: "Set what a customer may spend in a calendar month",
		Long: `Set what a customer may spend in a calendar month (UTC). The policy says what follows:
warn: events at 80 % and when it is used up; refuse: then no service is deployed or grows
for which the rest is not enough for an hour; shrink: and services go down to their least
replicas.`,
		Example: `  reservoir account budget set acme 500 --policy shrink`, ValidArgsFunction: a.names(customers)}
	policy := cmd.Flags().String("policy", string(smi.Refuse), "warn, refuse or shrink")
	_ = cmd.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions([]string{"warn", "refuse", "shrink"}, cobra.ShellCompDirectiveNoFileComp))
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		limit, err := money.Parse(args[1])
		if err != nil {
			return fault.New(fault.Malformed, "%w", err).Try("reservoir account budget set %s 500", args[0])
		}
		b, err := r.trade.SetBudget(ctx, smi.Budget{Customer: args[0], Limit: limit, Policy: smi.BudgetPolicy(*policy)})
		if err != nil {
			return err
		}
		return budgetListing().printOne(a, *f, b)
	})
	return cmd
}

func (a *app) budgetRemove() *cobra.Command {
	return &cobra.Command{Use: "remove CUSTOMER", Aliases: []string{"rm"}, Short: "Take a customer's budget away", ValidArgsFunction: a.names(customers),
		RunE: a.onSite(func(ctx context.Context, r *remote, args []string) error { return r.trade.DeleteBudget(ctx, args[0]) })}
}
