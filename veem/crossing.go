package veem

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/van/border"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/peer"
)

// Live migrations between sites. To the VEE's primary they are like any other, since a partner
// is a host to it (migration.go); what differs is that the streams go through both sites'
// proxies, by tickets (routes), and that each host is told how to know the other. At the
// partner, the VEE is a lodger whose migration has one end elsewhere: the primary orders it
// (PutMove), and this site does its own half (decideArriving, decideLeaving). "Custody may be
// there" is the migration in the primary's record, written before anything is told to anybody.

// Crossing is how live migrations leave the site and enter it.
type Crossing interface {
	// Pass puts the routes of live migrations to the site's proxy, in place of those before;
	// they are in effect when it returns. The answer is where the site's hosts reach the
	// proxy, host:port.
	Pass(ctx context.Context, routes []border.Route) (proxy string, err error)
	// Bundle of a partner, whose hosts may then come in or be gone to: SPIFFE JWKS. Errors:
	// Denied where nothing was agreed that lets VEEs cross in that way.
	Bundle(site string, cold bool) ([]byte, error)
}

// routeStays is for how long after a migration its route does: a source that has no answer
// yet to its gift asks again by it.
const routeStays = time.Hour

// crosses reports whether the migration's other end is at another site.
func (m *migration) crosses() bool {
	return m != nil && (vhi.SiteOf(m.From) != "" || vhi.SiteOf(m.To) != "")
}

// arriving and leaving are a lodger's two ways over the border.
func (r *record) arriving() bool { return r.lodges() && r.moving() && vhi.SiteOf(r.Move.From) != "" }
func (r *record) leaving() bool  { return r.lodges() && r.moving() && vhi.SiteOf(r.Move.To) != "" }

// route of a migration at this site's proxy, if it needs one.
func (r *record) route(address func(host string) string) (border.Route, bool) {
	m := r.Move
	out := border.Route{Ticket: m.Route, For: "migration " + m.ID + " of VEE " + string(r.ID), Expires: m.Started.Add(maxHoldMS * time.Millisecond)}
	from, to := vhi.SiteOf(m.From), vhi.SiteOf(m.To)
	switch {
	case from == "" && to != "" && m.Door != nil:
		out.Peer, out.Show = m.Door.Site, m.Door.Route
	case from != "" && to == "" && address(m.To) != "":
		out.To = address(m.To)
	default:
		return out, false
	}
	return out, true
}

// address of a host's VHI; empty: it is not known.
func (s *state) address(host string) string {
	if h := s.hosts.rows[host]; h != nil {
		return h.Address
	}
	return ""
}

// routes of all migrations that cross the border, or have lately.
func (m *Manager) routes() (all []border.Route) {
	now := m.cfg.Now()
	m.ledger.read(func(s *state) {
		for _, r := range s.vees.rows {
			if !r.Move.crosses() || !r.moving() && (r.Move.Ended == nil || now.Sub(*r.Move.Ended) > routeStays) {
				continue
			}
			if route, ok := r.route(s.address); ok {
				all = append(all, route)
			}
		}
	})
	slices.SortFunc(all, func(a, b border.Route) int { return cmp.Compare(a.For, b.For) })
	return all
}

// usher completes an assignment to place that is part of a migration over the border: the
// route is there, and who comes or is gone to can be known.
func (m *Manager) usher(ctx context.Context, place string, r *record, a *vhi.Assignment) error {
	if a.Epoch.Generation != m.gen {
		a.Generation = m.gen
	}
	if a.Move == nil || vhi.SiteOf(a.Move.From) == "" && vhi.SiteOf(a.Move.To) == "" {
		return nil
	}
	if m.cfg.Crossing == nil {
		return fault.New(fault.Unsupported, "VEE %s: this site has no VAN proxy, through which it could cross the border", a.VEE)
	}
	proxy, err := m.pass(ctx, r)
	if err != nil {
		return err
	}
	v := *a.Move
	from, to := vhi.SiteOf(v.From), vhi.SiteOf(v.To)
	if abroad := vhi.SiteOf(place) != ""; abroad { // hosts are each site's own affair
		if from == "" {
			v.From = vhi.AtSite(m.cfg.Site)
		}
		if to == "" {
			host, err := identity.HostID(m.cfg.Site, v.To)
			if err != nil {
				return err
			}
			if a.Power != vhi.Incoming && a.Power != vhi.Absent {
				v.Door = &vhi.Door{Site: m.cfg.Site, Route: r.Move.Route, Host: host.String()}
			}
			v.To, v.Address = vhi.AtSite(m.cfg.Site), ""
		}
		a.Move = &v
		return nil
	}
	if from != "" {
		bundle, err := m.cfg.Crossing.Bundle(from, v.Cold != "")
		if err != nil {
			return err
		}
		v.Origin = &vhi.Origin{Site: from, Bundle: bundle}
	}
	if v.Door != nil {
		bundle, err := m.cfg.Crossing.Bundle(v.Door.Site, v.Cold != "")
		if err != nil {
			return err
		}
		v.Door = &vhi.Door{Site: v.Door.Site, Route: r.Move.Route, Proxy: proxy, Host: v.Door.Host, Bundle: bundle}
	}
	a.Move = &v
	return nil
}

// pass r through this site's proxy, if it has a way there already.
func (m *Manager) pass(ctx context.Context, r *record) (proxy string, err error) {
	has := false
	m.ledger.read(func(s *state) { _, has = r.route(s.address) })
	if !has {
		return "", nil
	}
	return m.cfg.Crossing.Pass(ctx, m.routes())
}

// tellOf is tell of a VEE that may be crossing the border.
func (m *Manager) tellOf(ctx context.Context, place string, r *record, a vhi.Assignment) error {
	if err := m.usher(ctx, place, r, &a); err != nil {
		return err
	}
	return m.tell(ctx, place, a)
}

// refusesMove: a partner, or what was agreed with it, does not let the VEE in, and that is
// not a matter of trying again.
func refusesMove(err error) bool {
	return slices.ContainsFunc([]fault.Code{fault.NoResources, fault.Denied, fault.QuotaExceeded, fault.Unsupported, fault.Malformed, fault.Exists, fault.TooLarge, fault.Conflict, fault.WrongState, fault.StaleEpoch},
		func(c fault.Code) bool { return fault.Has(err, c) })
}

// turnBack a migration whose other site does not let it in.
func (m *Manager) turnBack(ctx context.Context, r record, why error) result {
	return m.attempt("end a migration that the destination refuses", hostLane(r.Host), m.ledger.do(ctx, func(t *tx) error {
		if now, ok := t.vee(r.ID); ok && now.moving() && now.Move.ID == r.Move.ID && !now.Move.Cancelling {
			f := fault.From(why)
			now.cancelMove(f.Message)
			now.Move.Code = string(f.Code)
			t.putVEE(now)
		}
		return nil
	}))
}

// PutMove: peer.Moves.
func (p Peering) PutMove(ctx context.Context, o peer.MoveOrder) (vmi.VEE, error) {
	m, caller := p.m, identity.From(ctx)
	if !caller.Is(identity.Partner) || o.VEE.Site() != caller.Site {
		return vmi.VEE{}, fault.New(fault.Denied, "VEE %s is not %s's to move", o.VEE, orElse(caller.Site, caller.ID))
	}
	if err := m.ready(ctx); err != nil {
		return vmi.VEE{}, err
	}
	var wanted []vee.Descriptor
	in := vmi.Initialize{Model: vmi.TwoPhase, Rules: o.Rules}
	if o.Power == vhi.Incoming {
		if o.Move == nil || vhi.SiteOf(o.Move.From) == "" || o.Move.ID == "" || o.Move.Ticket == "" {
			return vmi.VEE{}, malformed("move", "say where VEE %s comes from, and by which ticket", o.VEE)
		}
		if err := checkCold(o.Move); err != nil {
			return vmi.VEE{}, err
		}
		custody := o.Custody()
		in.VEEs = []vmi.InitializeVEE{{Descriptor: o.Descriptor, ID: o.VEE, Custody: &custody}}
		if m.cfg.Partnership == nil {
			return vmi.VEE{}, fault.New(fault.Denied, "site %s lends nothing to site %s", m.cfg.Site, caller.Site)
		}
		if err := m.cfg.Partnership.Admit(caller.Site, nil, o.Descriptor); err != nil {
			return vmi.VEE{}, err
		}
		if err := m.importAll(ctx, caller.Site, o.Descriptor); err != nil {
			return vmi.VEE{}, err
		}
		var err error
		if wanted, err = m.describe(ctx, caller, in); err != nil {
			return vmi.VEE{}, err
		}
	}
	route, err := m.nonce()
	if err != nil {
		return vmi.VEE{}, err
	}
	var out record
	err = m.ledger.do(ctx, func(t *tx) error {
		r, known := t.vee(o.VEE)
		if known && !r.lodges() {
			return fault.New(fault.Conflict, "VEE %s is this site's own", o.VEE)
		}
		custody := o.Custody()
		if known && custody.Compare(*r.Custody) < 0 {
			return errStale(o.VEE, custody, r)
		}
		switch {
		case o.Power == vhi.Incoming:
			r, err = m.expect(t, caller.Site, r, known, o, in, wanted, route)
		case !known:
			err = fault.New(fault.NotFound, "VEE %s is not known at this site", o.VEE)
		case o.Move != nil:
			err = r.sendAway(t, o, route)
		case r.moving() && !r.Move.Cancelling:
			r.cancelMove("its own site has given it up")
		}
		if err != nil {
			return err
		}
		r.Custody = &custody
		t.putVEE(r)
		out = r
		return nil
	})
	if err != nil {
		return vmi.VEE{}, err
	}
	if o.Power == vhi.Incoming {
		out = m.awaitDoor(ctx, out)
	}
	return m.told(caller, m.show(out)), nil
}

// checkCold of a move that a partner orders.
func checkCold(v *vhi.Move) error {
	switch v.Cold {
	case "", vhi.Stopped, vhi.Suspended:
		return nil
	}
	return malformed("move.cold", "%q: want %q or %q, or nothing", v.Cold, vhi.Stopped, vhi.Suspended)
}

// doorPatience is for how long the answer to an order waits for the door that it is about, so
// that the primary need not hear of it by another message.
const doorPatience = time.Second

// awaitDoor of a VEE that is to come, for a while: it is open, or there will be none. Where it
// takes longer the primary learns of it as of any other change.
func (m *Manager) awaitDoor(ctx context.Context, r record) record {
	w := m.hub.watch(r.ID)
	defer m.hub.leave(w)
	patience := time.NewTimer(doorPatience)
	defer patience.Stop()
	for {
		now, ok := m.ledger.vee(r.ID)
		if !ok || !now.arriving() || now.Move.ID != r.Move.ID || now.Move.Cancelling || m.cfg.Stepped {
			return r
		}
		r = now
		if said := m.show(r).Move; said != nil && said.Door != nil {
			return r
		}
		select {
		case <-w.signal:
			w.take()
		case <-m.hub.closed:
			return r
		case <-patience.C:
			return r
		case <-ctx.Done():
			return r
		}
	}
}

// importAll images of a VEE that comes while it runs: only what differs from them travels.
// Unavailable while they are on their way, and then its own site asks again.
func (m *Manager) importAll(ctx context.Context, site string, d vee.Descriptor) error {
	if m.cfg.Import == nil {
		return nil
	}
	for _, k := range d.Disks {
		if k.Image == "" {
			continue
		}
		if err := m.cfg.Import(ctx, site, k.Image); err != nil {
			return err
		}
	}
	return nil
}

// expect a VEE: a place is reserved, and a host of it is invited next.
func (m *Manager) expect(t *tx, site string, old record, known bool, o peer.MoveOrder, in vmi.Initialize, wanted []vee.Descriptor, route string) (record, error) {
	if known && old.Move != nil && old.Move.ID == o.Move.ID {
		if old.moving() && old.Move.Bandwidth != o.Move.Bandwidth && !old.Move.Cancelling {
			v := *old.Move
			v.Bandwidth = o.Move.Bandwidth
			old.Move, old.Seq = &v, old.Seq+1
		}
		return old, nil // the same again, or what became of it
	}
	if known && old.State != vee.Destroyed {
		return old, fault.New(fault.Conflict, "VEE %s is at this site already, and %s", o.VEE, old.State)
	}
	if known && old.Epoch.Compare(o.Epoch) > 0 {
		return old, fault.New(fault.StaleEpoch, "VEE %s was here under epoch %s, newer than %s", o.VEE, old.Epoch, o.Epoch)
	}
	r := m.scoped(in, wanted, string(o.VEE))[0]
	r.ID, r.Epoch, r.Seq, r.Site = o.VEE, o.Epoch, old.Seq+2, m.cfg.Site
	r.Custody = &vmi.Custody{}
	if err := unique(t, []record{r}); err != nil {
		return r, err
	}
	if err := m.admitLodger(t, site, r); err != nil {
		return r, err
	}
	if err := networksShared(t, r); err != nil {
		return r, err
	}
	op, what := operation(o.Move.Cold != "")
	board := m.board(t)
	for i := range board {
		if h := &board[i]; h.Closed == "" && (vhi.SiteOf(h.Name) != "" || !t.hosts.get(h.Name).can(op)) {
			h.Closed = "its hypervisor cannot receive a " + what + " migration"
		}
	}
	c := m.chooseOn(t, []record{r}, board)[0]
	if c.Host == "" {
		return r, fault.New(fault.NoResources, "VEE %s cannot come here: %s", o.VEE, c.Why)
	}
	r.State, r.Phase = vee.Active, vee.PhaseMigrate
	if o.Move.Cold != "" {
		r.State = states[o.Move.Cold]
	}
	r.Target = r.State
	r.Host, r.Submitted, r.Assigned, r.Holds = o.Move.From, true, true, true
	r.Move = &migration{Address: t.hosts.get(c.Host).Address, Ticket: o.Move.Ticket, Route: route, Migration: vmi.Migration{
		ID: o.Move.ID, VEE: r.ID, Name: r.Descriptor.Name, From: o.Move.From, To: c.Host, State: vmi.MigrationRunning, Cold: o.Move.Cold,
		Bandwidth: o.Move.Bandwidth, AutoConverge: o.Move.AutoConverge, Started: t.now}}
	return r, nil
}

// sendAway a lodger through the door that its own site has found.
func (r *record) sendAway(t *tx, o peer.MoveOrder, route string) error {
	d := o.Move.Door
	op, what := operation(o.Move.Cold != "")
	switch {
	case r.Move != nil && r.Move.ID == o.Move.ID:
		if r.moving() && r.Move.Bandwidth != o.Move.Bandwidth && !r.Move.Cancelling {
			v := *r.Move
			v.Bandwidth = o.Move.Bandwidth
			r.Move, r.Seq = &v, r.Seq+1
		}
		return nil
	case r.mayMove(o.Move.Cold != "") != nil:
		return r.mayMove(o.Move.Cold != "")
	case checkCold(o.Move) != nil:
		return checkCold(o.Move)
	case r.Lease != nil && o.Move.Cold == "":
		return errLeased(r.ID)
	case d == nil || d.Site == "" || d.Host == "" || !border.ValidTicket(d.Route):
		return malformed("move.door", "say how VEE %s is to get to %s", r.ID, o.Move.To)
	case !t.hosts.get(r.Host).can(op):
		return fault.New(fault.Unsupported, "the hypervisor that has VEE %s cannot migrate it %s", r.ID, what)
	case o.Move.Cold != "":
		r.Lease, r.Offered = nil, false
	}
	r.Move = &migration{Ticket: o.Move.Ticket, Route: route, Door: d, Migration: vmi.Migration{
		ID: o.Move.ID, VEE: r.ID, Name: r.Descriptor.Name, From: r.Host, To: vhi.AtSite(d.Site), State: vmi.MigrationRunning, Cold: o.Move.Cold,
		Bandwidth: o.Move.Bandwidth, AutoConverge: o.Move.AutoConverge, Started: t.now}}
	if h := t.hosts.get(vhi.AtSite(d.Site)); h != nil {
		r.Move.Underlay = h.Underlay
	}
	r.Seq += 2
	return nil
}

// mayGo to a partner, by what was agreed, by its own wishes and with its addresses.
// more are VEEs that a plan sends there before it.
func (m *Manager) mayGo(t *tx, r record, site string, more []vee.Descriptor) error {
	if m.cfg.Crossing == nil || m.cfg.Partnership == nil {
		return fault.New(fault.Unsupported, "VEE %s: nothing is agreed with site %s that lets VEEs cross", r.ID, site).Try("reservoir agreement list")
	}
	if i := slices.IndexFunc(r.Descriptor.NICs, func(n vee.NIC) bool { return n.Public }); i >= 0 {
		n := r.Descriptor.NICs[i]
		return fault.New(fault.Unsupported, "VEE %s has an address of this site's public network %q, %s, which stays here", r.ID, n.Network, n.Address).
			Try("put its component on private networks alone, and have clients come by an access point: reservoir service access SERVICE")
	}
	has := slices.Clone(more)
	for _, o := range t.vees.all() {
		if o.at(vhi.AtSite(site)) && o.ID != r.ID && o.State != vee.Destroyed {
			has = append(has, o.Descriptor)
		}
	}
	offer, err := m.cfg.Partnership.Offer(site, has, r.Descriptor)
	if err != nil {
		return err
	}
	if why := r.Descriptor.Where.Allows(offer.place(site)); why != "" {
		return fault.New(fault.Denied, "VEE %s cannot go to site %s: %s", r.ID, site, why)
	}
	return nil
}

func errLeased(id vee.ID) error {
	return fault.New(fault.Unsupported, "VEE %s may be restarted elsewhere by its site: it does not cross the border while it runs", id).
		Try("have it cross by a restart: reservoir vee migrate %s --cold; or give its component the restart policy in-place", id)
}

// decideArriving is what to do about a lodger that is expected here. Only this site's host can
// say that it has come; that it never will is said by the host too, since until then it might
// take it.
func decideArriving(r record, to view, now time.Time) decision {
	p := to.report
	switch {
	case to.known && taken(&r, p):
		r.arrive(p, now)
		c := *r.Custody
		c.Epoch = r.Epoch
		r.Custody = &c
		return decision{rec: r}
	case to.host == lost:
		r.Phase, r.GuestReady = vee.PhaseUnknown, false
		return decision{rec: r}
	case to.host == unheard:
		return decision{rec: r}
	}
	behind := !to.known || p == nil || p.Epoch.Compare(r.Epoch) < 0 || p.Epoch == r.Epoch && p.Seq < r.Seq
	switch {
	case r.Move.Cancelling && !behind && p.Power == vhi.Absent:
		r.endMove(vmi.MigrationCancelled, p.Move, now)
		r.finish()
		return decision{rec: r}
	case !r.Move.Cancelling && r.overtaken():
		r.cancelMove("another action has overtaken it")
		return decision{rec: r}
	case !r.Move.Cancelling && !behind && p.Move != nil && p.Move.ID == r.Move.ID && p.Move.Stage == vhi.MoveFailed:
		r.cancelMove(orElse(p.Move.Error, "its host here has failed"))
		return decision{rec: r}
	}
	r.Phase = vee.PhaseMigrate
	if behind {
		return decision{rec: r, do: invite}
	}
	return decision{rec: r}
}

// decideLeaving is what to do about a lodger that is sent through a door. Its host says that it
// has gone, or that it was kept.
func decideLeaving(r record, from view, now time.Time) decision {
	p := from.report
	switch {
	case from.host == lost:
		r.Phase, r.GuestReady = vee.PhaseUnknown, false
		return decision{rec: r}
	case from.host == unheard:
		return decision{rec: r}
	case from.known && p == nil:
		r.endMove(vmi.MigrationFailed, nil, now)
		r.Seq++
		return decision{rec: r}
	case from.known && p.Power == vhi.Absent && p.Epoch.Compare(r.Epoch) > 0:
		r.Epoch = p.Epoch
		r.endMove(vmi.MigrationDone, p.Move, now)
		r.finish()
		return decision{rec: r}
	}
	behind := !from.known || p.Epoch.Compare(r.Epoch) < 0 || p.Epoch == r.Epoch && p.Seq < r.Seq
	switch {
	case from.known && kept(&r, p, behind):
		r.endMove(endOf(r.Move), p.Move, now)
		if p.Epoch.Compare(r.Epoch) > 0 {
			r.Epoch = p.Epoch
		}
		r.Seq, r.Settled = max(r.Seq, p.Seq)+1, false
		return decision{rec: r}
	case r.Target == vee.Destroyed && from.known && p.Epoch.Compare(r.Epoch) > 0:
		// It was given, and its own site knows who has it.
		r.endMove(vmi.MigrationDone, p.Move, now)
		r.Epoch, r.Seq = p.Epoch, max(r.Seq, p.Seq)+1
		return decision{rec: r}
	case !r.Move.Cancelling && r.overtaken():
		r.cancelMove("another action has overtaken it")
		return decision{rec: r}
	}
	r.Phase = vee.PhaseMigrate
	if behind {
		return decision{rec: r, do: assign}
	}
	return decision{rec: r.still(p)}
}

// endOf a migration that its source has kept.
func endOf(m *migration) vmi.MigrationState {
	if m.Cancelling {
		return vmi.MigrationCancelled
	}
	return vmi.MigrationFailed
}

// crossed is what is told of a lodger's newest migration to its own site. hosts.mu is held.
func (m *Manager) crossed(r *record) *vhi.MoveReport {
	if !r.lodges() || !r.Move.crosses() {
		return nil
	}
	v := r.Move
	out := &vhi.MoveReport{ID: v.ID, Stage: v.Stage, Took: v.Took, Error: v.Error, Code: v.Code}
	if !r.moving() {
		if v.State != vmi.MigrationDone {
			out.Stage = vhi.MoveFailed
		} else if vhi.SiteOf(v.To) != "" {
			out.Stage = vhi.MoveGiven
		}
		return out
	}
	place := r.Host
	if r.arriving() {
		place, out.Stage = v.To, vhi.MoveWaiting
	}
	h := m.hosts.known[place]
	if h == nil {
		return out
	}
	w := h.vees[r.ID]
	if w == nil || w.report == nil || w.report.Move == nil || w.report.Move.ID != v.ID {
		return out
	}
	said := *w.report.Move
	if r.arriving() && !v.Cancelling && w.report.Power == vhi.Incoming {
		if id, err := identity.HostID(m.cfg.Site, v.To); err == nil {
			said.Door = &vhi.Door{Site: m.cfg.Site, Route: v.Route, Host: id.String()}
		}
	}
	if said.Stage == vhi.MoveFailed { // by the host; this site says so when it is settled
		said.Stage = vhi.MoveReceiving
	}
	return &said
}
