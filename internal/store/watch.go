package store

import (
	"context"
	"time"
)

// ChangeKind is what happened to an object.
type ChangeKind int

// Kinds of change.
const (
	Changed ChangeKind = iota // the object is there, new or changed: Key, Value, Version
	Deleted                   // it is gone: Key
	Synced                    // all that was there when the watch began has been sent; comes once
)

// Change is what a watch sends.
type Change[T any] struct {
	Kind    ChangeKind
	Key     string
	Value   T
	Version uint64
}

// Watch sends the objects under prefix as they are, then one Synced, then every change in
// order. It goes on through lost connections; where the changes since are no longer known
// (compaction) it sends the differences between then and now, so that of several changes of
// one object only the last may arrive, but the last always does. It waits for a slow
// reader. The channel closes when ctx or the store ends.
func (c Collection[T]) Watch(ctx context.Context, prefix string) <-chan Change[T] {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.s.ctx, cancel)
	w := &watch[T]{c: c, prefix: prefix, out: make(chan Change[T]), known: map[string]uint64{}}
	c.s.watches.Go(func() {
		defer cancel()
		defer stop()
		defer close(w.out)
		w.run(ctx)
	})
	return w.out
}

// retryAfter is how long a watch waits before it asks a store again that did not answer.
const retryAfter = 200 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

type watch[T any] struct {
	c      Collection[T]
	prefix string
	out    chan Change[T]
	known  map[string]uint64 // versions of the objects that the reader knows, by full key
}

// run lists, then follows, and again whenever following cannot go on.
func (w *watch[T]) run(ctx context.Context) {
	for synced := false; ctx.Err() == nil; {
		version, err := w.list(ctx)
		if err != nil {
			w.c.s.log.Warn("watch: cannot list, will try again", "collection", w.c.name, "error", err)
			pause(ctx, retryAfter)
			continue
		}
		if !synced && !w.send(ctx, Change[T]{Kind: Synced}) {
			return
		}
		synced = true
		w.c.s.records.follow(ctx, w.c.path(w.prefix), version, w.tell(ctx))
	}
}

// list brings the reader from what it knows to what is there now.
func (w *watch[T]) list(ctx context.Context) (version uint64, err error) {
	rows, version, err := w.c.scan(ctx, w.prefix)
	if err != nil {
		return 0, err
	}
	there := make(map[string]bool, len(rows))
	for _, r := range rows {
		there[r.key] = true
	}
	for key := range w.known {
		if !there[key] {
			w.deleted(ctx, key)
		}
	}
	for _, r := range rows {
		w.changed(ctx, r)
	}
	return version, ctx.Err()
}

// tell the reader of a change that has happened.
func (w *watch[T]) tell(ctx context.Context) func(row) {
	return func(r row) {
		if r.value == nil {
			w.deleted(ctx, r.key)
		} else {
			w.changed(ctx, r)
		}
	}
}

func (w *watch[T]) changed(ctx context.Context, r row) {
	if w.known[r.key] >= r.version {
		return
	}
	o, err := w.c.decode(r)
	if err != nil {
		// Nobody can act on it, and List tells who asks.
		w.c.s.log.Error("watch: object left out", "error", err)
		return
	}
	if w.send(ctx, Change[T]{Kind: Changed, Key: o.Key, Value: o.Value, Version: o.Version}) {
		w.known[r.key] = r.version
	}
}

func (w *watch[T]) deleted(ctx context.Context, key string) {
	if _, known := w.known[key]; !known {
		return
	}
	if w.send(ctx, Change[T]{Kind: Deleted, Key: key[len(w.c.root()):]}) {
		delete(w.known, key)
	}
}

func (w *watch[T]) send(ctx context.Context, c Change[T]) bool {
	select {
	case w.out <- c:
		return true
	case <-ctx.Done():
		return false
	}
}
