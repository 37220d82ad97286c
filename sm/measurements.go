package sm

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Bounds of what is remembered: VEEs, and measurements of each. What goes beyond is passed
// over.
const (
	maxMeasured     = 100_000
	maxMeasurements = 64
)

// measurements has the last value of each measurement that the agents of VEEs have sent, by
// the last part of its name.
type measurements struct {
	mu   sync.Mutex
	last map[vee.ID]map[string]measurement
}

type measurement struct {
	t0    int64
	value float64
}

func newMeasurements() measurements {
	return measurements{last: map[vee.ID]map[string]measurement{}}
}

// PutMonitoringInformation receives monitoring events: vmi.MonitoringReceiver. Of events
// about the same measurement the latest counts, in whatever order they arrive.
func (m *Manager) PutMonitoringInformation(_ context.Context, events []vmi.MonitoringEvent) error {
	m.measurements.put(events)
	return nil
}

func (m *measurements) put(events []vmi.MonitoringEvent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range events {
		switch {
		case e.VEE == "":
		case e.Type == vmi.VeeHw && e.Text == string(vee.Destroyed):
			delete(m.last, e.VEE)
		case e.Type == vmi.Agent && e.Text == "":
			m.keep(e)
		}
	}
}

func (m *measurements) keep(e vmi.MonitoringEvent) {
	of := m.last[e.VEE]
	if of == nil {
		if len(m.last) >= maxMeasured {
			return
		}
		of = map[string]measurement{}
		m.last[e.VEE] = of
	}
	name := measureOf(e.FQN)
	old, known := of[name]
	if known && old.t0 > e.T0 || !known && len(of) >= maxMeasurements {
		return
	}
	of[name] = measurement{e.T0, e.Value}
}

// measureOf an FQN is what comes after the replica's number; of one without a replica, its
// last part.
func measureOf(fqn string) string {
	if _, rest, ok := strings.Cut(fqn, ".replicas."); ok {
		if _, measure, ok := strings.Cut(rest, "."); ok {
			return measure
		}
	}
	return fqn[strings.LastIndexByte(fqn, '.')+1:]
}

// of a VEE, by name; nil where there is none.
func (m *measurements) of(id vee.ID) map[string]float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.last[id]) == 0 {
		return nil
	}
	values := make(map[string]float64, len(m.last[id]))
	for name, x := range m.last[id] {
		values[name] = x.value
	}
	return values
}

// retain forgets VEEs that are gone: an event that said so may have been lost.
func (m *measurements) retain(known func(vee.ID) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.last, func(id vee.ID, _ map[string]measurement) bool { return !known(id) })
}

// measured adds to a service what its replicas have measured.
func (m *Manager) measured(s smi.Service) smi.Service {
	s.Components = slices.Clone(s.Components) // what others look at too is not changed
	for i := range s.Components {
		replicas := slices.Clone(s.Components[i].Replicas)
		for k := range replicas {
			replicas[k].KPIs = m.measurements.of(replicas[k].VEE)
		}
		s.Components[i].Replicas = replicas
	}
	return s
}

// exists reports whether a VEE may be there.
func (m *Manager) exists(id vee.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range m.world.groups {
		if s, ok := g[id]; ok {
			return s.state != vee.Destroyed
		}
	}
	return !m.world.synced
}

// followMonitoring receives what the VEE Manager pushes, until ctx ends.
func (m *Manager) followMonitoring(ctx context.Context) {
	for ctx.Err() == nil {
		ch, err := m.cfg.VMI.WatchMonitoring(ctx, vmi.EventFilter{})
		if err != nil {
			m.cfg.Log.Warn("watch monitoring events", "error", err)
			pause(ctx, time.Second)
			continue
		}
		m.measurements.retain(m.exists) // what was missed in between
		for e := range ch {
			m.measurements.put([]vmi.MonitoringEvent{e})
		}
		pause(ctx, 100*time.Millisecond)
	}
}
