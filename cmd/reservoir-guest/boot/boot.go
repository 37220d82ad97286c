// Package boot is what the first process of a machine has to do before it can be of any
// use: mount, load modules, find the seed medium, set up the network, switch the power off.
// It knows nothing of what the guest is for.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ModuleDir holds the kernel's modules in the initramfs, and beside each set of them a
// file that lists it in the order of loading, one file name a line.
const ModuleDir = "/lib/modules"

// Sets of modules.
const (
	ModulesBoot  = "boot.list"  // bus, disk, seed medium, network: what the service waits for
	ModulesLate  = "late.list"  // guest channel, power button, balloon, entropy
	ModulesCDROM = "cdrom.list" // for a seed medium that is no virtio disk
	ModulesRoot  = "root.list"  // for a root file system on a virtio disk
)

// Mount the kernel's file systems, as every init does.
func Mount() error {
	for _, m := range []struct {
		kind, path string
		flags      uintptr
		data       string
	}{
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	} {
		if err := os.MkdirAll(m.path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.path, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting %s on %s: %w", m.kind, m.path, err)
		}
	}
	return nil
}

// LoadModules loads one set. A module that is loaded already is no error; after one that
// fails the others are still tried.
func LoadModules(set string) error {
	list, err := os.ReadFile(filepath.Join(ModuleDir, set))
	if err != nil {
		return fmt.Errorf("loading kernel modules: %w", err)
	}
	var errs []error
	for name := range strings.FieldsSeq(string(list)) {
		if err := loadModule(filepath.Join(ModuleDir, name)); err != nil {
			errs = append(errs, fmt.Errorf("loading kernel module %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// ErrNoSeed means that no medium is labelled as the seed's.
var ErrNoSeed = errors.New("no medium labelled cidata, nor one of an OVF environment")

// seedLabels of volumes, the first that is there wins: cloud-init's, and those under which
// other platforms hand over an OVF environment (as cloud-init's ds-identify knows them).
var seedLabels = []string{"cidata", "CIDATA", "OVF ENV", "OVFENV", "ovfenv", "OVF-TRANSPORT", "ovf-transport"}

// Seed mounts the seed medium, read-only. The caller unmounts by unmount.
func Seed() (medium fs.FS, unmount func(), err error) {
	device, err := labelled(seedLabels)
	if errors.Is(err, ErrNoSeed) {
		if err = LoadModules(ModulesCDROM); err == nil {
			device, err = labelled(seedLabels)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	const at = "/run/seed"
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, nil, err
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount(device, at, "iso9660", flags, ""); err != nil {
		return nil, nil, fmt.Errorf("mounting the seed medium %s: %w", device, err)
	}
	return os.DirFS(at), func() { _ = unix.Unmount(at, unix.MNT_DETACH) }, nil
}

// labelled finds the block device whose ISO 9660 volume has the first of the labels that
// there is.
func labelled(labels []string) (string, error) {
	devices, err := os.ReadDir("/sys/block")
	if err != nil {
		return "", err
	}
	found := map[string]string{}
	for _, d := range devices {
		path := "/dev/" + d.Name()
		if label := volumeLabel(path); found[label] == "" {
			found[label] = path
		}
	}
	for _, label := range labels {
		if path := found[label]; path != "" {
			return path, nil
		}
	}
	return "", ErrNoSeed
}

// volumeLabel in the primary volume descriptor (ECMA-119, 8.4): it is in the sixteenth
// sector of 2048 bytes, the label at its byte 40. Empty where there is no such thing.
func volumeLabel(device string) string {
	f, err := os.Open(device)
	if err != nil {
		return ""
	}
	defer f.Close()
	var sector [2048]byte
	if _, err := f.ReadAt(sector[:], 16*2048); err != nil || string(sector[:6]) != "\x01CD001" {
		return ""
	}
	return strings.TrimRight(string(sector[40:72]), " \x00")
}

// rootWait is how long the root device may take to appear.
const rootWait = 30 * time.Second

// SwitchRoot mounts the device as the root file system and becomes its init. It returns
// only if it cannot.
func SwitchRoot(ctx context.Context, device string) error {
	const at = "/root"
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, rootWait)
	defer cancel()
	for {
		_, err := os.Stat(device)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the root device %s: %w", device, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := unix.Mount(device, at, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mounting the root device %s: %w", device, err)
	}
	for _, fs := range []string{"dev", "proc", "sys", "run"} {
		if err := unix.Mount("/"+fs, filepath.Join(at, fs), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving /%s to the root device: %w", fs, err)
		}
	}
	if err := os.Chdir(at); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root device to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("changing to the root device: %w", err)
	}
	const init = "/sbin/init"
	return fmt.Errorf("starting %s of the root device: %w", init, unix.Exec(init, []string{init}, os.Environ()))
}

// CommandLine of the kernel: the value of a parameter, "" when it is not there.
func CommandLine(key string) (string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", err
	}
	for word := range strings.FieldsSeq(string(line)) {
		if value, ok := strings.CutPrefix(word, key+"="); ok {
			return value, nil
		}
	}
	return "", nil
}

// PowerOff writes what is unwritten and switches the machine off.
func PowerOff() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
