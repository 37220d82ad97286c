package vmi

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Network that the NICs of a group's VEEs may name: a virtual area network of the group, or
// one of the site's own, which every group shares.
type Network struct {
	Name     string `json:"name"`              // unique within the group
	GroupID  string `json:"groupID,omitempty"` // empty: the site's own
	Customer string `json:"customer,omitempty"`
	// Wish is what was asked for; what follows is what came of it.
	Wish NetworkWish `json:"wish,omitzero"`

	ID      string `json:"id,omitempty"` // of its segments
	Version uint64 `json:"version,omitempty"`
	Public  bool   `json:"public,omitempty"` // the site's own: its users reach it
	// VNI is its VXLAN identifier, which no other network of the site has; 0 where Public.
	VNI      uint32         `json:"vni,omitempty"`
	Subnets  []netip.Prefix `json:"subnets,omitempty"`  // at most one of each family
	Gateways []netip.Addr   `json:"gateways,omitempty"` // in the same order
	MTU      int            `json:"mtu,omitempty"`      // bytes
	NICs     int            `json:"nics"`               // of VEEs, that are on it
	// Leaving: it was deleted, and its identifier and subnets are free when no host can hold
	// anything of it any more.
	Leaving bool `json:"leaving,omitempty"`
}

// NetworkWish is what whoever makes a network may choose.
type NetworkWish struct {
	// Subnet is an IPv4 prefix of /16 to /29. It may be one that other groups have too; that
	// is why it has to be asked for. None: one that nobody else at the site has.
	Subnet netip.Prefix `json:"subnet,omitzero"`
	IPv6   bool         `json:"ipv6,omitempty" doc:"an IPv6 subnet too"`
	MTU    int          `json:"mtu,omitempty" minimum:"0" doc:"bytes; 0: the site's"`
}

// NetworkView is a network with its ports, as its hosts are told.
type NetworkView struct {
	Network
	Domain string      `json:"domain,omitempty"`
	Ports  []plan.Port `json:"ports"`
	// Hosts that it is at, with the version that each holds.
	Hosts map[string]uint64 `json:"hosts,omitempty"`
}

// Networks of the groups and of the site.
type Networks interface {
	// PutNetwork makes one or changes its wish; idempotent. Errors: Malformed; Exists, a
	// subnet of the group's or the site's own overlaps; InUse, VEEs are on it and the change
	// is one that they would not survive; NoResources; Denied.
	PutNetwork(ctx context.Context, n Network) (Network, error)
	// DeleteNetwork of a group. Errors: InUse while a VEE is on it, NotFound, Denied.
	DeleteNetwork(ctx context.Context, groupID, name string) error
	// ListNetworks of a group and the site's own; no group: all that the caller sees.
	ListNetworks(ctx context.Context, groupID string) ([]Network, error)
	// GetNetwork of a group, or what a group has on one of the site's own; NotFound.
	GetNetwork(ctx context.Context, groupID, name string) (NetworkView, error)
	// NetworkPlan of the same, host by host.
	NetworkPlan(ctx context.Context, groupID, name string) ([]vhi.NetworkPlan, error)
}

const networksPath = "/vmi/v1/networks"

func registerNetworks(s *httpapi.Server, svc Networks) {
	type input struct {
		Name  string `path:"name"`
		Group string `query:"group" doc:"whose network, or whose part of a network of the site's"`
	}
	const path = "/vmi/v1/groups/{group}/networks/{name}"
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: path, Summary: "Make or change a network of a group", Roles: writers},
		func(ctx context.Context, in *struct {
			Group string `path:"group"`
			Name  string `path:"name"`
			Body  Network
		}) (Network, error) {
			if in.Body.GroupID != in.Group || in.Body.Name != in.Name {
				return Network{}, fault.New(fault.Malformed, "the path names network %s/%s, the body %s/%s", in.Group, in.Name, in.Body.GroupID, in.Body.Name)
			}
			httpapi.Concerns(ctx, in.Group+"/"+in.Name)
			return svc.PutNetwork(ctx, in.Body)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "DELETE", Path: path, Summary: "Remove a network that no VEE is on", Roles: writers},
		func(ctx context.Context, in *pointInput) error {
			httpapi.Concerns(ctx, in.Group+"/"+in.Name)
			return svc.DeleteNetwork(ctx, in.Group, in.Name)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: networksPath, Summary: "List networks", Roles: readers},
		func(ctx context.Context, in *struct {
			Group string `query:"group" doc:"only those of this group, and the site's own"`
		}) ([]Network, error) {
			return svc.ListNetworks(ctx, in.Group)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: networksPath + "/{name}", Summary: "One network with its ports", Roles: readers},
		func(ctx context.Context, in *input) (NetworkView, error) {
			return svc.GetNetwork(ctx, in.Group, in.Name)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: networksPath + "/{name}/plan", Summary: "What each host's kernel holds of a network, and should", Roles: overseers},
		func(ctx context.Context, in *input) ([]vhi.NetworkPlan, error) {
			return svc.NetworkPlan(ctx, in.Group, in.Name)
		})
}

func networkURL(group, name string) string {
	return "/vmi/v1/groups/" + url.PathEscape(group) + "/networks/" + url.PathEscape(name)
}

func groupQuery(group string) url.Values {
	if group == "" {
		return nil
	}
	return url.Values{"group": {group}}
}

func (c client) PutNetwork(ctx context.Context, n Network) (out Network, err error) {
	err = c.c.Call(ctx, http.MethodPut, networkURL(n.GroupID, n.Name), nil, n, &out)
	return out, err
}

func (c client) DeleteNetwork(ctx context.Context, groupID, name string) error {
	return c.c.Call(ctx, http.MethodDelete, networkURL(groupID, name), nil, nil, nil)
}

func (c client) ListNetworks(ctx context.Context, groupID string) (out []Network, err error) {
	err = c.c.Call(ctx, http.MethodGet, networksPath, groupQuery(groupID), nil, &out)
	return out, err
}

func (c client) GetNetwork(ctx context.Context, groupID, name string) (out NetworkView, err error) {
	err = c.c.Call(ctx, http.MethodGet, networksPath+"/"+url.PathEscape(name), groupQuery(groupID), nil, &out)
	return out, err
}

func (c client) NetworkPlan(ctx context.Context, groupID, name string) (out []vhi.NetworkPlan, err error) {
	err = c.c.Call(ctx, http.MethodGet, networksPath+"/"+url.PathEscape(name)+"/plan", groupQuery(groupID), nil, &out)
	return out, err
}
