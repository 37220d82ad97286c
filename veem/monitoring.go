package veem

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/monitor"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// maxEvents wait for a slow reader of a watch; of more, it loses the oldest.
const maxEvents = 4096

// eventHub hands monitoring events to readers and never waits for one.
type eventHub struct {
	mu      sync.Mutex
	readers map[*eventReader]struct{}
}

type eventReader struct {
	filter vmi.EventFilter
	caller identity.Caller
	news   chan struct{} // of size one

	mu      sync.Mutex
	waiting []vmi.MonitoringEvent
	lost    uint64
}

func (h *eventHub) add(r *eventReader) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readers[r] = struct{}{}
}

func (h *eventHub) remove(r *eventReader) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, r)
}

func (h *eventHub) publish(events ...vmi.MonitoringEvent) {
	if len(events) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range h.readers {
		r.offer(events)
	}
}

// offer the events that r wants.
func (r *eventReader) offer(events []vmi.MonitoringEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		if r.wants(e) {
			r.waiting = append(r.waiting, e)
		}
	}
	if extra := len(r.waiting) - maxEvents; extra > 0 {
		r.waiting = slices.Delete(r.waiting, 0, extra)
		r.lost += uint64(extra)
	}
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func (r *eventReader) wants(e vmi.MonitoringEvent) bool {
	f := r.filter
	return r.caller.Sees(e.Customer) &&
		(f.Customer == "" || f.Customer == e.Customer) &&
		(f.GroupID == "" || f.GroupID == e.GroupID) &&
		(f.VEE == "" || f.VEE == e.VEE) &&
		(f.Type == "" || f.Type == e.Type) &&
		strings.HasPrefix(e.FQN, f.Prefix)
}

// take all that waits; the first one tells of those that were lost before it.
func (r *eventReader) take() []vmi.MonitoringEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := r.waiting
	r.waiting = nil
	if len(events) > 0 {
		events[0].Lost, r.lost = r.lost, 0
	}
	return events
}

// WatchMonitoring: vmi.Service.
func (m *Manager) WatchMonitoring(ctx context.Context, f vmi.EventFilter) (<-chan vmi.MonitoringEvent, error) {
	c := identity.From(ctx)
	if err := mayFollow(c); err != nil {
		return nil, err
	}
	r := &eventReader{filter: f, caller: c, news: make(chan struct{}, 1)}
	m.events.add(r)
	first := m.present(r)
	ch := make(chan vmi.MonitoringEvent)
	m.hub.wg.Go(func() {
		defer close(ch)
		defer m.events.remove(r)
		for events := first; ; events = r.take() {
			for _, e := range events {
				select {
				case ch <- e:
				case <-ctx.Done():
					return
				case <-m.hub.closed:
					return
				}
			}
			select {
			case <-r.news:
			case <-ctx.Done():
				return
			case <-m.hub.closed:
				return
			}
		}
	})
	return ch, nil
}

// present is the state of every VEE that r wants to know of.
func (m *Manager) present(r *eventReader) (events []vmi.MonitoringEvent) {
	m.ledger.read(func(s *state) {
		for _, id := range slices.Sorted(maps.Keys(s.vees.rows)) {
			if v := s.vees.rows[id]; v.State != vee.Destroyed {
				for _, e := range hardwareEvents(nil, v) {
					if r.wants(e) {
						events = append(events, e)
					}
				}
			}
		}
	})
	return events
}

// event about r, named under its prefix. VEEs without one are named after themselves.
func (r *record) event(kind vmi.EventType, ms int64, measure string) vmi.MonitoringEvent {
	prefix := r.Descriptor.FQNPrefix
	if prefix == "" {
		prefix = "vees." + string(r.ID)
	}
	return vmi.MonitoringEvent{Type: kind, T0: ms, FQN: prefix + "." + measure, VEE: r.ID, Customer: r.Descriptor.Customer, GroupID: r.Descriptor.GroupID}
}

// hardwareEvents is what a change of a VEE means to those who monitor it: the state, whether
// the guest is ready, and how often it was restarted.
func hardwareEvents(before, after *record) (events []vmi.MonitoringEvent) {
	if after == nil {
		return nil
	}
	ms := after.Meter.AtMS // of the change
	if before == nil || before.State != after.State || before.Phase != after.Phase {
		e := after.event(vmi.VeeHw, ms, "state")
		e.Text = string(after.State)
		p := after.event(vmi.VeeHw, ms, "phase")
		p.Text = string(after.Phase)
		events = append(events, e, p)
	}
	if before == nil && after.GuestReady || before != nil && before.GuestReady != after.GuestReady {
		e := after.event(vmi.VeeHw, ms, "ready")
		if after.GuestReady {
			e.Value = 1
		}
		events = append(events, e)
	}
	if before != nil && before.Restarts != after.Restarts {
		e := after.event(vmi.VeeHw, ms, "restarts")
		e.Value = float64(after.Restarts)
		events = append(events, e)
	}
	return events
}

// Measured publishes what was measured inside VEEs' guests to those who monitor them, as it
// comes. A value that a program has given labels has no FQN, and is for those who query.
func (m *Manager) Measured(ms []monitor.Measurement) {
	var events []vmi.MonitoringEvent
	for _, x := range ms {
		if x.Kind != monitor.KPIKind && x.Kind != monitor.VEEKind {
			continue
		}
		r, ok := m.ledger.vee(x.Subject.VEE)
		kind := vmi.Agent
		if x.Kind == monitor.VEEKind {
			kind = vmi.VeeHw
		}
		// What hosts measure of VEEs is stored, and only those hear of it as it comes who have
		// another store.
		if !ok || r.State == vee.Destroyed || kind == vmi.VeeHw && !r.lodges() {
			continue
		}
		for _, v := range x.Values {
			if v.Labels != "" {
				continue
			}
			e := r.event(kind, x.At.UnixMilli(), v.Field)
			e.Value = v.Value
			events = append(events, e)
		}
	}
	m.events.publish(events...)
}
