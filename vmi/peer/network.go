package peer

import (
	"context"
	"net/netip"

	"github.com/reservoir-cloud/reservoir/van/plan"
)

// Network is a virtual area network of the caller's that has, or is to have, VEEs at this
// site. The caller is its primary: it alone gives addresses and says who is on it.
type Network struct {
	ID       string `json:"id"` // of its segment at the primary: "alpha.shop.back"
	Version  uint64 `json:"version"`
	GroupID  string `json:"groupID"`
	Customer string `json:"customer,omitempty"`
	Name     string `json:"name"`
	// TunnelVNI is the network's inside the tunnel between the two sites. The primary
	// proposes one that the pair does not use.
	TunnelVNI uint32         `json:"tunnelVNI"`
	Domain    string         `json:"domain,omitempty"`
	Subnets   []netip.Prefix `json:"subnets"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"`
	MTU       int            `json:"mtu"`
	Ports     []Port         `json:"ports"`
}

// Port of a shared network and the site that it is at. Host and Underlay of what is not at
// the reader's own site are empty: hosts are each site's own affair.
type Port struct {
	plan.Port
	Site string `json:"site"`
}

// Networks that two sites share.
type Networks interface {
	// PutNetwork is in effect at this site when it returns. One that is older than what the
	// site holds changes nothing and is no error. Errors: Conflict (the TunnelVNI is used),
	// Malformed, Denied.
	PutNetwork(ctx context.Context, n Network) error
	// RemoveNetwork of the caller's, by its ID. Errors: InUse while a VEE here is on it.
	RemoveNetwork(ctx context.Context, id string) error
	// HeldNetworks are those that the caller has shared here, and the version of each.
	HeldNetworks(ctx context.Context) (map[string]uint64, error)
}
