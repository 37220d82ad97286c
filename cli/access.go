package cli

import (
	"cmp"
	"context"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/vmi"
)

// backing is one backend of an access point, or an access point that has none.
type backing struct {
	point   vmi.AccessPoint
	site    string // partner whose access point it is; empty: this one's
	why     string // it has none
	backend *vmi.Backend
}

func (b backing) of(cell func(vmi.Backend) string) string {
	if b.backend == nil {
		return ""
	}
	return cell(*b.backend)
}

func accessListing() listing[backing] {
	return listing[backing]{
		columns: []column[backing]{
			{head: "ACCESS", cell: func(b backing) string { return b.point.Name }},
			{head: "ADDRESS", cell: func(b backing) string { return b.point.Address }},
			{head: "SITE", cell: func(b backing) string { return b.site }},
			{head: "SPREAD", cell: func(b backing) string { return b.point.Algorithm }, wide: true},
			{head: "HEALTH", cell: func(b backing) string { return b.point.Health }, wide: true},
			{head: "BACKEND", cell: func(b backing) string { return b.of(func(k vmi.Backend) string { return k.Address }) }},
			{head: "VEE", cell: func(b backing) string { return b.of(func(k vmi.Backend) string { return string(k.VEE) }) }},
			{head: "STATE", cell: func(b backing) string { return b.of(backendState) }},
			{head: "CONNECTIONS", cell: func(b backing) string {
				return b.of(func(k vmi.Backend) string { return strconv.Itoa(k.Connections) })
			}},
			{head: "WHY", cell: func(b backing) string {
				return cmp.Or(b.why, b.of(func(k vmi.Backend) string { return k.Why }))
			}},
		},
		name: func(b backing) string { return b.point.Name },
		none: "the service has no public address: its components have no ports",
	}
}

// backings of an access point, at least one.
func backings(b backing, serving []vmi.Backend) (rows []backing) {
	for i := range serving {
		b.backend = &serving[i]
		rows = append(rows, b)
	}
	if rows == nil {
		rows = append(rows, b)
	}
	return rows
}

func backendState(k vmi.Backend) string {
	switch {
	case !k.Healthy:
		return "ill"
	case k.Draining:
		return "draining"
	}
	return "well"
}

func (a *app) serviceAccess(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "access NAME", Short: "Show a service's public addresses and who answers there", ValidArgsFunction: a.names(serviceNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		s, err := r.smi.Get(ctx, *customer, args[0])
		if err != nil {
			return err
		}
		points, err := r.vmi.ListAccessPoints(ctx, s.ID)
		if err != nil {
			return err
		}
		if slices.Contains([]format{"json", "yaml"}, *f) {
			return writeObject(a.out, *f, points)
		}
		var rows []backing
		for _, p := range points {
			rows = append(rows, backings(backing{point: p}, p.Serving)...)
			for _, e := range p.Elsewhere {
				p.Address = e.Address
				rows = append(rows, backings(backing{point: p, site: e.Site, why: e.Why}, e.Serving)...)
			}
		}
		return accessListing().print(a, *f, rows)
	})
	return cmd
}
