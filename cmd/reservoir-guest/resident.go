package main

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/agent"
	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/boot"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// readyPoll is how often the ready file is looked for.
const readyPoll = time.Second

// resident is the agent in a system that has an init of its own. Programs of that system
// publish a KPI by writing a number to a file that has its name; one called "idle" that is
// 1 says that this replica would not be missed.
func resident(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("reservoir-guest", flag.ContinueOnError)
	readyFile := flags.String("ready-file", "", "the guest is ready once this file is there (empty: at once)")
	logFile := flags.String("log-file", "", "whose end is told when the ready file says, as cloud-init's result.json does, that something went wrong")
	kpiDir := flags.String("kpi-dir", "/run/reservoir/kpi", "directory of files NAME that hold one number each")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := os.MkdirAll(*kpiDir, 0o755); err != nil {
		return fmt.Errorf("making the directory for KPIs: %w", err)
	}
	kpis := os.DirFS(*kpiDir)
	a := agent.New(agent.Machine{
		Hostname: hostname, Uptime: uptime, FreeMemory: freeMemory,
		Shutdown: func() error {
			if out, err := exec.Command("systemctl", "--no-block", "poweroff").CombinedOutput(); err != nil { //nolint:noctx // --no-block: it returns at once
				return fmt.Errorf("systemctl poweroff: %w: %s", err, out)
			}
			return nil
		},
		KPIs: func() map[string]float64 { return readKPIs(kpis) },
		Idle: func() bool { return readKPIs(kpis)["idle"] == 1 },
	}, version, logf)

	var parts sync.WaitGroup
	parts.Go(func() {
		for *readyFile != "" {
			if result, err := os.ReadFile(*readyFile); err == nil {
				if text := firstBoot(result, tail(*logFile)); text != "" {
					logf("%s", text)
					a.SetFailure(text)
				}
				break
			}
			select {
			case <-time.After(readyPoll):
			case <-ctx.Done():
				return
			}
		}
		a.SetReady(true, "")
	})
	parts.Go(func() {
		if err := boot.OnlineVCPUs(ctx); err != nil && ctx.Err() == nil {
			logf("%s", err)
		}
	})
	a.Serve(ctx, agent.OpenPort)
	parts.Wait()
	return nil
}

// readKPIs takes every file that has a good name and holds a number; the others are
// somebody's half-written ones.
func readKPIs(dir fs.FS) map[string]float64 {
	kpis := map[string]float64{}
	files, err := fs.ReadDir(dir, ".")
	if err != nil {
		return kpis
	}
	for _, f := range files {
		if !guest.ValidKPI(f.Name()) || len(kpis) >= guest.MaxKPIs {
			continue
		}
		text, err := fs.ReadFile(dir, f.Name())
		if err != nil {
			continue
		}
		if v, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64); err == nil {
			kpis[f.Name()] = v
		}
	}
	return kpis
}
