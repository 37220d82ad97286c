package federation

import (
	"context"
	"fmt"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// opMigrate is the operation of a host that live migrations may come to and leave.
const opMigrate = "migrate"

// crossing reports whether a is about a live migration over the border, or has one given up
// that is under way. v is the VEE as the partner shows it, nil for none.
func crossing(a vhi.Assignment, v *vmi.VEE) bool {
	if a.Move != nil || a.Power == vhi.Incoming {
		return true
	}
	return a.Power == vhi.Running && v != nil && v.Move != nil && v.Phase == vee.PhaseMigrate
}

// expected reports whether the partner makes room for a VEE that is not there yet.
func expected(v vmi.VEE) bool {
	return v.Phase == vee.PhaseMigrate && v.Move != nil && (v.Move.Stage == vhi.MoveWaiting || v.Move.Stage == vhi.MoveReceiving)
}

// move has the partner do its part of a live migration.
func (p *Place) move(ctx context.Context, x peer.Partner, a vhi.Assignment) (vhi.Report, error) {
	if err := x.Hello.Needs(peer.CanMove); err != nil {
		return vhi.Report{}, err
	}
	o := peer.MoveOrder{Assignment: a}
	if a.Power == vhi.Incoming {
		agreed, err := x.Lends(p.cfg.Now())
		if err == nil && !agreed.Movable.Live {
			err = fault.New(fault.Denied, "agreement %s lets no VEE cross to site %s while it runs", agreed.ID, x.Name)
		}
		if err != nil {
			return vhi.Report{}, fault.New(fault.Denied, "%w", err)
		}
		o.Agreement = agreed.ID
	} else {
		o.Agreement = p.agreement(x)
	}
	v, err := x.Site.PutMove(ctx, o)
	if err != nil {
		return vhi.Report{}, fmt.Errorf("have site %s move VEE %s: %w", x.Name, a.VEE, err)
	}
	return report(v), nil
}
