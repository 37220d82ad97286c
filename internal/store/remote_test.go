package store

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// startCluster is an etcd of its own, as --etcd-endpoints would name it.
func startCluster(t *testing.T) (endpoint string) {
	t.Helper()
	endpoint, _ = restartableCluster(t)
	return endpoint
}

// restartableCluster is startCluster that can be ended and started again on its files.
func restartableCluster(t *testing.T) (endpoint string, restart func(down time.Duration)) {
	t.Helper()
	dir, err := os.MkdirTemp("", "etcd") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ec := etcdConfig(Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	socket := url.URL{Scheme: "unix", Path: filepath.Join(dir, "socket")}
	ec.ListenClientUrls, ec.AdvertiseClientUrls = []url.URL{socket}, []url.URL{socket}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return socket.String(), func(down time.Duration) {
		e.Close()
		time.Sleep(down)
		if e, err = embed.StartEtcd(ec); err != nil {
			t.Fatal(err)
		}
	}
}

// A cluster that goes away for a moment loses nothing, and whoever watched goes on.
func TestEndpointsRestart(t *testing.T) {
	ctx := t.Context()
	endpoint, restart := restartableCluster(t)
	s := open(t, Config{Endpoints: []string{endpoint}})
	things := NewCollection[thing](s, "thing")
	changes := things.Watch(ctx, "")
	if c := next(t, changes); c.Kind != Synced {
		t.Fatalf("%+v first", c)
	}
	for n := 1; n <= 3; n++ {
		if _, err := things.Put(ctx, "a", thing{N: n}); err != nil {
			t.Fatalf("write %d: %v", n, err)
		}
		if c := next(t, changes); c.Value.N != n {
			t.Fatalf("watched %+v, want %d", c, n)
		}
		restart(300 * time.Millisecond)
		if v, _, err := things.Get(ctx, "a"); err != nil || v.N != n {
			t.Fatalf("after the restart: %+v, %v; want %d", v, err, n)
		}
	}
}

func TestEndpoints(t *testing.T) {
	ctx := t.Context()
	endpoint := startCluster(t)
	one := open(t, Config{Endpoints: []string{endpoint}})
	two := open(t, Config{Endpoints: []string{endpoint}})
	other := open(t, Config{Endpoints: []string{endpoint}, Prefix: "/another-site/"})

	changes := NewCollection[thing](two, "thing").Watch(ctx, "")
	if c := next(t, changes); c.Kind != Synced {
		t.Errorf("%+v first", c)
	}
	if _, err := NewCollection[thing](other, "thing").Create(ctx, "a", thing{N: 9}); err != nil {
		t.Error(err)
	}
	if _, err := NewCollection[thing](one, "thing").Create(ctx, "a", thing{N: 1}); err != nil {
		t.Error(err)
	}
	if c := next(t, changes); c.Value.N != 1 {
		t.Errorf("%+v came", c)
	}
	if _, err := one.Compact(ctx); err != nil {
		t.Error(err)
	}
}

func TestEndpointThatDoesNotAnswer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	endpoint := "unix://" + filepath.Join(t.TempDir(), "none")
	_, err := Open(ctx, Config{Endpoints: []string{endpoint}, Logger: slog.New(slog.DiscardHandler)})
	if !fault.Has(err, fault.Unavailable) || !strings.HasPrefix(err.Error(), "connect to etcd at "+endpoint) {
		t.Errorf("error %v", err)
	}
}
