package image

import (
	"context"
	"fmt"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Import brings the image with that manifest from the registry behind cache, verified by its
// digest, and resumed where it was cut off. One that is here already is not fetched. Errors:
// those of Cache.Fetch and Push.
func (s *Store) Import(ctx context.Context, cache *Cache, manifest string, progress func(vee.Progress)) (Image, error) {
	if img, err := s.Resolve(ctx, manifest); err == nil {
		return img, nil
	}
	if _, err := cache.Fetch(ctx, manifest, progress); err != nil {
		return Image{}, err
	}
	src, err := cache.source(manifest)
	if err != nil {
		return Image{}, fmt.Errorf("import image %s: %w", manifest, err)
	}
	return s.Push(ctx, src, manifest)
}

// source is an image that was fetched.
func (c *Cache) source(manifest string) (*Source, error) {
	d, err := parseDigest(manifest)
	if err != nil {
		return nil, err
	}
	raw, err := c.manifests.read(d)
	if err != nil {
		return nil, err
	}
	return newSource(manifest, raw, c.blobs.open)
}
