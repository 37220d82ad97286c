package store

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// etcdOps is how many operations an etcd cluster allows in one transaction unless it was
// told otherwise.
const etcdOps = 128

// MaxOps is how many operations one transaction may have: a Term adds one of its own.
const MaxOps = etcdOps - 1

// verb of an Op.
type verb int

const (
	create verb = iota
	update
	put
	remove
	expect
)

// Op is one step of a transaction, made by a collection's Op methods.
type Op struct {
	verb  verb
	what  string // for messages: service "acme/web"
	key   string
	guard uint64 // version that must be there; 0 has the verb's own meaning
	value []byte
	err   error // the value could not be encoded
}

// OpCreate is Create as part of a transaction.
func (c Collection[T]) OpCreate(key string, v T) Op { return c.op(create, key, 0).with(v) }

// OpUpdate is Update as part of a transaction.
func (c Collection[T]) OpUpdate(key string, v T, version uint64) Op {
	return c.op(update, key, version).with(v)
}

// OpPut is Put as part of a transaction.
func (c Collection[T]) OpPut(key string, v T) Op { return c.op(put, key, 0).with(v) }

// OpDelete is Delete as part of a transaction.
func (c Collection[T]) OpDelete(key string, version uint64) Op { return c.op(remove, key, version) }

// OpExpect changes nothing; the transaction happens only if the object has this version
// (fault.Conflict, fault.NotFound), or, where version is 0, does not exist (fault.Exists).
func (c Collection[T]) OpExpect(key string, version uint64) Op { return c.op(expect, key, version) }

func (c Collection[T]) op(v verb, key string, guard uint64) Op {
	o := Op{verb: v, what: c.what(key), key: c.path(key), guard: guard}
	if key == "" {
		o.err = fault.New(fault.Malformed, "a %s needs a name", c.name)
	}
	return o
}

func (o Op) with(v any) Op {
	b, err := json.Marshal(v)
	if err != nil && o.err == nil {
		o.err = fault.New(fault.Internal, "encode %s: %w", o.what, err)
	}
	o.value = b
	return o
}

// Txn does all ops or none, at most MaxOps and each key at most once, and returns the
// version that every object it wrote has now. The error is that of the first op whose
// guard did not hold.
func (s *Store) Txn(ctx context.Context, ops ...Op) (uint64, error) {
	var whats []string
	for _, o := range ops {
		if o.err != nil {
			return 0, o.err
		}
		whats = append(whats, o.what)
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	version, found, err := s.records.write(ctx, ops)
	if err != nil {
		return 0, explain(ctx, err, "write %s", strings.Join(whats, ", "))
	}
	if found == nil {
		return version, nil
	}
	for i, o := range ops {
		if err := o.refusal(found[i]); err != nil {
			return 0, err
		}
	}
	return 0, fault.New(fault.Internal, "write %s: refused, and no guard says why", strings.Join(whats, ", "))
}

// refusal says why o could not happen to an object with this version, 0 if there is none;
// nil when its guards held.
func (o Op) refusal(version uint64) error {
	switch {
	case o.verb == put:
		return nil
	case o.verb == create || o.verb == expect && o.guard == 0:
		if version != 0 {
			return fault.New(fault.Exists, "%s exists already", o.what)
		}
	case version == 0:
		return fault.New(fault.NotFound, "%s does not exist", o.what)
	case version != o.guard && (o.verb != remove || o.guard != 0):
		return fault.New(fault.Conflict, "%s was changed by somebody else: it has version %d, not %d", o.what, version, o.guard)
	}
	return nil
}
