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
	"github.com/reservoir-cloud/reservoir/vee"
)

// accelerator remembers until the machine boots again which accelerator works, for every
// agent on it.
const accelerator = "/run/reservoir/accelerator.json"

func openDriver(ctx context.Context, cfg Config) (hypervisor.Driver, error) {
	switch cfg.Driver {
	case "qemu", "":
		if err := os.MkdirAll(filepath.Dir(accelerator), 0o755); err != nil {
			return nil, fmt.Errorf("remember the accelerator: %w", err)
		}
		return qemu.New(ctx, qemu.Config{Dir: filepath.Join(cfg.Dir, "qemu"), ProbeCache: accelerator, Log: cfg.Log})
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

// plugs of a host: its bridge, or none where guests are simulated.
type plugs interface {
	Plug(id vee.ID, nic int) (tap string, err error)
	Unplug(id vee.ID) error
	Sweep(keep []vee.ID) error
}

type noPlugs struct{}

func (noPlugs) Plug(vee.ID, int) (string, error) { return "", nil }
func (noPlugs) Unplug(vee.ID) error              { return nil }
func (noPlugs) Sweep([]vee.ID) error             { return nil }

func openPlugs(cfg Config) (plugs, error) {
	if cfg.Driver == "sim" {
		return noPlugs{}, nil
	}
	if cfg.Bridge == "" {
		return nil, fault.New(fault.Malformed, "no bridge is named to plug VEEs into").Try("reservoir host --bridge rsv0")
	}
	return van.EnsureBridge(cfg.Bridge)
}
