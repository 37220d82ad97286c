package site

import (
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// A partner tells measurements of our VEEs that it has, and nothing else is taken from it:
// no other VEE's, no state, no word of a guest under the name of its host's. Times are ours.
func TestMeasurementsFromAPartner(t *testing.T) {
	prefix := vee.FQN("alpha", "acme", "shop", "web", 1)
	ours := vmi.VEE{ID: "alpha.aaaaaaaaaa", Descriptor: vee.Descriptor{Customer: "acme", GroupID: "g", FQNPrefix: prefix}}
	event := func(id vee.ID, kind vmi.EventType, fqn, text string) vmi.MonitoringEvent {
		return vmi.MonitoringEvent{Type: kind, T0: 10_000, FQN: fqn, VEE: id, Value: 7, Text: text}
	}
	ms := translate([]vmi.VEE{ours}, []vmi.MonitoringEvent{
		event(ours.ID, vmi.Agent, prefix+".requests", ""),
		event(ours.ID, vmi.VeeHw, prefix+".vee_cpu_seconds_total", ""),
		event(ours.ID, vmi.VeeHw, prefix+".state", "ACTIVE"),
		event(ours.ID, vmi.VeeHw, prefix+".ready", ""),
		event(ours.ID, vmi.Agent, prefix+".vee_cpu_seconds_total", ""),
		event(ours.ID, vmi.Agent, "beta.customers.x.services.y.vees.z.replicas.1.requests", ""),
		event("alpha.bbbbbbbbbb", vmi.Agent, prefix+".requests", ""),
	}, func(theirs time.Time) time.Time { return theirs.Add(-3 * time.Second) })
	if len(ms) != 2 {
		t.Fatalf("%d measurements of 2: %+v", len(ms), ms)
	}
	for i, want := range []struct {
		field string
		kind  monitor.Kind
	}{{"requests", monitor.KPIKind}, {"vee_cpu_seconds_total", monitor.VEEKind}} {
		m := ms[i]
		if m.Values[0] != (monitor.Value{Field: want.field, Value: 7}) || m.Kind != want.kind || m.At.UnixMilli() != 7_000 || m.Subject.Customer != "acme" {
			t.Errorf("%+v, want %+v", m, want)
		}
	}
}
