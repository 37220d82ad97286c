// Package identity is who is who: the site's certificate authority and the SPIFFE IDs it
// gives out, a process's own key and certificate on disk, the TLS settings made of them,
// join tokens for hosts, API tokens for people, and the Caller that a request has proven
// to be. What a Caller may do is decided where the operation is. Where tokens are kept is
// the site's choice (Records); nothing here reads a secret back once it was shown.
package identity

import (
	"context"
	"strings"
)

// Role is what a caller may do, in four fixed steps for people and partners and two for
// the site's own processes. Deny is the default: an operation names the roles that may.
type Role string

// The four roles of people and partner sites, then the site's own machines, and a partner's.
const (
	Operator Role = "operator" // runs the site: everything
	Provider Role = "provider" // a service provider: its own customer's services and VEEs
	Partner  Role = "partner"  // another site, under an agreement
	Auditor  Role = "auditor"  // reads everything, changes nothing
	HostRole Role = "host"     // a host agent of this site
	SiteRole Role = "site"     // this site's own control plane
	// PartnerHost is a host agent of a partner site: what it may do is what this site has told
	// the host that it calls to expect.
	PartnerHost Role = "partner-host"
)

// Caller is who makes a call, as the transport has proven it.
type Caller struct {
	ID       string // SPIFFE ID or the token's name
	Role     Role
	Customer string // set for a Provider: the only customer whose objects it sees
	Host     string // set for a HostRole and a PartnerHost: the host's name
	Site     string // set for a Partner and a PartnerHost: the other site's name
}

type callerKey struct{}

// With returns a context that carries c.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// From is the caller of ctx; the zero Caller, which may do nothing, where there is none.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// Is reports whether c has one of roles.
func (c Caller) Is(roles ...Role) bool {
	for _, r := range roles {
		if c.Role == r && r != "" {
			return true
		}
	}
	return false
}

// Sees reports whether c may know of an object that belongs to customer.
func (c Caller) Sees(customer string) bool {
	switch c.Role {
	case Operator, Auditor, SiteRole:
		return true
	case Provider:
		return c.Customer == customer
	case Partner:
		return c.Site != "" && strings.HasPrefix(customer, c.Site+"/")
	}
	return false
}

// Scope of the names that c gives to what is its own, such as idempotency keys: those of a
// customer's callers are one scope, others each have their own.
func (c Caller) Scope() string {
	if c.Customer != "" {
		return string(c.Role) + "/" + c.Customer
	}
	return string(c.Role) + "/" + c.ID
}
