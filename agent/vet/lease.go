package vet

import (
	"context"
	"errors"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// noLeases is a host that has no guard.
type noLeases struct{}

var errNoLeases = fault.New(fault.Unsupported, "this host cannot run VEEs that may be restarted elsewhere: nothing would end their guests in time").
	Try("use the driver qemu, and run a guard beside the agent: reservoir guard --help")

func (noLeases) May(context.Context, vee.ID, vee.Epoch) error          { return errNoLeases }
func (noLeases) Give(context.Context, vee.ID, string) (bool, error)    { return false, errNoLeases }
func (noLeases) Void(context.Context, vee.ID, vee.Epoch) error         { return errNoLeases }
func (noLeases) Open(context.Context, vee.ID, vee.Epoch) error         { return errNoLeases }
func (noLeases) Hold(context.Context, vee.ID, int) error               { return errNoLeases }
func (noLeases) Take(context.Context, vee.ID, string, vee.Epoch) error { return errNoLeases }

// may the step be done? Those after which vCPUs run need the host's right to run the VEE. A
// gift that was decided to be taken before a crash of the agent becomes that right here.
func (v *tracked) may(ctx context.Context, s step, a vhi.Assignment) error {
	if !a.Leased {
		return nil
	}
	switch s {
	case start, wake, resume:
	case take:
		if err := v.t.cfg.Leases.Take(ctx, a.VEE, "", a.Epoch); err != nil {
			return err
		}
	default:
		return nil
	}
	return v.t.cfg.Leases.May(ctx, a.VEE, a.Epoch)
}

// hold has the guest that runs held under guard, where that was asked for while it ran.
func (v *tracked) hold(ctx context.Context, a vhi.Assignment) error {
	v.mu.Lock()
	pid := v.seen.PID
	v.mu.Unlock()
	if err := v.t.cfg.Leases.Hold(ctx, a.VEE, pid); err != nil {
		return err
	}
	v.mu.Lock()
	v.held = pid
	v.mu.Unlock()
	v.t.cfg.Changed()
	return nil
}

// unheld: it is assigned under lease, and its process may not be under guard. v.mu is held.
func (v *tracked) unheld() bool { return v.want.Leased && v.seen.PID != 0 && v.held != v.seen.PID }

// errNotGiven is that a gift was never sent, and so is void.
var errNotGiven = errors.New("it was never given")

// giveLease writes the gift down where it is under lease, before it is sent.
func (v *tracked) giveLease(ctx context.Context, a vhi.Assignment) error {
	if !a.Leased {
		return nil
	}
	given, err := v.t.cfg.Leases.Give(ctx, a.VEE, a.Move.To)
	if err == nil && !given {
		return errNotGiven
	}
	return err
}
