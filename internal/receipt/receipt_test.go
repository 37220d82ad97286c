package receipt_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/receipt"
)

// memory is a sink.
type memory struct {
	mu   sync.Mutex
	rows map[string]receipt.Receipt
	full bool
}

func (m *memory) Get(_ context.Context, key string) (receipt.Receipt, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, there := m.rows[key]
	if !there {
		return r, 0, fault.New(fault.NotFound, "receipt %q", key)
	}
	return r, 1, nil
}

func (m *memory) Put(_ context.Context, key string, r receipt.Receipt) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full {
		return 0, fault.New(fault.StoreFull, "full")
	}
	m.rows[key] = r
	return 1, nil
}

func (m *memory) Values(context.Context, string) ([]receipt.Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.rows)), nil
}

func (m *memory) Delete(_ context.Context, key string, _ uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.rows, key)
	return nil
}

// inBook runs f beside a book that runs, in virtual time.
func inBook(t *testing.T, f func(t *testing.T, b *receipt.Book, m *memory)) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{rows: map[string]receipt.Receipt{}}
		b := receipt.NewBook(m, time.Now, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { b.Run(ctx); close(done) }()
		f(t, b, m)
		cancel()
		<-done
	})
}

// counter is a call that counts how often it is done.
type counter struct{ n int }

func (c *counter) do(context.Context) (json.RawMessage, error) {
	c.n++
	return json.RawMessage(strconv.Itoa(c.n)), nil
}

func TestDoneOnce(t *testing.T) {
	inBook(t, func(t *testing.T, b *receipt.Book, m *memory) {
		c, ctx := &counter{}, t.Context()
		for range 3 {
			if got, err := b.Once(ctx, "k", "same", c.do); err != nil || string(got) != "1" {
				t.Errorf("%s, %v; want the first answer", got, err)
			}
		}
		if _, err := b.Once(ctx, "k", "other", c.do); !fault.Has(err, fault.Conflict) {
			t.Errorf("another request under the key: %v", err)
		}
		if got, err := b.Once(ctx, "l", "same", c.do); err != nil || string(got) != "2" {
			t.Errorf("another key: %s, %v", got, err)
		}
		time.Sleep(receipt.Life + 2*time.Hour)
		synctest.Wait()
		if all, _ := m.Values(ctx, ""); len(all) != 0 {
			t.Errorf("%d receipts after their life", len(all))
		}
		if got, err := b.Once(ctx, "k", "other", c.do); err != nil || string(got) != "3" {
			t.Errorf("the key after its receipt's life: %s, %v", got, err)
		}
	})
}

func TestFailuresLeaveNoReceipt(t *testing.T) {
	inBook(t, func(t *testing.T, b *receipt.Book, m *memory) {
		failing := func(context.Context) (json.RawMessage, error) { return nil, errors.New("no") }
		if _, err := b.Once(t.Context(), "k", "same", failing); err == nil {
			t.Error("the failure is lost")
		}
		c := &counter{}
		if got, err := b.Once(t.Context(), "k", "same", c.do); err != nil || string(got) != "1" {
			t.Errorf("repeated: %s, %v", got, err)
		}
		m.full = true
		if got, err := b.Once(t.Context(), "l", "same", c.do); err != nil || string(got) != "2" {
			t.Errorf("done, though it cannot be remembered: %s, %v", got, err)
		}
	})
}

// The caller hangs up and asks again while the first call is under way: it is done once, and
// both hear the same.
func TestACallerThatHangsUp(t *testing.T) {
	inBook(t, func(t *testing.T, b *receipt.Book, _ *memory) {
		c := &counter{}
		slow := func(ctx context.Context) (json.RawMessage, error) {
			select {
			case <-time.After(time.Minute):
				return c.do(ctx)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		first, hangUp := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = b.Once(first, "k", "same", slow) })
		synctest.Wait()
		hangUp()
		wg.Go(func() {
			if got, err := b.Once(t.Context(), "k", "same", slow); err != nil || string(got) != "1" {
				t.Errorf("asked again: %s, %v", got, err)
			}
		})
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Once(impatient, "k", "same", slow); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one who does not wait: %v", err)
		}
		wg.Wait()
		if c.n != 1 {
			t.Errorf("done %d times", c.n)
		}
	})
}

// A site that stops does not wait for what takes for ever.
func TestStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := receipt.NewBook(&memory{rows: map[string]receipt.Receipt{}}, time.Now, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { b.Run(ctx); close(done) }()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := b.Once(context.Background(), "k", "same", func(ctx context.Context) (json.RawMessage, error) { <-ctx.Done(); return nil, ctx.Err() })
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the call under way: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		<-done
		wg.Wait()
		if _, err := b.Once(context.Background(), "l", "same", (&counter{}).do); !fault.Has(err, fault.Unavailable) {
			t.Errorf("afterwards: %v", err)
		}
	})
}
