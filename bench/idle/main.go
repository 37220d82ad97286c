// Command idle measures what the processes of a site take in memory when nothing happens:
// the site with its record of truth, and each host's agent, without guests and with one
// guest on each host, whose own memory is shown beside them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/reservoir-cloud/reservoir/bench/figure"
	"github.com/reservoir-cloud/reservoir/bench/stage"
)

var (
	binary = flag.String("reservoir", "build/reservoir", "the binary under test")
	layout = flag.String("image", ".cache/images/appliance", "OCI layout of the appliance")
	settle = flag.Duration("settle", 30*time.Second, "how long nothing happens before each reading")
)

const hosts = 3

func main() {
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench idle:", err)
		os.Exit(1)
	}
}

// process is a row of `reservoir dev status -o json`.
type process struct {
	Name      string `json:"name"`
	Kind      string `json:"kind"`
	RSS       int64  `json:"rssBytes"`
	Guests    int    `json:"guests"`
	GuestsRSS int64  `json:"guestsRssBytes"`
}

func run(ctx context.Context) (err error) {
	on, err := stage.Up(ctx, *binary, *layout, "--hosts", fmt.Sprint(hosts))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, on.Down(ctx)) }()
	fmt.Printf("%-14s %-10s %14s %14s   (after %s without work)\n", "state", "process", "RSS", "its guests", *settle)
	var site, host int64
	for _, state := range []string{"no guest", "a guest each"} {
		if state != "no guest" {
			if err := on.Deploy(ctx, manifest); err != nil {
				return err
			}
		}
		fmt.Fprintf(os.Stderr, "waiting %s: %s\n", *settle, state)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(*settle):
		}
		list, err := stage.List[process](ctx, on, "dev", "status", "--dir", on.Dir)
		if err != nil {
			return err
		}
		for _, p := range list {
			if p.Kind == "supervisor" {
				continue
			}
			fmt.Printf("%-14s %-10s %11.1f MB %11.1f MB\n", state, p.Name, mb(p.RSS), mb(p.GuestsRSS))
			if p.Kind == "site" {
				site = max(site, p.RSS)
			} else {
				host = max(host, p.RSS)
			}
		}
	}
	figure.Line("idle_site_rss", mb(site), "MB", "<=", 150)
	figure.Line("idle_host_rss", mb(host), "MB", "<=", 60)
	return nil
}

const manifest = `service: idle
components:
  - name: web
    image: appliance
    replicas: {initial: 3, min: 1, max: 3}
    memory: 128MiB
    networks: [public]
networks:
  - {name: public, public: true}
`

func mb(b int64) float64 { return float64(b) / 1e6 }
