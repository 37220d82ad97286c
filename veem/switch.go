package veem

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// A context switch puts all VEEs of a VE (the VEEs of one service on this site; seed 4) to
// sleep, or wakes them, as one reconfiguration. Its row is written together with the first
// wish to any host, and dropped together with the last word: that write is the commit point.
// Before it, a VEE that does not follow (its disk is full, its host is lost, somebody asks
// something else of it) sends all the others back to where they were; while they are on
// their way none gives up its room, so that the way back is open.
//
// A VE that is to wake and has no room waits, with a row that says so: the queue of waiting
// VEs, oldest first. A younger one that fits passes one that does not.

// contextSwitch is the row of kind "context-switch".
type contextSwitch struct {
	IDs   []vee.ID  `json:"ids"`
	To    vee.State `json:"to"` // Suspended or Active
	Since time.Time `json:"since"`
	Waits bool      `json:"waits,omitempty"` // for room; nothing was asked of any host yet
}

// maxSwitched VEEs go into one write, with the row and the call's receipt.
const maxSwitched = MaxOps - 2

// verdict on a context switch.
type verdict int

const (
	underWay verdict = iota
	reached          // every VEE is where it should be: commit
	broken           // go back
)

// judge a context switch by its VEEs as they are. lost: the host does not answer.
func (c contextSwitch) judge(key string, get func(vee.ID) (record, bool), lost func(host string) bool) (v verdict, why string) {
	v = reached
	for _, id := range c.IDs {
		r, ok := get(id)
		switch {
		case !ok || r.Target == vee.Destroyed:
			return broken, fmt.Sprintf("VEE %s was destroyed", id)
		case c.Waits && (r.Target != vee.Suspended || r.Switch != key):
			return broken, r.Descriptor.Name + " was asked for something else"
		case c.Waits:
			v = underWay
		case r.Failure != "":
			return broken, r.Descriptor.Name + ": " + r.Failure
		case r.Target != c.To || r.Switch != key:
			return broken, r.Descriptor.Name + " was asked for something else"
		case r.State == c.To && r.Settled:
		case lost(r.Host):
			return broken, fmt.Sprintf("%s: its host %s does not answer", r.Descriptor.Name, r.Host)
		default:
			v = underWay
		}
	}
	return v, ""
}

// back is a VEE of a broken switch on its way back; what was asked of it since stands.
func (c contextSwitch) back(r record, why string) record {
	if r.Switch = ""; !c.Waits && r.Target == c.To {
		to := vee.Suspended
		if c.To == vee.Suspended {
			to = vee.Active
		}
		r.retarget(to)
		r.Failure, r.Error = why, why
	}
	return r
}

// asleep: its room is free, unless it may have to go back.
func (r *record) asleep() bool { return r.State == vee.Suspended && r.Switch == "" }

// lookAtSwitch commits a context switch, or reverts it.
func (m *Manager) lookAtSwitch(ctx context.Context, key string) result {
	v := underWay
	m.ledger.read(func(s *state) {
		if c := s.switches.rows[key]; c != nil {
			v, _ = c.judge(key, s.stored, m.hosts.lost)
		}
	})
	if v == underWay {
		return result{}
	}
	var e *Event
	err := m.ledger.do(ctx, func(t *tx) error {
		e = nil
		c := t.switches.get(key)
		if c == nil {
			return nil
		}
		v, why := c.judge(key, t.vee, m.hosts.lost)
		if v == underWay {
			return nil
		}
		put(t, &t.switches, key, nil)
		e = &Event{Reason: "ContextSwitch", Message: fmt.Sprintf("%d VEEs are %s", len(c.IDs), c.To)}
		if v == broken {
			why = fmt.Sprintf("not all VEEs could become %s, and so none is: %s", c.To, why)
			e.Warning, e.Reason, e.Message = true, "ContextSwitchReverted", why
		}
		for _, id := range c.IDs {
			r, ok := t.vee(id)
			if !ok || r.Switch != key {
				continue
			}
			e.Object, e.Customer, e.GroupID = "vee/"+string(id), r.Descriptor.Customer, r.Descriptor.GroupID
			if v == broken {
				r = c.back(r, why)
			}
			r.Switch = ""
			r.Holds = r.Holds && !r.asleep() // whoever hears of the end finds the room free
			t.putVEE(r)
		}
		return nil
	})
	if err == nil && e != nil {
		m.record(*e)
	}
	return m.attempt("context switch "+key, placeLane, err)
}

// stored is a VEE as it is in the store.
func (s *state) stored(id vee.ID) (record, bool) {
	if r := s.vees.rows[string(id)]; r != nil {
		return *r, true
	}
	return record{}, false
}

// switchAll makes all VEEs sleep or wake, or none: vmi.UpdateState with Together. VEEs that
// are there already are left out.
func (m *Manager) switchAll(ctx context.Context, caller identity.Caller, u vmi.UpdateState, key string, hash []byte) (outs []vmi.Outcome, seqs []uint64, err error) {
	if err := checkSwitch(u); err != nil {
		return nil, nil, err
	}
	name, err := m.nonce()
	if err != nil {
		return nil, nil, err
	}
	err = m.ledger.do(ctx, func(t *tx) error {
		outs, seqs = nil, nil
		old, err := t.receipts.get(key).of(hash)
		if err != nil {
			return err
		}
		if old.Outcomes == nil {
			if err := m.beginSwitch(caller, t, u, name); err != nil {
				return err
			}
			old = receipt{At: t.now, Request: hash, Outcomes: map[vee.ID]vmi.Outcome{}, Seqs: map[vee.ID]uint64{}}
			for _, id := range u.IDs {
				r, _ := t.vee(id)
				old.Outcomes[id], old.Seqs[id] = outcome(id, r.waitsFor(t), nil), r.Seq
			}
			if key != "" {
				put(t, &t.receipts, key, &old)
			}
		}
		for _, id := range u.IDs {
			outs, seqs = append(outs, old.Outcomes[id]), append(seqs, old.Seqs[id])
		}
		return nil
	})
	return outs, seqs, err
}

func checkSwitch(u vmi.UpdateState) error {
	switch {
	case u.Action != vee.Suspend && u.Action != vee.Activate:
		return malformed("together", "VEEs are put to sleep (%s) or woken (%s) together, and not %s", vee.Suspend, vee.Activate, u.Action)
	case u.Ordered:
		return malformed("ordered", "what is done together has no order")
	case len(u.IDs) > maxSwitched:
		return malformed("ids", "%d VEEs: one context switch takes at most %d", len(u.IDs), maxSwitched)
	}
	return nil
}

// beginSwitch asks everything of all VEEs, or puts them into the queue.
func (m *Manager) beginSwitch(caller identity.Caller, t *tx, u vmi.UpdateState, name string) error {
	c := contextSwitch{To: vee.Active, Since: t.now}
	if u.Action == vee.Suspend {
		c.To = vee.Suspended
	}
	for _, id := range u.IDs {
		r, err := find(caller, t, id)
		if err != nil {
			return err
		}
		w := t.switches.get(r.Switch)
		waits := w != nil && w.Waits
		switch {
		case r.moving():
			return fault.New(fault.WrongState, "VEE %s is migrating", id).Try("wait until it has arrived, or cancel the migration")
		case waits && c.To == vee.Suspended:
			t.dropSwitch(r.Switch) // it waited to be woken: now nobody wants that
		case r.Target == c.To || waits:
		default:
			c.IDs = append(c.IDs, id)
		}
	}
	if len(c.IDs) == 0 {
		return nil
	}
	err := m.askAllOf(caller, t, c.IDs, u.Action)
	if fault.Has(err, fault.NoResources) && u.Queue {
		c.Waits, err = true, nil
	}
	if err != nil {
		return err
	}
	m.enrol(t, name, c)
	return nil
}

// askAllOf VEEs for a state; after an error none has changed.
func (m *Manager) askAllOf(caller identity.Caller, t *tx, ids []vee.ID, a vee.Action) error {
	mark := len(t.undo)
	for _, id := range ids {
		if _, err := m.apply(caller, t, id, a); err != nil {
			t.rollback(mark)
			return err
		}
	}
	return nil
}

// enrol the VEEs of a context switch in it.
func (m *Manager) enrol(t *tx, name string, c contextSwitch) {
	for _, id := range c.IDs {
		r, _ := t.vee(id)
		r.Switch = name
		t.putVEE(r)
	}
	put(t, &t.switches, name, &c)
}

// admit the waiting VEs that there is room for now, as many as one write takes; more: there
// may be others.
func (m *Manager) admit(t *tx) (more bool) {
	for i, w := range waiting(t.switches.all()) {
		if i > 0 && more {
			return true // the next write
		}
		c := *t.switches.get(w)
		if m.askAllOf(identity.Caller{Role: identity.SiteRole}, t, c.IDs, vee.Activate) != nil {
			continue
		}
		c.Waits = false
		m.enrol(t, w, c)
		more = true
	}
	return false
}

// dropSwitch forgets a context switch that has asked nothing of anybody.
func (t *tx) dropSwitch(name string) {
	for _, id := range t.switches.get(name).IDs {
		if r, ok := t.vee(id); ok && r.Switch == name {
			r.Switch = ""
			t.putVEE(r)
		}
	}
	put(t, &t.switches, name, nil)
}

// waiting context switches, oldest first.
func waiting(all iter.Seq2[string, *contextSwitch]) (names []string) {
	since := map[string]time.Time{}
	for name, c := range all {
		if c.Waits {
			since[name] = c.Since
		}
	}
	return slices.SortedFunc(maps.Keys(since), func(a, b string) int { return cmp.Or(since[a].Compare(since[b]), cmp.Compare(a, b)) })
}

// pending VEEs have no place yet; the oldest come first.
func pending(all iter.Seq2[string, *record]) (list []record) {
	for _, r := range all {
		if r.State == vee.Initial && r.Host == "" && r.Target != vee.Destroyed {
			list = append(list, *r)
		}
	}
	slices.SortFunc(list, func(a, b record) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return list
}

// inQueue has the places in the queue, from 1, of the VEEs that wait for room: first those of
// VEs that are to wake, whose disks lie on their hosts already, then new ones, by the age of
// the oldest VEE of their group. The VEEs of one group share a place.
func (s *state) inQueue() map[vee.ID]int {
	at, last := map[vee.ID]int{}, 0
	for _, name := range waiting(maps.All(s.switches.rows)) {
		last++
		for _, id := range s.switches.rows[name].IDs {
			at[id] = last
		}
	}
	groups := map[string]int{}
	for _, r := range pending(maps.All(s.vees.rows)) {
		if groups[r.Scope] == 0 {
			last++
			groups[r.Scope] = last
		}
		at[r.ID] = groups[r.Scope]
	}
	return at
}

// waitsFor says what a VEE of a context switch waits for; empty: nothing.
func (r *record) waitsFor(t *tx) string {
	if c := t.switches.get(r.Switch); c != nil && c.Waits {
		return "waits for room"
	}
	return ""
}
