package veem

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// hosts is what the hosts say, in memory only. A manager that has just started asks them
// all again.
type hosts struct {
	mu    sync.Mutex
	known map[string]*hostView
	tick  uint64 // grows with everything that is learnt, so that "before" has a meaning
}

// hostView of one host.
type hostView struct {
	client  vhi.Host
	address string // of client

	report vhi.HostReport  // the newest
	past   map[string]bool // other incarnations that were heard
	seen   time.Time       // last renewal or answered question; zero: none
	alive  bool
	given  bool // up as lost; told once

	vees map[vee.ID]*word
	// segments that it holds, by its report or its answer since.
	segments map[string]uint64
	// met: it has answered a question of this manager. Until then nothing is known of VEEs
	// that a manager before this one has assigned.
	met bool
	// doubt: its word on some VEE contradicts what it has acknowledged. That renewal may
	// have been on its way when the host was told; an answer to a question that is asked
	// after that is believed.
	doubt    bool
	reaped   map[vee.ID]vee.Epoch // told to remove VEEs that are not its, under this epoch
	helpless string               // the last partition of its that found no way, told once
	// troubles with assigning VEEs, while they stand; for people.
	troubles map[vee.ID]string
}

// word of a host on one VEE.
type word struct {
	report  *vhi.Report // nil: it has no such VEE
	at      uint64      // tick when it came
	told    uint64      // tick of the last assignment that the host has acknowledged
	settled bool        // it came some time after that, by a report of the whole
	// progress that the present phase has made, also when a later report has none any more.
	progress *vee.Progress
}

// take p as the newest report. It is kept apart from the thousand others that it came with,
// and what it only repeats is not kept twice.
func (w *word) take(p *vhi.Report) {
	switch {
	case p.Progress != nil:
		w.progress = p.Progress
	case w.report != nil && w.report.Phase == p.Phase:
		w.progress = nil // the phase goes on without any
	}
	if w.report != nil && identical(*w.report, *p) {
		return
	}
	own := *p
	w.report = &own
}

func (h *hosts) get(name string) *hostView {
	v := h.known[name]
	if v == nil {
		v = &hostView{doubt: true, past: map[string]bool{}, vees: map[vee.ID]*word{}, reaped: map[vee.ID]vee.Epoch{}, troubles: map[vee.ID]string{}}
		h.known[name] = v
	}
	return v
}

// suspect has the host asked for its report.
func (h *hosts) suspect(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.get(name).doubt = true
}

// trouble with telling the host of a VEE; nil: none any more.
func (h *hosts) trouble(name string, id vee.ID, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.get(name)
	if err == nil {
		delete(v.troubles, id)
	} else {
		v.troubles[id] = "host " + name + ": " + err.Error()
	}
}

func (h *hosts) forget(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.known, name)
}

// alive reports whether the host is current.
func (h *hosts) alive(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.known[name]
	return v != nil && v.alive
}

// lost reports whether a host has not renewed for too long. One that has not been heard of
// since this manager started is not: the record says what it had.
func (h *hosts) lost(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.known[name]
	return v != nil && v.given
}

// view of a VEE that has a host.
func (h *hosts) view(name string, id vee.ID) view {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.known[name]
	switch {
	case v == nil:
		return view{}
	case v.given:
		return view{host: lost}
	case !v.alive || !v.met:
		return view{host: unheard}
	}
	w := v.vees[id]
	if w == nil {
		return view{host: alive}
	}
	return view{host: alive, known: true, report: w.report, settled: w.settled, guarded: v.report.Lease.Guarded, progress: w.progress}
}

// older reports whether a is about an older assignment than b.
func older(a, b vhi.Report) bool {
	c := a.Epoch.Compare(b.Epoch)
	return c < 0 || c == 0 && a.Seq < b.Seq
}

// news of a report: the VEEs whose host's word changed, in order.
type news struct {
	dropped bool // late: overtaken by a newer one
	back    bool // the host was not alive before
	changed []vee.ID
	doubt   bool
}

// learn takes a host's report. mine are the VEEs that it should know of. asked is the tick
// at which the manager asked for it, or 0 for a renewal, which an assignment may have
// overtaken on the way.
func (h *hosts) learn(r vhi.HostReport, mine map[vee.ID]bool, asked uint64, now time.Time) (n news) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.get(r.Host)
	if v.report.Incarnation == r.Incarnation && r.Seq <= v.report.Seq {
		return news{dropped: true}
	}
	if v.past[r.Incarnation] && asked == 0 {
		// Late, or the one that was taken for its successor was late: the host knows.
		v.doubt = true
		return news{dropped: true, doubt: true}
	}
	v.past[v.report.Incarnation] = true
	delete(v.past, r.Incarnation)
	n.back = !v.alive
	v.report, v.seen, v.alive, v.given = r, now, true, false
	v.report.VEEs = nil // they are in the words
	v.met = v.met || asked != 0
	v.segments = r.Segments
	h.tick++
	overtaken := func(w *word) bool { return asked == 0 || w.told >= asked }
	doubt := v.doubt && asked == 0
	there := make(map[vee.ID]bool, len(r.VEEs))
	for i := range r.VEEs {
		p := &r.VEEs[i]
		there[p.VEE] = true
		w := v.vees[p.VEE]
		switch {
		case w == nil:
			w = &word{}
			v.vees[p.VEE] = w
		case w.report != nil && older(*p, *w.report) && overtaken(w):
			doubt = true
			continue
		}
		if w.report == nil || !w.settled || !sameReport(*w.report, *p) {
			n.changed = append(n.changed, p.VEE)
		}
		w.take(p)
		w.at, w.settled = h.tick, true
	}
	for id, w := range v.vees {
		switch {
		case there[id]:
		case w.report != nil && overtaken(w):
			doubt = true
		case !mine[id]:
			delete(v.vees, id)
			delete(v.reaped, id)
			delete(v.troubles, id)
		case w.report != nil:
			w.report, w.at, w.settled = nil, h.tick, true
			n.changed = append(n.changed, id)
		}
	}
	for id := range mine {
		if asked != 0 && !there[id] && v.vees[id] == nil {
			v.vees[id] = &word{at: h.tick, settled: true}
			n.changed = append(n.changed, id)
		}
	}
	v.doubt, n.doubt = doubt, doubt
	slices.Sort(n.changed)
	return n
}

// sameReport reports whether a change from a to b is of no interest.
func sameReport(a, b vhi.Report) bool {
	if (a.Progress == nil) != (b.Progress == nil) || a.Progress != nil && *a.Progress != *b.Progress {
		return false
	}
	a.Progress, b.Progress = nil, nil
	a.DiskUsed, b.DiskUsed = 0, 0
	return a.VEE == b.VEE && a.Epoch == b.Epoch && a.Seq == b.Seq && a.Power == b.Power && a.Phase == b.Phase &&
		a.GuestReady == b.GuestReady && a.GuestSeen == b.GuestSeen && a.GuestIdle == b.GuestIdle && a.GuestFailure == b.GuestFailure &&
		a.Restarts == b.Restarts && a.Guarded == b.Guarded && a.Error == b.Error && a.Code == b.Code && sameStage(a.Move, b.Move) &&
		a.Fitted == b.Fitted && slices.Equal(a.NextBoot, b.NextBoot)
}

// sameStage of a move: numbers are of no interest.
func sameStage(a, b *vhi.MoveReport) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.ID == b.ID && a.Stage == b.Stage && (a.Door == nil) == (b.Door == nil)
}

// identical reports whether b says nothing that a does not.
func identical(a, b vhi.Report) bool {
	return sameReport(a, b) && a.DiskUsed == b.DiskUsed && a.Since.Equal(b.Since) &&
		a.Freed == b.Freed && a.Move == nil && b.Move == nil && (a.Checkpoint == nil) == (b.Checkpoint == nil) && (a.Checkpoint == nil || *a.Checkpoint == *b.Checkpoint)
}

// now is the present tick.
func (h *hosts) now() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tick++
	return h.tick
}

// acknowledged takes a host's answer to an assignment that was sent at tick since.
func (h *hosts) acknowledged(name string, a vhi.Assignment, p vhi.Report, since uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.get(name)
	w := v.vees[a.VEE]
	if w == nil {
		w = &word{}
		v.vees[a.VEE] = w
	}
	h.tick++
	w.told = h.tick
	newer := w.at > since && w.report != nil && w.report.Epoch == a.Epoch && w.report.Seq == a.Seq
	if !newer {
		w.report, w.at, w.settled = &p, h.tick, false
	}
}

// client of a host at its present address.
func (m *Manager) client(name string) (vhi.Host, error) {
	rec, ok := m.ledger.host(name)
	switch {
	case !ok:
		return nil, errNoHost(name)
	case rec.Address == "":
		return nil, fault.New(fault.Unavailable, "host %s has not said yet where it listens", name)
	}
	m.hosts.mu.Lock()
	defer m.hosts.mu.Unlock()
	v := m.hosts.get(name)
	if v.client == nil || v.address != rec.Address {
		v.client, v.address = m.cfg.Dial(name, rec.Address), rec.Address
	}
	return v.client, nil
}

func errNoHost(name string) *fault.Error {
	return fault.New(fault.NotFound, "host %q is not part of this site", name).Try("reservoir host list, or let it join: reservoir host invite")
}

// HostJoined makes the record of a host whose certificate was issued; one that is there
// stays as it is.
func (m *Manager) HostJoined(ctx context.Context, name string) error {
	if !vee.ValidName(name) {
		return fault.New(fault.Malformed, "host name %q: want a DNS label such as \"h1\"", name)
	}
	return m.joined(ctx, name, "host "+name+" has joined the site")
}

// joined makes the record of a host, and tells people the news of it.
func (m *Manager) joined(ctx context.Context, name, news string) error {
	fresh := false
	err := m.ledger.do(ctx, func(t *tx) error {
		if fresh = t.hosts.get(name) == nil; fresh {
			put(t, &t.hosts, name, &hostRecord{Name: name, State: vmi.HostOn, Joined: t.now})
		}
		return nil
	})
	if err == nil && fresh {
		m.record(Event{Reason: "HostJoined", Object: "host/" + name, Message: news})
	}
	return err
}

// Renew keeps a host current: vhi.Manager. It writes to the store only when the host has
// another address, size or hypervisor than before.
func (m *Manager) Renew(ctx context.Context, r vhi.Renewal) (vhi.RenewalReply, error) {
	name := r.Report.Host
	if c := identity.From(ctx); !c.Is(identity.HostRole) || c.Host != name {
		return vhi.RenewalReply{}, fault.New(fault.Denied, "%s may not report for host %q", orElse(c.ID, "this caller"), name)
	}
	if _, ok := m.ledger.host(name); !ok {
		return vhi.RenewalReply{}, errNoHost(name)
	}
	if g := r.Report.Generation; g > m.gen {
		return vhi.RenewalReply{}, fault.New(fault.StaleEpoch, "host %s has seen generation %d of this site's record, which is now at %d: it is an old copy", name, g, m.gen).
			Try("start the site with its newest record, or restore it properly")
	}
	var ask renewal
	if r.Lease != nil {
		ask = m.owners.arrive(*r.Lease, m.ledger)
	}
	// The read begins after the renewal arrived: who answers was in charge then.
	if err := m.inCharge(ctx); err != nil {
		return vhi.RenewalReply{}, err
	}
	m.learn(r.Report, 0)
	out := vhi.RenewalReply{Generation: m.gen, Company: m.company(name)}
	if ask.asks() {
		l, err := m.vouch(ctx, ask)
		if err != nil {
			return vhi.RenewalReply{}, err
		}
		out.Lease = l
	}
	return out, nil
}

func (m *Manager) nonce() (string, error) {
	var b [16]byte
	m.randomMu.Lock()
	defer m.randomMu.Unlock()
	if _, err := io.ReadFull(m.cfg.Random, b[:]); err != nil {
		return "", fault.New(fault.Internal, "draw a nonce: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// learn takes a report, asked for at tick asked or sent by itself (0), and wakes whom it
// concerns. It reports whether it is news.
func (m *Manager) learn(r vhi.HostReport, asked uint64) bool {
	mine, wanted := map[vee.ID]bool{}, map[string]uint64{}
	var rec hostRecord
	m.ledger.read(func(s *state) {
		for _, v := range s.vees.rows {
			if v.at(r.Host) && v.Assigned {
				mine[v.ID] = true
				for id := range segmentsOf(v) {
					if isPartner(r.Host) && s.networks.rows[id] == nil {
						continue
					}
					wanted[id] = s.segments.version[id]
				}
			}
		}
		if h := s.hosts.rows[r.Host]; h != nil {
			rec = *h
		}
	})
	n := m.hosts.learn(r, mine, asked, m.cfg.Now())
	if n.dropped {
		if n.doubt {
			m.queue.add(job{hostJob, r.Host}, controlLane(r.Host))
		}
		return false
	}
	m.helpless(r)
	for _, id := range differing(r.Segments, wanted) {
		m.queue.add(segmentJobOf(r.Host, id), networkLane(r.Host))
	}
	lane := hostLane(r.Host)
	if n.back {
		m.record(Event{Reason: "HostBack", Object: "host/" + r.Host, Message: "host " + r.Host + " is current"})
		m.queue.add(job{placeJob, ""}, placeLane)
		m.queue.add(job{planJob, ""}, planLane)
	}
	if n.back || asked != 0 {
		for id := range mine {
			m.queue.add(job{veeJob, string(id)}, lane)
		}
		m.wakePoints(func(v *record) bool { return v.Host == r.Host })
	}
	for _, id := range n.changed {
		m.queue.add(job{veeJob, string(id)}, lane)
		m.hub.changed(id)
	}
	for _, p := range r.VEEs {
		if p.Power != vhi.Absent && !mine[p.VEE] {
			m.queue.add(job{reapJob, r.Host + "/" + string(p.VEE)}, lane)
		}
	}
	if n.back || n.doubt || !rec.same(rec.with(r)) {
		m.queue.add(job{hostJob, r.Host}, controlLane(r.Host))
	}
	return true
}

// lookAtHost keeps the host's record, its liveness and its word up to date.
func (m *Manager) lookAtHost(ctx context.Context, name string) result {
	rec, ok := m.ledger.host(name)
	if !ok {
		m.hosts.forget(name)
		return result{}
	}
	m.hosts.mu.Lock()
	v := m.hosts.get(name)
	report, alive, doubt := v.report, v.alive, v.doubt
	m.hosts.mu.Unlock()
	if alive && !rec.same(rec.with(report)) {
		err := m.ledger.do(ctx, func(t *tx) error {
			if h := t.hosts.get(name); h != nil {
				n := h.with(report)
				put(t, &t.hosts, name, &n)
			}
			return nil
		})
		if err != nil {
			m.cfg.Log.Warn("keep what a host says of itself", "host", name, "err", err)
			return result{failed: true, lane: controlLane(name)}
		}
		m.queue.add(job{placeJob, ""}, placeLane)
	}
	failed := doubt && !m.ask(ctx, name)
	left := m.checkAlive(rec)
	return result{failed: failed && alive, after: left, lane: controlLane(name)}
}

// ask the host for its report, and believe it. false: there was no answer, or a renewal
// overtook it.
func (m *Manager) ask(ctx context.Context, name string) bool {
	c, err := m.client(name)
	if err != nil {
		return false
	}
	since := m.hosts.now()
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timing.Call)
	defer cancel()
	r, err := c.Report(ctx)
	if err == nil && (r.Host != name || r.Generation > m.gen) {
		err = fault.New(fault.Conflict, "it says that it is host %q and has seen generation %d of the site's record, which is at %d", r.Host, r.Generation, m.gen)
	}
	if err != nil {
		m.cfg.Log.Info("ask a host for its report", "host", name, "err", err)
		return false
	}
	return m.learn(r, since)
}

// checkAlive gives a host up that has not renewed for too long, and says when to look
// again; 0 when it is lost.
func (m *Manager) checkAlive(h hostRecord) time.Duration {
	name, limit, now := h.Name, m.cfg.Timing.HostLost, m.cfg.Now()
	m.hosts.mu.Lock()
	v := m.hosts.get(name)
	since := v.seen
	for _, t := range []time.Time{m.start, h.Joined} {
		if since.Before(t) {
			since = t // its time to be heard begins there
		}
	}
	left := since.Add(limit).Sub(now)
	lost := left <= 0 && !v.given
	if lost {
		v.alive, v.given = false, true
	}
	given := v.given
	m.hosts.mu.Unlock()
	if lost {
		if h.State != vmi.HostOff {
			m.record(Event{Warning: true, Reason: "HostLost", Object: "host/" + name, Message: "host " + name + " has not renewed for " + limit.String() + ": its VEEs are unknown"})
		}
		m.queue.add(job{planJob, ""}, planLane)
		m.ledger.read(func(s *state) {
			for id, r := range s.vees.rows {
				if r.at(name) {
					m.queue.add(job{veeJob, id}, "lost")
				}
			}
		})
		m.wakePoints(func(v *record) bool { return v.Host == name })
	}
	if given {
		return 0
	}
	return left
}

// reap tells a host to remove a VEE that it runs and should not: one that no record owns,
// or that is somewhere else.
func (m *Manager) reap(ctx context.Context, host string, id vee.ID) result {
	rec, exists := m.ledger.vee(id)
	if exists && rec.at(host) && (rec.Assigned || isPartner(host)) && rec.State != vee.Destroyed {
		return result{} // a partner keeps a place for what is only reserved
	}
	m.hosts.mu.Lock()
	v := m.hosts.get(host)
	var p *vhi.Report
	if w := v.vees[id]; w != nil {
		p = w.report
	}
	current := v.alive && v.report.Generation == m.gen
	under, begun := v.reaped[id]
	m.hosts.mu.Unlock()
	switch {
	case p == nil || p.Power == vhi.Absent || !current:
		return result{}
	case exists && p.Power == vhi.Incoming && p.Move != nil && p.Move.By != "" && !p.Move.Over():
		return result{} // the hosts move it here by themselves; see peers.go
	case exists && came(&rec, host, p):
		if rec.leased() {
			return result{} // the log of ownership takes it in
		}
		return m.followToHost(ctx, host, id, p)
	case exists && rec.Assigned && p.Epoch.Generation == m.gen && p.Epoch.Compare(rec.Epoch) <= 0:
		// What a migration has left: it went on from here, or never came. The epoch is not
		// raised, so that it may come again.
		a := vhi.Assignment{VEE: id, Epoch: rec.Epoch, Seq: rec.Seq + 1, Power: vhi.Absent}
		return m.attempt(fmt.Sprintf("remove what a migration of VEE %s has left on host %s", id, host), hostLane(host), m.tell(ctx, host, a))
	case begun && p.Epoch == under:
		return result{}
	case p.Epoch.Generation != m.gen:
		// Assigned before this record was restored from a backup that does not have it: it is
		// somebody's, and a person decides.
		m.record(Event{Warning: true, Reason: "Unowned", Object: "host/" + host, Message: "host " + host + " runs VEE " + string(id) + " of an older generation of this site's record, which has no such VEE; it is left alone"})
		m.hosts.mu.Lock()
		v.reaped[id] = p.Epoch // said once
		m.hosts.mu.Unlock()
		return result{}
	}
	epoch := vee.Epoch{Generation: m.gen, Term: max(p.Epoch.Term, rec.Epoch.Term) + 1}
	a := vhi.Assignment{VEE: id, Epoch: epoch, Seq: 1, Power: vhi.Absent}
	if err := m.tell(ctx, host, a); err != nil {
		m.cfg.Log.Warn("remove a VEE that the host should not have", "host", host, "vee", id, "err", err)
		return result{failed: true, lane: hostLane(host)}
	}
	m.hosts.mu.Lock()
	v.reaped[id] = epoch
	m.hosts.mu.Unlock()
	m.record(Event{Warning: true, Reason: "Reaped", Object: "host/" + host, Message: "host " + host + " had VEE " + string(id) + ", which is not its: removed there"})
	return result{}
}

// tell a host an assignment and take its answer.
func (m *Manager) tell(ctx context.Context, host string, a vhi.Assignment) error {
	c, err := m.client(host)
	if err != nil {
		return err
	}
	since := m.hosts.now()
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timing.Call)
	defer cancel()
	p, err := c.Assign(ctx, a)
	if err != nil {
		return err
	}
	m.hosts.acknowledged(host, a, p, since)
	return nil
}

func hostLane(name string) string {
	if name == "" {
		return "no host"
	}
	return "host/" + name
}

// controlLane is apart from hostLane, so that a host whose calls hang is still given up in
// time.
func controlLane(name string) string { return "control/" + name }

func splitReap(name string) (host string, id vee.ID) {
	h, v, _ := strings.Cut(name, "/")
	return h, vee.ID(v)
}
