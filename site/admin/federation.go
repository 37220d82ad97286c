package admin

import (
	"context"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
	"github.com/reservoir-cloud/reservoir/veem/federation/partners"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// NewPartnerInvite asks for a token with which another site may become a partner, once.
type NewPartnerInvite struct {
	Site  string `json:"site,omitempty" doc:"the only site that may use it; empty: any"`
	TTLMS int64  `json:"ttlMs,omitempty" minimum:"0" doc:"lifetime, ms; 0: one hour"`
}

// PartnerToken is one that another site has given out.
type PartnerToken struct {
	Token string `json:"token" minLength:"1" maxLength:"2048"`
}

// Leaving a partnership.
type Leaving struct {
	Force bool `json:"force,omitempty" doc:"one-sided, whatever the partner says and whatever runs there"`
}

// Reason for people.
type Reason struct {
	Reason string `json:"reason,omitempty" maxLength:"1000"`
}

// Rotate the key of the site's authority.
type Rotate struct {
	Now bool `json:"now,omitempty" doc:"without waiting for hosts and partners to know the new one"`
}

// Way to be tried: to a partner, or to the site that gave out a token.
type Way struct {
	Partner string `json:"partner,omitempty"`
	Token   string `json:"token,omitempty" maxLength:"2048"`
}

// Proposal of an agreement. The terms' identifier is given by the site.
type Proposal struct {
	Partner string     `json:"partner"`
	Terms   peer.Terms `json:"terms"`
}

// Find asks the broker.
type Find struct {
	Requirement string    `json:"requirement,omitempty" maxLength:"4096" doc:"CEL over the fields of a site"`
	Order       string    `json:"order,omitempty" enum:",overflow,cost,location,energy,heat"`
	VCPUs       int       `json:"vcpus,omitempty" minimum:"0" doc:"of a VEE that there is to be room for"`
	Memory      vee.Bytes `json:"memoryBytes,omitempty" minimum:"0"`
	Disk        vee.Bytes `json:"diskBytes,omitempty" minimum:"0"`
	Count       int       `json:"count,omitempty" minimum:"0" maximum:"10000"`
	Users       *Users    `json:"users,omitempty" doc:"where the users of a service are"`
}

// Users are at a point on Earth, degrees.
type Users struct {
	Latitude  float64 `json:"latitude" minimum:"-90" maximum:"90"`
	Longitude float64 `json:"longitude" minimum:"-180" maximum:"180"`
}

// Published is what an operator says of the site.
type Published struct {
	Power      string  `json:"power"` // normal, scarce, failing
	GramsKWh   float64 `json:"gramsPerKWh"`
	HeatWanted float64 `json:"heatWanted"` // part of the waste heat that somebody wants, 0 to 1
}

// Publish changes Published; what is absent stays as it is.
type Publish struct {
	Power      *string  `json:"power,omitempty" enum:"normal,scarce,failing"`
	GramsKWh   *float64 `json:"gramsPerKWh,omitempty" minimum:"0"`
	HeatWanted *float64 `json:"heatWanted,omitempty" minimum:"0" maximum:"1"`
}

// Federation is the operator's interface to what a site has with others.
type Federation interface {
	InvitePartner(ctx context.Context, r NewPartnerInvite) (partners.Invitation, error)
	// AcceptPartner makes the site that gave out the token a partner. Errors: TokenInvalid,
	// Unavailable, Denied, Exists.
	AcceptPartner(ctx context.Context, r PartnerToken) (partners.Shown, error)
	ListPartners(ctx context.Context) ([]partners.Shown, error)
	GetPartner(ctx context.Context, name string) (partners.Shown, error)
	// LeavePartner. Errors: InUse (agreements are not over), Unavailable (it is not reached).
	LeavePartner(ctx context.Context, name string, r Leaving) error
	RevokePartner(ctx context.Context, name string, r Reason) error
	// RotateAuthority begins the replacement of the authority's key, or tells how far it is.
	RotateAuthority(ctx context.Context, r Rotate) (partners.Rotation, error)
	Preflight(ctx context.Context, r Way) ([]partners.Check, error)
	ProposeAgreement(ctx context.Context, r Proposal) (partners.Agreed, error)
	SignAgreement(ctx context.Context, id string) (partners.Agreed, error)
	EndAgreement(ctx context.Context, id string, r Reason) (partners.Agreed, error)
	ListAgreements(ctx context.Context) ([]partners.Agreed, error)
	GetAgreement(ctx context.Context, id string) (partners.Agreed, error)
	FindSites(ctx context.Context, r Find) (broker.Answer, error)
	// Published is what partners are told of the site beside what it is and has free.
	Published(ctx context.Context) (Published, error)
	// Publish changes it; it outlives restarts, and partners are told at once.
	Publish(ctx context.Context, p Publish) (Published, error)
}

const (
	partnersPath   = prefix + "/partners"
	agreementsPath = prefix + "/agreements"
	publishedPath  = prefix + "/published"
)

// RegisterFederation serves f to the site's operators.
func RegisterFederation(s *httpapi.Server, f Federation) {
	type named struct {
		Name string `path:"name"`
	}
	type numbered struct {
		ID string `path:"id"`
	}
	operators, overseers := []identity.Role{identity.Operator}, []identity.Role{identity.Operator, identity.Auditor}

	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: partnersPath + "/invites", Summary: "Make a one-time token with which another site may become a partner", Roles: operators, Status: http.StatusCreated, Unkeyed: true},
		func(ctx context.Context, in *struct{ Body NewPartnerInvite }) (partners.Invitation, error) {
			httpapi.Concerns(ctx, "partner/"+in.Body.Site)
			return f.InvitePartner(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: partnersPath, Summary: "Become a partner of the site that gave out a token", Roles: operators, Status: http.StatusCreated, Unkeyed: true},
		func(ctx context.Context, in *struct{ Body PartnerToken }) (partners.Shown, error) {
			out, err := f.AcceptPartner(ctx, in.Body)
			httpapi.Concerns(ctx, "partner/"+out.Name)
			return out, err
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: partnersPath, Summary: "List partners", Roles: overseers},
		func(ctx context.Context, _ *httpapi.Empty) ([]partners.Shown, error) { return f.ListPartners(ctx) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: partnersPath + "/{name}", Summary: "One partner", Roles: overseers},
		func(ctx context.Context, in *named) (partners.Shown, error) { return f.GetPartner(ctx, in.Name) })
	httpapi.RegisterNoBody(s, httpapi.Op{Method: http.MethodPost, Path: partnersPath + "/{name}/leave", Summary: "End a partnership", Roles: operators},
		func(ctx context.Context, in *struct {
			Name string `path:"name"`
			Body Leaving
		}) error {
			httpapi.Concerns(ctx, "partner/"+in.Name)
			return f.LeavePartner(ctx, in.Name, in.Body)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: http.MethodPost, Path: partnersPath + "/{name}/revoke", Summary: "Trust a partner no longer, at once", Roles: operators},
		func(ctx context.Context, in *struct {
			Name string `path:"name"`
			Body Reason
		}) error {
			httpapi.Concerns(ctx, "partner/"+in.Name)
			return f.RevokePartner(ctx, in.Name, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: prefix + "/authority/rotate", Summary: "Replace the key of the site's authority, step by step", Roles: operators},
		func(ctx context.Context, in *struct{ Body Rotate }) (partners.Rotation, error) {
			httpapi.Concerns(ctx, "authority")
			return f.RotateAuthority(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: prefix + "/preflight", Summary: "Go the way to a partner step by step", Roles: overseers},
		func(ctx context.Context, in *struct{ Body Way }) ([]partners.Check, error) {
			return f.Preflight(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: agreementsPath, Summary: "Propose a framework agreement to a partner", Roles: operators, Status: http.StatusCreated},
		func(ctx context.Context, in *struct{ Body Proposal }) (partners.Agreed, error) {
			out, err := f.ProposeAgreement(ctx, in.Body)
			httpapi.Concerns(ctx, "agreement/"+out.ID)
			return out, err
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: agreementsPath + "/{id}/sign", Summary: "Sign an agreement that a partner has proposed", Roles: operators},
		func(ctx context.Context, in *numbered) (partners.Agreed, error) {
			httpapi.Concerns(ctx, "agreement/"+in.ID)
			return f.SignAgreement(ctx, in.ID)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: agreementsPath + "/{id}/end", Summary: "End an agreement, with its notice", Roles: operators},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body Reason
		}) (partners.Agreed, error) {
			httpapi.Concerns(ctx, "agreement/"+in.ID)
			return f.EndAgreement(ctx, in.ID, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: agreementsPath, Summary: "List agreements", Roles: overseers},
		func(ctx context.Context, _ *httpapi.Empty) ([]partners.Agreed, error) { return f.ListAgreements(ctx) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: agreementsPath + "/{id}", Summary: "One agreement", Roles: overseers},
		func(ctx context.Context, in *numbered) (partners.Agreed, error) { return f.GetAgreement(ctx, in.ID) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodPost, Path: prefix + "/find", Summary: "Ask the broker which sites fit, and why the others do not", Roles: overseers},
		func(ctx context.Context, in *struct{ Body Find }) (broker.Answer, error) {
			return f.FindSites(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: http.MethodGet, Path: publishedPath, Summary: "What the operator says of the site to partners", Roles: overseers},
		func(ctx context.Context, _ *httpapi.Empty) (Published, error) { return f.Published(ctx) })
	httpapi.Register(s, httpapi.Op{Method: http.MethodPatch, Path: publishedPath, Summary: "Change what the operator says of the site to partners", Roles: operators},
		func(ctx context.Context, in *struct{ Body Publish }) (Published, error) {
			httpapi.Concerns(ctx, "published")
			return f.Publish(ctx, in.Body)
		})
}

// FederationClient implements Federation over HTTP.
type FederationClient struct{ c *httpapi.Client }

// NewFederationClient speaks to the site that c calls.
func NewFederationClient(c *httpapi.Client) *FederationClient { return &FederationClient{c} }

var _ Federation = (*FederationClient)(nil)

func ask[T any](ctx context.Context, c *httpapi.Client, method, path string, in any) (out T, err error) {
	err = c.Call(ctx, method, path, nil, in, &out)
	return out, err
}

func onePartner(name, sub string) string { return partnersPath + "/" + url.PathEscape(name) + sub }
func oneAgreement(id, sub string) string { return agreementsPath + "/" + url.PathEscape(id) + sub }

// InvitePartner implements Federation.
func (c *FederationClient) InvitePartner(ctx context.Context, r NewPartnerInvite) (partners.Invitation, error) {
	return ask[partners.Invitation](ctx, c.c, http.MethodPost, partnersPath+"/invites", r)
}

// AcceptPartner implements Federation.
func (c *FederationClient) AcceptPartner(ctx context.Context, r PartnerToken) (partners.Shown, error) {
	return ask[partners.Shown](ctx, c.c, http.MethodPost, partnersPath, r)
}

// ListPartners implements Federation.
func (c *FederationClient) ListPartners(ctx context.Context) ([]partners.Shown, error) {
	return ask[[]partners.Shown](ctx, c.c, http.MethodGet, partnersPath, nil)
}

// GetPartner implements Federation.
func (c *FederationClient) GetPartner(ctx context.Context, name string) (partners.Shown, error) {
	return ask[partners.Shown](ctx, c.c, http.MethodGet, onePartner(name, ""), nil)
}

// LeavePartner implements Federation.
func (c *FederationClient) LeavePartner(ctx context.Context, name string, r Leaving) error {
	return c.c.Call(ctx, http.MethodPost, onePartner(name, "/leave"), nil, r, nil)
}

// RevokePartner implements Federation.
func (c *FederationClient) RevokePartner(ctx context.Context, name string, r Reason) error {
	return c.c.Call(ctx, http.MethodPost, onePartner(name, "/revoke"), nil, r, nil)
}

// RotateAuthority implements Federation.
func (c *FederationClient) RotateAuthority(ctx context.Context, r Rotate) (partners.Rotation, error) {
	return ask[partners.Rotation](ctx, c.c, http.MethodPost, prefix+"/authority/rotate", r)
}

// Preflight implements Federation.
func (c *FederationClient) Preflight(ctx context.Context, r Way) ([]partners.Check, error) {
	return ask[[]partners.Check](ctx, c.c, http.MethodPost, prefix+"/preflight", r)
}

// ProposeAgreement implements Federation.
func (c *FederationClient) ProposeAgreement(ctx context.Context, r Proposal) (partners.Agreed, error) {
	return ask[partners.Agreed](ctx, c.c, http.MethodPost, agreementsPath, r)
}

// SignAgreement implements Federation.
func (c *FederationClient) SignAgreement(ctx context.Context, id string) (partners.Agreed, error) {
	return ask[partners.Agreed](ctx, c.c, http.MethodPost, oneAgreement(id, "/sign"), nil)
}

// EndAgreement implements Federation.
func (c *FederationClient) EndAgreement(ctx context.Context, id string, r Reason) (partners.Agreed, error) {
	return ask[partners.Agreed](ctx, c.c, http.MethodPost, oneAgreement(id, "/end"), r)
}

// ListAgreements implements Federation.
func (c *FederationClient) ListAgreements(ctx context.Context) ([]partners.Agreed, error) {
	return ask[[]partners.Agreed](ctx, c.c, http.MethodGet, agreementsPath, nil)
}

// GetAgreement implements Federation.
func (c *FederationClient) GetAgreement(ctx context.Context, id string) (partners.Agreed, error) {
	return ask[partners.Agreed](ctx, c.c, http.MethodGet, oneAgreement(id, ""), nil)
}

// FindSites implements Federation.
func (c *FederationClient) FindSites(ctx context.Context, r Find) (broker.Answer, error) {
	return ask[broker.Answer](ctx, c.c, http.MethodPost, prefix+"/find", r)
}

// Published implements Federation.
func (c *FederationClient) Published(ctx context.Context) (Published, error) {
	return ask[Published](ctx, c.c, http.MethodGet, publishedPath, nil)
}

// Publish implements Federation.
func (c *FederationClient) Publish(ctx context.Context, p Publish) (Published, error) {
	return ask[Published](ctx, c.c, http.MethodPatch, publishedPath, p)
}
