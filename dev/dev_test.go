package dev

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
)

// TestMain makes the test's own binary stand in for the processes of a federation.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(standIn(os.Args[1], os.Args[2:]))
	}
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make network namespaces: run them as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// standIn for a site, which answers on its port and leaves its two files, for a host,
// which answers on its port and has a guest that outlives it, for a proxy, which answers
// outside, or for a supervisor.
func standIn(kind string, args []string) int {
	if kind == "supervisor" {
		c := testConfig(args[0], args[1])
		err := Up(context.Background(), c, dialer{}, func(f string, a ...any) { fmt.Printf(f+"\n", a...) })
		fmt.Println("ended:", err)
		return 0
	}
	value := func(name string) string {
		for i := range args[:len(args)-1] {
			if args[i] == name {
				return args[i+1]
			}
		}
		return ""
	}
	if kind == "host" {
		if _, err := os.Stat(value("--join-file")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		guest := exec.Command("sleep", "1000")
		guest.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := guest.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	at := value("--listen")
	if kind == "proxy" {
		at = value("--outside")
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if kind == "site" {
		for _, f := range []string{"admin-token", "ca.pem"} {
			if err := os.WriteFile(filepath.Join(value("--dir"), f), nil, 0o600); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, value("--name"))
			c.Close()
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
	return 0
}

// dialer is a Client that believes in what answers on the network.
type dialer struct{}

func (dialer) Ready(ctx context.Context, s Site) error {
	return greets(ctx, strings.TrimPrefix(s.URL, "https://"), s.Name)
}

func (dialer) Invite(_ context.Context, s Site, host string) (string, error) {
	return "token of " + s.Name + " for " + host, nil
}

func (dialer) InviteProxy(_ context.Context, s Site) (string, error) {
	return "token of the proxy of " + s.Name, nil
}

func (dialer) ProxyReady(context.Context, Site) error { return nil }

func (dialer) InviteMember(_ context.Context, s Site, member string) (string, error) {
	return "token of " + s.Name + " for " + member, nil
}

func (dialer) HealthyMembers(context.Context, Site) (int, error) { return maxControl, nil }

func (dialer) AliveHosts(ctx context.Context, s Site) (int, error) {
	alive := 0
	host, _, _ := net.SplitHostPort(strings.TrimPrefix(s.URL, "https://"))
	for i, h := range s.Hosts {
		address := fmt.Sprintf("%s%d:%d", strings.TrimSuffix(host, "1"), 11+i, hostPort)
		if greets(ctx, address, h) == nil {
			alive++
		}
	}
	return alive, nil
}

// greets reports whether what listens at address says its name.
func greets(ctx context.Context, address, name string) error {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return fault.New(fault.Unavailable, "%w", err)
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err == nil && string(b) != name {
		err = fmt.Errorf("%s answers %q, want %q", address, b, name)
	}
	return err
}

// testConfig with a prefix and a subnet that nothing else on this machine has.
func testConfig(dir, prefix string) Config {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Config{Dir: dir, Binary: self, Sites: 2, Hosts: 2, Hypervisor: "sim", Memory: vee.GiB, Disk: vee.GiB, Prefix: prefix, Subnet: 190 + 2*int(prefix[1]-'0')}
}

// nothingLeft fails the test for every trace of a federation.
func nothingLeft(t *testing.T, c Config) {
	t.Helper()
	names, err := c.namespaces()
	if err != nil || len(names) > 0 {
		t.Errorf("namespaces are left: %v, %v", names, err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, c.Prefix+"-") {
			t.Errorf("link %s is left", l.Attrs().Name)
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.Contains(string(cmdline), c.Dir) && strings.Contains(string(cmdline), "--listen") {
			t.Errorf("process %s is left: %q", e.Name(), cmdline)
		}
	}
}

// waitFor polls a condition; the test's own deadline is the only bound.
func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for !f() {
		select {
		case <-t.Context().Done():
			t.Fatalf("not so: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestLife brings two sites up, looks at them, hurts one and takes all down.
func TestLife(t *testing.T) {
	c := testConfig(t.TempDir(), "t0")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	said := make(chan string, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- Up(ctx, c, dialer{}, func(f string, a ...any) { said <- fmt.Sprintf(f, a...) })
	}()
	waitFor(t, "up", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("did not come up: %v", err)
		default:
		}
		return Ready(c, os.Getpid())
	})

	sitesAreApart(t, c)

	list, err := Status(c)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Process{}
	for _, p := range list {
		byName[p.Name] = p
		if !p.Alive || p.Pid == 0 || p.RSS == 0 {
			t.Errorf("status of %s: %+v", p.Name, p)
		}
	}
	h := byName["alpha-h1"]
	if len(list) != 9 || byName["beta-proxy"].Kind != "proxy" || h.Kind != "host" || h.Guests != 1 || h.Netns != "t0-alpha-h1" || h.Address != c.address(0, 11) {
		t.Errorf("status: %+v", list)
	}

	if _, err := c.lock(); !fault.Has(err, fault.Exists) {
		t.Errorf("a second federation of that prefix: %v, want already-exists", err)
	}

	// A host that dies is started again; its guest lived on, and the new one has one too.
	if err := syscall.Kill(h.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "alpha-h1 runs again", func() bool {
		list, err := Status(c)
		return err == nil && list[2].Alive && list[2].Pid != h.Pid && list[2].Restarts == 1 && list[2].Guests == 2
	})

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Up: %v", err)
	}
	nothingLeft(t, c)
	if err := Down(t.Context(), c, false); err != nil { // repeated: no error
		t.Error(err)
	}
	if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", c.Dir, err)
	}
	close(said)
	var all []string
	for s := range said {
		all = append(all, s)
	}
	if text := strings.Join(all, "\n"); !strings.Contains(text, "alpha-h1 ended (signal: killed); starting it again") {
		t.Errorf("what was said:\n%s", text)
	}
}

// TestKilledSupervisor: what `up` leaves when it is killed, `down` finds and takes away.
func TestKilledSupervisor(t *testing.T) {
	c := testConfig(t.TempDir(), "t1")
	supervisor := exec.CommandContext(t.Context(), c.Binary, "supervisor", c.Dir, c.Prefix)
	out, err := supervisor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := supervisor.Start(); err != nil {
		t.Fatal(err)
	}
	up := false
	for s := bufio.NewScanner(out); !up && s.Scan(); {
		up = strings.HasPrefix(s.Text(), "up;")
		t.Log(s.Text())
	}
	if !up {
		t.Fatal("did not come up")
	}
	if err := supervisor.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = supervisor.Wait()
	if list, err := c.processes(); err != nil || len(list) != 12 { // 2 sites, 4 hosts, 4 guests, 2 proxies
		t.Errorf("processes after the supervisor's death: %v, %v", list, err)
	}
	loaded, err := Load(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), loaded, true); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, c)
	if _, err := os.Stat(filepath.Join(c.Dir, "log", "alpha.log")); err != nil {
		t.Errorf("the logs were to be kept: %v", err)
	}
}

func TestCheck(t *testing.T) {
	good := testConfig("/tmp/x", "t2")
	for _, change := range []func(*Config){
		func(c *Config) { c.Sites = 9 }, func(c *Config) { c.Hosts = 0 }, func(c *Config) { c.Hypervisor = "xen" },
		func(c *Config) { c.Prefix = "long" }, func(c *Config) { c.Subnet = 250; c.Sites = 8 }, func(c *Config) { c.Dir = "here" },
	} {
		c := good
		change(&c)
		if err := c.check(); !fault.Has(err, fault.Malformed) {
			t.Errorf("%+v: %v, want malformed", c, err)
		}
	}
	if err := good.check(); err != nil {
		t.Error(err)
	}
}

// TestLayout: names fit the kernel's bounds, and no two nodes share an address.
func TestLayout(t *testing.T) {
	c := testConfig("/tmp/x", "rsv")
	c.Sites, c.Hosts, c.Subnet = maxSites, maxHosts, 80
	seen := map[string]string{}
	for _, n := range c.layout().nodes {
		if len(c.Prefix+"-"+n.site) > 15 || len(proxyName) > 15 {
			t.Errorf("name of %s is too long", n.netns)
		}
		if other, twice := seen[n.address]; twice {
			t.Errorf("%s and %s share %s", n.netns, other, n.address)
		}
		seen[n.address] = n.netns
	}
}
