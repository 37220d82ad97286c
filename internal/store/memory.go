package store

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
)

// InMemory makes an empty store without etcd, whose records are gone with it. It is for
// simulations and tests: nothing in it waits, and no goroutine runs but those of watches.
// fail, if it is not nil, is asked before and after each write: an error before keeps it from
// happening, one after it loses the answer.
func InMemory(log *slog.Logger, fail func(after bool) error) *Store {
	if fail == nil {
		fail = func(bool) error { return nil }
	}
	s := &Store{prefix: "/reservoir/", log: log, generation: 1, records: &inMemory{version: 1, rows: map[string]row{}, news: make(chan struct{}), fail: fail}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// inMemory keeps rows in a map, under one lock.
type inMemory struct {
	fail func(after bool) error

	mu      sync.Mutex
	rows    map[string]row
	version uint64
	news    chan struct{} // closed, and made anew, at each change
}

func (m *inMemory) get(ctx context.Context, key string) (row, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, there := m.rows[key]
	return r, there, ctx.Err()
}

func (m *inMemory) list(ctx context.Context, prefix string) (rows []row, version uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, r := range m.rows {
		if strings.HasPrefix(key, prefix) {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.key, b.key) })
	return rows, m.version, ctx.Err()
}

func (m *inMemory) write(ctx context.Context, ops []Op) (version uint64, found []uint64, err error) {
	if err := m.fail(false); err != nil {
		return 0, nil, err
	}
	if version, found, err = m.writeNow(ctx, ops); err == nil {
		err = m.fail(true)
	}
	return version, found, err
}

func (m *inMemory) writeNow(ctx context.Context, ops []Op) (version uint64, found []uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, nil, err
	}
	refused := false
	for _, o := range ops {
		version := m.rows[o.key].version
		found = append(found, version)
		refused = refused || o.refusal(version) != nil
	}
	if refused {
		return 0, found, nil
	}
	if slices.ContainsFunc(ops, func(o Op) bool { return o.verb != expect }) {
		m.changed()
	}
	for _, o := range ops {
		switch o.verb {
		case create, update, put:
			m.rows[o.key] = row{o.key, slices.Clone(o.value), m.version}
		case remove:
			delete(m.rows, o.key)
		}
	}
	return m.version, nil, nil
}

// changed counts a change and tells who follows. mu is held.
func (m *inMemory) changed() {
	m.version++
	close(m.news)
	m.news = make(chan struct{})
}

func (m *inMemory) deleteRange(ctx context.Context, from, to string, _ *Op) (done bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.rows)
	maps.DeleteFunc(m.rows, func(key string, _ row) bool { return from <= key && key < to })
	if len(m.rows) != before {
		m.changed()
	}
	return true, ctx.Err()
}

// follow keeps no past: it returns at the next change, and whoever follows lists again.
func (m *inMemory) follow(ctx context.Context, _ string, after uint64, _ func(row)) {
	m.mu.Lock()
	news, version := m.news, m.version
	m.mu.Unlock()
	if version > after {
		return
	}
	select {
	case <-news:
	case <-ctx.Done():
	}
}
