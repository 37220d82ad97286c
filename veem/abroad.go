package veem

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/federation/broker"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// VEEs of this site at its partners: when they go there, how a place is reserved, and what
// becomes of one that a partner refuses. To everything else a partner is a host (ADR 22).

// Partnership is what the site and its partners have agreed.
type Partnership interface {
	// Admit one more VEE of a partner's beside those that it has here. Errors: Denied and
	// QuotaExceeded, with what the agreement says.
	Admit(partner string, has []vee.Descriptor, more vee.Descriptor) error
	// AdmitAccess points for a partner's VEEs that are here. Errors: Denied.
	AdmitAccess(partner string) error
	// Offer of a partner for one more VEE of ours beside those that it has. Errors: why the
	// agreement does not cover it.
	Offer(partner string, has []vee.Descriptor, more vee.Descriptor) (Offer, error)
	// Candidates are this site and its partners, by name, as far as is known of them now.
	Candidates() map[string]broker.Candidate
	// Covers is nil when one agreement covers all of that time. Errors: Denied.
	Covers(lender, borrower string, from, until time.Time) error
	// Notice that VEEs of the borrower have at the lender; this site is one of the two. nil: an
	// agreement covers them, or there never was one.
	Notice(lender, borrower string) *Notice
}

// Offer of a partner.
type Offer struct {
	Agreement string
	// Country and Jurisdiction where it would run; empty: not known.
	Country, Jurisdiction string
	// PerHour is what the VEE costs while it runs, OwnPerHour the same here; of Currency.
	PerHour, OwnPerHour float64
	Currency            string
}

func (o Offer) place(site string) vee.Place {
	return vee.Place{Site: site, Country: o.Country, Jurisdiction: o.Jurisdiction}
}

// own place.
func (m *Manager) own() vee.Place {
	return vee.Place{Site: m.cfg.Site, Country: m.cfg.Country, Jurisdiction: m.cfg.Jurisdiction}
}

// scopeSite of a placement rule: together at one site, or at distinct ones.
const scopeSite = "site"

// refusal of a partner.
type refusal struct {
	Why string    `json:"why"`
	At  time.Time `json:"at"`
}

// away: its host is another site.
func (r *record) away() bool { return isPartner(r.Host) }

// refuse notes that a partner does not take r.
func (r *record) refuse(host, why string, now time.Time) {
	all := maps.Clone(r.Refused) // records are never changed in place
	if all == nil {
		all = map[string]refusal{}
	}
	all[host] = refusal{why, now}
	r.Refused, r.Error = all, why
}

// decideAway is for a VEE whose partner has nothing of it under the wish that stands. What
// ran there is started elsewhere as its restart policy says; before that the partner is told
// to have nothing of it, so that a call which is still on its way finds it withdrawn.
func decideAway(r record, p vhi.Report, now time.Time) decision {
	ran := r.State != vee.Defined && r.State != vee.Initial
	switch {
	case r.Withdraw:
		r.release()
		r.Withdraw, r.Settled = false, false
		r.HostRestarts = 0
		if r.Target != vee.Defined {
			r.Target, r.State, r.Phase = vee.Active, vee.Initial, vee.PhasePending
		} else {
			r.State, r.Phase = vee.Defined, vee.PhaseStopped
		}
		return decision{rec: r}
	case r.Target == vee.Suspended || r.Target == vee.Paused:
		return failed(r, orElse(p.Error, "its memory is gone from the partner"), p.Code, vee.Defined)
	case ran && r.Descriptor.Restart == vee.RestartNever && r.Target != vee.Defined:
		return failed(r, orElse(p.Error, "it is gone from the partner, and its restart policy is never"), p.Code, vee.Defined)
	}
	r.withdraw(orElse(p.Error, r.Host+" has given it up"), now)
	if ran {
		r.State, r.Phase = vee.Defined, vee.PhaseProlog
	}
	return decision{rec: r}
}

// RulesOf a VEE, which go with it to a partner.
func (m *Manager) RulesOf(id vee.ID) []vmi.PlacementRule {
	r, _ := m.ledger.vee(id)
	return slices.DeleteFunc(slices.Clone(r.Rules), func(p vmi.PlacementRule) bool { return p.Scope == scopeSite })
}

// Reserving partners keep a place for a while; the vhi.Host of a partner is one.
type Reserving interface {
	Reserve(ctx context.Context, a vhi.Assignment, hold time.Duration) error
}

// reserveAway makes the reservations of new VEEs real that are at partners. Of one that a
// partner refuses it looks for another place; where there is none, none of them is kept.
func (m *Manager) reserveAway(ctx context.Context, made []record) ([]record, error) {
	for i := range made {
		for asked := map[string]error{}; made[i].away(); {
			r := made[i]
			if why := asked[r.Host]; why != nil { // somebody else has decided about it meanwhile
				break
			}
			err := m.reserveAt(ctx, r)
			if err == nil {
				break
			}
			asked[r.Host] = err
			err = m.ledger.do(ctx, func(t *tx) error {
				now, ok := t.vee(r.ID)
				if made[i] = now; !ok || now.Host != r.Host || now.Assigned || now.State != vee.Defined {
					return nil
				}
				now.refuse(r.Host, fault.From(err).Message, t.now)
				until := now.ReservedUntil
				now.release()
				c := m.choose(t, []record{now})[0]
				if c.Host == "" {
					return fault.New(fault.NoResources, "VEE %q: %s", now.Descriptor.Name, c.Why)
				}
				now.reserve(c)
				now.ReservedUntil, now.Error = until, ""
				t.putVEE(now)
				made[i], _ = t.vee(r.ID)
				return nil
			})
			if err != nil {
				return nil, m.giveUp(ctx, made, err)
			}
		}
	}
	return made, nil
}

func (m *Manager) reserveAt(ctx context.Context, r record) error {
	c, err := m.client(r.Host)
	if err != nil {
		return err
	}
	place, reserves := c.(Reserving)
	if !reserves || r.ReservedUntil == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timing.Call)
	defer cancel()
	return place.Reserve(ctx, r.assignment(m.cfg.Timing.Grace), max(time.Second, r.ReservedUntil.Sub(m.cfg.Now())))
}

// giveUp VEEs that were only reserved, since one of them has no place.
func (m *Manager) giveUp(ctx context.Context, made []record, why error) error {
	err := m.ledger.do(context.WithoutCancel(ctx), func(t *tx) error {
		for _, r := range made {
			if now, ok := t.vee(r.ID); ok && !now.Submitted && now.State != vee.Destroyed {
				now.destroyReserved()
				t.putVEE(now)
			}
		}
		return nil
	})
	if err != nil {
		m.cfg.Log.Warn("give up reservations: they expire", "err", err)
	}
	return why
}

// destroyReserved ends a VEE that was never assigned. A partner that keeps a place for it is
// told.
func (r *record) destroyReserved() {
	if r.away() {
		r.Assigned = true
		r.retarget(vee.Destroyed)
		return
	}
	r.Seq++
	r.finish()
}

// choose places for rs, beside everything that has one: at this site and at its partners, as
// the policy of each VEE wants it.
func (m *Manager) choose(t *tx, rs []record) []placement.Choice {
	x := &choosing{m: m, t: t, board: m.board(t), under: map[string]int{}}
	simple := !slices.ContainsFunc(x.board, func(h placement.Host) bool { return isPartner(h.Name) })
	batch := len(rs)
	for i := range rs {
		simple = simple && anywhere(rs[i].Descriptor.Where)
		if rs[i].Descriptor.Where.Reservation != "" || slices.ContainsFunc(rs[i].Rules, func(p vmi.PlacementRule) bool { return p.Scope == scopeSite }) {
			batch, simple = 1, false // each has to see where the one before went
		}
	}
	if simple {
		return m.chooseOn(t, rs, x.board)
	}
	var all []placement.Choice
	for part := range slices.Chunk(rs, max(1, batch)) {
		all = append(all, x.place(part)...)
	}
	return all
}

// choosing is one choice of places among sites.
type choosing struct {
	m     *Manager
	t     *tx
	board []placement.Host
	known map[string]broker.Candidate // by site, ours too; nil: not asked yet
	under map[string]int              // VEEs of the call that were placed under a reservation
}

// place a batch: each at the first of its sites that has room.
func (x *choosing) place(rs []record) []placement.Choice {
	all := make([]placement.Choice, len(rs))
	prospects := make([]prospect, len(rs))
	most := 0
	for i := range rs {
		prospects[i] = x.prospect(&rs[i])
		most = max(most, len(prospects[i].sites))
	}
	for k := range most {
		x.attempt(rs, all, func(i int) map[string]string {
			if k >= len(prospects[i].sites) {
				return nil
			}
			return x.only(prospects[i], prospects[i].sites[k])
		})
		for i := range rs {
			if p := prospects[i]; k < len(p.sites) && all[i].Host != "" && siteOfHost(all[i].Host) == p.sites[k] {
				all[i].Why = p.explain(k, all[i].Why)
			}
		}
	}
	// Those that are left are told what each host and each site has against them.
	x.attempt(rs, all, func(i int) map[string]string { return prospects[i].barred })
	return all
}

// attempt to place those that have no place yet, each with its own hosts barred; nil: not now.
func (x *choosing) attempt(rs []record, all []placement.Choice, barred func(i int) map[string]string) {
	var part []record
	var which []int
	var bars []map[string]string
	for i := range rs {
		if b := barred(i); all[i].Host == "" && b != nil {
			part, which, bars = append(part, rs[i]), append(which, i), append(bars, b)
		}
	}
	if len(part) == 0 {
		return
	}
	board := x.board
	id := part[0].Descriptor.Where.Reservation
	if id != "" {
		board = x.slotsOf(id) // it is alone
	}
	for j, c := range x.m.chooseBarred(x.t, part, board, bars) {
		all[which[j]] = c
		if c.Host != "" && id != "" {
			x.under[id]++
		}
		for h := range x.board {
			if c.Host != "" && x.board[h].Name == c.Host {
				x.board[h].Used = x.board[h].Used.Plus(part[j].Descriptor.Resources())
				x.board[h].VEEs = append(slices.Clone(x.board[h].VEEs), part[j].label())
			}
		}
	}
}

// only the hosts of one site, of those that are not barred.
func (x *choosing) only(p prospect, site string) map[string]string {
	b := maps.Clone(p.barred)
	for _, h := range x.board {
		if siteOfHost(h.Name) != site && b[h.Name] == "" {
			b[h.Name] = "another site comes first"
		}
	}
	return b
}

// siteOfHost is "" for this site.
func siteOfHost(host string) string {
	if isPartner(host) {
		return partnerOf(host)
	}
	return ""
}

// refusedFor so long a partner is not asked again for a VEE that it has refused, in Looks.
const refusedFor = 4

// offer of a partner for r, or why there is none.
func (x *choosing) offer(r *record, host string, policy vee.Partnering) (Offer, string) {
	m, site := x.m, partnerOf(host)
	switch past, refused := r.Refused[host]; {
	case r.lodges():
		return Offer{}, "it is another site's already"
	case policy == vee.PartnersNever:
		return Offer{}, "it does not go to partners"
	case r.wantsPersistent():
		return Offer{}, "it has a persistent disk, which stays at its site"
	case m.cfg.Partnership == nil:
		return Offer{}, "nothing is agreed with it"
	case refused && x.t.now.Sub(past.At) < refusedFor*m.cfg.Timing.Look:
		return Offer{}, past.Why
	}
	var has []vee.Descriptor
	for _, o := range x.t.vees.all() {
		if o.at(host) && o.ID != r.ID && o.State != vee.Destroyed {
			has = append(has, o.Descriptor)
		}
	}
	var offer Offer
	may := func(has []vee.Descriptor) (err error) {
		offer, err = m.cfg.Partnership.Offer(site, has, r.Descriptor)
		return err
	}
	var err error
	if r.Descriptor.Where.Reservation != "" { // its place is counted already
		err = may(nil)
	} else {
		err = x.t.within(borrowedAt(site), has, x.t.now, time.Time{}, "", may)
	}
	if err != nil {
		return offer, fault.From(err).Message
	}
	return offer, r.Descriptor.Where.Allows(offer.place(site))
}

func (r *record) wantsPersistent() bool {
	return slices.ContainsFunc(r.Descriptor.Disks, func(d vee.Disk) bool { return d.Persistent })
}

// rules between sites that concern r: how many of those that soft ones keep apart are at each
// site, and why hard ones bar a site.
func (x *choosing) rules(r *record) (counts map[string]int, barred map[string]string) {
	counts, barred = map[string]int{}, map[string]string{}
	for _, rule := range r.Rules {
		if rule.Scope != scopeSite || !slices.Contains(r.Descriptor.Tags, rule.Tag) {
			continue
		}
		at := map[string]int{"": 0}
		for _, h := range x.board {
			site := siteOfHost(h.Name)
			at[site] += 0
			for _, l := range h.VEEs {
				if l.Group == r.Scope && slices.Contains(l.Tags, rule.Tag) {
					at[site]++
				}
			}
		}
		together := rule.Kind == string(placement.Affinity)
		elsewhere := func(site string) bool {
			for other, n := range at {
				if n > 0 && other != site {
					return true
				}
			}
			return false
		}
		for site, n := range at {
			switch {
			case rule.Soft && together:
				counts[site] -= n
			case rule.Soft:
				counts[site] += n
			case together && elsewhere(site):
				barred[site] = fmt.Sprintf("VEEs tagged %q must be at one site, and one is at another", rule.Tag)
			case !together && n > 0:
				barred[site] = fmt.Sprintf("there is a VEE tagged %q already, and they must be at distinct sites", rule.Tag)
			}
		}
	}
	return counts, barred
}

// PartnerJoined makes a partner a place for VEEs; one that is there stays as it is.
func (m *Manager) PartnerJoined(ctx context.Context, site string) error {
	if !vee.ValidName(site) {
		return fault.New(fault.Malformed, "site name %q: want a DNS label such as \"beta\"", site)
	}
	return m.joined(ctx, "@"+site, "site "+site+" lends to this one")
}
