// Package image keeps content-addressed images, at a site and on its hosts.
//
// An image is an OCI artifact (artifact.go): a manifest, a config and a kernel, an initrd
// or a disk; its name for machines is the digest of its manifest. The Store is the site's:
// an OCI image layout on disk, with tags, and the part of the OCI distribution API that
// stock clients need (Store.Handler). The Cache is a host's: it fetches from a site with
// resume, and gives drivers paths of verified files. Remote and Source are the client's
// side, for the command line.
//
// Nothing here makes images (image/build does) or boots them (hypervisor does).
package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/reservoir-cloud/reservoir/vee"
)

// maxMetadata bounds a manifest, a config and an index, bytes. Ours have a few hundred.
const maxMetadata = 1 << 20

// Image is a manifest and its config, decoded and checked.
type Image struct {
	Digest  string // of the manifest, as in vee.Disk.Image
	Config  Config
	Created time.Time // as its maker says; zero when it does not

	// Layers; nil where the image has none.
	Kernel, Initrd, Disk *ocispec.Descriptor

	manifest ocispec.Descriptor
	config   ocispec.Descriptor
}

// Size of everything that a host fetches.
func (i Image) Size() vee.Bytes {
	n := i.manifest.Size
	for _, p := range i.parts() {
		n += p.Size
	}
	return vee.Bytes(n)
}

// Boot is "kernel" where the image's own kernel is booted directly, else "disk".
func (i Image) Boot() string {
	if i.Kernel != nil {
		return "kernel"
	}
	return "disk"
}

// parts are the blobs that the manifest names: config and layers.
func (i Image) parts() []ocispec.Descriptor {
	parts := []ocispec.Descriptor{i.config}
	for _, l := range []*ocispec.Descriptor{i.Kernel, i.Initrd, i.Disk} {
		if l != nil {
			parts = append(parts, *l)
		}
	}
	return parts
}

// opener opens the blob with a digest and tells its size.
type opener func(digest.Digest) (io.ReadCloser, int64, error)

// inspect decodes a manifest, then everything that can be checked without reading all of
// the blobs that it names: that they are there in the size it says, the config, and that
// the disk is what the config says and refers to no other file.
func inspect(raw []byte, open opener) (Image, error) {
	img, err := decodeManifest(raw)
	if err != nil {
		return Image{}, err
	}
	head := func(d ocispec.Descriptor, read func(io.Reader) error) error {
		r, size, err := open(d.Digest)
		if err != nil {
			return err
		}
		defer r.Close()
		if size != d.Size {
			return fmt.Errorf("blob %s has %d bytes, the manifest says %d", d.Digest, size, d.Size)
		}
		return read(r)
	}
	if err := head(img.config, func(r io.Reader) error {
		data, err := io.ReadAll(io.LimitReader(r, maxMetadata))
		if err != nil {
			return fmt.Errorf("read config %s: %w", img.config.Digest, err)
		}
		if digest.FromBytes(data) != img.config.Digest {
			return fmt.Errorf("config %s does not match its digest", img.config.Digest)
		}
		img.Config, err = decodeConfig(data)
		return err
	}); err != nil {
		return Image{}, err
	}
	if img.diskFormat() != img.Config.Format {
		return Image{}, fmt.Errorf("config says disk format %q, the manifest's layers %q", img.Config.Format, img.diskFormat())
	}
	for _, l := range []*ocispec.Descriptor{img.Kernel, img.Initrd} {
		if l == nil {
			continue
		}
		if err := head(*l, func(io.Reader) error { return nil }); err != nil {
			return Image{}, err
		}
	}
	if img.Disk != nil {
		err := head(*img.Disk, func(r io.Reader) error {
			virtual, err := diskSize(r, img.Config.Format, img.Disk.Size)
			if err != nil {
				return err
			}
			if virtual != img.Config.VirtualSize {
				return fmt.Errorf("config says a disk of %d bytes, the disk %d", img.Config.VirtualSize, virtual)
			}
			return nil
		})
		if err != nil {
			return Image{}, err
		}
	}
	return img, nil
}

// diskFormat that the media type of the disk stands for.
func (i Image) diskFormat() string {
	switch {
	case i.Disk == nil:
		return ""
	case i.Disk.MediaType == MediaTypeDiskQCOW2:
		return FormatQCOW2
	}
	return FormatRaw
}

// decodeManifest reads a manifest from outside. The image that it returns has no Config.
func decodeManifest(raw []byte) (Image, error) {
	if len(raw) > maxMetadata {
		return Image{}, fmt.Errorf("manifest of %d bytes: want at most %d", len(raw), maxMetadata)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return Image{}, fmt.Errorf("manifest is no JSON of the OCI image spec: %w", err)
	}
	switch {
	case m.SchemaVersion != 2 || m.MediaType != ocispec.MediaTypeImageManifest:
		return Image{}, fmt.Errorf("manifest of media type %q, schema %d: want %s, schema 2", m.MediaType, m.SchemaVersion, ocispec.MediaTypeImageManifest)
	case m.ArtifactType != ArtifactType:
		return Image{}, fmt.Errorf("manifest of artifact type %q: only %s is kept here", m.ArtifactType, ArtifactType)
	case m.Config.MediaType != MediaTypeConfig:
		return Image{}, fmt.Errorf("config of media type %q: want %s", m.Config.MediaType, MediaTypeConfig)
	case m.Config.Size > maxMetadata:
		return Image{}, fmt.Errorf("config of %d bytes: want at most %d", m.Config.Size, maxMetadata)
	}
	img := Image{
		Digest: digest.FromBytes(raw).String(),
		config: m.Config,
		manifest: ocispec.Descriptor{
			MediaType: m.MediaType, ArtifactType: m.ArtifactType,
			Digest: digest.FromBytes(raw), Size: int64(len(raw)),
		},
	}
	for i := range m.Layers {
		l := &m.Layers[i]
		var slot **ocispec.Descriptor
		switch l.MediaType {
		case MediaTypeKernel:
			slot = &img.Kernel
		case MediaTypeInitrd:
			slot = &img.Initrd
		case MediaTypeDiskQCOW2, MediaTypeDiskRaw:
			slot = &img.Disk
		default:
			return Image{}, fmt.Errorf("layer %d of media type %q: want a kernel, an initrd or a disk", i, l.MediaType)
		}
		if *slot != nil {
			return Image{}, fmt.Errorf("layer %d: a second one of media type %q", i, l.MediaType)
		}
		*slot = l
	}
	if img.Kernel == nil && img.Disk == nil {
		return Image{}, fmt.Errorf("manifest names neither a kernel nor a disk: nothing to boot")
	}
	if img.Initrd != nil && img.Kernel == nil {
		return Image{}, fmt.Errorf("manifest names an initrd and no kernel")
	}
	for _, p := range img.parts() {
		if _, err := parseDigest(p.Digest.String()); err != nil {
			return Image{}, err
		}
		if p.Size <= 0 || p.Size > int64(maxVirtualSize) {
			return Image{}, fmt.Errorf("blob %s of %d bytes: want 1 byte to %s", p.Digest, p.Size, maxVirtualSize)
		}
	}
	if s, ok := m.Annotations[ocispec.AnnotationCreated]; ok {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return Image{}, fmt.Errorf("annotation %s %q: want a time of RFC 3339", ocispec.AnnotationCreated, s)
		}
		img.Created = t
	}
	return img, nil
}

// decodeConfig reads a config from outside. Fields that it does not know are those of a
// later version and are left alone.
func decodeConfig(raw []byte) (Config, error) {
	var c Config
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&c); err != nil {
		return Config{}, fmt.Errorf("config is no JSON of media type %s: %w", MediaTypeConfig, err)
	}
	if err := c.Check(); err != nil {
		return Config{}, fmt.Errorf("config: %w", err)
	}
	if c.VirtualSize > maxVirtualSize {
		return Config{}, fmt.Errorf("config: virtual size of the disk %s: want at most %s", c.VirtualSize, maxVirtualSize)
	}
	return c, nil
}
