package vhi

import (
	"context"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/van/plan"
)

// Networks of a host: the segments that the site has put there. Which it holds, in which
// version, is in its report.
type Networks interface {
	// PutSegment is durable, and in effect, when it returns. One that is older than what the
	// host holds changes nothing and is no error.
	PutSegment(ctx context.Context, s plan.Segment) error
	// RemoveSegment of one that is not there does nothing.
	RemoveSegment(ctx context.Context, id string) error
	// NetworkPlan says what the host's kernel holds of a segment, and what it should.
	NetworkPlan(ctx context.Context, id string) (NetworkPlan, error)
}

// NetworkPlan of one segment at one host, in lines for people.
type NetworkPlan struct {
	Host    string `json:"host"`
	Version uint64 `json:"version"` // of the segment; 0: the host does not hold it
	// Entries that should be in the kernel.
	Entries []string `json:"entries"`
	// Missing are those of Entries that are not there, Surplus what is there beside them.
	Missing []string `json:"missing,omitempty"`
	Surplus []string `json:"surplus,omitempty"`
	Error   string   `json:"error,omitempty"` // why nothing can be said
}

func registerNetworks(s *httpapi.Server, h Networks) {
	type input struct {
		ID string `path:"id" doc:"of the segment"`
	}
	const one = "/vhi/v1/segments/{id}"
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "PUT", Path: one, Summary: "Put a network as this host needs to see it", Roles: siteOnly},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body plan.Segment
		}) error {
			if in.Body.ID != in.ID {
				return fault.New(fault.Malformed, "the path names segment %s, the body %s", in.ID, in.Body.ID)
			}
			return h.PutSegment(ctx, in.Body)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: one, Summary: "Remove a network that this host has no VEE of any more", Roles: siteOnly},
		func(ctx context.Context, in *input) error { return h.RemoveSegment(ctx, in.ID) })
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: one + "/plan", Summary: "What the kernel holds of a network, and what it should", Roles: siteOnly},
		func(ctx context.Context, in *input) (NetworkPlan, error) { return h.NetworkPlan(ctx, in.ID) })
}

func segmentURL(id, sub string) string { return "/vhi/v1/segments/" + url.PathEscape(id) + sub }

func (h hostClient) PutSegment(ctx context.Context, s plan.Segment) error {
	return h.c.Call(ctx, http.MethodPut, segmentURL(s.ID, ""), nil, s, nil)
}

func (h hostClient) RemoveSegment(ctx context.Context, id string) error {
	return h.c.Call(ctx, http.MethodDelete, segmentURL(id, ""), nil, nil, nil)
}

func (h hostClient) NetworkPlan(ctx context.Context, id string) (out NetworkPlan, err error) {
	err = h.c.Call(ctx, http.MethodGet, segmentURL(id, "/plan"), nil, nil, &out)
	return out, err
}
