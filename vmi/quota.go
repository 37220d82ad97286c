package vmi

import (
	"context"
	"net/http"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Holdings are what a customer may have, or has: all its VEEs count from their
// initialisation until they are destroyed, whether they run or not, so that one that was
// stopped can always be started again.
type Holdings struct {
	VEEs   int       `json:"vees"`
	VCPUs  int       `json:"vcpus"`
	Memory vee.Bytes `json:"memoryBytes"`
	Disk   vee.Bytes `json:"diskBytes"`
}

// Plus adds, field by field.
func (h Holdings) Plus(o Holdings) Holdings {
	return Holdings{h.VEEs + o.VEEs, h.VCPUs + o.VCPUs, h.Memory + o.Memory, h.Disk + o.Disk}
}

// HoldingsOf one VEE with descriptor d.
func HoldingsOf(d vee.Descriptor) Holdings {
	r := d.Resources()
	return Holdings{VEEs: 1, VCPUs: d.VCPUs, Memory: r.Memory, Disk: r.Disk}
}

// Limits of a customer; nil: no limit.
type Limits struct {
	VEEs   *int       `json:"vees,omitempty" minimum:"0"`
	VCPUs  *int       `json:"vcpus,omitempty" minimum:"0"`
	Memory *vee.Bytes `json:"memoryBytes,omitempty" minimum:"0"`
	Disk   *vee.Bytes `json:"diskBytes,omitempty" minimum:"0"`
}

// Quota of a customer, and what it has.
type Quota struct {
	Customer string   `json:"customer"`
	Version  uint64   `json:"version,omitempty"` // 0: nobody has set one
	Limits   Limits   `json:"limits"`
	Used     Holdings `json:"used"`
}

// SetQuota is the parameter of SetQuota.
type SetQuota struct {
	Customer string `json:"-"`
	Limits   Limits `json:"limits"`
	// Version that the quota still has; 0: whatever it has. Over HTTP it is If-Match.
	Version uint64 `json:"-"`
}

// Quotas bound what the VEEs of each customer may take together. They are enforced when
// VEEs are initialised and when they are made larger; one that is lowered below what is
// used takes nothing away.
type Quotas interface {
	// SetQuota of a customer, all limits together. Errors: Conflict when it has another
	// version, Malformed, Denied.
	SetQuota(ctx context.Context, q SetQuota) (Quota, error)
	// GetQuota of a customer; one that nobody has set limits has none.
	GetQuota(ctx context.Context, customer string) (Quota, error)
	// ListQuotas of all customers that have a quota or VEEs, by name.
	ListQuotas(ctx context.Context) ([]Quota, error)
	// DeleteQuota takes a customer's limits away; NotFound.
	DeleteQuota(ctx context.Context, customer string) error
}

const quotasPath = "/vmi/v1/quotas"

func registerQuotas(s *httpapi.Server, svc Quotas) {
	type input struct {
		Customer string `path:"customer"`
	}
	const one = quotasPath + "/{customer}"
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: one, Summary: "Set what a customer's VEEs may take", Roles: operators},
		func(ctx context.Context, in *struct {
			Customer string `path:"customer"`
			Match    string `header:"If-Match" doc:"the version that the quota must still have"`
			Body     SetQuota
		}) (Quota, error) {
			var err error
			in.Body.Customer = in.Customer
			if in.Body.Version, err = httpapi.ParseMatch(in.Match); err != nil {
				return Quota{}, err
			}
			return svc.SetQuota(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: one, Summary: "What a customer's VEEs may take, and take", Roles: readers},
		func(ctx context.Context, in *input) (Quota, error) { return svc.GetQuota(ctx, in.Customer) })
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: quotasPath, Summary: "List quotas", Roles: []identity.Role{identity.Operator, identity.Auditor, identity.SiteRole}},
		func(ctx context.Context, _ *httpapi.Empty) ([]Quota, error) { return svc.ListQuotas(ctx) })
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: one, Summary: "Take a customer's limits away", Roles: operators},
		func(ctx context.Context, in *input) error { return svc.DeleteQuota(ctx, in.Customer) })
}

func quotaPath(customer string) string { return quotasPath + "/" + url.PathEscape(customer) }

func (c client) SetQuota(ctx context.Context, q SetQuota) (out Quota, err error) {
	err = c.c.Call(ctx, http.MethodPut, quotaPath(q.Customer), nil, q, &out, "If-Match", httpapi.Match(q.Version))
	return out, err
}

func (c client) GetQuota(ctx context.Context, customer string) (out Quota, err error) {
	err = c.c.Call(ctx, http.MethodGet, quotaPath(customer), nil, nil, &out)
	return out, err
}

func (c client) ListQuotas(ctx context.Context) (out []Quota, err error) {
	err = c.c.Call(ctx, http.MethodGet, quotasPath, nil, nil, &out)
	return out, err
}

func (c client) DeleteQuota(ctx context.Context, customer string) error {
	return c.c.Call(ctx, http.MethodDelete, quotaPath(customer), nil, nil, nil)
}
