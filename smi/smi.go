// Package smi is the service management interface (the SMI of seed 2's figure 1): what a
// service provider says to a Service Manager. Types, Go interface, HTTP server and client.
package smi

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Deploy hands in a manifest. Files that it refers to are already in the site's registry.
type Deploy struct {
	Name     string `json:"name,omitempty" doc:"of the service; empty: the manifest's"`
	Customer string `json:"customer,omitempty" doc:"whose service it is; empty: the caller's"`
	Manifest string `json:"manifest" maxLength:"4194304" doc:"OVF or YAML text"`
	// File is the manifest's file name, for error messages.
	File string `json:"file,omitempty"`
	// Images resolves references of the manifest that mean a file beside it, which the
	// client has pushed: the reference as it is written (a File's href) to the image's
	// digest "sha256:…". Every other reference is looked up in the site's registry.
	Images map[string]string `json:"images,omitempty"`
	// Replace an existing service of that name: a redeployment. Components that did not
	// change keep their VEEs.
	Replace bool `json:"replace,omitempty"`
	// BestEffort waits for room where there is not enough; else that is an error.
	BestEffort bool `json:"bestEffort,omitempty"`
	// Offer that the service runs under from then on; it has been accepted by that.
	Offer string `json:"offer,omitempty"`
	// IdempotencyKey is kept with the service, so that the newest deployment is known again
	// even if the site stopped before it could note its answer. Over HTTP it is the header
	// Idempotency-Key.
	IdempotencyKey string `json:"-"`
}

// Phase of a service: the difference between desired and observed, in one word.
type Phase string

// Phases of a service.
const (
	Deploying Phase = "deploying" // some replica is not there or not ready yet
	Ready     Phase = "ready"     // as desired
	Degraded  Phase = "degraded"  // was ready; some replica is lost or failed
	Deleting  Phase = "deleting"
	Sleeping  Phase = "sleeping" // its VEEs are saved to disk and take no processor or memory
	Failing   Phase = "failing"  // cannot become ready without somebody's help; Message says why
	Ceded     Phase = "ceded"    // it is another site's now; what is left here stands still
)

// Service as its provider sees it.
type Service struct {
	Name        string      `json:"name"`
	Customer    string      `json:"customer"`
	ID          string      `json:"id"` // never reused
	Version     uint64      `json:"version"`
	Revision    int         `json:"revision"` // of the manifest: 1, then one more at each redeploy
	Phase       Phase       `json:"phase"`
	Message     string      `json:"message,omitempty"`
	Asleep      bool        `json:"asleep,omitempty"` // its provider wants it to sleep
	Components  []Component `json:"components"`
	URLs        []URL       `json:"urls,omitempty"`
	Created     time.Time   `json:"created"`
	Changed     time.Time   `json:"changed"`
	Undone      string      `json:"undone,omitempty"`      // why the update before was
	NotInEffect []string    `json:"notInEffect,omitempty"` // what the manifest asks for and this version does not do yet
	Standbys    []Standby   `json:"standbys,omitempty"`    // only Get tells them
}

// Standby is a site that can go on with a service when its own is lost.
type Standby struct {
	Site string `json:"site"`
	// At is how old what it has is; zero: it has nothing whole.
	At      time.Time `json:"at,omitzero"`
	Current bool      `json:"current,omitempty"` // it has the newest that was shipped
	VEEs    int       `json:"vees,omitempty"`    // whose checkpoints are among it
	Problem string    `json:"problem,omitempty"`
}

// Component of a service: desired and observed.
type Component struct {
	Name     string    `json:"name"`
	Min      int       `json:"min"`
	Max      int       `json:"max"`
	Desired  int       `json:"desired"`
	Ready    int       `json:"ready"`
	Order    int       `json:"startOrder"`
	Waiting  string    `json:"waiting,omitempty"` // what its start waits for
	Replicas []Replica `json:"replicas,omitempty"`
}

// Replica of a component and the VEE that is it.
type Replica struct {
	Number   int           `json:"number"`
	VEE      vee.ID        `json:"vee,omitempty"`
	State    vee.State     `json:"state,omitempty"`
	Phase    vee.Phase     `json:"phase,omitempty"`
	Progress *vee.Progress `json:"progress,omitempty"`
	Ready    bool          `json:"ready"`
	Address  string        `json:"address,omitempty"`
	Host     string        `json:"host,omitempty"`
	Error    string        `json:"error,omitempty"`
	Revision int           `json:"revision"`
	// KPIs that its agent has measured last, by name; only Get tells them.
	KPIs map[string]float64 `json:"kpis,omitempty"`
}

// URL where the service answers.
type URL struct {
	Component string `json:"component"`
	URL       string `json:"url"`
	Site      string `json:"site,omitempty"` // partner that users come in at; empty: here
	Backends  int    `json:"backends"`       // ready now
}

// ServiceUsage is what the VEEs of a service have used since it was first deployed, under this name.
type ServiceUsage struct {
	Customer string        `json:"customer"`
	Service  string        `json:"service"`
	VEEs     []VEEUsage    `json:"vees"` // those that are gone too, oldest first
	Total    account.Usage `json:"total"`
}

// VEEUsage is what one VEE has used, as far as its VEE Manager has told.
type VEEUsage struct {
	VEE       vee.ID         `json:"vee"`
	Name      string         `json:"name"`
	ServiceID string         `json:"serviceID"`
	From      time.Time      `json:"from,omitzero"`
	Through   time.Time      `json:"through,omitzero"`
	Ended     bool           `json:"ended,omitempty"` // it is gone, and nothing will be added
	Site      string         `json:"site,omitempty"`  // whose account this is a copy of: it was another site's service then
	Total     account.Usage  `json:"total"`
	Intervals account.Series `json:"intervals,omitempty"`
}

// Plan is what a deployment would do.
type Plan struct {
	Name        string        `json:"name"`
	Feasible    bool          `json:"feasible"`
	Steps       []PlanStep    `json:"steps"`
	NotInEffect []string      `json:"notInEffect,omitempty"` // "not yet in effect": parsed, without consequence
	Warnings    []string      `json:"warnings,omitempty"`
	Total       vee.Resources `json:"total"`
}

// PlanStep is one VEE or access point that would be made, kept, replaced or removed.
type PlanStep struct {
	Action    string `json:"action"` // "create", "keep", "change", "replace", "remove"
	Object    string `json:"object"` // "vee web-1", "access point web:80"
	Component string `json:"component"`
	Order     int    `json:"startOrder"`
	Where     string `json:"where,omitempty"` // host
	Why       string `json:"why,omitempty"`
	Size      string `json:"size,omitempty"` // "1 vCPU, 128MiB"
}

// Event of the site: what happened to which object, in words.
type Event struct {
	Seq      uint64    `json:"seq"`
	At       time.Time `json:"at"`
	Type     string    `json:"type"`   // "normal", "warning"
	Reason   string    `json:"reason"` // one CamelCase word: "Placed", "GuestExited"
	Object   string    `json:"object"` // "service/web", "vee/alpha.k3…", "host/h1"
	Customer string    `json:"customer,omitempty"`
	Service  string    `json:"service,omitempty"`
	Message  string    `json:"message"`
}

// EventFilter restricts a list or watch of events.
type EventFilter struct {
	Customer string `query:"customer"`
	Object   string `query:"object" doc:"exact object, or a kind such as \"host\""`
	Service  string `query:"service"`
	Since    uint64 `query:"since" doc:"only events with a larger seq"`
	Before   uint64 `query:"before" doc:"only events with a smaller seq: with the first one's, the page before"`
	Limit    int    `query:"limit" minimum:"0" maximum:"10000" doc:"the newest so many; 0: 1000"`
}

// Manager is the SMI. Services are named within their customer; an empty customer is the
// caller's own. Errors are *fault.Error.
type Manager interface {
	Plan(ctx context.Context, d Deploy) (Plan, error)
	Deploy(ctx context.Context, d Deploy) (Service, error)
	Scale(ctx context.Context, customer, name, component string, replicas int) (Service, error)
	Get(ctx context.Context, customer, name string) (Service, error)
	List(ctx context.Context, customer string) ([]Service, error)
	// Manifest is the text that was handed in, as it was.
	Manifest(ctx context.Context, customer, name string) (string, error)
	Delete(ctx context.Context, customer, name string) error
	// Sleep saves all VEEs of a service to disk, as one context switch: all sleep, or all go
	// on. Wake is the way back, and waits for room. Both answer when that is recorded.
	Sleep(ctx context.Context, customer, name string) (Service, error)
	Wake(ctx context.Context, customer, name string) (Service, error)
	// Usage of a service, also of one that is gone; fault.NotFound where nothing is known.
	Usage(ctx context.Context, customer, name string) (ServiceUsage, error)
	// Watch sends the service (every service of the customer when name is empty) as it is,
	// then again at each change; a deleted one comes a last time with Phase Deleting and no
	// component. The channel closes with ctx or when the caller must watch anew.
	Watch(ctx context.Context, customer, name string) (<-chan Service, error)
	Events(ctx context.Context, f EventFilter) ([]Event, error)
	WatchEvents(ctx context.Context, f EventFilter) (<-chan Event, error)
}
