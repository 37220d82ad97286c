package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// migrationPoll is how often a migration that is waited for is asked how far it is.
const migrationPoll = 200 * time.Millisecond

func (a *app) veeMigrate() *cobra.Command {
	cmd := &cobra.Command{Use: "migrate VEE", Short: "Move a VEE to another host", ValidArgsFunction: a.names(veeNames),
		Long: `Move a VEE to another host, or to a partner site, while it runs. With --cold it goes as it is,
stopped or suspended, with its disks and its saved memory; one that runs is shut down for it,
and boots where it has come to.`,
		Example: `  reservoir vee migrate web-1 --to h2 --wait
  reservoir vee migrate web-1 --to beta --cold --wait`}
	var in vmi.Migrate
	var bandwidth string
	var deadline time.Duration
	cmd.Flags().StringVar(&in.To, "to", "", "`HOST` or partner site to go to; without it the placement chooses a host here")
	cmd.Flags().StringVar(&bandwidth, "bandwidth", "", "at most so much per second, such as 50MiB")
	cmd.Flags().BoolVar(&in.Cold, "cold", false, "stopped or suspended; one that runs is shut down for it, and boots there")
	cmd.Flags().BoolVar(&in.AutoConverge, "auto-converge", false, "slow the guest down if it changes memory faster than it can be sent")
	cmd.Flags().DurationVar(&deadline, "deadline", 0, "cancel it when it has not come through by then")
	w := waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		if bandwidth != "" {
			var err error
			if in.Bandwidth, err = parseBandwidth(bandwidth); err != nil {
				return fault.New(fault.Malformed, "--bandwidth: %w", err)
			}
		}
		ids, err := r.findVEEs(ctx, args)
		if err != nil {
			return err
		}
		in.VEE, in.DeadlineMS = ids[0], deadline.Milliseconds()
		m, err := r.vmi.Migrate(ctx, in)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s  %s → %s\n", m.ID, m.From, m.To)
		if !w.wait {
			return nil
		}
		return a.awaitMigration(ctx, r, w, m.ID)
	})
	return cmd
}

// parseBandwidth reads a limit per second; "none" is 0.
func parseBandwidth(text string) (vee.Bytes, error) {
	if text == "none" {
		return 0, nil
	}
	return vee.ParseBytes(strings.TrimSuffix(text, "/s"))
}

// awaitMigration until it has ended, showing how it gets on.
func (a *app) awaitMigration(ctx context.Context, r *remote, w *waiting, id string) error {
	screen := newScreen(a.err)
	return w.until(ctx, "migration "+id, func(ctx context.Context) error {
		tick := time.NewTicker(migrationPoll)
		defer tick.Stop()
		for {
			m, err := r.vmi.GetMigration(ctx, id)
			if err != nil {
				return err
			}
			now := line{key: id, text: fmt.Sprintf("%s  %s → %s  %s  %s", m.Name, m.From, m.To, m.State, m.Stage), detail: howFar(m)}
			if m.State == vmi.MigrationDone {
				now.text, now.detail = now.text+"  "+now.detail, ""
			}
			screen.show([]line{now})
			switch m.State {
			case vmi.MigrationRunning:
			case vmi.MigrationDone:
				return nil
			default:
				e := fault.New(fault.Conflict, "VEE %s stays on host %s: %s", m.VEE, m.From, m.Error)
				if m.Code != "" {
					e.Code = fault.Code(m.Code)
				}
				return e.Try("reservoir event list --object vee/%s", m.VEE)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	})
}

// howFar a migration is, for people; of one that is done, what it took.
func howFar(m vmi.Migration) string {
	if m.State == vmi.MigrationDone {
		if m.Ended == nil {
			return ""
		}
		if m.Cold != "" {
			return fmt.Sprintf("%s went over %s in %s", m.Took.DiskBytes, m.Cold, m.Ended.Sub(m.Started).Round(time.Millisecond))
		}
		return fmt.Sprintf("%s of disks and %s of memory went over in %s; it stood still for %d ms",
			m.Took.DiskBytes, m.Took.MemoryBytes, m.Ended.Sub(m.Started).Round(time.Millisecond), m.DowntimeMS)
	}
	if m.Total == 0 {
		return ""
	}
	text := fmt.Sprintf("%s of %s left", m.Left, m.Total)
	if m.DirtyRate > 0 {
		text += fmt.Sprintf(", %s/s change", m.DirtyRate)
	}
	if m.DowntimeMS > 0 {
		text += fmt.Sprintf(", predicted to stand still for %d ms", m.DowntimeMS)
	}
	return text
}

// took is the time of each stage of a migration that is done.
func took(m vmi.Migration) string {
	switch {
	case m.State != vmi.MigrationDone:
		return ""
	case m.Cold != "":
		return fmt.Sprintf("prepare %d, disks %d ms", m.Took.PrepareMS, m.Took.DisksMS)
	}
	return fmt.Sprintf("prepare %d, disks %d, memory %d, still %d ms", m.Took.PrepareMS, m.Took.DisksMS, m.Took.MemoryMS, m.DowntimeMS)
}

func (a *app) migrationListing() listing[vmi.Migration] {
	return listing[vmi.Migration]{
		columns: []column[vmi.Migration]{
			{head: "ID", cell: func(m vmi.Migration) string { return m.ID }},
			{head: "VEE", cell: func(m vmi.Migration) string { return m.Name }},
			{head: "FROM", cell: func(m vmi.Migration) string { return m.From }},
			{head: "TO", cell: func(m vmi.Migration) string { return m.To }},
			{head: "STATE", cell: func(m vmi.Migration) string {
				if m.Cancelling && m.State == vmi.MigrationRunning {
					return "cancelling"
				}
				return string(m.State)
			}},
			{head: "STAGE", cell: func(m vmi.Migration) string { return string(m.Stage) }},
			{head: "PROGRESS", cell: howFar},
			{head: "AGE", cell: func(m vmi.Migration) string { return a.since(m.Started) }},
			{head: "VEE-ID", cell: func(m vmi.Migration) string { return string(m.VEE) }, wide: true},
			{head: "TOOK", cell: took, wide: true},
			{head: "LIMIT", cell: func(m vmi.Migration) string {
				if m.Bandwidth == 0 {
					return ""
				}
				return m.Bandwidth.String() + "/s"
			}, wide: true},
			{head: "ERROR", cell: func(m vmi.Migration) string { return m.Error }},
		},
		name: func(m vmi.Migration) string { return m.ID },
		none: "no migrations; begin one: reservoir vee migrate VEE --to HOST",
	}
}

func (a *app) veeMigrations() *cobra.Command {
	cmd := &cobra.Command{Use: "migrations", Short: "List migrations, the newest first"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		list, err := r.vmi.ListMigrations(ctx)
		if err != nil {
			return err
		}
		return a.migrationListing().print(a, *f, list)
	})
	return cmd
}

func (a *app) veeMigration() *cobra.Command {
	show := &cobra.Command{Use: "show ID", Short: "How far a migration is; by its identifier or its VEE's"}
	f := outputFlag(show)
	show.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		m, err := r.vmi.GetMigration(ctx, args[0])
		if err != nil {
			return err
		}
		return a.migrationListing().printOne(a, *f, m)
	})
	cancel := &cobra.Command{Use: "cancel ID", Short: "Undo a migration that has not come to its commit point"}
	cancel.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		m, err := r.vmi.CancelMigration(ctx, args[0])
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s  is being cancelled\n", m.ID)
		return nil
	})
	limit := &cobra.Command{Use: "limit ID BANDWIDTH", Short: "Limit what a migration takes per second, also while it is under way; none lifts the limit"}
	limit.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		bandwidth, err := parseBandwidth(args[1])
		if err != nil {
			return fault.New(fault.Malformed, "bandwidth: %w", err)
		}
		m, err := r.vmi.LimitMigration(ctx, args[0], bandwidth)
		if err != nil {
			return err
		}
		if m.Bandwidth == 0 {
			fmt.Fprintf(a.out, "%s  has no limit\n", m.ID)
		} else {
			fmt.Fprintf(a.out, "%s  takes at most %s/s\n", m.ID, m.Bandwidth)
		}
		return nil
	})
	return noun("migration", "One live migration: show, limit, cancel", show, limit, cancel)
}
