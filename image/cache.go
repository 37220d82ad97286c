package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
)

// CacheOptions of a Cache. The zero value of each field but InUse is the default.
type CacheOptions struct {
	// InUse lists the manifest digests that must stay: it names an image from before Fetch
	// is called for it until no guest needs it any more. It may block, and must not call
	// the Cache. nil: none is in use.
	InUse      func() []string
	Limit      vee.Bytes     // of all images together; default 0, no limit
	KeepFree   vee.Bytes     // a fetch leaves this much of the file system free; default 0
	KeepUnused time.Duration // an image that was fetched lately stays though unused; default 24 h
	Stall      time.Duration // a transfer that brings nothing for so long is cut and resumed; default 30 s
	Retries    int           // that bring nothing, one after the other, before Fetch fails; default 5
	Now        func() time.Time
	// Wait before the given retry, counted from 1; default 0.5 s, doubled up to 10 s.
	Wait func(ctx context.Context, retry int) error
}

// Cache is a host's images, fetched from its site, each blob once. Its files are verified,
// readable by every user (the directories above the cache must be passable), and never
// written. After a crash at any moment it goes on: partial files are resumed.
//
// In its directory: manifests/sha256/HEX, blobs/sha256/HEX, partial/HEX and lock. A
// manifest is there before its blobs, so that nothing is there that no manifest names.
type Cache struct {
	dir       string
	o         CacheOptions
	remote    Remote
	manifests blobs
	blobs     blobs
	lock      *os.File

	mu       sync.Mutex
	images   map[digest.Digest]Image  // by the manifests that are there; without Config
	pins     map[digest.Digest]int    // Fetches under way, by manifest
	last     map[digest.Digest]uint64 // when Fetch was last called, by manifest, in ticks
	tick     uint64
	flights  map[digest.Digest]*flight
	verified map[digest.Digest]bool // since this process started
}

// flight is a blob being fetched, and who wants to know of it.
type flight struct {
	done chan struct{}
	err  error // set before done is closed

	mu        sync.Mutex
	bytes     int64
	listeners map[int]func(int64)
	seq       int // of listeners
}

// OpenCache opens the cache in dir, or makes one. Errors: fault.Exists where another
// process has it open.
func OpenCache(dir string, remote Remote, o CacheOptions) (*Cache, error) {
	if o.InUse == nil {
		o.InUse = func() []string { return nil }
	}
	o.KeepUnused = cmp.Or(o.KeepUnused, 24*time.Hour)
	o.Stall = cmp.Or(o.Stall, 30*time.Second)
	o.Retries = cmp.Or(o.Retries, 5)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wait == nil {
		o.Wait = backOff
	}
	if err := makeDirs(dir, "manifests/sha256", "blobs/sha256", "partial", "manifests", "blobs"); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open image cache: %w", err)
	}
	c := &Cache{
		dir: dir, o: o, remote: remote, lock: lock,
		manifests: blobs{filepath.Join(dir, "manifests"), o.KeepFree, o.Now},
		blobs:     blobs{filepath.Join(dir, "blobs"), o.KeepFree, o.Now},
		images:    map[digest.Digest]Image{},
		pins:      map[digest.Digest]int{},
		last:      map[digest.Digest]uint64{},
		flights:   map[digest.Digest]*flight{},
		verified:  map[digest.Digest]bool{},
	}
	if err := c.load(); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open image cache: %w", err)
	}
	return c, nil
}

// backOff is the usual Wait.
func backOff(ctx context.Context, retry int) error {
	t := time.NewTimer(min(500*time.Millisecond<<min(retry-1, 10), 10*time.Second))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// load reads the manifests that are there. A damaged one is removed: a guest that runs
// does not need it, and the next Fetch brings it again.
func (c *Cache) load() error {
	return c.manifests.each(func(d digest.Digest, _ fs.FileInfo) error {
		raw, err := c.manifests.read(d)
		if err == nil {
			var img Image
			if img, err = decodeManifest(raw); err == nil {
				c.images[d] = img
				return nil
			}
		}
		return c.manifests.remove(d)
	})
}

// Close lets other processes open the directory. No Fetch may be under way.
func (c *Cache) Close() error { return c.lock.Close() }

// Fetch makes the image with the given manifest digest a file on this host, resuming what
// a cut or a crash has left, and verified. Concurrent calls fetch a blob once. What is
// there is not asked for, so that the site may be away. progress, unless nil, is called
// with bytes, also for what another call fetches.
//
// Errors: fault.NotFound where the site has no such image, fault.DigestMismatch naming the
// blob, fault.Malformed for an image that no driver should open, fault.DiskFull, also of
// the cache's limit, fault.Unavailable; nothing unverified is left under a digest.
func (c *Cache) Fetch(ctx context.Context, manifest string, progress func(vee.Progress)) (hypervisor.LocalImage, error) {
	d, err := parseDigest(manifest)
	if err != nil {
		return hypervisor.LocalImage{}, err
	}
	c.mu.Lock()
	c.pins[d]++
	c.tick++
	c.last[d] = c.tick
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pins[d]--; c.pins[d] == 0 {
			delete(c.pins, d)
		}
	}()

	img, err := c.fetch(ctx, d, progress)
	if fault.Has(err, fault.DiskFull) && c.evictAll() > 0 {
		img, err = c.fetch(ctx, d, progress)
	}
	if err != nil {
		return hypervisor.LocalImage{}, fmt.Errorf("fetch image %s: %w", d, err)
	}
	path := func(l *ocispec.Descriptor) string {
		if l == nil {
			return ""
		}
		return c.blobs.path(l.Digest)
	}
	return hypervisor.LocalImage{
		Digest: d.String(), Disk: path(img.Disk), Format: img.Config.Format,
		Kernel: path(img.Kernel), Initrd: path(img.Initrd), Cmdline: img.Config.Cmdline,
	}, nil
}

// Blob makes one blob of that size, which belongs to no image, a file on this host, as Fetch
// does, and opens it. Its name is gone with the next eviction. Errors: those of Fetch.
func (c *Cache) Blob(ctx context.Context, blob string, size vee.Bytes, progress func(vee.Progress)) (*os.File, error) {
	d, err := parseDigest(blob)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.pins[d]++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pins[d]--; c.pins[d] == 0 {
			delete(c.pins, d)
		}
	}()
	listen := func(n int64) {
		if progress != nil {
			progress(vee.Progress{Done: n, Total: int64(size), Unit: "bytes", What: "fetch " + blob})
		}
	}
	fetch := func() error {
		return c.once(ctx, d, listen, func(report func(int64)) error {
			return c.fetchBlob(ctx, ocispec.Descriptor{Digest: d, Size: int64(size)}, report)
		})
	}
	err = fetch()
	if fault.Has(err, fault.DiskFull) && c.evictAll() > 0 {
		err = fetch()
	}
	if err != nil {
		return nil, fmt.Errorf("fetch blob %s: %w", d, err)
	}
	f, err := os.Open(c.blobs.path(d))
	if err != nil { // evicted in between
		return nil, fault.New(fault.Unavailable, "blob %s: %w", d, err)
	}
	return f, nil
}

func (c *Cache) fetch(ctx context.Context, d digest.Digest, progress func(vee.Progress)) (Image, error) {
	img, err := c.fetchManifest(ctx, d)
	if err != nil {
		return Image{}, err
	}
	if err := c.makeRoom(d); err != nil {
		return Image{}, err
	}
	var before int64 // bytes of the parts that are done
	for _, p := range img.parts() {
		if err := c.once(ctx, p.Digest, func(n int64) {
			if progress != nil {
				progress(vee.Progress{
					Done: before + n, Total: int64(img.Size()) - img.manifest.Size, Unit: "bytes",
					What: "fetch " + d.String(),
				})
			}
		}, func(report func(int64)) error { return c.fetchBlob(ctx, p, report) }); err != nil {
			return Image{}, err
		}
		before += p.Size
	}
	raw, err := c.manifests.read(d)
	if err != nil {
		return Image{}, err
	}
	if img, err = inspect(raw, c.blobs.open); err != nil {
		return Image{}, fault.New(fault.Malformed, "%w", err)
	}
	_, err = c.manifests.touch(d)
	return img, err
}

// once lets one caller at a time work on what d names, and the others wait for its result.
// They go on by themselves where it was only the worker's own context that ended.
func (c *Cache) once(ctx context.Context, d digest.Digest, listen func(int64), work func(report func(int64)) error) error {
	for {
		c.mu.Lock()
		f, waiting := c.flights[d]
		if !waiting {
			f = &flight{done: make(chan struct{}), listeners: map[int]func(int64){}}
			c.flights[d] = f
		}
		c.mu.Unlock()
		silence := f.listen(listen)
		if !waiting {
			f.err = work(f.report)
			c.mu.Lock()
			delete(c.flights, d)
			c.mu.Unlock()
			close(f.done)
			silence()
			return f.err
		}
		select {
		case <-ctx.Done():
			silence()
			return context.Cause(ctx)
		case <-f.done:
			silence()
		}
		if !errors.Is(f.err, context.Canceled) && !errors.Is(f.err, context.DeadlineExceeded) {
			return f.err
		}
	}
}

// listen has l called with the bytes that are there until silence has returned.
func (f *flight) listen(l func(int64)) (silence func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.seq
	f.seq++
	f.listeners[id] = l
	if f.bytes > 0 {
		l(f.bytes)
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.listeners, id)
	}
}

func (f *flight) report(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes = n
	for _, l := range f.listeners {
		l(n)
	}
}

// fetchManifest gives the decoded manifest, from here or from the site.
func (c *Cache) fetchManifest(ctx context.Context, d digest.Digest) (Image, error) {
	err := c.once(ctx, d, func(int64) {}, func(func(int64)) error {
		c.mu.Lock()
		_, here := c.images[d]
		c.mu.Unlock()
		if here {
			return nil
		}
		var raw []byte
		if err := c.retry(ctx, func() (bool, error) {
			resp, err := c.remote.do(ctx, http.MethodGet, poolName+"/manifests/"+d.String(), nil,
				http.Header{"Accept": {ocispec.MediaTypeImageManifest}})
			if err != nil {
				return false, err
			}
			defer resp.Body.Close()
			raw, err = io.ReadAll(io.LimitReader(resp.Body, maxMetadata+1))
			if err != nil {
				return false, fault.New(fault.Unavailable, "read manifest: %w", err)
			}
			return false, nil
		}); err != nil {
			return err
		}
		if digest.FromBytes(raw) != d {
			return fault.New(fault.DigestMismatch, "the site sent another manifest for %s", d)
		}
		img, err := decodeManifest(raw)
		if err != nil {
			return fault.New(fault.Malformed, "%w", err)
		}
		p, err := c.manifests.resume(c.partial(d), maxMetadata)
		if err != nil {
			return err
		}
		if err := errors.Join(p.reset(), writeAll(p, raw)); err != nil {
			p.drop()
			return err
		}
		if err := p.commit(d); err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.images[d] = img
		return nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.images[d], err
}

func (c *Cache) partial(d digest.Digest) string { return filepath.Join(c.dir, "partial", d.Encoded()) }

// fetchBlob makes one blob be here. It is called by one goroutine at a time for each blob.
func (c *Cache) fetchBlob(ctx context.Context, b ocispec.Descriptor, report func(int64)) error {
	c.mu.Lock()
	verified := c.verified[b.Digest]
	c.mu.Unlock()
	if _, err := os.Stat(c.blobs.path(b.Digest)); err == nil {
		if !verified { // stored by an earlier process
			err = c.blobs.verify(b.Digest)
		}
		switch {
		case err == nil:
			c.setVerified(b.Digest)
			report(b.Size)
			return nil
		case fault.Has(err, fault.DigestMismatch): // damaged here: guests keep what they have open
			if err := c.blobs.remove(b.Digest); err != nil {
				return err
			}
		default:
			return err
		}
	}

	p, err := c.blobs.resume(c.partial(b.Digest), b.Size)
	if err != nil {
		return err
	}
	if p.size > b.Size {
		if err := p.reset(); err != nil {
			p.close()
			return err
		}
	}
	err = c.retry(ctx, func() (bool, error) {
		start := p.size
		err := c.download(ctx, b, p, report)
		return p.size > start, err
	})
	switch {
	case err == nil:
	case transient(err) || ctx.Err() != nil:
		p.close() // for a later Fetch
		return err
	default:
		p.drop()
		return err
	}
	if err := p.commit(b.Digest); err != nil {
		return err
	}
	c.setVerified(b.Digest)
	report(b.Size)
	return nil
}

func (c *Cache) setVerified(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verified[d] = true
}

// retry repeats try while the site does not answer or the transfer is cut. What counts is
// failures in a row that brought nothing.
func (c *Cache) retry(ctx context.Context, try func() (brought bool, err error)) error {
	for failures := 0; ; {
		brought, err := try()
		if brought {
			failures = 0
		}
		if !transient(err) {
			return err
		}
		if failures++; failures > c.o.Retries {
			return err
		}
		if err := c.o.Wait(ctx, failures); err != nil {
			return err
		}
	}
}

// transient errors may be gone when the request is repeated.
func transient(err error) bool {
	return fault.Has(err, fault.Unavailable) || fault.Has(err, fault.Internal) || fault.Has(err, fault.Timeout)
}

// download brings the rest of a blob, as far as the connection holds.
func (c *Cache) download(ctx context.Context, b ocispec.Descriptor, p *partial, report func(int64)) error {
	if p.size == b.Size {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := fault.New(fault.Unavailable, "fetch blob %s: nothing came for %s", b.Digest, c.o.Stall)
	timer := time.AfterFunc(c.o.Stall, func() { cancel(stalled) })
	defer timer.Stop()

	header := http.Header{}
	if p.size > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", p.size))
	}
	resp, err := c.remote.do(ctx, http.MethodGet, poolName+"/blobs/"+b.Digest.String(), nil, header)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if p.size > 0 {
		want := fmt.Sprintf("bytes %d-", p.size)
		if resp.StatusCode != http.StatusPartialContent || !strings.HasPrefix(resp.Header.Get("Content-Range"), want) {
			if err := p.reset(); err != nil { // the site sends the whole
				return err
			}
		}
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		timer.Reset(c.o.Stall)
		if int64(n) > b.Size-p.size {
			return fault.New(fault.DigestMismatch, "the site sent more than the %d bytes of blob %s", b.Size, b.Digest)
		}
		if n > 0 {
			if _, err := p.Write(buf[:n]); err != nil {
				return err
			}
			report(p.size)
		}
		switch {
		case err == io.EOF && p.size == b.Size:
			return nil
		case err == io.EOF:
			return fault.New(fault.Unavailable, "fetch blob %s: cut after %d of %d bytes", b.Digest, p.size, b.Size)
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fault.New(fault.Unavailable, "fetch blob %s: cut after %d of %d bytes: %w", b.Digest, p.size, b.Size, err)
		}
	}
}

// Collect removes images that are not in use and were not fetched for KeepUnused, and
// what no image names. It answers with what it freed.
func (c *Cache) Collect(ctx context.Context) (vee.Bytes, error) {
	before := c.o.Now().Add(-c.o.KeepUnused)
	freed, err := c.evict(func(used time.Time) bool { return used.Before(before) })
	if err != nil {
		return freed, fmt.Errorf("collect images: %w", err)
	}
	return freed, ctx.Err()
}

// makeRoom evicts until all images here, as if complete, keep the limit. It gives up the
// new image where that is not possible.
func (c *Cache) makeRoom(d digest.Digest) error {
	if c.o.Limit <= 0 {
		return nil
	}
	if _, err := c.evict(func(time.Time) bool { return c.total() > c.o.Limit }); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	total := c.total()
	if total <= c.o.Limit {
		return nil
	}
	if c.pins[d] == 1 { // nobody else waits for it
		if err := c.remove(d); err != nil {
			return err
		}
	}
	return fault.New(fault.DiskFull, "images in use and this one need %s, this host's cache may have %s", total, c.o.Limit).
		Try("raise the host's limit for images, or move VEEs to another host")
}

// evictAll evicts everything unused, when the disk is full.
func (c *Cache) evictAll() vee.Bytes {
	freed, err := c.evict(func(time.Time) bool { return true })
	if err != nil {
		return 0
	}
	return freed
}

// total size of the images here, as if complete, each blob once. The caller holds mu.
func (c *Cache) total() vee.Bytes {
	var n vee.Bytes
	for _, size := range c.named() {
		n += vee.Bytes(size)
	}
	return n
}

// named are the blobs that the images here name, with their sizes. The caller holds mu.
func (c *Cache) named() map[digest.Digest]int64 {
	m := map[digest.Digest]int64{}
	for _, img := range c.images {
		for _, p := range img.parts() {
			m[p.Digest] = p.Size
		}
	}
	return m
}

// evict removes unused images, the one not used for longest first, as long as want is
// true, and then what no image names. An image counts as used while a Fetch of it is under
// way, and when one began after InUse was asked: its user may be too young for the answer.
func (c *Cache) evict(want func(used time.Time) bool) (vee.Bytes, error) {
	c.mu.Lock()
	asked := c.tick
	c.mu.Unlock()
	inUse := map[string]bool{}
	for _, d := range c.o.InUse() {
		inUse[d] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	age := map[digest.Digest]time.Time{}
	for d := range c.images {
		if inUse[d.String()] || c.pins[d] > 0 || c.last[d] > asked {
			continue
		}
		info, err := os.Stat(c.manifests.path(d))
		if err != nil {
			return 0, fmt.Errorf("age of image %s: %w", d, err)
		}
		age[d] = info.ModTime()
	}
	byAge := slices.SortedFunc(maps.Keys(age), func(a, b digest.Digest) int {
		return cmp.Or(age[a].Compare(age[b]), strings.Compare(a.String(), b.String()))
	})
	for _, d := range byAge {
		if !want(age[d]) {
			break
		}
		if err := c.remove(d); err != nil {
			return 0, err
		}
	}
	return c.sweep()
}

// remove forgets an image; its blobs go with the next sweep. The caller holds mu.
func (c *Cache) remove(d digest.Digest) error {
	if err := c.manifests.remove(d); err != nil {
		return err
	}
	delete(c.images, d)
	delete(c.last, d)
	return nil
}

// sweep removes blobs and partial files that no image names. The caller holds mu, so that
// no manifest can come meanwhile.
func (c *Cache) sweep() (vee.Bytes, error) {
	var freed vee.Bytes
	named := c.named()
	err := c.blobs.each(func(d digest.Digest, info fs.FileInfo) error {
		if _, ok := named[d]; ok {
			return nil
		}
		freed += vee.Bytes(info.Size())
		delete(c.verified, d)
		return c.blobs.remove(d)
	})
	if err != nil {
		return freed, err
	}
	entries, err := os.ReadDir(filepath.Join(c.dir, "partial"))
	if err != nil {
		return freed, fmt.Errorf("list partial blobs: %w", err)
	}
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		_, ok := named[d]
		if ok || c.pins[d] > 0 { // a manifest on its way
			continue
		}
		if info, err := e.Info(); err == nil {
			freed += vee.Bytes(info.Size())
		}
		if err := os.Remove(filepath.Join(c.dir, "partial", e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, fmt.Errorf("remove partial blob: %w", err)
		}
	}
	return freed, nil
}
