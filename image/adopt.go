package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Several stores of one site hold the same images. One of them, to which images are pushed,
// says which there are (Options.Share); the others adopt its index, and each fetches from any
// other what it lacks. What an index names and is not there yet is shown as missing, and
// cannot be used.

// Index of the images, for Adopt.
func (s *Store) Index() ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index.encode()
}

// Adopt the index of another store, in the place of this one's. Errors: fault.Malformed.
func (s *Store) Adopt(raw []byte) error {
	x, err := decodeIndex(raw)
	if err != nil {
		return fault.New(fault.Malformed, "adopt an index of images: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next, err := x.encode()
	if err != nil {
		return fmt.Errorf("encode index of images: %w", err)
	}
	if now, err := s.index.encode(); err == nil && bytes.Equal(now, next) {
		return nil
	}
	if err := writeFile(filepath.Join(s.dir, ocispec.ImageIndexFile), next); err != nil {
		return err
	}
	s.index = x
	s.reload()
	return nil
}

// Missing are the manifests of the index whose image is not here as a whole.
func (s *Store) Missing() (list []digest.Digest) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for d, l := range s.images {
		if !s.whole(d, l.Image) {
			list = append(list, d)
		}
	}
	slices.Sort(list)
	return list
}

func (s *Store) whole(manifest digest.Digest, img Image) bool {
	here := func(d digest.Digest) bool {
		if d == "" {
			return true // of a manifest that cannot be read, which no other store has better
		}
		_, err := os.Stat(s.blobs.path(d))
		return !errors.Is(err, fs.ErrNotExist)
	}
	return here(manifest) && !slices.ContainsFunc(img.parts(), func(p ocispec.Descriptor) bool { return !here(p.Digest) })
}

// Fetch an image that the index names from another store.
func (s *Store) Fetch(ctx context.Context, d digest.Digest, from Remote) error {
	resp, err := from.do(ctx, http.MethodGet, poolName+"/manifests/"+d.String(), nil, http.Header{"Accept": {ocispec.MediaTypeImageManifest}})
	if err != nil {
		return fmt.Errorf("fetch image %s: %w", d, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxMetadata+1))
	if err != nil {
		return fault.New(fault.Unavailable, "fetch image %s: %w", d, err)
	}
	if digest.FromBytes(raw) != d {
		return mismatch(d)
	}
	return s.Take(ctx, raw, from)
}

// Take all that a manifest names, and itself, from another store, as far as it is not here.
// When it returns they are on disk; the image is found once an index names it. Errors:
// fault.Malformed, fault.DigestMismatch, fault.DiskFull, those of the other store.
func (s *Store) Take(ctx context.Context, manifest []byte, from Remote) error {
	d := digest.FromBytes(manifest)
	img, err := decodeManifest(manifest)
	if err != nil {
		return fault.New(fault.Malformed, "take image %s: %w", d, err)
	}
	for _, p := range img.parts() {
		if err := s.takeBlob(ctx, p.Digest, from); err != nil {
			return fmt.Errorf("take image %s: %w", d, err)
		}
	}
	if here, err := s.blobs.touch(d); err != nil {
		return fmt.Errorf("take image %s: %w", d, err)
	} else if !here {
		if err := s.PutBlob(ctx, d, bytes.NewReader(manifest)); err != nil {
			return fmt.Errorf("take image %s: %w", d, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, named := s.index.manifests[d]; named {
		img, err := s.inspect(d)
		s.images[d] = loaded{img, err}
	}
	return nil
}

func (s *Store) takeBlob(ctx context.Context, d digest.Digest, from Remote) error {
	if here, err := s.blobs.touch(d); here || err != nil {
		return err
	}
	resp, err := from.do(ctx, http.MethodGet, poolName+"/blobs/"+d.String(), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return s.PutBlob(ctx, d, resp.Body)
}
