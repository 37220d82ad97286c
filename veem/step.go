package veem

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"
)

// Step is Run for a simulation (Config.Stepped): it does all that is due at this moment, in
// the goroutine of its caller and in an order that follows from the names of what there is
// to do, and returns when there will be something to do again; the zero time is never. A
// renewal or a call of the VMI in between may bring that forward: Step after each.
func (m *Manager) Step(ctx context.Context) (next time.Time) {
	m.begin(ctx)
	for ctx.Err() == nil {
		next = sooner(m.queue.step(ctx), m.accountStep(ctx))
		if next.IsZero() || next.After(m.cfg.Now()) {
			break
		}
	}
	return next
}

// begin where the manager is stepped, if it has not begun.
func (m *Manager) begin(ctx context.Context) {
	select {
	case <-m.asked:
	default:
		m.askAll(ctx)
		m.wakeAll()
	}
}

// sooner of two times, of which the zero time is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// accountStep does what the couriers would, and returns when the first of them has something
// to bring.
func (m *Manager) accountStep(ctx context.Context) (next time.Time) {
	wanted := m.listeners()
	maps.DeleteFunc(m.accountant.stepped, func(name string, _ *courier) bool { return !wanted[name] })
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		c := m.accountant.stepped[name]
		if c == nil {
			c = newCourier(m, name)
			m.accountant.stepped[name] = c
		}
		if ms, any := c.next(); any && ms <= m.cfg.Now().UnixMilli() {
			c.work(ctx)
		}
		if ms, any := c.next(); any {
			next = sooner(next, time.UnixMilli(ms))
		}
	}
	return next
}

// step runs the jobs that are due, and those that they bring about, until none is left. It
// returns when the next one is.
func (q *queue) step(ctx context.Context) (next time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ctx = ctx
	for ctx.Err() == nil {
		due := q.takeDue()
		if len(due) == 0 {
			break
		}
		for _, j := range due {
			if ctx.Err() == nil {
				q.one(j)
			}
		}
	}
	for _, t := range q.timers {
		next = sooner(next, t.at)
	}
	return next
}

// takeDue takes the jobs of all lanes. mu is held.
func (q *queue) takeDue() (due []job) {
	now := q.now()
	for j, t := range q.timers {
		if !t.at.After(now) {
			q.addLocked(j, t.lane)
		}
	}
	for _, l := range q.lanes {
		due = append(due, l.jobs...)
	}
	clear(q.lanes)
	slices.SortFunc(due, func(a, b job) int { return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name)) })
	return due
}
