package veem

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// shelf holds the records of one kind: rows as they are in the store, and the drafts of the
// changes that are being made. Rows are never changed in place.
type shelf[T any] struct {
	kind     string
	rows     map[string]*T
	versions map[string]uint64 // in the store
	drafts   map[string]draft[T]
}

// draft of a record; a nil value: to be removed.
type draft[T any] struct {
	value *T
	raw   json.RawMessage
}

// anyShelf is what the ledger needs of a shelf, whatever it holds.
type anyShelf interface {
	name() string
	clear()
	load(Row) error
	ops(now []Op) []Op
	publish(key string, version uint64) change
	forget()
}

func (s *shelf[T]) name() string { return s.kind }

func (s *shelf[T]) clear() {
	s.rows, s.versions, s.drafts = map[string]*T{}, map[string]uint64{}, map[string]draft[T]{}
}

func (s *shelf[T]) load(row Row) error {
	v := new(T)
	if err := json.Unmarshal(row.Value, v); err != nil {
		return fmt.Errorf("decode %s %q as stored: %w", row.Kind, row.Key, err)
	}
	s.rows[row.Key], s.versions[row.Key] = v, row.Version
	return nil
}

// ops adds what the drafts would write, in the order of their keys.
func (s *shelf[T]) ops(ops []Op) []Op {
	for _, key := range slices.Sorted(maps.Keys(s.drafts)) {
		d := s.drafts[key]
		if o := (Op{Kind: s.kind, Key: key, Value: d.raw, Version: s.versions[key]}); o.Value != nil || o.Version != 0 {
			ops = append(ops, o) // else: made and removed in one go
		}
	}
	return ops
}

func (s *shelf[T]) publish(key string, version uint64) change {
	before, after := s.rows[key], s.drafts[key].value
	delete(s.drafts, key)
	if after == nil {
		delete(s.rows, key)
		delete(s.versions, key)
	} else {
		s.rows[key], s.versions[key] = after, version
	}
	c := change{kind: s.kind, key: key}
	c.before, _ = any(before).(*record)
	c.after, _ = any(after).(*record)
	return c
}

func (s *shelf[T]) forget() { clear(s.drafts) }

// get a record with the drafts; nil if there is none. It must not be changed.
func (s *shelf[T]) get(key string) *T {
	if d, drafted := s.drafts[key]; drafted {
		return d.value
	}
	return s.rows[key]
}

// all records with the drafts, in no order.
func (s *shelf[T]) all() iter.Seq2[string, *T] {
	return func(yield func(string, *T) bool) {
		for key, d := range s.drafts {
			if d.value != nil && !yield(key, d.value) {
				return
			}
		}
		for key, v := range s.rows {
			if _, drafted := s.drafts[key]; !drafted && !yield(key, v) {
				return
			}
		}
	}
}

// tx is what a change sees and changes. It is valid while the function runs.
type tx struct {
	*state
	now  time.Time
	undo []func()
}

func put[T any](t *tx, s *shelf[T], key string, v *T) {
	old, drafted := s.drafts[key]
	t.undo = append(t.undo, func() {
		if drafted {
			s.drafts[key] = old
		} else {
			delete(s.drafts, key)
		}
	})
	d := draft[T]{value: v}
	if v != nil {
		raw, err := json.Marshal(v)
		if err != nil {
			panic(err) // records are made of plain values
		}
		d.raw = raw
	}
	s.drafts[key] = d
}

func (t *tx) rollback(mark int) {
	for len(t.undo) > mark {
		t.undo[len(t.undo)-1]()
		t.undo = t.undo[:len(t.undo)-1]
	}
}

func (t *tx) ops() (ops []Op) {
	for _, s := range t.shelves() {
		ops = s.ops(ops)
	}
	return ops
}

// putVEE writes r where it differs from what is there.
func (t *tx) putVEE(r record) {
	old := t.vees.get(string(r.ID))
	if old != nil {
		if old.same(&r) {
			return
		}
		r.Version = old.Version + 1
	} else {
		r.Version, r.Created = 1, t.now
	}
	r.live(old, t.now)
	if old == nil || old.State != r.State || old.Phase != r.Phase {
		r.Changed = t.now
	}
	r.Progress, r.GuestIdle, r.DiskUsed = nil, false, 0
	put(t, &t.vees, string(r.ID), &r)
}

func (t *tx) vee(id vee.ID) (record, bool) {
	if r := t.vees.get(string(id)); r != nil {
		return *r, true
	}
	return record{}, false
}
