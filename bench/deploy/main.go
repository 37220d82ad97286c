// Command deploy measures the time from `reservoir service deploy` to the first HTTP 200
// of the last replica, beside the same guests started by a shell loop (bare.sh) on the
// same namespaces and bridges, in turn, in one run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var (
	binary = flag.String("reservoir", "build/reservoir", "the binary under test")
	layout = flag.String("image", ".cache/images/appliance", "OCI layout of the appliance")
	rounds = flag.Int("rounds", 3, "how often each is measured; the median counts")
)

var sizes = []int{1, 6, 20}

const hosts = 3

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench deploy:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "bench-deploy")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := bench{dir: dir}
	os.Setenv("RESERVOIR_CONFIG", filepath.Join(dir, "contexts.yaml"))
	stage := filepath.Join(dir, "dev")
	defer func() { err = errors.Join(err, b.reservoir(context.WithoutCancel(ctx), "dev", "down", "--dir", stage)) }()
	fmt.Fprintln(os.Stderr, "a site with three hosts")
	if err := b.reservoir(ctx, "dev", "up", "--detach", "--hosts", fmt.Sprint(hosts), "--dir", stage); err != nil {
		return err
	}
	if err := b.reservoir(ctx, "image", "push", *layout, "appliance"); err != nil {
		return err
	}
	if err := b.look(ctx); err != nil {
		return err
	}
	fmt.Printf("%-8s %12s %12s %8s   (median of %d, in turn; accelerator %s)\n", "guests", "reservoir", "bare loop", "ratio", *rounds, b.accel)
	ratios := map[int]float64{}
	for _, n := range sizes {
		var ours, bare []time.Duration
		for range *rounds {
			o, err := b.ours(ctx, n)
			if err != nil {
				return fmt.Errorf("%d guests by reservoir: %w", n, err)
			}
			s, err := b.bare(ctx, n)
			if err != nil {
				return fmt.Errorf("%d guests by the shell loop: %w", n, err)
			}
			fmt.Fprintf(os.Stderr, "  %d guests: reservoir %.2fs, bare %.2fs\n", n, o.Seconds(), s.Seconds())
			ours, bare = append(ours, o), append(bare, s)
		}
		mo, mb := figure.Median(ours), figure.Median(bare)
		ratios[n] = mo.Seconds() / mb.Seconds()
		fmt.Printf("%-8d %11.2fs %11.2fs %8.2f\n", n, mo.Seconds(), mb.Seconds(), ratios[n])
	}
	for _, n := range sizes {
		figure.Line(fmt.Sprintf("deploy_ratio_%d", n), ratios[n], "x", "<=", 1.3)
	}
	return nil
}

type bench struct {
	dir                     string
	accel                   string
	kernel, initrd, cmdline string
	spaces                  []string
}

// look finds what the bare loop needs to start the same guests.
func (b *bench) look(ctx context.Context) error {
	src, err := image.FromLayout(*layout, "")
	if err != nil {
		return err
	}
	img := src.Image()
	blob := func(digest string) string {
		path, err := filepath.Abs(filepath.Join(*layout, "blobs", strings.ReplaceAll(digest, ":", "/")))
		if err != nil {
			panic(err)
		}
		return path
	}
	b.kernel, b.initrd, b.cmdline = blob(img.Kernel.Digest.String()), blob(img.Initrd.Digest.String()), img.Config.Cmdline
	var list []vmi.Host
	if err := b.json(ctx, &list, "host", "list"); err != nil {
		return err
	}
	for _, h := range list {
		b.spaces = append(b.spaces, "rsv-alpha-"+h.Name)
		b.accel = h.Drivers[0].Accelerator
	}
	return nil
}

func (b *bench) ours(ctx context.Context, n int) (time.Duration, error) {
	file := filepath.Join(b.dir, "bench.yaml")
	text := fmt.Sprintf(manifest, n, n, n)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := b.reservoir(ctx, "service", "deploy", file); err != nil {
		return 0, err
	}
	var addresses []string
	for len(addresses) < n {
		var vees []vmi.VEE
		if err := b.json(ctx, &vees, "vee", "list"); err != nil {
			return 0, err
		}
		addresses = addresses[:0]
		for _, v := range vees {
			a, _, _ := strings.Cut(v.Descriptor.NICs[0].Address, "/")
			addresses = append(addresses, a)
		}
	}
	if err := allAnswer(ctx, addresses); err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, b.reservoir(ctx, "service", "delete", "bench", "--wait")
}

const manifest = `service: bench
networks:
  - name: public
    public: true
components:
  - name: web
    replicas: {min: 1, max: %d, initial: %d}
    image: appliance
    memory: 128MiB
    networks: [public]
    ports: [http:80]
# %d guests
`

func (b *bench) bare(ctx context.Context, n int) (took time.Duration, err error) {
	dir := filepath.Join(b.dir, "bare")
	script := "bench/deploy/bare.sh"
	defer func() {
		out, e := exec.CommandContext(context.WithoutCancel(ctx), script, append([]string{"stop", dir}, b.spaces...)...).CombinedOutput()
		if e != nil {
			err = errors.Join(err, fmt.Errorf("end the bare guests: %w: %s", e, out))
		}
	}()
	accel := b.accel
	if accel == "tcg" {
		accel = "tcg,tb-size=16"
	}
	var addresses []string
	for i := range n {
		addresses = append(addresses, fmt.Sprintf("10.80.200.%d", i+1))
	}
	start := time.Now()
	args := append([]string{"start", fmt.Sprint(n), b.kernel, b.initrd, b.cmdline, accel, dir}, b.spaces...)
	if out, err := exec.CommandContext(ctx, script, args...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	if err := allAnswer(ctx, addresses); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

// allAnswer waits for an HTTP 200 from each address.
func allAnswer(ctx context.Context, addresses []string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	c := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var wg sync.WaitGroup
	errs := make([]error, len(addresses))
	for i, a := range addresses {
		wg.Go(func() { errs[i] = answers(ctx, c, "http://"+a+"/") })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func answers(ctx context.Context, c *http.Client, url string) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := c.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", url, ctx.Err())
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func (b *bench) reservoir(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, *binary, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("reservoir %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (b *bench) json(ctx context.Context, into any, args ...string) error {
	out, err := exec.CommandContext(ctx, *binary, append(args, "-o", "json")...).Output()
	if err != nil {
		return fmt.Errorf("reservoir %s: %w", strings.Join(args, " "), err)
	}
	return json.Unmarshal(out, into)
}
