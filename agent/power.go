package agent

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vhi"
)

var _ vhi.Machine = (*agent)(nil)

// errOff is why an agent ends that its site has switched off.
var errOff = errors.New("switched off by the site")

// PowerOff implements vhi.Machine. The answer is on its way before the listener closes: it
// lets requests under way come to their end.
func (a *agent) PowerOff(context.Context) error {
	for _, p := range a.tracker.Reports() {
		if p.Power == vhi.Running || p.Power == vhi.Paused {
			return fault.New(fault.WrongState, "host %s still has the guest of VEE %s, which is %s", a.cfg.Name, p.VEE, p.Power).Try("reservoir host drain %s", a.cfg.Name)
		}
	}
	select {
	case a.off <- struct{}{}:
	default: // it was told already
	}
	return nil
}

// awaitOff ends the agent when the site has said so.
func (a *agent) awaitOff(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.off:
		return errOff
	}
}

// powerOff the machine, as the last thing that the agent does.
func (a *agent) powerOff(ctx context.Context) error {
	a.cfg.Log.Info("the site has switched this host off", "command", a.cfg.PowerOff)
	if a.cfg.PowerOff == "" {
		return nil
	}
	out, err := exec.CommandContext(ctx, "/bin/sh", "-c", a.cfg.PowerOff).CombinedOutput()
	if err != nil {
		return fmt.Errorf("switch the machine off with %q: %w: %s", a.cfg.PowerOff, err, strings.TrimSpace(string(out)))
	}
	return nil
}
