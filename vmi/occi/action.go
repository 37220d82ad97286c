package occi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/occi/rendering"
)

// restartTime bounds a restart, of which the start must not be lost when the client goes.
const restartTime = 5 * time.Minute

// create computes, all or none of them, and start them.
func (h *handler) create(ctx context.Context, c *catalogue, es []rendering.Entity, key string) ([]vmi.VEE, error) {
	in := vmi.Initialize{Model: vmi.TwoPhase, IdempotencyKey: key}
	for i, e := range es {
		v, err := c.order(e, h.Networks)
		if err != nil && len(es) > 1 {
			err = fmt.Errorf("resources[%d]: %w", i, err)
		}
		if err != nil {
			return nil, err
		}
		in.VEEs = append(in.VEEs, v)
	}
	made, err := h.Service.InitializeVEEs(ctx, in)
	if err != nil {
		return nil, err
	}
	var fresh []vee.ID
	for _, v := range made.VEEs {
		httpapi.Concerns(ctx, string(v.ID))
		if !v.Submitted && !gone(v) { // a repeated call finds them started
			fresh = append(fresh, v.ID)
		}
	}
	if len(fresh) == 0 {
		return made.VEEs, nil
	}
	outs, err := h.Service.SubmitVEEs(ctx, fresh)
	if err == nil {
		err = failed(outs)
	}
	if err != nil {
		_, e := h.Service.UpdateState(context.WithoutCancel(ctx), vmi.UpdateState{Collection: vmi.Collection{IDs: fresh}, Action: vee.Destroy})
		if e != nil {
			h.Log.Warn("computes that could not be started are left behind", "vees", fresh, "err", e)
		}
		return nil, err
	}
	for i, v := range made.VEEs { // as they are now
		if made.VEEs[i], err = h.Service.GetVEE(ctx, v.ID); err != nil {
			return nil, err
		}
	}
	return made.VEEs, nil
}

// failed is the first failure of a collection method, and how many there are.
func failed(outs []vmi.Outcome) error {
	var bad []vmi.Outcome
	for _, o := range outs {
		if !o.OK {
			bad = append(bad, o)
		}
	}
	switch {
	case len(bad) == 0:
		return nil
	case len(outs) == 1:
		return fault.New(fault.Code(bad[0].Code), "%s", bad[0].Detail)
	}
	return fault.New(fault.Code(bad[0].Code), "%d of %d failed: %s: %s", len(bad), len(outs), bad[0].ID, bad[0].Detail)
}

// methods of an action; the first is the usual one.
var methods = map[string][]string{
	"stop":    {"graceful", "acpioff", "poweroff"},
	"restart": {"graceful", "warm", "cold"},
	"suspend": {"hibernate", "suspend"},
}

// invoke an action on computes.
func (h *handler) invoke(ctx context.Context, vees []vmi.VEE, in rendering.Invocation, key string) error {
	term := in.Action.Term()
	if term == "save" {
		return fault.New(fault.Unsupported, "action save: the site makes no OS template of a compute").
			Try("push an image as one: reservoir image push")
	}
	method := ""
	if ms := methods[term]; ms != nil {
		method = ms[0]
		if m, ok := in.Attributes["method"]; ok {
			if method, ok = m.(string); !ok || !slices.Contains(ms, method) {
				return fault.New(fault.Malformed, "action %s: method %v: want one of %v", term, m, ms)
			}
		}
	}
	for name := range in.Attributes {
		if name != "method" || method == "" {
			return fault.New(fault.Malformed, "action %s has no attribute %s", term, name)
		}
	}
	var ids, fresh []vee.ID
	for _, v := range vees {
		if term == "start" && v.State == vee.Initial {
			fresh = append(fresh, v.ID)
			continue
		}
		ids = append(ids, v.ID)
	}
	switch term {
	case "start":
		if len(fresh) > 0 {
			outs, err := h.Service.SubmitVEEs(ctx, fresh)
			if err == nil {
				err = failed(outs)
			}
			if err != nil {
				return err
			}
		}
		return h.update(ctx, ids, vee.Activate, false, key)
	case "stop":
		return h.update(ctx, ids, vee.Shutdown, false, key)
	case "suspend":
		if method == "suspend" {
			return h.update(ctx, ids, vee.Pause, false, key)
		}
		return h.update(ctx, ids, vee.Suspend, false, key)
	case "restart":
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restartTime)
		defer cancel()
		for _, v := range vees {
			if v.State != vee.Active {
				return fault.New(fault.WrongState, "compute %s is %s: only an active one can be restarted", v.ID, computeState(v))
			}
		}
		if err := h.update(ctx, ids, vee.Shutdown, true, ""); err != nil {
			return err
		}
		return h.update(ctx, ids, vee.Activate, false, "")
	}
	return fault.New(fault.Malformed, "a compute has no action %s", term)
}

func (h *handler) update(ctx context.Context, ids []vee.ID, a vee.Action, wait bool, key string) error {
	const most = 1000 // that one call may carry
	if len(ids) > most {
		key = "" // it names one call
	}
	httpapi.Concerns(ctx, string(a))
	for _, id := range ids {
		httpapi.Concerns(ctx, string(id))
	}
	for part := range slices.Chunk(ids, most) {
		outs, err := h.Service.UpdateState(ctx, vmi.UpdateState{Collection: vmi.Collection{IDs: part}, Action: a, Wait: wait, IdempotencyKey: key})
		if err == nil {
			err = failed(outs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fixed says why an action of another kind than compute changes nothing: OCCI has every
// implementation offer them, and lets it refuse what is not applicable (GFD.221, "Action").
func fixed(kind rendering.TypeID) error {
	switch kind {
	case kindStorage:
		return fault.New(fault.WrongState, "a disk is online while its compute is active, and only then").Try("start or stop the compute that it is linked to")
	case kindNetwork:
		return fault.New(fault.WrongState, "the site's networks are always up").Try("stop the computes that are plugged into it")
	}
	return refuse(http.StatusBadRequest, "entities of kind %s have no actions", kind)
}

func ids(vees ...vmi.VEE) []vee.ID {
	out := make([]vee.ID, len(vees))
	for i, v := range vees {
		out[i] = v.ID
	}
	return out
}
