package sm

import (
	"fmt"
	"maps"
	"testing"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

func TestMeasurements(t *testing.T) {
	m := newMeasurements()
	const id = vee.ID("alpha.aaaaaaaaaa")
	kpi := func(t0 int64, name string, value float64) vmi.MonitoringEvent {
		return vmi.MonitoringEvent{Type: vmi.Agent, T0: t0, FQN: vee.FQN("alpha", "acme", "web", "db", 1) + "." + name, Value: value, VEE: id}
	}
	m.put([]vmi.MonitoringEvent{kpi(5, "sessions", 7), kpi(9, "queue.size", 1), kpi(4, "sessions", 3), {Type: vmi.VeeHw, VEE: id, FQN: "x.state", Text: "ACTIVE"}})
	if got, want := m.of(id), map[string]float64{"sessions": 7, "queue.size": 1}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for i := range 2 * maxMeasurements {
		m.put([]vmi.MonitoringEvent{kpi(10, fmt.Sprint("x", i), 0)})
	}
	if n := len(m.of(id)); n != maxMeasurements {
		t.Errorf("%d are kept", n)
	}
	s := smi.Service{Components: []smi.Component{{Replicas: []smi.Replica{{VEE: id}}}}}
	if got := (&Manager{measurements: measurements{last: m.last}}).measured(s); got.Components[0].Replicas[0].KPIs["sessions"] != 7 || s.Components[0].Replicas[0].KPIs != nil {
		t.Errorf("shown %+v, of %+v", got, s)
	}
	m.put([]vmi.MonitoringEvent{{Type: vmi.VeeHw, VEE: id, FQN: "x.state", Text: "DESTROYED"}})
	if got := m.of(id); got != nil {
		t.Errorf("of a destroyed one: %v", got)
	}
	m.put([]vmi.MonitoringEvent{kpi(11, "sessions", 1)})
	m.retain(func(vee.ID) bool { return false })
	if len(m.last) != 0 {
		t.Errorf("remembered: %v", m.last)
	}
}

// What the VEE Manager pushes reaches the service's provider, also after the watch has ended
// and begun anew.
func TestMeasurementsReachTheProvider(t *testing.T) {
	b := newBench(t, 14)
	b.deploy(smi.Deploy{Manifest: yaml("shop", "web:1", 1)})
	s := b.ready("shop")
	b.stop()
	watches := make(chan chan<- vmi.MonitoringEvent, 1)
	b.vmi.with(func() { b.vmi.monitored = watches })
	b.start()
	db := s.Components[0].Replicas[0].VEE
	for n := range 3 {
		watch := <-watches
		value := float64(n + 1)
		watch <- vmi.MonitoringEvent{Type: vmi.Agent, T0: int64(n), FQN: vee.FQN("alpha", "acme", "shop", "db", 1) + ".sessions", Value: value, VEE: db}
		b.until("the measurement", func() bool { return b.get("shop").Components[0].Replicas[0].KPIs["sessions"] == value })
		close(watch)
	}
}
