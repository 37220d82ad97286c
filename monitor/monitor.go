// Package monitor is what measurements are and how they travel (seed 2 and Clayman et al.,
// "Monitoring Services in a Federated Cloud"): the words of its three planes, the pure core
// of a probe, and the regulator. How they are stored and queried is monitor/store's, over
// Prometheus, which nothing here depends on.
//
// Data plane: a Source on each host owns Probes; what they collect goes in a Report to the
// site, which says of each measurement whose it is (Subject) and appends it to a Sink. Who
// wants to know asks a Querier in PromQL.
//
// Control plane: the answer to every Report are Orders, the settings that people have given
// to that source's probes. It is level-triggered: a source that was restarted gets them
// again, and one that cannot reach its site goes on as it was.
//
// Information plane: each probe comes with its Dictionary, in the same Reports.
//
// # How to produce measurements
//
// On a host: make one [Source], Add a [Probe] with a function that collects its values, and
// Run the source with an [Uplink]. A VEE's probe names the VEE and nothing more; that the
// VEE is on that host, and which customer, service and replica it is, the site knows. A
// probe that is pushed to instead (from inside a guest) is told by [Source.Event].
//
// Inside the site's process: call [Sink.Append] with the Subject.
//
// Names: a field is a Prometheus metric name ([ValidField]) with its unit at the end, and
// "_total" where it counts up: "vee_cpu_seconds_total", "host_memory_free_bytes". Fields of
// hosts start with "host_", those of VEEs as their host sees them with "vee_"; KPIs are
// named by the service and may start with neither ([FieldOf] makes a field of what a guest
// called it). No label of a VEE's series names its host, so that a series goes on when its
// VEE moves.
package monitor

import (
	"context"
	"time"
)

// Kind of a measurement: who has measured.
type Kind string

// Kinds.
const (
	HostKind    Kind = "host"    // VEEH probes: a machine, by itself; never leaves the site
	VEEKind     Kind = "vee"     // hypervisor-VEE probes: a VEE, as its host sees it
	KPIKind     Kind = "kpi"     // from inside the guest: the service's own word, never trusted
	DerivedKind Kind = "derived" // from other measurements, by the Service Manager
	SiteKind    Kind = "site"    // the site's own process
)

// Value of one field.
type Value struct {
	Field string `json:"field"`
	// Labels that a program in a guest has given it; of KPIs alone. In Prometheus's notation
	// without braces, sorted by name, each name once: code="200",method="get". So values are
	// comparable, and (Field, Labels) is the series within a Subject. Labels that are a
	// Subject's are stored as "exported_" and their name: nobody says who he is.
	// At most MaxLabels bytes.
	Labels string  `json:"labels,omitempty" maxLength:"8192"`
	Value  float64 `json:"value"`
}

// MaxLabels bounds the labels of a value, in bytes.
const MaxLabels = 8192

// Measurement is what a probe has measured of one subject at one time.
type Measurement struct {
	Subject Subject
	Kind    Kind
	At      time.Time // to the millisecond
	Values  []Value   // each field once with the same labels
}

// Reason why a value was not stored.
type Reason string

// Reasons.
const (
	Late        Reason = "late"      // older than what may still be filled in
	Duplicate   Reason = "duplicate" // there is another value of that time
	Future      Reason = "future"    // of a time that has not come
	NotFinite   Reason = "nan"       // NaN or infinite
	BadName     Reason = "name"      // no valid field, or one that is not its kind's
	TooMany     Reason = "rate"      // more samples than one service may send
	TooWide     Reason = "series"    // more series than a service, or all, may have
	Foreign     Reason = "foreign"   // about a VEE that is not the sender's
	Unsupported Reason = "kind"      // OTLP data that is no gauge and no running total
	Lost        Reason = "lost"      // waited too long in the source for a site that was away
)

// Receipt of what was appended.
type Receipt struct {
	Stored  int            `json:"stored"` // values, those that came again included
	Refused map[Reason]int `json:"refused,omitempty"`
}

// Refuse counts n values that were not stored.
func (r *Receipt) Refuse(why Reason, n int) {
	if n == 0 {
		return
	}
	if r.Refused == nil {
		r.Refused = map[Reason]int{}
	}
	r.Refused[why] += n
}

// Add o to r.
func (r *Receipt) Add(o Receipt) {
	r.Stored += o.Stored
	for why, n := range o.Refused {
		r.Refuse(why, n)
	}
}

// Sink stores measurements. A value that cannot be stored is counted and does not keep the
// others out; the error is about the store itself. The same value of the same time may be
// appended again. The slices stay the caller's.
type Sink interface {
	Append(ctx context.Context, ms []Measurement) (Receipt, error)
}

// Point of a series.
type Point struct {
	At    time.Time
	Value float64 // a query's result may be NaN or infinite
}

// Series is a result of a query: what it is about and its points in the order of time, one
// for an instant query. A result that is a scalar has no labels.
type Series struct {
	Labels map[string]string
	Points []Point
}

// Querier answers PromQL. Errors: fault.Malformed for an expression that does not parse or
// a range that makes no sense, fault.TooLarge or fault.Timeout for what needs too much,
// fault.Unavailable.
type Querier interface {
	// Query evaluates expr at one time. A selector sees samples that are at most 5 minutes
	// old. No result is an empty slice, not an error.
	Query(ctx context.Context, expr string, at time.Time) ([]Series, error)
	// QueryRange evaluates expr at from, from+step, … up to to.
	QueryRange(ctx context.Context, expr string, from, to time.Time, step time.Duration) ([]Series, error)
}

// Scope is whose measurements may be read. The zero Scope is everything, for operators;
// otherwise everything of a customer, or of one of its services.
type Scope struct {
	Customer string
	Service  string // by name; only with Customer
	// VEEs restricts it further, to what is of none or of one of these: identifiers that are
	// parted by spaces. Empty: no restriction. What a replica measured last outlives it by
	// minutes, and who sums up over replicas wants those that there are.
	VEEs string
}

// Repository hands out Queriers. What one answers is of its scope whatever the expression
// says: the scope is enforced on every selector of the parsed expression.
type Repository interface {
	Querier(s Scope) Querier
}
