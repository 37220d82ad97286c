package veem

import (
	"context"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vhi"
)

// reportMove is what a guest's host says of its migration.
func (g *fakeGuest) reportMove(p *vhi.Report) {
	switch {
	case g.moved.By != "": // by the hosts' own doing: see peers_test.go
		p.Move = &g.moved
	case g.want.Power == vhi.Incoming && g.now == vhi.Absent:
		p.Power, p.Phase = vhi.Incoming, vee.PhaseMigrate
		p.Move = &vhi.MoveReport{ID: g.want.Move.ID, Stage: vhi.MoveWaiting}
	case g.moved.Stage == vhi.MoveGiven && g.now == vhi.Absent && g.want.Power == vhi.Running:
		p.Power, p.Phase = vhi.Paused, vee.PhaseMigrate
		p.Epoch.Hop++
		p.Move = &g.moved
	case g.moved.Stage != "" && g.want.Power == vhi.Running:
		p.Move = &g.moved
	}
}

// stepMove does a step of a guest's migration at its source: it begins, and it is over.
func (h *fakeHost) stepMove(id vee.ID, g *fakeGuest) bool {
	m := g.want.Move
	if m == nil && g.moved.Stage == vhi.MoveMemory { // cancelled
		g.movesTo.movesTo--
		g.phase, g.moved.Stage = "", vhi.MoveFailed
		return true
	}
	if g.want.Power != vhi.Running || m == nil || m.From != h.name || g.now != vhi.Running || g.moved.ID == m.ID && g.moved.Stage != vhi.MoveMemory {
		return false
	}
	to := h.s.host(m.To)
	there := to.guests[id]
	if there == nil || there.want.Power != vhi.Incoming || there.want.Move.ID != m.ID {
		return false
	}
	if g.moved.ID != m.ID {
		g.moved, g.phase = vhi.MoveReport{ID: m.ID, Stage: vhi.MoveMemory}, vee.PhaseMigrate
		g.movesTo = to
		to.movesTo++
		to.atMost = max(to.atMost, to.movesTo)
		return true
	}
	to.movesTo--
	g.phase = ""
	if why := to.failMoves; why != "" || to.down {
		g.moved = vhi.MoveReport{ID: m.ID, Stage: vhi.MoveFailed, Error: orElse(why, "no route to host"), Code: string(fault.Unavailable)}
		return true
	}
	g.now, g.moved, g.ready = vhi.Absent, vhi.MoveReport{ID: m.ID, Stage: vhi.MoveGiven}, false
	there.want.Power, there.want.Epoch.Hop = vhi.Running, there.want.Epoch.Hop+1
	there.now, there.ready, there.moved = vhi.Running, true, vhi.MoveReport{ID: m.ID, Stage: vhi.MoveTaken, DowntimeMS: 20}
	h.s.check(to, id, there)
	to.nudge()
	return true
}

func (h *fakeHost) PowerOff(context.Context) error {
	if err := h.net(); err != nil {
		return err
	}
	defer h.lock()()
	for id, g := range h.guests {
		if g.now == vhi.Running || g.now == vhi.Paused {
			return fault.New(fault.WrongState, "VEE %s runs", id)
		}
	}
	h.powerOffs++
	h.down = true
	return nil
}
