package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func (a *app) auditListing() listing[audit.Entry] {
	return listing[audit.Entry]{
		columns: []column[audit.Entry]{
			{head: "AGE", cell: func(e audit.Entry) string { return a.since(e.At) }},
			{head: "BY", cell: func(e audit.Entry) string {
				if e.By == "" {
					return "?"
				}
				return oneLine(e.By)
			}},
			{head: "ROLE", cell: func(e audit.Entry) string { return e.Role }},
			{head: "OUTCOME", cell: func(e audit.Entry) string {
				if e.Code != "" {
					return string(e.Outcome) + ": " + e.Code
				}
				return string(e.Outcome)
			}},
			{head: "CALL", cell: func(e audit.Entry) string { return oneLine(e.Call) }},
			{head: "OBJECT", cell: func(e audit.Entry) string {
				if e.More > 0 {
					return fmt.Sprintf("%s (and %d like it)", oneLine(e.Object), e.More)
				}
				return oneLine(e.Object)
			}},
			{head: "CUSTOMER", cell: func(e audit.Entry) string { return e.Customer }, wide: true},
			{head: "FROM", cell: func(e audit.Entry) string { return e.From }, wide: true},
			{head: "STATUS", cell: func(e audit.Entry) string { return strconv.Itoa(e.Status) }, wide: true},
			{head: "AT", cell: func(e audit.Entry) string { return e.At.UTC().Format(time.RFC3339) }, wide: true},
		},
		name: func(e audit.Entry) string { return strconv.FormatUint(e.Seq, 10) },
		none: "nobody has changed anything, and nobody was refused",
	}
}

func (a *app) siteAudit() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Who has changed what, and who was refused",
		Example: "  reservoir site audit --since 24h --by ci\n  reservoir site audit --outcome denied -o json"}
	var q audit.Filter
	var since, outcome string
	cmd.Flags().StringVar(&since, "since", "", "only calls since then: 24h, or `TIME` such as 2026-05-01T00:00:00Z")
	cmd.Flags().StringVar(&q.By, "by", "", "only calls of this caller: a token's name or a SPIFFE ID")
	cmd.Flags().StringVar(&q.Object, "object", "", "only calls about objects with this in their name")
	cmd.Flags().StringVar(&outcome, "outcome", "", "only those that were ok, denied or failed")
	cmd.Flags().IntVar(&q.Limit, "limit", 0, "the newest so many (1000)")
	_ = cmd.RegisterFlagCompletionFunc("outcome", cobra.FixedCompletions([]string{"ok", "denied", "failed"}, cobra.ShellCompDirectiveNoFileComp))
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) (err error) {
		if q.Since, err = a.hour(since); err != nil {
			return err
		}
		q.Outcome = audit.Outcome(outcome)
		list, err := r.site.Audit(ctx, q)
		if err != nil {
			return err
		}
		return a.auditListing().print(a, *f, list)
	})
	return cmd
}

// hour reads a time, or how long ago it was; the zero time of nothing.
func (a *app) hour(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return a.now().Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fault.New(fault.Malformed, "--since %q: want a duration such as 24h, or a time such as 2026-05-01T00:00:00Z", text).Try("reservoir site audit --since 24h")
	}
	return t, nil
}
