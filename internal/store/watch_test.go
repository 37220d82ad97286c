package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func next[T any](t *testing.T, changes <-chan Change[T]) Change[T] {
	t.Helper()
	select {
	case c, ok := <-changes:
		if !ok {
			t.Fatal("the watch ended")
		}
		return c
	case <-time.After(timeout):
		t.Fatal("nothing came")
	}
	panic("not reached")
}

func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := open(t, Config{Dir: t.TempDir()})
	things := NewCollection[thing](s, "thing")
	if err := things.PutAll(ctx, map[string]thing{"in/a": {N: 1}, "in/b": {N: 2}, "out/c": {N: 3}}); err != nil {
		t.Fatal(err)
	}
	changes := things.Watch(ctx, "in/")
	expect := func(want Change[thing]) {
		t.Helper()
		got := next(t, changes)
		if got.Version == 0 == (got.Kind == Changed) {
			t.Errorf("version %d of %+v", got.Version, got)
		}
		got.Version = 0
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	expect(Change[thing]{Kind: Changed, Key: "in/a", Value: thing{N: 1}})
	expect(Change[thing]{Kind: Changed, Key: "in/b", Value: thing{N: 2}})
	expect(Change[thing]{Kind: Synced})

	things.Put(ctx, "out/c", thing{N: 9})
	things.Put(ctx, "in/a", thing{N: 4})
	expect(Change[thing]{Kind: Changed, Key: "in/a", Value: thing{N: 4}})
	things.Delete(ctx, "in/b", 0)
	expect(Change[thing]{Kind: Deleted, Key: "in/b"})
	things.Create(ctx, "in/b", thing{N: 5})
	expect(Change[thing]{Kind: Changed, Key: "in/b", Value: thing{N: 5}})

	cancel()
	for range changes { // ends
	}
}

func TestWatchEndsWithTheStore(t *testing.T) {
	s, err := Open(t.Context(), Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	changes := NewCollection[thing](s, "thing").Watch(t.Context(), "")
	if c := next(t, changes); c.Kind != Synced {
		t.Errorf("%+v first", c)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if c, ok := <-changes; ok {
		t.Errorf("%+v after the end", c)
	}
}

// fragile streams end after a few responses and take their time to begin again, so that
// compaction overtakes them.
type fragile struct {
	clientv3.Watcher
	begun, compacted atomic.Int64
}

func (f *fragile) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	f.begun.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		defer cancel()
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		in := f.Watcher.Watch(ctx, key, opts...)
		for range 1 + rand.IntN(20) {
			r, ok := <-in
			if !ok {
				return
			}
			if r.CompactRevision > 0 {
				f.compacted.Add(1)
			}
			select {
			case out <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// Whatever happens to its connection and to the past versions, a watch arrives at what is
// there, and shows each object's versions in order.
func TestWatchMissesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := open(t, Config{Dir: t.TempDir()})
	f := &fragile{Watcher: s.client.Watcher}
	s.client.Watcher = f
	things := NewCollection[thing](s, "thing")
	changes := things.Watch(ctx, "")

	var work sync.WaitGroup
	for w := range 4 {
		work.Go(func() {
			for n := range 300 {
				key := fmt.Sprint(rand.IntN(20))
				if rand.IntN(3) == 0 {
					things.Delete(ctx, key, 0) // or there is none
				} else if _, err := things.Put(ctx, key, thing{N: w*1000 + n}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Go(func() {
		for range 60 {
			r, err := s.client.Get(ctx, "x")
			if err == nil {
				_, err = s.client.Compact(ctx, r.Header.Revision)
			}
			if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
				t.Error(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	go func() {
		work.Wait()
		things.Put(ctx, "end", thing{}) // the last change of all: the reader is through
	}()

	seen, versions := map[string]thing{}, map[string]uint64{}
	for c := next(t, changes); c.Key != "end"; c = next(t, changes) {
		switch c.Kind {
		case Changed:
			if c.Version <= versions[c.Key] {
				t.Errorf("%s: version %d after %d", c.Key, c.Version, versions[c.Key])
			}
			seen[c.Key], versions[c.Key] = c.Value, c.Version
		case Deleted:
			if _, ok := seen[c.Key]; !ok {
				t.Errorf("%s was deleted, and never there", c.Key)
			}
			delete(seen, c.Key)
		}
	}
	list, err := things.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]thing{}
	for _, o := range list {
		if o.Key != "end" {
			there[o.Key] = o.Value
		}
	}
	// "end" may come by a list, in the order of keys, before what sorts after it: none does.
	if fmt.Sprint(seen) != fmt.Sprint(there) {
		t.Errorf("the watch shows %v,\nthere is      %v", seen, there)
	}
	if f.begun.Load() < 3 || f.compacted.Load() == 0 {
		t.Errorf("the stream broke %d times, %d times by compaction: too rare for the test to say anything", f.begun.Load(), f.compacted.Load())
	}
}
