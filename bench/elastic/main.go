// Command elastic measures how long a service takes to grow: from a KPI that crosses its
// threshold in a guest to the new replica serving behind the service's access point, on real
// guests. It splits that into detection (the guest's word is at the site), decision (a rule
// has looked at it), placement (a host has the replica), boot (its guest answers) and joining
// (the access point leads to it). The peer is the same guest started by a shell loop on the
// same host (bench/deploy/bare.sh), which detects and decides nothing: what is beyond it is
// what elasticity costs.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var (
	binary = flag.String("reservoir", "build/reservoir", "the binary under test")
	layout = flag.String("image", ".cache/images/appliance", "OCI layout of the appliance")
	rounds = flag.Int("rounds", 5, "how often it is measured; the median counts")
	prefix = flag.String("prefix", "rsv", "of the stage's links and namespaces")
	subnet = flag.Int("subnet", 80, "of the stage, 10.N.0.0/16")
)

// every is how often the rule looks: a decision waits for half of it on average.
const every = time.Second

const manifest = `service: bench
networks:
  - {name: public, public: true}
components:
  - name: web
    image: appliance
    memory: 128MiB
    replicas: {initial: 1, min: 1, max: 2}
    networks: [public]
    ports: [http:80]
    cooldown: {up: 0s, down: 0s}
kpis:
  - {name: sessions, component: web}
rules:
  - {name: grow, every: 1s, condition: sessions > 10, do: {action: scaleUp, component: web}}
  - {name: shrink, every: 1s, condition: sessions < 5, do: {action: scaleDown, component: web}}
`

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench elastic:", err)
		os.Exit(1)
	}
}

type bench struct {
	dir, stage string
	site       *http.Client // that trusts the site
	url, token string
}

func run(ctx context.Context) (err error) {
	b := &bench{}
	if b.dir, err = os.MkdirTemp("", "bench-elastic"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	os.Setenv("RESERVOIR_CONFIG", filepath.Join(b.dir, "contexts.yaml"))
	b.stage = filepath.Join(b.dir, "dev")
	defer func() {
		err = errors.Join(err, b.reservoir(context.WithoutCancel(ctx), "dev", "down", "--dir", b.stage))
	}()
	fmt.Fprintln(os.Stderr, "a site with two hosts, a service of one replica")
	if err := b.reservoir(ctx, "dev", "up", "--detach", "--hosts", "2", "--dir", b.stage, "--prefix", *prefix, "--subnet", strconv.Itoa(*subnet)); err != nil {
		return err
	}
	if err := b.trust(); err != nil {
		return err
	}
	if err := b.reservoir(ctx, "image", "push", *layout, "appliance"); err != nil {
		return err
	}
	file := filepath.Join(b.dir, "bench.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		return err
	}
	if err := b.reservoir(ctx, "service", "deploy", file, "--wait"); err != nil {
		return err
	}
	if err := b.tell(ctx, 7); err != nil { // so that there is a KPI, within its bounds
		return err
	}
	if _, err := b.await(ctx, "the KPI is at the site", func(ctx context.Context) (bool, error) { v, err := b.kpi(ctx); return v == 7, err }); err != nil {
		return err
	}
	return b.measure(ctx)
}

// parts of one growth, in order.
var parts = []string{"detection", "decision", "placement", "boot", "joining"}

func (b *bench) measure(ctx context.Context) error {
	took := map[string][]time.Duration{}
	for i := range *rounds {
		one, err := b.grow(ctx)
		if err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
		line := fmt.Sprintf("  round %d:", i+1)
		for _, p := range append(parts, "total") {
			took[p] = append(took[p], one[p])
			line += fmt.Sprintf(" %s %.3fs", p, one[p].Seconds())
		}
		bare, err := b.bare(ctx)
		if err != nil {
			return fmt.Errorf("round %d, by the shell loop: %w", i+1, err)
		}
		took["bare"] = append(took["bare"], bare)
		fmt.Fprintf(os.Stderr, "%s, bare boot %.3fs\n", line, bare.Seconds())
		if err := b.shrink(ctx); err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
	}
	fmt.Printf("from a KPI crossing its threshold to the new replica serving; median of %d, the rule looks every %s\n", *rounds, every)
	for _, p := range append(parts, "total") {
		fmt.Printf("  %-10s %8.3fs\n", p, figure.Median(took[p]).Seconds())
	}
	total, bare := figure.Median(took["total"]), figure.Median(took["bare"])
	fmt.Printf("  %-10s %8.3fs   the same guest by a shell loop, which detects and decides nothing\n", "bare boot", bare.Seconds())
	for _, x := range []struct {
		part   string
		target float64
	}{{"detection", 1.5}, {"decision", 1.25}, {"placement", 0.5}} {
		figure.Line("elastic_"+x.part, figure.Median(took[x.part]).Seconds(), "s", "<=", x.target)
	}
	figure.Line("elastic_boot_ratio", figure.Median(took["boot"]).Seconds()/bare.Seconds(), "x", "<=", 1.3)
	figure.Line("elastic_overhead", (total - bare).Seconds(), "s", "<=", 3)
	return nil
}

// grow by one replica, and say what that took, by part.
func (b *bench) grow(ctx context.Context) (map[string]time.Duration, error) {
	had, err := b.vees(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.tell(ctx, 20); err != nil {
		return nil, err
	}
	crossed := time.Now()
	at := map[string]time.Time{}
	if at["detection"], err = b.await(ctx, "the KPI is at the site", func(ctx context.Context) (bool, error) { v, err := b.kpi(ctx); return v > 10, err }); err != nil {
		return nil, err
	}
	var fresh vmi.VEE
	if _, err = b.await(ctx, "a second replica", func(ctx context.Context) (bool, error) {
		list, err := b.vees(ctx)
		for _, v := range list {
			if v.Host != "" && v.ID != had[0].ID {
				fresh = v
			}
		}
		return fresh.ID != "", err
	}); err != nil {
		return nil, err
	}
	address, _, _ := strings.Cut(fresh.Descriptor.NICs[0].Address, "/")
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	if at["boot"], err = b.await(ctx, "the new replica answers", func(ctx context.Context) (bool, error) { return answers(ctx, client, "http://"+address+"/"), nil }); err != nil {
		return nil, err
	}
	if at["joining"], err = b.await(ctx, "the access point has it", func(ctx context.Context) (bool, error) {
		var points []vmi.AccessPoint
		err := b.get(ctx, "/vmi/v1/access-points", &points)
		return len(points) == 1 && points[0].Backends == 2, err
	}); err != nil {
		return nil, err
	}
	// When it was decided, and when a host had it, the site itself says.
	var events []smi.Event
	if err := b.get(ctx, "/smi/v1/events?"+url.Values{"limit": {"200"}}.Encode(), &events); err != nil {
		return nil, err
	}
	for _, e := range events {
		switch {
		case e.At.Before(crossed):
		case e.Reason == "ScaledUp":
			at["decision"] = e.At
		case e.Reason == "Placed" && e.Object == "vee/"+string(fresh.ID):
			at["placement"] = e.At
		}
	}
	out, before := map[string]time.Duration{"total": at["joining"].Sub(crossed)}, crossed
	for _, p := range parts {
		if at[p].IsZero() {
			return nil, fmt.Errorf("nothing says when %s was done", p)
		}
		out[p] = max(0, at[p].Sub(before)) // what was polled for may have been there a little earlier
		before = at[p]
	}
	return out, nil
}

// shrink to one replica again.
func (b *bench) shrink(ctx context.Context) error {
	if err := b.tell(ctx, 1); err != nil {
		return err
	}
	if _, err := b.await(ctx, "one replica again", func(ctx context.Context) (bool, error) { list, err := b.vees(ctx); return len(list) == 1, err }); err != nil {
		return err
	}
	if err := b.tell(ctx, 7); err != nil {
		return err
	}
	_, err := b.await(ctx, "the KPI is back", func(ctx context.Context) (bool, error) { v, err := b.kpi(ctx); return v == 7, err })
	return err
}

// tell the service's oldest replica how many sessions it has.
func (b *bench) tell(ctx context.Context, sessions int) error {
	list, err := b.vees(ctx)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return errors.New("the service has no replica")
	}
	for i, v := range list {
		n := 0
		if i == 0 {
			n = sessions
		}
		if err := b.reservoir(ctx, "vee", "tell", string(v.ID), "kpi", "name=sessions", fmt.Sprintf("amount=%d", n)); err != nil {
			return err
		}
	}
	return nil
}

// vees that are not destroyed, the oldest first.
func (b *bench) vees(ctx context.Context) (list []vmi.VEE, err error) {
	err = b.get(ctx, "/vmi/v1/vees", &list)
	for i := 1; i < len(list); i++ {
		if list[i].Created.Before(list[0].Created) {
			list[0], list[i] = list[i], list[0]
		}
	}
	return list, err
}

// kpi is the sum of sessions at the site; -1 where there is none yet.
func (b *bench) kpi(ctx context.Context) (float64, error) {
	var answer struct {
		Data struct {
			Result []struct {
				Value [2]any `json:"value"` // time and text
			} `json:"result"`
		} `json:"data"`
	}
	if err := b.get(ctx, "/prometheus/api/v1/query?"+url.Values{"query": {"sessions"}}.Encode(), &answer); err != nil {
		return 0, err
	}
	most := -1.0
	for _, r := range answer.Data.Result {
		text, _ := r.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return 0, fmt.Errorf("value %q of the KPI: %w", text, err)
		}
		most = max(most, v)
	}
	return most, nil
}

// await something that is asked for again and again, and return when it was so.
func (b *bench) await(ctx context.Context, what string, ok func(context.Context) (bool, error)) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		is, err := ok(ctx)
		if err != nil {
			return time.Time{}, fmt.Errorf("%s: %w", what, err)
		}
		if is {
			return time.Now(), nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%s: not within two minutes", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// bare is how long the same guest takes to answer that a shell loop starts.
func (b *bench) bare(ctx context.Context) (took time.Duration, err error) {
	src, err := image.FromLayout(*layout, "")
	if err != nil {
		return 0, err
	}
	img := src.Image()
	blob := func(digest string) string {
		return filepath.Join(*layout, "blobs", strings.ReplaceAll(digest, ":", "/"))
	}
	var hosts []vmi.Host
	if err := b.get(ctx, "/vmi/v1/hosts", &hosts); err != nil {
		return 0, err
	}
	accel := hosts[0].Drivers[0].Accelerator
	if accel == "tcg" {
		accel = "tcg,tb-size=16"
	}
	space, dir, script := *prefix+"-alpha-"+hosts[0].Name, filepath.Join(b.dir, "bare"), "bench/deploy/bare.sh"
	defer func() {
		if out, e := exec.CommandContext(context.WithoutCancel(ctx), script, "stop", dir, space).CombinedOutput(); e != nil {
			err = errors.Join(err, fmt.Errorf("end the bare guest: %w: %s", e, out))
		}
	}()
	cmd := exec.CommandContext(ctx, script, "start", "1", blob(img.Kernel.Digest.String()), blob(img.Initrd.Digest.String()), img.Config.Cmdline, accel, dir, space)
	cmd.Env = append(os.Environ(), fmt.Sprintf("NET=10.%d", *subnet))
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	end, err := b.await(ctx, "the bare guest answers", func(ctx context.Context) (bool, error) {
		return answers(ctx, client, fmt.Sprintf("http://10.%d.200.1/", *subnet)), nil
	})
	return end.Sub(start), err
}

func answers(ctx context.Context, c *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := c.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode == http.StatusOK
}

// trust the site of the stage, as its operator.
func (b *bench) trust() error {
	home := filepath.Join(b.stage, "alpha", "site")
	token, err := os.ReadFile(filepath.Join(home, "admin-token"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(home, "ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	b.url, b.token = fmt.Sprintf("https://10.%d.0.1:8440", *subnet), strings.TrimSpace(string(token))
	b.site = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	return nil
}

func (b *bench) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+b.token)
	resp, err := b.site.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("GET %s: %s: %s", path, resp.Status, text)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

func (b *bench) reservoir(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, *binary, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("reservoir %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
