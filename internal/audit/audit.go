// Package audit is the record of who has changed what, and of who was refused. Entries are
// appended and never changed; how they are kept is internal/journal's. What calls are
// recorded is internal/httpapi's to say. No body of a call is ever in an entry, so that no
// secret is.
package audit

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/journal"
)

// Outcome of a call.
type Outcome string

// Outcomes.
const (
	OK     Outcome = "ok"
	Denied Outcome = "denied" // the caller may not, or nobody knows who it is
	Failed Outcome = "failed"
)

// Entry is one call.
type Entry struct {
	Seq      uint64    `json:"seq"`
	At       time.Time `json:"at"`
	By       string    `json:"by,omitempty"` // SPIFFE ID or token's name; empty: nobody knows
	Role     string    `json:"role,omitempty"`
	Customer string    `json:"customer,omitempty"` // of the caller
	From     string    `json:"from,omitempty"`     // the caller's address
	Call     string    `json:"call"`               // "POST /vmi/v1/state"
	Object   string    `json:"object"`             // what it was about
	Outcome  Outcome   `json:"outcome"`
	Status   int       `json:"status"`         // of HTTP
	Code     string    `json:"code,omitempty"` // fault.Code where it is known
	// More calls like this one came at the same time and have no entry of their own: those of
	// strangers, who could fill the log otherwise.
	More int `json:"more,omitempty"`
}

// Filter of a list; empty fields do not restrict.
type Filter struct {
	Since   time.Time `query:"since" doc:"only calls at or after this hour"`
	By      string    `query:"by" doc:"only calls of this caller"`
	Object  string    `query:"object" doc:"only calls about an object whose name has this in it"`
	Outcome Outcome   `query:"outcome" doc:"ok, denied or failed"`
	After   uint64    `query:"after" doc:"only entries with a larger seq"`
	Limit   int       `query:"limit" minimum:"0" maximum:"10000" doc:"the newest so many; 0: 1000"`
}

// Log of calls.
type Log struct{ *journal.Log[Entry] }

// keep so many entries: the oldest are forgotten.
const keep = 50_000

// Open reads what sink has and starts to write.
func Open(ctx context.Context, sink journal.Sink[Entry], now func() time.Time, log *slog.Logger) (*Log, error) {
	l, err := journal.Open(ctx, journal.Config[Entry]{
		Sink: sink, Name: "audit log", Keep: keep, Now: now, Logger: log,
		Header: func(e *Entry) (*uint64, *time.Time) { return &e.Seq, &e.At },
		Delayed: func(dropped uint64) Entry {
			return Entry{Call: "audit log", Object: "site", Outcome: Failed, More: int(dropped)}
		},
	})
	if err != nil {
		return nil, err
	}
	return &Log{l}, nil
}

// List returns the newest entries that f selects, oldest first.
func (l *Log) List(f Filter) []Entry {
	limit := f.Limit
	if limit <= 0 {
		limit = 1000
	}
	return slices.Clip(l.Log.List(f.After, limit, func(e *Entry) bool {
		return !e.At.Before(f.Since) && (f.By == "" || f.By == e.By) && (f.Outcome == "" || f.Outcome == e.Outcome) &&
			(f.Object == "" || strings.Contains(e.Object, f.Object))
	}))
}
