package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/hypervisor/libvirt"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu"
	"github.com/reservoir-cloud/reservoir/hypervisor/sim"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/van"
	"github.com/reservoir-cloud/reservoir/van/responder"
	"github.com/reservoir-cloud/reservoir/vee"
)

// accelerator remembers until the machine boots again which accelerator works, for every
// agent on it.
const accelerator = "/run/reservoir/accelerator.json"

// openDriver of a host. guard is told of each process that is to run a guest.
func openDriver(ctx context.Context, cfg Config, guard func(ctx context.Context, id vee.ID, pid int) error) (hypervisor.Driver, error) {
	switch cfg.Driver {
	case "qemu", "":
		if err := os.MkdirAll(filepath.Dir(accelerator), 0o755); err != nil {
			return nil, fmt.Errorf("remember the accelerator: %w", err)
		}
		return qemu.New(ctx, qemu.Config{Dir: filepath.Join(cfg.Dir, "qemu"), ProbeCache: accelerator, Guard: guard, Log: cfg.Log})
	case "sim":
		return sim.New(sim.Config{Dir: filepath.Join(cfg.Dir, "sim")})
	}
	if name, uri, _ := strings.Cut(cfg.Driver, ":"); name == libvirt.Name {
		if err := os.MkdirAll(filepath.Dir(accelerator), 0o755); err != nil {
			return nil, fmt.Errorf("remember the accelerator: %w", err)
		}
		return libvirt.New(ctx, libvirt.Config{Dir: filepath.Join(cfg.Dir, "libvirt"), URI: uri, ProbeCache: accelerator, Log: cfg.Log})
	}
	return nil, fault.New(fault.Malformed, "hypervisor driver %q: want qemu, libvirt, libvirt:URI or sim", cfg.Driver).Try("reservoir host --driver qemu")
}

// openDatapath of a host: its kernel, or none where guests are simulated.
func openDatapath(cfg Config, take taking) (datapath, answering, error) {
	if cfg.Driver == "sim" {
		return noNetwork{}, noAnswers{}, nil
	}
	if cfg.Bridge == "" {
		return nil, nil, fault.New(fault.Malformed, "no bridge is named to plug VEEs into").Try("reservoir host --bridge rsv0")
	}
	path, err := van.Open(van.Config{Host: cfg.Name, Underlay: cfg.Underlay, Bridge: cfg.Bridge, Log: cfg.Log})
	if err != nil {
		return nil, nil, err
	}
	resolve, err := responder.Forward("/etc/resolv.conf")
	if err != nil { // public names are then not found
		cfg.Log.Warn("this host has no resolver to ask for its guests", "error", err)
	}
	return path, several{
		newAnswers("DHCP and DNS", responders(cfg.Name, path, resolve, cfg.Log), cfg.Log),
		newAnswers("measurements", proxies(path, take, cfg.Log), cfg.Log),
	}, nil
}
