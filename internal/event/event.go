// Package event is the site's event log: what happened to which object, for people. It
// keeps the newest events in memory and, a moment behind, in a Sink. Nothing is decided
// upon events; the store holds what is decided upon.
package event

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
)

// Sink keeps events, by keys whose order is theirs.
type Sink interface {
	// Values returns the events with this prefix in the order of their keys.
	Values(ctx context.Context, prefix string) ([]smi.Event, error)
	// PutAll keeps the events in the order of their keys: after an error a first part.
	PutAll(ctx context.Context, events map[string]smi.Event) error
	// DeleteRange forgets those from a key to before another.
	DeleteRange(ctx context.Context, from, to string) error
}

// Config of a Log.
type Config struct {
	Sink Sink
	// Keep so many of the newest events; 0: 10,000. It is also how many may wait to be
	// written while the Sink refuses them.
	Keep   int
	Now    func() time.Time
	Logger *slog.Logger
}

const (
	// batch of events in one write: as many as one transaction of the store takes.
	batch = 128
	// retry a failed write after so long.
	retry = 2 * time.Second
	// defaultLimit of List: smi.EventFilter.
	defaultLimit = 1000
)

// Log of events. All methods may be called concurrently.
type Log struct {
	sink Sink
	keep int
	now  func() time.Time
	log  *slog.Logger

	mu      sync.Mutex
	events  []smi.Event   // the newest, in order of Seq
	seq     uint64        // of the last event
	written uint64        // events up to this Seq are in the sink
	dropped uint64        // events that never reached the sink
	news    chan struct{} // closed and replaced at each event

	pruned uint64 // events before this Seq are gone from the sink; the writer's own

	quit    chan struct{} // closed by Close
	writer  sync.WaitGroup
	watches sync.WaitGroup
}

// Open reads what sink has and starts to write. Seq goes on above all that was ever given
// out, also to events that a crash kept from the sink: it grows, but not by one.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if cfg.Keep == 0 {
		cfg.Keep = 10_000
	}
	events, err := cfg.Sink.Values(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("read the event log: %w", err)
	}
	l := &Log{
		sink: cfg.Sink, keep: cfg.Keep, now: cfg.Now, log: cfg.Logger,
		events: events,
		news:   make(chan struct{}),
		quit:   make(chan struct{}),
	}
	if n := len(events); n > 0 {
		l.written = events[n-1].Seq
		l.seq = l.written + uint64(cfg.Keep)
		l.events = slices.Clone(events[max(0, n-cfg.Keep):])
		l.pruned = events[0].Seq
	}
	l.writer.Go(l.write)
	return l, nil
}

// Close writes what is not written yet, once, and ends watches. Nothing may be recorded
// any more.
func (l *Log) Close() {
	close(l.quit)
	l.writer.Wait()
	l.watches.Wait()
}

// Record appends e and returns at once. It sets Seq, and At where it is zero.
func (l *Log) Record(e smi.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.append(e)
}

func (l *Log) append(e smi.Event) {
	l.seq++
	e.Seq = l.seq
	if e.At.IsZero() {
		e.At = l.now()
	}
	l.events = append(l.events, e)
	if extra := len(l.events) - l.keep; extra > 0 {
		for _, lost := range l.events[:extra] {
			if lost.Seq > l.written {
				l.dropped++
			}
		}
		l.events = slices.Delete(l.events, 0, extra)
	}
	close(l.news)
	l.news = make(chan struct{})
}

// Dropped counts events since Open that nothing has kept: the sink refused them for so
// long that newer ones took their place in memory.
func (l *Log) Dropped() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// List returns the newest events that f selects, oldest first.
func (l *Log) List(f smi.EventFilter) []smi.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	list, _ := l.selected(f)
	return list
}

// selected also returns what is closed when there may be more.
func (l *Log) selected(f smi.EventFilter) ([]smi.Event, <-chan struct{}) {
	limit := f.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	var list []smi.Event
	for _, e := range slices.Backward(l.events) {
		if e.Seq <= f.Since || len(list) == limit {
			break
		}
		if Matches(f, e) {
			list = append(list, e)
		}
	}
	slices.Reverse(list)
	return list, l.news
}

// Matches reports whether f, its Since and Limit aside, selects e.
func Matches(f smi.EventFilter, e smi.Event) bool {
	kind, _, _ := strings.Cut(e.Object, "/")
	return (f.Customer == "" || f.Customer == e.Customer) &&
		(f.Service == "" || f.Service == e.Service) &&
		(f.Object == "" || f.Object == e.Object || f.Object == kind)
}

// Watch sends what List returns, then each further event that f selects. A reader that is
// so slow that the log moves past it does not get what it missed. The channel closes when
// ctx or the log ends.
func (l *Log) Watch(ctx context.Context, f smi.EventFilter) <-chan smi.Event {
	out := make(chan smi.Event)
	l.watches.Go(func() {
		defer close(out)
		for {
			l.mu.Lock()
			list, news := l.selected(f)
			f.Since, f.Limit = l.seq, l.keep // the limit is for the first answer only
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

// write brings events to the sink until Close, and then once more.
func (l *Log) write() {
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
			wait, news = time.After(retry), nil
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
func (l *Log) last() {
	for {
		l.mu.Lock()
		pending := l.pending()
		l.mu.Unlock()
		if len(pending) == 0 {
			return
		}
		if err := l.flush(pending); err != nil {
			l.log.Warn("events not written at the end", "first", pending[0].Seq, "error", err)
			return
		}
	}
}

// pending is the next batch to write.
func (l *Log) pending() []smi.Event {
	i, _ := slices.BinarySearchFunc(l.events, l.written+1, func(e smi.Event, seq uint64) int {
		return int(min(max(int64(e.Seq-seq), -1), 1))
	})
	return slices.Clone(l.events[i:min(i+batch, len(l.events))])
}

func (l *Log) flush(events []smi.Event) error {
	values := make(map[string]smi.Event, len(events))
	for _, e := range events {
		values[key(e.Seq)] = e
	}
	// Not the caller's context: an event that was recorded is written. The sink bounds it.
	if err := l.sink.PutAll(context.Background(), values); err != nil {
		return err
	}
	l.mu.Lock()
	l.written = events[len(events)-1].Seq
	oldest := l.events[0].Seq
	l.mu.Unlock()
	if oldest < l.pruned+uint64(l.keep/10) { // not at each write: it would double them
		return nil
	}
	if err := l.sink.DeleteRange(context.Background(), key(0), key(oldest)); err != nil {
		return fmt.Errorf("prune the event log: %w", err)
	}
	l.pruned = oldest
	return nil
}

// report tells of the begin and the end of trouble, and of what was lost in between.
func (l *Log) report(err error, failing *bool) {
	switch {
	case err != nil && !*failing:
		l.log.Warn("events cannot be written; they wait in memory", "error", err)
	case err == nil && *failing:
		l.mu.Lock()
		l.append(smi.Event{
			Type: "warning", Reason: "EventsDelayed", Object: "site",
			Message: fmt.Sprintf("events could not be written for a while; %d were lost since the site started", l.dropped),
		})
		dropped := l.dropped
		l.mu.Unlock()
		l.log.Info("events are written again", "dropped", dropped)
	}
	*failing = err != nil
}

// key sorts as its Seq does.
func key(seq uint64) string { return fmt.Sprintf("%020d", seq) }
