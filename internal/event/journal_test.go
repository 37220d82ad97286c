package event

import "github.com/reservoir-cloud/reservoir/internal/journal"

// The tests of the log are those of its journal too.
const (
	batch = journal.Batch
	retry = journal.Retry
)

func key(seq uint64) string { return journal.Key(seq) }
