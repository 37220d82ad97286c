package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Collection holds objects of one kind as JSON, each under a key of its own: any text that
// is not empty, by convention parts joined with "/" so that "acme/" is the prefix of all
// that belongs to acme. It is a handle without state: make as many as convenient.
type Collection[T any] struct {
	s    *Store
	name string
}

// Object is a value as it was at a version.
type Object[T any] struct {
	Key     string
	Value   T
	Version uint64
}

// NewCollection names a collection by the singular noun that error messages use too:
// "service", "vee", "host"; without "/", and not "meta". It makes nothing in the store.
func NewCollection[T any](s *Store, name string) Collection[T] {
	return Collection[T]{s: s, name: name}
}

// Get returns the object and its version; fault.NotFound. It is linearisable.
func (c Collection[T]) Get(ctx context.Context, key string) (T, uint64, error) {
	var zero T
	octx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	r, there, err := c.s.records.get(octx, c.path(key))
	if err != nil {
		return zero, 0, explain(octx, err, "read %s %q", c.name, key)
	}
	if !there {
		return zero, 0, c.notFound(key)
	}
	o, err := c.decode(r)
	return o.Value, o.Version, err
}

// List returns the objects whose key starts with prefix, in the order of their keys, all as
// they were at one moment.
func (c Collection[T]) List(ctx context.Context, prefix string) ([]Object[T], error) {
	var list []Object[T]
	rows, _, err := c.scan(ctx, prefix)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		o, err := c.decode(r)
		if err != nil {
			return nil, err
		}
		list = append(list, o)
	}
	return list, nil
}

// Values is List without keys and versions.
func (c Collection[T]) Values(ctx context.Context, prefix string) ([]T, error) {
	list, err := c.List(ctx, prefix)
	values := make([]T, len(list))
	for i, o := range list {
		values[i] = o.Value
	}
	return values, err
}

// Versions is List without values: the versions by key.
func (c Collection[T]) Versions(ctx context.Context, prefix string) (map[string]uint64, error) {
	rows, _, err := c.scan(ctx, prefix)
	if err != nil {
		return nil, err
	}
	versions := make(map[string]uint64, len(rows))
	for _, r := range rows {
		versions[r.key[len(c.root()):]] = r.version
	}
	return versions, nil
}

// Create puts a new object; fault.Exists where there is one. It returns the version.
func (c Collection[T]) Create(ctx context.Context, key string, v T) (uint64, error) {
	return c.s.Txn(ctx, c.OpCreate(key, v))
}

// Update replaces the object that still has this version, and returns the new version.
// fault.Conflict when it has changed, fault.NotFound when it is gone.
func (c Collection[T]) Update(ctx context.Context, key string, v T, version uint64) (uint64, error) {
	return c.s.Txn(ctx, c.OpUpdate(key, v, version))
}

// Put creates or replaces the object, whatever is there, and returns the new version.
func (c Collection[T]) Put(ctx context.Context, key string, v T) (uint64, error) {
	return c.s.Txn(ctx, c.OpPut(key, v))
}

// Modify reads the object, lets f change it, and writes it back where it differs; when
// somebody else wrote in between it starts anew, so f may run more than once and must do
// nothing but change its argument. An error of f ends it and is returned as it is.
func (c Collection[T]) Modify(ctx context.Context, key string, f func(*T) error) (T, uint64, error) {
	for {
		v, version, err := c.Get(ctx, key)
		if err != nil {
			return v, 0, err
		}
		before, err := json.Marshal(v)
		if err != nil {
			return v, 0, c.unencodable(key, err)
		}
		if err := f(&v); err != nil {
			return v, 0, err
		}
		after, err := json.Marshal(v)
		if err != nil {
			return v, 0, c.unencodable(key, err)
		}
		if bytes.Equal(before, after) {
			return v, version, nil
		}
		version, err = c.s.Txn(ctx, Op{what: c.what(key), key: c.path(key), guard: version, value: after, verb: update})
		if !fault.Has(err, fault.Conflict) {
			return v, version, err
		}
	}
}

// Delete removes the object that still has this version, or any where version is 0.
// fault.NotFound when there is none, fault.Conflict when it has changed.
func (c Collection[T]) Delete(ctx context.Context, key string, version uint64) error {
	_, err := c.s.Txn(ctx, c.OpDelete(key, version))
	return err
}

// PutAll puts many objects without guards, in the order of their keys and in as few
// transactions as possible: after an error a first part of them may be there.
func (c Collection[T]) PutAll(ctx context.Context, values map[string]T) error {
	ops := make([]Op, 0, len(values))
	for _, key := range slices.Sorted(maps.Keys(values)) {
		ops = append(ops, c.OpPut(key, values[key]))
	}
	for part := range slices.Chunk(ops, MaxOps) {
		if _, err := c.s.Txn(ctx, part...); err != nil {
			return err
		}
	}
	return nil
}

// DeleteRange removes all objects whose key is at or after from and before to, in one step.
func (c Collection[T]) DeleteRange(ctx context.Context, from, to string) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, err := c.s.records.deleteRange(ctx, c.path(from), c.path(to), nil)
	return explain(ctx, err, "delete each %s from %q to before %q", c.name, from, to)
}

// scan reads everything under prefix as of one version, which it returns.
func (c Collection[T]) scan(ctx context.Context, prefix string) ([]row, uint64, error) {
	rows, version, err := c.s.records.list(ctx, c.path(prefix))
	return rows, version, explain(ctx, err, "list each %s under %q", c.name, prefix)
}

func (c Collection[T]) root() string           { return c.s.prefix + c.name + "/" }
func (c Collection[T]) path(key string) string { return c.root() + key }
func (c Collection[T]) what(key string) string { return fmt.Sprintf("%s %q", c.name, key) }

func (c Collection[T]) notFound(key string) error {
	return fault.New(fault.NotFound, "%s does not exist", c.what(key))
}

func (c Collection[T]) unencodable(key string, err error) error {
	return fault.New(fault.Internal, "encode %s: %w", c.what(key), err)
}

func (c Collection[T]) decode(r row) (Object[T], error) {
	o := Object[T]{Key: r.key[len(c.root()):], Version: r.version}
	if err := json.Unmarshal(r.value, &o.Value); err != nil {
		return o, fault.New(fault.Internal, "decode %s as stored: %w", c.what(o.Key), err)
	}
	return o, nil
}
