package site

import (
	"context"
	"path/filepath"
	"sync"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// importer brings images of partners' VEEs from their own sites' registries, each once, and
// ahead of its deployment: while it is on its way everybody who asks is told how far it is.
// What was cut off is resumed.
type importer struct {
	dir    string // a cache for each partner
	images *image.Store
	client func(partner string) (*httpapi.Client, error)

	ctx  context.Context // of Run; what is under way ends with it
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex
	caches map[string]*image.Cache
	flying map[string]*flight // by digest
}

// flight is an image on its way, or one that did not come.
type flight struct {
	mu   sync.Mutex
	done bool
	err  error
	far  vee.Progress
}

func newImporter(dir string, images *image.Store, client func(string) (*httpapi.Client, error)) *importer {
	i := &importer{dir: dir, images: images, client: client, caches: map[string]*image.Cache{}, flying: map[string]*flight{}}
	i.ctx, i.stop = context.WithCancel(context.Background())
	return i
}

// Close ends what is under way.
func (i *importer) Close() {
	i.stop()
	i.wg.Wait()
	for _, c := range i.caches {
		_ = c.Close()
	}
}

// Import is veem.Config.Import.
func (i *importer) Import(ctx context.Context, site, digest string) error {
	if _, err := i.images.Resolve(ctx, digest); err == nil {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if f := i.flying[digest]; f != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		switch {
		case !f.done:
			return fault.New(fault.Unavailable, "image %s is on its way from site %s: %d of %d bytes", digest, site, f.far.Done, f.far.Total)
		case f.err != nil:
			delete(i.flying, digest) // tried again with the next question
			return fault.New(fault.Unavailable, "image %s did not come from site %s: %w", digest, site, f.err)
		}
		delete(i.flying, digest)
	}
	c, err := i.cache(site)
	if err != nil {
		return err
	}
	f := &flight{}
	i.flying[digest] = f
	i.wg.Go(func() {
		_, err := i.images.Import(i.ctx, c, digest, func(p vee.Progress) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.far = p
		})
		f.mu.Lock()
		defer f.mu.Unlock()
		f.done, f.err = true, err
	})
	return fault.New(fault.Unavailable, "image %s is fetched from site %s", digest, site)
}

// cache of what comes from a partner. mu is held.
func (i *importer) cache(site string) (*image.Cache, error) {
	if c := i.caches[site]; c != nil {
		return c, nil
	}
	to, err := i.client(site)
	if err != nil {
		return nil, err
	}
	c, err := image.OpenCache(filepath.Join(i.dir, site), image.Remote{Base: to.Base, HTTP: to.HTTP}, image.CacheOptions{KeepFree: imagesKeepFree})
	if err != nil {
		return nil, err
	}
	i.caches[site] = c
	return c, nil
}
