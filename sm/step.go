package sm

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Step is Run for a simulation: it looks at the records and the VEEs instead of watching
// them, lets the workers of those that differ from before, or whose hour has come, take
// their turns, one after the other in the goroutine of its caller, and returns when one of
// them wants the next; the zero time is never. A call of the SMI, or anything that happens
// to a VEE, may bring that forward: Step after each. busy: a worker had its turn, of which
// the next Step may see consequences at this very moment.
func (m *Manager) Step(ctx context.Context) (next time.Time, busy bool, err error) {
	ctx = identity.With(ctx, m.Identity())
	if err := m.lookAtVEEs(ctx); err != nil {
		return next, false, err
	}
	if err := m.lookAtRecords(ctx); err != nil {
		return next, false, err
	}
	for _, key := range slices.Sorted(maps.Keys(m.workers)) {
		w := m.workers[key]
		if due(w.news, w.wake, m.cfg.Now()) {
			busy = true
			var gone bool
			if w.wake, gone = w.turn(ctx); gone {
				m.retire(w)
			}
		}
		if due(w.scaler.news, w.scaler.wake, m.cfg.Now()) {
			busy = true
			w.scaler.wake = w.scaler.turn(ctx)
		}
		if err := ctx.Err(); err != nil {
			return next, busy, err
		}
	}
	for _, w := range m.workers {
		for _, wake := range []time.Time{w.wake, w.scaler.wake} {
			if !wake.IsZero() && (next.IsZero() || wake.Before(next)) {
				next = wake
			}
		}
	}
	return next, busy, nil
}

// due reports whether there is news, which it takes, or the hour has come.
func due(news chan struct{}, wake, now time.Time) bool {
	select {
	case <-news:
		return true
	default:
		return !wake.IsZero() && !wake.After(now)
	}
}

// lookAtVEEs pokes the workers of those that differ from what is known.
func (m *Manager) lookAtVEEs(ctx context.Context) error {
	m.mu.Lock()
	m.world.round++
	round, first := m.world.round, !m.world.synced
	m.mu.Unlock()
	list, err := m.cfg.VMI.ListVEEs(ctx, vmi.Filter{Destroyed: true})
	if err != nil {
		return fmt.Errorf("list the VEEs: %w", err)
	}
	for i := range list {
		v := &list[i]
		if !m.touch(v, round) {
			m.apply(vmi.Change{VEE: v})
		}
	}
	if first {
		m.apply(vmi.Change{Synced: true})
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.world.drop(func(_ vee.ID, s seen) bool { return s.round < round })
	return nil
}

// touch notes that a VEE is still there, and reports whether it is as it was.
func (m *Manager) touch(v *vmi.VEE, round uint64) (same bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, known := m.world.groups[v.Descriptor.GroupID][v.ID]
	now := seenOf(v, old.round)
	if !known || !reflect.DeepEqual(old, now) {
		return false
	}
	now.round = round
	m.world.groups[v.Descriptor.GroupID][v.ID] = now
	return true
}

// lookAtRecords hires a worker for each service, and pokes those whose record has changed.
func (m *Manager) lookAtRecords(ctx context.Context) error {
	versions, err := m.records.Versions(ctx, "")
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, version := range versions {
		w := m.workers[key]
		if w == nil {
			w = newWorker(m, key)
			m.workers[key] = w
		}
		if m.stepped[key] != version {
			w.poke()
		}
	}
	for key, w := range m.workers {
		if _, there := versions[key]; !there {
			w.poke()
		}
	}
	m.stepped = versions
	return nil
}
