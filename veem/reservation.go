package veem

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Capacity that is reserved for a later time. The site whose capacity it is gives each VEE of a
// reservation a slot on one of its hosts. A VEE without a reservation has no end: it counts as
// staying, so wherever it is placed beside slots, the slots are free when their time comes
// (veem/calendar). A slot is taken by a VEE that is placed under the reservation.
//
// Between sites it is reserved in two phases: the borrower's record is written before the
// partner is asked, and says afterwards what is wanted of the partner, which is asked until it
// has answered. What nobody commits expires at both sites, each by its own clock.

// reservation as it is stored.
type reservation struct {
	vmi.Reservation
	// Slots are the hosts that room is kept on, one for each VEE; none of a partner's.
	Slots []string `json:"slots,omitempty"`
	// Wish is what the partner has still to be told.
	Wish wish `json:"wish,omitempty"`
	// Touched: a VEE was placed under it once.
	Touched bool      `json:"touched,omitempty"`
	Closed  time.Time `json:"closed,omitzero"` // when it was over
}

type wish string

const (
	wishCommit wish = "commit"
	wishCancel wish = "cancel"
)

const (
	// holdReservation of the first phase.
	holdReservation = time.Minute
	// useWithin is how long one is kept for nobody.
	useWithin = time.Hour
	// farthest that anything is reserved ahead, and maxReservations of one customer or partner.
	farthest        = 366 * 24 * time.Hour
	maxReservations = 100
	keepClosed      = 24 * time.Hour
)

// Booking partners keep capacity for a later time; the vhi.Host of a partner is one.
type Booking interface {
	// Book and commit in two phases; cancel at any time. The answer is how it is there.
	Book(ctx context.Context, r vmi.Reserve) (vmi.Reservation, error)
	CommitBooking(ctx context.Context, id string) (vmi.Reservation, error)
	CancelBooking(ctx context.Context, id string) (vmi.Reservation, error)
	Booked(ctx context.Context, id string) (vmi.Reservation, error)
}

// site whose reservation it is: of one of ours, this one.
func (r *reservation) owner() string { return vee.ID(r.ID).Site() }

// slot is one of its VEEs.
func (r *reservation) slot() vee.Descriptor {
	return vee.Descriptor{Name: "reservation " + r.ID, VCPUs: r.VCPUs, Memory: r.Memory, Disks: []vee.Disk{{Name: "root", Size: r.Disk}}}
}

// serves VEEs of a customer; one that names none serves all of its site's.
func (r *reservation) serves(customer string) bool {
	return r.Customer == "" || r.Customer == customer || strings.HasSuffix(r.Customer, "/") && strings.HasPrefix(customer, r.Customer)
}

// close it, for a reason.
func (r *reservation) close(s vmi.ReservationState, now time.Time, note string) {
	r.State, r.Note, r.Closed, r.HeldUntil = s, note, now, nil
}

// Reserve: vmi.Service.
func (m *Manager) Reserve(ctx context.Context, in vmi.Reserve) (vmi.Reservation, error) {
	caller := identity.From(ctx)
	if err := mayCommand(caller); err != nil {
		return vmi.Reservation{}, err
	}
	in.From, in.Until = in.From.UTC(), in.Until.UTC()
	if err := m.checkReserve(caller, &in); err != nil {
		return vmi.Reservation{}, err
	}
	if err := m.ready(ctx); err != nil {
		return vmi.Reservation{}, err
	}
	if in.ID == "" {
		id, err := m.newID()
		if err != nil {
			return vmi.Reservation{}, err
		}
		in.ID = string(id)
	}
	var made reservation
	err := m.ledger.do(ctx, func(t *tx) (err error) {
		made, err = m.reserveIn(t, caller, in)
		return err
	})
	if err != nil {
		return vmi.Reservation{}, fmt.Errorf("reserve for %d VEEs: %w", in.VEEs, err)
	}
	m.queue.add(job{reserveJob, ""}, noticeLane) // it may begin now
	if in.At == "" {
		return made.Reservation, nil
	}
	return m.reserveThere(ctx, made)
}

func (m *Manager) checkReserve(caller identity.Caller, in *vmi.Reserve) error {
	now := m.cfg.Now()
	switch {
	case in.VEEs < 1 || in.VEEs > 1000 || in.VCPUs < 1 || in.Memory < vee.MiB || in.Disk < 0:
		return malformed("vees", "%d of %d vCPUs, %v of memory and %v of disk: want some of each", in.VEEs, in.VCPUs, in.Memory, in.Disk)
	case !in.Until.After(in.From) || !in.Until.After(now):
		return malformed("until", "%s: want a time to come, after from, %s", in.Until.Format(time.RFC3339), in.From.Format(time.RFC3339))
	case in.Until.Sub(now) > farthest:
		return malformed("until", "%s: want at most a year ahead", in.Until.Format(time.RFC3339))
	case in.UseWithinMS < 0 || in.UseWithinMS > farthest.Milliseconds():
		return malformed("useWithinMs", "%d: want 0 to a year", in.UseWithinMS)
	case caller.Is(identity.Partner):
		id, err := vee.ParseID(in.ID)
		if err != nil {
			return malformed("id", "%v", err)
		}
		if id.Site() != caller.Site || in.At != "" {
			return fault.New(fault.Denied, "reservation %s at %q is not site %s's to make here", in.ID, in.At, caller.Site)
		}
		in.Customer = foreign(caller.Site, in.Customer)
	case in.ID != "":
		return malformed("id", "only another site's VEE Manager has it to say")
	case caller.Is(identity.Provider):
		in.Customer = caller.Customer
	}
	return nil
}

// reserveIn the record: everything that does not need the partner.
func (m *Manager) reserveIn(t *tx, caller identity.Caller, in vmi.Reserve) (reservation, error) {
	if old := t.reservations.get(in.ID); old != nil { // the same again
		if old.Reserve != in {
			return *old, fault.New(fault.Conflict, "there is another reservation %s", in.ID)
		}
		return *old, nil
	}
	mine := 0
	for _, r := range t.reservations.all() {
		if !r.State.Over() && r.Customer == in.Customer {
			mine++
		}
	}
	if mine >= maxReservations {
		return reservation{}, fault.New(fault.QuotaExceeded, "customer %q has %d reservations already", in.Customer, mine).Try("reservoir reservation list")
	}
	r := reservation{Reservation: vmi.Reservation{Reserve: in, State: vmi.ReservationReserved, Created: t.now}}
	r.From = later(r.From, t.now.Truncate(time.Millisecond).UTC())
	size := slices.Repeat([]vee.Descriptor{r.slot()}, in.VEEs)
	has := m.lodging(t, caller.Site, "")
	switch {
	case in.At != "":
		if err := m.reservable(t, &r, size); err != nil {
			return r, err
		}
	case caller.Is(identity.Partner):
		if m.cfg.Partnership == nil {
			return r, fault.New(fault.Denied, "site %s lends nothing to site %s", m.cfg.Site, caller.Site)
		}
		if err := m.cfg.Partnership.Covers(m.cfg.Site, caller.Site, r.From, r.Until); err != nil {
			return r, err
		}
		err := t.within(lentTo(caller.Site), has, r.From, r.Until, "", func(has []vee.Descriptor) error {
			return m.cfg.Partnership.Admit(caller.Site, append(has, size[1:]...), size[0])
		})
		if err != nil {
			return r, err
		}
		until := t.now.Add(holdReservation)
		r.State, r.HeldUntil = vmi.ReservationHeld, &until
	}
	if in.At == "" {
		if why := m.placeSlots(t, &r); why != "" {
			return r, fault.New(fault.NoResources, "%s", why).Try("reservoir reservation list")
		}
	}
	put(t, &t.reservations, r.ID, &r)
	return r, nil
}

// lodging are the VEEs of a partner's that are here, but for one.
func (m *Manager) lodging(t *tx, site string, but vee.ID) (has []vee.Descriptor) {
	for _, o := range t.vees.all() {
		if o.lodges() && o.ID.Site() == site && o.ID != but && o.State != vee.Destroyed {
			has = append(has, o.Descriptor)
		}
	}
	return has
}

// reservable at a partner, as far as this site knows: the first phase begins.
func (m *Manager) reservable(t *tx, r *reservation, size []vee.Descriptor) error {
	host := t.hosts.get(vhi.AtSite(r.At))
	if host == nil || m.cfg.Partnership == nil {
		return fault.New(fault.NotFound, "site %q is no partner that lends to this one", r.At).Try("reservoir federation list")
	}
	if err := m.cfg.Partnership.Covers(r.At, m.cfg.Site, r.From, r.Until); err != nil {
		return err
	}
	var has []vee.Descriptor
	for _, o := range t.vees.all() {
		if o.at(host.Name) && o.State != vee.Destroyed {
			has = append(has, o.Descriptor)
		}
	}
	err := t.within(borrowedAt(r.At), has, r.From, r.Until, "", func(has []vee.Descriptor) error {
		offer, err := m.cfg.Partnership.Offer(r.At, append(has, size[1:]...), size[0])
		r.Agreement, r.Currency, r.PerHour = offer.Agreement, offer.Currency, offer.PerHour*float64(r.VEEs)
		return err
	})
	if err != nil {
		return err
	}
	until := t.now.Add(holdReservation)
	r.State, r.HeldUntil = vmi.ReservationHeld, &until
	return nil
}

// reserveThere is the partner's part. Where its answer is lost, it goes on by itself.
func (m *Manager) reserveThere(ctx context.Context, r reservation) (vmi.Reservation, error) {
	c, err := m.booking(r.At)
	if err == nil {
		call, cancel := context.WithTimeout(ctx, m.cfg.Timing.Call)
		in := r.Reserve
		in.At = ""
		_, err = c.Book(call, in)
		cancel()
	}
	if err != nil {
		drop := m.ledger.do(context.WithoutCancel(ctx), func(t *tx) error {
			if now := t.reservations.get(r.ID); now != nil {
				n := *now
				n.close(vmi.ReservationCancelled, t.now, "site "+r.At+" was asked: "+fault.From(err).Message)
				if f := fault.From(err); f.Code == fault.Unavailable || f.Code == fault.Timeout || f.Code == fault.Internal {
					n.Wish = wishCancel // it may have heard
				}
				put(t, &t.reservations, r.ID, &n)
			}
			return nil
		})
		if drop != nil {
			m.cfg.Log.Warn("give a reservation up: it expires", "reservation", r.ID, "err", drop)
		}
		f := fault.From(err)
		return vmi.Reservation{}, fault.New(f.Code, "site %s reserves nothing: %s", r.At, f.Message).Try("reservoir federation show %s", r.At)
	}
	err = m.ledger.do(ctx, func(t *tx) error {
		if now := t.reservations.get(r.ID); now != nil && now.State == vmi.ReservationHeld {
			n := *now
			n.Wish = wishCommit
			put(t, &t.reservations, r.ID, &n)
		}
		return nil
	})
	if err != nil {
		return vmi.Reservation{}, err
	}
	if err := m.settleThere(ctx, r.ID); err != nil {
		m.cfg.Log.Info("commit a reservation at a partner: tried again", "reservation", r.ID, "err", err)
	}
	return m.GetReservation(ctx, r.ID)
}

func (m *Manager) booking(site string) (Booking, error) {
	c, err := m.client(vhi.AtSite(site))
	if err != nil {
		return nil, err
	}
	b, ok := c.(Booking)
	if !ok {
		return nil, fault.New(fault.Unsupported, "site %s keeps no capacity for a later time", site)
	}
	return b, nil
}

// settleThere tells the partner what is wanted, or asks how it is.
func (m *Manager) settleThere(ctx context.Context, id string) error {
	var r reservation
	m.ledger.read(func(s *state) {
		if p := s.reservations.rows[id]; p != nil {
			r = *p
		}
	})
	if r.At == "" {
		return nil
	}
	c, err := m.booking(r.At)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timing.Call)
	defer cancel()
	var there vmi.Reservation
	switch r.Wish {
	case wishCommit:
		there, err = c.CommitBooking(ctx, id)
	case wishCancel:
		there, err = c.CancelBooking(ctx, id)
	default:
		there, err = c.Booked(ctx, id)
	}
	if gone := fault.Has(err, fault.NotFound) || fault.Has(err, fault.WrongState); gone {
		there.State, there.Note = vmi.ReservationExpired, fault.From(err).Message
	} else if err != nil {
		return err
	}
	return m.ledger.do(ctx, func(t *tx) error {
		now := t.reservations.get(id)
		if now == nil || now.Wish != r.Wish {
			return nil
		}
		n := *now
		n.Wish = ""
		switch {
		case n.State.Over():
		case there.State.Over():
			n.close(there.State, t.now, "site "+n.At+": "+cmp.Or(there.Note, string(there.State)))
		case there.State != vmi.ReservationHeld && n.State == vmi.ReservationHeld:
			n.State, n.HeldUntil = vmi.ReservationReserved, nil
		}
		put(t, &t.reservations, id, &n)
		return nil
	})
}

// lookAtReservations: those whose hour has come, and partners that have to be told.
func (m *Manager) lookAtReservations(ctx context.Context) result {
	var abroad []string
	var told []Event
	begun := false
	err := m.ledger.do(ctx, func(t *tx) error {
		abroad, told, begun = nil, nil, false
		for id, r := range t.reservations.all() {
			n := *r
			if n.State.Over() && n.Wish == "" && t.now.Sub(n.Closed) > keepClosed {
				put(t, &t.reservations, id, nil)
				continue
			}
			if e, changed := m.reservationDue(t, &n); changed {
				put(t, &t.reservations, id, &n)
				told, begun = append(told, e), true
			}
			if n.At != "" && (n.Wish != "" || n.State == vmi.ReservationReserved || n.State == vmi.ReservationActive) {
				abroad = append(abroad, id)
			}
		}
		return nil
	})
	if err != nil {
		return m.attempt("look at reservations", noticeLane, err)
	}
	for _, e := range told {
		m.record(e)
	}
	if begun {
		m.queue.add(job{placeJob, ""}, placeLane)
	}
	slices.Sort(abroad)
	for _, id := range abroad {
		if err := m.settleThere(ctx, id); err != nil {
			m.cfg.Log.Info("a reservation at a partner", "reservation", id, "err", err)
		}
	}
	return result{after: m.cfg.Timing.Look, lane: noticeLane}
}

// reservationDue is what the hour, or the end of an agreement, does to one.
func (m *Manager) reservationDue(t *tx, r *reservation) (e Event, changed bool) {
	was, slots := r.State, strings.Join(r.Slots, " ")
	note := r.Note
	for _, n := range t.under(r.ID) {
		r.Touched = r.Touched || n > 0
	}
	touched := r.Touched
	within := time.Duration(cmp.Or(r.UseWithinMS, useWithin.Milliseconds())) * time.Millisecond
	var notice *Notice
	switch {
	case m.cfg.Partnership == nil:
	case r.At != "":
		notice = m.cfg.Partnership.Notice(r.At, m.cfg.Site)
	case r.owner() != m.cfg.Site:
		notice = m.cfg.Partnership.Notice(m.cfg.Site, r.owner())
	}
	switch {
	case r.State.Over():
		if r.Wish != "" && t.now.After(r.Until) {
			r.Wish = "" // nothing is kept there any more either
			return e, true
		}
		return e, false
	case notice != nil:
		r.close(vmi.ReservationCancelled, t.now, notice.Why)
	case !t.now.Before(r.Until):
		r.close(vmi.ReservationEnded, t.now, "")
		put(t, &t.reservations, r.ID, r)
		m.outstayed(t, r.ID, r.Until)
	case r.State == vmi.ReservationHeld && !t.now.Before(*r.HeldUntil) && r.Wish == "":
		r.close(vmi.ReservationExpired, t.now, "it was not committed in time")
		if r.At != "" {
			r.Wish = wishCancel
		}
	case r.State == vmi.ReservationActive && !touched && !t.now.Before(r.From.Add(within)):
		r.close(vmi.ReservationExpired, t.now, fmt.Sprintf("no VEE was placed under it within %s of its beginning", within))
		if r.At != "" {
			r.Wish = wishCancel
		}
	case r.State == vmi.ReservationReserved && !t.now.Before(r.From):
		r.State = vmi.ReservationActive
	}
	if len(r.Slots) > 0 && !r.State.Over() {
		r.Note = m.placeSlots(t, r)
	}
	if r.State == was && r.Note == note && touched == r.Touched && strings.Join(r.Slots, " ") == slots {
		old := t.reservations.get(r.ID)
		return e, old != nil && old.Touched != r.Touched
	}
	e = Event{Reason: "Reservation", Object: "reservation/" + r.ID, Customer: r.Customer, Message: fmt.Sprintf("%s: %d VEEs from %s until %s", r.State, r.VEEs, r.From.Format(time.RFC3339), r.Until.Format(time.RFC3339))}
	if r.Note != "" {
		e.Warning, e.Message = true, e.Message+": "+r.Note
	}
	return e, true
}

// CommitReservation: vmi.Service.
func (m *Manager) CommitReservation(ctx context.Context, id string) (vmi.Reservation, error) {
	return m.changeReservation(ctx, id, func(t *tx, r *reservation) error {
		switch {
		case r.State.Over():
			return fault.New(fault.WrongState, "reservation %s is %s: %s", id, r.State, cmp.Or(r.Note, "it is over"))
		case r.State == vmi.ReservationHeld && r.At == "" && !t.now.Before(*r.HeldUntil):
			return fault.New(fault.WrongState, "reservation %s was not committed in time", id)
		case r.State == vmi.ReservationHeld && r.At == "":
			r.State, r.HeldUntil = vmi.ReservationReserved, nil
		}
		return nil
	})
}

// CancelReservation: vmi.Service.
func (m *Manager) CancelReservation(ctx context.Context, id string) (vmi.Reservation, error) {
	out, err := m.changeReservation(ctx, id, func(t *tx, r *reservation) error {
		if !r.State.Over() {
			r.close(vmi.ReservationCancelled, t.now, "by "+cmp.Or(identity.From(ctx).ID, "an operator"))
			if r.At != "" {
				r.Wish = wishCancel
			}
		}
		return nil
	})
	if err == nil && out.At != "" {
		m.queue.add(job{reserveJob, ""}, noticeLane)
	}
	return out, err
}

func (m *Manager) changeReservation(ctx context.Context, id string, change func(*tx, *reservation) error) (out vmi.Reservation, err error) {
	caller := identity.From(ctx)
	if err := mayCommand(caller); err != nil {
		return out, err
	}
	err = m.ledger.do(ctx, func(t *tx) error {
		old := t.reservations.get(id)
		if err := seesReservation(caller, id, old); err != nil {
			return err
		}
		n := *old
		if err := change(t, &n); err != nil {
			return err
		}
		put(t, &t.reservations, id, &n)
		out = n.Reservation
		return nil
	})
	return out, err
}

func seesReservation(c identity.Caller, id string, r *reservation) error {
	if r == nil || c.Is(identity.Partner) && r.owner() != c.Site || !c.Is(identity.Partner) && !c.Sees(r.Customer) {
		return fault.New(fault.NotFound, "there is no reservation %s", id).Try("reservoir reservation list")
	}
	return nil
}

// GetReservation: vmi.Service.
func (m *Manager) GetReservation(ctx context.Context, id string) (vmi.Reservation, error) {
	list, err := m.ListReservations(ctx)
	for _, r := range list {
		if r.ID == id {
			return r, nil
		}
	}
	if err != nil {
		return vmi.Reservation{}, err
	}
	return vmi.Reservation{}, seesReservation(identity.Caller{}, id, nil)
}

// ListReservations: vmi.Service.
func (m *Manager) ListReservations(ctx context.Context) ([]vmi.Reservation, error) {
	caller := identity.From(ctx)
	if err := mayFollow(caller); err != nil {
		return nil, err
	}
	list := []vmi.Reservation{}
	m.ledger.read(func(s *state) {
		used := map[string]int{}
		for _, r := range s.vees.rows {
			if id := r.Descriptor.Where.Reservation; id != "" && r.State != vee.Destroyed && r.Host != "" {
				used[id]++
			}
		}
		for id, r := range s.reservations.rows {
			if seesReservation(caller, id, r) == nil {
				out := r.Reservation
				out.Used = used[id]
				if caller.Is(identity.Partner) {
					out.Customer = strings.TrimPrefix(out.Customer, foreign(caller.Site, ""))
				}
				list = append(list, out)
			}
		}
	})
	slices.SortFunc(list, func(a, b vmi.Reservation) int { return cmp.Or(a.From.Compare(b.From), strings.Compare(a.ID, b.ID)) })
	return list, nil
}
