package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Source is an image on its way into a site: in an OCI layout or made of plain files, which
// must not change until it has been pushed. It is a read-only target for oras.
type Source struct {
	image    Image
	manifest []byte
	open     opener
}

// Image that the source has.
func (s *Source) Image() Image { return s.image }

// FromLayout takes the image that an OCI layout's directory has under a tag; with an empty
// tag, its only one. Errors: fault.NotFound, fault.Malformed.
func FromLayout(dir, tag string) (*Source, error) {
	b := blobs{dir: filepath.Join(dir, "blobs")}
	raw, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, fault.New(fault.NotFound, "image in %s: no OCI layout: %w", dir, err).Try("make images")
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fault.New(fault.Malformed, "image in %s: index.json: %w", dir, err)
	}
	var found digest.Digest
	var names []string
	for _, m := range index.Manifests {
		name := m.Annotations[ocispec.AnnotationRefName]
		names = append(names, name)
		if tag == "" || tag == name || strings.HasSuffix(name, ":"+tag) {
			if found != "" && found != m.Digest {
				return nil, fault.New(fault.Malformed, "image in %s: it has several (%s)", dir, strings.Join(names, ", ")).Try("name one of its tags")
			}
			found = m.Digest
		}
	}
	if found == "" {
		return nil, fault.New(fault.NotFound, "image in %s: it has no tag %q, only: %s", dir, tag, strings.Join(names, ", "))
	}
	if _, err := parseDigest(found.String()); err != nil {
		return nil, fmt.Errorf("image in %s: %w", dir, err)
	}
	manifest, err := b.read(found)
	if err != nil {
		return nil, fmt.Errorf("image in %s: %w", dir, err)
	}
	return newSource(dir, manifest, b.open)
}

// Files are what FromFiles makes an image of: a disk, or a kernel with or without an
// initrd, or both. Config's Format and VirtualSize are read from the disk, its Name is by
// default that of the file, its Architecture that of this machine.
type Files struct {
	Kernel, Initrd, Disk string // paths
	Config               Config
	Created              time.Time // zero: not told, and the digest is that of the content alone
}

// FromFiles makes an image of plain files; it reads all of them. Errors: fault.NotFound
// and fault.Malformed, also for a qcow2 disk that needs another file.
func FromFiles(ctx context.Context, f Files) (*Source, error) {
	what := f.Disk
	if what == "" {
		what = f.Kernel
	}
	paths := map[digest.Digest]string{}
	var layers []ocispec.Descriptor
	add := func(path, mediaType string) error {
		if path == "" {
			return nil
		}
		d, size, err := digestOf(ctx, path)
		if err != nil {
			return fault.New(fault.NotFound, "make an image of %s: %w", path, err).Try("look at the path of the file")
		}
		paths[d] = path
		layers = append(layers, ocispec.Descriptor{
			MediaType: mediaType, Digest: d, Size: size,
			Annotations: map[string]string{ocispec.AnnotationTitle: filepath.Base(path)},
		})
		return nil
	}
	c := f.Config
	if err := add(f.Kernel, MediaTypeKernel); err != nil {
		return nil, err
	}
	if err := add(f.Initrd, MediaTypeInitrd); err != nil {
		return nil, err
	}
	if f.Disk != "" {
		mediaType, err := c.describeDisk(f.Disk)
		if err != nil {
			return nil, err
		}
		if err := add(f.Disk, mediaType); err != nil {
			return nil, err
		}
	}
	if c.Name == "" {
		base := filepath.Base(what)
		c.Name = strings.TrimSuffix(base, filepath.Ext(base))
	}
	if c.Architecture == "" {
		c.Architecture = runtime.GOARCH
	}
	config, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("make an image of %s: %w", what, err)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: ArtifactType,
		Config: ocispec.Descriptor{MediaType: MediaTypeConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: layers,
	}
	if !f.Created.IsZero() {
		m.Annotations = map[string]string{ocispec.AnnotationCreated: f.Created.UTC().Format(time.RFC3339)}
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("make an image of %s: %w", what, err)
	}
	return newSource(what, manifest, func(d digest.Digest) (io.ReadCloser, int64, error) {
		if d == m.Config.Digest {
			return io.NopCloser(bytes.NewReader(config)), int64(len(config)), nil
		}
		file, err := os.Open(paths[d])
		if err != nil {
			return nil, 0, fmt.Errorf("open image: %w", err)
		}
		info, err := file.Stat()
		if err != nil {
			file.Close()
			return nil, 0, fmt.Errorf("open image: %w", err)
		}
		return file, info.Size(), nil
	})
}

// describeDisk fills in what a disk says of itself, and gives its media type.
func (c *Config) describeDisk(path string) (mediaType string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fault.New(fault.NotFound, "make an image of %s: %w", path, err).Try("look at the path of the file")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("make an image of %s: %w", path, err)
	}
	head := make([]byte, len(qcow2Magic))
	n, _ := io.ReadFull(f, head) // a shorter file is a raw disk
	c.Format = formatOf(head[:n])
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("make an image of %s: %w", path, err)
	}
	if c.VirtualSize, err = diskSize(f, c.Format, info.Size()); err != nil {
		return "", fault.New(fault.Malformed, "make an image of %s: %w", path, err)
	}
	if c.Format == FormatQCOW2 {
		return MediaTypeDiskQCOW2, nil
	}
	return MediaTypeDiskRaw, nil
}

func digestOf(ctx context.Context, path string) (digest.Digest, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	sum := digest.SHA256.Digester()
	n, err := io.Copy(sum.Hash(), reader{ctx, f})
	return sum.Digest(), n, err
}

// newSource checks an image as the site will.
func newSource(what string, manifest []byte, open opener) (*Source, error) {
	img, err := inspect(manifest, open)
	if err != nil {
		return nil, fault.New(fault.Malformed, "image of %s: %w", what, err)
	}
	return &Source{img, manifest, open}, nil
}

// Resolve is part of an oras target; there is one image, whatever the reference.
func (s *Source) Resolve(context.Context, string) (ocispec.Descriptor, error) {
	return s.image.manifest, nil
}

// Fetch is part of an oras target.
func (s *Source) Fetch(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if d.Digest == s.image.manifest.Digest {
		return io.NopCloser(bytes.NewReader(s.manifest)), nil
	}
	r, _, err := s.open(d.Digest)
	return r, err
}

// Exists is part of an oras target.
func (s *Source) Exists(_ context.Context, d ocispec.Descriptor) (bool, error) {
	if d.Digest == s.image.manifest.Digest {
		return true, nil
	}
	for _, p := range s.image.parts() {
		if p.Digest == d.Digest {
			return true, nil
		}
	}
	return false, nil
}
