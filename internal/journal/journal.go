// Package journal is a log of entries of one type, in order: the newest are in memory and, a
// moment behind, in a Sink. Recording never waits. Events for people (internal/event) and
// the audit of calls (internal/audit) are kept so; nothing is decided upon entries.
package journal

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Sink keeps entries, by keys whose order is theirs.
type Sink[T any] interface {
	// Values returns the entries with this prefix in the order of their keys.
	Values(ctx context.Context, prefix string) ([]T, error)
	// PutAll keeps the entries in the order of their keys: after an error a first part.
	PutAll(ctx context.Context, entries map[string]T) error
	// DeleteRange forgets those from a key to before another.
	DeleteRange(ctx context.Context, from, to string) error
}

// Config of a Log.
type Config[T any] struct {
	Sink Sink[T]
	// Name of the log, for messages: "event log".
	Name string
	// Header is where an entry has its sequence number and its hour; the log sets the first,
	// and the second where it is zero.
	Header func(*T) (seq *uint64, at *time.Time)
	// Delayed makes the entry that tells that the Sink has refused for a while, and how many
	// were lost since Open; nil: it is only logged.
	Delayed func(dropped uint64) T
	// Keep so many of the newest entries; 0: 10,000. It is also how many may wait to be
	// written while the Sink refuses them.
	Keep   int
	Now    func() time.Time
	Logger *slog.Logger
}

// How a log writes.
const (
	// Batch of entries in one write: as many as one transaction of the store takes.
	Batch = 128
	// Retry a failed write after so long.
	Retry = 2 * time.Second
	// Patience of Close with a sink that does not answer.
	Patience = 3 * time.Second
)

// Log of entries. All methods may be called concurrently.
type Log[T any] struct {
	cfg  Config[T]
	sink Sink[T]
	keep int
	log  *slog.Logger

	mu      sync.Mutex
	entries []T           // the newest, in order of their numbers
	seq     uint64        // of the last entry
	written uint64        // entries up to this number are in the sink
	dropped uint64        // entries that never reached the sink
	news    chan struct{} // closed and replaced at each entry

	pruned uint64 // entries before this one are gone from the sink; the writer's own

	quit    chan struct{} // closed by Close
	writing context.Context
	cut     context.CancelFunc // of writing: the sink has been waited for long enough
	writer  sync.WaitGroup
	watches sync.WaitGroup
}

// Open reads what the sink has and starts to write. Numbers go on above all that was ever given
// out, also to entries that a crash kept from the sink: they grow, but not by one.
func Open[T any](ctx context.Context, cfg Config[T]) (*Log[T], error) {
	if cfg.Keep == 0 {
		cfg.Keep = 10_000
	}
	entries, err := cfg.Sink.Values(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("read the %s: %w", cfg.Name, err)
	}
	l := &Log[T]{
		cfg: cfg, sink: cfg.Sink, keep: cfg.Keep, log: cfg.Logger,
		entries: entries,
		news:    make(chan struct{}),
		quit:    make(chan struct{}),
	}
	l.writing, l.cut = context.WithCancel(context.WithoutCancel(ctx))
	if n := len(entries); n > 0 {
		l.written = l.number(&entries[n-1])
		l.seq = l.written + uint64(cfg.Keep)
		l.entries = slices.Clone(entries[max(0, n-cfg.Keep):])
		l.pruned = l.number(&entries[0])
	}
	l.writer.Go(l.write)
	return l, nil
}

// Close writes what is not written yet, once and for at most Patience, and ends watches.
// Nothing may be recorded any more.
func (l *Log[T]) Close() {
	close(l.quit)
	defer l.cut()
	defer time.AfterFunc(Patience, l.cut).Stop()
	l.writer.Wait()
	l.watches.Wait()
}

func (l *Log[T]) number(e *T) uint64 {
	seq, _ := l.cfg.Header(e)
	return *seq
}

// Record appends e and returns at once. It sets its number, and its hour where it is zero.
func (l *Log[T]) Record(e T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.append(e)
}

func (l *Log[T]) append(e T) {
	l.seq++
	seq, at := l.cfg.Header(&e)
	*seq = l.seq
	if at.IsZero() {
		*at = l.cfg.Now()
	}
	l.entries = append(l.entries, e)
	if extra := len(l.entries) - l.keep; extra > 0 {
		for i := range l.entries[:extra] {
			if l.number(&l.entries[i]) > l.written {
				l.dropped++
			}
		}
		l.entries = slices.Delete(l.entries, 0, extra)
	}
	close(l.news)
	l.news = make(chan struct{})
}

// Dropped counts entries since Open that nothing has kept: the sink refused them for so
// long that newer ones took their place in memory.
func (l *Log[T]) Dropped() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// List returns the newest entries after number since that keep wants, at most limit (0: all
// that there are), oldest first.
func (l *Log[T]) List(since uint64, limit int, keep func(*T) bool) []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	list, _ := l.selected(since, limit, keep)
	return list
}

// selected also returns what is closed when there may be more.
func (l *Log[T]) selected(since uint64, limit int, keep func(*T) bool) ([]T, <-chan struct{}) {
	var list []T
	for i := len(l.entries) - 1; i >= 0; i-- {
		e := &l.entries[i]
		if l.number(e) <= since || limit > 0 && len(list) == limit {
			break
		}
		if keep(e) {
			list = append(list, *e)
		}
	}
	slices.Reverse(list)
	return list, l.news
}

// Watch sends what List returns, then each further entry that keep wants. A reader that is
// so slow that the log moves past it does not get what it missed. The channel closes when
// ctx or the log ends.
func (l *Log[T]) Watch(ctx context.Context, since uint64, limit int, keep func(*T) bool) <-chan T {
	out := make(chan T)
	l.watches.Go(func() {
		defer close(out)
		for {
			l.mu.Lock()
			list, news := l.selected(since, limit, keep)
			since, limit = l.seq, 0 // the limit is for the first answer only
			l.mu.Unlock()
			for _, e := range list {
				select {
				case out <- e:
				case <-ctx.Done():
					return
				case <-l.quit:
					return
				}
			}
			select {
			case <-news:
			case <-ctx.Done():
				return
			case <-l.quit:
				return
			}
		}
	})
	return out
}

// write brings entries to the sink until Close, and then once more.
func (l *Log[T]) write() {
	failing := false
	for {
		l.mu.Lock()
		pending, news := l.pending(), l.news
		l.mu.Unlock()

		var wait <-chan time.Time
		if len(pending) > 0 {
			err := l.flush(pending)
			l.report(err, &failing)
			if err == nil {
				continue
			}
			wait, news = time.After(Retry), nil
		}
		select {
		case <-news:
		case <-wait:
		case <-l.quit:
			l.last()
			return
		}
	}
}

// last writes what is left, until the first error: whoever closes does not wait for a
// sink that is down.
func (l *Log[T]) last() {
	for {
		l.mu.Lock()
		pending := l.pending()
		l.mu.Unlock()
		if len(pending) == 0 {
			return
		}
		if err := l.flush(pending); err != nil {
			l.log.Warn("entries not written at the end", "log", l.cfg.Name, "first", l.number(&pending[0]), "error", err)
			return
		}
	}
}

// pending is the next batch to write.
func (l *Log[T]) pending() []T {
	i, _ := slices.BinarySearchFunc(l.entries, l.written+1, func(e T, seq uint64) int {
		return cmp.Compare(l.number(&e), seq)
	})
	return slices.Clone(l.entries[i:min(i+Batch, len(l.entries))])
}

func (l *Log[T]) flush(entries []T) error {
	values := make(map[string]T, len(entries))
	for i := range entries {
		values[Key(l.number(&entries[i]))] = entries[i]
	}
	// Not the caller's context: an entry that was recorded is written. The sink bounds it.
	if err := l.sink.PutAll(l.writing, values); err != nil {
		return err
	}
	l.mu.Lock()
	l.written = l.number(&entries[len(entries)-1])
	oldest := l.number(&l.entries[0])
	l.mu.Unlock()
	if oldest < l.pruned+uint64(l.keep/10) { // not at each write: it would double them
		return nil
	}
	if err := l.sink.DeleteRange(l.writing, Key(0), Key(oldest)); err != nil {
		return fmt.Errorf("prune the %s: %w", l.cfg.Name, err)
	}
	l.pruned = oldest
	return nil
}

// report tells of the begin and the end of trouble, and of what was lost in between.
func (l *Log[T]) report(err error, failing *bool) {
	switch {
	case err != nil && !*failing:
		l.log.Warn("entries cannot be written; they wait in memory", "log", l.cfg.Name, "error", err)
	case err == nil && *failing:
		l.mu.Lock()
		if l.cfg.Delayed != nil {
			l.append(l.cfg.Delayed(l.dropped))
		}
		dropped := l.dropped
		l.mu.Unlock()
		l.log.Info("entries are written again", "log", l.cfg.Name, "dropped", dropped)
	}
	*failing = err != nil
}

// Key of an entry in the sink; keys sort as their numbers do.
func Key(seq uint64) string { return fmt.Sprintf("%020d", seq) }
