package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/smi"
)

func (a *app) serviceCmd() *cobra.Command {
	var customer string
	cmd := noun("service", "Deploy services, scale them, see how they are",
		a.serviceDeploy(&customer, false), a.serviceDeploy(&customer, true), a.servicePlan(&customer), a.serviceOffer(&customer), a.serviceOffers(&customer), a.serviceAccept(), a.serviceList(&customer),
		a.serviceShow(&customer), a.serviceAccess(&customer), a.serviceUsage(&customer), a.serviceSLA(&customer), a.serviceScale(&customer), a.serviceSleep(&customer), a.serviceWake(&customer), a.serviceRules(&customer), a.serviceManifest(&customer), a.serviceDelete(&customer))
	cmd.PersistentFlags().StringVar(&customer, "customer", "", "whose services (your own)")
	return cmd
}

func (a *app) serviceListing() listing[smi.Service] {
	return listing[smi.Service]{
		columns: []column[smi.Service]{
			{head: "NAME", cell: func(s smi.Service) string { return s.Name }},
			{head: "CUSTOMER", cell: func(s smi.Service) string { return s.Customer }, wide: true},
			{head: "PHASE", cell: func(s smi.Service) string { return string(s.Phase) }},
			{head: "READY", cell: readyOf},
			{head: "REVISION", cell: func(s smi.Service) string { return strconv.Itoa(s.Revision) }},
			{head: "AGE", cell: func(s smi.Service) string { return a.since(s.Created) }},
			{head: "URL", cell: func(s smi.Service) string {
				var urls []string
				for _, u := range s.URLs {
					urls = append(urls, u.URL)
				}
				return strings.Join(urls, " ")
			}},
			{head: "MESSAGE", cell: func(s smi.Service) string { return s.Message }, wide: true},
		},
		name: func(s smi.Service) string { return s.Name },
		none: "no services; deploy one: reservoir service deploy FILE",
	}
}

// readyOf a service: replicas that are, of those that should be.
func readyOf(s smi.Service) string {
	ready, desired := 0, 0
	for _, c := range s.Components {
		ready += c.Ready
		desired += c.Desired
	}
	return fmt.Sprintf("%d/%d", ready, desired)
}

func (a *app) serviceList(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List services"}
	f, watch := outputFlag(cmd), watchFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		if *watch {
			return showWatch(ctx, a, a.serviceListing(), *f, r.watchServices(*customer, ""))
		}
		list, err := r.smi.List(ctx, *customer)
		if err != nil {
			return err
		}
		return a.serviceListing().print(a, *f, list)
	})
	return cmd
}

// watchServices keeps the list of services, or of the one of that name, current.
func (r *remote) watchServices(customer, name string) func(context.Context, func([]smi.Service)) error {
	return func(ctx context.Context, send func([]smi.Service)) error {
		all := map[string]smi.Service{}
		return follow(ctx, func(ctx context.Context) (<-chan smi.Service, error) {
			clear(all)
			return r.smi.Watch(ctx, customer, name)
		}, func(s smi.Service) (bool, error) {
			all[s.Customer+"/"+s.Name] = s
			gone := deleted(s)
			if gone {
				delete(all, s.Customer+"/"+s.Name)
			}
			send(sorted(all))
			return gone && name != "", nil
		})
	}
}

// sorted are the values of m in the order of their keys.
func sorted[T any](m map[string]T) []T {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	list := make([]T, len(keys))
	for i, k := range keys {
		list[i] = m[k]
	}
	return list
}

// deleted: what smi.Manager.Watch says last of a service.
func deleted(s smi.Service) bool { return s.Phase == smi.Deleting && len(s.Components) == 0 }

func (a *app) serviceShow(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "show NAME", Short: "Show a service, its replicas and its URLs", ValidArgsFunction: a.names(serviceNames)}
	f, watch := outputFlag(cmd), watchFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		if !*watch {
			s, err := r.smi.Get(ctx, *customer, args[0])
			if err != nil {
				return err
			}
			return a.showService(*f, s)
		}
		if *f != "table" && *f != "wide" {
			return showWatch(ctx, a, a.serviceListing(), *f, r.watchServices(*customer, args[0]))
		}
		screen := newScreen(a.out)
		return r.watchServices(*customer, args[0])(ctx, func(list []smi.Service) {
			for _, s := range list {
				screen.show(serviceTree(s))
			}
		})
	})
	return cmd
}

// showService in full: what it is, its replicas, where it answers.
func (a *app) showService(f format, s smi.Service) error {
	if f != "table" && f != "wide" {
		return a.serviceListing().printOne(a, f, s)
	}
	for _, l := range serviceTree(s) {
		fmt.Fprintln(a.out, strings.TrimRight(l.text+"  "+l.detail, " "))
	}
	a.printf("\nrevision %d, customer %s, created %s ago, id %s\n", s.Revision, s.Customer, a.since(s.Created), s.ID)
	for _, u := range s.URLs {
		at := ""
		if u.Site != "" {
			at = " at site " + u.Site
		}
		a.printf("%s  (%s, %s%s)\n", u.URL, u.Component, count(u.Backends, "backend"), at)
	}
	for _, x := range s.Standbys {
		a.printf("standby %s: %s\n", x.Site, a.standbyWords(x))
	}
	if s.Undone != "" {
		a.printf("%s\n", oneLine(s.Undone))
	}
	for _, n := range s.NotInEffect {
		a.printf("not yet in effect: %s\n", oneLine(n))
	}
	return nil
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func (a *app) serviceDeploy(customer *string, replace bool) *cobra.Command {
	cmd := &cobra.Command{Use: "deploy FILE", Short: "Make a running service of a manifest",
		Long: `Make a running service of a manifest (YAML, OVF or .ova; "-" is stdin). Image files that
lie beside the manifest are pushed to the site first.`,
		Example: `  reservoir service deploy examples/web/web.yaml --wait`}
	if replace {
		cmd.Use, cmd.Short = "redeploy FILE", "Change a running service to what a manifest says"
		cmd.Long = `Change a running service to what a manifest says. Components that did not change keep
their VEEs.`
		cmd.Example = `  reservoir service redeploy web.yaml --wait`
	}
	var d smi.Deploy
	cmd.Flags().StringVar(&d.Name, "name", "", "name of the service (the manifest's)")
	reservation := cmd.Flags().String("reservation", "", "`ID` of a reservation that its VEEs are placed under (the manifest's)")
	cmd.Flags().BoolVar(&d.BestEffort, "best-effort", false, "where there is not enough room, wait for it")
	f, w := outputFlag(cmd), waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		p, err := a.readPackage(ctx, args[0])
		if err != nil {
			return err
		}
		defer p.Close()
		if *reservation != "" {
			if err := p.under(*reservation); err != nil {
				return err
			}
		}
		d.Customer, d.Replace, d.Manifest, d.File = *customer, replace, p.text, p.name
		if d.Images, err = a.pushFiles(ctx, r, p); err != nil {
			return err
		}
		s, err := r.smi.Deploy(ctx, d)
		if err != nil {
			return err
		}
		return a.settle(ctx, r, *f, w, s)
	})
	return cmd
}

// settle shows a changed service, after it has become as desired where that was asked for.
func (a *app) settle(ctx context.Context, r *remote, f format, w *waiting, s smi.Service) error {
	return a.settleAs(ctx, r, f, w, s, "ready", settled)
}

// settleAs is settle for a service that is to be what done says.
func (a *app) settleAs(ctx context.Context, r *remote, f format, w *waiting, s smi.Service, what string, done func(smi.Service) (bool, error)) error {
	if !w.wait {
		if err := a.serviceListing().printOne(a, f, s); err != nil {
			return err
		}
		fmt.Fprintf(a.err, "watch it: reservoir service show %s --watch\n", s.Name)
		return nil
	}
	screen := newScreen(a.err)
	revision := s.Revision
	err := w.until(ctx, fmt.Sprintf("service %s %s", s.Name, what), func(ctx context.Context) error {
		return follow(ctx, func(ctx context.Context) (<-chan smi.Service, error) {
			return r.smi.Watch(ctx, s.Customer, s.Name)
		}, func(now smi.Service) (bool, error) {
			if now.Version < s.Version {
				return false, nil
			}
			s = now
			screen.show(serviceTree(s))
			if s.Revision > revision && s.Undone != "" {
				return false, fault.New(fault.WrongState, "service %s: %s", s.Name, s.Undone).Try("reservoir event list --service %s", s.Name)
			}
			return done(s)
		})
	})
	if err != nil {
		return err
	}
	return a.serviceListing().printOne(a, f, s)
}

// settled reports whether s is as desired; the error says why it will never be by itself.
func settled(s smi.Service) (bool, error) {
	switch s.Phase {
	case smi.Failing:
		return false, fault.New(fault.WrongState, "service %s cannot become ready: %s", s.Name, s.Message).Try("reservoir event list --service %s", s.Name)
	case smi.Deleting:
		return false, fault.New(fault.WrongState, "service %s is being deleted", s.Name)
	}
	for _, c := range s.Components {
		if c.Ready != c.Desired || len(c.Replicas) != c.Desired {
			return false, nil
		}
	}
	return s.Phase == smi.Ready, nil
}

func (a *app) serviceScale(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "scale NAME COMPONENT N", Short: "Set the number of a component's replicas",
		Example: `  reservoir service scale web web 4 --wait`, ValidArgsFunction: a.names(serviceNames, componentNames)}
	f, w := outputFlag(cmd), waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		n, err := strconv.Atoi(args[2])
		if err != nil || n < 0 {
			return fault.New(fault.Malformed, "number of replicas %q: want 0 or more", args[2]).Try("reservoir service scale %s %s 2", args[0], args[1])
		}
		s, err := r.smi.Scale(ctx, *customer, args[0], args[1], n)
		if err != nil {
			return err
		}
		a.rulesGoOn(ctx, r, *customer, args[0], args[1])
		return a.settle(ctx, r, *f, w, s)
	})
	return cmd
}

func (a *app) serviceSleep(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "sleep NAME", Short: "Save all VEEs of a service to disk, all or none", ValidArgsFunction: a.names(serviceNames),
		Long: `Save all VEEs of a service to disk: they take no processor and no memory then, and keep
their addresses. When one cannot be saved, all of them go on.`}
	f, w := outputFlag(cmd), waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		s, err := r.smi.Sleep(ctx, *customer, args[0])
		if err != nil {
			return err
		}
		return a.settleAs(ctx, r, *f, w, s, "asleep", func(s smi.Service) (bool, error) { return s.Phase == smi.Sleeping, nil })
	})
	return cmd
}

func (a *app) serviceWake(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "wake NAME", Short: "Let a service that sleeps go on, as soon as there is room", ValidArgsFunction: a.names(serviceNames)}
	f, w := outputFlag(cmd), waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		s, err := r.smi.Wake(ctx, *customer, args[0])
		if err != nil {
			return err
		}
		return a.settle(ctx, r, *f, w, s)
	})
	return cmd
}

func (a *app) serviceManifest(customer *string) *cobra.Command {
	return &cobra.Command{Use: "manifest NAME", Short: "Print the manifest as it was handed in", ValidArgsFunction: a.names(serviceNames),
		RunE: a.onSite(func(ctx context.Context, r *remote, args []string) error {
			text, err := r.smi.Manifest(ctx, *customer, args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(a.out, text)
			return err
		})}
}

func (a *app) serviceDelete(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "delete NAME…", Aliases: []string{"rm"}, Short: "Delete services and everything they have", ValidArgsFunction: a.names(serviceNames)}
	w := waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		for _, name := range args {
			if err := r.smi.Delete(ctx, *customer, name); err != nil {
				return err
			}
		}
		if !w.wait {
			return nil
		}
		screen := newScreen(a.err)
		for _, name := range args {
			err := w.until(ctx, fmt.Sprintf("service %s deleted", name), func(ctx context.Context) error {
				return follow(ctx, func(ctx context.Context) (<-chan smi.Service, error) {
					return r.smi.Watch(ctx, *customer, name)
				}, func(s smi.Service) (bool, error) {
					screen.show(serviceTree(s))
					return deleted(s), nil
				})
			})
			if err != nil && !fault.Has(err, fault.NotFound) { // gone before we looked
				return err
			}
		}
		return nil
	})
	return cmd
}

func (a *app) servicePlan(customer *string) *cobra.Command {
	cmd := &cobra.Command{Use: "plan FILE", Short: "Show what deploying a manifest would do, and do nothing",
		Long: `Show what deploying a manifest would do, where and why, and do nothing. The exit code is
6 when there is not enough room.`}
	var d smi.Deploy
	cmd.Flags().StringVar(&d.Name, "name", "", "name of the service (the manifest's)")
	cmd.Flags().BoolVar(&d.Replace, "replace", false, "as a redeployment of the service that is there")
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		p, err := a.readPackage(ctx, args[0])
		if err != nil {
			return err
		}
		defer p.Close()
		d.Customer, d.Manifest, d.File = *customer, p.text, p.name
		if d.Images, err = p.digests(ctx); err != nil {
			return err
		}
		plan, err := r.smi.Plan(ctx, d)
		if err != nil {
			return err
		}
		if err := a.showPlan(*f, plan, p); err != nil {
			return err
		}
		if !plan.Feasible {
			return fault.New(fault.NoResources, "service %s cannot be deployed as it is", plan.Name)
		}
		return nil
	})
	return cmd
}

var planListing = listing[smi.PlanStep]{
	columns: []column[smi.PlanStep]{
		{head: "ORDER", cell: func(s smi.PlanStep) string {
			if s.Order == 0 {
				return ""
			}
			return strconv.Itoa(s.Order)
		}},
		{head: "ACTION", cell: func(s smi.PlanStep) string { return s.Action }},
		{head: "OBJECT", cell: func(s smi.PlanStep) string { return s.Object }},
		{head: "SIZE", cell: func(s smi.PlanStep) string { return s.Size }},
		{head: "WHERE", cell: func(s smi.PlanStep) string { return s.Where }},
		{head: "WHY", cell: func(s smi.PlanStep) string { return s.Why }},
	},
	name: func(s smi.PlanStep) string { return s.Object },
	none: "nothing would change",
}

func (a *app) showPlan(f format, plan smi.Plan, p *pkg) error {
	if f != "table" && f != "wide" {
		if f == "name" {
			return planListing.print(a, f, plan.Steps)
		}
		return writeObject(a.out, f, plan)
	}
	steps := make([]smi.PlanStep, 0, len(p.files)+len(plan.Steps))
	for _, file := range p.files {
		steps = append(steps, smi.PlanStep{Action: "push", Object: "image " + file.href, Size: file.size.String(), Why: "a file beside the manifest"})
	}
	if err := planListing.print(a, f, append(steps, plan.Steps...)); err != nil {
		return err
	}
	for _, w := range plan.Warnings {
		a.printf("warning: %s\n", oneLine(w))
	}
	for _, n := range plan.NotInEffect {
		a.printf("not yet in effect: %s\n", oneLine(n))
	}
	a.printf("total: %.4g vCPU, %s of memory, %s of disk; nothing was done\n", float64(plan.Total.MilliCPU)/1000, plan.Total.Memory, plan.Total.Disk)
	return nil
}

func serviceNames(ctx context.Context, r *remote, _ []string) ([]string, error) {
	list, err := r.smi.List(ctx, "")
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = s.Name + "\t" + string(s.Phase)
	}
	return names, err
}

func componentNames(ctx context.Context, r *remote, args []string) ([]string, error) {
	s, err := r.smi.Get(ctx, "", args[0])
	names := make([]string, len(s.Components))
	for i, c := range s.Components {
		names[i] = fmt.Sprintf("%s\t%d of %d ready", c.Name, c.Ready, c.Desired)
	}
	return names, err
}
