package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reservoir-cloud/reservoir/internal/durable"
	"github.com/reservoir-cloud/reservoir/vee"
)

// probeLimit bounds a test boot under TCG, which always works but for a broken QEMU.
const probeLimit = 20 * time.Second

// ProbeResult says which accelerator guests get here, and why.
type ProbeResult struct {
	Accelerator string        `json:"accelerator"` // "kvm" or "tcg"
	Why         string        `json:"why"`         // in words, with the times measured
	KVM         time.Duration `json:"kvmNs"`       // of the test boot; 0: it did not end
	TCG         time.Duration `json:"tcgNs"`
}

// probeSector boots and tells so by ending QEMU, with status 2*0x2a+1:
//
//	b0 2a   mov  al, 0x2a
//	e6 f4   out  0xf4, al     ; isa-debug-exit
//	f4      hlt
//	eb fd   jmp  $-1
//
// The last two bytes of the sector make it bootable.
var probeSector = []byte{0xb0, 0x2a, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd}

const probeStatus = 2*0x2a + 1

// Probe boots a guest of one sector under each accelerator and takes KVM where it works
// and is not much slower. That /dev/kvm is there says little: nested in another
// hypervisor, its guests may hang at their first instruction or crawl.
//
// cfg is that of the driver: the test runs as a guest's user. A driver's New calls this by
// itself and keeps the result (Config.ProbeCache).
func Probe(ctx context.Context, cfg Config) (ProbeResult, error) {
	cfg = cfg.withDefaults()
	r := ProbeResult{Accelerator: "tcg"}
	var err error
	if r.TCG, err = testBoot(ctx, cfg, "tcg", probeLimit); err != nil {
		return r, fmt.Errorf("boot a test guest: %w", err)
	}
	const unit = time.Millisecond
	// Some seconds on a busy machine, one on an idle one.
	limit := 5*r.TCG + 500*time.Millisecond
	if r.KVM, err = testBoot(ctx, cfg, "kvm", limit); err != nil {
		if ctx.Err() != nil {
			return r, fmt.Errorf("boot a test guest: %w", context.Cause(ctx))
		}
		r.Why = fmt.Sprintf("KVM: %s; TCG booted in %s", err, r.TCG.Round(unit))
		return r, nil
	}
	r.Accelerator = "kvm"
	r.Why = fmt.Sprintf("a test guest booted in %s with KVM, in %s with TCG", r.KVM.Round(unit), r.TCG.Round(unit))
	return r, nil
}

// testBoot times the boot of probeSector.
func testBoot(ctx context.Context, cfg Config, accelerator string, limit time.Duration) (time.Duration, error) {
	credential := (&Driver{cfg: cfg}).credential(cfg.FirstUID, accelerator)
	if accelerator == "kvm" {
		st, err := os.Stat("/dev/kvm")
		switch {
		case err != nil:
			return 0, errors.New("this machine has no /dev/kvm")
		case credential != nil && len(credential.Groups) == 0 && st.Mode()&0o006 != 0o006:
			return 0, errors.New("guests' users may not open /dev/kvm (give it to a group: chgrp kvm /dev/kvm && chmod 660 /dev/kvm)")
		}
	}
	image, err := probeImage()
	if err != nil {
		return 0, err
	}
	defer image.Close()
	boot, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(boot, cfg.Binary, "-machine", "pc", "-accel", accelerator, "-m", "16",
		"-nodefaults", "-no-user-config", "-display", "none",
		"-add-fd", "fd=3,set=3",
		"-blockdev", "driver=file,node-name=disk,filename=/dev/fdset/3",
		"-device", "virtio-blk-pci,drive=disk",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
	cmd.ExtraFiles = []*os.File{image}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(start)
	var exit *exec.ExitError
	switch {
	case boot.Err() != nil && ctx.Err() == nil:
		return 0, fmt.Errorf("its test guest did not boot within %s", limit.Round(time.Millisecond))
	case errors.As(err, &exit) && exit.ExitCode() == probeStatus:
		return took, nil
	case err == nil:
		err = errors.New("QEMU ended by itself")
	}
	return 0, fmt.Errorf("%w %.200s", err, strings.Join(strings.Fields(string(out)), " "))
}

// probeImage is a disk in memory with the sector on it. Firmware boots from no disk that
// is smaller than a cylinder.
func probeImage() (*os.File, error) {
	fd, err := unix.MemfdCreate("reservoir-probe", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a test disk: %w", err)
	}
	f := os.NewFile(uintptr(fd), "reservoir-probe")
	sector := make([]byte, 512)
	copy(sector, probeSector)
	sector[510], sector[511] = 0x55, 0xaa
	if _, err := f.Write(sector); err != nil {
		f.Close()
		return nil, fmt.Errorf("make a test disk: %w", err)
	}
	if err := f.Truncate(int64(vee.MiB)); err != nil {
		f.Close()
		return nil, fmt.Errorf("make a test disk: %w", err)
	}
	return f, nil
}

// Accelerator is Probe with its result kept in cfg.ProbeCache, as a driver's New asks for
// it: for other drivers that run QEMU on this machine.
func Accelerator(ctx context.Context, cfg Config) (ProbeResult, error) {
	cfg = cfg.withDefaults()
	cfg.ProbeCache = cmp.Or(cfg.ProbeCache, filepath.Join(cfg.Dir, "accelerator.json"))
	version, err := Version(ctx, cfg.Binary)
	if err != nil {
		return ProbeResult{}, err
	}
	return cachedProbe(ctx, cfg, version)
}

// cachedProbe asks the file first. Its answer holds until the machine boots again or QEMU
// is another version.
func cachedProbe(ctx context.Context, cfg Config, version string) (ProbeResult, error) {
	boot, err := bootID()
	if err != nil {
		return ProbeResult{}, err
	}
	var cache struct {
		Boot    string `json:"boot"`
		Version string `json:"version"`
		ProbeResult
	}
	if durable.ReadJSON(cfg.ProbeCache, &cache) == nil && cache.Boot == boot && cache.Version == version && cache.Accelerator != "" {
		return cache.ProbeResult, nil
	}
	if cache.ProbeResult, err = Probe(ctx, cfg); err != nil {
		return ProbeResult{}, err
	}
	cache.Boot, cache.Version = boot, version
	if err := durable.WriteJSON(cfg.ProbeCache, cache, 0o644); err != nil {
		cfg.Log.Warn("cannot keep the result of the test boot", "error", err) // it is made again
	}
	return cache.ProbeResult, nil
}
