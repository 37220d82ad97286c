// Package dev runs a whole federation on one machine: each site and each host is the same
// process as anywhere else, a child of this one, in a network namespace of its own, with
// its state and log below one directory. It wires cables and watches over children; what
// the processes do, they do by themselves, and the package imports none of them.
//
// Everything may be repeated, and everything is found again without a memory of it: `up`
// after a crash of `up` first takes away what was left, by namespace.
package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/libvirtd"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Config of a federation. Two that run at the same time need their own Dir, Prefix and
// Subnet.
type Config struct {
	Dir        string    // all state and logs
	Binary     string    // of reservoir
	Sites      int       // at most 8
	Hosts      int       // of each site, at most 99
	Control    int       // machines that are each site's control plane; 0 and 1: one process, which needs no others
	Hypervisor string    // "qemu", "libvirt" or "sim"
	Memory     vee.Bytes // that each host offers
	Disk       vee.Bytes
	Prefix     string // of namespaces: "rsv"; at most 3 characters, the kernel's bound on link names
	Subnet     int    // site i is 10.(Subnet+i).0.0/16; 80
	SiteArgs   []string
	HostArgs   []string
	GuardArgs  []string
	ProxyArgs  []string // of each site's VAN proxy, where there are several sites
}

// Client is how a federation that comes up speaks to its sites. The caller brings it, so
// that this package knows processes and cables only.
type Client interface {
	// Ready is called once for each site, as soon as it answers.
	Ready(ctx context.Context, s Site) error
	// Invite asks for a one-time join token. It is tried again while the site does not
	// answer.
	Invite(ctx context.Context, s Site, host string) (token string, err error)
	// InviteProxy is Invite for the site's VAN proxy.
	InviteProxy(ctx context.Context, s Site) (token string, err error)
	// ProxyReady is whether the site knows its proxy and reaches it; Unavailable: not yet.
	ProxyReady(ctx context.Context, s Site) error
	// InviteMember asks for a one-time token with which a machine joins the control plane.
	InviteMember(ctx context.Context, s Site, member string) (token string, err error)
	// HealthyMembers counts those of the control plane that are well.
	HealthyMembers(ctx context.Context, s Site) (int, error)
	// AliveHosts counts them.
	AliveHosts(ctx context.Context, s Site) (int, error)
}

func (c Config) check() error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Malformed, format, args...).Try("reservoir dev up --help")
	}
	switch {
	case os.Geteuid() != 0:
		return fault.New(fault.Denied, "a federation on this machine needs root, for network namespaces").Try("sudo reservoir dev up")
	case c.Sites < 1 || c.Sites > maxSites:
		return bad("%d sites: want 1 to %d", c.Sites, maxSites)
	case c.Hosts < 1 || c.Hosts > maxHosts:
		return bad("%d hosts: want 1 to %d", c.Hosts, maxHosts)
	case c.Control < 0 || c.Control > maxControl:
		return bad("a control plane of %d machines: want 1 to %d, and better an odd number", c.Control, maxControl)
	case !slices.Contains([]string{"qemu", "libvirt", "sim"}, c.Hypervisor):
		return bad("hypervisor %q: want qemu, libvirt or sim", c.Hypervisor)
	case len(c.Prefix) < 1 || len(c.Prefix) > 3:
		return bad("prefix %q: want 1 to 3 characters", c.Prefix)
	case c.Subnet < 1 || c.Subnet+c.Sites > 255:
		return bad("subnet %d: want 1 to %d", c.Subnet, 255-c.Sites)
	case !filepath.IsAbs(c.Dir):
		return bad("directory %q: want an absolute path", c.Dir)
	}
	return nil
}

func (c Config) supervisorFile() string { return filepath.Join(c.Dir, "run", "supervisor.json") }
func (c Config) configFile() string     { return filepath.Join(c.Dir, "run", "config.json") }
func (c Config) readyFile() string      { return filepath.Join(c.Dir, "run", "ready") }

// Up brings a federation up and keeps it up until ctx is done; then it takes down the
// processes and the network. State and logs stay; Down removes them.
func Up(ctx context.Context, c Config, client Client, say func(format string, args ...any)) (err error) {
	if err := c.check(); err != nil {
		return err
	}
	for _, dir := range []string{"run", "log"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, dir), 0o755); err != nil {
			return fmt.Errorf("directory of the federation: %w", err)
		}
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.sweep(ctx); err != nil {
		return fmt.Errorf("take away what was left of an earlier run: %w", err)
	}
	if err := c.remember(); err != nil {
		return err
	}
	defer func() { // also after a failed start
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		err = errors.Join(err, c.sweep(late))
	}()
	l := c.layout()
	if err := l.makeNetwork(); err != nil {
		return fmt.Errorf("make the network: %w", err)
	}
	say("network: %d namespaces", len(l.nodes))
	return l.serve(ctx, client, say)
}

// awaitGuard of a host before its agent starts: a VEE that comes to a host without one runs
// there without a lease. One that does not come up in time is its host's to complain of.
func awaitGuard(ctx context.Context, dir string) {
	for end := time.Now().Add(guardPatience); time.Now().Before(end); {
		// The socket of an earlier one may still be there, with nobody behind it.
		if c, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, guardSocket)); err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

const (
	guardSocket   = "guard.sock" // as agent/guard calls it
	guardPatience = 5 * time.Second
)

// serve runs all processes until ctx is done or something cannot be started at all.
func (l layout) serve(ctx context.Context, client Client, say func(string, ...any)) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	// Hosts end before sites: a site that hears of it has less to wonder about.
	siteCtx, stopSites := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSites()
	var hosts, sites sync.WaitGroup
	start := func(n node) {
		wg, ctx := &hosts, ctx
		if n.host == "" || n.member {
			wg, ctx = &sites, siteCtx
		}
		if n.guard != nil {
			wg.Go(func() { l.supervise(ctx, n.guardian(), say) })
		}
		wg.Go(func() {
			if n.guard != nil {
				awaitGuard(ctx, n.dir)
			}
			if n.libvirtd == "" {
				l.supervise(ctx, n, say)
				return
			}
			if err := libvirtd.Prepare(n.libvirtd); err != nil {
				say("%s: %s", n.name(), err)
			}
			var daemon sync.WaitGroup
			daemon.Go(func() { l.supervise(ctx, n.daemon(), say) })
			l.supervise(ctx, n, say)
			daemon.Wait()
		})
	}
	if err := l.bringUp(ctx, client, start, say); err != nil {
		stop(err)
	}
	<-ctx.Done()
	hosts.Wait()
	stopSites()
	sites.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// bringUp starts each site, then its hosts with their invitations, and waits until all
// hosts have joined.
func (l layout) bringUp(ctx context.Context, client Client, start func(node), say func(string, ...any)) error {
	began := time.Now()
	for _, n := range l.nodes {
		if n.host == "" {
			start(n)
		}
	}
	sites := l.sites()
	for _, s := range sites {
		if err := l.awaitSite(ctx, client, s); err != nil {
			return err
		}
		say("site %s answers at %s after %.1fs", s.Name, s.URL, time.Since(began).Seconds())
		for _, n := range l.nodes {
			if n.site == s.Name && n.host != "" {
				invite := l.invite
				switch {
				case n.proxy:
					invite = l.inviteProxy
				case n.member:
					invite = l.inviteMember
				}
				if err := invite(ctx, client, s, n); err != nil {
					return err
				}
				start(n)
			}
		}
	}
	for _, s := range sites {
		if err := retry(ctx, func() error {
			alive, err := client.AliveHosts(ctx, s)
			if err == nil && alive < len(s.Hosts) {
				err = fault.New(fault.Unavailable, "%d of %d hosts of site %s have joined", alive, len(s.Hosts), s.Name)
			}
			return err
		}); err != nil {
			return err
		}
		if len(sites) > 1 {
			if err := retry(ctx, func() error { return client.ProxyReady(ctx, s) }); err != nil {
				return err
			}
		}
		if err := l.awaitMembers(ctx, client, s); err != nil {
			return err
		}
		say("site %s has its %d hosts after %.1fs", s.Name, len(s.Hosts), time.Since(began).Seconds())
	}
	if err := durable.WriteFile(l.cfg.readyFile(), nil, 0o644); err != nil {
		return fmt.Errorf("say that the federation is up: %w", err)
	}
	say("up; state and logs are in %s", l.cfg.Dir)
	return nil
}

func (l layout) awaitSite(ctx context.Context, client Client, s Site) error {
	return retry(ctx, func() error {
		for _, file := range []string{s.CAFile, s.TokenFile} {
			if _, err := os.Stat(file); err != nil {
				return fault.New(fault.Unavailable, "site %s: %w", s.Name, err)
			}
		}
		return client.Ready(ctx, s)
	})
}

// invite writes a join token for a host that has none yet. One that was used is of no
// harm: a host that has joined does not look at it.
func (l layout) invite(ctx context.Context, client Client, s Site, n node) error {
	file := filepath.Join(l.cfg.Dir, n.site, n.host+".token")
	return retry(ctx, func() error {
		token, err := client.Invite(ctx, s, n.host)
		if err != nil {
			return err
		}
		return durable.WriteFile(file, []byte(token+"\n"), 0o600)
	})
}

// retry while the error is that a site does not answer yet. It has no bound of its own: a
// process that does not come up is shown by its supervisor, and the user decides.
func retry(ctx context.Context, f func() error) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := f()
		if err == nil || !fault.Has(err, fault.Unavailable) && !fault.Has(err, fault.Timeout) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// lock makes this process the only one that makes or takes away what has the prefix.
func (c Config) lock() (unlock func(), err error) {
	path := filepath.Join(lockDir, "reservoir-dev-"+c.Prefix+".lock")
	f, err := durable.Lock(path)
	if errors.Is(err, durable.ErrLocked) {
		dir, _ := os.ReadFile(path)
		return nil, fault.New(fault.Exists, "a federation with prefix %q is up, in %s", c.Prefix, dir).
			Try("reservoir dev status --dir %s, reservoir dev down --dir %s", dir, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("lock prefix %s: %w", c.Prefix, err)
	}
	var held unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &held); err == nil && identify(path) != (file{held.Dev, held.Ino}) {
		f.Close() // its last owner removed it just before we got the lock
		return c.lock()
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, c.Dir)); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock prefix %s: %w", c.Prefix, err)
	}
	return func() { os.Remove(path); f.Close() }, nil
}

const lockDir = "/run"

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// remember who supervises what, for status and down.
func (c Config) remember() error {
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the configuration: %w", err)
	}
	if err := durable.WriteFile(c.configFile(), b, 0o644); err != nil {
		return err
	}
	self := os.Getpid()
	return writeRecord(c.supervisorFile(), record{Pid: self, Start: startTime(self), Started: time.Now()})
}

// Load is the configuration that a federation in dir was brought up with. Errors:
// fault.NotFound.
func Load(dir string) (Config, error) {
	var c Config
	b, err := os.ReadFile(Config{Dir: dir}.configFile())
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return Config{}, fault.New(fault.NotFound, "there is no federation in %s: %w", dir, err).Try("reservoir dev up --dir %s", dir)
	}
	c.Dir = dir
	return c, nil
}

// sweep takes away processes and network, whoever made them.
func (c Config) sweep(ctx context.Context) error {
	if err := os.RemoveAll(c.readyFile()); err != nil {
		return fmt.Errorf("delete %s: %w", c.readyFile(), err)
	}
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if err := c.killProcesses(ctx); err != nil {
		return err
	}
	return errors.Join(c.removeNetwork(), unmount(c.Dir))
}

// Down ends a federation: its supervisor if it runs, all processes, the network, and the
// directory unless keep is set. It may be called at any time.
func Down(ctx context.Context, c Config, keep bool) error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Denied, "taking a federation down needs root").Try("sudo reservoir dev down")
	}
	if s := readRecord(c.supervisorFile()); s.alive() && s.Pid != os.Getpid() {
		if err := syscall.Kill(s.Pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end the supervisor, process %d: %w", s.Pid, err)
		}
		deadline := time.Now().Add(2 * stopGrace)
		for s.alive() && time.Now().Before(deadline) && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
		if s.alive() {
			if err := syscall.Kill(s.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill the supervisor, process %d: %w", s.Pid, err)
			}
		}
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.sweep(ctx); err != nil {
		return err
	}
	if keep {
		return nil
	}
	return removeAll(c.Dir)
}

// Process of a federation, as Status shows it.
type Process struct {
	Name     string    `json:"name"`
	Kind     string    `json:"kind"` // "supervisor", "site", "host", "proxy"
	Pid      int       `json:"pid,omitempty"`
	Alive    bool      `json:"alive"`
	Netns    string    `json:"netns,omitempty"`
	Address  string    `json:"address,omitempty"`
	RSS      vee.Bytes `json:"rssBytes"`
	Guests   int       `json:"guests"` // processes beside it in its namespace
	GuestRSS vee.Bytes `json:"guestsRssBytes"`
	Restarts int       `json:"restarts"`
	Started  time.Time `json:"started,omitzero"`
	Log      string    `json:"log,omitempty"`
}

// Status of every process of the federation in c.Dir.
func Status(c Config) ([]Process, error) {
	all, err := c.processes()
	if err != nil {
		return nil, err
	}
	s := readRecord(c.supervisorFile())
	list := []Process{{Name: "dev", Kind: "supervisor", Pid: s.Pid, Alive: s.alive(), Started: s.Started}}
	if s.alive() {
		list[0].RSS = rss(s.Pid)
	}
	l := c.layout()
	for _, n := range l.nodes {
		r := readRecord(l.pid(n))
		guard := record{}
		if n.guard != nil {
			guard = readRecord(l.pid(n.guardian()))
		}
		p := Process{Name: n.name(), Kind: "host", Pid: r.Pid, Alive: r.alive(), Netns: n.netns, Address: n.address, Restarts: r.Restarts, Started: r.Started, Log: l.log(n)}
		switch {
		case n.host == "", n.member:
			p.Kind = "site"
		case n.proxy:
			p.Kind = "proxy"
		}
		for _, x := range all {
			switch {
			case x.netns != n.netns:
			case x.pid == r.Pid:
				p.RSS = x.rss
			case x.pid == guard.Pid:
			default:
				p.Guests++
				p.GuestRSS += x.rss
			}
		}
		list = append(list, p)
	}
	return list, nil
}

// Running reports whether the federation has a supervisor.
func Running(c Config) bool { return readRecord(c.supervisorFile()).alive() }

// Ready reports whether the supervisor with that pid has brought everything up.
func Ready(c Config, supervisor int) bool {
	_, err := os.Stat(c.readyFile())
	return err == nil && readRecord(c.supervisorFile()).Pid == supervisor
}

// SiteNames of a federation of n sites.
func SiteNames(n int) []string { return slices.Clone(siteNames[:min(n, maxSites)]) }
