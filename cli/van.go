package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (a *app) vanCmd() *cobra.Command {
	return noun("van", "Virtual area networks: who is on them, and what hosts make of them", a.vanList(), a.vanShow(), a.vanTrace(), a.vanCapture())
}

func vanListing() listing[vmi.Network] {
	return listing[vmi.Network]{
		columns: []column[vmi.Network]{
			{head: "NAME", cell: func(n vmi.Network) string { return n.Name }},
			{head: "GROUP", cell: func(n vmi.Network) string { return n.GroupID }},
			{head: "CUSTOMER", cell: func(n vmi.Network) string { return n.Customer }, wide: true},
			{head: "KIND", cell: vanKind},
			{head: "SUBNETS", cell: func(n vmi.Network) string { return spaced(n.Subnets) }},
			{head: "GATEWAYS", cell: func(n vmi.Network) string { return spaced(n.Gateways) }, wide: true},
			{head: "MTU", cell: func(n vmi.Network) string { return strconv.Itoa(n.MTU) }},
			{head: "NICS", cell: func(n vmi.Network) string { return strconv.Itoa(n.NICs) }},
		},
		name: vanName,
		none: "there is no network", // the site has one at least
	}
}

// vanName is what other commands call a network.
func vanName(n vmi.Network) string {
	if n.GroupID == "" {
		return n.Name
	}
	return n.GroupID + "/" + n.Name
}

func vanKind(n vmi.Network) string {
	switch {
	case n.Public:
		return "public"
	case n.Leaving:
		return fmt.Sprintf("vni %d, leaving", n.VNI)
	}
	return fmt.Sprintf("vni %d", n.VNI)
}

func spaced[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, x := range list {
		words[i] = x.String()
	}
	return strings.Join(words, " ")
}

func (a *app) vanList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List networks: the site's own and those of services"}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		list, err := r.vmi.ListNetworks(ctx, "")
		if err != nil {
			return err
		}
		return vanListing().print(a, *f, list)
	})
	return cmd
}

// vans that there are, for completion.
func vans(ctx context.Context, r *remote, _ []string) (names []string, err error) {
	list, err := r.vmi.ListNetworks(ctx, "")
	for _, n := range list {
		names = append(names, vanName(n))
	}
	return names, err
}

func (a *app) vanShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show [SERVICE/]NETWORK", Short: "Show a network, its ports and its hosts; what their kernels hold of it",
		Example:           "  reservoir van show shop/back\n  reservoir van show back --plan",
		ValidArgsFunction: a.names(vans)}
	withPlan := cmd.Flags().Bool("plan", false, "what each host's kernel should hold, and what differs")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		group, name, err := r.findVAN(ctx, args[0])
		if err != nil {
			return err
		}
		if *withPlan {
			plans, err := r.vmi.NetworkPlan(ctx, group, name)
			if err != nil {
				return err
			}
			return a.showPlans(*f, plans)
		}
		view, err := r.vmi.GetNetwork(ctx, group, name)
		if err != nil {
			return err
		}
		return a.showVAN(*f, view)
	})
	return cmd
}

// findVAN that a person calls by its name, with the service or the group before it where
// there are several.
func (r *remote) findVAN(ctx context.Context, text string) (group, name string, err error) {
	list, err := r.vmi.ListNetworks(ctx, "")
	if err != nil {
		return "", "", err
	}
	if i := strings.LastIndexByte(text, '/'); i >= 0 {
		group, name = text[:i], text[i+1:]
		if !slices.ContainsFunc(list, func(n vmi.Network) bool { return n.GroupID == group }) {
			s, err := r.smi.Get(ctx, "", group)
			if err != nil {
				return "", "", err
			}
			group = s.ID
		}
		return group, name, nil
	}
	var found []string
	for _, n := range list {
		if n.Name == text {
			found = append(found, vanName(n))
			group = n.GroupID
		}
	}
	switch len(found) {
	case 0:
		return "", "", fault.New(fault.NotFound, "there is no network %q", text).Try("reservoir van list")
	case 1:
		return group, text, nil
	}
	return "", "", fault.New(fault.Malformed, "there are %d networks %q: %s", len(found), text, strings.Join(found, ", ")).Try("name its service: reservoir van show SERVICE/%s", text)
}

func (a *app) showVAN(f format, v vmi.NetworkView) error {
	if f == "json" || f == "yaml" {
		return writeObject(a.out, f, v)
	}
	if err := vanListing().print(a, f, []vmi.Network{v.Network}); err != nil || f == "name" {
		return err
	}
	if len(v.Ports) == 0 {
		fmt.Fprintln(a.err, "no VEE is on it")
		return nil
	}
	fmt.Fprintln(a.out)
	ports := listing[plan.Port]{columns: []column[plan.Port]{
		{head: "VEE", cell: func(p plan.Port) string { return string(p.VEE) }},
		{head: "NIC", cell: func(p plan.Port) string { return strconv.Itoa(p.NIC) }},
		{head: "MAC", cell: func(p plan.Port) string { return p.MAC }},
		{head: "ADDRESSES", cell: func(p plan.Port) string { return spaced(p.Addresses) }},
		{head: "HOST", cell: func(p plan.Port) string { return p.Host }},
		{head: "UNDERLAY", cell: func(p plan.Port) string {
			if p.Underlay == (netip.Addr{}) {
				return ""
			}
			return p.Underlay.String()
		}, wide: true},
		{head: "NAMES", cell: func(p plan.Port) string { return strings.Join(p.Names, " ") }},
		{head: "RULES", cell: func(p plan.Port) string { return strconv.Itoa(len(p.Firewall)) }},
	}}
	if err := ports.print(a, f, v.Ports); err != nil {
		return err
	}
	if v.Domain != "" {
		fmt.Fprintf(a.out, "\nnames are below %s\n", v.Domain)
	}
	return nil
}

// showPlans of hosts, as a difference is shown: "+" is missing, "-" is there and should not.
func (a *app) showPlans(f format, plans []vhi.NetworkPlan) error {
	if f == "json" || f == "yaml" {
		return writeObject(a.out, f, plans)
	}
	if len(plans) == 0 {
		fmt.Fprintln(a.err, "no host has anything of it")
	}
	for i, p := range plans {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		if p.Error != "" {
			fmt.Fprintf(a.out, "host %s: %s\n", p.Host, p.Error)
			continue
		}
		state := "as it should be"
		if n := len(p.Missing) + len(p.Surplus); n > 0 {
			state = fmt.Sprintf("%d missing, %d too many", len(p.Missing), len(p.Surplus))
		}
		entries := fmt.Sprintf("%d entries", len(p.Entries))
		if len(p.Entries) == 1 {
			entries = "1 entry"
		}
		fmt.Fprintf(a.out, "host %s: %s, %s\n", p.Host, entries, state)
		for _, e := range p.Entries {
			mark := " "
			if slices.Contains(p.Missing, e) {
				mark = "+"
			}
			fmt.Fprintf(a.out, "  %s %s\n", mark, e)
		}
		for _, e := range p.Surplus {
			fmt.Fprintf(a.out, "  - %s\n", e)
		}
	}
	return nil
}
