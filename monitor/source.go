package monitor

import (
	"context"
	"log/slog"
	"time"
)

// SourceConfig of a Source.
type SourceConfig struct {
	Uplink      Uplink
	Incarnation string
	Now         func() time.Time
	Log         *slog.Logger
}

// Source is a data source: it owns probes, runs them, and reports what they measure.
type Source struct {
	cfg SourceConfig
}

// NewSource without probes.
func NewSource(cfg SourceConfig) *Source { return &Source{cfg: cfg} }

// Add loads a probe, also while the source runs; one of the same Ref is replaced. Collect
// may be nil for a probe that lives on events alone. It is called by one goroutine at a
// time, with a context that ends when it takes too long.
func (s *Source) Add(p Probe, collect Collect) {}

// Remove unloads a probe.
func (s *Source) Remove(r Ref) {}

// Event hands a probe values that were measured elsewhere, such as by a guest. They are
// passed over while the probe is off or not there.
func (s *Source) Event(r Ref, at time.Time, values ...Value) {}

// Probes that there are, by Ref.
func (s *Source) Probes() []Status { return nil }

// Run collects and reports until ctx ends.
func (s *Source) Run(ctx context.Context) error { <-ctx.Done(); return nil }
