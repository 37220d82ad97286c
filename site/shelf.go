package site

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/site/peer"
)

// The images of several members. Which there are says the index, one row of the record of
// truth that the leader writes; each member holds all of them, and fetches what it lacks from
// any other, again and again until it has it. A push is acknowledged when a majority has the
// image, and a majority has to elect a leader: so some member that takes part in each
// election has it.

// sharedIndex is the row.
type sharedIndex struct {
	Index json.RawMessage `json:"index"`
}

func indexes(s *store.Store) store.Collection[sharedIndex] {
	return store.NewCollection[sharedIndex](s, "image-index")
}

const indexKey = "index"

// lookForImages is how often a member looks for what it lacks, beside at each change.
const lookForImages = 10 * time.Second

// shelf of images that a member shares with the others.
type shelf struct {
	mu   sync.Mutex // held while an index is adopted
	term atomic.Pointer[store.Term]

	problemMu sync.Mutex
	problem   string // why images are missing
	clients   map[string]*http.Client
}

func (h *shelf) status(images *image.Store) (missing int, problem string) {
	h.problemMu.Lock()
	defer h.problemMu.Unlock()
	if missing = len(images.Missing()); missing == 0 {
		return 0, ""
	}
	return missing, h.problem
}

func (h *shelf) say(err error) {
	h.problemMu.Lock()
	defer h.problemMu.Unlock()
	h.problem = ""
	if err != nil {
		h.problem = err.Error()
	}
}

func (h *shelf) close() {
	h.problemMu.Lock()
	defer h.problemMu.Unlock()
	for _, c := range h.clients {
		c.CloseIdleConnections()
	}
}

// openImages of this member, those of before.
func (m *member) openImages(context.Context) (err error) {
	o := image.Options{KeepFree: imagesKeepFree, InUse: func(ctx context.Context) (map[string][]string, error) {
		if s := m.site.Load(); s != nil {
			return s.imagesInUse(ctx)
		}
		return nil, fault.New(fault.Unavailable, "this member does not lead, and does not know what is in use")
	}}
	if m.several() {
		o.Spread, o.Share = m.spread, m.share
	}
	m.images, err = image.OpenStore(filepath.Join(m.cfg.Dir, "images"), o)
	return err
}

// settleImages at the begin of a term: the index of the record is this member's, or where
// there is none yet, this member's that of the record.
func (m *member) settleImages(ctx context.Context, term *store.Term) error {
	m.shelf.mu.Lock()
	defer m.shelf.mu.Unlock()
	m.shelf.term.Store(term)
	if !m.several() {
		return nil
	}
	row, _, err := indexes(term.Store).Get(ctx, indexKey)
	if err == nil {
		return m.images.Adopt(row.Index)
	}
	if !fault.Has(err, fault.NotFound) {
		return err
	}
	mine, err := m.images.Index()
	if err == nil {
		_, err = indexes(term.Store).Create(ctx, indexKey, sharedIndex{mine})
	}
	return err
}

// share implements image.Options.
func (m *member) share(index []byte) error {
	term := m.shelf.term.Load()
	if term == nil {
		return fault.New(fault.Unavailable, "this member does not lead")
	}
	_, err := indexes(term.Store).Put(context.Background(), indexKey, sharedIndex{index})
	return err
}

// spread implements image.Options: it returns when a majority of the members has the image.
func (m *member) spread(ctx context.Context, manifest []byte) error {
	others, err := m.others(ctx)
	if err != nil {
		return err
	}
	need := (len(others) + 1) / 2 // beside this one
	if need == 0 {
		return nil
	}
	ctx, enough := context.WithCancel(ctx)
	answers := make(chan error, len(others))
	var asking sync.WaitGroup
	defer asking.Wait()
	defer enough() // the rest fetch it by themselves
	for _, o := range others {
		asking.Go(func() {
			p, c := m.peerAt(o.Own)
			defer c.CloseIdleConnections()
			answers <- p.TakeImage(ctx, peer.MemberImage{Manifest: manifest, From: m.cfg.addressOf(m.cfg.Member.Listen)})
		})
	}
	var last error
	for left := len(others); need > 0; left-- {
		if need > left {
			return fault.New(fault.Unavailable, "a majority of the site's %d members cannot take the image now: %w", len(others)+1, last).Try("reservoir site member list")
		}
		if err := <-answers; err != nil {
			last = err
		} else {
			need--
		}
	}
	return nil
}

// TakeImage implements peer.Member.
func (m *member) TakeImage(ctx context.Context, i peer.MemberImage) error {
	return m.images.Take(ctx, i.Manifest, m.registryAt(i.From))
}

// registryAt another member.
func (m *member) registryAt(address string) image.Remote {
	m.shelf.problemMu.Lock()
	defer m.shelf.problemMu.Unlock()
	if m.shelf.clients == nil {
		m.shelf.clients = map[string]*http.Client{}
	}
	if m.shelf.clients[address] == nil {
		m.shelf.clients[address] = m.toMember(address)
	}
	return image.Remote{Base: "https://" + address, HTTP: m.shelf.clients[address]}
}

// followImages adopts the index as it changes, and fetches what is missing.
func (m *member) followImages(ctx context.Context) {
	changes := indexes(m.store).Watch(ctx, indexKey)
	look := time.NewTicker(lookForImages)
	defer look.Stop()
	sweep := time.NewTicker(collectEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			for range changes { // it ends with ctx
			}
			return
		case c := <-changes:
			if c.Kind == store.Changed {
				if err := m.adopt(c.Value.Index); err != nil {
					m.cfg.Log.Error("adopt the index of images", "err", err)
				}
			}
		case <-sweep.C:
			if _, err := m.images.Sweep(ctx); err != nil {
				m.cfg.Log.Warn("sweep images away", "err", err)
			}
		case <-look.C:
		}
		err := m.fetchMissing(ctx)
		if m.shelf.say(err); err != nil && ctx.Err() == nil {
			m.cfg.Log.Info("images are missing here, and will be fetched again", "err", err)
		}
	}
}

// adopt an index, unless this member is the one that writes it.
func (m *member) adopt(index []byte) error {
	m.shelf.mu.Lock()
	defer m.shelf.mu.Unlock()
	m.mu.Lock()
	leads := m.leads
	m.mu.Unlock()
	if leads {
		return nil
	}
	return m.images.Adopt(index)
}

func (m *member) fetchMissing(ctx context.Context) (err error) {
	missing := m.images.Missing()
	if len(missing) == 0 {
		return nil
	}
	others, err := m.others(ctx)
	if err != nil {
		return err
	}
	for _, d := range missing {
		if e := m.fetch(ctx, d, others); e != nil {
			err = e
		}
	}
	return err
}

// fetch an image from whichever member has it.
func (m *member) fetch(ctx context.Context, d digest.Digest, others []memberRow) error {
	err := error(fault.New(fault.NotFound, "image %s: there is no other member to fetch it from", d))
	for _, o := range others {
		if err = m.images.Fetch(ctx, d, m.registryAt(o.Own)); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}
