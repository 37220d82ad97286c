package image

import (
	"errors"
	"fmt"
	"strings"

	"github.com/reservoir-cloud/reservoir/vee"
)

// ArtifactType of the OCI manifest (image-spec 1.1) that one image is. Its config is a
// Config, its layers are at most one kernel, one initrd and one disk, in that order. An
// image has a kernel, a disk or both; one with a kernel is booted directly.
const ArtifactType = "application/vnd.reservoir.image.v1"

// Media types of an image's config and layers.
const (
	MediaTypeConfig    = "application/vnd.reservoir.image.config.v1+json"
	MediaTypeKernel    = "application/vnd.reservoir.kernel"
	MediaTypeInitrd    = "application/vnd.reservoir.initrd"
	MediaTypeDiskQCOW2 = "application/vnd.reservoir.disk.qcow2"
	MediaTypeDiskRaw   = "application/vnd.reservoir.disk.raw"
)

// Formats of an image's disk.
const (
	FormatQCOW2 = "qcow2"
	FormatRaw   = "raw"
)

// Config is what a host must know of an image beside its layers.
type Config struct {
	Name         string    `json:"name"`
	Architecture string    `json:"architecture"`               // as Go and OCI say it: "amd64"
	Cmdline      string    `json:"cmdline,omitempty"`          // of the kernel
	Format       string    `json:"format,omitempty"`           // of the disk; empty: no disk
	VirtualSize  vee.Bytes `json:"virtualSizeBytes,omitempty"` // of the disk, as the guest sees it
	MinMemory    vee.Bytes `json:"minMemoryBytes,omitempty"`   // with less it does not boot
	Ports        []int     `json:"ports,omitempty"`            // TCP ports that it answers on when ready
}

// maxCmdline is what Linux on x86 takes (COMMAND_LINE_SIZE), in bytes.
const maxCmdline = 2048

// Check reports everything that is wrong with c in words, or nil. A config comes from
// whoever pushed the image, so nothing in it is believed before this.
func (c Config) Check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Name == "" || strings.ContainsAny(c.Name, "/\\\x00\n") {
		wrong("name %q: want a word without slashes", c.Name)
	}
	if c.Architecture == "" {
		wrong("no architecture: want one such as amd64")
	}
	if len(c.Cmdline) >= maxCmdline || strings.ContainsAny(c.Cmdline, "\x00\n") {
		wrong("kernel command line: want one line of less than %d bytes", maxCmdline)
	}
	switch c.Format {
	case FormatQCOW2, FormatRaw:
		if c.VirtualSize <= 0 {
			wrong("virtual size %d of the disk: want more than nothing", c.VirtualSize)
		}
	case "":
		if c.VirtualSize != 0 {
			wrong("a virtual size of %s without a disk format", c.VirtualSize)
		}
	default:
		wrong("disk format %q: want %s or %s", c.Format, FormatQCOW2, FormatRaw)
	}
	if c.MinMemory < 0 {
		wrong("least memory %d: want no negative number", c.MinMemory)
	}
	for _, p := range c.Ports {
		if p < 1 || p > 65535 {
			wrong("port %d: want one of 1 to 65535", p)
		}
	}
	return errors.Join(errs...)
}
