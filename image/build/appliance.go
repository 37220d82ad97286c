package build

import (
	"context"
	"os"
	"path/filepath"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/vee"
)

// kernelOptions that both images boot with. Measured on an emulated CPU: acpi=noirq takes
// 0.1 s off for each PCI device, whose interrupt is else routed by interpreted ACPI code and
// then not used, as virtio has MSI-X; cryptomgr.notests 0.3 s, noreplace-smp 0.1 s. What
// gave nothing is left out: tsc=reliable, no_timer_check, mitigations=off, nokaslr, pci=.
const kernelOptions = "console=ttyS0 quiet panic=-1 acpi=noirq cryptomgr.notests noreplace-smp random.trust_cpu=on"

// applianceRecipe changes when the same inputs are to give another image.
const applianceRecipe = "recipe 1"

// Appliance builds the image that boots in a second or two and answers HTTP on port 80.
// The same kernel package and guest give the same digest.
func Appliance(ctx context.Context, o Options) (Artifact, error) {
	b, err := newBuilder(ctx, o)
	if err != nil {
		return Artifact{}, err
	}
	pkg, err := newestKernel(ctx)
	if err != nil {
		return Artifact{}, err
	}
	stamp := b.stamp(applianceRecipe, "kernel "+pkg, "cmdline "+kernelOptions)
	if a, ok := b.kept("appliance", stamp); ok {
		return a, nil
	}
	work, err := os.MkdirTemp(b.cache, "appliance-")
	if err != nil {
		return Artifact{}, err
	}
	defer os.RemoveAll(work)
	files, err := b.bootFiles(ctx, work, pkg, "boot.list", "late.list", "cdrom.list")
	if err != nil {
		return Artifact{}, err
	}
	files.Config = image.Config{
		Name: "appliance", Architecture: "amd64", Cmdline: kernelOptions,
		MinMemory: 128 * vee.MiB, Ports: []int{80},
	}
	return b.pack(ctx, stamp, files)
}

// bootFiles writes the kernel and an initramfs with those sets of modules to dir.
func (b *builder) bootFiles(ctx context.Context, dir, pkg string, sets ...string) (image.Files, error) {
	k, err := b.unpackKernel(ctx, pkg)
	if err != nil {
		return image.Files{}, err
	}
	vmlinux, err := k.image()
	if err != nil {
		return image.Files{}, err
	}
	initrd, err := initramfs(b.guest, k.modules(), sets...)
	if err != nil {
		return image.Files{}, err
	}
	files := image.Files{Kernel: filepath.Join(dir, "vmlinux"), Initrd: filepath.Join(dir, "initramfs")}
	if err := os.WriteFile(files.Kernel, vmlinux, 0o644); err != nil {
		return image.Files{}, err
	}
	return files, os.WriteFile(files.Initrd, initrd, 0o644)
}
