package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Collected is what a collection took away.
type Collected struct {
	Images int       `json:"images"` // manifests without a tag and without a use
	Blobs  int       `json:"blobs"`
	Bytes  vee.Bytes `json:"bytes"`
}

// Collect removes what nobody can name any more and nobody has relied on for the grace:
// manifests without a tag that are not in use, blobs that no manifest names, uploads that
// were left. It may be called at any time, by the site every few minutes.
func (s *Store) Collect(ctx context.Context) (Collected, error) {
	var c Collected
	before := s.o.Now().Add(-s.o.Grace)
	used, err := s.inUse(ctx)
	if err != nil {
		return c, fmt.Errorf("collect images: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()

	next := s.index.clone()
	for d := range s.index.manifests {
		if len(used[d.String()]) > 0 || len(s.index.tagged(d)) > 0 {
			continue
		}
		info, err := os.Stat(s.blobs.path(d))
		if err == nil && !info.ModTime().Before(before) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		delete(next.manifests, d)
		c.Images++
	}
	if c.Images > 0 {
		// The index first: a crash from here on leaves blobs without a name, which the
		// next collection finds, and never a name without its blobs.
		if err := s.save(next); err != nil {
			return Collected{}, err
		}
	}
	named := map[digest.Digest]bool{}
	for d, l := range s.images {
		if _, ok := next.manifests[d]; !ok {
			delete(s.images, d)
			continue
		}
		named[d] = true
		for _, p := range l.parts() {
			named[p.Digest] = true
		}
	}
	swept, err := s.sweep(ctx, before, named)
	c.Blobs, c.Bytes = swept.Blobs, swept.Bytes
	return c, err
}

// Sweep is the part of Collect that a store does whose index is another's (Adopt): it removes
// blobs that no manifest names and uploads that were left.
func (s *Store) Sweep(ctx context.Context) (Collected, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	named := map[digest.Digest]bool{}
	for d, l := range s.images {
		named[d] = true
		for _, p := range l.parts() {
			named[p.Digest] = true
		}
	}
	return s.sweep(ctx, s.o.Now().Add(-s.o.Grace), named)
}

// sweep away what is not named and nobody has relied on since. The caller holds mu.
func (s *Store) sweep(ctx context.Context, before time.Time, named map[digest.Digest]bool) (c Collected, err error) {
	err = s.blobs.each(func(d digest.Digest, info fs.FileInfo) error {
		if named[d] || !info.ModTime().Before(before) {
			return nil
		}
		if err := s.blobs.remove(d); err != nil {
			return err
		}
		c.Blobs++
		c.Bytes += vee.Bytes(info.Size())
		return ctx.Err()
	})
	if err != nil {
		return c, fmt.Errorf("collect images: %w", err)
	}
	freed, err := s.uploads.collect(before)
	c.Bytes += vee.Bytes(freed)
	return c, err
}

// Problem is a blob that Verify found damaged or missing.
type Problem struct {
	Digest string   `json:"digest"`
	Images []string `json:"images,omitempty"` // references that need it
	What   string   `json:"what"`
}

// Verify reads every blob. One that does not match its digest is moved to quarantine/, so
// that no host gets it and the next push of it heals the images that need it.
func (s *Store) Verify(ctx context.Context) ([]Problem, error) {
	var bad []digest.Digest
	err := s.blobs.each(func(d digest.Digest, _ fs.FileInfo) error {
		err := s.blobs.verify(d)
		switch {
		case fault.Has(err, fault.DigestMismatch):
			bad = append(bad, d)
		case err != nil && !fault.Has(err, fault.NotFound): // collected meanwhile
			return err
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("verify images: %w", err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[digest.Digest]string{}
	for _, d := range bad {
		aside := filepath.Join(s.dir, "quarantine", d.Encoded())
		if err := os.Rename(s.blobs.path(d), aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("verify images: quarantine blob: %w", err)
		}
		found[d] = "content does not match its digest; moved to " + aside
	}
	if len(bad) > 0 {
		if err := syncDir(filepath.Join(s.dir, "quarantine")); err != nil {
			return nil, err
		}
	}
	needed := map[digest.Digest][]string{}
	for d, l := range s.images {
		names := []string{d.String()}
		if refs := s.index.tagged(d); len(refs) > 0 {
			names = nil
			for _, r := range refs {
				names = append(names, r.String())
			}
		}
		for _, p := range append(l.parts(), l.manifest) {
			if p.Digest == "" {
				continue // of a manifest that cannot be read
			}
			needed[p.Digest] = append(needed[p.Digest], names...)
			if _, err := os.Stat(s.blobs.path(p.Digest)); found[p.Digest] == "" && errors.Is(err, fs.ErrNotExist) {
				found[p.Digest] = "missing"
			}
		}
	}
	s.reload()
	var problems []Problem
	for d, what := range found {
		problems = append(problems, Problem{Digest: d.String(), Images: needed[d], What: what})
	}
	slices.SortFunc(problems, func(a, b Problem) int { return strings.Compare(a.Digest, b.Digest) })
	return problems, nil
}

// String is one line for a log.
func (p Problem) String() string {
	if len(p.Images) == 0 {
		return fmt.Sprintf("blob %s: %s", p.Digest, p.What)
	}
	return fmt.Sprintf("blob %s: %s; push again: %s", p.Digest, p.What, strings.Join(p.Images, ", "))
}
