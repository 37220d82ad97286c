package vmi

import (
	"context"
	"net/http"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Claim is a person's word about a VEE whose host does not answer.
type Claim struct {
	// Fenced: that host is off, or cut from its disks and networks for good; nothing of it
	// runs. It is for the person to be sure: if it is wrong the VEE runs twice.
	Fenced bool `json:"fenced"`
}

// HostHA is what a host is worth for VEEs that may be restarted elsewhere.
type HostHA struct {
	// Degraded says why guests could outlive their right to run here; empty: they cannot.
	Degraded string `json:"degraded,omitempty"`
	Disarmed bool   `json:"disarmed,omitempty"` // for maintenance: nothing of it is given away
	Fenced   bool   `json:"fenced,omitempty"`   // a person, or a power fence, says that it is off
	// PowerFence: the site can switch it off for certain when it does not answer.
	PowerFence bool `json:"powerFence,omitempty"`
	Witness    bool `json:"witness,omitempty"` // asked by others whether the control plane is lost
}

// Ownership is what people decide about who runs what.
type Ownership interface {
	// ArmHost lets a host's guests end when its lease does, and be restarted elsewhere, as
	// they are at first; or not, for maintenance. Errors: NotFound.
	ArmHost(ctx context.Context, name string, armed bool) (Host, error)
	// ClaimVEE settles a doubt: with Fenced, the VEEs of its host are restarted elsewhere.
	// Errors: WrongState while the host answers.
	ClaimVEE(ctx context.Context, id vee.ID, c Claim) (VEE, error)
}

func registerOwnership(s *httpapi.Server, svc Ownership) {
	type arm struct {
		Armed bool `json:"armed"`
	}
	httpapi.Register(s, httpapi.Op{Method: "PUT", Path: "/vmi/v1/hosts/{name}/armed", Summary: "Let a host's guests end with its lease, or not (maintenance)", Roles: operators},
		func(ctx context.Context, in *struct {
			Name string `path:"name"`
			Body arm
		}) (Host, error) {
			return svc.ArmHost(ctx, in.Name, in.Body.Armed)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vmi/v1/vees/{id}/claim", Summary: "Settle who runs a VEE whose host does not answer", Roles: operators},
		func(ctx context.Context, in *struct {
			ID   string `path:"id"`
			Body Claim
		}) (VEE, error) {
			return svc.ClaimVEE(ctx, vee.ID(in.ID), in.Body)
		})
}

func (c client) ArmHost(ctx context.Context, name string, armed bool) (out Host, err error) {
	err = c.c.Call(ctx, http.MethodPut, hostPath(name, "/armed"), nil, map[string]bool{"armed": armed}, &out)
	return out, err
}

func (c client) ClaimVEE(ctx context.Context, id vee.ID, in Claim) (out VEE, err error) {
	err = c.c.Call(ctx, http.MethodPost, veePath(id, "/claim"), nil, in, &out)
	return out, err
}
