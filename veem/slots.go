package veem

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/placement"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/veem/calendar"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Slots: the room that reservations keep, host by host, and what is left beside it.

// under are the VEEs that are placed under a reservation, by host.
func (t *tx) under(id string) map[string]int {
	n := map[string]int{}
	for _, r := range t.vees.all() {
		if r.Descriptor.Where.Reservation == id && r.State != vee.Destroyed && r.Host != "" {
			n[r.Host]++
		}
	}
	return n
}

// unused slots of a reservation, by host: a VEE takes the one on its own host, or else any.
func (t *tx) unused(r *reservation) map[string]int {
	left := map[string]int{}
	for _, h := range r.Slots {
		left[h]++
	}
	over := 0
	for h, n := range t.under(r.ID) {
		used := min(n, left[h])
		left[h] -= used
		over += n - used
	}
	for _, h := range r.Slots {
		if over > 0 && left[h] > 0 {
			left[h]--
			over--
		}
	}
	return left
}

// bookings of hosts, but for those of one reservation.
func (t *tx) bookings(except string) map[string][]calendar.Booking {
	all := map[string][]calendar.Booking{}
	for id, r := range t.reservations.all() {
		if r.State.Over() || id == except || len(r.Slots) == 0 {
			continue
		}
		takes := r.slot().Resources()
		for h, n := range t.unused(r) {
			for range n {
				all[h] = append(all[h], calendar.Booking{From: r.From, Until: r.Until, Takes: takes})
			}
		}
	}
	return all
}

// book adds to a board what is reserved on its hosts from now on.
func (t *tx) book(board []placement.Host, from, until time.Time, except string) {
	all := t.bookings(except)
	for i := range board {
		if b := all[board[i].Name]; b != nil {
			board[i].Used = board[i].Used.Plus(calendar.Peak(b, from, until))
		}
	}
}

// place slots that are on no host that takes VEEs, or say why that cannot be.
func (m *Manager) placeSlots(t *tx, r *reservation) (why string) {
	board := m.unbooked(t)
	t.book(board, later(r.From, t.now), r.Until, r.ID)
	closed := map[string]bool{}
	for _, h := range board {
		closed[h.Name] = h.Closed != "" || isPartner(h.Name)
	}
	kept := slices.DeleteFunc(slices.Clone(r.Slots), func(h string) bool { c, known := closed[h]; return c || !known })
	size := r.slot()
	for i := range board {
		h := &board[i]
		if isPartner(h.Name) {
			h.Closed = "it is another site, which nobody asked for"
		}
		for _, k := range kept {
			if k == h.Name {
				h.Used = h.Used.Plus(size.Resources())
			}
		}
	}
	var wanted []placement.Request
	for range r.VEEs - len(kept) {
		wanted = append(wanted, placement.Request{Name: size.Name, Label: placement.Label{Group: "reservation/" + r.ID}, Needs: size.Resources()})
	}
	for _, c := range m.cfg.Placer.Place(board, wanted, nil) {
		if c.Host == "" {
			return fmt.Sprintf("there is no room for %d VEEs of that size from %s until %s: %s", r.VEEs, r.From.UTC().Format(time.RFC3339), r.Until.UTC().Format(time.RFC3339), c.Why)
		}
		kept = append(kept, c.Host)
	}
	slices.Sort(kept)
	r.Slots = kept
	return ""
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// keptFor a partner (or, of ours, at one) at a moment, beside its VEEs: unused slots as VEEs.
func (t *tx) keptFor(mine func(*reservation) bool, at time.Time, except string) (slots []vee.Descriptor) {
	for id, r := range t.reservations.all() {
		if r.State.Over() || id == except || !mine(r) || at.Before(r.From) || !at.Before(r.Until) {
			continue
		}
		used := 0
		for _, n := range t.under(id) {
			used += n
		}
		for range max(0, r.VEEs-used) {
			slots = append(slots, r.slot())
		}
	}
	return slots
}

// heights are the moments at which most may be kept.
func (t *tx) heights(mine func(*reservation) bool, from, until time.Time) []time.Time {
	var all []calendar.Booking
	for _, r := range t.reservations.all() {
		if !r.State.Over() && mine(r) {
			all = append(all, calendar.Booking{From: r.From, Until: r.Until})
		}
	}
	return calendar.Moments(all, from, until)
}

// within asks whether more may be had beside has and all that is kept, at every moment.
func (t *tx) within(mine func(*reservation) bool, has []vee.Descriptor, from, until time.Time, except string, may func(has []vee.Descriptor) error) error {
	for _, at := range t.heights(mine, from, until) {
		if err := may(append(slices.Clone(has), t.keptFor(mine, at, except)...)); err != nil {
			return err
		}
	}
	return nil
}

func lentTo(site string) func(*reservation) bool {
	return func(r *reservation) bool { return r.owner() == site }
}
func borrowedAt(site string) func(*reservation) bool {
	return func(r *reservation) bool { return r.At == site }
}

// underReservation says where r may go, which is placed under one: the site, or why nowhere.
// more are others of its call.
func (x *choosing) underReservation(r *record) (site string, why string) {
	id := r.Descriptor.Where.Reservation
	res := x.t.reservations.get(id)
	d := r.Descriptor
	used := x.under[id]
	for _, n := range x.t.under(id) {
		used += n
	}
	if r.Host != "" {
		used-- // itself
	}
	switch {
	case res == nil || r.lodges() && res.owner() != r.ID.Site() || !res.serves(d.Customer):
		return "", "there is no reservation " + id + " of its customer's"
	case res.State.Over():
		return "", fmt.Sprintf("reservation %s is %s: %s", id, res.State, cmp.Or(res.Note, "its time is over"))
	case x.t.now.Before(res.From) || res.State == vmi.ReservationHeld:
		return "", fmt.Sprintf("reservation %s begins on %s", id, res.From.Format(time.RFC3339))
	case d.VCPUs > res.VCPUs || d.Memory > res.Memory || res.Disk > 0 && d.Resources().Disk > res.Disk:
		return "", fmt.Sprintf("reservation %s is for VEEs of %d vCPUs, %v of memory and %v of disk", id, res.VCPUs, res.Memory, res.Disk)
	case used >= res.VEEs:
		return "", fmt.Sprintf("all %d VEEs of reservation %s are placed", res.VEEs, id)
	}
	return res.At, ""
}

// slotsOf a reservation are free for the VEEs under it, as is what others have from its end on.
func (x *choosing) slotsOf(id string) []placement.Host {
	var until time.Time
	if r := x.t.reservations.get(id); r != nil {
		until = r.Until
	}
	all, others := x.t.bookings(""), x.t.bookings(id)
	board := slices.Clone(x.board)
	for i := range board {
		h := &board[i]
		h.Used = h.Used.Minus(calendar.Peak(all[h.Name], x.t.now, time.Time{})).Plus(calendar.Peak(others[h.Name], x.t.now, until))
	}
	return board
}

// outstayed: of the VEEs under a reservation that has ended, those stay for which there is room
// beside what is reserved from now on. The others are stopped, the newest first.
func (m *Manager) outstayed(t *tx, id string, until time.Time) {
	board := m.board(t)
	var vees []record
	for _, r := range t.vees.all() {
		if r.Descriptor.Where.Reservation == id && r.Holds && r.Assigned && r.Target != vee.Destroyed && !r.moving() && !r.away() {
			vees = append(vees, *r)
		}
	}
	slices.SortFunc(vees, func(a, b record) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(string(a.ID), string(b.ID)))
	})
	for _, r := range vees {
		i := slices.IndexFunc(board, func(h placement.Host) bool { return h.Name == r.Host })
		if i < 0 || board[i].Used.Fits(board[i].Capacity) {
			continue
		}
		board[i].Used = board[i].Used.Minus(r.usage())
		why := fmt.Sprintf("reservation %s has ended, and its room is reserved for others", id)
		if r.lodges() {
			r.evict(&Notice{By: until, Why: why}, t.now)
		} else {
			r.retarget(vee.Defined)
			r.Failure, r.FailureCode, r.Error = why, string(fault.NoResources), why
		}
		t.putVEE(r)
	}
}
