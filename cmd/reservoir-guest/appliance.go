package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/agent"
	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/boot"
	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/seed"
	"github.com/reservoir-cloud/reservoir/cmd/reservoir-guest/service"
)

// settings that the OVF environment may have for the appliance, by these keys.
const (
	keyReadyDelay = "reservoir.ready-delay" // seconds between answering and being ready
	keyIdleAfter  = "reservoir.idle-after"  // seconds without a request until it says idle; 30
	keyPort       = "reservoir.port"        // of HTTP; 80
	keyGreeting   = "reservoir.greeting"    // a line of the page
	keyKPI        = "reservoir.kpi."        // and a name: what that KPI is at first
	keyChannel    = "reservoir.channel"     // URL that its measurements are pushed to, @MonitoringChannel
)

type settings struct {
	readyDelay, idleAfter time.Duration
	port                  int
	greeting, channel     string
	kpis                  map[string]float64
}

// parseSettings takes what it can; the error names each property that it could not.
func parseSettings(properties map[string]string) (settings, error) {
	s := settings{idleAfter: 30 * time.Second, port: 80, kpis: map[string]float64{}}
	var errs []error
	number := func(key, value string, least, most float64) (float64, bool) {
		v, err := strconv.ParseFloat(value, 64)
		if err != nil || !(v >= least && v <= most) {
			errs = append(errs, fmt.Errorf("property %s=%q: want a number from %g to %g", key, value, least, most))
			return 0, false
		}
		return v, true
	}
	const week = 7 * 24 * 3600
	for key, value := range properties {
		name, isKPI := strings.CutPrefix(key, keyKPI)
		switch {
		case key == keyReadyDelay:
			if v, ok := number(key, value, 0, week); ok {
				s.readyDelay = time.Duration(v * float64(time.Second))
			}
		case key == keyIdleAfter:
			if v, ok := number(key, value, 0, week); ok {
				s.idleAfter = time.Duration(v * float64(time.Second))
			}
		case key == keyPort:
			if v, ok := number(key, value, 1, 65535); ok {
				s.port = int(v)
			}
		case key == keyGreeting:
			s.greeting = value
		case key == keyChannel:
			s.channel = value
		case isKPI:
			if v, ok := number(key, value, -1e300, 1e300); ok {
				s.kpis[name] = v
			}
		}
	}
	return s, errors.Join(errs...)
}

// shutdownGrace is how long requests may go on when the machine is told to shut down.
const shutdownGrace = 2 * time.Second

// appliance runs until it is told to shut down, and switches the machine off. What goes
// wrong on the way is logged and told to the host, and the rest is done all the same: a
// guest that can still be looked at beats one that stopped.
func appliance(ctx context.Context) error {
	ctx, shutdown := context.WithCancel(ctx)
	defer shutdown()
	wrong := boot.LoadModules(boot.ModulesBoot)
	told, err := readSeed()
	wrong = errors.Join(wrong, err, boot.Network(ctx, told), boot.WriteFiles(told.Files))
	if len(told.Undone) > 0 {
		wrong = errors.Join(wrong, fmt.Errorf("the appliance installs no software and runs no commands: %s", strings.Join(told.Undone, ", ")))
	}
	set, err := parseSettings(told.Properties)
	wrong = errors.Join(wrong, err)

	web := service.New(hostname, boot.Addresses, set.greeting)
	a := agent.New(agent.Machine{
		Hostname: hostname, Uptime: uptime, FreeMemory: freeMemory,
		Shutdown: func() error { shutdown(); return nil },
		KPIs: func() map[string]float64 {
			kpis := hardware()
			kpis["requests_total"] = float64(web.Requests())
			kpis["memory_available_bytes"] = float64(availableMemory())
			return kpis
		},
		Idle: func() bool { return web.Quiet() >= set.idleAfter },
	}, version, logf)
	for name, v := range set.kpis {
		wrong = errors.Join(wrong, a.SetKPI(name, v))
	}

	server := &http.Server{Handler: web.Handler(ctx, a), ReadHeaderTimeout: 10 * time.Second}
	listener, err := net.Listen("tcp", ":"+strconv.Itoa(set.port))
	wrong = errors.Join(wrong, err)
	if wrong != nil {
		logf("%s", wrong)
		a.SetFailure(strings.ReplaceAll(wrong.Error(), "\n", "; "))
	}

	var parts sync.WaitGroup
	if listener != nil {
		parts.Go(func() {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				logf("HTTP: %s", err)
			}
		})
		logf("%s answers on %s port %d", hostname(), strings.Join(boot.Addresses(), " "), set.port)
		parts.Go(func() {
			select {
			case <-time.After(set.readyDelay):
				a.SetReady(true, "")
			case <-ctx.Done():
			}
		})
	}
	if err := boot.LoadModules(boot.ModulesLate); err != nil {
		logf("%s", err)
	}
	parts.Go(func() { a.Serve(ctx, agent.OpenPort) })
	parts.Go(func() {
		if err := boot.PowerButton(ctx, shutdown); err != nil && ctx.Err() == nil {
			logf("%s", err)
		}
	})
	parts.Go(func() {
		if err := boot.OnlineVCPUs(ctx); err != nil && ctx.Err() == nil {
			logf("%s", err)
		}
	})
	parts.Go(func() { serveConsole(ctx, a, shutdown) })
	if set.channel != "" {
		parts.Go(func() { web.Push(ctx, set.channel, a, logf) })
	}

	<-ctx.Done()
	logf("shutting down")
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		logf("requests cut off: %s", err)
	}
	parts.Wait()
	return boot.PowerOff()
}

func readSeed() (seed.Seed, error) {
	medium, unmount, err := boot.Seed()
	if err != nil {
		return seed.Seed{}, err
	}
	defer unmount()
	return seed.Read(medium)
}

// serveConsole offers the serial console to people, until ctx ends.
func serveConsole(ctx context.Context, a *agent.Agent, shutdown func()) {
	tty, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		logf("opening the console: %s", err)
		return
	}
	defer context.AfterFunc(ctx, func() { tty.Close() })()
	c := console{agent: a, hostname: hostname, addresses: boot.Addresses, uptime: uptime, shutdown: shutdown}
	if err := c.serve(tty); err != nil && ctx.Err() == nil {
		logf("console: %s", err)
	}
}
