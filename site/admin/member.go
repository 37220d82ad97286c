package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Member is one of the machines that the site's control plane runs on.
type Member struct {
	Name    string    `json:"name"`
	Address string    `json:"address"` // host:port where it answers for the site
	Own     string    `json:"ownAddress"`
	Store   string    `json:"storeAddress"` // of its copy of the record of truth, for other members
	Leads   bool      `json:"leads"`
	Healthy bool      `json:"healthy"`
	Problem string    `json:"problem,omitempty"` // why it is not healthy
	Version string    `json:"softwareVersion"`
	Started time.Time `json:"started,omitzero"`
	Size    vee.Bytes `json:"storeSizeBytes"`
	Missing int       `json:"imagesMissing"` // images that it does not have yet
}

// NewMember asks for a one-time token with which a machine may join the control plane.
type NewMember struct {
	Name  string `json:"name" doc:"that the member will have: a DNS label"`
	TTLMS int64  `json:"ttlMs,omitempty" minimum:"0" doc:"lifetime, ms; 0: one hour"`
}

// MemberJoin is what a machine asks that becomes a member.
type MemberJoin struct {
	Token   string `json:"token"`
	Member  string `json:"member"`
	CSR     []byte `json:"csr"` // PEM
	Address string `json:"address"`
	Own     string `json:"ownAddress"`
	Store   string `json:"storeAddress"`
}

// MemberPapers are all that it needs but the key to the seal of the site's authority, which a
// person brings.
type MemberPapers struct {
	Site        string         `json:"site"`
	Certificate []byte         `json:"certificate"` // chain, PEM
	Bundle      []byte         `json:"bundle"`
	Record      []MemberRecord `json:"record"` // the members of the record of truth; empty: it is elsewhere
}

// MemberRecord is a member's place in the record of truth.
type MemberRecord struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// Joining is a site that members join. The call proves itself by its token.
type Joining interface {
	// JoinMember may be repeated by the machine that it was answered to. Errors: TokenInvalid;
	// Conflict while another one joins, or some member is not well.
	JoinMember(ctx context.Context, r MemberJoin) (MemberPapers, error)
}

// JoinPath is open to callers that have proven nothing yet.
const JoinPath = prefix + "/members/join"

// RegisterJoining serves j.
func RegisterJoining(s *httpapi.Server, j Joining) {
	httpapi.RegisterOpen(s, httpapi.Op{Method: http.MethodPost, Path: JoinPath, Summary: "Join the site's control plane, with a one-time token"},
		func(ctx context.Context, in *struct{ Body MemberJoin }) (MemberPapers, error) {
			httpapi.Concerns(ctx, "member/"+in.Body.Member)
			return j.JoinMember(ctx, in.Body)
		})
}

func registerMembers(s *httpapi.Server, a Service) {
	operators := []identity.Role{identity.Operator}
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: prefix + "/members", Summary: "List the machines of the control plane", Roles: []identity.Role{identity.Operator, identity.Auditor}},
		func(ctx context.Context, _ *httpapi.Empty) ([]Member, error) { return a.Members(ctx) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: prefix + "/members", Summary: "Make a one-time token with which a machine may join the control plane", Roles: operators, Status: http.StatusCreated, Unkeyed: true},
		func(ctx context.Context, in *struct{ Body NewMember }) (Invite, error) {
			httpapi.Concerns(ctx, "member/"+in.Body.Name)
			return a.InviteMember(ctx, in.Body)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: http.MethodDelete, Path: prefix + "/members/{name}", Summary: "Remove a machine from the control plane", Roles: operators},
		func(ctx context.Context, in *struct {
			Name string `path:"name"`
		}) error {
			httpapi.Concerns(ctx, "member/"+in.Name)
			return a.RemoveMember(ctx, in.Name)
		})
}

// Members implements Service.
func (c *Client) Members(ctx context.Context) (out []Member, err error) {
	err = c.c.Call(ctx, http.MethodGet, prefix+"/members", nil, nil, &out)
	return out, err
}

// InviteMember implements Service.
func (c *Client) InviteMember(ctx context.Context, r NewMember) (out Invite, err error) {
	err = c.c.Call(ctx, http.MethodPost, prefix+"/members", nil, r, &out)
	return out, err
}

// RemoveMember implements Service.
func (c *Client) RemoveMember(ctx context.Context, name string) error {
	return c.c.Call(ctx, http.MethodDelete, prefix+"/members/"+url.PathEscape(name), nil, nil, nil)
}

// JoinMember implements Joining.
func (c *Client) JoinMember(ctx context.Context, r MemberJoin) (out MemberPapers, err error) {
	err = c.c.Call(ctx, http.MethodPost, JoinPath, nil, r, &out)
	return out, err
}
