package vmi

import (
	"context"
	"net/http"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Drain is the parameter of DrainHost.
type Drain struct {
	// Suspend VEEs that run and can go nowhere. Without it they are waited for.
	Suspend bool `json:"suspend,omitempty" doc:"suspend what runs there and can go nowhere"`
	// Off ends the host's agent, and switches the machine off where it was started with a
	// command for that, as soon as nothing runs there. It implies Suspend.
	Off bool `json:"off,omitempty" doc:"then end the host's agent, and switch the machine off where it knows how"`
}

// Evacuate is the parameter of PlanEvacuation and Evacuate.
type Evacuate struct {
	Host string `json:"host,omitempty" doc:"that is to be left; empty: every host of the site"`
	To   string `json:"to,omitempty" doc:"partner that the VEEs go to; empty: whichever takes them"`
	// DeadlineMS from now, by which all is to be done: what does not fit is not begun, and
	// what has not come through by then is cancelled.
	DeadlineMS int64 `json:"deadlineMs,omitempty" minimum:"0" doc:"by when, ms from now; 0: there is time"`
	Cold       bool  `json:"cold,omitempty" doc:"one that runs and cannot cross so is shut down for it, and boots there"`
}

// Rebalance is the parameter of PlanRebalance and Rebalance.
type Rebalance struct {
	Policy string `json:"policy,omitempty" enum:",balance,consolidate,cost" doc:"empty: the site's"`
}

// ReconfigurationState is what became of a plan.
type ReconfigurationState string

// States.
const (
	ReconfigurationPlanned ReconfigurationState = "planned" // nothing was done
	ReconfigurationRunning ReconfigurationState = "running"
	ReconfigurationDone    ReconfigurationState = "done"
	ReconfigurationStopped ReconfigurationState = "stopped" // Note says why
)

// Reconfiguration is a plan by which VEEs move, and how far it is.
type Reconfiguration struct {
	ID      string               `json:"id,omitempty"`
	Cause   string               `json:"cause"` // "drain", "rebalance" (asked for), "policy" (by the site itself), "evacuation"
	Policy  string               `json:"policy,omitempty"`
	State   ReconfigurationState `json:"state"`
	Started time.Time            `json:"started,omitzero"`
	Ended   *time.Time           `json:"ended,omitempty"`
	// Before and After are the policy's scores; the less the better.
	Before float64             `json:"before,omitempty"`
	After  float64             `json:"after,omitempty"`
	Steps  []ReconfigureStep   `json:"steps"`
	Stays  []ReconfigureRemain `json:"stays,omitempty"`
	Note   string              `json:"note,omitempty"`
	// Evacuation is what was asked for, and Deadline when it has to be done.
	Evacuation *Evacuate  `json:"evacuation,omitempty"`
	Deadline   *time.Time `json:"deadline,omitempty"`
	// Attempt counts the plans that were made for the same cause, from 1.
	Attempt int `json:"attempt,omitempty"`
}

// ReconfigureStep is one migration of a plan.
type ReconfigureStep struct {
	VEE   vee.ID `json:"vee"`
	Name  string `json:"name"`
	From  string `json:"from"`
	To    string `json:"to"`
	Cold  bool   `json:"cold,omitempty"`  // it goes stopped or suspended
	After []int  `json:"after,omitempty"` // steps that have to end before, from 0
	// StartMS and EndMS are estimates, since the plan's beginning.
	StartMS int64  `json:"startMs"`
	EndMS   int64  `json:"endMs"`
	State   string `json:"state,omitempty"` // waiting, running, done, failed
	// Bandwidth that the migration is held to, per second; 0: to none.
	Bandwidth vee.Bytes `json:"bandwidthBytes,omitempty"`
}

// ReconfigureRemain is a VEE that does not leave a host that is to be left, and why.
type ReconfigureRemain struct {
	VEE  vee.ID `json:"vee"`
	Name string `json:"name"`
	Host string `json:"host"`
	Why  string `json:"why"`
}

// Reconfigurations move VEEs for the site's own sake. Hosts are its own affair: operators
// do it, auditors look.
type Reconfigurations interface {
	// DrainHost lets a host take no VEE any more and has its VEEs leave it: live where that
	// is possible. It returns at once; the host is drained when its Drained says so.
	// SetHostState to HostOn takes it back. Errors: NotFound, Denied.
	DrainHost(ctx context.Context, name string, d Drain) (Host, error)
	// PlanRebalance says what Rebalance would do, and changes nothing.
	PlanRebalance(ctx context.Context, r Rebalance) (Reconfiguration, error)
	// Rebalance begins to move VEEs by a policy. Errors: InUse while another plan is being
	// applied.
	Rebalance(ctx context.Context, r Rebalance) (Reconfiguration, error)
	// PlanEvacuation says what Evacuate would do, and changes nothing.
	PlanEvacuation(ctx context.Context, e Evacuate) (Reconfiguration, error)
	// Evacuate begins to move VEEs to partner sites while they run, the most urgent first;
	// the hosts that are left take no VEE any more (SetHostState takes that back). Errors:
	// InUse while another plan is being applied, NotFound.
	Evacuate(ctx context.Context, e Evacuate) (Reconfiguration, error)
	// GetReconfiguration is the one under way, or the last one. Errors: NotFound.
	GetReconfiguration(ctx context.Context) (Reconfiguration, error)
	// StopReconfiguration begins no more of its steps. Errors: WrongState (none is under way).
	StopReconfiguration(ctx context.Context) (Reconfiguration, error)
}

const (
	rebalancePath  = "/vmi/v1/reconfiguration"
	evacuationPath = "/vmi/v1/evacuation"
)

func registerReconfigurations(s *httpapi.Server, svc Reconfigurations) {
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: "/vmi/v1/hosts/{name}/drain", Summary: "Have a host's VEEs leave it", Roles: operators, Status: http.StatusAccepted},
		func(ctx context.Context, in *struct {
			Name string `path:"name"`
			Body Drain
		}) (Host, error) {
			return svc.DrainHost(ctx, in.Name, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: rebalancePath + "/plan", Summary: "What a rebalance would do", Roles: overseers},
		func(ctx context.Context, in *struct{ Body Rebalance }) (Reconfiguration, error) {
			return svc.PlanRebalance(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: rebalancePath, Summary: "Move VEEs by a policy", Roles: operators, Status: http.StatusAccepted},
		func(ctx context.Context, in *struct{ Body Rebalance }) (Reconfiguration, error) {
			return svc.Rebalance(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: evacuationPath + "/plan", Summary: "What an evacuation would do", Roles: overseers},
		func(ctx context.Context, in *struct{ Body Evacuate }) (Reconfiguration, error) {
			return svc.PlanEvacuation(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: evacuationPath, Summary: "Move VEEs that run to partner sites", Roles: operators, Status: http.StatusAccepted},
		func(ctx context.Context, in *struct{ Body Evacuate }) (Reconfiguration, error) {
			return svc.Evacuate(ctx, in.Body)
		})
	httpapi.Register(s, httpapi.Op{Method: "GET", Path: rebalancePath, Summary: "How far the plan is by which VEEs move", Roles: overseers},
		func(ctx context.Context, _ *httpapi.Empty) (Reconfiguration, error) {
			return svc.GetReconfiguration(ctx)
		})
	httpapi.Register(s, httpapi.Op{Method: "POST", Path: rebalancePath + "/stop", Summary: "Begin no more steps of that plan", Roles: operators},
		func(ctx context.Context, _ *httpapi.Empty) (Reconfiguration, error) {
			return svc.StopReconfiguration(ctx)
		})
}

func (c client) DrainHost(ctx context.Context, name string, d Drain) (out Host, err error) {
	err = c.c.Call(ctx, http.MethodPost, hostPath(name, "/drain"), nil, d, &out)
	return out, err
}

func (c client) PlanRebalance(ctx context.Context, r Rebalance) (out Reconfiguration, err error) {
	err = c.c.Call(ctx, http.MethodPost, rebalancePath+"/plan", nil, r, &out)
	return out, err
}

func (c client) Rebalance(ctx context.Context, r Rebalance) (out Reconfiguration, err error) {
	err = c.c.Call(ctx, http.MethodPost, rebalancePath, nil, r, &out)
	return out, err
}

func (c client) PlanEvacuation(ctx context.Context, e Evacuate) (out Reconfiguration, err error) {
	err = c.c.Call(ctx, http.MethodPost, evacuationPath+"/plan", nil, e, &out)
	return out, err
}

func (c client) Evacuate(ctx context.Context, e Evacuate) (out Reconfiguration, err error) {
	err = c.c.Call(ctx, http.MethodPost, evacuationPath, nil, e, &out)
	return out, err
}

func (c client) GetReconfiguration(ctx context.Context) (out Reconfiguration, err error) {
	err = c.c.Call(ctx, http.MethodGet, rebalancePath, nil, nil, &out)
	return out, err
}

func (c client) StopReconfiguration(ctx context.Context) (out Reconfiguration, err error) {
	err = c.c.Call(ctx, http.MethodPost, rebalancePath+"/stop", nil, nil, &out)
	return out, err
}
