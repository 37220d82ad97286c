// Package receipt remembers what calls under an Idempotency-Key have answered, so that a call
// that is repeated because its answer was lost is not done twice. What a key is and whose it
// is, is the caller's to say.
//
// The receipt is written when the call has been done. A process that dies between the two
// forgets the call, and a repetition does it again: where that would do harm, the operation
// keeps a receipt of its own in the same write as its effect.
package receipt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Life of a receipt.
const Life = 24 * time.Hour

// sweepEvery so often receipts that have outlived it are dropped.
const sweepEvery = time.Hour

// Receipt of one call.
type Receipt struct {
	Key     string          `json:"key"`
	At      time.Time       `json:"at"`
	Request []byte          `json:"request"` // SHA-256 of what was asked
	Answer  json.RawMessage `json:"answer,omitempty"`
}

// Sink keeps receipts by key; a store.Collection[Receipt] is one.
type Sink interface {
	Get(ctx context.Context, key string) (Receipt, uint64, error) // fault.NotFound
	Put(ctx context.Context, key string, r Receipt) (uint64, error)
	Values(ctx context.Context, prefix string) ([]Receipt, error)
	Delete(ctx context.Context, key string, version uint64) error
}

// Book of receipts.
type Book struct {
	sink Sink
	now  func() time.Time
	log  *slog.Logger

	mu     sync.Mutex
	closed chan struct{}
	busy   map[string]chan struct{} // by key: closed when the call under it has ended
	calls  sync.WaitGroup
}

// NewBook makes a book over sink.
func NewBook(sink Sink, now func() time.Time, log *slog.Logger) *Book {
	return &Book{sink: sink, now: now, log: log, closed: make(chan struct{}), busy: map[string]chan struct{}{}}
}

// Once does a call unless one was done under the same key: then it returns that one's answer,
// after waiting for it if it is under way. A call that has begun is finished even if its
// caller goes away. One that fails leaves no receipt, and may be repeated under its key.
// Errors: those of do; fault.Conflict where the key was used for another request.
func (b *Book) Once(ctx context.Context, key string, request any, do func(context.Context) (json.RawMessage, error)) (json.RawMessage, error) {
	text, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("encode a request to tell it from others: %w", err)
	}
	sum := sha256.Sum256(text)
	leave, err := b.enter(ctx, key)
	if err != nil {
		return nil, err
	}
	defer leave()
	old, _, err := b.sink.Get(ctx, key)
	switch {
	case err != nil && !fault.Has(err, fault.NotFound):
		return nil, fmt.Errorf("look whether the call was made before: %w", err)
	case err != nil || b.now().Sub(old.At) > Life:
	case !bytes.Equal(old.Request, sum[:]):
		return nil, fault.New(fault.Conflict, "this Idempotency-Key was used for another call").Try("use a key of its own for each call")
	default:
		return old.Answer, nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	go func() {
		select {
		case <-b.closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	answer, err := do(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := b.sink.Put(ctx, key, Receipt{Key: key, At: b.now(), Request: sum[:], Answer: answer}); err != nil {
		b.log.Warn("a call was done and cannot be remembered: repeated, it will be done again", "err", err)
	}
	return answer, nil
}

// enter waits until no other call is under way with key.
func (b *Book) enter(ctx context.Context, key string) (leave func(), err error) {
	for {
		b.mu.Lock()
		select {
		case <-b.closed:
			b.mu.Unlock()
			return nil, fault.New(fault.Unavailable, "the site is stopping")
		default:
		}
		other, busy := b.busy[key]
		if !busy {
			done := make(chan struct{})
			b.busy[key] = done
			b.calls.Add(1)
			b.mu.Unlock()
			return func() {
				b.mu.Lock()
				defer b.mu.Unlock()
				delete(b.busy, key)
				close(done)
				b.calls.Done()
			}, nil
		}
		b.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the same call, which is under way: %w", ctx.Err())
		}
	}
}

// Run drops old receipts until ctx is done; then it cancels the calls under way and waits for
// them.
func (b *Book) Run(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			if err := b.sweep(ctx); err != nil && ctx.Err() == nil {
				b.log.Warn("drop old receipts", "err", err)
			}
		}
	}
	b.mu.Lock()
	close(b.closed)
	b.mu.Unlock()
	b.calls.Wait()
}

func (b *Book) sweep(ctx context.Context) error {
	all, err := b.sink.Values(ctx, "")
	if err != nil {
		return err
	}
	for _, r := range all {
		if b.now().Sub(r.At) <= Life {
			continue
		}
		if err := b.sink.Delete(ctx, r.Key, 0); err != nil && !fault.Has(err, fault.NotFound) {
			return err
		}
	}
	return nil
}
