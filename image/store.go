package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Options of a Store. The zero value of each field is the default.
type Options struct {
	MaxBlob  vee.Bytes     // largest kernel, initrd or disk; default 256 GiB
	KeepFree vee.Bytes     // an upload leaves this much of the file system free; default 0
	Grace    time.Duration // how long unreferenced data is kept, since an upload may be about to name it; default 1 h
	Now      func() time.Time
	// InUse gives for each manifest digest in use what uses it, for people ("alpha.k3v9…").
	// It may block, and may call the Store. An error keeps everything. nil: nothing is in use.
	InUse func(context.Context) (map[string][]string, error)
	// Spread is called with the manifest of an image that is pushed, before anybody can find it:
	// it returns when enough other stores have the image too. nil: there are no others.
	Spread func(ctx context.Context, manifest []byte) error
	// Share is called with each new index before it counts: the other stores Adopt it. nil:
	// there are no others.
	Share func(index []byte) error
}

// Info is what people see of an image under one of its tags, or under none.
type Info struct {
	Name        string    `json:"name,omitempty"`
	Tag         string    `json:"tag,omitempty"`
	Digest      string    `json:"digest"`
	Size        vee.Bytes `json:"sizeBytes"` // that a host fetches
	VirtualSize vee.Bytes `json:"virtualSizeBytes,omitempty"`
	MinMemory   vee.Bytes `json:"minMemoryBytes,omitempty"`
	Created     time.Time `json:"created,omitzero"`
	Boot        string    `json:"boot"` // "kernel" or "disk"
	Format      string    `json:"format,omitempty"`
	Arch        string    `json:"architecture"`
	Customer    string    `json:"customer,omitempty"` // whose tag it is; empty: the operator's
	UsedBy      []string  `json:"usedBy,omitempty"`
	Problem     string    `json:"problem,omitempty"` // why it cannot be used: damaged
}

// Store is a site's images: an OCI image layout on disk that one process at a time opens.
// After a crash at any moment every tag names a whole image; what an unfinished push left
// is resumed by its client or collected.
//
// In the layout's directory it has, beside what the OCI image spec names: uploads/ (under
// way), quarantine/ (what did not match its digest) and lock.
type Store struct {
	dir   string
	o     Options
	blobs blobs
	lock  *os.File

	uploads uploads

	mu     sync.RWMutex // guards what follows, and removal of blobs against new references
	index  index
	images map[digest.Digest]loaded // of index.manifests
}

// loaded is a manifest's image, or why it cannot be used.
type loaded struct {
	Image
	err error
}

// OpenStore opens the layout in dir, or makes one. Errors: fault.Exists where another
// process has it open, fault.Malformed where it is no layout.
func OpenStore(dir string, o Options) (*Store, error) {
	if o.MaxBlob == 0 {
		o.MaxBlob = 256 * vee.GiB
	}
	if o.Grace == 0 {
		o.Grace = time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := makeDirs(dir, "blobs/sha256", "uploads", "quarantine"); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{
		dir: dir, o: o, lock: lock,
		blobs: blobs{filepath.Join(dir, "blobs"), o.KeepFree, o.Now},
	}
	s.uploads = uploads{
		dir: filepath.Join(dir, "uploads"), blobs: s.blobs, limit: int64(o.MaxBlob),
		open: map[string]*upload{},
	}
	if err := s.load(); err != nil {
		lock.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) load() error {
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return fmt.Errorf("encode layout: %w", err)
	}
	if err := writeFile(filepath.Join(s.dir, ocispec.ImageLayoutFile), layout); err != nil {
		return err
	}
	path := filepath.Join(s.dir, ocispec.ImageIndexFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		s.images = map[digest.Digest]loaded{}
		return s.save(index{map[Reference]tag{}, map[digest.Digest]int64{}})
	} else if err != nil {
		return fmt.Errorf("open image store: %w", err)
	}
	if s.index, err = decodeIndex(raw); err != nil {
		return fault.New(fault.Malformed, "open image store: %s: %w", path, err).
			Try("restore it from a backup, or move it away and push the images again")
	}
	s.reload()
	return nil
}

// reload reads every manifest anew.
func (s *Store) reload() {
	s.images = make(map[digest.Digest]loaded, len(s.index.manifests))
	for d := range s.index.manifests {
		img, err := s.inspect(d)
		s.images[d] = loaded{img, err}
	}
}

// inspect reads the image of a manifest. Where only a part of it is damaged the result
// still names the parts.
func (s *Store) inspect(d digest.Digest) (Image, error) {
	raw, err := s.blobs.read(d)
	if err != nil {
		return Image{Digest: d.String()}, err
	}
	img, err := inspect(raw, s.blobs.open)
	if err != nil {
		if parts, bad := decodeManifest(raw); bad == nil {
			return parts, err
		}
		return Image{Digest: d.String()}, err
	}
	return img, nil
}

// save makes x durable, then current. The caller holds mu.
func (s *Store) save(x index) error {
	raw, err := x.encode()
	if err != nil {
		return fmt.Errorf("encode index of images: %w", err)
	}
	if s.o.Share != nil && s.index.manifests != nil { // not the empty one of a new store
		if err := s.o.Share(raw); err != nil {
			return fmt.Errorf("share the index of images: %w", err)
		}
	}
	if err := writeFile(filepath.Join(s.dir, ocispec.ImageIndexFile), raw); err != nil {
		return err
	}
	s.index = x
	return nil
}

// Close lets other processes open the directory. Nothing may be called after it.
func (s *Store) Close() error {
	s.uploads.close()
	return s.lock.Close()
}

// Resolve finds the image that a reference names (see ParseReference). Errors:
// fault.Malformed, fault.NotFound, and fault.DigestMismatch for one that is damaged.
func (s *Store) Resolve(ctx context.Context, ref string) (Image, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return Image{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	l, err := s.find(r)
	if err != nil {
		return Image{}, err
	}
	if l.err != nil {
		return Image{}, fault.New(fault.DigestMismatch, "image %s is damaged: %w", ref, l.err)
	}
	return l.Image, nil
}

// find is Resolve under mu; what it finds may be damaged.
func (s *Store) find(r Reference) (loaded, error) {
	d := r.Digest
	if d == "" {
		d = s.index.tags[r].digest
	}
	l, ok := s.images[d]
	if !ok {
		return loaded{}, fault.New(fault.NotFound, "there is no image %s", r)
	}
	return l, nil
}

// List shows every tag, and every manifest without one, sorted by name.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	used, err := s.inUse(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	infos := []Info{}
	for r, t := range s.index.tags {
		infos = append(infos, s.images[t.digest].info(r, t.customer, used))
	}
	for d := range s.index.manifests {
		if len(s.index.tagged(d)) == 0 {
			infos = append(infos, s.images[d].info(Reference{}, "", used))
		}
	}
	slices.SortFunc(infos, func(a, b Info) int {
		if c := strings.Compare(a.Name+":"+a.Tag, b.Name+":"+b.Tag); c != 0 {
			return c
		}
		return strings.Compare(a.Digest, b.Digest)
	})
	return infos, nil
}

// Show is List for one reference. Errors: fault.Malformed, fault.NotFound.
func (s *Store) Show(ctx context.Context, ref string) (Info, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return Info{}, err
	}
	used, err := s.inUse(ctx)
	if err != nil {
		return Info{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	l, err := s.find(r)
	if err != nil {
		return Info{}, err
	}
	return l.info(r, s.index.tags[r].customer, used), nil
}

func (l loaded) info(r Reference, customer string, used map[string][]string) Info {
	i := Info{
		Name: r.Name, Tag: r.Tag, Customer: customer,
		Digest: l.Digest, Size: l.Size(), VirtualSize: l.Config.VirtualSize, MinMemory: l.Config.MinMemory,
		Created: l.Created, Boot: l.Boot(), Format: l.Config.Format, Arch: l.Config.Architecture,
		UsedBy: used[l.Digest],
	}
	if l.err != nil {
		i.Problem = l.err.Error()
	}
	return i
}

func (s *Store) inUse(ctx context.Context) (map[string][]string, error) {
	if s.o.InUse == nil {
		return nil, nil
	}
	used, err := s.o.InUse(ctx)
	if err != nil {
		return nil, fmt.Errorf("find out which images are in use: %w", err)
	}
	return used, nil
}

// Push copies an image of src into the store and tags it with ref. It answers with the
// image; errors are those of PutBlob and PutManifest.
func (s *Store) Push(ctx context.Context, src *Source, ref string) (Image, error) {
	for _, p := range src.image.parts() {
		if here, err := s.blobs.touch(p.Digest); err != nil {
			return Image{}, fmt.Errorf("push image %s: %w", ref, err)
		} else if here {
			continue
		}
		r, err := src.Fetch(ctx, p)
		if err != nil {
			return Image{}, fmt.Errorf("push image %s: %w", ref, err)
		}
		err = s.PutBlob(ctx, p.Digest, r)
		r.Close()
		if err != nil {
			return Image{}, fmt.Errorf("push image %s: %w", ref, err)
		}
	}
	return s.PutManifest(ctx, src.manifest, ref)
}

// PutBlob stores what r gives if it is the blob d. Errors: fault.DigestMismatch,
// fault.TooLarge, fault.DiskFull; nothing is left over then.
func (s *Store) PutBlob(ctx context.Context, d digest.Digest, r io.Reader) error {
	if _, err := parseDigest(d.String()); err != nil {
		return err
	}
	id, u, err := s.uploads.start()
	if err != nil {
		return err
	}
	defer s.uploads.give(id, u)
	if _, err := io.Copy(u.partial, reader{ctx, r}); err != nil {
		u.abort()
		return fmt.Errorf("store blob %s: %w", d, err)
	}
	return u.commit(d)
}

// reader is r until ctx is done.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// PutManifest adds an image whose blobs are there, and tags it where ref has a tag. It is
// checked before anybody can find it: blobs, sizes, config, and that the disk names no
// other file. A Provider (identity.From) may move its own customer's tags only. Errors:
// fault.Malformed, fault.DigestMismatch, fault.Denied, fault.DiskFull.
func (s *Store) PutManifest(ctx context.Context, raw []byte, ref string) (Image, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return Image{}, err
	}
	d := digest.FromBytes(raw)
	if r.Digest != "" && r.Digest != d {
		return Image{}, fault.New(fault.DigestMismatch, "manifest pushed as %s has digest %s", r, d)
	}
	if s.o.Spread != nil {
		// What is wrong with it is found here first, so that nobody else fetches it.
		if _, err := inspect(raw, s.blobs.open); err != nil {
			return Image{}, fault.New(fault.Malformed, "push image %s: %w", r, err)
		}
		if err := s.o.Spread(ctx, raw); err != nil {
			return Image{}, fmt.Errorf("push image %s: %w", r, err)
		}
	}
	s.mu.Lock() // from the check of the blobs to the index no collection may pass
	defer s.mu.Unlock()
	img, err := inspect(raw, s.blobs.open)
	if err != nil {
		return Image{}, fault.New(fault.Malformed, "push image %s: %w", r, err)
	}
	next := s.index.clone()
	next.manifests[d] = int64(len(raw))
	if r.Tag != "" {
		old, exists := next.tags[r]
		if err := mayChange(ctx, r, old, exists); err != nil {
			return Image{}, err
		}
		if exists && old.digest != d {
			// Its age as an untagged manifest counts from now.
			if _, err := s.blobs.touch(old.digest); err != nil {
				return Image{}, fmt.Errorf("push image %s: %w", r, err)
			}
		}
		next.tags[r] = tag{d, identity.From(ctx).Customer}
	}
	if here, err := s.blobs.touch(d); err != nil {
		return Image{}, fmt.Errorf("push image %s: %w", r, err)
	} else if !here {
		p, err := s.blobs.resume(filepath.Join(s.uploads.dir, d.Encoded()), maxMetadata)
		if err != nil {
			return Image{}, err
		}
		if err := errors.Join(p.reset(), writeAll(p, raw)); err != nil {
			p.drop()
			return Image{}, err
		}
		if err := p.commit(d); err != nil {
			return Image{}, err
		}
	}
	if err := s.save(next); err != nil {
		return Image{}, err
	}
	s.images[d] = loaded{Image: img}
	return img, nil
}

func writeAll(w io.Writer, data []byte) error {
	_, err := w.Write(data)
	return err
}

// mayChange refuses a provider what belongs to another.
func mayChange(ctx context.Context, r Reference, t tag, exists bool) error {
	c := identity.From(ctx)
	if exists && c.Role == identity.Provider && (c.Customer == "" || c.Customer != t.customer) {
		return fault.New(fault.Denied, "image %s belongs to somebody else", r).Try("push it under another name")
	}
	return nil
}

// Remove takes away a tag, or by digest a manifest with all its tags. It is refused while
// the image is in use and would have no other tag left, unless force is set; what is in
// use goes on and can be fetched by digest even so. The data goes with the next Collect
// after the grace. Errors: fault.NotFound, fault.InUse, fault.Denied.
func (s *Store) Remove(ctx context.Context, ref string, force bool) error {
	r, err := ParseReference(ref)
	if err != nil {
		return err
	}
	used, err := s.inUse(ctx)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l, err := s.find(r)
	if err != nil {
		return err
	}
	d := digest.Digest(l.Digest)
	gone, tags := []Reference{r}, s.index.tagged(d)
	if r.Tag == "" {
		gone = tags
	}
	if by := used[l.Digest]; len(by) > 0 && len(gone) == len(tags) && !force {
		return fault.New(fault.InUse, "image %s is in use by %s", r, strings.Join(by[:min(len(by), 5)], ", ")).
			Try("delete what uses it, or repeat with --force: what runs goes on")
	}
	next := s.index.clone()
	for _, g := range gone {
		if err := mayChange(ctx, g, next.tags[g], true); err != nil {
			return err
		}
		delete(next.tags, g)
	}
	if len(gone) == 0 { // an untagged one is nobody's but the operator's
		if err := mayChange(ctx, r, tag{}, true); err != nil {
			return err
		}
	}
	if _, err := s.blobs.touch(d); err != nil {
		return fmt.Errorf("remove image %s: %w", r, err)
	}
	return s.save(next)
}
