// Package peer is what the VEE Managers of two sites say to each other beside the VMI: who
// they are and what they can, what was agreed, what each has to offer, the networks that
// they share, the moves of VEEs, and the books about them. Types, the Go interface, its
// HTTP server and client over mutual TLS from control plane to control plane.
//
// The caller is a partner, proven by its certificate: identity.From(ctx) has the role
// partner and its Site. A partner speaks for itself alone, so no operation takes the
// caller's name as a parameter. Every operation may be repeated.
package peer

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Site is a partner, as the other site's VEE Manager sees it. Each part is served by the
// part of the site that it is about.
type Site interface {
	Trust
	Agreements
	Publisher
	Networks
	Moves
	Books
	Cooperation
	Gauges
}

// Capability is something that a site can do with its partners. Sites of different versions
// go by these names, never by version numbers: what one of the two lacks is refused with
// the name, and everything else works.
type Capability string

// Capabilities.
const (
	CanPlace     Capability = "place"      // runs a partner's VEEs
	CanReserve   Capability = "reserve"    // keeps capacity for a later time
	CanNetwork   Capability = "van"        // shares virtual area networks
	CanMove      Capability = "move"       // live migration
	CanMoveCold  Capability = "move-cold"  // migration of what is stopped or suspended
	CanPublish   Capability = "attributes" // tells what it has to offer
	CanAccount   Capability = "accounting" // keeps books that a partner may compare
	CanAccess    Capability = "access"     // opens access points for a partner's VEEs
	CanMeasure   Capability = "monitoring" // sends measurements of a partner's VEEs
	CanCooperate Capability = "cooperate"  // keeps definitions and checkpoints of services
	CanRotate    Capability = "rotate"     // follows new authorities of a partner
)

// Hello is the greeting of each side. The answer has Received and Sent, both by the clock
// of who answers; who called knows its own two times, and so the other's offset (RFC 5905,
// section 8).
//
// Hello alone takes fields that the reader does not know; everything else goes by what the
// Hello has said.
type Hello struct {
	_            struct{}     `json:"-" additionalProperties:"true"`
	Site         string       `json:"site"`
	Version      string       `json:"softwareVersion,omitempty"` // for people; see Capability
	Capabilities []Capability `json:"capabilities"`
	// BundleSequence of the site's authorities; when it has grown, Bundle tells the new ones.
	BundleSequence uint64 `json:"bundleSequence"`
	// Holds is the sequence of the reader's bundle that the sender goes by.
	Holds uint64 `json:"holds,omitempty"`
	// Border is how the site's proxy is reached now.
	Border   Border    `json:"border"`
	Received time.Time `json:"received,omitzero"`
	Sent     time.Time `json:"sent,omitzero"`
}

// Can reports whether the site has c.
func (h Hello) Can(c Capability) bool { return slices.Contains(h.Capabilities, c) }

// Needs is the refusal to use what the site cannot, or nil.
func (h Hello) Needs(c Capability) error {
	if h.Can(c) {
		return nil
	}
	return fault.New(fault.Unsupported, "site %s (version %s) lacks the capability %q", h.Site, h.Version, c).
		Try("see what it can: reservoir federation show %s", h.Site)
}

// Border is the way into a site: its proxy (van/border).
type Border struct {
	_      struct{} `json:"-" additionalProperties:"true"`
	Relay  string   `json:"relay,omitempty"`  // TCP, host:port
	Tunnel string   `json:"tunnel,omitempty"` // WireGuard, UDP, host:port
	Key    string   `json:"key,omitempty"`    // the proxy's WireGuard public key, base64
}

// Bundle is a site's trust bundle: its authorities now, and those to come.
type Bundle struct {
	Site     string `json:"site"`
	Sequence uint64 `json:"sequence"`
	// JWKS is the bundle in SPIFFE's form (SPIFFE Trust Domain and Bundle, section 4).
	JWKS []byte `json:"jwks"`
}

// Introduction is the first word between two sites, in the accept call and in its answer.
type Introduction struct {
	_      struct{} `json:"-" additionalProperties:"true"`
	Hello  Hello    `json:"hello"`
	Bundle Bundle   `json:"bundle"`
}

// Acceptance is the accept call: Introduction in JSON, signed by the site that accepts
// (identity.Sign) with a key that its own bundle in it vouches for, so that nobody can
// introduce another.
type Acceptance struct {
	Token        string `json:"token"` // one-time
	Introduction []byte `json:"introduction"`
	Signature    string `json:"signature"`
}

// Host turns partners into trusted ones: the one call that a stranger may make.
type Host interface {
	// Accept takes a site for a partner by a token that it was given. Errors: TokenInvalid,
	// Malformed, Exists (a partner of that name with other authorities).
	Accept(ctx context.Context, a Acceptance) (Introduction, error)
}

// Trust is who the sites are.
type Trust interface {
	Hello(ctx context.Context, h Hello) (Hello, error)
	// Bundle of this site.
	Bundle(ctx context.Context) (Bundle, error)
	// Leave ends the partnership: the caller forgets this site, and is to be forgotten.
	Leave(ctx context.Context) error
}

// Partner is a partner site as this site knows it. It is a value of one moment.
type Partner struct {
	Name  string
	VMI   vmi.Service // over the relay; calls fail at once while Down
	Site  Site        // likewise
	Hello Hello       // its last one
	// Bundle that its processes are verified by, SPIFFE JWKS.
	Bundle Bundle
	// Agreements with it in either direction that are in force or run out; Agreement.Lender
	// says whose capacity they are about.
	Agreements []Agreement
	// Offset of its clock from ours (its time − ours) and how wrong that may be.
	Offset, OffsetError time.Duration
	// Seen is when it last answered; Down says why it is not reachable now, nil: it is.
	Seen time.Time
	Down error
	// Underlay address of our own proxy, where what is at the partner is sent.
	Underlay netip.Addr
}

// Lends returns the agreement under which the partner lends to us at that moment; NotFound.
func (p Partner) Lends(at time.Time) (Agreement, error) { return p.agreement(p.Name, at) }

// Borrows returns the agreement under which we lend to the partner; NotFound.
func (p Partner) Borrows(at time.Time) (Agreement, error) {
	for _, a := range p.Agreements {
		if a.Borrower == p.Name && a.Covers(at) {
			return a, nil
		}
	}
	return Agreement{}, none(p.Name, "lets it have anything here")
}

func (p Partner) agreement(lender string, at time.Time) (Agreement, error) {
	for _, a := range p.Agreements {
		if a.Lender == lender && a.Covers(at) {
			return a, nil
		}
	}
	return Agreement{}, none(p.Name, "lets us have anything there")
}

func none(partner, what string) error {
	return fault.New(fault.NotFound, "no agreement with site %s that is in force %s", partner, what).
		Try("reservoir agreement propose %s FILE, or look: reservoir agreement list", partner)
}

// OurTime is the moment on our clock that the partner's clock says.
func (p Partner) OurTime(theirs time.Time) time.Time { return theirs.Add(-p.Offset) }

// Partners are those that a site has now.
type Partners interface {
	// Partner of that name; NotFound, also for one that was revoked or has left.
	Partner(name string) (Partner, error)
	// Partners in the order of their names.
	Partners() []Partner
	// Changed is closed when a partner has come, gone, or become (un)reachable, or an
	// agreement has changed; ask again for the next time.
	Changed() <-chan struct{}
}
