package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (a *app) veeCmd() *cobra.Command {
	return noun("vee", "Virtual execution environments: look, pause, suspend, console",
		a.veeList(), a.veeShow(), a.veeWhy(),
		a.veeAction("activate", vee.Activate, vee.Active, "Start a stopped VEE, or let a paused or suspended one go on", "resume"),
		a.veeAction("pause", vee.Pause, vee.Paused, "Stop the vCPUs, keep the memory"),
		a.veeAction("suspend", vee.Suspend, vee.Suspended, "Save the memory to disk and free the host"),
		a.veeAction("shutdown", vee.Shutdown, vee.Defined, "Shut down, keep the disks"),
		a.veeAction("destroy", vee.Destroy, vee.Destroyed, "End a VEE and delete its disks"),
		a.veeConsole(), a.veeSSH(), a.veePortForward(), a.veeTell(), a.veeUpdate(), a.veeDisk(), a.veeSnapshot(),
		a.veeMigrate(), a.veeMigrations(), a.veeMigration(), a.veeClaim())
}

func (a *app) veeListing() listing[vmi.VEE] {
	return listing[vmi.VEE]{
		columns: []column[vmi.VEE]{
			{head: "ID", cell: func(v vmi.VEE) string { return string(v.ID) }},
			{head: "NAME", cell: func(v vmi.VEE) string { return v.Descriptor.Name }},
			{head: "STATE", cell: func(v vmi.VEE) string {
				if v.Target != v.State && v.Target != "" {
					return string(v.State) + "→" + string(v.Target)
				}
				return string(v.State)
			}},
			{head: "PHASE", cell: func(v vmi.VEE) string { return string(v.Phase) }},
			{head: "READY", cell: func(v vmi.VEE) string { return yes(v.GuestReady) }},
			{head: "HOST", cell: func(v vmi.VEE) string { return v.Host }},
			{head: "ADDRESS", cell: addressOf},
			{head: "AGE", cell: func(v vmi.VEE) string { return a.since(v.Created) }},
			{head: "CUSTOMER", cell: func(v vmi.VEE) string { return v.Descriptor.Customer }, wide: true},
			{head: "VCPUS", cell: func(v vmi.VEE) string { return strconv.Itoa(v.Descriptor.VCPUs) }, wide: true},
			{head: "MEMORY", cell: func(v vmi.VEE) string { return v.Descriptor.Memory.String() }, wide: true},
			{head: "DISK", cell: func(v vmi.VEE) string { return v.DiskUsed.String() }, wide: true},
			{head: "QUEUE", cell: func(v vmi.VEE) string {
				if v.Queue == 0 {
					return ""
				}
				return strconv.Itoa(v.Queue)
			}, wide: true},
			{head: "RESTARTS", cell: func(v vmi.VEE) string { return strconv.Itoa(v.Restarts) }, wide: true},
			{head: "SITE", cell: func(v vmi.VEE) string { return v.Site }, wide: true},
			{head: "EPOCH", cell: func(v vmi.VEE) string { return v.Epoch.String() }, wide: true},
			{head: "ERROR", cell: func(v vmi.VEE) string { return v.Error }, wide: true},
		},
		name: func(v vmi.VEE) string { return string(v.ID) },
		none: "no VEEs; a service brings them: reservoir service deploy FILE",
	}
}

func addressOf(v vmi.VEE) string {
	var list []string
	for _, n := range v.Descriptor.NICs {
		if n.Address != "" {
			list = append(list, bare(n.Address))
		}
	}
	return strings.Join(list, " ")
}

func (a *app) veeList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List VEEs"}
	var q vmi.Filter
	var state string
	cmd.Flags().StringVar(&q.Customer, "customer", "", "only those of this customer")
	cmd.Flags().StringVar(&q.Host, "host", "", "only those on this host")
	cmd.Flags().StringVar(&state, "state", "", "only those in this state: ACTIVE, PAUSED, …")
	cmd.Flags().BoolVar(&q.Destroyed, "destroyed", false, "destroyed ones too, while they are remembered")
	f, watch := outputFlag(cmd), watchFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, _ []string) error {
		q.State = vee.State(strings.ToUpper(state))
		if *watch {
			return showWatch(ctx, a, a.veeListing(), *f, r.watchVEEs(q))
		}
		list, err := r.vmi.ListVEEs(ctx, q)
		if err != nil {
			return err
		}
		return a.veeListing().print(a, *f, list)
	})
	return cmd
}

// watchVEEs keeps the list of VEEs that pass q current.
func (r *remote) watchVEEs(q vmi.Filter) func(context.Context, func([]vmi.VEE)) error {
	return func(ctx context.Context, send func([]vmi.VEE)) error {
		all, synced := map[string]vmi.VEE{}, false
		return follow(ctx, func(ctx context.Context) (<-chan vmi.Change, error) {
			clear(all)
			synced = false
			return r.vmi.WatchVEEs(ctx, q)
		}, func(c vmi.Change) (bool, error) {
			switch {
			case c.VEE != nil && (c.VEE.State != vee.Destroyed || q.Destroyed):
				all[string(c.VEE.ID)] = *c.VEE
			case c.VEE != nil:
				delete(all, string(c.VEE.ID))
			case c.Purged != "":
				delete(all, string(c.Purged))
			}
			if synced = synced || c.Synced; synced {
				send(sorted(all))
			}
			return false, nil
		})
	}
}

func (a *app) veeShow() *cobra.Command {
	cmd := &cobra.Command{Use: "show VEE", Short: "Show one VEE: by identifier, its second part, or name", ValidArgsFunction: a.names(veeNames)}
	f := outputFlag(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		ids, err := r.findVEEs(ctx, args)
		if err != nil {
			return err
		}
		v, err := r.vmi.GetVEE(ctx, ids[0])
		if err != nil {
			return err
		}
		if *f == "table" || *f == "wide" {
			return a.describeVEE(v)
		}
		return a.veeListing().printOne(a, *f, v)
	})
	return cmd
}

// describeVEE says everything that people ask of one VEE, a fact a line.
func (a *app) describeVEE(v vmi.VEE) error {
	facts := []struct{ what, is string }{
		{"id", string(v.ID)},
		{"name", v.Descriptor.Name},
		{"customer", v.Descriptor.Customer},
		{"state", string(v.State)},
		{"wanted", string(v.Target)},
		{"phase", string(v.Phase) + "  " + progress(v.Progress)},
		{"error", oneLine(v.Error)},
		{"host", v.Host},
		{"site", v.Site},
		{"guest", guestWord(v)},
		{"size", sizeOf(v.Descriptor)},
		{"at next boot", strings.Join(v.NextBoot, "; ")},
	}
	if k := v.Checkpoint; k != nil {
		facts = append(facts, struct{ what, is string }{"checkpoint", fmt.Sprintf("%d, %s ago, %s", k.N, a.since(k.At), k.Size)})
	}
	if v.Queue > 0 {
		facts = append(facts, struct{ what, is string }{"in the queue", fmt.Sprintf("place %d of those that wait for room", v.Queue)})
	}
	add := func(what, is string) { facts = append(facts, struct{ what, is string }{what, is}) }
	for _, d := range v.Descriptor.Disks {
		source := d.Source
		if d.Image != "" {
			source = strings.TrimSpace(source + " " + short(d.Image))
		}
		add("disk "+d.Name, strings.TrimSpace(d.Size.String()+"  "+source))
	}
	for _, n := range v.Descriptor.NICs {
		add("nic "+n.Network, strings.TrimSpace(n.Address+"  "+n.MAC))
	}
	add("tags", strings.Join(v.Descriptor.Tags, " "))
	add("restarts", strconv.Itoa(v.Restarts))
	add("epoch", v.Epoch.String())
	add("created", a.since(v.Created)+" ago")
	add("changed", a.since(v.Changed)+" ago")
	if v.ReservedUntil != nil {
		add("reserved until", v.ReservedUntil.Format(time.TimeOnly))
	}
	for _, x := range facts {
		if is := strings.TrimSpace(x.is); is != "" {
			fmt.Fprintf(a.out, "%-14s  %s\n", x.what, is)
		}
	}
	timeline(a.out, v.History, a.now())
	return nil
}

// sizeOf a VEE, with how far it can be raised while it runs.
func sizeOf(d vee.Descriptor) string {
	size := fmt.Sprintf("%s, %s of memory", count(d.VCPUs, "vCPU"), d.Memory)
	var most []string
	if d.VCPUsMax > d.VCPUs {
		most = append(most, count(d.VCPUsMax, "vCPU"))
	}
	if d.MemoryMax > d.Memory {
		most = append(most, d.MemoryMax.String())
	}
	if len(most) > 0 {
		size += " (up to " + strings.Join(most, ", ") + ")"
	}
	return size
}

func guestWord(v vmi.VEE) string {
	switch {
	case v.GuestReady:
		return "ready"
	case v.GuestFailure != "":
		return "its first boot failed: " + oneLine(v.GuestFailure)
	case v.GuestSeen:
		return "its agent answers, not ready yet"
	case v.State == vee.Active:
		return "no word from it yet"
	}
	return ""
}

// veeAction is UpdateState on any number of VEEs.
func (a *app) veeAction(verb string, action vee.Action, to vee.State, shortHelp string, aliases ...string) *cobra.Command {
	cmd := &cobra.Command{Use: verb + " VEE…", Aliases: aliases, Short: shortHelp, ValidArgsFunction: a.names(veeNames)}
	w := waitFlags(cmd)
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		ids, err := r.findVEEs(ctx, args)
		if err != nil {
			return err
		}
		out, err := r.vmi.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: ids}, Action: action})
		if err != nil {
			return err
		}
		var failed *fault.Error
		for _, o := range out {
			if o.OK {
				fmt.Fprintf(a.out, "%s  %s\n", o.ID, oneLine(o.Detail))
				continue
			}
			ids = slices.DeleteFunc(ids, func(id vee.ID) bool { return id == o.ID })
			message := fmt.Sprintf("%s VEE %s: %s", verb, o.ID, o.Detail)
			if failed == nil { // the first one decides on the exit code
				failed = &fault.Error{Code: fault.Code(o.Code), Message: message, Next: "reservoir vee show " + string(o.ID)}
			} else {
				failed.Message += "\n" + message
			}
		}
		if w.wait && len(ids) > 0 {
			if err := a.awaitVEEs(ctx, r, w, ids, to); err != nil {
				return err
			}
		}
		if failed != nil {
			return failed
		}
		return nil
	})
	return cmd
}

// awaitVEEs until each is in a state, and show how they get on.
func (a *app) awaitVEEs(ctx context.Context, r *remote, w *waiting, ids []vee.ID, to vee.State) error {
	screen := newScreen(a.err)
	seen := map[vee.ID]vmi.VEE{}
	return w.until(ctx, fmt.Sprintf("%s %s", count(len(ids), "VEE"), to), func(ctx context.Context) error {
		return follow(ctx, func(ctx context.Context) (<-chan vmi.Change, error) {
			return r.vmi.WatchVEEs(ctx, vmi.Filter{Destroyed: true})
		}, func(c vmi.Change) (bool, error) {
			if c.VEE != nil && slices.Contains(ids, c.VEE.ID) {
				seen[c.VEE.ID] = *c.VEE
			}
			if c.Purged != "" && slices.Contains(ids, c.Purged) {
				seen[c.Purged] = vmi.VEE{ID: c.Purged, State: vee.Destroyed, Phase: vee.PhaseDone}
			}
			if !c.Synced && len(seen) < len(ids) {
				return false, nil
			}
			reached := 0
			var lines []line
			for _, id := range ids {
				v, ok := seen[id]
				if !ok {
					v = vmi.VEE{ID: id, State: vee.Destroyed, Phase: vee.PhaseDone} // its record is gone already
				}
				if v.State == to {
					reached++
				}
				lines = append(lines, line{key: string(id), text: strings.TrimSpace(fmt.Sprintf("%s  %s  %s  %s", id, v.State, v.Phase, oneLine(v.Error))), detail: progress(v.Progress)})
			}
			screen.show(lines)
			return reached == len(ids), nil
		})
	})
}

// findVEEs turns what people write into identifiers: "alpha.k3v9q2m7xd", "k3v9q2m7xd", or
// the name "web-1" where only one VEE has it.
func (r *remote) findVEEs(ctx context.Context, args []string) ([]vee.ID, error) {
	ids := make([]vee.ID, 0, len(args))
	var all []vmi.VEE
	for _, arg := range args {
		if id, err := vee.ParseID(arg); err == nil {
			ids = append(ids, id)
			continue
		}
		if all == nil {
			var err error
			if all, err = r.vmi.ListVEEs(ctx, vmi.Filter{}); err != nil {
				return nil, err
			}
		}
		var found []vee.ID
		for _, v := range all {
			if v.ID.Short() == arg || v.Descriptor.Name == arg {
				found = append(found, v.ID)
			}
		}
		switch len(found) {
		case 0:
			return nil, fault.New(fault.NotFound, "there is no VEE %q", arg).Try("reservoir vee list")
		case 1:
			ids = append(ids, found[0])
		default:
			return nil, fault.New(fault.Malformed, "%q may be any of %v: want an identifier", arg, found).Try("reservoir vee list -o wide")
		}
	}
	return ids, nil
}

func veeNames(ctx context.Context, r *remote, _ []string) ([]string, error) {
	list, err := r.vmi.ListVEEs(ctx, vmi.Filter{})
	names := make([]string, len(list))
	for i, v := range list {
		names[i] = fmt.Sprintf("%s\t%s %s on %s", v.ID, v.Descriptor.Name, v.State, v.Host)
	}
	return names, err
}

// escape ends a console: Ctrl-].
const escape = 0x1d

func (a *app) veeConsole() *cobra.Command {
	return &cobra.Command{Use: "console VEE", Short: "Attach to the serial console (Ctrl-] to leave)", ValidArgsFunction: a.names(veeNames),
		RunE: a.onSite(func(ctx context.Context, r *remote, args []string) error {
			ids, err := r.findVEEs(ctx, args)
			if err != nil {
				return err
			}
			conn, err := r.vmi.Console(ctx, ids[0])
			if err != nil {
				return err
			}
			defer conn.Close()
			fmt.Fprintf(a.err, "console of %s; Ctrl-] to leave\n", ids[0])
			if f, ok := a.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				old, err := term.MakeRaw(int(f.Fd()))
				if err != nil {
					return fmt.Errorf("console: set the terminal to raw mode: %w", err)
				}
				defer func() { _ = term.Restore(int(f.Fd()), old); fmt.Fprintln(a.err) }()
			}
			return attach(ctx, conn, a.in, a.out)
		})}
}

// attach joins a console to in and out until the console ends, ctx does, or in has the
// escape character. The end of in alone does not end it, so that `vee console X </dev/null`
// shows the output. The goroutine that reads in cannot be woken; the process ends after.
func attach(ctx context.Context, conn io.ReadWriteCloser, in io.Reader, out io.Writer) error {
	ended := make(chan error, 2)
	go func() {
		buf := make([]byte, 1024)
		for {
			n, err := in.Read(buf)
			left := slices.Index(buf[:n], escape)
			if left >= 0 {
				n = left
			}
			if n > 0 {
				if _, err := conn.Write(buf[:n]); err != nil {
					ended <- fmt.Errorf("console: %w", err)
					return
				}
			}
			if left >= 0 {
				ended <- nil
				return
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		_, err := io.Copy(out, conn)
		if err != nil && !errors.Is(err, io.EOF) {
			err = fault.New(fault.Unavailable, "console: the connection was lost: %w", err)
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *app) veeTell() *cobra.Command {
	cmd := &cobra.Command{Use: "tell VEE COMMAND [KEY=VALUE…]", Short: "Tell the agent in the guest to do something",
		Long: `Tell the agent in the guest to do something:

  burn-cpu amount=CORES seconds=S      keep CPUs busy
  burn-memory amount=SIZE seconds=S    keep memory filled
  kpi name=NAME amount=VALUE           publish a measurement
  ready amount=0|1                     say that the service answers, or not
  shutdown                             shut the guest down`,
		Example:           "  reservoir vee tell web-1 burn-cpu amount=1 seconds=30",
		ValidArgsFunction: a.names(veeNames, func(context.Context, *remote, []string) ([]string, error) { return guestCommands, nil })}
	cmd.RunE = a.onSite(func(ctx context.Context, r *remote, args []string) error {
		c, err := guestCommand(args[1], args[2:])
		if err != nil {
			return err
		}
		ids, err := r.findVEEs(ctx, args[:1])
		if err != nil {
			return err
		}
		reply, err := r.vmi.Tell(ctx, ids[0], c)
		if err != nil {
			return err
		}
		if !reply.OK {
			return fault.New(fault.WrongState, "the guest of %s refuses %q: %s", ids[0], c.Type, reply.Error).Try("reservoir vee console %s", ids[0])
		}
		return nil
	})
	return cmd
}

var guestCommands = []string{"burn-cpu", "burn-memory", "kpi", "ready", "shutdown"}

func guestCommand(kind string, pairs []string) (guest.Command, error) {
	c := guest.Command{Type: kind}
	for _, p := range pairs {
		key, value, err := splitPair(p)
		if err != nil {
			return c, err
		}
		switch key {
		case "name":
			c.Name = value
		case "amount":
			c.Amount, err = amount(value)
		case "seconds":
			c.Seconds, err = strconv.ParseFloat(value, 64)
		default:
			err = errors.New("want name, amount or seconds")
		}
		if err != nil {
			return c, fault.New(fault.Malformed, "tell %s: %s: %w", kind, p, err).Try("reservoir vee tell --help")
		}
	}
	return c, nil
}

// amount is a number, or a size in bytes.
func amount(s string) (float64, error) {
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		return f, nil
	}
	b, err := vee.ParseBytes(s)
	return float64(b), err
}
