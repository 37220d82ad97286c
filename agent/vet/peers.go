package vet

import (
	"slices"
	"strings"
	"time"

	"github.com/reservoir-cloud/reservoir/agent/handover"
	"github.com/reservoir-cloud/reservoir/hypervisor"
	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// Hosts relieve each other by moves that no site has ordered (agent/lrt, docs/dvms.md). They
// are carried out as those of the site are. At the source such a move is added to the
// assignment that is obeyed, under its own number: whatever the site assigns meanwhile is
// newer, and ends it.

// Standing of a VEE that takes room on this host.
type Standing struct {
	vhi.Assignment
	// Stays says why it cannot be moved now; empty: it can.
	Stays string
}

// Standings of all VEEs, by identifier.
func (t *Tracker) Standings() []Standing {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []Standing
	for _, v := range t.vees {
		if s, here := v.standing(); here {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b Standing) int { return strings.Compare(string(a.VEE), string(b.VEE)) })
	return list
}

func (v *tracked) standing() (s Standing, here bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s.Assignment = v.want
	switch {
	case v.want.Power == "", v.want.Power == vhi.Absent && v.seen.Condition == hypervisor.Absent:
		return s, false
	default:
		s.Stays = v.stays()
	}
	return s, true
}

// stays says why v cannot be moved now. v.mu is held.
func (v *tracked) stays() string {
	switch {
	case v.want.Power != vhi.Running || v.seen.Condition != hypervisor.Running:
		return "it does not run"
	case v.part.Undecided() || v.want.Move != nil && !v.move.over:
		return "it is on its way"
	case v.doing != rest:
		return "something is done to it"
	}
	return ""
}

// Moves reports whether VEEs are on their way to or from this host, by the site's word or by
// what hosts have agreed on.
func (t *Tracker) Moves() (bySite, byHosts bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range t.vees {
		v.mu.Lock()
		if m := v.want.Move; m != nil && !v.move.over {
			bySite, byHosts = bySite || m.By == "", byHosts || m.By != ""
		}
		v.mu.Unlock()
	}
	return bySite, byHosts
}

// Depart begins to hand a VEE over that runs here under epoch e.
func (t *Tracker) Depart(id vee.ID, e vee.Epoch, m vhi.Move) error {
	v := t.find(id)
	if v == nil {
		return fault.New(fault.NotFound, "VEE %s is not on this host", id)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	why := v.stays()
	if v.want.Epoch != e {
		why = "its epoch is " + v.want.Epoch.String() + " and not " + e.String()
	}
	if why != "" {
		return fault.New(fault.Conflict, "VEE %s is not as it was planned for: %s", id, why)
	}
	before, a := v.move, v.want
	a.Move = &m
	v.move = moving{id: m.ID, report: m.Report(vhi.MoveWaiting)}
	if err := v.keep(a, v.part.Withdraw()); err != nil {
		v.move = before
		return err
	}
	v.nudge()
	return nil
}

// Expect a VEE by the assignment under which the other host runs it. What an earlier attempt
// has left here, or the site's word that there is nothing, does not stand against it.
func (t *Tracker) Expect(a vhi.Assignment) error {
	if _, err := vee.ParseID(string(a.VEE)); err != nil {
		return fault.New(fault.Malformed, "%w", err)
	}
	if a.Power != vhi.Incoming || a.Move == nil || a.Move.By == "" || a.Move.ID == "" || a.Move.Ticket == "" {
		return fault.New(fault.Malformed, "VEE %s is not expected by a move that hosts have agreed on", a.VEE)
	}
	v, fresh := t.findOrMake(a.VEE)
	if err := v.expect(a); err != nil {
		if fresh {
			t.drop(a.VEE)
		}
		return err
	}
	if fresh {
		t.mu.Lock()
		t.begin(v)
		t.mu.Unlock()
	}
	t.cfg.Changed()
	return nil
}

func (v *tracked) expect(a vhi.Assignment) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.want
	if old.Power != "" {
		left := v.seen.Condition == hypervisor.Absent && v.doing == rest
		free := left && (old.Power == vhi.Absent || old.Power == vhi.Incoming && (v.move.over || !v.move.opened))
		switch {
		case a.Epoch.Compare(old.Epoch) < 0:
			return fault.New(fault.StaleEpoch, "VEE %s: epoch %s is older than %s, which is obeyed here", a.VEE, a.Epoch, old.Epoch)
		case !free || v.part.Undecided():
			return fault.New(fault.Conflict, "VEE %s: something of it is on this host", a.VEE)
		case a.Epoch == old.Epoch:
			a.Seq = max(a.Seq, old.Seq)
		}
	}
	before := v.move
	v.move = moving{id: a.Move.ID, plugs: v.move.plugs, report: a.Move.Report(vhi.MoveWaiting), told: time.Now()}
	if err := v.keep(a, v.part.Withdraw()); err != nil {
		v.move = before
		return err
	}
	v.err = nil
	v.nudge()
	return nil
}

// Moving is how far a move is that hosts have agreed on.
func (t *Tracker) Moving(move string, id vee.ID) (vhi.MoveReport, error) {
	v := t.find(id)
	if v != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.move.id == move && v.move.report.By != "" {
			p := v.move.report
			if v.part.Move == move && v.part.State == handover.Gone {
				p.Stage = vhi.MoveTaken
			}
			return p, nil
		}
	}
	return vhi.MoveReport{}, fault.New(fault.NotFound, "this host does not know of move %s of VEE %s", move, id)
}

// Arrival of a VEE that was expected and has not come yet.
type Arrival struct {
	VEE  vee.ID
	Move vhi.Move
}

// Arrivals by moves that hosts have agreed on.
func (t *Tracker) Arrivals() []Arrival {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []Arrival
	for id, v := range t.vees {
		v.mu.Lock()
		if v.want.Power == vhi.Incoming && v.want.Move != nil && v.want.Move.By != "" && !v.move.over {
			list = append(list, Arrival{id, *v.want.Move})
		}
		v.mu.Unlock()
	}
	return list
}

// Forsake an arrival whose source says that nothing comes of it. One that was given meanwhile
// stands.
func (t *Tracker) Forsake(a Arrival) {
	if v := t.find(a.VEE); v != nil && v.assigned().Power == vhi.Incoming {
		v.failMove(a.Move.ID, vhi.MoveFailed, fault.New(fault.Conflict, "host %s does not send it", a.Move.From))
	}
}

// gave reports whether v was handed over by what hosts have agreed on.
func (v *tracked) gave() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.part.State == handover.Gone && v.move.report.By != ""
}
