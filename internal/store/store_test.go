package store

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDirEnv); dir != "" {
		writeUntilKilled(dir)
	}
	// Two goroutines that etcd leaves behind when it gives up on damaged files. The
	// process ends then.
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("go.etcd.io/etcd/server/v3/storage/backend.(*backend).run"),
		goleak.IgnoreTopFunction("go.etcd.io/etcd/server/v3/storage/wal.(*filePipeline).run"),
		// And a stream between two members of which one has gone.
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("net/http.(*conn).serve"), goleak.IgnoreAnyFunction("net/http.(*connReader).backgroundRead"))
}

// thing is what the tests keep.
type thing struct {
	N    int    `json:"n"`
	Text string `json:"text,omitempty"`
}

func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestCollection(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	things := NewCollection[thing](s, "thing")

	if _, _, err := things.Get(ctx, "a"); !fault.Has(err, fault.NotFound) {
		t.Errorf("Get of nothing: %v", err)
	}
	v1, err := things.Create(ctx, "a", thing{N: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := things.Create(ctx, "a", thing{N: 9}); !fault.Has(err, fault.Exists) {
		t.Errorf("second Create: %v", err)
	}
	v2, err := things.Update(ctx, "a", thing{N: 2}, v1)
	if err != nil || v2 <= v1 {
		t.Errorf("Update: version %d after %d, %v", v2, v1, err)
	}
	_, err = things.Update(ctx, "a", thing{N: 9}, v1)
	if !fault.Has(err, fault.Conflict) {
		t.Errorf("Update of an old version: %v", err)
	}
	if want := fmt.Sprintf(`thing "a" was changed by somebody else: it has version %d, not %d`, v2, v1); err.Error() != want {
		t.Errorf("message %q, want %q", err, want)
	}
	for _, version := range []uint64{0, v2} {
		if _, err := things.Update(ctx, "gone", thing{}, version); !fault.Has(err, fault.NotFound) {
			t.Errorf("Update of nothing, version %d: %v", version, err)
		}
	}
	if _, err := things.Update(ctx, "a", thing{}, 0); !fault.Has(err, fault.Conflict) {
		t.Errorf("Update without a version: %v", err)
	}
	if got, version, err := things.Get(ctx, "a"); got.N != 2 || version != v2 || err != nil {
		t.Errorf("Get = %v, %d, %v", got, version, err)
	}
	if _, err := things.Create(ctx, "", thing{}); !fault.Has(err, fault.Malformed) {
		t.Errorf("Create without a key: %v", err)
	}
	if err := things.Delete(ctx, "a", v1); !fault.Has(err, fault.Conflict) {
		t.Errorf("Delete of an old version: %v", err)
	}
	if err := things.Delete(ctx, "a", v2); err != nil {
		t.Error(err)
	}
	if err := things.Delete(ctx, "a", 0); !fault.Has(err, fault.NotFound) {
		t.Errorf("Delete of nothing: %v", err)
	}

	all := map[string]thing{}
	for i := range 2*page + 7 {
		all[fmt.Sprintf("many/%05d", i)] = thing{N: i}
	}
	if err := things.PutAll(ctx, all); err != nil {
		t.Fatal(err)
	}
	if _, err := NewCollection[thing](s, "thingother").Put(ctx, "many/x", thing{}); err != nil {
		t.Fatal(err)
	}
	values, err := things.Values(ctx, "many/")
	if err != nil || len(values) != len(all) {
		t.Fatalf("%d values, %v; want %d", len(values), err, len(all))
	}
	for i, v := range values {
		if v.N != i {
			t.Fatalf("value %d is %d", i, v.N)
		}
	}
	if err := things.DeleteRange(ctx, "many/00002", "many/01000"); err != nil {
		t.Fatal(err)
	}
	list, err := things.List(ctx, "many/0000")
	if err != nil || len(list) != 2 || list[1].Key != "many/00001" || list[1].Version == 0 {
		t.Errorf("List = %v, %v", list, err)
	}

	if err := s.Barrier(ctx); err != nil {
		t.Error(err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Barrier(cancelled); !fault.Has(err, fault.Unavailable) {
		t.Errorf("Barrier with a context that has ended: %v", err)
	}
}

func TestUndecodableObjectIsNamed(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	if _, err := NewCollection[string](s, "thing").Put(t.Context(), "a", "not an object"); err != nil {
		t.Fatal(err)
	}
	things := NewCollection[thing](s, "thing")
	_, _, err := things.Get(t.Context(), "a")
	if err == nil || !strings.Contains(err.Error(), `decode thing "a" as stored`) {
		t.Errorf("Get: %v", err)
	}
	if _, err := things.List(t.Context(), ""); err == nil {
		t.Error("List left it out silently")
	}
}

func TestTxnIsAllOrNothing(t *testing.T) {
	ctx := t.Context()
	s := open(t, Config{Dir: t.TempDir()})
	a, b := NewCollection[thing](s, "a"), NewCollection[thing](s, "b")
	va, err := a.Create(ctx, "k", thing{N: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		op   Op
		code fault.Code
	}{
		{"create", a.OpCreate("k", thing{}), fault.Exists},
		{"update", a.OpUpdate("k", thing{}, va+1), fault.Conflict},
		{"update none", a.OpUpdate("none", thing{}, va), fault.NotFound},
		{"delete", a.OpDelete("k", va+1), fault.Conflict},
		{"delete none", a.OpDelete("none", 0), fault.NotFound},
		{"expect", a.OpExpect("k", va+1), fault.Conflict},
		{"expect none", a.OpExpect("k", 0), fault.Exists},
		{"expect some", a.OpExpect("none", va), fault.NotFound},
		{"too large", a.OpPut("x", thing{Text: strings.Repeat("x", 9<<20)}), fault.TooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := s.Txn(ctx, b.OpPut("side", thing{}), tt.op); !fault.Has(err, tt.code) {
				t.Errorf("%v, want %s", err, tt.code)
			}
			if _, _, err := b.Get(ctx, "side"); !fault.Has(err, fault.NotFound) {
				t.Errorf("a part was done: %v", err)
			}
		})
	}
	version, err := s.Txn(ctx, a.OpExpect("none", 0), a.OpUpdate("k", thing{N: 2}, va), b.OpPut("side", thing{N: 3}))
	if err != nil {
		t.Fatal(err)
	}
	_, va, errA := a.Get(ctx, "k")
	_, vb, errB := b.Get(ctx, "side")
	if va != version || vb != version || errA != nil || errB != nil {
		t.Errorf("versions %d, %d, want %d (%v, %v)", va, vb, version, errA, errB)
	}
}

func TestNoIncrementIsLost(t *testing.T) {
	const writers, rounds = 8, 40
	ctx := t.Context()
	s := open(t, Config{Dir: t.TempDir()})
	things := NewCollection[thing](s, "thing")
	if _, err := things.Create(ctx, "counter", thing{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range rounds {
				if _, _, err := things.Modify(ctx, "counter", func(v *thing) error { v.N++; return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if v, _, err := things.Get(ctx, "counter"); v.N != writers*rounds || err != nil {
		t.Errorf("counter is %d, %v; want %d", v.N, err, writers*rounds)
	}

	_, before, _ := things.Get(ctx, "counter")
	if _, after, err := things.Modify(ctx, "counter", func(*thing) error { return nil }); after != before || err != nil {
		t.Errorf("a change of nothing was written: version %d, then %d, %v", before, after, err)
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	cfg := Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)}
	for i := range 3 {
		s, err := Open(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		things := NewCollection[thing](s, "thing")
		if values, err := things.Values(ctx, ""); len(values) != i || err != nil {
			t.Errorf("after %d restarts: %v, %v", i, values, err)
		}
		if s.Generation() != 1 {
			t.Errorf("generation %d", s.Generation())
		}
		if _, err := things.Create(ctx, fmt.Sprint(i), thing{N: i}); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := things.Create(ctx, "late", thing{}); err == nil {
			t.Error("a closed store took a write")
		}
	}
}

func TestListensOnNothing(t *testing.T) {
	open(t, Config{Dir: t.TempDir()})
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	listening := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/self/net/" + table)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(text), "\n") {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" {
				listening["socket:["+f[9]+"]"] = true
			}
		}
	}
	for _, fd := range fds {
		if link, _ := os.Readlink(fd); listening[link] {
			t.Errorf("%s is a listening TCP socket", fd)
		}
	}
}

func TestLogsStayQuiet(t *testing.T) {
	var log bytes.Buffer
	s, err := Open(t.Context(), Config{Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log.String(), "level=ERROR") || strings.Count(log.String(), "\n") > 3 {
		t.Errorf("a start and a stop logged:\n%s", log.String())
	}
}

// timeout for what happens at once when the code is right.
const timeout = 30 * time.Second
