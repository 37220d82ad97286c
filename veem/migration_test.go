package veem

import (
	"testing"
	"time"

	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// What both hosts say of a VEE that moves, and what follows.
func TestDecideMoving(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	past := now.Add(-time.Second)
	here := vee.Epoch{Generation: 1, Term: 2, Hop: 3}
	hop := func(n uint64) vee.Epoch { e := here; e.Hop += n; return e }
	says := func(e vee.Epoch, seq uint64, p vhi.Power, stage vhi.MoveStage) view {
		r := &vhi.Report{Epoch: e, Seq: seq, Power: p}
		if stage != "" {
			r.Move = &vhi.MoveReport{ID: "m", Stage: stage, Error: "why"}
			if stage == vhi.MoveTaken {
				r.Move.Took = vhi.MoveFigures{DiskBytes: 3, MemoryBytes: 4, DowntimeMS: 5}
			}
		}
		return view{host: alive, known: true, report: r}
	}
	nothingThere := view{host: alive, known: true}
	waits := says(here, 7, vhi.Incoming, vhi.MoveWaiting)
	sends := says(here, 7, vhi.Running, vhi.MoveMemory)
	for name, c := range map[string]struct {
		change   func(*record)
		from, to view
		do       act
		state    vmi.MigrationState
		host     string
		epoch    vee.Epoch
		cancels  bool
	}{
		"the door first":                       {nil, says(here, 5, vhi.Running, ""), nothingThere, invite, vmi.MigrationRunning, "a", here, false},
		"then the source":                      {nil, says(here, 5, vhi.Running, ""), waits, assign, vmi.MigrationRunning, "a", here, false},
		"under way":                            {nil, sends, waits, nothing, vmi.MigrationRunning, "a", here, false},
		"given, no word yet":                   {nil, says(hop(1), 7, vhi.Paused, vhi.MoveGiven), waits, nothing, vmi.MigrationRunning, "a", here, false},
		"given, the destination lost":          {nil, says(hop(1), 7, vhi.Paused, vhi.MoveGiven), view{host: lost}, nothing, vmi.MigrationRunning, "a", here, false},
		"taken":                                {nil, sends, says(hop(1), 7, vhi.Running, vhi.MoveTaken), nothing, vmi.MigrationDone, "b", hop(1), false},
		"taken, and the source lost":           {nil, view{host: lost}, says(hop(1), 7, vhi.Running, ""), nothing, vmi.MigrationDone, "b", hop(1), false},
		"decided, not running yet":             {nil, sends, says(hop(1), 7, vhi.Running, vhi.MoveReceiving), nothing, vmi.MigrationRunning, "a", here, false},
		"void at the destination says nothing": {nil, sends, says(hop(1), 7, vhi.Absent, vhi.MoveFailed), nothing, vmi.MigrationRunning, "a", here, false},
		"failed at the source":                 {nil, says(here, 7, vhi.Running, vhi.MoveFailed), waits, nothing, vmi.MigrationFailed, "a", here, false},
		"void: the source goes on a hop later": {nil, says(hop(2), 7, vhi.Running, vhi.MoveVoid), waits, nothing, vmi.MigrationFailed, "a", hop(2), false},
		"source lost before it gave":           {nil, view{host: lost}, waits, nothing, vmi.MigrationRunning, "a", here, false},
		"destination lost before it began":     {nil, says(here, 5, vhi.Running, ""), view{host: lost}, nothing, vmi.MigrationRunning, "a", here, true},
		"deadline":                             {func(r *record) { r.Move.Deadline = &past }, sends, waits, nothing, vmi.MigrationRunning, "a", here, true},
		"another action":                       {func(r *record) { r.Target = vee.Destroyed }, sends, waits, nothing, vmi.MigrationRunning, "a", here, true},
		"the source is told of a cancellation": {func(r *record) { r.Move.Cancelling = true; r.Seq = 8 }, sends, waits, assign, vmi.MigrationRunning, "a", here, true},
		"the door hears of a new limit":        {func(r *record) { r.Move.Bandwidth = 5; r.Seq = 8 }, sends, waits, invite, vmi.MigrationRunning, "a", here, false},
		"and the source": {func(r *record) { r.Move.Bandwidth = 5; r.Seq = 8 }, sends,
			says(here, 8, vhi.Incoming, vhi.MoveReceiving), assign, vmi.MigrationRunning, "a", here, false},
		"cancelled": {func(r *record) { r.Move.Cancelling = true; r.Seq = 8 }, says(here, 8, vhi.Running, vhi.MoveFailed), waits, nothing, vmi.MigrationCancelled, "a", here, true},
		"cancelled too late": {func(r *record) { r.Move.Cancelling = true; r.Seq = 8 }, says(hop(1), 7, vhi.Paused, vhi.MoveGiven),
			says(hop(1), 7, vhi.Running, vhi.MoveTaken), nothing, vmi.MigrationDone, "b", hop(1), true},
		"gone from the source": {nil, nothingThere, waits, nothing, vmi.MigrationFailed, "a", here, false},
	} {
		r := record{Seq: 7, Assigned: true, Move: &migration{Ticket: "t"}}
		r.Move.Migration = vmi.Migration{ID: "m", From: "a", To: "b", State: vmi.MigrationRunning}
		r.Host, r.Epoch, r.State, r.Target = "a", here, vee.Active, vee.Active
		if c.change != nil {
			c.change(&r)
		}
		d := decideMoving(r, c.from, c.to, now)
		if d.do != c.do || d.rec.Move.State != c.state || d.rec.Host != c.host || d.rec.Epoch != c.epoch || d.rec.Move.Cancelling != c.cancels {
			t.Errorf("%s: %v, %s on %s under %s, cancelling %v; want %v, %s on %s under %s, cancelling %v", name,
				d.do, d.rec.Move.State, d.rec.Host, d.rec.Epoch, d.rec.Move.Cancelling, c.do, c.state, c.host, c.epoch, c.cancels)
		}
		if a := d.rec.assignment(0); (a.Move != nil) != (c.state == vmi.MigrationRunning && !c.cancels) {
			t.Errorf("%s: the next assignment says %+v of the move", name, a.Move)
		}
		if m := d.rec.Move; c.to.report != nil && c.to.report.Move != nil && m.State == vmi.MigrationDone && (m.Total != 7 || m.DowntimeMS != 5 || m.Took.MemoryBytes != 4) {
			t.Errorf("%s: figures %+v", name, m.Migration)
		}
		if c.state != vmi.MigrationRunning && d.rec.Seq <= 7 {
			t.Errorf("%s: assignment %d is not newer than what the hosts have", name, d.rec.Seq)
		}
	}
}
