package build

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/pierrec/lz4/v4"
	"golang.org/x/sys/unix"
)

// kernelPackage is Debian's kernel for virtual machines; it only depends on the newest one.
const kernelPackage = "linux-image-cloud-amd64"

// kernel is one version of it, unpacked.
type kernel struct {
	pkg     string // "linux-image-6.1.0-56-cloud-amd64=6.1.192-2"
	release string // as uname -r says it, "6.1.0-56-cloud-amd64"
	dir     string // what the package holds
}

// newestKernel that the machine's apt sources have, as package=version.
func newestKernel(ctx context.Context) (string, error) {
	out, err := run(ctx, "", nil, "apt-cache", "show", "--no-all-versions", kernelPackage)
	if err != nil {
		return "", fmt.Errorf("looking for the package %s (try: apt-get update): %w", kernelPackage, err)
	}
	return kernelDependency(out)
}

var dependsOnKernel = regexp.MustCompile(`(?m)^Depends:.*\b(linux-image-[0-9][^ ,]*) \(= ([^)]+)\)`)

// kernelDependency reads package=version out of what apt-cache shows of kernelPackage.
func kernelDependency(show string) (string, error) {
	m := dependsOnKernel.FindStringSubmatch(show)
	if m == nil {
		return "", fmt.Errorf("the package %s depends on no version of a kernel: apt-cache show %s", kernelPackage, kernelPackage)
	}
	return m[1] + "=" + m[2], nil
}

// unpackKernel unpacks its package below the cache, unless that was done before.
func (b *builder) unpackKernel(ctx context.Context, pkg string) (kernel, error) {
	name, version, _ := strings.Cut(pkg, "=")
	k := kernel{pkg: pkg, release: strings.TrimPrefix(name, "linux-image-"), dir: filepath.Join(b.cache, name+"_"+version)}
	if _, err := os.Stat(k.dir); err == nil {
		return k, nil
	}
	defer b.step("fetching %s", pkg)()
	work, err := os.MkdirTemp(b.cache, "kernel-")
	if err != nil {
		return k, err
	}
	defer os.RemoveAll(work)
	if _, err := run(ctx, work, nil, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", pkg); err != nil {
		return k, fmt.Errorf("downloading the package %s (try: apt-get update): %w", pkg, err)
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return k, fmt.Errorf("downloading the package %s: got %d files, want one", pkg, len(debs))
	}
	tree := filepath.Join(work, "tree")
	if _, err := run(ctx, work, nil, "dpkg-deb", "-x", debs[0], tree); err != nil {
		return k, fmt.Errorf("unpacking %s: %w", debs[0], err)
	}
	if err := os.Rename(tree, k.dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) { // another build was first
		return k, err
	}
	return k, nil
}

// image of the kernel to boot. Debian's is compressed with LZ4, which an emulated CPU takes
// a fifth of a second to undo, so what is inside goes into our image: an ELF file that QEMU
// enters by its PVH note. Any other compression is left to the kernel itself.
func (k kernel) image() ([]byte, error) {
	file, err := os.ReadFile(filepath.Join(k.dir, "boot", "vmlinuz-"+k.release))
	if err != nil {
		return nil, err
	}
	return decompressed(file)
}

// modules of the kernel, to be read.
func (k kernel) modules() fs.FS {
	return os.DirFS(filepath.Join(k.dir, "lib", "modules", k.release))
}

// decompressed takes the payload out of a bzImage by its setup header (the kernel's
// Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, magic at 0x202, payload_offset at
// 0x248, payload_length at 0x24c). After the payload follow four bytes of its size. What is
// no bzImage with LZ4 inside is returned as it is.
func decompressed(bzImage []byte) ([]byte, error) {
	const header = 0x250
	if len(bzImage) < header || string(bzImage[0x202:0x206]) != "HdrS" {
		return bzImage, nil
	}
	setup := (int64(bzImage[0x1f1]) + 1) * 512
	offset := setup + int64(binary.LittleEndian.Uint32(bzImage[0x248:]))
	end := offset + int64(binary.LittleEndian.Uint32(bzImage[0x24c:])) - 4
	if offset < 0 || end < offset+4 || end > int64(len(bzImage)) {
		return nil, fmt.Errorf("kernel image of %d bytes: its payload at %d to %d is not in it", len(bzImage), offset, end)
	}
	payload := bzImage[offset:end]
	if !bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}) { // LZ4's legacy frame
		return bzImage, nil
	}
	vmlinux, err := io.ReadAll(lz4.NewReader(bytes.NewReader(payload)))
	if err != nil {
		return nil, fmt.Errorf("decompressing the kernel image: %w", err)
	}
	return vmlinux, nil
}
