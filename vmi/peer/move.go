package peer

import (
	"context"

	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// MoveOrder is what the primary of a VEE wants of the receiving site in a live migration: the
// assignment that a host would get, with AtSite names in its Move. The power Incoming: have
// room made and a door opened; what comes is the receiver's when a host of it has taken it.
// Running with a Move: send it through that move's door. Running or Absent without a Move:
// give the attempt up, if that can be.
//
// It is level-triggered, as the VHI is: of two orders about a VEE the newer one by (Epoch,
// Seq) is obeyed, and any may be repeated.
type MoveOrder struct {
	vhi.Assignment
	// Agreement under which it is taken.
	Agreement string              `json:"agreement,omitempty"`
	Rules     []vmi.PlacementRule `json:"rules,omitempty"`
}

// Custody that the order stands for.
func (o MoveOrder) Custody() vmi.Custody {
	return vmi.Custody{Agreement: o.Agreement, Epoch: o.Epoch, Seq: o.Seq}
}

// Moves of VEEs between the caller's site and this one.
type Moves interface {
	// PutMove is on record when it returns, and answers with the VEE as it is here now: its
	// Move has a Door when a host waits. When the VEE is Destroyed under the order's Custody,
	// that is for ever: nothing of the move was taken here nor will be. Errors: StaleEpoch,
	// Denied, NoResources, Unsupported, WrongState, Conflict (it is here already).
	PutMove(ctx context.Context, o MoveOrder) (vmi.VEE, error)
}
