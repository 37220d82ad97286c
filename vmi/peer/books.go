package peer

import (
	"context"

	"github.com/reservoir-cloud/reservoir/account/settlement"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// LinesAsked is a part of a site's book.
type LinesAsked struct {
	Agreement string
	Period    string // a month by the lender's clock: "2026-11"
	After     string // Next of the page before; "" is the beginning
}

// Page of a site's book about an agreement.
type Page struct {
	// Lines in their Order, at most MaxLines.
	Lines []settlement.Line `json:"lines"`
	// Next is what to ask for after these; "": that was all.
	Next string `json:"next,omitempty"`
	// ThroughMS is how far the book is known, by the lender's clock, ms since 1970.
	ThroughMS int64 `json:"throughMs"`
	// Statement that the site has issued for the period, as the lender.
	Statement string `json:"statement,omitempty"`
}

// MaxLines of a page.
const MaxLines = 500

// Books about VEEs that are one site's and run at the other: each keeps its own, and shows it.
type Books interface {
	// Lines of an agreement between the caller and this site. Errors: NotFound, Malformed.
	Lines(ctx context.Context, q LinesAsked) (Page, error)
}

// Gauges are the measurements of VEEs.
type Gauges interface {
	// Measurements of the caller's VEEs, as they are produced; none named: all. Times are by
	// this site's clock. When the channel closes, watch again.
	Measurements(ctx context.Context, ids []vee.ID) (<-chan vmi.MonitoringEvent, error)
}
