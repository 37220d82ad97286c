package store

import (
	"context"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Migration brings a record from one schema to the next: the i-th of Config.Migrations from
// i+1 to i+2. A new record starts at the newest schema and runs none. Migrations are never
// removed or reordered.
type Migration struct {
	Name string
	// Apply may be cut short by a crash and run again: it must not mind.
	Apply func(context.Context, *Store) error
}

// meta is what the record knows of itself. A restore from a backup is a new Generation
// (NextGeneration).
type meta struct {
	Schema     int    `json:"schema"`
	Generation uint64 `json:"generation"`
}

// metaName is the one collection name that others must not take, metaKey its one object.
const (
	metaName = "meta"
	metaKey  = "record"
)

// migrate reads the record's generation and brings its schema up to date.
func (s *Store) migrate(ctx context.Context, migrations []Migration) error {
	metas := NewCollection[meta](s, metaName)
	newest := len(migrations) + 1
	m, version, err := metas.Get(ctx, metaKey)
	if fault.Has(err, fault.NotFound) {
		m = meta{Schema: newest, Generation: 1}
		if version, err = metas.Create(ctx, metaKey, m); fault.Has(err, fault.Exists) {
			m, version, err = metas.Get(ctx, metaKey) // another process of this site was first
		}
	}
	if err != nil {
		return err
	}
	if m.Schema > newest {
		return fault.New(fault.Unsupported, "open the site's record of truth: it has schema %d, written by a newer Reservoir; this one knows schemas up to %d", m.Schema, newest).
			Try("run the newer Reservoir again, or put the record back from a backup made before the upgrade")
	}
	for ; m.Schema < newest; m.Schema++ {
		step := migrations[m.Schema-1]
		s.log.Info("store: migrating", "from", m.Schema, "to", m.Schema+1, "migration", step.Name)
		if err := step.Apply(ctx, s); err != nil {
			return fault.New(fault.Internal, "migrate the site's record of truth from schema %d to %d (%s): %w", m.Schema, m.Schema+1, step.Name, err)
		}
		if version, err = metas.Update(ctx, metaKey, meta{Schema: m.Schema + 1, Generation: m.Generation}, version); err != nil {
			return err
		}
	}
	s.generation = m.Generation
	return nil
}

// NextGeneration makes a record that was put back from a backup another one: with a
// generation that is larger than that of the backup, and at least least. The record that it
// replaces may have been restored from the same backup before, so least is to be larger than
// all that there ever were; the clock is.
func (s *Store) NextGeneration(ctx context.Context, least uint64) (uint64, error) {
	m, _, err := NewCollection[meta](s, metaName).Modify(ctx, metaKey, func(m *meta) error {
		m.Generation = max(m.Generation+1, least)
		return nil
	})
	if err != nil {
		return 0, err
	}
	s.generation = m.Generation
	return m.Generation, nil
}
