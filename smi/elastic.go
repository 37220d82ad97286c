package smi

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Elasticity is the part of the SMI about services that change their own size. Errors are
// *fault.Error.
type Elasticity interface {
	// Rules of a service, what they go by, and what they have decided.
	Rules(ctx context.Context, customer, name string) (Rules, error)
	// SetRules lets the rules of a component decide, or pauses them: then its size stays as
	// it is, and is changed by Scale alone. Errors: NotFound, WrongState.
	SetRules(ctx context.Context, customer, name, component string, on bool) (Rules, error)
	// Replay says what the rules would have decided on measurements, and why. It changes
	// nothing. Errors: Malformed, NotFound, WrongState (no rules, no measurements).
	Replay(ctx context.Context, customer, name string, r Replay) (Replayed, error)
}

// Rules of a service.
type Rules struct {
	Service    string             `json:"service"`
	Customer   string             `json:"customer"`
	KPIs       []KPI              `json:"kpis"`
	Components []ElasticComponent `json:"components"` // those that have rules
}

// KPI that rules read.
type KPI struct {
	Name    string    `json:"name"`
	Query   string    `json:"query"`
	Value   *float64  `json:"value,omitempty"` // at At; absent: nothing was measured
	At      time.Time `json:"at,omitzero"`     // when it was asked for last
	Problem string    `json:"problem,omitempty"`
}

// ElasticComponent is a component whose rules change its size.
type ElasticComponent struct {
	Name    string        `json:"name"`
	Desired int           `json:"desired"` // replicas
	Ready   int           `json:"ready"`
	Min     int           `json:"min"` // that hold now
	Max     int           `json:"max"`
	By      string        `json:"boundsBy"` // "the manifest", "schedule office"
	Paused  bool          `json:"paused,omitempty"`
	Rules   []ElasticRule `json:"rules"`
	// Last change of its size, by a rule or a person.
	Last *ElasticDecision `json:"last,omitempty"`
	// Now is why it stays as it is, or has changed, as of the last look at Looked.
	Now    string    `json:"now"`
	Looked time.Time `json:"looked,omitzero"`
}

// ElasticRule in words.
type ElasticRule struct {
	Name    string `json:"name"`
	Kind    string `json:"kind" enum:"array,rule,schedule"`
	Text    string `json:"text"`
	EveryMS int64  `json:"everyMs,omitempty"`
}

// ElasticDecision to change a size, or, in a replay, not to.
type ElasticDecision struct {
	At        time.Time `json:"at"`
	Component string    `json:"component"`
	Kind      string    `json:"kind" enum:"hold,scaleUp,scaleDown,resize"`
	Rule      string    `json:"rule,omitempty"` // empty: a person
	Replicas  int       `json:"replicas"`
	VCPUs     int       `json:"vcpus,omitempty"`
	Memory    vee.Bytes `json:"memoryBytes,omitempty"`
	Ready     int       `json:"ready,omitempty"` // replicas, before
	Why       string    `json:"why"`
}

// Replay is what rules are tried on: samples, or where there are none the measurements that
// the site has of a time. The rules are the service's, or those of another manifest.
type Replay struct {
	Manifest string    `json:"manifest,omitempty" maxLength:"4194304"`
	File     string    `json:"file,omitempty"` // the manifest's file name, for error messages
	Samples  []Sample  `json:"samples,omitempty" maxItems:"100000"`
	From     time.Time `json:"from,omitzero"`
	To       time.Time `json:"to,omitzero"`
	BootMS   int64     `json:"bootMs,omitempty" minimum:"0" doc:"until a new replica serves; 0: 30 s"`
	LeaveMS  int64     `json:"leaveMs,omitempty" minimum:"0" doc:"until one that has to go is gone; 0: 10 s"`
}

// Sample of a KPI.
type Sample struct {
	KPI   string  `json:"kpi"`
	AtMS  int64   `json:"atMs"` // since 1970
	Value float64 `json:"value"`
}

// Replayed is what would have been decided, in the order of time: every change, and every
// new reason not to change.
type Replayed struct {
	From      time.Time         `json:"from"`
	To        time.Time         `json:"to"`
	Samples   int               `json:"samples"`
	Decisions []ElasticDecision `json:"decisions"`
	More      bool              `json:"more,omitempty"` // than these
}
