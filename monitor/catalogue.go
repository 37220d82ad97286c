package monitor

import (
	"context"
	"time"
)

// MaxListed bounds the names, values or series of one answer of a Catalogue.
const MaxListed = 10_000

// Selection of series.
type Selection struct {
	Scope    Scope
	Match    []string  // selectors such as `load{component="web"}`; a series matches at least one. None: all
	From, To time.Time // that the series had samples in, to some hours; zero From: as far back as is kept
	Limit    int       // of the answer; 0, and what is more than MaxListed: MaxListed
}

// Catalogue says what there is to be queried. Like a Repository's, its answers are of the
// scope, whatever the selectors say. They are in order; more says that they are cut off at the
// limit. Errors are those of a Querier.
type Catalogue interface {
	LabelNames(ctx context.Context, s Selection) (names []string, more bool, err error)
	LabelValues(ctx context.Context, label string, s Selection) (values []string, more bool, err error)
	Series(ctx context.Context, s Selection) (labels []map[string]string, more bool, err error)
}

// Library is what is measured and what there is of it.
type Library interface {
	Repository
	Catalogue
}
