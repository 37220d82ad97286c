package veem

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/rebalance"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// When an agreement ends, the VEEs under it have its notice to leave. The site that borrows
// places nothing there any more, and has its VEEs leave by itself: live as long as that is
// possible, to hosts of its own first; in the second half of the notice cold, or started anew
// elsewhere, if its restart policy lets it. The site that lends stops what is still
// there at the end; the disks stay for a while. Neither needs the other for its part: each goes
// by its own record and clock, and what was stopped is told with the VEE (vmi.Eviction), so
// that its own site starts it elsewhere only when it knows that it does not run any more.

// Notice that VEEs at a partner have.
type Notice struct {
	From time.Time `json:"from"`
	By   time.Time `json:"by"` // the last must have left, by this site's clock
	Why  string    `json:"why"`
}

// same: what is measured of the other site's clock changes all the time.
func (n *Notice) same(o *Notice) bool {
	return n == o || n != nil && o != nil && n.By.Sub(o.By).Abs() < 5*time.Second && n.Why == o.Why
}

// half of the time.
func (n *Notice) half() time.Time { return n.From.Add(n.By.Sub(n.From) / 2) }

// end of the half that is now.
func (n *Notice) end(now time.Time) time.Time {
	if now.Before(n.half()) {
		return n.half()
	}
	return n.By
}

func (n *Notice) over(now time.Time) bool { return n != nil && !now.Before(n.By) }

const (
	// keepEvicted is how long the disks of what was stopped stay.
	keepEvicted = 24 * time.Hour
	// homePatience with a VEE that was on its way home when its notice was over.
	homePatience = 10 * time.Minute
)

// causeNotice of a plan: VEEs leave partners whose agreement ends.
const causeNotice = "notice"

// PartnersChanged has what was agreed looked at now: an agreement has changed, or a partner.
func (m *Manager) PartnersChanged() {
	m.queue.add(job{noticeJob, ""}, noticeLane)
	m.queue.add(job{reserveJob, ""}, noticeLane)
}

// lookAtNotices of all agreements, on both sides.
func (m *Manager) lookAtNotices(ctx context.Context) result {
	if m.cfg.Partnership == nil {
		return result{}
	}
	var told []Event
	err := m.ledger.do(ctx, func(t *tx) error {
		told = m.noteNotices(t)
		n := 0
		for _, r := range t.vees.all() {
			if n == MaxOps/2 {
				break // the next look
			}
			next := *r
			if m.overstayed(&next, t.now) || m.evicted(t, &next) {
				t.putVEE(next)
				n++
			}
		}
		return nil
	})
	if err == nil {
		for _, e := range told {
			m.record(e)
		}
	}
	return result{failed: err != nil, after: m.cfg.Timing.Look, lane: noticeLane}
}

// noteNotices that partners have given us, or we them, with those that lend to us.
func (m *Manager) noteNotices(t *tx) (told []Event) {
	for name, h := range t.hosts.all() {
		site := vhi.SiteOf(name)
		if site == "" {
			continue
		}
		now := m.cfg.Partnership.Notice(site, m.cfg.Site)
		if now.same(h.Notice) {
			continue
		}
		next := *h
		next.Notice = now
		put(t, &t.hosts, name, &next)
		e := Event{Reason: "NoticeTakenBack", Object: "host/" + name, Message: "what was agreed with site " + site + " covers the VEEs there again"}
		if now != nil {
			e = Event{Warning: true, Reason: "NoticeGiven", Object: "host/" + name,
				Message: fmt.Sprintf("%s: no VEE is placed there any more, and those there leave by %s", now.Why, now.By.UTC().Format(time.RFC3339))}
		}
		told = append(told, e)
	}
	return told
}

// overstayed does what is due about a VEE of another site's, and reports whether it did.
func (m *Manager) overstayed(r *record, now time.Time) bool {
	if !r.lodges() || r.State == vee.Destroyed || r.Target == vee.Destroyed {
		return false
	}
	if e := r.Evicted; e != nil {
		if now.Before(e.Until) {
			return false
		}
		r.retarget(vee.Destroyed)
		return true
	}
	n := m.cfg.Partnership.Notice(m.cfg.Site, r.ID.Site())
	if !n.over(now) {
		return false
	}
	switch {
	case r.moving() && r.Move.Cancelling, r.leaving() && now.Before(n.By.Add(homePatience)):
		return false // it is about to be gone
	case r.moving():
		r.cancelMove("the notice is over: " + n.Why)
		return true
	case !r.Assigned:
		r.destroyReserved()
		return true
	}
	r.evict(n, now)
	return true
}

// evicted withdraws a VEE of ours that a partner has stopped, when there is a place elsewhere
// where it may be started anew. Until then its disks stay where they are.
func (m *Manager) evicted(t *tx, r *record) bool {
	if !r.away() || r.Withdraw || r.moving() || r.Target != vee.Active || !r.Assigned || r.Descriptor.Restart == vee.RestartNever || r.wantsPersistent() {
		return false
	}
	v := m.hosts.view(r.Host, r.ID)
	if !v.known || v.report == nil || !stoppedThere(r, v.report) {
		return false
	}
	elsewhere := *r
	elsewhere.Host, elsewhere.Holds = "", false
	c := m.choose(t, []record{elsewhere})[0]
	switch c.Host {
	case "":
		return false
	case r.Host: // what is agreed now covers it again
		r.Seq++
		r.Settled = false
		return true
	}
	r.withdraw(v.report.Error, t.now)
	r.State, r.Phase = vee.Defined, vee.PhaseProlog
	return true
}

// stoppedThere: p is the partner's word that r does not run there any more, nor will.
func stoppedThere(r *record, p *vhi.Report) bool {
	return p.Evicted && p.Epoch == r.Epoch && p.Seq == r.Seq
}

// evict a VEE: it is stopped, and its disks stay for a while. What is saved stays saved.
func (r *record) evict(n *Notice, now time.Time) {
	e := vmi.Eviction{At: now, Until: now.Add(keepEvicted)}
	e.Why = fmt.Sprintf("site %s has stopped it, since its notice was over on %s: %s; its disks stay there until %s",
		r.Site, n.By.UTC().Format(time.RFC3339), n.Why, e.Until.UTC().Format(time.RFC3339))
	r.Evicted = &e
	if r.Target == vee.Active || r.Target == vee.Paused {
		r.retarget(vee.Defined)
		r.Failure, r.FailureCode = e.Why, string(fault.Denied)
	}
	r.Error = e.Why
}

// mayStay refuses what a partner wants of its VEEs here when the notice is over.
func (m *Manager) mayStay(site string, now time.Time) error {
	if m.cfg.Partnership == nil {
		return nil
	}
	if n := m.cfg.Partnership.Notice(m.cfg.Site, site); n.over(now) {
		return fault.New(fault.Denied, "nothing of site %s runs at site %s any more: its notice was over on %s (%s)", site, m.cfg.Site, n.By.UTC().Format(time.RFC3339), n.Why).
			Try("at site %s: reservoir agreement list", site)
	}
	return nil
}

// mustLeave: the notice of a site's VEEs here is over.
func (m *Manager) mustLeave(site string, now time.Time) bool { return m.mayStay(site, now) != nil }

// noticed are the partners that VEEs leave.
func (w *situation) noticed() (hosts []hostRecord) {
	for _, h := range w.hosts {
		if h.Notice != nil && slices.ContainsFunc(w.site.VEEs, func(v rebalance.VEE) bool { return v.Host == h.Name }) { // those that rest too
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// leave the partners whose agreements end: what can cross does, as a plan like any other; of
// the rest, what may is started anew elsewhere when half of the time is over.
func (m *Manager) leave(ctx context.Context, w *situation) result {
	wait := result{after: m.cfg.Timing.Look, lane: planLane}
	p, stays, err := m.planLeave(ctx, w.noticed())
	if err != nil {
		m.cfg.Log.Warn("plan how VEEs leave a partner", "err", err)
		return wait
	}
	m.reconfiguring.mu.Lock()
	m.reconfiguring.stays = stays
	m.reconfiguring.mu.Unlock()
	if len(p.Steps) == 0 {
		return wait
	}
	if w.run != nil && w.run.Cause == causeNotice && w.run.Again {
		p.Attempt = w.run.Attempt + 1
	}
	if _, err := m.beginRun(ctx, p); err != nil {
		return m.attempt("start to leave a partner", planLane, err)
	}
	return wait
}

// planLeave is how VEEs leave: the steps of those that cross. In the second half of the notice
// what may be restarted crosses cold if it must, with its disks; what can cross in no way is
// withdrawn with the same write, to be started anew.
func (m *Manager) planLeave(ctx context.Context, from []hostRecord) (p vmi.Reconfiguration, stays []vmi.ReconfigureRemain, err error) {
	err = m.ledger.do(ctx, func(t *tx) error {
		p = vmi.Reconfiguration{Cause: causeNotice, State: vmi.ReconfigurationPlanned, Steps: []vmi.ReconfigureStep{}, Attempt: 1}
		stays = nil
		x := &exodus{m: m, t: t, home: true, sent: map[string][]vee.Descriptor{}}
		x.sites, _ = m.shelters(t, "")
		slices.SortFunc(from, func(a, b hostRecord) int {
			return cmp.Or(a.Notice.By.Compare(b.Notice.By), strings.Compare(a.Name, b.Name))
		})
		for _, h := range from {
			end := h.Notice.end(t.now)
			x.left = max(1, end.Sub(t.now))
			if p.Deadline == nil && end.After(t.now) {
				p.Deadline = &end
			}
			for _, r := range x.urgent(h.Name) {
				x.cold = !t.now.Before(h.Notice.half()) && r.Descriptor.Restart != vee.RestartNever
				why := x.send(&p, r)
				if why == "" {
					continue
				}
				if left := m.startElsewhere(t, r, h.Notice); left != "" {
					why += "; " + left
					stays = append(stays, vmi.ReconfigureRemain{VEE: r.ID, Name: r.Descriptor.Name, Host: r.Host, Why: why})
				}
			}
		}
		p.Stays = stays
		return nil
	})
	return p, stays, err
}

// startElsewhere withdraws a VEE that could not cross in the first half of its notice, or says
// why it stays.
func (m *Manager) startElsewhere(t *tx, r record, n *Notice) (why string) {
	switch {
	case t.now.Before(n.half()):
		return "from " + n.half().UTC().Format(time.RFC3339) + " on it is started elsewhere"
	case r.moving() || r.Withdraw:
		return "it is on its way"
	case r.State != vee.Active || r.Target != vee.Active || !r.Assigned:
		return fmt.Sprintf("it is %s: only an ACTIVE one is started elsewhere", r.State)
	case !m.hosts.alive(r.Host):
		return "host " + r.Host + " does not answer"
	case r.Descriptor.Restart == vee.RestartNever:
		return "its restart policy never does not let it be started elsewhere"
	case r.wantsPersistent():
		return "its persistent disk would be left behind: it is not started elsewhere"
	}
	elsewhere := r
	elsewhere.Host, elsewhere.Holds = "", false
	if c := m.choose(t, []record{elsewhere})[0]; c.Host == "" {
		return "to be started elsewhere: " + c.Why
	}
	r.withdraw(n.Why+"; it could not leave while it ran", t.now)
	t.putVEE(r)
	return ""
}

// withdraw r from its partner, to place it anew.
func (r *record) withdraw(why string, now time.Time) {
	r.refuse(r.Host, why, now)
	r.Withdraw, r.Settled = true, false
	r.GuestReady, r.GuestSeen = false, false
	r.Seq++
}
