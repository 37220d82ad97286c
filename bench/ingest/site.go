package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/promapi"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// stage is a site and its hosts, as processes of the binary under test.
type stage struct {
	dir     string
	procs   []*exec.Cmd // the site's first
	vmi     vmi.Service
	site    admin.Service
	metrics monitor.Querier
	client  *httpapi.Client
}

func observe(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "bench-ingest-site")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &stage{dir: dir}
	defer func() { err = errors.Join(err, s.down()) }()
	if err := s.up(ctx); err != nil {
		return err
	}
	if err := s.deploy(ctx); err != nil {
		return err
	}
	measured, series, err := s.measured(ctx)
	if err != nil {
		return err
	}
	cpu, rss, err := s.taken()
	if err != nil {
		return err
	}
	stored, err := s.stored(ctx)
	if err != nil {
		return err
	}
	begin, peak := time.Now(), rss
	for time.Since(begin) < *observed {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		if _, rss, err = s.taken(); err != nil {
			return err
		}
		peak = max(peak, rss)
	}
	took := time.Since(begin)
	after, _, err := s.taken()
	if err != nil {
		return err
	}
	now, err := s.stored(ctx)
	if err != nil {
		return err
	}
	used := (after - cpu).Seconds() / took.Seconds()
	rate := (now - stored) / took.Seconds()
	fmt.Printf("%d of %d VEEs measured, on %d hosts with simulated guests, %d series, observed for %v: %.0f samples/s, the site's process at most %.0f MB and %.2f CPUs\n",
		measured, *number, *hosts, series, took.Round(time.Second), rate, float64(peak)/1e6, used)
	figure.Line("ingest_site_vees", float64(measured), "VEEs", ">=", float64(*number))
	figure.Line("ingest_site_samples_per_s", rate, "1/s", ">=", float64(*number))
	figure.Line("ingest_site_rss_mb", float64(peak)/1e6, "MB", "<", 1000)
	figure.Line("ingest_site_cpus", used, "CPU", "<", 2)
	return nil
}

// value of a query with one result; none is 0.
func (s *stage) value(ctx context.Context, expr string) (float64, error) {
	found, err := s.metrics.Query(ctx, expr, time.Now())
	if err != nil || len(found) == 0 {
		return 0, err
	}
	return found[0].Points[0].Value, nil
}

// perVEE series: seven by the host, of CPU, memory and disks, and three that the guest's agent
// says of itself.
const perVEE = 10

// measured VEEs by both ways, and the series in the site's memory. It waits until all are, but no
// longer than -settle.
func (s *stage) measured(ctx context.Context) (vees, series int, err error) {
	within, cancel := context.WithTimeout(ctx, *settle)
	defer cancel()
	err = poll(within, "all VEEs to be measured", func() (bool, error) {
		byHost, err := s.value(ctx, "count(vee_block_writes_total)")
		if err != nil {
			return false, err
		}
		byGuest, err := s.value(ctx, "count(vcpus_online)")
		if err != nil {
			return false, err
		}
		all, err := s.metric(ctx, "reservoir_site_series")
		vees, series = int(min(byHost, byGuest)), int(all)
		fmt.Fprintf(os.Stderr, "%.0f VEEs are measured by their hosts, %.0f by themselves, %d series\n", byHost, byGuest, series)
		return vees >= *number && series >= perVEE**number, err
	})
	if err != nil && ctx.Err() == nil && within.Err() != nil {
		err = nil // what there is by now is what is told
	}
	return vees, series, err
}

// stored samples since the site has started.
func (s *stage) stored(ctx context.Context) (float64, error) {
	return s.metric(ctx, "reservoir_site_samples_total")
}

// metric of the site's process, as it tells it itself.
func (s *stage) metric(ctx context.Context, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.client.Base+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+s.client.Token)
	resp, err := s.client.HTTP.Do(req)
	if err != nil {
		return 0, fault.New(fault.Unavailable, "ask the site for its metrics: %w", err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, is := strings.CutPrefix(lines.Text(), name+" "); is {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("the site's metrics have no %s", name)
}

// taken by the site's process: CPU time, and memory that is resident.
func (s *stage) taken() (cpu time.Duration, rss int64, err error) {
	pid := strconv.Itoa(s.procs[0].Process.Pid)
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return 0, 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	if len(f) < 22 {
		return 0, 0, fmt.Errorf("/proc/%s/stat has %d fields", pid, len(f))
	}
	var n [3]int64
	for i, k := range []int{11, 12, 21} { // utime, stime in ticks of 10 ms; rss in pages
		if n[i], err = strconv.ParseInt(f[k], 10, 64); err != nil {
			return 0, 0, err
		}
	}
	return time.Duration(n[0]+n[1]) * 10 * time.Millisecond, n[2] * int64(os.Getpagesize()), nil
}

func (s *stage) start(name string, args ...string) error {
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(context.Background(), *binary, args...) // ended by down, in good order
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.procs = append(s.procs, cmd)
	return nil
}

// running says which process has ended, with the last that it said.
func (s *stage) running() error {
	for _, p := range s.procs {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.Process.Pid), "stat"))
		if _, rest, _ := strings.Cut(string(stat), ") "); err == nil && !strings.HasPrefix(rest, "Z") {
			continue
		}
		log, _ := os.ReadFile(p.Stderr.(*os.File).Name()) //nolint:errcheck // what there is of it
		return fmt.Errorf("%s has ended: %s", strings.Join(p.Args[:2], " "), log[max(0, len(log)-500):])
	}
	return nil
}

func (s *stage) down() error {
	var errs []error
	for _, p := range slices.Backward(s.procs) {
		errs = append(errs, p.Process.Signal(syscall.SIGTERM))
	}
	for _, p := range s.procs {
		_ = p.Wait() // ended by our signal
	}
	return errors.Join(errs...)
}

// up starts the site and its hosts and waits until they are current.
func (s *stage) up(ctx context.Context) error {
	address := addressOf(0)
	dir := filepath.Join(s.dir, "site")
	if err := s.start("site", "site", "--dir", dir, "--name", "alpha", "--listen", address, "--vee-network", "10.64.0.0/12"); err != nil {
		return err
	}
	if err := poll(ctx, "the site", func() (bool, error) { return s.connect(ctx, address, dir), nil }); err != nil {
		return err
	}
	for i := range *hosts {
		name := fmt.Sprintf("h%d", i+1)
		invite, err := s.site.InviteHost(ctx, admin.NewInvite{Host: name})
		if err != nil {
			return err
		}
		if err := s.start(name, "host", "--dir", filepath.Join(s.dir, name), "--name", name, "--site", "https://"+address, "--listen", addressOf(i+1),
			"--driver", "sim", "--cpu-overbook", "1000", "--join", invite.Token); err != nil {
			return err
		}
	}
	return poll(ctx, "hosts", func() (bool, error) {
		list, err := s.vmi.ListHosts(ctx)
		alive := 0
		for _, h := range list {
			if h.Alive {
				alive++
			}
		}
		if err == nil {
			err = s.running()
		}
		return alive == *hosts, err
	})
}

// connect makes the site's clients, once it answers.
func (s *stage) connect(ctx context.Context, address, dir string) bool {
	token, err := os.ReadFile(filepath.Join(dir, "admin-token"))
	if err != nil {
		return false
	}
	bundle, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return false
	}
	tls, err := identity.BundleTLS(bundle, "alpha", time.Now)
	if err != nil {
		return false
	}
	c := &httpapi.Client{Base: "https://" + address, Token: strings.TrimSpace(string(token)), HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}}}
	s.client, s.vmi, s.site = c, vmi.NewClient(c), admin.NewClient(c)
	s.metrics = promapi.Client{Base: c.Base + promapi.Prefix, HTTP: c.HTTP, Token: c.Token}
	_, err = s.site.Site(ctx)
	return err == nil
}

// deploy the VEEs, a hundred in each call, and wait until all run.
func (s *stage) deploy(ctx context.Context) error {
	const size = 100
	for i := 0; i*size < *number; i++ {
		d := vee.Descriptor{Name: fmt.Sprintf("web-%d", i), Customer: fmt.Sprintf("c%d", i%10), GroupID: fmt.Sprintf("g%d", i), Hypervisor: "sim", VCPUs: 1, Memory: 8 * vee.MiB,
			FQNPrefix: vee.FQN("alpha", fmt.Sprintf("c%d", i%10), fmt.Sprintf("s%d", i), "web", i), Disks: []vee.Disk{{Name: "root", Size: 8 * vee.MiB}}}
		out, err := s.vmi.InitializeVEEs(ctx, vmi.Initialize{Model: vmi.TwoPhase, VEEs: []vmi.InitializeVEE{{Descriptor: d, Count: min(size, *number-i*size)}}})
		if err != nil {
			return err
		}
		ids := make([]vee.ID, len(out.VEEs))
		for k, v := range out.VEEs {
			ids[k] = v.ID
		}
		// Submitting is idempotent, and may be asked again where the disk is slow.
		if err := poll(ctx, "VEEs to be submitted", func() (bool, error) {
			_, err := s.vmi.SubmitVEEs(ctx, ids)
			return err == nil, err
		}); err != nil {
			return err
		}
	}
	return poll(ctx, "VEEs to run", func() (bool, error) {
		list, err := s.vmi.ListVEEs(ctx, vmi.Filter{})
		run, waits := 0, ""
		for _, v := range list {
			if v.State == vee.Active {
				run++
			} else {
				waits = fmt.Sprintf("; %s is %s, %s on host %q %s", v.ID, v.State, v.Phase, v.Host, v.Error)
			}
		}
		fmt.Fprintf(os.Stderr, "%d of %d VEEs run%s\n", run, *number, waits)
		return run == *number, errors.Join(err, s.running())
	})
}

// addressOf the i-th process: each has one of its own on this machine, where no connection of
// anybody takes a port before it does.
func addressOf(i int) string {
	return fmt.Sprintf("127.%d.%d.%d:7443", 64+os.Getpid()>>8%64, os.Getpid()%256, i+1)
}

func poll(ctx context.Context, what string, done func() (bool, error)) error {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		ok, err := done()
		if fault.Has(err, fault.Timeout) || fault.Has(err, fault.Unavailable) {
			ok, err = false, nil // a machine that is overloaded by others
		}
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-time.After(wait):
		}
	}
}
