package cli

import (
	"context"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func (f fakeVEEM) ArmHost(ctx context.Context, name string, armed bool) (vmi.Host, error) {
	h, err := f.GetHost(ctx, name)
	h.HA.Disarmed = !armed
	return h, err
}

// The fake's hosts answer, and are not fenced.
func (f fakeVEEM) ClaimVEE(ctx context.Context, id vee.ID, c vmi.Claim) (vmi.VEE, error) {
	v, err := f.GetVEE(ctx, id)
	switch {
	case err != nil:
		return v, err
	case !c.Fenced:
		return v, fault.New(fault.Malformed, "fenced: nothing is claimed").Try("switch its host off, and then: reservoir vee claim %s --i-fenced-it", id)
	case v.Host != "":
		return v, fault.New(fault.WrongState, "host %s, where VEE %s is, answers: it is not fenced", v.Host, id).Try("reservoir vee migrate %s", id)
	}
	return v, nil
}
