// Command api measures a site's interface with many VEEs: it starts a site over a record of
// truth in this process, so that the site's own memory can be told apart from the store's,
// and agents with simulated guests; then it creates, lists, watches and updates VEEs over
// the VMI as any client does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var (
	binary = flag.String("reservoir", "build/reservoir", "the binary under test")
	number = flag.Int("vees", 10_000, "how many VEEs")
	hosts  = flag.Int("hosts", 6, "how many hosts with simulated guests")
	rounds = flag.Int("rounds", 50, "lists and watches of each kind")
	limit  = flag.Duration("timeout", 15*time.Minute, "for everything")
)

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench api:", err)
		os.Exit(1)
	}
}

// bench is a site under test.
type bench struct {
	dir   string
	trace *os.File // of the site's garbage collector
	vmi   vmi.Service
	site  admin.Service
	procs []*exec.Cmd
}

func run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "bench-api")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	store, endpoint, err := startStore(dir)
	if err != nil {
		return err
	}
	defer store.Close()
	b := &bench{dir: dir}
	defer func() { err = errors.Join(err, b.down()) }() // before the store, which they write to
	if err := b.up(ctx, endpoint); err != nil {
		return err
	}
	empty, err := b.liveHeap(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%-34s %10s %12s %12s\n", fmt.Sprintf("%d VEEs, %d simulated hosts", *number, *hosts), "a second", "median", "p99")
	ids, err := b.create(ctx)
	if err != nil {
		return err
	}
	if err := b.deploy(ctx, ids); err != nil {
		return err
	}
	list, err := b.lists(ctx)
	if err != nil {
		return err
	}
	if err := b.update(ctx, ids); err != nil {
		return err
	}
	full, err := b.liveHeap(ctx)
	if err != nil {
		return err
	}
	each := float64(full-empty) / float64(*number)
	fmt.Printf("the site's live heap: %.1f MB without VEEs, %.1f MB with them, %.0f bytes each\n", mb(empty), mb(full), each)
	figure.Line("api_list_10k_ms", float64(list.Microseconds())/1000, "ms", "<", 200)
	figure.Line("api_bytes_per_vee", each, "B", "<=", 4096)
	return nil
}

func mb(b int64) float64 { return float64(b) / 1e6 }

// startStore is an etcd in this process, on a free port of the loopback device.
func startStore(dir string) (*embed.Etcd, string, error) {
	c := embed.NewConfig()
	c.Dir, c.LogLevel, c.LogOutputs = filepath.Join(dir, "etcd"), "error", []string{"stderr"}
	client, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	peer, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	cu, pu := url.URL{Scheme: "http", Host: client}, url.URL{Scheme: "http", Host: peer}
	c.ListenClientUrls, c.AdvertiseClientUrls, c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{cu}, []url.URL{cu}, []url.URL{pu}, []url.URL{pu}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		return nil, "", fmt.Errorf("start a store: %w", err)
	}
	<-e.Server.ReadyNotify()
	return e, cu.String(), nil
}

func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// start a process of the binary under test, with its log in a file.
func (b *bench) start(name string, env []string, args ...string) (*os.File, error) {
	log, err := os.Create(filepath.Join(b.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.Background(), *binary, args...) // ended by down, in good order
	cmd.Stderr, cmd.Env = log, append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.procs = append(b.procs, cmd)
	return log, nil
}

func (b *bench) down() error {
	var errs []error
	begin := time.Now()
	for _, p := range slices.Backward(b.procs) {
		errs = append(errs, p.Process.Signal(syscall.SIGTERM))
		_ = p.Wait() // ended by our signal
	}
	fmt.Printf("the site and its hosts stopped within %v\n", time.Since(begin).Round(time.Millisecond))
	return errors.Join(errs...)
}

// up starts the site and its hosts and waits until they are current.
func (b *bench) up(ctx context.Context, endpoint string) error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "site")
	if b.trace, err = b.start("site", []string{"GODEBUG=gctrace=1"}, "site", "--dir", dir, "--name", "alpha", "--listen", address,
		"--vee-network", "10.64.0.0/12", "--etcd-endpoints", endpoint); err != nil {
		return err
	}
	if err := b.connect(ctx, address, dir); err != nil {
		return err
	}
	for i := range *hosts {
		name := fmt.Sprintf("h%d", i+1)
		invite, err := b.site.InviteHost(ctx, admin.NewInvite{Host: name})
		if err != nil {
			return err
		}
		listen, err := freeAddress()
		if err != nil {
			return err
		}
		if _, err := b.start(name, nil, "host", "--dir", filepath.Join(b.dir, name), "--name", name, "--site", "https://"+address, "--listen", listen,
			"--driver", "sim", "--cpu-overbook", "1000", "--join", invite.Token); err != nil {
			return err
		}
	}
	return poll(ctx, "hosts", func() (bool, error) {
		list, err := b.vmi.ListHosts(ctx)
		alive := 0
		for _, h := range list {
			if h.Alive {
				alive++
			}
		}
		return alive == *hosts, err
	})
}

// connect waits for the site and makes its clients.
func (b *bench) connect(ctx context.Context, address, dir string) error {
	return poll(ctx, "the site", func() (bool, error) {
		token, err := os.ReadFile(filepath.Join(dir, "admin-token"))
		if err != nil {
			return false, nil //nolint:nilerr // not there yet
		}
		bundle, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
		if err != nil {
			return false, err
		}
		tls, err := identity.BundleTLS(bundle, "alpha", time.Now)
		if err != nil {
			return false, err
		}
		c := &httpapi.Client{Base: "https://" + address, Token: strings.TrimSpace(string(token)), HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}}}
		b.vmi, b.site = vmi.NewClient(c), admin.NewClient(c)
		_, err = b.site.Site(ctx)
		return err == nil, nil
	})
}

func poll(ctx context.Context, what string, done func() (bool, error)) error {
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// row prints what n things and the single calls took.
func row(what string, n int, took time.Duration, calls []time.Duration) {
	s := slices.Sorted(slices.Values(calls))
	fmt.Printf("%-34s %10.0f %12v %12v\n", what, float64(n)/took.Seconds(), s[len(s)/2].Round(10*time.Microsecond), s[len(s)*99/100].Round(10*time.Microsecond))
}

// create VEEs, a hundred in each call, four calls at a time.
func (b *bench) create(ctx context.Context) ([]vee.ID, error) {
	const size = 100
	var mu sync.Mutex
	var ids []vee.ID
	calls, took, err := parallel(ctx, (*number+size-1)/size, 4, func(i int) error {
		d := vee.Descriptor{Name: fmt.Sprintf("web-%d", i), Customer: fmt.Sprintf("c%d", i%10), GroupID: fmt.Sprintf("g%d", i), Hypervisor: "sim", VCPUs: 1, Memory: 8 * vee.MiB,
			FQNPrefix: vee.FQN("alpha", "acme", "shop", "web", i), Disks: []vee.Disk{{Name: "root", Size: 8 * vee.MiB}}, NICs: []vee.NIC{{Network: "site"}}, Tags: []string{"web"}}
		out, err := b.vmi.InitializeVEEs(ctx, vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: d, Count: min(size, *number-i*size)}}})
		mu.Lock()
		defer mu.Unlock()
		for _, v := range out.VEEs {
			ids = append(ids, v.ID)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	row("create (100 in each call)", len(ids), took, calls)
	return ids, nil
}

// deploy all and follow the watch until each runs.
func (b *bench) deploy(ctx context.Context, ids []vee.ID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begin := time.Now()
	watch, err := b.vmi.WatchVEEs(ctx, vmi.Filter{})
	if err != nil {
		return err
	}
	var calls []time.Duration
	for part := range slices.Chunk(ids, 500) {
		at := time.Now()
		if _, err := b.vmi.SubmitVEEs(ctx, part); err != nil {
			return err
		}
		calls = append(calls, time.Since(at))
	}
	row("submit (500 in each call)", len(ids), time.Since(begin), calls)
	running := map[vee.ID]bool{}
	changes := 0
	for c := range watch {
		changes++
		if c.VEE != nil && c.VEE.State == vee.Active {
			running[c.VEE.ID] = true
		}
		if len(running) == len(ids) {
			took := time.Since(begin)
			row("started, as seen by a watch", len(ids), took, []time.Duration{took})
			fmt.Printf("%-34s %10.0f\n", "changes through that watch", float64(changes)/took.Seconds())
			return nil
		}
	}
	return fmt.Errorf("the watch ended when %d of %d VEEs ran: %w", len(running), len(ids), context.Cause(ctx))
}

// lists and watches everything, again and again.
func (b *bench) lists(ctx context.Context) (median time.Duration, err error) {
	whole, took, err := parallel(ctx, *rounds, 1, func(int) error {
		list, err := b.vmi.ListVEEs(ctx, vmi.Filter{})
		if err == nil && len(list) != *number {
			err = fmt.Errorf("%d VEEs are listed, of %d", len(list), *number)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	row("list all", *rounds**number, took, whole)
	pages, took, err := parallel(ctx, *rounds, 1, func(int) error { _, err := b.vmi.ListVEEs(ctx, vmi.Filter{Limit: 100}); return err })
	if err != nil {
		return 0, err
	}
	row("list a page of 100", *rounds*100, took, pages)
	one, took, err := parallel(ctx, *rounds, 1, func(i int) error {
		_, err := b.vmi.ListVEEs(ctx, vmi.Filter{GroupID: fmt.Sprintf("g%d", i)})
		return err
	})
	if err != nil {
		return 0, err
	}
	row("list a group of 100", *rounds*100, took, one)
	watches, took, err := parallel(ctx, max(1, *rounds/5), 1, func(int) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		ch, err := b.vmi.WatchVEEs(ctx, vmi.Filter{})
		if err != nil {
			return err
		}
		for c := range ch {
			if c.Synced {
				return nil
			}
		}
		return errors.New("the watch ended before it was in step")
	})
	if err != nil {
		return 0, err
	}
	row("watch until in step", max(1, *rounds/5)**number, took, watches)
	return figure.Median(whole), nil
}

// update the state of single VEEs, sixteen at a time, and wait for each.
func (b *bench) update(ctx context.Context, ids []vee.ID) error {
	ids = ids[:min(len(ids), 1000)]
	calls, took, err := parallel(ctx, len(ids), 16, func(i int) error {
		out, err := b.vmi.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: ids[i : i+1]}, Action: vee.Pause})
		if err == nil && !out[0].OK {
			err = errors.New(out[0].Detail)
		}
		return err
	})
	if err != nil {
		return err
	}
	row("update, asked for", len(ids), took, calls)
	calls, took, err = parallel(ctx, len(ids)/4, 16, func(i int) error {
		_, err := b.vmi.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: ids[i : i+1]}, Action: vee.Shutdown, Wait: true})
		return err
	})
	if err != nil {
		return err
	}
	row("update, waited for", len(ids)/4, took, calls)
	return b.resize(ctx, ids[len(ids)/4:])
}

// resize VEEs while they run, and wait for what their hosts say of it.
func (b *bench) resize(ctx context.Context, ids []vee.ID) error {
	less := 7 * vee.MiB
	calls, took, err := parallel(ctx, len(ids)/4, 16, func(i int) error {
		out, err := b.vmi.UpdateVEEs(ctx, []vmi.VEEUpdate{{ID: ids[i], Memory: &less}})
		if err == nil && out[0].Detail != "applied live" {
			err = fmt.Errorf("VEE %s: %s", ids[i], out[0].Detail)
		}
		return err
	})
	if err != nil {
		return err
	}
	row("resize, waited for", len(ids)/4, took, calls)
	return nil
}

// parallel calls f n times, some at once.
func parallel(ctx context.Context, n, width int, f func(int) error) (calls []time.Duration, took time.Duration, err error) {
	calls = make([]time.Duration, n)
	errs := make([]error, n)
	gate := make(chan struct{}, width)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				at := time.Now()
				errs[i] = f(i)
				calls[i] = time.Since(at)
			}
		})
	}
	wg.Wait()
	return calls, time.Since(begin), errors.Join(errs...)
}

var collected = regexp.MustCompile(`^gc (\d+) .* \d+->\d+->(\d+) MB, `)

// liveHeap of the site, in bytes, when it has settled: the least that ten garbage
// collections leave. Small calls provoke them, since the answer to a large one, while it is
// under way, is no part of what VEEs take.
func (b *bench) liveHeap(ctx context.Context) (least int64, err error) {
	first, _, err := b.lastCollection()
	if err != nil {
		return 0, err
	}
	for seen := first; ; {
		n, live, err := b.lastCollection()
		if err != nil {
			return 0, err
		}
		if n > seen && (least == 0 || live < least) {
			least = live
		}
		if seen = n; n >= first+10 {
			return least, nil
		}
		if _, _, err := parallel(ctx, 20, 2, func(int) error { _, err := b.vmi.ListVEEs(ctx, vmi.Filter{Limit: 10}); return err }); err != nil {
			return 0, err
		}
	}
}

func (b *bench) lastCollection() (n int, live int64, err error) {
	text, err := os.ReadFile(b.trace.Name())
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		if m := collected.FindStringSubmatch(line); m != nil {
			n, _ = strconv.Atoi(m[1])
			mib, _ := strconv.ParseInt(m[2], 10, 64)
			live = mib << 20
		}
	}
	return n, live, nil
}
