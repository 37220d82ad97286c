package monitor

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
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

// ParseRef reads what String writes.
func ParseRef(text string) Ref {
	name, id, _ := strings.Cut(text, "@")
	return Ref{Name: name, VEE: vee.ID(id)}
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
	// A probe that is pushed to takes the newest in that time; 0: each.
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

// check s, of a probe that is asked for.
func (s Settings) check() error {
	switch {
	case s.EveryMS < 0 || s.EveryMS > 0 && s.Every() < leastEvery || s.Every() > mostEvery:
		return fault.New(fault.Malformed, "a probe every %v: want %v to %v, or 0 for none by itself", s.Every(), leastEvery, mostEvery).
			Try("reservoir probe rate SOURCE/PROBE 10s")
	case !slices.Contains([]When{"", Always, Changed, Above, Below, Inside, Outside}, s.Send):
		return fault.New(fault.Malformed, "probe sends %q: want always, changed, above, below, inside or outside", s.Send)
	case math.IsNaN(s.Low) || math.IsNaN(s.High) || (s.Send == Inside || s.Send == Outside) && s.Low > s.High:
		return fault.New(fault.Malformed, "a band from %v to %v holds nothing", s.Low, s.High)
	}
	return nil
}

// Bounds of a probe's interval.
const (
	leastEvery = 100 * time.Millisecond
	mostEvery  = 24 * time.Hour
)

// ran is the state of a probe that runs: the pure core of its strategies.
type ran struct {
	settings Settings               // as ordered, or those it came with
	last     map[fieldKey]lastValue // of each that was sent
}

// fieldKey tells the values of a probe from one another.
type fieldKey struct{ field, labels string }

func (v Value) key() fieldKey { return fieldKey{v.Field, v.Labels} }

type lastValue struct {
	value float64
	at    time.Time
}

// filter returns those of the values that are to be sent, in new memory.
func (r *ran) filter(at time.Time, values []Value) (sent []Value) {
	for _, v := range values {
		if r.sends(at, v) {
			sent = append(sent, v)
		}
	}
	return sent
}

func (r *ran) sends(at time.Time, v Value) bool {
	switch s := r.settings; s.Send {
	case Above:
		return v.Value > s.High
	case Below:
		return v.Value < s.Low
	case Inside:
		return v.Value >= s.Low && v.Value <= s.High
	case Outside:
		return v.Value < s.Low || v.Value > s.High
	case Changed:
		last, known := r.last[v.key()]
		if known && last.value == v.Value && at.Sub(last.at) < Heartbeat {
			return false
		}
		if r.last == nil {
			r.last = map[fieldKey]lastValue{}
		}
		r.last[v.key()] = lastValue{v.Value, at}
	}
	return true
}

// after is when a probe that was due at due collects again, seen at now: rates do not
// drift, and what was missed is not made up for.
func after(due, now time.Time, every time.Duration) time.Time {
	if next := due.Add(every); next.After(now) {
		return next
	}
	return now.Add(every)
}

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
	Probes       []Status       `json:"probes,omitempty" maxItems:"10000" doc:"those that have changed, and each once a minute"`
	Gone         []Ref          `json:"gone,omitempty" maxItems:"10000" doc:"probes that there are no more"`
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
	Tell    bool    `json:"tell,omitempty"` // all probes, with the next reports
	// Regulation of all sources, by the site.
	Regulation Regulation `json:"regulation"`
}

// SourceProbe is a probe as its site knows it.
type SourceProbe struct {
	Source string `json:"source"`
	SeenMS int64  `json:"seenMs" doc:"when the source has last reported, ms since 1970"`
	Status
	// Ordered settings that the source may not have heeded yet; nil: none were.
	Ordered *Settings `json:"ordered,omitempty"`
}

// ID is SOURCE/NAME or SOURCE/NAME@VEE.
func (p SourceProbe) ID() string { return p.Source + "/" + p.String() }

// ProbeChange of a probe's settings; what is nil stays as it is.
type ProbeChange struct {
	On      *bool    `json:"on,omitempty"`
	EveryMS *int64   `json:"everyMs,omitempty" minimum:"0"`
	Send    *When    `json:"send,omitempty" enum:"always,changed,above,below,inside,outside"`
	Low     *float64 `json:"low,omitempty"`
	High    *float64 `json:"high,omitempty"`
}

// Apply to s. Errors: fault.Malformed.
func (c ProbeChange) Apply(s Settings) (Settings, error) {
	set(&s.On, c.On)
	set(&s.EveryMS, c.EveryMS)
	set(&s.Send, c.Send)
	set(&s.Low, c.Low)
	set(&s.High, c.High)
	return s, s.check()
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// Control is the control and the information plane as people see them. Both are about the
// probes that the caller of ctx may see: an operator all, a provider those of its VEEs.
type Control interface {
	Probes(ctx context.Context) ([]SourceProbe, error)
	// SetProbe takes effect with the source's next report, within seconds. Errors:
	// fault.NotFound, fault.Malformed.
	SetProbe(ctx context.Context, source string, r Ref, c ProbeChange) (SourceProbe, error)
}

// Uplink takes reports to the site.
type Uplink interface {
	Report(ctx context.Context, r Report) (Orders, error)
}
