package veem

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Lanes of jobs that belong to no host.
const (
	placeLane  = "place"
	accessLane = "access"
	sweepLane  = "sweep"
	planLane   = "plan"
	leaseLane  = "lease"
	noticeLane = "notice"
)

// reconcile does one job of the queue.
func (m *Manager) reconcile(ctx context.Context, j job) result {
	switch j.kind {
	case veeJob:
		return m.lookAtVEE(ctx, vee.ID(j.name))
	case hostJob:
		return m.lookAtHost(ctx, j.name)
	case reapJob:
		host, id := splitReap(j.name)
		return m.reap(ctx, host, id)
	case pointJob:
		return m.lookAtPoint(ctx, j.name)
	case partnerPointJob:
		return m.lookElsewhere(ctx, j.name)
	case placeJob:
		return m.placePending(ctx)
	case segmentJob:
		return m.lookAtSegment(ctx, j.name)
	case networkJob:
		return m.lookAtNetwork(ctx, j.name)
	case planJob:
		return m.reconfigure(ctx)
	case leaseJob:
		return m.lookAtOwners(ctx)
	case fenceJob:
		return m.fence(ctx, j.name)
	case switchJob:
		return m.lookAtSwitch(ctx, j.name)
	case reserveJob:
		return m.lookAtReservations(ctx)
	case noticeJob:
		return m.lookAtNotices(ctx)
	default:
		return m.sweep(ctx)
	}
}

// changed wakes everything that a write concerns. It is called by the ledger, in order.
func (m *Manager) changed(changes []change) {
	for _, c := range changes {
		switch c.kind {
		case kindVEE:
			m.changedVEE(c)
		case kindHost:
			m.queue.add(job{hostJob, c.key}, controlLane(c.key))
			m.queue.add(job{placeJob, ""}, placeLane)
			m.wakeSegmentsAt(c.key)
			m.wakeUnleased(c.key)
			m.queue.add(job{planJob, ""}, planLane)
		case kindNetwork:
			m.wakeSegment(c.key)
			m.queue.add(job{networkJob, c.key}, placeLane)
		case kindRun:
			m.queue.add(job{planJob, ""}, planLane)
		case kindPoint:
			m.queue.add(job{pointJob, c.key}, accessLane)
		case kindSwitch:
			m.queue.add(job{switchJob, c.key}, placeLane)
		}
	}
}

func (m *Manager) changedVEE(c change) {
	for _, e := range notes(c.before, c.after) {
		m.record(e)
	}
	m.hub.changed(vee.ID(c.key))
	m.rewire(c)
	m.events.publish(hardwareEvents(c.before, c.after)...)
	if c.after != nil {
		m.queue.add(job{veeJob, c.key}, hostLane(c.after.Host))
	}
	if b := c.before; b != nil && (c.after == nil || b.moving() && !c.after.moving() || !b.usage().Fits(c.after.usage())) {
		m.queue.add(job{placeJob, ""}, placeLane) // it takes less than before
	}
	if m.reconfiguring.busy.Load() {
		m.queue.add(job{planJob, ""}, planLane)
	}
	if c.after != nil && c.after.Switch != "" {
		m.queue.add(job{switchJob, c.after.Switch}, placeLane)
	}
	if serves(c.before) != serves(c.after) || c.after != nil && c.after.lodges() && c.after.State == vee.Destroyed {
		m.wakePoints(func(r *record) bool { return c.after != nil && r.ID == c.after.ID })
	}
}

// wakeUnleased looks at the VEEs on a host that could get a lease, if it has a guard now.
func (m *Manager) wakeUnleased(host string) {
	m.ledger.read(func(s *state) {
		if h := s.hosts.rows[host]; h == nil || !h.Guarded {
			return
		}
		for id, r := range s.vees.rows {
			if r.Host == host && r.Lease == nil && r.Assigned && r.wantsLease() {
				m.queue.add(job{veeJob, id}, hostLane(host))
			}
		}
	})
}

func (m *Manager) record(e Event) { m.cfg.Recorder.Record(e) }

// decide about r as of now.
func (m *Manager) decide(r record) decision {
	switch {
	case r.State == vee.Destroyed:
	case r.arriving():
		return decideArriving(r, m.hosts.view(r.Move.To, r.ID), m.cfg.Now())
	case r.leaving():
		return decideLeaving(r, m.hosts.view(r.Host, r.ID), m.cfg.Now())
	case r.moving():
		return decideMoving(r, m.hosts.view(r.Host, r.ID), m.hosts.view(r.Move.To, r.ID), m.cfg.Now())
	}
	return decide(r, m.hosts.view(r.Host, r.ID), m.cfg.Now(), m.cfg.Timing.KeepDestroyed)
}

// lookAtVEE does the one next thing about a VEE.
func (m *Manager) lookAtVEE(ctx context.Context, id vee.ID) result {
	r, ok := m.ledger.vee(id)
	if !ok {
		return result{}
	}
	lane := hostLane(r.Host)
	d := m.decide(r)
	if !d.rec.same(&r) {
		// The write wakes this job again.
		return m.attempt("record what became of VEE "+string(id), lane, m.ledger.do(ctx, func(t *tx) error {
			if r, ok := t.vee(id); ok {
				t.putVEE(m.decide(r).rec)
			}
			return nil
		}))
	}
	switch d.do {
	case place:
		m.queue.add(job{placeJob, ""}, placeLane)
	case assign:
		return m.assign(ctx, r)
	case invite:
		err := m.tellOf(ctx, r.Move.To, &r, r.invitation())
		if vhi.SiteOf(r.Move.To) != "" && refusesMove(err) {
			return m.turnBack(ctx, r, err)
		}
		if vhi.SiteOf(r.Move.To) != "" && fault.Has(err, fault.Unavailable) { // such as its image, which is on its way
			m.cfg.Log.Info("a VEE is to migrate to another site", "vee", id, "to", r.Move.To, "err", err)
			return result{after: 5 * m.cfg.Timing.Retry, lane: lane}
		}
		if err == nil {
			m.queue.add(job{veeJob, string(id)}, lane)
			m.hub.changed(id) // a door is open
		}
		return m.attempt(fmt.Sprintf("tell host %s of VEE %s, which is to migrate there", r.Move.To, id), lane, err)
	case purge:
		return m.attempt("drop the record of VEE "+string(id), lane, m.ledger.do(ctx, func(t *tx) error {
			if r, ok := t.vee(id); ok && m.decide(r).do == purge {
				endAccounts(t, r)
				put(t, &t.vees, string(id), nil)
			}
			return nil
		}))
	}
	if d.at.IsZero() {
		return result{}
	}
	return result{after: max(time.Millisecond, d.at.Sub(m.cfg.Now())), lane: lane}
}

func (m *Manager) attempt(what, lane string, err error) result {
	if err != nil {
		m.cfg.Log.Warn(what, "err", err)
	}
	return result{failed: err != nil, lane: lane}
}

// assign tells r's host what it should do about r, and looks again.
func (m *Manager) assign(ctx context.Context, r record) result {
	if r.Target != vee.Active { // no new connection goes to a guest that is about to stop
		if err := m.balanceGroup(ctx, r.Descriptor.GroupID); err != nil {
			m.cfg.Log.Warn("access points of a VEE that stops", "vee", r.ID, "err", err)
		}
	}
	err := m.tellOf(ctx, r.Host, &r, r.assignment(m.cfg.Timing.Grace))
	m.hosts.trouble(r.Host, r.ID, err)
	m.hub.changed(r.ID)
	if fault.Has(err, fault.StaleEpoch) {
		m.hosts.suspect(r.Host) // its report tells what it has obeyed
		m.queue.add(job{hostJob, r.Host}, controlLane(r.Host))
	}
	if err == nil && m.decide(r).do == assign {
		err = fault.New(fault.Internal, "it took the assignment and reports another")
	}
	if err == nil {
		m.queue.add(job{veeJob, string(r.ID)}, hostLane(r.Host))
	}
	return m.attempt(fmt.Sprintf("assign VEE %s to host %s", r.ID, r.Host), hostLane(r.Host), err)
}

// placePending gives room to those that wait for it, as they stand in the queue (inQueue).
func (m *Manager) placePending(ctx context.Context) result {
	for _, some := range []func(*tx) bool{m.admit, m.placeSome} {
		for more := true; more; {
			err := m.ledger.do(ctx, func(t *tx) error {
				more = some(t)
				return nil
			})
			if err != nil {
				return m.attempt("place VEEs that wait for room", placeLane, err)
			}
		}
	}
	return result{}
}

// placeSome places as many pending VEEs as one write takes, and reports whether there may
// be more.
func (m *Manager) placeSome(t *tx) (more bool) {
	pending := pending(t.vees.all())
	if len(pending) == 0 {
		return false
	}
	changed := 0
	for i, c := range m.choose(t, pending) {
		r := pending[i]
		switch {
		case changed == MaxOps/2:
			return true
		case c.Host != "":
			r.Error = ""
			r.reserve(c)
			if r.Submitted {
				r.beginAt(t.hosts.get(c.Host))
			}
		case r.Error == "":
			r.Error = c.Why
		default:
			continue
		}
		t.putVEE(r)
		changed++
	}
	return false
}

// chooseOn is choose among these hosts, whatever site they are.
func (m *Manager) chooseOn(t *tx, rs []record, board []placement.Host) []placement.Choice {
	return m.chooseBarred(t, rs, board, nil)
}

// chooseBarred is chooseOn with hosts that each may not have, and why; nil: none of them.
func (m *Manager) chooseBarred(t *tx, rs []record, board []placement.Host, barred []map[string]string) []placement.Choice {
	requests := make([]placement.Request, len(rs))
	scopes := map[string][]vmi.PlacementRule{}
	for i := range rs {
		requests[i] = rs[i].request()
		if barred != nil {
			requests[i].Barred = barred[i]
		}
		scopes[rs[i].Scope] = append(scopes[rs[i].Scope], rs[i].Rules...)
	}
	for _, r := range t.vees.all() {
		if _, concerned := scopes[r.Scope]; concerned && r.State != vee.Destroyed {
			scopes[r.Scope] = append(scopes[r.Scope], r.Rules...)
		}
	}
	seen := map[placement.Rule]bool{}
	var rules []placement.Rule
	for i := range rs { // in the order of the request, so that the same request gets the same answer
		for _, r := range scopes[rs[i].Scope] {
			if r.Scope == scopeSite {
				continue
			}
			rule := placement.Rule{Group: rs[i].Scope, Kind: placement.Kind(r.Kind), Tag: r.Tag, Soft: r.Soft}
			if !seen[rule] {
				seen[rule] = true
				rules = append(rules, rule)
			}
		}
	}
	return m.cfg.Placer.Place(board, requests, rules)
}

// board is the hosts as the placement sees them, by name, with all that is reserved on them for
// later: what is placed may stay for ever.
func (m *Manager) board(t *tx) []placement.Host {
	hosts := m.unbooked(t)
	t.book(hosts, t.now, time.Time{}, "")
	return hosts
}

// unbooked is the board without reservations.
func (m *Manager) unbooked(t *tx) []placement.Host {
	at := map[string]int{}
	var hosts []placement.Host
	capacity := m.capacities(t.hosts.all(), t.vees.all())
	for _, h := range t.hosts.all() {
		p := placement.Host{Name: h.Name, Capacity: capacity[h.Name], Drivers: h.driverNames()}
		switch {
		case h.State == vmi.HostOff:
			p.Closed = "it is off"
		case h.State != vmi.HostOn:
			p.Closed = "it is draining"
		case !m.hosts.alive(h.Name):
			p.Closed = "it does not answer"
		case h.Notice != nil:
			p.Closed = h.Notice.Why
		}
		hosts = append(hosts, p)
	}
	slices.SortFunc(hosts, func(a, b placement.Host) int { return strings.Compare(a.Name, b.Name) })
	for i, h := range hosts {
		at[h.Name] = i
	}
	for _, r := range t.vees.all() {
		if i, known := at[r.Host]; known && r.State != vee.Destroyed {
			hosts[i].Used = hosts[i].Used.Plus(r.usage())
			hosts[i].VEEs = append(hosts[i].VEEs, r.label())
		}
		if r.moving() {
			if i, known := at[r.Move.To]; known {
				hosts[i].Used = hosts[i].Used.Plus(r.usage())
				hosts[i].VEEs = append(hosts[i].VEEs, r.label())
			}
		}
	}
	return hosts
}

// sweepEvery so often old receipts are dropped.
const sweepEvery = time.Hour

func (m *Manager) sweep(ctx context.Context) result {
	m.access.mu.Lock()
	err := m.sweepPoints()
	m.access.mu.Unlock()
	if err != nil {
		m.cfg.Log.Warn("sweep", "err", err) // tried again with the next access point, or sweep
	}
	for more := true; more; {
		err := m.ledger.do(ctx, func(t *tx) error {
			n := 0
			for key, r := range t.receipts.all() {
				if n < MaxOps && t.now.Sub(r.At) > m.cfg.Timing.KeepReceipts {
					put(t, &t.receipts, key, nil)
					n++
				}
			}
			more = dropAccounts(t) || n == MaxOps
			return nil
		})
		if err != nil {
			return m.attempt("drop old receipts", sweepLane, err)
		}
	}
	return result{after: min(sweepEvery, m.cfg.Timing.KeepReceipts), lane: sweepLane}
}
