// Package peer is what the members of a site's control plane say to each other, beside what
// their records of truth do: how one is, that it makes room in its record, that it takes an
// image. Types, Go interface, HTTP server and client; the site implements it. A member answers
// at an address of its own (not at the site's, where the one that leads answers), to other
// members alone.
package peer

import (
	"context"
	"net/http"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

// MemberStatus is how one is.
type MemberStatus struct {
	Name    string    `json:"name"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Leads   bool      `json:"leads"`
	// Size of its copy of the record of truth, of which InUse holds something.
	Size  vee.Bytes `json:"sizeBytes"`
	InUse vee.Bytes `json:"inUseBytes"`
	// Missing is how many images it does not have yet, and Problem why.
	Missing int    `json:"imagesMissing"`
	Problem string `json:"problem,omitempty"`
}

// MemberImage is one that a member is to take.
type MemberImage struct {
	Manifest []byte `json:"manifest"`
	From     string `json:"from"` // address, host:port, of a member that has it
}

// Member of a site's control plane. Errors are *fault.Error.
type Member interface {
	Status(ctx context.Context) (MemberStatus, error)
	// Defragment gives the free space of its record back to its disk.
	Defragment(ctx context.Context) error
	// TakeImage answers once all that the image names is on its disk.
	TakeImage(ctx context.Context, i MemberImage) error
}

// Prefix of the paths.
const Prefix = "/member/v1"

var members = []identity.Role{identity.SiteRole}

// Register serves m.
func Register(s *httpapi.Server, m Member) {
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: Prefix + "/status", Summary: "How this member of the control plane is", Roles: members},
		func(ctx context.Context, _ *httpapi.Empty) (MemberStatus, error) { return m.Status(ctx) })
	httpapi.RegisterNoBody(s, httpapi.Op{Method: http.MethodPost, Path: Prefix + "/defragment", Summary: "Give free space of its record back to its disk", Roles: members, Unkeyed: true},
		func(ctx context.Context, _ *httpapi.Empty) error { return m.Defragment(ctx) })
	httpapi.RegisterNoBody(s, httpapi.Op{Method: http.MethodPost, Path: Prefix + "/images", Summary: "Take an image from another member", Roles: members, Unkeyed: true},
		func(ctx context.Context, in *struct{ Body MemberImage }) error { return m.TakeImage(ctx, in.Body) })
}

// Client implements Member over HTTP.
type Client struct{ c *httpapi.Client }

// NewClient speaks to the member that c calls.
func NewClient(c *httpapi.Client) *Client { return &Client{c} }

var _ Member = (*Client)(nil)

// Status implements Member.
func (c *Client) Status(ctx context.Context) (out MemberStatus, err error) {
	err = c.c.Call(ctx, http.MethodGet, Prefix+"/status", nil, nil, &out)
	return out, err
}

// Defragment implements Member.
func (c *Client) Defragment(ctx context.Context) error {
	return c.c.Call(ctx, http.MethodPost, Prefix+"/defragment", nil, nil, nil)
}

// TakeImage implements Member.
func (c *Client) TakeImage(ctx context.Context, i MemberImage) error {
	return c.c.Call(ctx, http.MethodPost, Prefix+"/images", nil, i, nil)
}
