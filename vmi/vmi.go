// Package vmi is the VEE Management Interface (seed 5, the VMI white paper): the types,
// the Go interface, its HTTP server and its client. The Service Manager speaks it to its
// own VEE Manager, and a VEE Manager to that of another site; neither can tell which
// implementation it holds.
//
// Decisions where the white paper is silent are those of docs/vmi.md. Identity is never a
// parameter: the transport proves it, and identity.From(ctx) tells it.
package vmi

import (
	"cmp"
	"context"
	"io"
	"time"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// Model of an initialisation (seed 5, section 2.5.3).
type Model string

// TwoPhase reserves places for all or fails; BestEffort only describes, and the VEEs stay
// INITIAL until the placement engine finds a place.
const (
	TwoPhase   Model = "TWOPHASE"
	BestEffort Model = "BESTEFFORT"
)

// PlacementRule that holds between VEEs of one call, or of one group. Scope is "host"
// or "site"; soft rules of sites spread evenly.
type PlacementRule struct {
	Kind  string `json:"kind" enum:"affinity,anti-affinity" doc:"together, or on distinct hosts or sites"`
	Scope string `json:"scope,omitempty" enum:"host,site" default:"host"`
	// Tag names the VEEs: those of the same GroupID that carry it.
	Tag string `json:"tag" doc:"the VEEs that carry this tag"`
	// Soft rules are kept where it is possible.
	Soft bool `json:"soft,omitempty"`
}

// Initialize is the parameter of InitializeVEEs.
type Initialize struct {
	Model  Model           `json:"model" enum:"TWOPHASE,BESTEFFORT"`
	VEEs   []InitializeVEE `json:"vees" minItems:"1" maxItems:"1000"`
	Rules  []PlacementRule `json:"rules,omitempty"`
	HoldMS int64           `json:"holdMs,omitempty" doc:"how long a TWOPHASE reservation lasts without a submit, ms; 0: the site's default"`
	// IdempotencyKey makes a repeated call return the first one's result. Over HTTP it is
	// the header Idempotency-Key.
	IdempotencyKey string `json:"-"`
}

// InitializeVEE is one descriptor and how many VEEs of it. With a Count over one, the
// names get "-1", "-2", … appended.
type InitializeVEE struct {
	Descriptor vee.Descriptor `json:"descriptor"`
	Count      int            `json:"count,omitempty" minimum:"0" maximum:"1000"`
	// ID and Custody are for another site's VEE Manager alone, which keeps the name of a VEE
	// wherever it runs: one of its own site, and a Count of at most one.
	ID      vee.ID   `json:"id,omitempty"`
	Custody *Custody `json:"custody,omitempty"`
}

// Custody of a VEE that its primary site hands to another one.
type Custody struct {
	// Agreement under which it is taken.
	Agreement string `json:"agreement"`
	// Epoch that the primary's own log has for it: the right to run it here.
	Epoch vee.Epoch `json:"epoch"`
	// Seq of what the primary wants of it, within the epoch. What is older than what a site
	// has obeyed comes late, and is refused there (StaleEpoch).
	Seq uint64 `json:"seq"`
	// Part of what the primary wants is all that the call asks for: it is older than the whole.
	Part bool `json:"part,omitempty"`
}

// Compare is negative when c is older than o, zero when they are the same.
func (c Custody) Compare(o Custody) int {
	switch by := cmp.Or(c.Epoch.Compare(o.Epoch), cmp.Compare(c.Seq, o.Seq)); {
	case by != 0 || c.Part == o.Part:
		return by
	case c.Part:
		return -1
	}
	return 1
}

// Initialized is the result: the new VEEs in the order of the request, with the values
// that the manager generated (addresses, MACs, names).
type Initialized struct {
	VEEs []VEE `json:"vees"`
}

// VEE is the record of one VEE as a caller sees it. Version grows with every change.
type VEE struct {
	ID         vee.ID          `json:"id"`
	Version    uint64          `json:"version"`
	Descriptor vee.Descriptor  `json:"descriptor"`
	Rules      []PlacementRule `json:"rules,omitempty"`
	State      vee.State       `json:"state"`  // observed
	Target     vee.State       `json:"target"` // asked for
	Phase      vee.Phase       `json:"phase"`  // observed, finer
	Progress   *vee.Progress   `json:"progress,omitempty"`
	Submitted  bool            `json:"submitted"`
	Error      string          `json:"error,omitempty"` // the last one, while it stands
	Host       string          `json:"host,omitempty"`
	// Why it was placed there, and not elsewhere; empty where it has moved since.
	Why  string `json:"why,omitempty"`
	Site string `json:"custodySite"`
	// Custody under which it is here, of a VEE of another site: the newest that was obeyed.
	Custody *Custody `json:"custody,omitempty"`
	// Evicted: it is a VEE of another site whose agreement is over, and it does not run any more.
	Evicted *Eviction `json:"evicted,omitempty"`
	// Move is how its newest migration over the border goes, as this site's host says; for the
	// site that the VEE is of.
	Move       *vhi.MoveReport `json:"move,omitempty"`
	Epoch      vee.Epoch       `json:"epoch"`
	GuestReady bool            `json:"guestReady"`
	GuestSeen  bool            `json:"guestSeen"`
	GuestIdle  bool            `json:"guestIdle,omitempty"`
	// GuestFailure is what went wrong in the guest's first boot, in its own words.
	GuestFailure string `json:"guestFailure,omitempty"`
	Restarts     int    `json:"restarts,omitempty"`
	// Queue is its place, from 1, among those that wait for room; 0: it does not wait.
	Queue int `json:"queue,omitempty"`
	// ReservedUntil is set while a TWOPHASE reservation is held and not yet submitted.
	ReservedUntil *time.Time `json:"reservedUntil,omitempty"`
	Created       time.Time  `json:"created"`
	Changed       time.Time  `json:"changed"` // of State or Phase
	DiskUsed      vee.Bytes  `json:"diskUsedBytes,omitempty"`
	// NextBoot says what of the descriptor the guest that runs has not got yet, and why.
	NextBoot []string `json:"nextBoot,omitempty"`
	// Checkpoint is the newest one that it can go on from.
	Checkpoint *vee.Checkpoint `json:"checkpoint,omitempty"`
	// Freed on the host's disk, by the removal of a VEE that is gone.
	Freed vee.Bytes `json:"freedBytes,omitempty"`
	// History of its states and phases, oldest first; only GetVEE tells it.
	History []Step `json:"history,omitempty"`
}

// Eviction of a VEE that another site had here longer than was agreed.
type Eviction struct {
	At    time.Time `json:"at"`
	Until time.Time `json:"until"` // its disks stay, for its own site to fetch
	Why   string    `json:"why"`
}

// Step of a VEE's life: from At until the next step.
type Step struct {
	At    time.Time `json:"at"`
	State vee.State `json:"state"`
	Phase vee.Phase `json:"phase"`
	Host  string    `json:"host,omitempty"`
	// Progress that the step had made when it ended, such as the bytes that were fetched.
	Progress *vee.Progress `json:"progress,omitempty"`
	Note     string        `json:"note,omitempty"` // what went wrong
	// Counted is what the step counts as in the books about a VEE of another site; nil: it is
	// none.
	Counted *Counted `json:"counted,omitempty"`
}

// Counted is what a step of a VEE of another site is counted as, beside its state.
type Counted struct {
	Agreement string `json:"agreement"` // under which it is here
	Wanted    bool   `json:"wanted"`    // its own site wants it to run
	account.Size
}

// Outcome of a collection method for one VEE.
type Outcome struct {
	ID     vee.ID `json:"id"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"` // "being deployed", "will be deployed", or why not
	Code   string `json:"code,omitempty"`   // fault.Code when not OK
}

// Collection names VEEs. Ordered: a list, one after the other, each waiting for the one
// before to have reached its state or failed; else a set, in any order, in parallel.
type Collection struct {
	IDs     []vee.ID `json:"ids" minItems:"1" maxItems:"1000"`
	Ordered bool     `json:"ordered,omitempty"`
}

// UpdateState is the parameter of UpdateState.
type UpdateState struct {
	Collection
	Action vee.Action `json:"action" enum:"ACTIVATE,PAUSE,SUSPEND,SHUTDOWN,DESTROY"`
	// Wait until each VEE has reached its state or failed before answering. An ordered
	// collection always waits between its members.
	Wait bool `json:"wait,omitempty"`
	// Together makes SUSPEND and ACTIVATE one context switch: all VEEs get there, or each
	// stays, or goes back to, where it was. Those that are there already are left out.
	Together bool `json:"together,omitempty"`
	// Queue: where there is no room to wake all of them, they wait for it together. Only with
	// Together.
	Queue bool `json:"queue,omitempty"`
	// Versions that VEEs must still have; for those that are named and have changed, the
	// outcome is a version-conflict.
	Versions map[vee.ID]uint64 `json:"versions,omitempty"`
	// Custody of each of the VEEs, from another site's VEE Manager alone. An action that leads
	// where a VEE is bound for already is no error then: what it says is noted. DESTROY of a
	// VEE that is not known has everything that comes later and is older refused.
	Custody        map[vee.ID]Custody `json:"custody,omitempty"`
	IdempotencyKey string             `json:"-"`
}

// Filter of a list or a watch; empty fields do not restrict.
type Filter struct {
	Customer string    `json:"customer,omitempty" query:"customer"`
	GroupID  string    `json:"groupID,omitempty" query:"group"`
	Host     string    `json:"host,omitempty" query:"host"`
	State    vee.State `json:"state,omitempty" query:"state"`
	// Destroyed ones are left out unless asked for.
	Destroyed bool `json:"destroyed,omitempty" query:"destroyed"`
	// Limit and Continue are for lists alone: at most so many, after the VEE that was the
	// last one of the page before. A page that is not full is the last one.
	Limit    int    `json:"limit,omitempty" query:"limit" minimum:"0" doc:"at most so many; 0: all"`
	Continue vee.ID `json:"continue,omitempty" query:"continue" doc:"identifier of the last VEE of the page before"`
}

// Change is one message of a watch. A watch first sends every VEE that there is, then one
// Synced, then changes as they happen; when the channel closes, watch again.
type Change struct {
	VEE    *VEE   `json:"vee,omitempty"` // nil with Synced and Purged
	Synced bool   `json:"synced,omitempty"`
	Purged vee.ID `json:"purged,omitempty"` // record of a destroyed VEE was dropped
}

// AccessPoint is a public address and port of the site that is balanced over the ready
// VEEs of a group that carry a tag.
type AccessPoint struct {
	Name     string `json:"name"` // unique within the group
	Customer string `json:"customer,omitempty"`
	GroupID  string `json:"groupID"`
	Tag      string `json:"tag,omitempty"`
	Port     int    `json:"port" minimum:"1" maximum:"65535" doc:"port in the guests"`
	Scheme   string `json:"scheme,omitempty" doc:"for the URL: http, https, tcp; or udp"`
	// Algorithm spreads connections; empty: round-robin.
	Algorithm string `json:"algorithm,omitempty" doc:"round-robin, least-connections, or source: one client stays with one VEE"`
	// Health is asked of every VEE; empty: a VEE is well when it accepts connections.
	Health string `json:"health,omitempty" doc:"path that answers 200 to 399 when a VEE is well"`
	// Draining VEEs keep the connections that they have and get no new one.
	Draining []vee.ID `json:"draining,omitempty"`
	// Partners: each partner site that has VEEs of it opens an access point for those too, where
	// the agreement with it lets it.
	Partners bool      `json:"partners,omitempty"`
	Address  string    `json:"address,omitempty"` // assigned, host:port
	Backends int       `json:"backends"`          // ready and well now
	Serving  []Backend `json:"serving,omitempty"` // observed
	// Elsewhere are the access points of partners, as they were told last.
	Elsewhere []PartnerPoint `json:"elsewhere,omitempty"`
}

// PartnerPoint is the access point of a partner for VEEs that it has.
type PartnerPoint struct {
	Site     string    `json:"site"`
	Address  string    `json:"address,omitempty"` // host:port at that site
	Backends int       `json:"backends"`
	Serving  []Backend `json:"serving,omitempty"`
	Why      string    `json:"why,omitempty"` // there is none, or it is not known how it is
}

// Backend of an access point.
type Backend struct {
	VEE         vee.ID `json:"vee"`
	Address     string `json:"address"` // host:port
	Healthy     bool   `json:"healthy"`
	Why         string `json:"why,omitempty"` // it is not
	Draining    bool   `json:"draining,omitempty"`
	Connections int    `json:"connections"` // under way
}

// HostState is what an operator wants of a host; its liveness is observed.
type HostState string

// Host states.
const (
	HostOn       HostState = "on"
	HostDraining HostState = "draining" // takes no new VEE
	HostOff      HostState = "off"      // was drained and switched off
)

// Host as an operator sees it.
type Host struct {
	Name     string           `json:"name"`
	State    HostState        `json:"state"`
	Alive    bool             `json:"alive"` // current: renewed lately
	LastSeen time.Time        `json:"lastSeen,omitzero"`
	Address  string           `json:"address"`
	Version  string           `json:"softwareVersion,omitempty"`
	CPUs     int              `json:"cpus"`
	Capacity vee.Resources    `json:"capacity"`
	Used     vee.Resources    `json:"used"` // taken by VEEs placed there
	DiskFree vee.Bytes        `json:"diskFreeBytes"`
	Drivers  []vhi.DriverInfo `json:"drivers,omitempty"`
	VEEs     int              `json:"vees"`
	Joined   time.Time        `json:"joined"`
	Price    float64          `json:"price,omitempty"` // per hour while it has VEEs
	// Leaving: its VEEs are to leave it (DrainHost). Drained: nothing runs there any more.
	Leaving bool `json:"leaving,omitempty"`
	Drained bool `json:"drained,omitempty"`
	// HA is how far its VEEs can be restarted elsewhere.
	HA HostHA `json:"ha,omitzero"`
	// Peering is what it says of the others, and of what they do together by themselves.
	Peering *vhi.Peering `json:"peering,omitempty"`
}

// Placement is an answer of Plan: where a VEE would go, or why nowhere.
type Placement struct {
	Name string `json:"name"`
	Host string `json:"host,omitempty"`
	Why  string `json:"why"`
}

// Service is the VMI. Errors are *fault.Error; methods on collections fail VEE by VEE.
type Service interface {
	Accounting
	Monitoring
	Quotas
	Reservations
	Networks
	Reach
	Storage
	Migrations
	Reconfigurations
	Ownership
	// InitializeVEEs makes never-used identifiers known. Errors: Malformed (field and
	// reason), NoResources (TWOPHASE), Denied.
	InitializeVEEs(ctx context.Context, r Initialize) (Initialized, error)
	// Plan says where InitializeVEEs would place, and changes nothing.
	Plan(ctx context.Context, r Initialize) ([]Placement, error)
	// SubmitVEEs deploys and activates.
	SubmitVEEs(ctx context.Context, ids []vee.ID) ([]Outcome, error)
	// UpdateState applies one action to a list or a set.
	UpdateState(ctx context.Context, r UpdateState) ([]Outcome, error)

	GetVEE(ctx context.Context, id vee.ID) (VEE, error)
	ListVEEs(ctx context.Context, f Filter) ([]VEE, error)
	WatchVEEs(ctx context.Context, f Filter) (<-chan Change, error)
	// Console attaches to a VEE's serial console.
	Console(ctx context.Context, id vee.ID) (io.ReadWriteCloser, error)
	// Tell passes a command to the agent in a VEE's guest.
	Tell(ctx context.Context, id vee.ID, c guest.Command) (guest.Reply, error)

	// PutAccessPoint makes or changes one; idempotent. The answer has its address.
	PutAccessPoint(ctx context.Context, a AccessPoint) (AccessPoint, error)
	DeleteAccessPoint(ctx context.Context, groupID, name string) error
	ListAccessPoints(ctx context.Context, groupID string) ([]AccessPoint, error)

	ListHosts(ctx context.Context) ([]Host, error)
	GetHost(ctx context.Context, name string) (Host, error)
	SetHostState(ctx context.Context, name string, s HostState) (Host, error)
	// RemoveHost forgets a host that runs no VEE. Errors: InUse, NotFound.
	RemoveHost(ctx context.Context, name string) error
}
