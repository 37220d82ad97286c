package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/reservoir-cloud/reservoir/cli/doctor"
	"github.com/reservoir-cloud/reservoir/dev"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/vee"
)

func (a *app) devCmd() *cobra.Command {
	cmd := noun("dev", "A whole federation on this machine, for trying out", nil...)
	dir := cmd.PersistentFlags().String("dir", "/var/lib/reservoir-dev", "`DIRECTORY` of all state and logs")
	cmd.AddCommand(a.devUp(dir), a.devStatus(dir), a.devDown(dir))
	return cmd
}

func (a *app) devUp(dir *string) *cobra.Command {
	cmd := &cobra.Command{Use: "up", Short: "Bring up sites and hosts, each in a network namespace",
		Long: `Bring up sites and hosts on this machine, each a process in its own network namespace,
and contexts to speak to them (dev-alpha, dev-beta, …). In the foreground, Ctrl-C takes
everything away again; with --detach, "reservoir dev down" does.`,
		Example: `  reservoir dev up --detach
  reservoir dev up --sites 2 --hosts 2`}
	var c dev.Config
	var detach, keep bool
	var haScale float64
	var placement, memory, disk string
	fl := cmd.Flags()
	fl.IntVar(&c.Sites, "sites", 1, "number of sites")
	fl.IntVar(&c.Hosts, "hosts", 3, "number of hosts of each site")
	fl.IntVar(&c.Control, "control", 1, "number of machines that are each site's control plane: 1, or 3 to lose one")
	fl.BoolVar(&detach, "detach", false, "go on in the background once everything is up")
	fl.BoolVar(&keep, "keep", false, "keep state and logs after Ctrl-C")
	fl.StringVar(&c.Hypervisor, "hypervisor", "qemu", "driver of the hosts: qemu, libvirt (a libvirtd for each) or sim")
	fl.StringVar(&memory, "memory", "", "memory that each host offers (a share of what is free)")
	fl.StringVar(&disk, "disk", "", "disk that each host offers (a share of what is free)")
	fl.Float64Var(&haScale, "ha-scale", 1, "scale every timing of the sites by this")
	accounting := fl.Duration("accounting-interval", 5*time.Minute, "how often VEEs tell what they have used")
	fl.StringVar(&placement, "placement", "balance", "balance or pack")
	overload := fl.Float64("overload", 0, "`PART` of the CPUs above which hosts relieve each other; as they share this machine's, that is to look at (never)")
	overloadFor := fl.Duration("overload-for", time.Minute, "how long it must last")
	fl.StringVar(&c.Prefix, "prefix", "rsv", "of the namespaces' names")
	fl.IntVar(&c.Subnet, "subnet", 80, "site i has the network 10.(subnet+i).0.0/16")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if c.Dir, err = filepath.Abs(*dir); err != nil {
			return fileFault(err)
		}
		if c.Binary, err = os.Executable(); err != nil {
			return fmt.Errorf("find this binary: %w", err)
		}
		if c.Memory, c.Disk, err = share(c, memory, disk); err != nil {
			return err
		}
		scale := []string{"--ha-scale", strconv.FormatFloat(haScale, 'g', -1, 64)}
		c.SiteArgs, c.HostArgs = append([]string{"--placement", placement, "--accounting-interval", accounting.String(),
			"--overload", fmt.Sprint(*overload), "--overload-calm", fmt.Sprint(*overload * 5 / 6), "--overload-for", overloadFor.String()}, scale...), scale
		c.GuardArgs, c.ProxyArgs = scale, scale
		if detach {
			return a.detachDev(cmd, c)
		}
		err = dev.Up(cmd.Context(), c, devClient{}, func(format string, args ...any) { fmt.Fprintf(a.err, format+"\n", args...) })
		if err != nil || keep { // after a failure the logs are what one wants
			return err
		}
		return errors.Join(dropDevContexts(c), dev.Down(context.WithoutCancel(cmd.Context()), c, false))
	}
	return cmd
}

// share of this machine for each host, where the user names none.
func share(c dev.Config, memory, disk string) (m, d vee.Bytes, err error) {
	hosts := vee.Bytes(max(1, c.Sites*c.Hosts))
	for _, x := range []struct {
		text string
		to   *vee.Bytes
		free func() (vee.Bytes, error)
	}{
		{memory, &m, doctor.MemoryFree}, {disk, &d, func() (vee.Bytes, error) { return doctor.DiskFree(c.Dir) }},
	} {
		if x.text != "" {
			if *x.to, err = vee.ParseBytes(x.text); err != nil {
				return 0, 0, fault.New(fault.Malformed, "%w", err)
			}
			continue
		}
		free, err := x.free()
		if err != nil {
			return 0, 0, err
		}
		*x.to = free * 4 / 5 / hosts / vee.MiB * vee.MiB
	}
	return m, d, nil
}

// detachDev starts the same command in a session of its own, shows what it says until
// everything is up, and leaves it running.
func (a *app) detachDev(cmd *cobra.Command, c dev.Config) error {
	if was, err := dev.Load(c.Dir); err == nil && dev.Running(was) {
		if was.Sites != c.Sites || was.Hosts != c.Hosts || was.Hypervisor != c.Hypervisor || max(1, was.Control) != c.Control {
			return fault.New(fault.Exists, "a federation of %s and %s each is up in %s", count(was.Sites, "site"), count(was.Hosts, "host"), c.Dir).
				Try("reservoir dev down --dir %s", c.Dir)
		}
		fmt.Fprintf(a.err, "it is up already; see: reservoir dev status --dir %s\n", c.Dir)
		return nil
	}
	args := []string{"dev", "up", "--keep", "--dir", c.Dir}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name != "detach" && f.Name != "dir" && f.Name != "keep" {
			args = append(args, "--"+f.Name+"="+f.Value.String())
		}
	})
	if err := os.MkdirAll(filepath.Join(c.Dir, "log"), 0o755); err != nil {
		return fileFault(err)
	}
	path := filepath.Join(c.Dir, "log", "dev.log")
	log, err := os.Create(path)
	if err != nil {
		return fileFault(err)
	}
	defer log.Close()
	child := exec.Command(c.Binary, args...) //nolint:noctx // it is to outlive this process
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	said, err := os.Open(path)
	if err != nil {
		return fileFault(err)
	}
	defer said.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := io.Copy(a.err, said); err != nil {
				return fmt.Errorf("read %s: %w", path, err)
			}
			if dev.Ready(c, child.Process.Pid) {
				_, err := io.Copy(a.err, said)
				return err
			}
		case err := <-ended:
			_, _ = io.Copy(a.err, said)
			return fault.New(fault.Internal, "the federation did not come up: %v", err).Try("look into %s", filepath.Join(c.Dir, "log"))
		case <-cmd.Context().Done():
			_ = child.Process.Signal(syscall.SIGTERM)
			return errors.Join(cmd.Context().Err(), <-ended, dropDevContexts(c))
		}
	}
}

func (a *app) devDown(dir *string) *cobra.Command {
	cmd := &cobra.Command{Use: "down", Short: "Take everything away again: processes, guests, network, state"}
	keep := cmd.Flags().Bool("keep", false, "keep state and logs")
	prefix := cmd.Flags().String("prefix", "rsv", "where no configuration is left: of the namespaces' names")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := loadDev(*dir)
		if fault.Has(err, fault.NotFound) { // a crash may have left the rest
			c.Prefix, err = *prefix, nil
			c.Sites = len(dev.SiteNames(99))
		}
		if err != nil {
			return err
		}
		return errors.Join(dev.Down(cmd.Context(), c, *keep), dropDevContexts(c))
	}
	return cmd
}

// loadDev is the federation in dir; its Dir is set even when there is none.
func loadDev(dir string) (dev.Config, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return dev.Config{}, fileFault(err)
	}
	c, err := dev.Load(abs)
	c.Dir = abs
	return c, err
}

func (a *app) devStatus(dir *string) *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show the processes: pids, namespaces, addresses, memory"}
	f, watch := outputFlag(cmd), watchFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := loadDev(*dir)
		if err != nil {
			return err
		}
		if *watch {
			return showWatch(cmd.Context(), a, a.processListing(), *f, poll(func(context.Context) ([]dev.Process, error) { return dev.Status(c) }))
		}
		list, err := dev.Status(c)
		if err != nil {
			return err
		}
		return a.processListing().print(a, *f, list)
	}
	return cmd
}

func (a *app) processListing() listing[dev.Process] {
	return listing[dev.Process]{
		columns: []column[dev.Process]{
			{head: "NAME", cell: func(p dev.Process) string { return p.Name }},
			{head: "KIND", cell: func(p dev.Process) string { return p.Kind }},
			{head: "PID", cell: func(p dev.Process) string {
				if !p.Alive {
					return "down"
				}
				return strconv.Itoa(p.Pid)
			}},
			{head: "NAMESPACE", cell: func(p dev.Process) string { return p.Netns }},
			{head: "ADDRESS", cell: func(p dev.Process) string { return p.Address }},
			{head: "RSS", cell: func(p dev.Process) string { return size(p.RSS) }},
			{head: "GUESTS", cell: func(p dev.Process) string {
				if p.Kind != "host" {
					return ""
				}
				return fmt.Sprintf("%d, %s", p.Guests, size(p.GuestRSS))
			}},
			{head: "RESTARTS", cell: func(p dev.Process) string { return strconv.Itoa(p.Restarts) }},
			{head: "UP", cell: func(p dev.Process) string {
				if !p.Alive {
					return ""
				}
				return a.since(p.Started)
			}},
			{head: "LOG", cell: func(p dev.Process) string { return p.Log }, wide: true},
		},
		name: func(p dev.Process) string { return p.Name },
	}
}

// size in whole MiB: a measurement, not an exact amount.
func size(b vee.Bytes) string { return fmt.Sprintf("%dMiB", (b+vee.MiB/2)/vee.MiB) }

// devClient speaks to the sites of a federation that comes up, and keeps the contexts.
type devClient struct{}

func devContext(s dev.Site) (siteContext, error) {
	ca, err := os.ReadFile(s.CAFile)
	if err != nil {
		return siteContext{}, fileFault(err)
	}
	token, err := os.ReadFile(s.TokenFile)
	if err != nil {
		return siteContext{}, fileFault(err)
	}
	return siteContext{Name: "dev-" + s.Name, Site: s.Name, URL: s.URL, Others: s.Others, CA: string(ca), Token: strings.TrimSpace(string(token))}, nil
}

func (devClient) connect(s dev.Site) (*remote, error) {
	x, err := devContext(s)
	if err != nil {
		return nil, err
	}
	return connect(x)
}

// Ready implements dev.Client.
func (d devClient) Ready(ctx context.Context, s dev.Site) error {
	r, err := d.connect(s)
	if err != nil {
		return err
	}
	defer r.http.HTTP.CloseIdleConnections()
	if _, err := r.site.Site(ctx); err != nil {
		return err
	}
	x, err := devContext(s)
	if err != nil {
		return err
	}
	return addContext(x)
}

// Invite implements dev.Client.
func (d devClient) Invite(ctx context.Context, s dev.Site, host string) (string, error) {
	r, err := d.connect(s)
	if err != nil {
		return "", err
	}
	defer r.http.HTTP.CloseIdleConnections()
	i, err := r.site.InviteHost(ctx, admin.NewInvite{Host: host})
	return i.Token, err
}

// InviteProxy implements dev.Client.
func (d devClient) InviteProxy(ctx context.Context, s dev.Site) (string, error) {
	r, err := d.connect(s)
	if err != nil {
		return "", err
	}
	defer r.http.HTTP.CloseIdleConnections()
	i, err := r.border.InviteProxy(ctx)
	return i.Token, err
}

// ProxyReady implements dev.Client.
func (d devClient) ProxyReady(ctx context.Context, s dev.Site) error {
	r, err := d.connect(s)
	if err != nil {
		return err
	}
	defer r.http.HTTP.CloseIdleConnections()
	_, err = r.border.ShowProxy(ctx)
	if fault.Has(err, fault.NotFound) {
		return fault.New(fault.Unavailable, "%w", err)
	}
	return err
}

// InviteMember implements dev.Client.
func (d devClient) InviteMember(ctx context.Context, s dev.Site, member string) (string, error) {
	r, err := d.connect(s)
	if err != nil {
		return "", err
	}
	defer r.http.HTTP.CloseIdleConnections()
	i, err := r.site.InviteMember(ctx, admin.NewMember{Name: member})
	return i.Token, err
}

// HealthyMembers implements dev.Client.
func (d devClient) HealthyMembers(ctx context.Context, s dev.Site) (int, error) {
	r, err := d.connect(s)
	if err != nil {
		return 0, err
	}
	defer r.http.HTTP.CloseIdleConnections()
	list, err := r.site.Members(ctx)
	well := 0
	for _, m := range list {
		if m.Healthy {
			well++
		}
	}
	return well, err
}

// AliveHosts implements dev.Client.
func (d devClient) AliveHosts(ctx context.Context, s dev.Site) (int, error) {
	r, err := d.connect(s)
	if err != nil {
		return 0, err
	}
	defer r.http.HTTP.CloseIdleConnections()
	hosts, err := r.vmi.ListHosts(ctx)
	alive := 0
	for _, h := range hosts {
		if h.Alive {
			alive++
		}
	}
	return alive, err
}

// dropDevContexts forgets the contexts of a federation that is gone.
func dropDevContexts(c dev.Config) error {
	all, err := loadContexts()
	if err != nil {
		return err
	}
	gone := map[string]bool{}
	for _, name := range dev.SiteNames(c.Sites) {
		gone["dev-"+name] = true
	}
	all.remove(func(x siteContext) bool { return gone[x.Name] })
	return all.save()
}
