package peer

import (
	"context"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Move of a VEE between two sites, as its source's control plane asks the destination's to
// make room. "Custody may be at the other site" is in the source's log before.
type Move struct {
	ID   string            `json:"id"` // one attempt; never used again
	VEE  vmi.InitializeVEE `json:"vee"`
	Cold bool              `json:"cold,omitempty"`
	// Epoch that it runs under at the source.
	Epoch vee.Epoch `json:"epoch"`
	// From is the SPIFFE ID of the source's host, which alone may open the door.
	From      string    `json:"from"`
	Bandwidth vee.Bytes `json:"bandwidthBytes,omitempty"`
}

// Door is what the source's host needs to come in, once.
type Door struct {
	Move string `json:"move"`
	// To is the SPIFFE ID of the destination's host.
	To string `json:"to"`
	// Relay ticket for the destination's proxy, and the ticket for the host behind it.
	Relay  string `json:"relay"`
	Ticket string `json:"ticket"`
}

// MoveState is what became of a move, as the destination's log has it.
type MoveState struct {
	Move  string    `json:"move"`
	VEE   vee.ID    `json:"vee"`
	State string    `json:"state" enum:"open,taken,void"`
	Epoch vee.Epoch `json:"epoch,omitzero"`
	Error string    `json:"error,omitempty"`
}

// Moves of VEEs between the caller's site and this one.
type Moves interface {
	// OpenMove has room made and a door opened. Errors: Denied, NoResources, Unsupported,
	// Conflict.
	OpenMove(ctx context.Context, m Move) (Door, error)
	// GetMove that was opened; NotFound means that it never was.
	GetMove(ctx context.Context, id string) (MoveState, error)
	// CloseMove before it was taken: nothing of it will ever be taken afterwards. The
	// answer is void, or taken if it was too late.
	CloseMove(ctx context.Context, id string) (MoveState, error)
}
