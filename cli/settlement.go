package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/account/billing"
	"github.com/reservoir-cloud/reservoir/account/focus"
	"github.com/reservoir-cloud/reservoir/account/settlement"
	"github.com/reservoir-cloud/reservoir/veem/federation/books"
)

func settlementListing() listing[books.Settlement] {
	return listing[books.Settlement]{
		columns: []column[books.Settlement]{
			{head: "AGREEMENT", cell: func(s books.Settlement) string { return s.Agreement }},
			{head: "PERIOD", cell: func(s books.Settlement) string { return s.Period }},
			{head: "UNTIL", cell: func(s books.Settlement) string { return s.Until.UTC().Format(time.DateTime) }, wide: true},
			{head: "OWED-BY", cell: func(s books.Settlement) string { return s.Borrower }},
			{head: "TO", cell: func(s books.Settlement) string { return s.Lender }},
			{head: "AMOUNT", cell: func(s books.Settlement) string { return s.Bill.Total.Fixed(s.Bill.Places) + " " + s.Bill.Currency }},
			{head: "BOOKS", cell: booksSay},
			{head: "STATEMENT", cell: func(s books.Settlement) string { return s.Statement }},
		},
		name: func(s books.Settlement) string { return s.Agreement },
		none: "no agreements in that month; see reservoir agreement list",
	}
}

// booksSay in a word or two.
func booksSay(s books.Settlement) string {
	switch {
	case s.Theirs == nil:
		return "not compared"
	case s.Agree:
		return "agree"
	}
	return fmt.Sprintf("differ (%d)", len(s.Differences)+s.More)
}

func (a *app) accountSettlement() *cobra.Command {
	cmd := &cobra.Command{Use: "settlement [PARTNER]", Short: "Show what is owed to partners and by them, and whether their books agree with ours",
		Long: `Show what is owed to partners and by them in a month, by agreement: the bill by our own book,
and every place in which the partner's book about the same VEEs differs. Both are asked for at
that moment. Months are by the clock of the site that lends.`,
		Example: `  reservoir account settlement
  reservoir account settlement beta --period 2026-10
  reservoir account settlement --focus > partners.csv`,
		ValidArgsFunction: a.names(partnerNames)}
	f := outputFlag(cmd)
	period := cmd.Flags().String("period", "", "a `MONTH` such as 2026-10 (this one)")
	agreement := cmd.Flags().String("agreement", "", "of one agreement, its `ID`")
	_ = cmd.RegisterFlagCompletionFunc("agreement", a.names(agreementNames))
	rows := cmd.Flags().Bool("focus", false, "write the bills in the FinOps format FOCUS, as CSV")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		q := books.Asked{Agreement: *agreement, Period: *period}
		if len(args) > 0 {
			q.Partner = args[0]
		}
		list, err := r.settlements.Settlements(ctx, q)
		if err != nil {
			return err
		}
		if *rows {
			var bills []billing.Invoice
			for _, s := range list {
				bills = append(bills, s.Bill)
			}
			return focus.Write(a.out, bills...)
		}
		if err := settlementListing().print(a, *f, list); err != nil || *f != "table" && *f != "wide" {
			return err
		}
		for _, s := range list {
			if len(args) > 0 || *agreement != "" || *f == "wide" || s.Theirs != nil && !s.Agree {
				a.settlementParts(s)
			}
		}
		return nil
	})
	return cmd
}

// settlementParts are the bill and what the partner's book has against it.
func (a *app) settlementParts(s books.Settlement) {
	a.printf("\n%s", s.Bill)
	switch {
	case s.Theirs == nil:
		a.printf("\nThe book of site %s was not seen: %s\n", s.Partner, s.Why)
		return
	case s.Agree:
		a.printf("\nThe book of site %s has the same, to the unit, until %s.\n", s.Partner, s.Until.UTC().Format(time.RFC3339))
		return
	}
	a.printf("\nBy the book of site %s it is %s %s. Until %s they differ here:\n\n", s.Partner, s.Theirs.Fixed(s.Bill.Places), s.Bill.Currency, s.Until.UTC().Format(time.RFC3339))
	const stamp = "2006-01-02 15:04:05.000"
	for _, line := range (listing[settlement.Difference]{columns: []column[settlement.Difference]{
		{head: "VEE", cell: func(d settlement.Difference) string { return string(d.VEE) }},
		{head: "NAME", cell: func(d settlement.Difference) string { return d.Name }},
		{head: "FROM", cell: func(d settlement.Difference) string { return time.UnixMilli(d.FromMS).UTC().Format(stamp) }},
		{head: "UNTIL", cell: func(d settlement.Difference) string { return time.UnixMilli(d.ToMS).UTC().Format(stamp) }},
		{head: "METER", cell: func(d settlement.Difference) string { return string(d.Meter) }},
		{head: "OURS", cell: func(d settlement.Difference) string { return fmt.Sprint(d.Ours) }},
		{head: "THEIRS", cell: func(d settlement.Difference) string { return fmt.Sprint(d.Theirs) }},
		{head: "UNIT", cell: func(d settlement.Difference) string { return d.Unit() }},
	}}).table("table", s.Differences) {
		a.printf("%s\n", line)
	}
	if s.More > 0 {
		a.printf("and %d more\n", s.More)
	}
}

func (a *app) accountSettle() *cobra.Command {
	cmd := &cobra.Command{Use: "settle AGREEMENT", Short: "Issue the statement of a month that is over to the partner who borrowed",
		Long: `Issue the statement of a month that is over to the partner who borrowed under an agreement. It
has a number, is issued once, and stays as it is. If the partner's book differs from ours, or
cannot be seen, it is issued only if it is said to be disputed.`,
		Example: `  reservoir account settle beta.xsfew2b63m --period 2026-10`, ValidArgsFunction: a.names(agreementNames)}
	f := outputFlag(cmd)
	period := cmd.Flags().String("period", "", "the `MONTH`, such as 2026-10 (the last one)")
	disputed := cmd.Flags().Bool("disputed", false, "by our book, though the partner's differs or is not known")
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		o := books.Order{Agreement: args[0], Period: *period, Disputed: *disputed}
		if o.Period == "" {
			year, month, _ := time.Now().UTC().Date()
			o.Period = settlement.MonthOf(time.Date(year, month-1, 1, 0, 0, 0, 0, time.UTC))
		}
		s, err := r.settlements.Settle(ctx, o)
		if err != nil {
			return err
		}
		if *f != "table" && *f != "wide" {
			return settlementListing().printOne(a, *f, s)
		}
		a.printf("%s", s.Bill)
		return nil
	})
	return cmd
}
