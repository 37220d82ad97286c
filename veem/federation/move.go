package federation

import (
	"context"
	"fmt"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/agreement"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Operations of a host that live migrations may come to and leave, and cold ones.
const (
	opMigrate     = "migrate"
	opMigrateCold = "migrate-cold"
)

// crossing reports whether a is about a migration over the border, or has one given up that is
// under way and wants nothing else. v is the VEE as the partner shows it, nil for none.
func crossing(a vhi.Assignment, v *vmi.VEE) bool {
	if a.Move != nil || a.Power == vhi.Incoming {
		return true
	}
	return a.Power != vhi.Absent && v != nil && v.Move != nil && v.Phase == vee.PhaseMigrate && v.Target == targets[a.Power]
}

// expected reports whether the partner makes room for a VEE that is not there yet.
func expected(v vmi.VEE) bool {
	return v.Phase == vee.PhaseMigrate && v.Move != nil && (v.Move.Stage == vhi.MoveWaiting || v.Move.Stage == vhi.MoveReceiving)
}

// move has the partner do its part of a migration.
func (p *Place) move(ctx context.Context, x peer.Partner, a vhi.Assignment) (vhi.Report, error) {
	cold := a.Move != nil && a.Move.Cold != ""
	needs := peer.CanMove
	if cold {
		needs = peer.CanMoveCold
	}
	if err := x.Hello.Needs(needs); err != nil {
		return vhi.Report{}, err
	}
	o := peer.MoveOrder{Assignment: a}
	if a.Power == vhi.Incoming {
		agreed, err := x.Lends(p.cfg.Now())
		if err == nil {
			err = agreement.AllowsMove(agreed, !cold)
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
