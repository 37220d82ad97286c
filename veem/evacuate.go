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
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Evacuation: what is at a host, or at the site, goes to partners: while it runs (seed 1, "HA
// with live VM migration"), or cold, what does not run and what may cross in no other way. It is a plan like any other (reconfigure.go), whose steps lead
// over the border; where one fails, the rest is planned anew until the deadline.

func (r *runRecord) evacuates() bool { return r != nil && r.Cause == causeEvacuate }

// crosses reports whether steps of the plan may lead over the border.
func (r *runRecord) crosses() bool {
	return r != nil && (r.Cause == causeEvacuate || r.Cause == causeNotice)
}

// late reports whether the plan's deadline has passed.
func (r *runRecord) late(now time.Time) bool { return r.Deadline != nil && !now.Before(*r.Deadline) }

// PlanEvacuation: vmi.Service.
func (m *Manager) PlanEvacuation(ctx context.Context, e vmi.Evacuate) (vmi.Reconfiguration, error) {
	if err := overseer(ctx, false); err != nil {
		return vmi.Reconfiguration{}, err
	}
	if err := m.ready(ctx); err != nil {
		return vmi.Reconfiguration{}, err
	}
	var deadline *time.Time
	if e.DeadlineMS < 0 || e.DeadlineMS > maxHoldMS {
		return vmi.Reconfiguration{}, malformed("deadline", "want none, or at most a week")
	}
	if e.DeadlineMS > 0 {
		end := m.cfg.Now().Add(time.Duration(e.DeadlineMS) * time.Millisecond)
		deadline = &end
	}
	return m.planEvacuation(ctx, e, deadline)
}

// Evacuate: vmi.Service.
func (m *Manager) Evacuate(ctx context.Context, e vmi.Evacuate) (vmi.Reconfiguration, error) {
	if err := overseer(ctx, true); err != nil {
		return vmi.Reconfiguration{}, err
	}
	p, err := m.PlanEvacuation(ctx, e)
	if err != nil {
		return p, err
	}
	err = m.ledger.do(ctx, func(t *tx) error {
		for name, h := range t.hosts.all() {
			if (e.Host == "" || e.Host == name) && vhi.SiteOf(name) == "" && h.State == vmi.HostOn {
				n := *h
				n.State = vmi.HostDraining
				put(t, &t.hosts, name, &n)
			}
		}
		return nil
	})
	if err != nil {
		return p, err
	}
	return m.beginRun(ctx, p)
}

// evacuateAgain what is left, while there is time.
func (m *Manager) evacuateAgain(ctx context.Context, w *situation) result {
	if w.run.late(m.cfg.Now()) || w.run.Attempt >= 4*maxAttempts {
		return result{}
	}
	next, err := m.planEvacuation(ctx, *w.run.Evacuation, w.run.Deadline)
	if err == nil && len(next.Steps) > 0 {
		next.Attempt = w.run.Attempt + 1
		_, err = m.beginRun(ctx, next)
		return m.attempt("plan an evacuation again", planLane, err)
	}
	if err != nil {
		m.cfg.Log.Warn("plan an evacuation again", "err", err)
	}
	return result{after: m.cfg.Timing.Look, lane: planLane}
}

// planEvacuation is the order in which VEEs leave, where each goes, and which stay and why.
func (m *Manager) planEvacuation(ctx context.Context, e vmi.Evacuate, deadline *time.Time) (p vmi.Reconfiguration, err error) {
	p = vmi.Reconfiguration{Cause: causeEvacuate, State: vmi.ReconfigurationPlanned, Steps: []vmi.ReconfigureStep{}, Attempt: 1, Evacuation: &e, Deadline: deadline}
	err = m.ledger.do(ctx, func(t *tx) error {
		p.Steps, p.Stays = []vmi.ReconfigureStep{}, nil
		if e.Host != "" && t.hosts.get(e.Host) == nil {
			return errNoHost(e.Host)
		}
		sites, err := m.shelters(t, e.To)
		if err != nil {
			return err
		}
		x := &exodus{m: m, t: t, sites: sites, cold: e.Cold, sent: map[string][]vee.Descriptor{}}
		if deadline != nil {
			x.left = max(0, deadline.Sub(t.now))
		}
		for _, r := range x.urgent(e.Host) {
			if why := x.send(&p, r); why != "" {
				p.Stays = append(p.Stays, vmi.ReconfigureRemain{VEE: r.ID, Name: r.Descriptor.Name, Host: r.Host, Why: why})
			}
		}
		return nil
	})
	return p, err
}

// shelters are the partners that VEEs may go to.
func (m *Manager) shelters(t *tx, to string) (sites []string, err error) {
	for name, h := range t.hosts.all() {
		site := vhi.SiteOf(name)
		if site == "" || to != "" && to != site && to != name {
			continue
		}
		if h.State == vmi.HostOn && m.hosts.alive(name) && (h.Notice == nil || to != "") {
			sites = append(sites, site)
		} else if to != "" {
			return nil, fault.New(fault.Unavailable, "site %s, to which the VEEs are to go, does not answer", site).Try("reservoir federation show %s", site)
		}
	}
	slices.Sort(sites)
	switch {
	case len(sites) == 0 && to != "":
		return nil, fault.New(fault.NotFound, "site %q is no partner that lends to this one", to).Try("reservoir federation list")
	case len(sites) == 0:
		return nil, fault.New(fault.NoResources, "no partner site can be reached that VEEs could go to").Try("reservoir federation list")
	}
	return sites, nil
}

// exodus is an evacuation that is being planned.
type exodus struct {
	m     *Manager
	t     *tx
	sites []string
	home  bool                        // to hosts of this site first: VEEs leave a partner
	cold  bool                        // what runs may be shut down, if it can cross in no other way
	left  time.Duration               // until the deadline; 0: there is time
	sent  map[string][]vee.Descriptor // by host
	lanes [atOnce]struct {            // migrations at a time
		end  time.Duration
		last int // step, from 1
	}
}

// urgent VEEs of a host (or of all) first: those that clients reach by an access point; then
// the small ones, so that of what cannot all get out as many as possible do.
func (x *exodus) urgent(host string) (rs []record) {
	serving := map[vee.ID]bool{}
	for _, r := range x.t.vees.all() {
		if r.lodges() || r.Host == "" || r.State == vee.Destroyed || r.away() && !x.home || host != "" && r.Host != host || !r.Assigned && r.State == vee.Defined {
			continue
		}
		rs = append(rs, *r)
		for _, p := range x.t.points.all() {
			d := &r.Descriptor
			if d.GroupID == p.GroupID && d.Customer == p.Customer && (p.Tag == "" || slices.Contains(d.Tags, p.Tag)) {
				serving[r.ID] = true
			}
		}
	}
	rank := func(r record) int {
		switch {
		case r.Target == vee.Defined:
			return 3
		case r.Target != vee.Active:
			return 2
		case !serving[r.ID]:
			return 1
		}
		return 0
	}
	slices.SortFunc(rs, func(a, b record) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(x.copy(&a), x.copy(&b)), strings.Compare(string(a.ID), string(b.ID)))
	})
	return rs
}

// copy is what has to go over for a VEE.
func (x *exodus) copy(r *record) vee.Bytes {
	used := x.m.hosts.diskUsed(r.Host, r.ID)
	if r.Target == vee.Defined {
		return used
	}
	return used + r.Descriptor.Memory
}

// send r with the next free lane to the first site that takes it, or say why it stays.
func (x *exodus) send(p *vmi.Reconfiguration, r record) (why string) {
	ways, why := x.ways(&r)
	if why != "" {
		return why
	}
	lane := &x.lanes[0]
	for i := range x.lanes {
		if x.lanes[i].end < lane.end {
			lane = &x.lanes[i]
		}
	}
	took := max(moveTime, time.Duration(float64(x.copy(&r))/float64(linkSpeed)*float64(time.Second)))
	if x.left > 0 && lane.end+took > x.left {
		return fmt.Sprintf("it does not fit: it would come through in %s, and the deadline is in %s", (lane.end + took).Round(time.Second), x.left.Round(time.Second))
	}
	reasons := make([]string, 0, len(x.sites))
	sites := x.sites
	if x.home {
		sites = append([]string{""}, sites...)
	}
	for _, site := range sites {
		to, cold, err := x.through(r, site, ways)
		if err != nil {
			reasons = append(reasons, "site "+cmp.Or(site, x.m.cfg.Site)+": "+fault.From(err).Message)
			continue
		}
		s := vmi.ReconfigureStep{VEE: r.ID, Name: r.Descriptor.Name, From: r.Host, To: to, Cold: cold, StartMS: lane.end.Milliseconds(), EndMS: (lane.end + took).Milliseconds()}
		if lane.last > 0 {
			s.After = []int{lane.last - 1}
		}
		p.Steps = append(p.Steps, s)
		lane.end, lane.last = lane.end+took, len(p.Steps)
		x.sent[to] = append(x.sent[to], r.Descriptor)
		return ""
	}
	return strings.Join(reasons, "; ")
}

// ways in which r may leave, the best first (true: cold), or why there is none.
func (x *exodus) ways(r *record) (ways []bool, why string) {
	live := r.Target == vee.Active
	switch err := r.mayMove(!live); {
	case r.moving():
		return nil, "it is on its way to host " + r.Move.To
	case err != nil:
		return nil, fault.From(err).Message
	case !x.m.hosts.alive(r.Host):
		return nil, "host " + r.Host + " does not answer"
	case !live:
		ways = []bool{true}
	case r.Lease != nil && !x.cold:
		return nil, fault.From(errLeased(r.ID)).Message
	case r.Lease != nil:
		ways = []bool{true}
	case x.cold:
		ways = []bool{false, true}
	default:
		ways = []bool{false}
	}
	ways = slices.DeleteFunc(ways, func(cold bool) bool {
		op, _ := operation(cold)
		return !x.t.hosts.get(r.Host).can(op)
	})
	if len(ways) == 0 {
		return nil, "the hypervisor of host " + r.Host + " cannot migrate it so"
	}
	return ways, ""
}

// through is the first way in which r fits a site; the error is that of the first.
func (x *exodus) through(r record, site string, ways []bool) (host string, cold bool, err error) {
	for _, way := range ways {
		to, no := x.fits(r, site, way)
		if no == nil {
			return to, way, nil
		}
		if err == nil {
			err = no
		}
	}
	return "", false, err
}

// fits a site: what was agreed covers it, and there is room beside those that go before. The
// answer is the host that it goes to. "" is this site.
func (x *exodus) fits(r record, site string, cold bool) (host string, err error) {
	op, what := operation(cold)
	if site != "" {
		if err := x.m.mayGo(x.t, r, site, x.sent[vhi.AtSite(site)]); err != nil {
			return "", err
		}
	} else if why := r.Descriptor.Where.Allows(x.m.own()); why != "" {
		return "", fault.New(fault.Denied, "%s", why)
	}
	board := x.m.board(x.t)
	for i := range board {
		h := &board[i]
		switch {
		case h.Closed != "":
		case siteOfHost(h.Name) != site:
			h.Closed = "it is not asked for"
		case !x.t.hosts.get(h.Name).can(op) && site != "":
			h.Closed = "no agreement lets VEEs cross there " + what
		case !x.t.hosts.get(h.Name).can(op):
			h.Closed = "its hypervisor cannot receive a " + what + " migration"
		case failedTo(&r, h.Name, x.t.now.Add(-x.m.cfg.Timing.Rest)):
			h.Closed = "its migration there has failed: " + r.Move.Error
		}
		for _, d := range x.sent[h.Name] {
			h.Used = h.Used.Plus(d.Resources())
		}
	}
	c := x.m.chooseOn(x.t, []record{r}, board)[0]
	if c.Host == "" {
		return "", fault.New(fault.NoResources, "%s", c.Why)
	}
	return c.Host, nil
}

// failedTo reports whether r's last migration was to host and has failed since then. Only one
// from another site is not tried again at once: there may be other ways to leave that one.
func failedTo(r *record, host string, since time.Time) bool {
	v := r.Move
	return r.away() && v != nil && v.To == host && v.Ended != nil && v.Ended.After(since) && v.State != vmi.MigrationDone
}
