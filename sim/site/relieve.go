package site

import (
	"time"

	"github.com/reservoir-cloud/reservoir/dvms"
	"github.com/reservoir-cloud/reservoir/ownership"
	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Hosts relieve each other: the shell around a dvms.Node. Partitions are solved by the
// placement engine, and carried out by handovers of the ownership protocol.

const (
	monitorEvery = 5 * time.Second
	solveTime    = 200 * time.Millisecond
	moveTime     = 5 * time.Second  // of a VEE's memory
	patience     = 3 * time.Second  // with a host that is asked
	moveLimit    = 30 * time.Second // for a leader to hear of it
	suspectAfter = 9 * time.Second  // the membership takes a node for dead
)

func (h *host) load() (sum int) {
	for _, v := range h.s.vees {
		if p := h.procs[v.id]; p != nil && p.running {
			sum += v.load
		}
	}
	return sum
}

// monitor the host's load, and tell the node.
func (h *host) monitor() {
	switch load := h.load(); {
	case h.drain && load > 0:
		h.peer(dvms.Violated{Reason: dvms.Draining})
	case load > h.room:
		h.peer(dvms.Violated{Reason: dvms.Overloaded})
	default:
		h.peer(dvms.Calm{})
	}
}

// peer is a step of the host's part in DVMS.
func (h *host) peer(e dvms.Event) {
	if h.guestless {
		return
	}
	h.queue(func() {
		was := h.node
		node, actions := h.node.Step(h.s.peers, h.s.over, h.now(), e)
		h.node, h.number = node, node.Number
		if node.Part.ID != was.Part.ID {
			h.s.parts[h.name] = part{node.Part.ID, h.s.sim.Now()}
		}
		h.tellPart(was)
		for _, a := range actions {
			h.peerAct(a)
		}
		if at, due := node.Deadline(h.s.peers); due {
			life := h.life
			h.s.sim.After(h.real(at-h.now()), "", func() {
				if h.life == life {
					if d, ok := h.node.Deadline(h.s.peers); ok && d <= h.now() {
						h.peer(dvms.Tick{})
					}
				}
			})
		}
	})
}

func (h *host) tellPart(was dvms.Node) {
	switch is := h.node; {
	case is.Leads() && (!was.Leads() || was.Part.State != is.Part.State):
		h.s.say("%s: leads %s, %s: %v", h.name, is.Part.ID, is.Part.State, is.Part.Members)
	case was.Leads() && !is.In():
		h.s.say("%s: %s is over", h.name, was.Part.ID)
	}
}

func (h *host) peerAct(a dvms.Action) {
	s := h.s
	switch a := a.(type) {
	case dvms.Send:
		to := s.host(a.To)
		s.net.Send(h.name, a.To, "", func() { to.peer(a.Message) })
	case dvms.Solve:
		life := h.life
		s.sim.After(solveTime, "", func() {
			if h.life == life {
				moves, outcome := s.solve(a.Partition)
				h.plan = moves
				h.peer(dvms.Solved{ID: a.Partition.ID, Version: a.Partition.Version, Outcome: outcome})
			}
		})
	case dvms.Apply:
		h.apply(a.Partition, h.plan)
	case dvms.Escalate:
		s.say("%s: %s asks the site for help: %s and nobody has room", h.name, a.Partition.ID, a.Partition.Reason)
	}
}

// move of a VEE between two members.
type move struct {
	vee      vee.ID
	from, to string
}

// solve a partition: what has to move so that no member has too much.
func (s *Site) solve(p dvms.Partition) (moves []move, o dvms.Outcome) {
	m := model.New("cpu")
	var vees []vee.ID
	fine := true
	for i, name := range p.Members {
		h := s.host(name)
		m.AddHost(model.Host{Name: name, Draining: h.drain}, int64(h.room))
		fine = fine && h.load() <= h.room && (!h.drain || h.load() == 0)
		for _, v := range s.vees {
			if x := h.procs[v.id]; x != nil && x.running {
				vees = append(vees, v.id)
				m.AddVEE(model.VEE{Name: string(v.id), State: model.Running, Host: int32(i)}, int64(v.load))
			}
		}
	}
	if fine {
		return nil, dvms.Nothing
	}
	t, err := solve.Repair(m, solve.Options{Seed: s.Seed})
	if err != nil {
		return nil, dvms.NoWay
	}
	for i, to := range t.At {
		if from := m.VEEs[i].Host; from != to && to != model.None {
			moves = append(moves, move{vees[i], p.Members[from], p.Members[to]})
		}
	}
	return moves, dvms.Planned
}

// apply the moves of a plan one after the other; the leader waits for each.
func (h *host) apply(p dvms.Partition, moves []move) {
	life := h.life
	if len(moves) == 0 {
		h.peer(dvms.Applied{ID: p.ID})
		return
	}
	next, over := moves[0], false
	done := func(failed bool) func() {
		return func() {
			h.queue(func() {
				switch {
				case over || h.life != life:
				case failed:
					over = true
					h.peer(dvms.Applied{ID: p.ID, Failed: true})
				default:
					over = true
					h.apply(p, moves[1:])
				}
			})
		}
	}
	from, to := h.s.host(next.from), h.s.host(next.to)
	h.tell(from, func() { from.migrate(next.vee, to, &p, func(failed bool) { from.tell(h, done(failed)) }) })
	h.s.sim.After(h.real(moveLimit), "", done(true))
}

// tell another host something, in a message.
func (h *host) tell(to *host, what func()) {
	if to == h {
		h.queue(what)
		return
	}
	h.s.net.Send(h.name, to.name, "", func() { to.queue(what) })
}

// migrate a VEE to another host, under the plan of a partition, or, without one, because the
// site wants it so. Both hosts must agree; then memory is copied, and the ticket follows.
func (h *host) migrate(id vee.ID, to *host, p *dvms.Partition, done func(failed bool)) {
	if !h.allows(p) || !h.core.Running(id) || to == h {
		done(true)
		return
	}
	over, agreed, life := h.begin(p), false, h.life
	fail := func() {
		if !agreed && h.life == life {
			agreed = true
			over()
			done(true)
		}
	}
	h.s.sim.After(patience, "", func() { h.queue(fail) })
	h.tell(to, func() {
		if !to.allows(p) || to.drain || to.guestless {
			to.tell(h, fail)
			return
		}
		there, life := to.begin(p), to.life
		to.s.sim.After(patience+moveTime, "", func() {
			if to.life == life {
				there()
			}
		})
		to.tell(h, func() {
			if agreed || h.life != life && h == to {
				return
			}
			agreed = true
			h.s.say("%s: %s begins to move to %s", h.name, id, to.name)
			h.s.sim.After(moveTime, "", func() {
				h.queue(func() {
					over()
					if !to.alive || !h.s.net.Reaches(h.name, to.name) {
						h.s.say("%s: the move of %s to %s breaks: the memory did not arrive", h.name, id, to.name)
						done(true)
						return
					}
					h.step(ownership.Give{VEE: id, To: to.name})
					h.s.sim.After(time.Second, "", func() { h.queue(func() { done(h.core.Hold(id).State == ownership.Held) }) })
				})
			})
		})
	})
}

// allows: this host takes part in a move under that plan, or in one that the site wants.
func (h *host) allows(p *dvms.Partition) bool {
	switch {
	case h.s.bug == bugReserve:
		return true
	case p == nil:
		return h.node.Free()
	default:
		return h.node.Allows(p.ID, p.Plan)
	}
}

// begin a move here under a plan; the result ends it. What moves VEEs here at once must be
// one plan.
func (h *host) begin(p *dvms.Partition) (over func()) {
	plan := "the site's"
	if p != nil {
		plan = p.ID.String()
	}
	for other, n := range h.moves {
		if n > 0 && other != plan {
			h.s.fail("%s and %s plans move VEEs at %s at once", plan, other, h.name)
		}
	}
	h.moves[plan]++
	h.peer(dvms.Reserved{By: true})
	life := h.life
	return func() {
		if h.moves[plan]--; h.moves[plan] <= 0 {
			delete(h.moves, plan)
		}
		if h.life == life {
			h.peer(dvms.Reserved{By: len(h.moves) > 0})
		}
	}
}

// suspect a machine that is not heard of any more: the others do after a while.
func (s *Site) suspect(h *host) {
	for _, o := range s.hosts {
		if o == h || o.guestless {
			continue
		}
		s.sim.After(suspectAfter, "", func() {
			if !s.net.Reaches(h.name, o.name) || !h.on {
				o.peer(dvms.Suspect{Node: h.name})
			}
		})
	}
}
