package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/smi"
)

func (a *app) eventCmd() *cobra.Command {
	return noun("event", "What happened at a site", a.eventList())
}

var eventListing = listing[smi.Event]{
	columns: []column[smi.Event]{
		{head: "SEQ", cell: func(e smi.Event) string { return strconv.FormatUint(e.Seq, 10) }, wide: true},
		{head: "TIME", cell: func(e smi.Event) string { return e.At.Local().Format("01-02 15:04:05") }},
		{head: "TYPE", cell: func(e smi.Event) string { return e.Type }},
		{head: "REASON", cell: func(e smi.Event) string { return e.Reason }},
		{head: "OBJECT", cell: func(e smi.Event) string { return e.Object }},
		{head: "CUSTOMER", cell: func(e smi.Event) string { return e.Customer }, wide: true},
		{head: "SERVICE", cell: func(e smi.Event) string { return e.Service }, wide: true},
		{head: "MESSAGE", cell: func(e smi.Event) string { return e.Message }},
	},
	name: func(e smi.Event) string { return strconv.FormatUint(e.Seq, 10) },
	none: "no events",
}

func (a *app) eventList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List events, oldest first",
		Example: `  reservoir event list --service web --watch
  reservoir event list --object host/h1`}
	var q smi.EventFilter
	cmd.Flags().StringVar(&q.Customer, "customer", "", "only those of this customer")
	cmd.Flags().StringVar(&q.Service, "service", "", "only those of this service")
	cmd.Flags().StringVar(&q.Object, "object", "", `only those of this object ("vee/ID") or kind ("host")`)
	cmd.Flags().Uint64Var(&q.Since, "since", 0, "only those after this sequence number (-o wide shows them)")
	cmd.Flags().IntVarP(&q.Limit, "limit", "n", 100, "the newest so many")
	f, watch := outputFlag(cmd), watchFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		if *watch {
			return a.watchEvents(ctx, r, *f, q)
		}
		list, err := r.smi.Events(ctx, q)
		if err != nil {
			return err
		}
		return eventListing.print(a, *f, list)
	})
	return cmd
}

// watchEvents shows events as they come, one a line: unlike states, each one counts, so
// nothing is painted over.
func (a *app) watchEvents(ctx context.Context, r *remote, f format, q smi.EventFilter) error {
	headed := false
	return follow(ctx, func(ctx context.Context) (<-chan smi.Event, error) { return r.smi.WatchEvents(ctx, q) }, func(e smi.Event) (bool, error) {
		q.Since = max(q.Since, e.Seq) // where to go on after the connection was lost
		if f == "table" || f == "wide" {
			return false, a.eventLine(f, e, &headed)
		}
		return false, eventListing.printLine(a, f, e)
	})
}

// eventLine in columns of fixed width: what comes later is not known yet.
func (a *app) eventLine(f format, e smi.Event, headed *bool) error {
	row := func(at, kind, reason, object, message string) {
		a.printf("%-14s  %-7s  %-16s  %-20s  %s\n", at, kind, reason, object, message)
	}
	if !*headed {
		row("TIME", "TYPE", "REASON", "OBJECT", "MESSAGE")
		*headed = true
	}
	message := oneLine(e.Message)
	if f == "wide" {
		message = "#" + strconv.FormatUint(e.Seq, 10) + " " + message
	}
	row(e.At.Local().Format("01-02 "+time.TimeOnly), e.Type, e.Reason, e.Object, message)
	return nil
}
