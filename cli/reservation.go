package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (a *app) reservationCmd() *cobra.Command {
	return noun("reservation", "Capacity reserved for a later time, here or at a partner",
		a.reservationCreate(), a.reservationList(), a.reservationShow(), a.reservationCancel())
}

func (a *app) reservationListing() listing[vmi.Reservation] {
	when := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	return listing[vmi.Reservation]{
		columns: []column[vmi.Reservation]{
			{head: "ID", cell: func(r vmi.Reservation) string { return r.ID }},
			{head: "STATE", cell: func(r vmi.Reservation) string { return string(r.State) }},
			{head: "AT", cell: func(r vmi.Reservation) string {
				if r.At == "" {
					return "here"
				}
				return r.At
			}},
			{head: "VEES", cell: func(r vmi.Reservation) string { return fmt.Sprintf("%d of %d", r.Used, r.VEEs) }},
			{head: "EACH", cell: func(r vmi.Reservation) string {
				size := fmt.Sprintf("%d vCPUs, %v", r.VCPUs, r.Memory)
				if r.Disk > 0 {
					size += ", " + r.Disk.String() + " of disk"
				}
				return size
			}},
			{head: "FROM", cell: func(r vmi.Reservation) string { return when(r.From) }},
			{head: "UNTIL", cell: func(r vmi.Reservation) string { return when(r.Until) }},
			{head: "PER-HOUR", cell: func(r vmi.Reservation) string {
				if r.Currency == "" {
					return "-"
				}
				return strconv.FormatFloat(r.PerHour, 'f', -1, 64) + " " + r.Currency
			}},
			{head: "CUSTOMER", cell: func(r vmi.Reservation) string { return r.Customer }, wide: true},
			{head: "AGREEMENT", cell: func(r vmi.Reservation) string { return r.Agreement }, wide: true},
			{head: "NOTE", cell: func(r vmi.Reservation) string { return r.Note }, wide: true},
		},
		name: func(r vmi.Reservation) string { return r.ID },
		none: "no reservations; make one: reservoir reservation create --help",
	}
}

func (a *app) reservationCreate() *cobra.Command {
	cmd := &cobra.Command{Use: "create", Short: "Reserve room for VEEs from one time until another",
		Long: `Reserve room for VEEs from one time until another, at this site or at a partner under an
agreement. VEEs are placed under it by their manifest ("sites: {reservation: ID}") or by
reservoir service deploy --reservation ID. One that nobody uses expires.`,
		Example: `  reservoir reservation create --at beta --count 4 --cpus 2 --memory 4GiB --from 2030-06-01T08:00:00Z --for 8h
  reservoir reservation create --count 2 --memory 1GiB --until 2030-06-02`}
	var in vmi.Reserve
	var memory, disk, from, until string
	var length, within time.Duration
	fl := cmd.Flags()
	fl.StringVar(&in.At, "at", "", "partner site (this one)")
	fl.StringVar(&in.Customer, "customer", "", "whose VEEs may be placed under it (a provider: its own; an operator: anybody's)")
	fl.IntVar(&in.VEEs, "count", 1, "VEEs")
	fl.IntVar(&in.VCPUs, "cpus", 1, "vCPUs of each")
	fl.StringVar(&memory, "memory", "", "`SIZE` of memory of each, such as 1GiB")
	fl.StringVar(&disk, "disk", "", "`SIZE` of disks of each (none)")
	fl.StringVar(&from, "from", "", "`TIME` of RFC 3339, or a date (now)")
	fl.StringVar(&until, "until", "", "`TIME` of RFC 3339, or a date")
	fl.DurationVar(&length, "for", 0, "instead of --until: so long from --from on")
	fl.DurationVar(&within, "use-within", time.Hour, "of its beginning a VEE has to be placed under it")
	_ = cmd.MarkFlagRequired("memory")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) (err error) {
		if in.Memory, err = parse(vee.ParseBytes, "--memory", memory); err != nil {
			return err
		}
		if in.Disk, err = parse(vee.ParseBytes, "--disk", disk); err != nil {
			return err
		}
		in.UseWithinMS = within.Milliseconds()
		if in.From, err = moment("--from", from, a.now()); err != nil {
			return err
		}
		if (until == "") == (length == 0) {
			return fault.New(fault.Malformed, "until when? want --until or --for").Try("reservoir reservation create --help")
		}
		if in.Until, err = moment("--until", until, in.From.Add(length)); err != nil {
			return err
		}
		out, err := r.vmi.Reserve(ctx, in)
		if err != nil {
			return err
		}
		return a.reservationListing().printOne(a, *f, out)
	})
	return cmd
}

// moment that a flag names, in UTC.
func moment(flag, text string, otherwise time.Time) (time.Time, error) {
	if text == "" {
		return otherwise.UTC().Truncate(time.Second), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fault.New(fault.Malformed, "%s %q: want a date such as 2030-06-01, or a time of RFC 3339", flag, text)
}

func (a *app) reservationList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List reservations, those too that were over in the last day"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		list, err := r.vmi.ListReservations(ctx)
		if err != nil {
			return err
		}
		return a.reservationListing().print(a, *f, list)
	})
	return cmd
}

func (a *app) reservationShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show ID", Short: "Show a reservation, and why it is over", ValidArgsFunction: a.names(reservationNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		out, err := r.vmi.GetReservation(ctx, args[0])
		if err != nil {
			return err
		}
		if err := a.reservationListing().printOne(a, *f, out); err != nil {
			return err
		}
		if *f == "table" && out.Note != "" {
			fmt.Fprintln(a.out, out.Note)
		}
		return nil
	})
	return cmd
}

func (a *app) reservationCancel() *cobra.Command {
	cmd := &cobra.Command{Use: "cancel ID", Short: "Give a reservation up; VEEs that run under it stay", ValidArgsFunction: a.names(reservationNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		out, err := r.vmi.CancelReservation(ctx, args[0])
		if err != nil {
			return err
		}
		return a.reservationListing().printOne(a, *f, out)
	})
	return cmd
}

func reservationNames(ctx context.Context, r *remote, _ []string) ([]string, error) {
	list, err := r.vmi.ListReservations(ctx)
	names := make([]string, len(list))
	for i, x := range list {
		names[i] = x.ID + "\t" + string(x.State)
	}
	return names, err
}
