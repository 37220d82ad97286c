// Package admin is what an operator says to a site itself, beside its services and VEEs:
// what it is, who may call it, which hosts may join, and care for its store. Types, Go
// interface, HTTP server and client; the site implements it.
package admin

import (
	"context"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/audit"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Site as its operator sees it.
type Site struct {
	Name       string    `json:"name"`
	Version    string    `json:"softwareVersion"`
	Started    time.Time `json:"started"`
	Address    string    `json:"address"` // advertised, host:port
	Generation uint64    `json:"generation"`
	Placement  string    `json:"placement"`           // "balance" or "pack"
	Rebalance  string    `json:"rebalance,omitempty"` // policy by which VEEs are moved; empty: none
	VEENetwork string    `json:"veeNetwork,omitempty"`
	HAScale    float64   `json:"haScale,omitempty"` // 1: real timings
	Members    int       `json:"members,omitempty"` // of the control plane; 0: it is one process that has no name
	Leader     string    `json:"leader,omitempty"`  // of them
	Hosts      int       `json:"hosts"`
	VEEs       int       `json:"vees"`
	Services   int       `json:"services"`
	Images     int       `json:"images"`
	Store      Store     `json:"store"`
}

// Store is the state of the record of truth.
type Store struct {
	Kind   string    `json:"kind"` // "embedded" or "cluster"
	Size   vee.Bytes `json:"sizeBytes"`
	InUse  vee.Bytes `json:"inUseBytes"`
	Quota  vee.Bytes `json:"quotaBytes"`
	Alarm  string    `json:"alarm,omitempty"` // "full"; empty: none
	Schema int       `json:"schema"`
}

// NewToken asks for an API token.
type NewToken struct {
	Name     string        `json:"name" doc:"for people: who holds it"`
	Role     identity.Role `json:"role" enum:"operator,provider,partner,auditor"`
	Customer string        `json:"customer,omitempty" doc:"of a provider: the only customer whose objects it sees"`
	TTLMS    int64         `json:"ttlMs,omitempty" minimum:"0" doc:"lifetime, ms; 0: the site's default"`
}

// CreatedToken is the only answer that ever carries the secret: the site keeps its hash.
type CreatedToken struct {
	identity.Token
	Secret string `json:"secret"`
}

// NewInvite asks for a one-time token with which one host may join.
type NewInvite struct {
	Host  string `json:"host,omitempty" doc:"the only name that may use it; empty: any"`
	TTLMS int64  `json:"ttlMs,omitempty" minimum:"0" doc:"lifetime, ms; 0: one hour"`
}

// Invite is a one-time join token. It holds the fingerprint of the site's CA, so that a
// host needs nothing else to trust the site.
type Invite struct {
	Token   string    `json:"token"`
	Host    string    `json:"host,omitempty"`
	Address string    `json:"address"` // of the site, host:port
	Expires time.Time `json:"expires"`
}

// Compacted tells what a compaction of the store achieved.
type Compacted struct {
	Before vee.Bytes `json:"beforeBytes"`
	After  vee.Bytes `json:"afterBytes"`
	Alarm  string    `json:"alarm,omitempty"` // that still stands
}

// Service is the operator's interface to a site. Errors are *fault.Error.
type Service interface {
	Site(ctx context.Context) (Site, error)
	CreateToken(ctx context.Context, r NewToken) (CreatedToken, error)
	ListTokens(ctx context.Context) ([]identity.Token, error)
	// RevokeToken ends a token at once. Errors: NotFound.
	RevokeToken(ctx context.Context, name string) error
	InviteHost(ctx context.Context, r NewInvite) (Invite, error)
	// Members of the control plane; none where it is one process that has no name.
	Members(ctx context.Context) ([]Member, error)
	// InviteMember makes a token with which a machine becomes a member.
	InviteMember(ctx context.Context, r NewMember) (Invite, error)
	// RemoveMember for good, one that is lost or not wanted any more. Errors: NotFound; WrongState
	// for the one that leads; Conflict where the rest would be no majority that is well.
	RemoveMember(ctx context.Context, name string) error
	// Compact drops the store's history, returns its free space to the disk and clears the
	// alarm of a full store where there is room again.
	Compact(ctx context.Context) (Compacted, error)
	// Audit lists who has changed what, and who was refused, oldest first.
	Audit(ctx context.Context, f audit.Filter) ([]audit.Entry, error)
}
