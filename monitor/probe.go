package monitor

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Type of a field.
type Type string

// Types.
const (
	Gauge   Type = "gauge"
	Counter Type = "counter" // only grows, and starts again at 0
)

// Field of a probe's dictionary: what a value means.
type Field struct {
	Name string `json:"name"`
	Type Type   `json:"type" enum:"gauge,counter"`
	Unit string `json:"unit,omitempty" doc:"\"bytes\", \"seconds\", \"ratio\"; empty: a count"`
	Help string `json:"help,omitempty"`
}

// Dictionary of a probe: the fields that it may send.
type Dictionary []Field

// Ref names a probe of a source: one of the host, or of one VEE on it.
type Ref struct {
	Name string `json:"name"` // "cpu", "memory", "kpi"
	VEE  vee.ID `json:"vee,omitempty"`
}

// String is NAME or NAME@VEE, as people write it after "SOURCE/".
func (r Ref) String() string {
	if r.VEE == "" {
		return r.Name
	}
	return r.Name + "@" + string(r.VEE)
}

// When a value that was collected is sent.
type When string

// Transmission strategies.
const (
	Always  When = "always"  // at the probe's rate
	Changed When = "changed" // when it differs from the last one that was sent, and once in a Heartbeat
	Above   When = "above"   // High
	Below   When = "below"   // Low
	Inside  When = "inside"  // from Low to High, both included
	Outside When = "outside" // of Low to High
)

// Settings of a probe, which may be changed while it runs.
type Settings struct {
	On bool `json:"on"`
	// EveryMS it collects, ms; 0: never by itself, only on an event.
	EveryMS int64   `json:"everyMs" minimum:"0"`
	Send    When    `json:"send,omitempty" enum:"always,changed,above,below,inside,outside" doc:"default always"`
	Low     float64 `json:"low,omitempty"`
	High    float64 `json:"high,omitempty"`
}

// Every as a duration.
func (s Settings) Every() time.Duration { return time.Duration(s.EveryMS) * time.Millisecond }

// Heartbeat of values that are sent on change: so often they are sent though they are the
// same, because a query sees samples of the last five minutes only.
const Heartbeat = 2 * time.Minute

// Probe is what one is, for the information plane.
type Probe struct {
	Ref
	Kind     Kind       `json:"kind"`
	Fields   Dictionary `json:"fields"`
	Settings Settings   `json:"settings"` // those it came with
}

// Status of a probe.
type Status struct {
	Probe
	Now       Settings `json:"now"`                 // in effect, the regulator's slowing included
	Slowed    string   `json:"slowed,omitempty"`    // by the regulator, and why
	Collected uint64   `json:"collected"`           // values
	Sent      uint64   `json:"sent"`                // of these
	LastMS    int64    `json:"lastMs,omitempty"`    // when it last collected, ms since 1970
	LastError string   `json:"lastError,omitempty"` // of the last collection, while it stands
}

// Collect the values of a probe. None is nothing to send; an error is shown in the probe's
// status and sends nothing.
type Collect func(ctx context.Context) ([]Value, error)

// Reported is a measurement as a source sends it: the site knows whose it is.
type Reported struct {
	VEE    vee.ID  `json:"vee,omitempty"` // none: the host itself
	Kind   Kind    `json:"kind" enum:"host,vee,kpi"`
	AtMS   int64   `json:"atMs"`
	Values []Value `json:"values" minItems:"1" maxItems:"1000"`
}

// Report of a source.
type Report struct {
	Incarnation  string         `json:"incarnation"` // drawn at each start
	Orders       string         `json:"orders"`      // Version of those in effect
	Probes       []Status       `json:"probes,omitempty" maxItems:"10000" doc:"all of them, when one has changed and once a minute"`
	Measurements []Reported     `json:"measurements,omitempty" maxItems:"10000"`
	Lost         map[Reason]int `json:"lost,omitempty" doc:"values that were not sent, since the last report that arrived"`
}

// Order is what a probe shall be set to.
type Order struct {
	Ref
	Settings Settings `json:"settings"`
}

// Orders of a source, all of them each time they are not the ones it has: a probe without
// one goes back to the settings it came with.
type Orders struct {
	Version string  `json:"version"`
	Orders  []Order `json:"orders,omitempty"`
	Same    bool    `json:"same,omitempty"` // as the source has already; Orders is empty
}

// Uplink takes reports to the site.
type Uplink interface {
	Report(ctx context.Context, r Report) (Orders, error)
}
