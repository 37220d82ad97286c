package site

import (
	"cmp"
	"context"
	"fmt"
	"sync"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/site/admin"
	"github.com/reservoir-cloud/reservoir/smi"
)

// published is what operators say of the site, to partners and to its own placement: how it was
// started, until they have said otherwise.
type published struct {
	kept store.Collection[admin.Published]

	mu  sync.Mutex
	now admin.Published
}

// publishedKey of the one row.
const publishedKey = "site"

func (s *site) openPublished(ctx context.Context) error {
	f := s.cfg.Federation
	s.published.kept = store.NewCollection[admin.Published](s.store, "published")
	s.published.now = admin.Published{Power: cmp.Or(f.Energy.Condition, "normal"), GramsKWh: f.Energy.GramsKWh, HeatWanted: f.HeatWanted}
	switch kept, _, err := s.published.kept.Get(ctx, publishedKey); {
	case err == nil:
		s.published.now = kept
	case !fault.Has(err, fault.NotFound):
		return fmt.Errorf("read what the site publishes: %w", err)
	}
	return nil
}

// Published implements admin.Federation.
func (s *site) Published(context.Context) (admin.Published, error) {
	s.published.mu.Lock()
	defer s.published.mu.Unlock()
	return s.published.now, nil
}

// Publish implements admin.Federation. Partners are told at once.
func (s *site) Publish(ctx context.Context, p admin.Publish) (admin.Published, error) {
	s.published.mu.Lock()
	defer s.published.mu.Unlock()
	next := s.published.now
	if p.Power != nil {
		next.Power = *p.Power
	}
	if p.GramsKWh != nil {
		next.GramsKWh = *p.GramsKWh
	}
	if p.HeatWanted != nil {
		next.HeatWanted = *p.HeatWanted
	}
	f := Federation{HeatWanted: next.HeatWanted}
	f.Energy.Condition, f.Energy.GramsKWh = next.Power, next.GramsKWh
	if err := f.check(); err != nil {
		return next, err
	}
	if next == s.published.now {
		return next, nil
	}
	if _, err := s.published.kept.Put(ctx, publishedKey, next); err != nil {
		return next, fmt.Errorf("keep what the site publishes: %w", err)
	}
	was := s.published.now
	s.published.now = next
	e := smi.Event{Type: "normal", Reason: "Published", Object: "site/" + s.cfg.Name,
		Message: fmt.Sprintf("power is %s, %g g CO₂/kWh, %g of the heat is wanted", next.Power, next.GramsKWh, next.HeatWanted)}
	if next.Power != was.Power && next.Power != "normal" {
		e.Type = "warning"
	}
	s.events.Record(e)
	s.offers.Tell()
	s.abroad.told()
	return next, nil
}
