package agent

import (
	"context"
	"errors"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/guard"
	"github.com/reservoir-cloud/reservoir/agent/lease"
	"github.com/reservoir-cloud/reservoir/agent/vet"
	"github.com/reservoir-cloud/reservoir/hypervisor/qemu"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vhi/peer"
)

// openLeases of this host. Its guard need not run yet.
func (a *agent) openLeases() (err error) {
	a.leases, err = lease.Open(lease.Config{
		Dir: a.cfg.Dir, Host: a.cfg.Name, Guard: guard.Client{Dir: a.cfg.Dir}, Timings: a.cfg.timings(),
		Ask: a.askWitness, Now: guard.Now, Log: a.cfg.Log,
		Changed: func() {
			if a.tracker != nil {
				a.tracker.Nudge()
			}
		},
	})
	return err
}

// rights that VEEs under lease need: nil where nothing would end their guests in time.
func (a *agent) rights() vet.Leases {
	if !a.canGuard() {
		return nil
	}
	return a.leases
}

// canGuard: the driver hands its guests' processes to the guard before they run.
func (a *agent) canGuard() bool { return a.leases != nil && a.info.Name == qemu.Name }

// guardGuest is told by the driver of a process that is to run a guest.
func (a *agent) guardGuest(ctx context.Context, id vee.ID, pid int) error {
	if !a.tracker.Leased(id) {
		return nil
	}
	return a.leases.Hold(ctx, id, pid)
}

// guardAdopted has the guard hold the guests that an earlier agent has left, as it does
// already unless it has lost its memory. One that it does not take is not to run.
func (a *agent) guardAdopted(ctx context.Context) error {
	if !a.canGuard() {
		return nil
	}
	seen, err := a.driver.Observe(ctx)
	if err != nil {
		return err
	}
	for _, o := range seen {
		if o.PID == 0 || !a.tracker.Leased(o.ID) {
			continue
		}
		if err := a.holdSoon(ctx, o.ID, o.PID); err != nil {
			a.cfg.Log.Warn("a guest is ended", "vee", o.ID, "err", err)
			if err := a.driver.Stop(ctx, o.ID, o.Epoch, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// holdSoon is Hold that waits for a guard which is being started too, but not for longer
// than its guests may live without one.
func (a *agent) holdSoon(ctx context.Context, id vee.ID, pid int) error {
	for end := guard.Now() + a.cfg.timings().Lease; ; {
		err := a.leases.Hold(ctx, id, pid)
		if err == nil || errors.Is(err, guard.ErrRefused) || guard.Now() >= end {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (a *agent) keepLeases(ctx context.Context) {
	if a.leases != nil {
		a.leases.Run(ctx)
	}
}

func (a *agent) leaseStatus() vhi.LeaseStatus {
	if a.leases == nil {
		return vhi.LeaseStatus{Degraded: "its guests are simulated"}
	}
	s := a.leases.Status()
	if !a.canGuard() {
		s.Guarded, s.Degraded = false, "driver "+a.info.Name+" does not put guests under guard"
	}
	return s
}

// askWitness whether it has lost the control plane.
func (a *agent) askWitness(ctx context.Context, witness, address string, q ownership.Ask) (ownership.Lost, bool) {
	w, err := peer.NewWitnessClient(a.toPeer(witness, address)).Witness(ctx, q)
	if err != nil || w.Lost == nil {
		return ownership.Lost{}, false
	}
	return *w.Lost, true
}

// Witness implements peer.Witness.
func (a *agent) Witness(_ context.Context, q ownership.Ask) (peer.Word, error) {
	if a.leases == nil {
		return peer.Word{}, nil
	}
	if l, lost := a.leases.Asked(q); lost {
		return peer.Word{Lost: &l}, nil
	}
	return peer.Word{}, nil
}
