// Package build makes Reservoir's two images from Debian's packages and our guest: the
// appliance (a kernel and an initramfs whose init is the guest) and a Debian with cloud-init
// (a disk that is booted by a kernel beside it). It takes packages from the machine's own
// apt sources only. How images are kept and passed on is package image's.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Options of a build.
type Options struct {
	// Out gets one OCI image layout for each image, named and tagged for it: Out/appliance.
	// One that is there and was made of the same inputs is left as it is.
	Out string
	// Cache keeps what was downloaded and unpacked, between runs and images.
	Cache string
	// GuestBinary is a static build of cmd/reservoir-guest. When empty it is built from the
	// source tree of which Source, or else the current directory, is part.
	GuestBinary string
	Source      string
	// Name of the image where it is not the recipe's, and Packages that are installed beside
	// the recipe's; of recipe Debian alone.
	Name     string
	Packages []string
	// Progress gets a line for each step that takes time. nil: nobody is told.
	Progress io.Writer
}

// Artifact is an image that was built, in an OCI layout with one tag, the image's name.
type Artifact struct {
	Layout               string // directory; for image.FromLayout
	Image                image.Image
	Kernel, Initrd, Disk string // files in the layout, by their digest; Disk may be empty
	Kept                 bool   // it was there already
}

// builder of one image.
type builder struct {
	Options
	cache    string
	guest    []byte
	packages []string // of Debian
}

func newBuilder(ctx context.Context, o Options) (*builder, error) {
	if o.Out == "" || o.Cache == "" {
		return nil, fault.New(fault.Malformed, "building an image: it needs a directory for the result and one for downloads").Try("give both --out and --cache")
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	var err error
	if o.Out, err = filepath.Abs(o.Out); err != nil {
		return nil, err
	}
	b := &builder{Options: o}
	if b.cache, err = filepath.Abs(o.Cache); err != nil {
		return nil, err
	}
	for _, dir := range []string{b.Out, b.cache} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("building an image: %w", err)
		}
	}
	if b.guest, err = b.guestBinary(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// guestBinary reads the one given, or builds it.
func (b *builder) guestBinary(ctx context.Context) ([]byte, error) {
	if b.GuestBinary != "" {
		return os.ReadFile(b.GuestBinary)
	}
	if _, err := exec.LookPath("go"); err != nil {
		return nil, fault.New(fault.NotFound, "building the guest's agent: there is no Go toolchain").Try("give a built one: --guest build/reservoir-guest")
	}
	defer b.step("building the guest's agent")()
	work, err := os.MkdirTemp(b.cache, "guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	binary := filepath.Join(work, "reservoir-guest")
	const pkg = "github.com/reservoir-cloud/reservoir/cmd/reservoir-guest"
	_, err = run(ctx, b.Source, []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"},
		"go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", binary, pkg)
	if err != nil {
		return nil, fault.New(fault.NotFound, "building the guest's agent from the source tree: %w", err).Try("run it in Reservoir's source tree, or give a built one: --guest build/reservoir-guest")
	}
	return os.ReadFile(binary)
}

// stampFile in a layout says what it was made of.
const stampFile = "built-from"

// stamp of the inputs. A recipe is a version that its author raises, and all texts in it.
func (b *builder) stamp(inputs ...string) string {
	sum := sha256.Sum256(b.guest)
	return "guest " + hex.EncodeToString(sum[:]) + "\n" + strings.Join(inputs, "\n") + "\n"
}

// kept is the artifact that is there, if it was made of the same inputs and is whole.
func (b *builder) kept(name, stamp string) (Artifact, bool) {
	layout := filepath.Join(b.Out, name)
	was, err := os.ReadFile(filepath.Join(layout, stampFile))
	if err != nil || string(was) != stamp {
		return Artifact{}, false
	}
	src, err := image.FromLayout(layout, name)
	if err != nil {
		return Artifact{}, false
	}
	a := artifact(layout, src.Image())
	a.Kept = true
	return a, true
}

// pack files into the layout Out/name, in place of one that is there.
func (b *builder) pack(ctx context.Context, stamp string, files image.Files) (_ Artifact, err error) {
	name := files.Config.Name
	defer b.step("packing image %s", name)()
	src, err := image.FromFiles(ctx, files)
	if err != nil {
		return Artifact{}, err
	}
	work, err := os.MkdirTemp(b.Out, "."+name+"-")
	if err != nil {
		return Artifact{}, err
	}
	defer os.RemoveAll(work)
	store, err := oci.NewWithContext(ctx, work)
	if err != nil {
		return Artifact{}, fmt.Errorf("packing image %s: %w", name, err)
	}
	if _, err := oras.Copy(ctx, src, name, store, name, oras.DefaultCopyOptions); err != nil {
		return Artifact{}, fmt.Errorf("packing image %s: %w", name, err)
	}
	layout := filepath.Join(b.Out, name)
	err = errors.Join(
		os.WriteFile(filepath.Join(work, stampFile), []byte(stamp), 0o644),
		os.Chmod(work, 0o755),
		os.RemoveAll(layout),
		os.Rename(work, layout))
	if err != nil {
		return Artifact{}, fmt.Errorf("packing image %s: %w", name, err)
	}
	return artifact(layout, src.Image()), nil
}

func artifact(layout string, img image.Image) Artifact {
	a := Artifact{Layout: layout, Image: img}
	blob := func(encoded string) string { return filepath.Join(layout, "blobs", "sha256", encoded) }
	if img.Kernel != nil {
		a.Kernel = blob(img.Kernel.Digest.Encoded())
	}
	if img.Initrd != nil {
		a.Initrd = blob(img.Initrd.Digest.Encoded())
	}
	if img.Disk != nil {
		a.Disk = blob(img.Disk.Digest.Encoded())
	}
	return a
}

// step tells what begins; the returned function, how long it took.
func (b *builder) step(format string, args ...any) (done func()) {
	what := fmt.Sprintf(format, args...)
	started := time.Now()
	fmt.Fprintf(b.Progress, "%s …\n", what)
	return func() { fmt.Fprintf(b.Progress, "%s: %.1fs\n", what, time.Since(started).Seconds()) }
}

// packages that the programs we run are in.
var packages = map[string]string{
	"apt-cache": "apt", "apt-get": "apt", "chroot": "coreutils", "dpkg-deb": "dpkg", "mkfs.ext4": "e2fsprogs",
	"mmdebstrap": "mmdebstrap", "qemu-img": "qemu-utils", "tar": "tar",
}

// run a program in dir with more environment, and return its standard output.
func run(ctx context.Context, dir string, env []string, program string, args ...string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		if pkg, ok := packages[program]; ok {
			return "", fault.New(fault.NotFound, "the program %s is missing", program).Try("apt-get install %s", pkg)
		}
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, lastLines(stderr.String()))
	}
	return stdout.String(), nil
}

// lastLines of a program's complaint, where what matters is.
func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}
