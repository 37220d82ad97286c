package store

import (
	"context"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Memory answers as etcd does, call by call; only the numbers of the versions are its own.
func TestMemoryIsAsEtcd(t *testing.T) {
	real := open(t, Config{Dir: t.TempDir()})
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		memory := InMemory(slog.New(slog.DiscardHandler), nil)
		defer memory.Close()
		name := "thing" + time.Duration(run).String() // a collection of its own for each run
		a, b := NewCollection[thing](real, name), NewCollection[thing](memory, name)
		ctx := context.Background()
		versions := [][2]uint64{{}, {1 << 60, 1 << 60}} // that were given out, by each
		same := func(what string, one, two error) {
			if (one == nil) != (two == nil) || one != nil && !fault.Has(two, fault.From(one).Code) {
				t.Fatalf("%s: %v, in memory %v", what, one, two)
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "calls") {
			var opsA, opsB []Op
			for _, key := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "a/b", "b", "c"}), 1, 3, rapid.ID).Draw(t, "keys") {
				v := rapid.SampledFrom(versions).Draw(t, "version")
				value := thing{N: rapid.Int().Draw(t, "n")}
				switch rapid.IntRange(0, 4).Draw(t, "verb") {
				case 0:
					opsA, opsB = append(opsA, a.OpCreate(key, value)), append(opsB, b.OpCreate(key, value))
				case 1:
					opsA, opsB = append(opsA, a.OpUpdate(key, value, v[0])), append(opsB, b.OpUpdate(key, value, v[1]))
				case 2:
					opsA, opsB = append(opsA, a.OpPut(key, value)), append(opsB, b.OpPut(key, value))
				case 3:
					opsA, opsB = append(opsA, a.OpDelete(key, v[0])), append(opsB, b.OpDelete(key, v[1]))
				case 4:
					opsA, opsB = append(opsA, a.OpExpect(key, v[0])), append(opsB, b.OpExpect(key, v[1]))
				}
			}
			one, errA := real.Txn(ctx, opsA...)
			two, errB := memory.Txn(ctx, opsB...)
			if same("write", errA, errB); errA == nil {
				versions = append(versions, [2]uint64{one, two})
			}
			if rapid.IntRange(0, 9).Draw(t, "range") == 0 {
				same("delete a range", a.DeleteRange(ctx, "a", "b"), b.DeleteRange(ctx, "a", "b"))
			}
			prefix := rapid.SampledFrom([]string{"", "a", "a/", "z"}).Draw(t, "prefix")
			listA, errA := a.Values(ctx, prefix)
			listB, errB := b.Values(ctx, prefix)
			if same("list", errA, errB); !reflect.DeepEqual(listA, listB) {
				t.Fatalf("under %q there is %v, in memory %v", prefix, listA, listB)
			}
		}
	})
}

func TestWatchOfMemory(t *testing.T) {
	s := InMemory(slog.New(slog.DiscardHandler), nil)
	things := NewCollection[thing](s, "thing")
	ctx := t.Context()
	put := func(key string, n int) {
		t.Helper()
		if _, err := things.Put(ctx, key, thing{N: n}); err != nil {
			t.Fatal(err)
		}
	}
	put("a", 1)
	changes := things.Watch(ctx, "")
	for _, want := range []Change[thing]{{Kind: Changed, Key: "a", Value: thing{N: 1}}, {Kind: Synced}} {
		if got := <-changes; got.Kind != want.Kind || got.Key != want.Key || got.Value != want.Value {
			t.Fatalf("%+v, want %+v", got, want)
		}
	}
	put("b", 2)
	if got := <-changes; got.Key != "b" || got.Value.N != 2 {
		t.Errorf("%+v", got)
	}
	if err := things.Delete(ctx, "a", 0); err != nil {
		t.Fatal(err)
	}
	if got := <-changes; got.Kind != Deleted || got.Key != "a" {
		t.Errorf("%+v", got)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, open := <-changes; open {
		t.Error("a watch outlives its store")
	}
}
