// Package event is the site's event log: what happened to which object, for people. How it
// is kept is internal/journal's; nothing is decided upon events.
package event

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/journal"
	"github.com/reservoir-cloud/reservoir/smi"
)

// Sink keeps events, by keys whose order is theirs.
type Sink = journal.Sink[smi.Event]

// Config of a Log.
type Config struct {
	Sink Sink
	// Keep so many of the newest events; 0: 10,000. It is also how many may wait to be
	// written while the Sink refuses them.
	Keep   int
	Now    func() time.Time
	Logger *slog.Logger
}

// defaultLimit of List: smi.EventFilter.
const defaultLimit = 1000

// Log of events. All methods may be called concurrently.
type Log struct{ *journal.Log[smi.Event] }

// Open reads what the sink has and starts to write.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	l, err := journal.Open(ctx, journal.Config[smi.Event]{
		Sink: cfg.Sink, Name: "event log", Keep: cfg.Keep, Now: cfg.Now, Logger: cfg.Logger,
		Header: func(e *smi.Event) (*uint64, *time.Time) { return &e.Seq, &e.At },
		Delayed: func(dropped uint64) smi.Event {
			return smi.Event{
				Type: "warning", Reason: "EventsDelayed", Object: "site",
				Message: fmt.Sprintf("events could not be written for a while; %d were lost since the site started", dropped),
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return &Log{l}, nil
}

// List returns the newest events that f selects, oldest first.
func (l *Log) List(f smi.EventFilter) []smi.Event {
	return l.Log.List(f.Since, limit(f), selects(f))
}

// Watch sends what List returns, then each further event that f selects.
func (l *Log) Watch(ctx context.Context, f smi.EventFilter) <-chan smi.Event {
	return l.Log.Watch(ctx, f.Since, limit(f), selects(f))
}

func limit(f smi.EventFilter) int {
	if f.Limit <= 0 {
		return defaultLimit
	}
	return f.Limit
}

func selects(f smi.EventFilter) func(*smi.Event) bool {
	return func(e *smi.Event) bool { return (f.Before == 0 || e.Seq < f.Before) && Matches(f, *e) }
}

// Matches reports whether f, its Since, Before and Limit aside, selects e.
func Matches(f smi.EventFilter, e smi.Event) bool {
	kind, _, _ := strings.Cut(e.Object, "/")
	return (f.Customer == "" || f.Customer == e.Customer) &&
		(f.Service == "" || f.Service == e.Service) &&
		(f.Object == "" || f.Object == e.Object || f.Object == kind)
}
