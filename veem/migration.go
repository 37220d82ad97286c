package veem

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// migration of a VEE as it is stored: the last one. What is observed is not stored before
// it has ended.
type migration struct {
	vmi.Migration
	Address string `json:"address"` // of the destination's VHI when it began
	Ticket  string `json:"ticket"`
	// Underlay address of the destination.
	Underlay netip.Addr `json:"underlay,omitzero"`
	// Route is the ticket at this site's proxy, and Door what the destination has told of its
	// own, of a migration that crosses the border.
	Route string    `json:"route,omitempty"`
	Door  *vhi.Door `json:"door,omitempty"`
}

// Operations that both hosts' drivers have to declare: of a live migration, and of a cold one.
const (
	opMigrate     = "migrate"
	opMigrateCold = "migrate-cold"
)

// operation that a migration of that kind needs, and what it is called.
func operation(cold bool) (op, what string) {
	if cold {
		return opMigrateCold, "cold"
	}
	return opMigrate, "live"
}

// moving reports whether a live migration is under way: r is at its Host, or has come to
// Move.To and this record does not know it yet.
func (r *record) moving() bool { return r.Move != nil && r.Move.State == vmi.MigrationRunning }

// at reports whether the VEE has something on a host, or a place there.
func (r *record) at(host string) bool {
	return r.Host == host && host != "" || r.moving() && r.Move.To == host
}

func (m *migration) same(o *migration) bool {
	return m == o || m != nil && o != nil && m.ID == o.ID && m.State == o.State && m.Cancelling == o.Cancelling && (m.Door == nil) == (o.Door == nil)
}

func (m *migration) move() *vhi.Move {
	return &vhi.Move{ID: m.ID, Cold: m.Cold, From: m.From, To: m.To, Door: m.Door, Address: m.Address, Underlay: m.Underlay, Ticket: m.Ticket, Bandwidth: m.Bandwidth, AutoConverge: m.AutoConverge}
}

// invitation is the destination's assignment; of one that is cancelled, that there is none.
func (r *record) invitation() vhi.Assignment {
	if r.Move.Cancelling {
		return vhi.Assignment{VEE: r.ID, Epoch: r.Epoch, Seq: r.Seq, Power: vhi.Absent}
	}
	return vhi.Assignment{VEE: r.ID, Epoch: r.Epoch, Seq: r.Seq, Power: vhi.Incoming, Descriptor: r.Descriptor, Move: r.Move.move(), Leased: r.Lease != nil}
}

// endMove notes how a migration ended. The assignment that follows has nothing of it.
func (r *record) endMove(state vmi.MigrationState, p *vhi.MoveReport, now time.Time) {
	m := *r.Move
	m.State, m.Ended, m.Ticket = state, &now, ""
	if p != nil && p.ID == m.ID {
		m.Stage = p.Stage
		if state == vmi.MigrationDone {
			m.Took, m.DowntimeMS, m.Total = p.Took, p.Took.DowntimeMS, p.Took.DiskBytes+p.Took.MemoryBytes
		} else if m.Error == "" {
			m.Error, m.Code = p.Error, p.Code
		}
	}
	if state == vmi.MigrationDone {
		m.Stage, m.Error, m.Code = vhi.MoveTaken, "", ""
	}
	r.Move = &m
}

// arrive at the destination, as that reports.
func (r *record) arrive(p *vhi.Report, now time.Time) {
	r.endMove(vmi.MigrationDone, p.Move, now)
	r.Host, r.Epoch, r.Seq, r.HostRestarts = r.Move.To, p.Epoch, max(r.Seq, p.Seq)+1, 0
	r.Phase, r.Why = vee.PhaseRunning, ""
	if vhi.SiteOf(r.Host) != "" {
		r.Lease = nil // who may run it is now in the log of that site
	}
	if r.Move.Cold != "" {
		r.State, r.Settled = states[r.Move.Cold], false
		r.Phase = map[vhi.Power]vee.Phase{vhi.Stopped: vee.PhaseStopped, vhi.Suspended: vee.PhaseSuspended}[r.Move.Cold]
	}
}

// overtaken: something else is wanted of it than what its migration leaves it in.
func (r *record) overtaken() bool {
	if r.Move.Cold != "" { // it does whatever is wanted once it is there
		return r.Target == vee.Destroyed
	}
	return r.Target != vee.Active
}

// still is r of which its host says that it does not run, since it is on its way cold.
func (r record) still(p *vhi.Report) record {
	if s, known := states[p.Power]; r.Move.Cold != "" && known && p.Power != vhi.Failed {
		if r.State = s; s != vee.Active {
			r.GuestReady, r.GuestSeen = false, false
		}
	}
	return r
}

// cancelMove has the source stop, if it still can.
func (r *record) cancelMove(why string) {
	m := *r.Move
	m.Cancelling, m.Error, m.Code = true, why, string(fault.Conflict)
	r.Move = &m
	r.Seq++
}

// taken reports whether p says that the VEE has come to the destination: it goes on there
// under a later hop.
func taken(r *record, p *vhi.Report) bool {
	if p == nil || p.Epoch.Compare(r.Epoch) <= 0 {
		return false
	}
	// Another site may have gone through terms of its own with it.
	sameTerm := p.Epoch.Generation == r.Epoch.Generation && p.Epoch.Term == r.Epoch.Term
	return (sameTerm || vhi.SiteOf(r.Move.From) != "") &&
		p.Power != vhi.Absent && p.Power != vhi.Incoming && (p.Move == nil || p.Move.ID != r.Move.ID || p.Move.Stage == vhi.MoveTaken)
}

// decideMoving is decide for a VEE on its way between two hosts. Only two words end it:
// the destination's that it has it, and the source's that it kept it.
func decideMoving(r record, from, to view, now time.Time) decision {
	if to.known && taken(&r, to.report) {
		r.arrive(to.report, now)
		return decision{rec: r}
	}
	if from.host == lost {
		r.Phase, r.GuestReady = vee.PhaseUnknown, false
		return decision{rec: r}
	}
	if from.host == unheard || from.known && from.report == nil && to.host == unheard {
		return decision{rec: r}
	}
	p := from.report
	behind := !from.known || p != nil && (p.Epoch.Compare(r.Epoch) < 0 || p.Epoch == r.Epoch && p.Seq < r.Seq)
	switch {
	case from.known && p == nil && vhi.SiteOf(r.Host) != "":
		return closeDoor(r, to, now)
	case from.known && p == nil:
		// The source has no such VEE, the destination has not taken it.
		r.endMove(vmi.MigrationFailed, nil, now)
		r.Seq++
		return decision{rec: r}
	case from.known && kept(&r, p, behind):
		r.endMove(endOf(r.Move), p.Move, now)
		if p.Epoch.Compare(r.Epoch) > 0 {
			r.Epoch = p.Epoch
		}
		r.Seq = max(r.Seq, p.Seq) + 1
		r.Settled = false
		return decision{rec: r}
	case r.Move.Cancelling:
	case r.overtaken():
		r.cancelMove("another action has overtaken it")
		return decision{rec: r}
	case r.Move.By != "" && behind:
		r.cancelMove("the site wants something else of it")
		return decision{rec: r}
	case r.Move.Deadline != nil && !now.Before(*r.Move.Deadline):
		r.cancelMove("it had not come to its end by its deadline")
		return decision{rec: r}
	case to.host == lost && behind:
		r.cancelMove("host " + r.Move.To + " does not answer")
		return decision{rec: r}
	case vhi.SiteOf(r.Move.To) != "" && r.Move.Door == nil && to.known && to.report != nil && to.report.Move != nil && to.report.Move.ID == r.Move.ID:
		switch said := to.report.Move; {
		case said.Door != nil:
			m := *r.Move
			m.Door = said.Door
			r.Move = &m
			return decision{rec: r}
		case said.Stage == vhi.MoveFailed:
			r.cancelMove(orElse(said.Error, "site "+vhi.SiteOf(r.Move.To)+" has no host for it"))
			return decision{rec: r}
		}
	}
	r.Phase = vee.PhaseMigrate
	if r.Move.By != "" && to.host == lost && p != nil && left(&r, p) {
		r.Phase, r.GuestReady = vee.PhaseUnknown, false // it was given to a host that does not answer
	}
	if from.known && p != nil && !behind {
		r = r.still(p)
	}
	d := decision{rec: r}
	if r.Move.Deadline != nil && !r.Move.Cancelling {
		d.at = *r.Move.Deadline
	}
	if !behind {
		return d
	}
	d.do = assign
	if q := to.report; !r.Move.Cancelling && (!to.known || q == nil || q.Epoch.Compare(r.Epoch) < 0 || q.Epoch == r.Epoch && q.Seq < r.Seq) {
		d.do = invite // the door first, then whoever goes through it
	} else if !r.Move.Cancelling && vhi.SiteOf(r.Move.To) != "" && r.Move.Door == nil {
		d.do = nothing // the other site makes room
	}
	return d
}

// closeDoor of a VEE that the site which should send it does not have. It may have been given
// already: only the destination's word that nothing came, nor will, ends the migration.
func closeDoor(r record, to view, now time.Time) decision {
	if !r.Move.Cancelling {
		r.cancelMove("site " + vhi.SiteOf(r.Host) + " says that it has no such VEE")
		return decision{rec: r}
	}
	q := to.report
	if !to.known || q == nil || q.Epoch.Compare(r.Epoch) < 0 || q.Epoch == r.Epoch && q.Seq < r.Seq {
		return decision{rec: r, do: invite}
	}
	if q.Power == vhi.Absent {
		r.endMove(vmi.MigrationFailed, q.Move, now)
		r.Seq++
	}
	return decision{rec: r}
}

// kept reports whether p is the source's word that the migration is over and the VEE still
// its.
func kept(r *record, p *vhi.Report, behind bool) bool {
	if p.Move != nil && p.Move.ID == r.Move.ID {
		return p.Move.Stage == vhi.MoveFailed || p.Move.Stage == vhi.MoveVoid
	}
	return r.Move.Cancelling && !behind && p.Epoch == r.Epoch
}

// Migrate: vmi.Service.
func (m *Manager) Migrate(ctx context.Context, in vmi.Migrate) (vmi.Migration, error) {
	if err := overseer(ctx, true); err != nil {
		return vmi.Migration{}, err
	}
	if in.Bandwidth < 0 || in.DeadlineMS < 0 || in.DeadlineMS > maxHoldMS {
		return vmi.Migration{}, malformed("migration", "bandwidth and deadline cannot be negative, nor the deadline more than a week away")
	}
	if err := m.ready(ctx); err != nil {
		return vmi.Migration{}, err
	}
	id, err := m.nonce()
	if err != nil {
		return vmi.Migration{}, err
	}
	pass, err := m.tickets()
	if err != nil {
		return vmi.Migration{}, err
	}
	if in.Cold {
		if err := m.unburdened(ctx, in.VEE); err != nil {
			return vmi.Migration{}, err
		}
	}
	var begun vmi.Migration
	err = m.ledger.do(ctx, func(t *tx) error {
		r, err := find(identity.From(ctx), t, in.VEE)
		if err != nil {
			return err
		}
		to, err := m.destination(t, r, in.To, in.Cold)
		if err != nil {
			return err
		}
		begun = r.depart(t, id, pass, to, in)
		return nil
	})
	return begun, err
}

// tickets of a migration: for the destination's host, and for this site's proxy.
type tickets struct{ host, proxy string }

func (m *Manager) tickets() (p tickets, err error) {
	if p.host, err = m.nonce(); err == nil {
		p.proxy, err = m.nonce()
	}
	return p, err
}

// unburdened is nil for a VEE that can be packed, so that none is shut down in vain.
func (m *Manager) unburdened(ctx context.Context, id vee.ID) error {
	r, known := m.ledger.vee(id)
	if !known || !r.Assigned {
		return nil // which is refused for another reason
	}
	h, err := m.client(r.Host)
	if err != nil {
		return err
	}
	list, err := h.Snapshots(ctx, id)
	if err != nil || len(list) == 0 {
		return err
	}
	return fault.New(fault.Unsupported, "VEE %s has %d snapshots, which do not travel", id, len(list)).Try("reservoir vee snapshot delete %s NAME", id)
}

// travelPower is the power that a VEE goes over in cold: the one that is wanted of it, or that
// it is brought to for it.
func (r *record) travelPower() vhi.Power {
	if r.Target == vee.Suspended {
		return vhi.Suspended
	}
	return vhi.Stopped
}

// mayMove says why a VEE cannot be migrated in that way as it is now.
func (r *record) mayMove(cold bool) error {
	switch {
	case r.moving():
		return fault.New(fault.WrongState, "VEE %s is on its way to host %s already", r.ID, r.Move.To).Try("reservoir vee migration show %s", r.Move.ID)
	case !cold && (r.State != vee.Active || r.Target != vee.Active || !r.Assigned):
		return fault.New(fault.WrongState, "VEE %s is %s (target %s): only an ACTIVE one is migrated live", r.ID, r.State, r.Target).Try("reservoir vee migrate %s --cold", r.ID)
	case cold && !r.Assigned:
		return fault.New(fault.WrongState, "VEE %s has never run: it has no disks yet that could be moved", r.ID)
	case cold && (r.State != r.Target || !slices.Contains([]vee.State{vee.Active, vee.Suspended, vee.Defined}, r.State)):
		return fault.New(fault.WrongState, "VEE %s is %s (target %s): it is migrated cold when it is ACTIVE, SUSPENDED or DEFINED", r.ID, r.State, r.Target)
	case cold && r.Lease != nil && r.Lease.Sealing:
		return fault.New(fault.WrongState, "VEE %s is being given to another host by its site", r.ID).Try("reservoir vee show %s", r.ID)
	}
	return nil
}

// depart begins r's migration to a host that may take it. One that goes cold is under no lease
// from then on: nobody gives it away, and where it arrives it gets one by that site's own log.
func (r *record) depart(t *tx, id string, pass tickets, to string, in vmi.Migrate) vmi.Migration {
	v := migration{Address: t.hosts.get(to).Address, Underlay: t.hosts.get(to).Underlay, Ticket: pass.host}
	if vhi.SiteOf(to) != "" || vhi.SiteOf(r.Host) != "" {
		v.Route = pass.proxy
	}
	v.Migration = vmi.Migration{ID: id[:12], VEE: r.ID, Name: r.Descriptor.Name, From: r.Host, To: to, State: vmi.MigrationRunning,
		Bandwidth: in.Bandwidth, AutoConverge: in.AutoConverge, Started: t.now}
	if in.Cold {
		v.Cold, r.Lease, r.Offered = r.travelPower(), nil, false
	}
	if in.DeadlineMS > 0 {
		end := t.now.Add(time.Duration(in.DeadlineMS) * time.Millisecond)
		v.Deadline = &end
	}
	r.Move, r.Phase = &v, vee.PhaseMigrate
	r.Seq += 2 // one beyond what a left-over of an earlier attempt was removed under
	t.putVEE(*r)
	return v.Migration
}

// destination of a migration, or why there is none.
func (m *Manager) destination(t *tx, r record, to string, cold bool) (string, error) {
	op, what := operation(cold)
	if partner := vhi.AtSite(to); t.hosts.get(to) == nil && t.hosts.get(partner) != nil {
		to = partner
	}
	switch {
	case r.lodges():
		return "", fault.New(fault.Denied, "VEE %s is site %s's, which alone moves it", r.ID, r.ID.Site())
	case r.Lease != nil && vhi.SiteOf(to) != "" && !cold:
		return "", errLeased(r.ID)
	case r.mayMove(cold) != nil:
		return "", r.mayMove(cold)
	case to == r.Host:
		return "", fault.New(fault.WrongState, "VEE %s is on host %s already", r.ID, to)
	case to != "" && t.hosts.get(to) == nil:
		return "", errNoHost(to)
	case !m.hosts.alive(r.Host):
		return "", fault.New(fault.Unavailable, "host %s, where VEE %s runs, does not answer", r.Host, r.ID)
	}
	if site := vhi.SiteOf(to); site != "" {
		if err := m.mayGo(t, r, site, nil); err != nil {
			return "", err
		}
	}
	board := m.board(t)
	for i := range board {
		h := &board[i]
		switch {
		case h.Name == r.Host:
			// Its own place does not count against it.
			h.Closed = "the VEE is there"
			if k := slices.IndexFunc(h.VEEs, func(l placement.Label) bool { return l.Group == r.Scope && slices.Equal(l.Tags, r.Descriptor.Tags) }); k >= 0 {
				h.VEEs = slices.Delete(slices.Clone(h.VEEs), k, k+1)
			}
		case h.Closed != "":
		case to != "" && h.Name != to:
			h.Closed = "another host was asked for"
		case to == "" && vhi.SiteOf(h.Name) != "":
			h.Closed = "it is another site, which nobody asked for"
		case r.Lease != nil && !cold && !t.hosts.get(h.Name).Guarded:
			h.Closed = "it has no guard, which the VEE's restart policy needs"
		case vhi.SiteOf(h.Name) != "" && !t.hosts.get(h.Name).can(op):
			h.Closed = "no agreement lets VEEs cross there " + what
		case !t.hosts.get(h.Name).can(op):
			h.Closed = "its hypervisor cannot receive a " + what + " migration"
		}
	}
	if !t.hosts.get(r.Host).can(op) {
		return "", fault.New(fault.Unsupported, "the hypervisor of host %s cannot migrate VEE %s %s", r.Host, r.ID, what)
	}
	c := m.chooseOn(t, []record{r}, board)[0]
	if c.Host == "" {
		return "", fault.New(fault.NoResources, "VEE %s cannot be migrated: %s", r.ID, c.Why).Try("reservoir host list")
	}
	return c.Host, nil
}

// can reports whether a driver of the host declares an operation.
func (h *hostRecord) can(operation string) bool {
	return slices.ContainsFunc(h.Drivers, func(d vhi.DriverInfo) bool { return slices.Contains(d.Operations, operation) })
}

// showMigration with what its hosts say of it now.
func (m *Manager) showMigration(r *record) vmi.Migration {
	s := r.Move.Migration
	if !r.moving() {
		return s
	}
	if p := m.hosts.view(r.Host, r.ID).report; p != nil && p.Move != nil && p.Move.ID == s.ID {
		s.Stage, s.Total, s.Left, s.DirtyRate, s.DowntimeMS = p.Move.Stage, p.Move.Total, p.Move.Left, p.Move.DirtyRate, p.Move.DowntimeMS
	}
	return s
}

// ListMigrations: vmi.Service.
func (m *Manager) ListMigrations(ctx context.Context) ([]vmi.Migration, error) {
	if err := overseer(ctx, false); err != nil {
		return nil, err
	}
	list := []vmi.Migration{}
	for _, r := range m.movers(func(*record) bool { return true }) {
		list = append(list, m.showMigration(&r))
	}
	slices.SortFunc(list, func(a, b vmi.Migration) int {
		if c := b.Started.Compare(a.Started); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, nil
}

// movers are the VEEs that have or had a migration and match.
func (m *Manager) movers(match func(*record) bool) (rs []record) {
	m.ledger.read(func(s *state) {
		for _, r := range s.vees.rows {
			if r.Move != nil && match(r) {
				rs = append(rs, *r)
			}
		}
	})
	return rs
}

// NewestMigration of a VEE, as it is on record; false: it has had none.
func (m *Manager) NewestMigration(id vee.ID) (vmi.Migration, bool) {
	r, ok := m.ledger.vee(id)
	if !ok || r.Move == nil {
		return vmi.Migration{}, false
	}
	return r.Move.Migration, true
}

// GetMigration: vmi.Service.
func (m *Manager) GetMigration(ctx context.Context, id string) (vmi.Migration, error) {
	if err := overseer(ctx, false); err != nil {
		return vmi.Migration{}, err
	}
	rs := m.movers(func(r *record) bool { return r.Move.ID == id || string(r.ID) == id })
	if len(rs) == 0 {
		return vmi.Migration{}, errNoMigration(id)
	}
	return m.showMigration(&rs[0]), nil
}

func errNoMigration(id string) *fault.Error {
	return fault.New(fault.NotFound, "there is no migration %s", id).Try("reservoir vee migrations")
}

// CancelMigration: vmi.Service.
func (m *Manager) CancelMigration(ctx context.Context, id string) (vmi.Migration, error) {
	return m.changeMigration(ctx, id, func(r *record) {
		if !r.Move.Cancelling {
			r.cancelMove("it was cancelled")
		}
	})
}

// LimitMigration: vmi.Service.
func (m *Manager) LimitMigration(ctx context.Context, id string, bandwidth vee.Bytes) (vmi.Migration, error) {
	if bandwidth < 0 {
		return vmi.Migration{}, malformed("migration", "bandwidth cannot be negative")
	}
	return m.changeMigration(ctx, id, func(r *record) {
		if r.Move.Bandwidth != bandwidth && !r.Move.Cancelling {
			v := *r.Move
			v.Bandwidth = bandwidth
			r.Move = &v
			r.Seq++
		}
	})
}

// changeMigration of one that is under way.
func (m *Manager) changeMigration(ctx context.Context, id string, change func(*record)) (vmi.Migration, error) {
	if err := overseer(ctx, true); err != nil {
		return vmi.Migration{}, err
	}
	rs := m.movers(func(r *record) bool { return r.Move.ID == id || string(r.ID) == id })
	if len(rs) == 0 {
		return vmi.Migration{}, errNoMigration(id)
	}
	err := m.ledger.do(ctx, func(t *tx) error {
		r, ok := t.vee(rs[0].ID)
		switch {
		case !ok || r.Move == nil || r.Move.ID != rs[0].Move.ID:
			return errNoMigration(id)
		case !r.moving():
			return fault.New(fault.WrongState, "migration %s has ended: %s", id, r.Move.State)
		}
		change(&r)
		t.putVEE(r)
		return nil
	})
	if err != nil {
		return vmi.Migration{}, err
	}
	return m.GetMigration(ctx, rs[0].Move.ID)
}

// because hosts wanted it so: empty where the site did.
func (m *migration) because(format string) string {
	if m.By == "" {
		return ""
	}
	return fmt.Sprintf(format, m.By)
}

// migrationNotes are the events of a migration.
func migrationNotes(a, b *record, add func(warning bool, reason, format string, args ...any)) {
	if a.Move == nil || a.Move.same(b.Move) {
		return
	}
	switch s := a.Move; s.State {
	case vmi.MigrationRunning:
		if s.Cancelling {
			add(false, "MigrationCancelling", "%s", s.Error)
		} else if b.Move == nil || b.Move.ID != s.ID {
			add(false, "Migrating", "%sfrom host %s to host %s", s.because("is moved by its hosts (%s) "), s.From, s.To)
		}
	case vmi.MigrationDone:
		still := fmt.Sprintf("; it stood still for %d ms", s.DowntimeMS)
		if s.DowntimeMS == 0 { // it did not run, or nobody has said
			still = ""
		}
		add(false, "Migrated", "%sfrom host %s to host %s%s", s.because("was moved by its hosts (%s) "), s.From, s.To, still)
	default:
		add(true, "MigrationFailed", "it stays on host %s: %s", s.From, orElse(s.Error, fmt.Sprint(s.State)))
	}
}
