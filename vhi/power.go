package vhi

import (
	"context"
	"net/http"

	"github.com/reservoir-cloud/reservoir/internal/httpapi"
)

// Machine is what a site does to a host itself.
type Machine interface {
	// PowerOff ends the host's agent as soon as it has answered, and switches the machine off
	// where the agent was given a command for that. Errors: WrongState while a guest runs.
	PowerOff(ctx context.Context) error
}

const powerOffPath = "/vhi/v1/power-off"

func registerMachine(s *httpapi.Server, h Machine) {
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: powerOffPath, Summary: "End this host's agent, and switch the machine off", Roles: siteOnly},
		func(ctx context.Context, _ *httpapi.Empty) error { return h.PowerOff(ctx) })
}

func (h hostClient) PowerOff(ctx context.Context) error {
	return h.c.Call(ctx, http.MethodPost, powerOffPath, nil, nil, nil)
}
