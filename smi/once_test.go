package smi_test

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/internal/receipt"
	"github.com/reservoir-cloud/reservoir/internal/store"
	"github.com/reservoir-cloud/reservoir/smi"
)

// TestEveryChangeOnce: every call that changes something is done once under its key.
func TestEveryChangeOnce(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	book := receipt.NewBook(store.NewCollection[receipt.Receipt](st, "receipt"), time.Now, log)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { book.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	api := httpapi.NewServer("test", "1", log)
	api.Receipts(book)
	r := &recorder{}
	smi.Register(api, r)
	srv := httptest.NewServer(api.Handler(func(*http.Request) (identity.Caller, error) {
		return identity.Caller{ID: "ann", Role: identity.Provider, Customer: "acme"}, nil
	}))
	defer srv.Close()
	m := smi.NewClient(&httpapi.Client{Base: srv.URL, HTTP: srv.Client()})

	calls := map[string]func(ctx context.Context, v string) (any, error){
		"POST /smi/v1/services": func(ctx context.Context, v string) (any, error) {
			return m.Deploy(ctx, smi.Deploy{Manifest: "service: " + v})
		},
		"POST /smi/v1/plan": func(ctx context.Context, v string) (any, error) {
			return m.Plan(ctx, smi.Deploy{Manifest: "service: " + v})
		},
		"PUT /smi/v1/services/{name}/components/{component}/replicas": func(ctx context.Context, v string) (any, error) {
			return m.Scale(ctx, "acme", "shop", v, 2)
		},
		"POST /smi/v1/services/{name}/sleep": func(ctx context.Context, v string) (any, error) { return m.Sleep(ctx, "acme", v) },
		"POST /smi/v1/services/{name}/wake":  func(ctx context.Context, v string) (any, error) { return m.Wake(ctx, "acme", v) },
		"DELETE /smi/v1/services/{name}":     func(ctx context.Context, v string) (any, error) { return nil, m.Delete(ctx, "acme", v) },
	}
	var changes []string
	for _, op := range api.Operations() {
		if op.Changes() {
			changes = append(changes, op.Method+" "+op.Path)
		}
	}
	slices.Sort(changes)
	if want := slices.Sorted(maps.Keys(calls)); !slices.Equal(changes, want) {
		t.Errorf("operations that change something\n%q\nand those of the table\n%q", changes, want)
	}
	for op, call := range calls {
		ctx := httpapi.WithKey(t.Context(), "key of "+op)
		r.calls = nil
		first, err := call(ctx, "a")
		if err != nil {
			t.Errorf("%s: %v", op, err)
		}
		once := slices.Clone(r.calls)
		if again, err := call(ctx, "a"); err != nil || !reflect.DeepEqual(again, first) || !reflect.DeepEqual(r.calls, once) {
			t.Errorf("%s again: %+v, %v, done %v", op, again, err, r.calls)
		}
		if _, err := call(ctx, "b"); !fault.Has(err, fault.Conflict) {
			t.Errorf("%s, another call under the key: %v", op, err)
		}
	}
}
