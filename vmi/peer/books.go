package peer

import (
	"context"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Page of the caller's VEEs' usage at this site: everything after a position.
type Page struct {
	Messages []vmi.AccountingMessage `json:"messages"`
	// Next is the position after the last one.
	Next string `json:"next"`
}

// Books about the caller's VEEs at this site.
type Books interface {
	// Usage that was written after a position; "" is the beginning. What was told once is
	// told the same again.
	Usage(ctx context.Context, after string) (Page, error)
	// Measurements of the caller's VEEs, as they are produced; none named: all. Times are by
	// this site's clock. When the channel closes, watch again.
	Measurements(ctx context.Context, ids []vee.ID) (<-chan vmi.MonitoringEvent, error)
}
