// Command failover measures, with real timings, how long a VEE is away whose host dies: a
// site with three hosts in network namespaces, QEMU guests, everything that runs on one host
// killed at once. It is repeated on the host that took the VEE over.
//
// The time goes from the kill to the guest's own page at its address, so the guest's boot is
// in it. There is nothing to compare it with on this machine: a cluster that restarts VMs
// elsewhere needs hosts of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/bench/stage"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

var (
	binary = flag.String("reservoir", "build/reservoir", "the binary under test")
	layout = flag.String("image", ".cache/images/appliance", "OCI layout of the appliance")
	rounds = flag.Int("rounds", 2, "hosts that are killed, one after the other")
	scale  = flag.Float64("ha-scale", 1, "of the site's timings; 1 is what is measured")
	prefix = flag.String("prefix", "bfo", "of the stage's namespaces")
	subnet = flag.String("subnet", "131", "of the stage")
)

const manifest = `service: failover
networks:
  - {name: public, public: true}
components:
  - name: web
    replicas: {min: 1, max: 1, initial: 1}
    image: appliance
    memory: 128MiB
    networks: [public]
    ports: [http:80]
    restart: elsewhere
`

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench failover:", err)
		os.Exit(1)
	}
}

// outage of one VEE, from the kill of its host.
type outage struct {
	from, to               string
	lost, assigned, served time.Duration
}

func run(ctx context.Context) (err error) {
	on, err := stage.Up(ctx, *binary, *layout, "--hosts", "3", "--prefix", *prefix, "--subnet", *subnet,
		"--ha-scale", strconv.FormatFloat(*scale, 'g', -1, 64))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, on.Down(ctx)) }()
	if err := on.Deploy(ctx, manifest, "--timeout", "4m"); err != nil {
		return err
	}
	// Until every host counts by the three witnesses, and they have been there for a while.
	if err := sleep(ctx, time.Duration(*scale*float64(time.Minute))); err != nil {
		return err
	}
	var all []outage
	for range *rounds {
		o, err := kill(ctx, on)
		if err != nil {
			return err
		}
		all = append(all, o)
	}
	fmt.Printf("%-6s %-6s %12s %14s %12s\n", "FROM", "TO", "LOST-AFTER", "GIVEN-AFTER", "BACK-AFTER")
	var served []time.Duration
	for _, o := range all {
		fmt.Printf("%-6s %-6s %10.1f s %12.1f s %10.1f s\n", o.from, o.to, o.lost.Seconds(), o.assigned.Seconds(), o.served.Seconds())
		served = append(served, o.served)
	}
	if *scale != 1 {
		fmt.Printf("timings × %g\n", *scale)
	}
	figure.Line("failover_s", figure.Median(served).Seconds(), "s", "<=", 90)
	return nil
}

// kill the host of the VEE, and bring it back when the VEE is elsewhere.
func kill(ctx context.Context, on *stage.Stage) (o outage, err error) {
	v, err := web(ctx, on)
	if err != nil {
		return o, err
	}
	o.from = v.Host
	supervisor, err := processOf(ctx, on, "dev")
	if err != nil {
		return o, err
	}
	pids, err := exec.CommandContext(ctx, "ip", "netns", "pids", *prefix+"-alpha-"+v.Host).Output()
	if err != nil {
		return o, fmt.Errorf("processes of host %s: %w", v.Host, err)
	}
	// Stopped, so that it starts nothing there again.
	if err := syscall.Kill(supervisor, syscall.SIGSTOP); err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, syscall.Kill(supervisor, syscall.SIGCONT)) }()
	began := time.Now()
	for _, p := range strings.Fields(string(pids)) {
		pid, err := strconv.Atoi(p)
		if err != nil {
			return o, err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return o, err
		}
	}
	url := "http://" + strings.SplitN(v.Descriptor.NICs[0].Address, "/", 2)[0] + "/"
	for {
		n, err := web(ctx, on)
		if err != nil {
			return o, err
		}
		since := time.Since(began)
		if o.lost == 0 && n.Phase == vee.PhaseUnknown {
			o.lost = since
		}
		if o.assigned == 0 && n.Host != v.Host {
			o.assigned, o.to = since, n.Host
		}
		if o.assigned != 0 && answers(ctx, url) {
			o.served = time.Since(began)
			break
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return o, err
		}
	}
	if err := syscall.Kill(supervisor, syscall.SIGCONT); err != nil {
		return o, err
	}
	for { // the host is back, and the witnesses are steady
		hosts, err := stage.List[vmi.Host](ctx, on, "host", "list")
		if err != nil {
			return o, err
		}
		alive := 0
		for _, h := range hosts {
			if h.Alive {
				alive++
			}
		}
		if alive == len(hosts) {
			return o, sleep(ctx, time.Duration(*scale*float64(time.Minute)))
		}
		if err := sleep(ctx, time.Second); err != nil {
			return o, err
		}
	}
}

func answers(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err == nil && resp.StatusCode == http.StatusOK
}

func web(ctx context.Context, on *stage.Stage) (vmi.VEE, error) {
	vees, err := stage.List[vmi.VEE](ctx, on, "vee", "list")
	if err == nil && len(vees) != 1 {
		err = fmt.Errorf("%d VEEs, want one", len(vees))
	}
	if err != nil {
		return vmi.VEE{}, err
	}
	return vees[0], nil
}

func processOf(ctx context.Context, on *stage.Stage, name string) (int, error) {
	type process struct {
		Name string `json:"name"`
		PID  int    `json:"pid"`
	}
	all, err := stage.List[process](ctx, on, "dev", "status", "--dir", on.Dir)
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if p.Name == name {
			return p.PID, nil
		}
	}
	return 0, fmt.Errorf("there is no process %s", name)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
