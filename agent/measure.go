package agent

import (
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/lrt"
	"github.com/reservoir-cloud/reservoir/agent/measure"
	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/monitor/intake"
	"github.com/reservoir-cloud/reservoir/van/plan"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi/guest"
)

// A host's measuring is slowed down where it would be a load itself: a thousand VEEs at the
// usual rates come to less than this.
var measureLimits = monitor.Limits{ValuesPerSecond: 5000, Load: 50}

// measures makes the host's data source with all its probes.
func (a *agent) measures(up monitor.Uplink) *monitor.Source {
	machine := &lrt.Machine{Root: "/", Dir: a.cfg.Dir}
	source := monitor.NewSource(monitor.SourceConfig{
		Uplink: up, Incarnation: a.incarnation, Limits: measureLimits, Now: time.Now, Log: a.cfg.Log,
		Load: func() float64 {
			load, err := machine.Load()
			if err != nil {
				a.cfg.Log.Debug("load of this machine", "err", err)
			}
			return load
		},
	})
	meter, _ := a.driver.(hypervisor.Meter) // without one, the driver tells nothing
	a.measuring.Store(measure.New(measure.Config{
		Source: source, Machine: machine, Own: a.made, Meter: meter, Traffic: a.networks.path.Traffic, Dial: a.networks.connect,
		Running: func() (list []measure.VEE) {
			for _, v := range a.tracker.Running() {
				list = append(list, measure.VEE{ID: v.VEE, Descriptor: v.Descriptor})
			}
			return list
		},
		Runs: a.tracker.Runs, Now: time.Now,
	}))
	return source
}

// made for VEEs' networks is a device of that name: its traffic is measured where it enters.
func (a *agent) made(device string) bool {
	if device == a.cfg.Bridge {
		return true
	}
	for _, prefix := range []string{plan.TapPrefix, plan.BridgePrefix, plan.TunnelPrefix, plan.GatewayPrefix} {
		if strings.HasPrefix(device, prefix) {
			return true
		}
	}
	return false
}

// changed: the report of this host has.
func (a *agent) changed() {
	a.renewer.poke()
	if m := a.measuring.Load(); m != nil {
		m.Poke()
	}
}

// said is a guest's word on how it is.
func (a *agent) said(id vee.ID, s guest.Status) {
	if m := a.measuring.Load(); m != nil {
		m.Said(id, s)
	}
}

// pushed by programs in a guest.
func (a *agent) pushed(id vee.ID, values []monitor.Value, dropped intake.Dropped) (here bool, refused int) {
	m := a.measuring.Load()
	if m == nil {
		return false, 0 // the agent has only just started
	}
	return m.Pushed(id, values, dropped)
}
