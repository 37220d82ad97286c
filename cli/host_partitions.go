package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// partition of hosts that relieve one of them, now or lately.
type partition struct {
	vhi.Partition
	Ended    time.Time `json:"ended,omitzero"`
	Helpless bool      `json:"helpless,omitempty"`
}

// partitionsOf the hosts, by when they began. What its leader says of one goes before what the
// others do.
func partitionsOf(hosts []vmi.Host, past bool) []partition {
	list := []partition{}
	for _, h := range hosts {
		if h.Peering == nil {
			continue
		}
		if in := h.Peering.In; in != nil {
			i := slices.IndexFunc(list, func(p partition) bool { return p.ID == in.ID })
			switch {
			case i < 0:
				list = append(list, partition{Partition: *in})
			case in.Leader == h.Name:
				list[i].Partition = *in
			}
		}
		if !past {
			continue
		}
		for _, p := range h.Peering.Past {
			list = append(list, partition{Partition: vhi.Partition{ID: p.ID, Reason: p.Reason, State: "over", Members: p.Members, Since: p.Began}, Ended: p.Ended, Helpless: p.Helpless})
		}
	}
	slices.SortStableFunc(list, func(a, b partition) int { return a.Since.Compare(b.Since) })
	return list
}

func (a *app) hostPartitions() *cobra.Command {
	cmd := &cobra.Command{Use: "partitions", Short: "List the hosts that relieve each other now, without the site",
		Example: "  reservoir host partitions --past\n  reservoir host partitions --watch"}
	f, watch := outputFlag(cmd), watchFlag(cmd)
	past := cmd.Flags().Bool("past", false, "those that are over, too: the last few of each host")
	l := listing[partition]{
		columns: []column[partition]{
			{head: "ID", cell: func(p partition) string { return p.ID }},
			{head: "REASON", cell: func(p partition) string { return p.Reason }},
			{head: "STATE", cell: func(p partition) string {
				if p.Helpless {
					return "found no way"
				}
				return p.State
			}},
			{head: "LEADER", cell: func(p partition) string { return p.Leader }},
			{head: "MEMBERS", cell: func(p partition) string { return strings.Join(p.Members, " ") }},
			{head: "BEGAN", cell: func(p partition) string { return a.since(p.Since) }},
			{head: "TOOK", cell: func(p partition) string {
				if p.Ended.IsZero() {
					return ""
				}
				return p.Ended.Sub(p.Since).Round(10 * time.Millisecond).String()
			}},
		},
		name: func(p partition) string { return p.ID },
		none: "no host is being relieved; what has been: reservoir host partitions --past",
	}
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		look := func(ctx context.Context) ([]partition, error) {
			hosts, err := r.vmi.ListHosts(ctx)
			return partitionsOf(hosts, *past), err
		}
		if *watch {
			return showWatch(ctx, a, l, *f, poll(look))
		}
		list, err := look(ctx)
		if err != nil {
			return err
		}
		return l.print(a, *f, list)
	})
	return cmd
}

// load that guests are to a host, and the trouble that it is in.
func load(h vmi.Host) string {
	if h.Peering == nil {
		return ""
	}
	text := fmt.Sprintf("%.0f%%", 100*h.Peering.Load)
	if h.Peering.Trouble != "" {
		text += " " + h.Peering.Trouble
	}
	return text
}

// together is the partition that a host is in.
func together(h vmi.Host) string {
	if h.Peering == nil || h.Peering.In == nil {
		return ""
	}
	return h.Peering.In.ID + " " + h.Peering.In.State
}

// doubts of a host about others.
func doubts(h vmi.Host) string {
	if h.Peering == nil {
		return ""
	}
	return strings.Join(h.Peering.Doubted, " ")
}
